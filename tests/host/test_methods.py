"""Every method has a kernel on every kind of core, and README says which."""

from typing import get_args

import pytest

from edgeopt.artifact import Method
from tests.bench.methods import VARIANTS, cores, table_of_methods
from tests.test_readme import README

pytestmark = pytest.mark.host

#: Bits that a value of a matrix may take at most, scales in blocks of 32 included.
MOST = {
    "float32": 32, "float32-sparse": 16.6, "float16": 16, "float16-sparse": 8.6,
    "int8-rows": 16, "int8-blocks": 8.51, "int8-weights": 8.2, "int8-sparse": 4.8,
    "codebook-weights": 8.2, "int8-dynamic": 8.3, "int8-static": 8.3, "codebook16-blocks": 4.51,
    "int4-blocks": 4.51, "codebook-rows": 4.51, "codebook4-blocks": 2.51, "int2-blocks": 2.51,
    "ternary-blocks": 2.51, "binary-blocks": 1.51,
    "int8-blocks+zero_points": 8.76, "int8-weights+tensor": 8.01, "int8-weights+zero_points": 8.2,
}  # fmt: skip


@pytest.fixture(scope="module")
def table() -> str:
    return table_of_methods(cores())


def test_no_cell_of_the_table_is_blank_and_every_method_has_a_row(table: str) -> None:
    header, *rows = (line.split() for line in table.splitlines())
    assert [row[0] for row in rows] == [*get_args(Method), *VARIANTS]
    assert all(len(row) == len(header) for row in rows)
    assert header[3:] == ["aarch64", "arm", "x86_64"]
    # One kernel computes the product: there is none that first decodes the weight to memory.
    assert all("gemm" in cell or "integer" in cell for row in rows for cell in row[3:])


def test_every_method_takes_the_bits_that_it_promises(table: str) -> None:
    found = {line.split()[0]: float(line.split()[1]) for line in table.splitlines()[1:]}
    assert found.keys() == MOST.keys()
    assert all(found[method] <= MOST[method] for method in MOST)


def test_readme_has_the_table_as_it_is(table: str) -> None:
    assert "\n".join(line.rstrip() for line in table.splitlines()) in README
