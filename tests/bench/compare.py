"""Compare two files of figures: python -m tests.bench.compare before.json after.json

Ratios of the minimum, after / before, of what both measured of the same model file; equal code
digests say that nothing was compiled anew.
"""

import argparse
from pathlib import Path

from tests.bench.prepare import print_table
from tests.bench.results import Row, geometric_mean, read_rows


def main() -> None:
    """Compare and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("before", type=Path)
    parser.add_argument("after", type=Path)
    options = parser.parse_args()
    for path in (options.before, options.after):
        if not path.is_file():
            parser.error(f"{path} is no file")
    before = {_key(each): each for each in read_rows(options.before)}
    rows = [("model", "target", "threads", "runtime", "before", "after", "ratio", "code")]
    ratios = []
    for after in read_rows(options.after):
        old = before.get(_key(after))
        if old is None or old.minimum is None or after.minimum is None:
            continue
        ratio = after.minimum / old.minimum
        ratios.append(ratio)
        same = "same" if old.code == after.code else "other"
        figures = (f"{old.minimum:.3f}", f"{after.minimum:.3f}", f"{ratio:.3f}", same)
        rows.append((after.model, after.target, str(after.threads), after.runtime, *figures))
    print_table(rows)
    print(f"geometric mean of {len(ratios)}: {geometric_mean(ratios):.3f}")


def _key(row: Row) -> tuple[object, ...]:
    return (*row.place, row.runtime, row.digest, row.unit)


if __name__ == "__main__":
    main()
