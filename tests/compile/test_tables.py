"""How many pages of an embedding table are predicted to be resident."""

import numpy as np

from edgeopt.compile.tables import Table, touched_bytes

PAGE = 4096


def table(*, source: str = "ids", constant: tuple[int, ...] = (), reads: int = 4) -> Table:
    return Table(
        digest="d", rows=1000, row_bytes=1536, source=source, constant=constant, reads=reads
    )


def test_samples_count_each_page_once_and_a_row_may_span_two() -> None:
    # Rows of 1536 bytes: 0 and 1 in page 0, 2 in pages 0 and 1, 8 in page 3.
    assert touched_bytes([table()], {"ids": np.array([[0, 1]])}, PAGE) == PAGE
    assert touched_bytes([table()], {"ids": np.array([[0], [2]])}, PAGE) == 2 * PAGE
    assert touched_bytes([table()], {"ids": np.array([[0, 8], [8, 0]])}, PAGE) == 2 * PAGE


def test_without_samples_no_two_rows_share_a_page() -> None:
    assert touched_bytes([table(reads=4)], None, PAGE) == 4 * 2 * PAGE


def test_no_more_than_the_whole_table_is_resident() -> None:
    assert touched_bytes([table(reads=10**6)], None, PAGE) == 375 * PAGE
    assert touched_bytes([table()], {"ids": np.arange(1000)}, PAGE) == 375 * PAGE


def test_constant_rows_need_no_samples() -> None:
    positions = table(source="", constant=(0, 1, 2))
    assert touched_bytes([positions], None, PAGE) == 2 * PAGE


def test_a_table_read_by_two_gathers_counts_their_pages_together() -> None:
    both = [table(), table(source="", constant=(0,))]
    assert touched_bytes(both, {"ids": np.array([1])}, PAGE) == PAGE
    assert touched_bytes(both, {"ids": np.array([500])}, PAGE) == 2 * PAGE


def test_samples_of_another_input_do_not_count() -> None:
    assert touched_bytes([table()], {"other": np.array([0])}, PAGE) == 4 * 2 * PAGE
