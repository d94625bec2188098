"""The weights file: what is written is what lies there, at the places that the program checks."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays_of
from numpy.typing import NDArray

from edgeopt.compile.weights import ALIGNMENT, RANDOM_ALIGNMENT, read_index, write_weights
from edgeopt.errors import ConfigError

DTYPES = ["bool", "int8", "uint8", "int16", "int32", "int64", "float16", "float32", "float64"]


def test_the_first_record_is_just_what_the_device_program_reads(tmp_path: Path) -> None:
    path = tmp_path / "weights.bin"
    write_weights(path, [np.array([[1.0, 2.0, 3.0]], dtype=np.float32)])
    expected = b"EDGEWT2\0" + (1).to_bytes(8, "little")
    expected += bytes([2, 32]) + (1).to_bytes(2, "little") + (2).to_bytes(4, "little")
    expected += b"".join(length.to_bytes(8, "little") for length in (1, 3, 0, 0, 0, 0, 0, 0))
    expected += (128).to_bytes(8, "little") + (12).to_bytes(8, "little") + bytes(24)
    data = path.read_bytes()
    assert data[:128] == expected
    assert np.frombuffer(data[128:], np.float32).tolist() == [1.0, 2.0, 3.0]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(data=st.data())
def test_every_array_comes_back_from_its_place(tmp_path: Path, data: st.DataObject) -> None:
    shapes = arrays_of.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=5)
    one = st.sampled_from(DTYPES).flatmap(lambda dtype: arrays_of.arrays(dtype, shapes))
    arrays: list[NDArray[np.generic]] = data.draw(st.lists(one, max_size=6))
    indices = st.sampled_from(range(len(arrays))) if arrays else st.nothing()
    random = frozenset(data.draw(st.sets(indices)))
    path = tmp_path / "weights.bin"
    write_weights(path, arrays, random)
    content = path.read_bytes()
    records = read_index(path)
    assert len(records) == len(arrays)
    for index, (record, array) in enumerate(zip(records, arrays, strict=True)):
        stored = content[record.offset : record.offset + record.size]
        assert stored == array.tobytes()
        assert (record.dtype, record.shape) == (array.dtype.name, array.shape)
        assert record.random == (index in random)
        assert record.offset % (RANDOM_ALIGNMENT if record.random else ALIGNMENT) == 0


def test_a_random_table_shares_no_page_with_its_neighbours(tmp_path: Path) -> None:
    path = tmp_path / "weights.bin"
    one = np.ones(10, dtype=np.float32)
    write_weights(path, [one, one, one], random=frozenset({1}))
    before, table, after = read_index(path)
    assert before.offset + before.size <= table.offset
    assert after.offset - table.offset == RANDOM_ALIGNMENT


def test_a_random_table_at_the_end_is_padded_inside_the_file(tmp_path: Path) -> None:
    path = tmp_path / "weights.bin"
    write_weights(path, [np.ones(10, dtype=np.float32)], random=frozenset({0}))
    assert path.stat().st_size == 2 * RANDOM_ALIGNMENT


def test_arrays_in_any_memory_order_are_stored_in_c_order(tmp_path: Path) -> None:
    path = tmp_path / "weights.bin"
    matrix = np.arange(6, dtype=np.float32).reshape(2, 3)
    write_weights(path, [np.asfortranarray(matrix), matrix.astype(">f4"), matrix[:, ::2]])
    content = path.read_bytes()
    first, second, third = read_index(path)
    assert content[first.offset : first.offset + first.size] == matrix.tobytes()
    assert content[second.offset : second.offset + second.size] == matrix.tobytes()
    assert content[third.offset : third.offset + third.size] == matrix[:, ::2].tobytes()


def test_the_same_arrays_give_the_same_bytes(tmp_path: Path) -> None:
    arrays: list[NDArray[np.generic]] = [np.arange(100, dtype=np.int8), np.ones((3, 3), np.float16)]
    write_weights(tmp_path / "one", arrays, frozenset({0}))
    write_weights(tmp_path / "two", arrays, frozenset({0}))
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


@pytest.mark.parametrize("dtype", ["complex64", "longdouble", "U3"])
def test_a_type_that_the_format_lacks_is_refused(tmp_path: Path, dtype: str) -> None:
    with pytest.raises(ConfigError, match="cannot be stored"):
        write_weights(tmp_path / "weights.bin", [np.zeros(3, dtype=dtype)])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not a weights file"),
        (b"EDGEWT1\0" + bytes(8), "not a weights file"),
        (b"EDGEWT2\0\2" + bytes(7), "ends within its index"),
    ],
)
def test_other_files_are_not_read(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "weights.bin"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=message):
        read_index(path)
