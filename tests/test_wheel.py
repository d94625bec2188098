"""The wheel carries its data: targets, profiles, the device program's sources, the page."""

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    argv = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return next(folder.glob("*.whl"))


def test_it_carries_what_is_not_python(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    for wanted in (
        "edgeopt/targets/rpi4.toml",
        "edgeopt/profiles/balanced.toml",
        "edgeopt/report.html.j2",
        "edgeopt/example/questions.toml",
        "edgeopt/example/trec.toml",
        "edgeopt/example/fashion.toml",
        "edgeopt/runner/src/main.c",
        "edgeopt/py.typed",
    ):
        assert wanted in names, wanted
    assert not [name for name in names if name.startswith("tests/")]


def test_installed_in_an_empty_environment_it_lists_targets(wheel: Path, tmp_path: Path) -> None:
    # Its light dependencies come from this environment; nothing of the checkout is on the path.
    subprocess.run(
        [sys.executable, "-m", "venv", "--without-pip", str(tmp_path / "env")], check=True
    )
    site = next((tmp_path / "env" / "lib").glob("python3*/site-packages"))
    zipfile.ZipFile(wheel).extractall(site)
    import pydantic

    borrowed = Path(pydantic.__file__).parents[1]
    for package in ("typer", "pydantic", "platformdirs", "annotated_types", "shellingham"):
        (site / package).symlink_to(borrowed / package)
    for name in ("pydantic_core", "typing_inspection", "annotated_doc"):
        (site / name).symlink_to(borrowed / name)
    (site / "typing_extensions.py").symlink_to(borrowed / "typing_extensions.py")
    done = subprocess.run(
        [str(tmp_path / "env" / "bin" / "python"), "-I", "-m", "edgeopt", "targets", "list"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert "rpi4" in done.stdout
