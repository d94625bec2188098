"""The state of a fleet: what a rerun may leave out, and what it must not believe."""

import datetime
from pathlib import Path

import pytest

from edgeopt.errors import ConfigError
from edgeopt.fleet import FleetBoard, Outcome, StateFile
from edgeopt.fleet.push import too_many
from edgeopt.fleet.state import Result

DIGEST = "a" * 64
BOARD = FleetBoard(address="pi@one")


def outcome(result: Result = "deployed", digest: str = DIGEST) -> Outcome:
    now = datetime.datetime.now(datetime.UTC)
    return Outcome(
        name="pi@one", address="pi@one", target="rpi4", result=result, digest=digest, time=now
    )


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "fleet.state.json"


def reread(path: Path, app: str = "questions") -> StateFile:
    state = StateFile(path, app)
    state.load()
    return state


def test_a_board_that_has_the_release_is_known_to_the_next_run(path: Path) -> None:
    assert not reread(path).has(BOARD, DIGEST)
    StateFile(path, "questions").note(outcome())
    state = reread(path)
    assert state.has(BOARD, DIGEST)
    assert not state.has(BOARD, "b" * 64)
    assert not state.has(BOARD.model_copy(update={"name": "other"}), DIGEST)
    # The same name for another device.
    assert not state.has(FleetBoard(address="pi@two", name="pi@one"), DIGEST)
    assert not reread(path, app="another").has(BOARD, DIGEST)


def test_what_failed_since_is_tried_again_and_what_was_not_tried_changes_nothing(
    path: Path,
) -> None:
    state = StateFile(path, "questions")
    state.note(outcome())
    state.note(outcome("not tried"))
    assert reread(path).has(BOARD, DIGEST)
    state.note(outcome("failed"))
    assert not reread(path).has(BOARD, DIGEST)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"app": 1}', '{"app": "x", "more": 1}', "\xff"])
def test_a_damaged_state_is_an_error_that_says_what_to_do(path: Path, text: str) -> None:
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(ConfigError, match="is not a fleet's state") as caught:
        reread(path)
    assert str(path) in caught.value.fix


def test_a_push_stops_when_failures_show_that_too_many_boards_fail() -> None:
    assert not too_many(0, 100, 0.0)
    assert too_many(1, 1, 0.0)
    assert not too_many(1, 1, 0.2)
    assert too_many(2, 2, 0.2)
    assert not any(too_many(tried // 10, tried, 0.2) for tried in range(1, 201))
    assert too_many(60, 200, 0.2)
    assert not too_many(200, 200, 1.0)
