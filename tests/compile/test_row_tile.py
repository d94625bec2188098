"""The assembly of one row of floats times a matrix on 64-bit ARM."""

import re

import pytest

from edgeopt.compile.kernels.row_tile import FEWEST_CHAINS, chains_of, write_row

#: Steps of K in one turn of the loop.
STEPS = 16


def test_a_row_takes_a_load_for_four_multiplications() -> None:
    lines = write_row(16, paired=False).split("\\0A")
    loop = lines[lines.index("1:") + 1 : lines.index("b.ne 1b")]
    assert sum(line.startswith("fmla") for line in loop) == STEPS * 16
    assert sum(line.startswith("ld") for line in loop) == STEPS * 16 // 4 + 1


@pytest.mark.parametrize("sums", [4, 8, 16])
def test_in_program_order_all_free_registers_are_filled_before_any_is_multiplied_by(
    sums: int,
) -> None:
    lines = write_row(sums, paired=True).split("\\0A")
    loop = lines[lines.index("1:") + 1 : lines.index("b.ne 1b")]
    runs = re.findall("l+", "".join("l" if "[$1" in line else "-" for line in loop))
    free = (32 - sums * chains_of(sums, STEPS) - 4) // 2 * 2
    assert len(runs) == -(-STEPS * sums // free)
    assert {len(run) for run in runs[:-1]} == {free // 2}
    # What moves the address stands apart from what needs it.
    assert sum(line.startswith("add $1") for line in loop) <= STEPS * sums * 16 / 1024 * 4 / 3 + 1


def test_a_row_beyond_the_register_file_is_refused() -> None:
    with pytest.raises(AssertionError):
        write_row(25, paired=False)


@pytest.mark.parametrize("paired", [False, True])
def test_a_row_starts_from_elsewhere_and_moves_four_registers_at_a_time(paired: bool) -> None:
    lines = write_row(18, paired=paired).split("\\0A")
    start = lines[1 : lines.index("cbz x9, 2f") - 1]
    assert [line.count("v") + line.count(" q") for line in start] == [4, 4, 4, 4, 2]
    assert all("[x11]" in line for line in start)
    assert lines[-6] == "4:"
    end = lines[-5:]
    assert all(line.startswith("st") and "[$2]" in line for line in end)


@pytest.mark.parametrize("paired", [False, True])
@pytest.mark.parametrize("sums", [1, 2, 3, 4, 7, 8, 16, 20, 21, 24])
def test_a_row_multiplies_what_was_loaded_for_it(sums: int, paired: bool) -> None:
    lines = write_row(sums, paired=paired).split("\\0A")
    chains = chains_of(sums, STEPS)
    held: dict[str, int] = {}
    read, moved, products = 0, 0, []
    for line in lines[lines.index("1:") + 1 : lines.index("b.ne 1b")]:
        registers = re.findall(r"\b[qv](\d+)", line)
        if line.startswith("add $1"):
            moved += int(line.split("#")[-1])
        elif line.startswith("ld") and "[$1" in line:
            offset = line.partition("[$1, #")[2].rstrip("]")
            assert not paired or moved + int(offset) == 16 * read
            for register in registers:
                held[register] = read
                read += 1
        elif line.startswith("fmla"):
            result, right, left = registers
            k = 4 * (int(left) - sums * chains) + int(line[line.rindex("[") + 1 : -1])
            products.append((held[right], k, int(result)))
    assert products == [
        (k * sums + i, k, k % chains * sums + i) for k in range(STEPS) for i in range(sums)
    ]
    assert read == STEPS * sums
    assert moved == (16 * read if paired else 0)


@pytest.mark.parametrize("paired", [False, True])
@pytest.mark.parametrize("sums", range(1, 8))
def test_a_short_row_has_sums_enough_to_hide_the_latency_and_adds_each_of_them_once(
    sums: int, paired: bool
) -> None:
    chains = chains_of(sums, STEPS)
    assert sums * chains >= FEWEST_CHAINS
    lines = write_row(sums, paired=paired).split("\\0A")
    cleared = {line.split()[1] for line in lines if line.startswith("movi")}
    assert cleared == {f"v{register}.4s," for register in range(sums, sums * chains)}
    held = {register: {register} for register in range(sums * chains)}
    for line in lines:
        if line.startswith("fadd"):
            to, left, right = (int(each) for each in re.findall(r"v(\d+)", line))
            assert to == left
            assert not held[left] & held[right]
            held[to] = held[left] | held[right]
    for column in range(sums):
        assert held[column] == {k * sums + column for k in range(chains)}


@pytest.mark.parametrize("paired", [False, True])
@pytest.mark.parametrize("sums", range(1, 8))
@pytest.mark.parametrize("depth", [0, 1, 7, 10, 15])
def test_a_short_row_reads_the_rest_of_k_once_without_a_loop(
    sums: int, depth: int, paired: bool
) -> None:
    lines = write_row(sums, paired=paired).split("\\0A")
    lines = lines[lines.index("2:") + 1 :]
    read, products, place = {"$0": 0, "$1": 0}, 0, 0
    while place < len(lines):
        line = lines[place]
        place += 1
        if line.startswith("tbz") and not depth >> int(line.split("#")[1].split(",")[0]) & 1:
            place = lines.index("3:", place)
        elif line == "b.eq 4f" and not depth:
            place = lines.index("4:", place)
        elif line.startswith("ld") and not (paired and "[$1" in line):
            pointer = line[line.index("[") + 1 : line.index("]")]
            read[pointer] += int(line.split("#")[-1])
        elif line.startswith("add $1"):
            read["$1"] += int(line.split("#")[-1])
        products += line.startswith("fmla")
    assert read == {"$0": 4 * depth, "$1": 16 * sums * depth}
    assert products == sums * depth
