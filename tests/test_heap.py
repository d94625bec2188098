import subprocess
import sys

#: Copies 16 MB twenty times, and prints how many new pages that took of the system.
PROGRAM = """
import resource, sys
from edgeopt.heap import keep_freed_memory
if sys.argv[1] == "kept":
    keep_freed_memory()
values = bytearray(b"x" * 16_000_000)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(20):
    bytes(values)
    bytes(values + values + values)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def new_pages(how: str) -> int:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, how], capture_output=True, text=True, check=True, timeout=60
    )
    return int(done.stdout)


def test_what_is_freed_is_used_again_without_asking_the_system() -> None:
    assert new_pages("kept") < new_pages("given back") / 3
