"""edgeopt doctor in a project whose model was compiled and deployed, as a user types it."""

import json
import platform
from pathlib import Path

import pytest

from tests.host.test_deploy_command import User, _shared_toolchain, report_of

__all__ = ["_shared_toolchain"]

pytestmark = [
    pytest.mark.host,
    pytest.mark.skipif(platform.machine() != "x86_64", reason="target x86-64; run: on x86-64"),
]


def test_doctor_scans_what_the_last_deploy_sent_without_being_told_where_it_is(
    tmp_path: Path,
) -> None:
    user = User(tmp_path)
    digest = report_of(user.types("deploy", "--board", "local", "--no-reference", "--json"))[
        "digest"
    ]
    done = user.types("doctor", "--board", "local", "--json")
    assert done.returncode == 0, done.stderr
    found = {each["part"]: each for each in json.loads(done.stdout)["findings"]}
    for program in ("model.so", "edgeopt-run"):
        for part in ("", ": symbols", ": instructions"):
            each = found[f"{str(digest)[:12]}/{program}{part}"]
            assert each["ok"], each
    assert "avx" in found[f"{str(digest)[:12]}/model.so: instructions"]["found"]
