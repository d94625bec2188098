"""Where nothing may be skipped, a skipped test and a skipped file are failures."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

_FILES = {
    "test_runs.py": "def test_it(): pass\n",
    "test_part.py": "import pytest\n\ndef test_it(): pytest.skip('no board')\n",
    "test_whole.py": "import pytest\n\npytest.importorskip('a_package_that_nobody_has')\n",
}


@pytest.mark.parametrize("name", ["test_part.py", "test_whole.py"])
@pytest.mark.parametrize("required", [False, True])
def test_what_is_skipped_fails_where_nothing_may_be(
    tmp_path: Path, name: str, required: bool
) -> None:
    shutil.copy(Path(__file__).with_name("conftest.py"), tmp_path)
    for each in ("test_runs.py", name):
        (tmp_path / each).write_text(_FILES[each])
    environment = {key: value for key, value in os.environ.items() if key != "EDGEOPT_REQUIRE_ALL"}
    if required:
        environment["EDGEOPT_REQUIRE_ALL"] = "1"
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "--rootdir",
            str(tmp_path),
            "-p",
            "no:cacheprovider",
        ],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode != 0) == required, done.stdout
    assert ("skipped where nothing may be" in done.stdout) == required
