import os
from pathlib import Path

import pytest
from filelock import FileLock
from pydantic import BaseModel

from edgeopt.store import KERNELS, Store, canonical, digest_tree


class Made(BaseModel):
    number: int


class Counter:
    def __init__(self) -> None:
        self.runs = 0

    def __call__(self, folder: Path) -> Made:
        self.runs += 1
        (folder / "data.bin").write_bytes(b"abc")
        return Made(number=self.runs)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path)


def test_a_second_run_with_the_same_inputs_is_found(store: Store) -> None:
    work = Counter()
    first = store.stage("fit", {"a": 1}, Made, work)
    second = store.stage("fit", {"a": 1}, Made, work)
    assert (first.cached, second.cached, work.runs) == (False, True, 1)
    assert first.value == second.value


def test_other_inputs_or_another_stage_are_made(store: Store) -> None:
    work = Counter()
    store.stage("fit", {"a": 1}, Made, work)
    store.stage("fit", {"a": 2}, Made, work)
    store.stage("compile", {"a": 1}, Made, work)
    assert work.runs == 3


def test_a_stage_with_tools_of_its_own_is_made_anew_when_they_change(store: Store) -> None:
    work = Counter()
    for version in ("1", "1", "2"):
        store.stage("fit", 1, Made, work, tools={"torch": version})
    assert work.runs == 2


def test_fresh_makes_again(store: Store) -> None:
    work = Counter()
    store.stage("fit", 1, Made, work)
    assert not store.stage("fit", 1, Made, work, fresh=True).cached


def _only_record(store: Store) -> Path:
    return next(store.root.glob("stages/fit/*/*/record.json"))


def test_a_flipped_byte_in_a_stored_file_is_made_again(store: Store) -> None:
    work = Counter()
    store.stage("fit", 1, Made, work)
    (_only_record(store).parent / "data.bin").write_bytes(b"abd")
    assert not store.stage("fit", 1, Made, work).cached
    assert store.stage("fit", 1, Made, work).cached


@pytest.mark.parametrize("damage", [b"", b"{", b'{"files": {}, "result": {"number": "x"}}', b"[]"])
def test_a_damaged_record_is_made_again(store: Store, damage: bytes) -> None:
    work = Counter()
    store.stage("fit", 1, Made, work)
    _only_record(store).write_bytes(damage)
    assert not store.stage("fit", 1, Made, work).cached


def test_a_run_that_fails_leaves_nothing_to_find(store: Store) -> None:
    def fail(folder: Path) -> Made:
        (folder / "half").write_bytes(b"x")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        store.stage("fit", 1, Made, fail)
    made = store.stage("fit", 1, Made, Counter())
    assert not made.cached
    assert not (_only_record(store).parent / "half").exists()


def test_fresh_does_not_take_away_what_another_run_is_reading(store: Store) -> None:
    store.stage("fit", 1, Made, Counter())
    read = _only_record(store).parent / "data.bin"
    store.stage("fit", 1, Made, Counter(), fresh=True)
    assert read.read_bytes() == b"abc"
    assert store.stage("fit", 1, Made, Counter()).cached


def test_what_was_replaced_a_day_ago_is_removed(store: Store) -> None:
    store.stage("fit", 1, Made, Counter())
    old = _only_record(store).parent
    os.utime(old, (0, 0))
    store.stage("fit", 1, Made, Counter(), fresh=True)
    assert not old.exists()


def test_what_no_run_asks_for_goes_after_its_time_and_the_rest_stays(store: Store) -> None:
    for number in range(3):
        store.stage("fit", number, Made, Counter())
    records = sorted(store.root.glob("stages/fit/*/*/record.json"))
    for each in records:
        os.utime(each.parent, (0, 0))
    # Asked for: it is used again.
    assert store.stage("fit", 0, Made, Counter()).cached
    busy, gone = (each for each in records if each.parent.stat().st_mtime == 0)
    with FileLock(busy.parents[1].with_suffix(".lock")):
        store.expire()
    assert (busy.exists(), gone.exists()) == (True, False)
    store.expire()
    assert not busy.exists()
    assert store.stage("fit", 0, Made, Counter()).cached


def test_clear_forgets_and_size_counts(store: Store) -> None:
    store.stage("fit", 1, Made, Counter())
    (store.root / KERNELS / "ab").mkdir(parents=True)
    (store.root / KERNELS / "ab" / "abc").write_bytes(b"code")
    assert store.size()["fit"] > 3
    assert store.size()[KERNELS] == 4
    store.clear()
    assert store.size() == {}


def test_a_tree_digest_sees_names_and_contents_but_no_caches(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("1")
    first = digest_tree(tmp_path)
    (tmp_path / "__pycache__").mkdir()
    (tmp_path / "__pycache__" / "x.pyc").write_text("1")
    assert digest_tree(tmp_path) == first
    (tmp_path / "a").rename(tmp_path / "b")
    assert digest_tree(tmp_path) != first


def test_canonical_does_not_depend_on_order() -> None:
    assert canonical({"b": 1, "a": [1.5, None]}) == canonical({"a": [1.5, None], "b": 1})
