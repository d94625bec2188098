import numpy as np
import pytest

from edgeopt.artifact import Parity
from edgeopt.errors import ConfigError, ParityBroken
from edgeopt.verify import check_parity, compare_outputs, make_parity


def outputs(seed: int) -> list[np.ndarray]:
    generator = np.random.default_rng(seed)
    shapes = [(5, 6), (5, 3, 4)]
    return [generator.normal(size=shape).astype(np.float32) for shape in shapes]


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_equal_outputs_agree_entirely(seed: int) -> None:
    parity = make_parity(outputs(seed), outputs(seed))
    assert (parity.samples, parity.max_abs, parity.max_rel, parity.agreement) == (5, 0, 0, 1)
    check_parity(parity, 0.0)


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_the_largest_difference_is_found_and_named(seed: int) -> None:
    host, board = outputs(seed), outputs(seed)
    board[1][3, 2, 1] += 0.5
    found = compare_outputs(board, host, names=["logits", "hidden"])
    assert found.worst.output == "hidden"
    assert (found.worst.sample, found.worst.index) == (3, (2, 1))
    assert found.worst.max_abs == pytest.approx(0.5, abs=1e-6)
    assert found.worst.max_rel == pytest.approx(0.5 / np.abs(host[1]).max(), rel=1e-5)
    with pytest.raises(ParityBroken, match=r"output 'hidden', sample 3, at \[2, 1\]"):
        check_parity(make_parity(board, host, names=["logits", "hidden"]), 1e-4)


def test_the_tolerance_itself_is_still_within() -> None:
    host = [np.array([[1.0, -2.0]], dtype=np.float64)]
    board = [host[0] + np.array([[0.0, 0.25]])]
    parity = make_parity(board, host)
    assert parity.max_rel == 0.125
    check_parity(parity, 0.125)
    with pytest.raises(ParityBroken):
        check_parity(parity, 0.1249)


def test_each_output_has_its_own_scale() -> None:
    host = [np.full((1, 2), 1000.0), np.full((1, 2), 0.001)]
    board = [host[0].copy(), np.full((1, 2), 0.002)]
    assert make_parity(board, host).max_rel == pytest.approx(1.0)


def test_agreement_counts_samples_whose_first_class_is_the_same() -> None:
    host = [np.array([[1.0, 2.0], [3.0, 1.0], [0.0, 1.0], [5.0, 4.0]])]
    board = [np.array([[1.0, 2.0], [1.0, 3.0], [0.0, 1.0], [5.0, 4.0]])]
    assert compare_outputs(board, host).agreement == 0.75


def test_an_output_without_a_class_axis_has_no_agreement() -> None:
    assert compare_outputs([np.zeros((3, 1))], [np.zeros((3, 1))]).agreement is None
    ids = [np.zeros((3, 2), dtype=np.int64)]
    assert compare_outputs(ids, ids).agreement is None


@pytest.mark.parametrize("sides", ["board", "host", "both"])
def test_a_nan_is_never_a_pass(sides: str) -> None:
    host, board = outputs(1), outputs(1)
    for side, values in (("board", board), ("host", host)):
        if sides in (side, "both"):
            values[0][2, 1] = np.nan
    with pytest.raises(ParityBroken, match=r"sample 2, at \[1\]"):
        make_parity(board, host)


def test_a_parity_that_holds_a_nan_does_not_pass() -> None:
    with pytest.raises(ParityBroken):
        check_parity(Parity(samples=1, max_abs=float("nan"), max_rel=float("nan")), 1.0)


def test_infinities_pass_only_where_both_sides_have_them() -> None:
    host = [np.array([[1.0, -np.inf]])]
    assert make_parity([host[0].copy()], host).max_rel == 0
    with pytest.raises(ParityBroken, match="inf"):
        make_parity([np.array([[1.0, np.inf]])], host)
    with pytest.raises(ParityBroken, match="inf"):
        make_parity([np.array([[1.0, -5.0]])], host)


def test_masked_scores_do_not_hide_the_other_differences() -> None:
    lowest = float(np.finfo(np.float32).min)
    host, board = [np.array([[1.0, lowest]])], [np.array([[1.5, lowest]])]
    parity = make_parity(board, host)
    assert parity.max_rel == pytest.approx(0.5)
    assert parity.max_abs == pytest.approx(0.5)


def test_an_output_of_zeros_must_be_zeros() -> None:
    host = [np.zeros((2, 3))]
    assert make_parity([np.zeros((2, 3))], host).max_rel == 0
    with pytest.raises(ParityBroken):
        check_parity(make_parity([np.full((2, 3), 1e-3)], host), 1e-4)


@pytest.mark.parametrize(
    ("board", "host"),
    [
        ([], []),
        ([np.zeros((1, 2))], []),
        ([np.zeros((1, 2))], [np.zeros((1, 3))]),
        ([np.zeros((0, 2))], [np.zeros((0, 2))]),
    ],
)
def test_nothing_to_compare_is_an_error_and_not_a_pass(
    board: list[np.ndarray], host: list[np.ndarray]
) -> None:
    with pytest.raises(ConfigError):
        make_parity(board, host)


def test_no_samples_is_not_a_pass() -> None:
    with pytest.raises(ParityBroken):
        check_parity(Parity(samples=0, max_abs=0, max_rel=0))


def test_the_metric_is_computed_on_both_sides() -> None:
    host, board = outputs(1), outputs(1)
    board[0][0] = -board[0][0]

    def first_positive(values: object) -> float:
        assert isinstance(values, list)
        return float(np.mean(values[0][:, 0] > 0))

    parity = make_parity(board, host, metric="accuracy", score=first_positive)
    assert (parity.metric, parity.metric_samples) == ("accuracy", 5)
    assert parity.metric_board == first_positive(board)
    assert parity.metric_host == first_positive(host)
    assert parity.metric_board != parity.metric_host
    assert Parity.model_validate_json(parity.model_dump_json()) == parity


def test_a_metric_that_is_not_a_number_is_not_a_pass() -> None:
    with pytest.raises(ParityBroken, match="metric"):
        make_parity(outputs(1), outputs(1), metric="accuracy", score=lambda _: float("nan"))
