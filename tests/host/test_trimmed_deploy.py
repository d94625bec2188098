"""A trimmed vocabulary from the command line to the release, on this machine."""

import json
import platform
import subprocess
from pathlib import Path

import pytest
from tokenizers import Tokenizer

from tests.graphs import text_model
from tests.test_cli import edgeopt
from tests.trim.kit import word_piece
from tests.trim.test_vocabulary import LABELS, LETTERS, write

pytestmark = [
    pytest.mark.host,
    pytest.mark.skipif(platform.machine() != "x86_64", reason="target x86-64; run: on x86-64"),
]

PROJECT = f"""
app = "letters"
model = "text.onnx"
profile = "float32"

[task]
kind = "text-classification"
tokenizer = "tokenizer.json"
length = 8
labels = {json.dumps(LABELS)}
train = "train.jsonl"
test = "test.jsonl"
trim_vocabulary = true
"""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    words = [first + second for first in LETTERS for second in LETTERS]
    pieces = [*LETTERS, *(f"##{each}" for each in LETTERS), *words]
    word_piece(pieces).save(str(tmp_path / "tokenizer.json"))
    write(tmp_path / "train.jsonl", ["ab cd", "ef", "gh ab"])
    write(tmp_path / "test.jsonl", ["ab ef", "gh", "ij ij", "cd"])
    text_model(tmp_path)
    (tmp_path / "edgeopt.toml").write_text(PROJECT)
    return tmp_path


def types(project: Path, *arguments: str) -> "subprocess.CompletedProcess[str]":
    from edgeopt.cli.places import cache_folder

    verb, *rest = arguments
    environment = {"HOME": str(project), "EDGEOPT_CACHE_DIR": str(cache_folder())}
    return edgeopt(verb, "--target", "x86-64", *rest, cwd=project, environment=environment)


def test_the_release_holds_the_tokenizer_and_the_original_is_the_reference(project: Path) -> None:
    done = types(project, "deploy", "--json")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["kept"] is True
    assert report["vocabulary"]["after"] < report["vocabulary"]["before"]
    reference, chosen = report["rows"]
    assert reference["footprint"]["weights"] > chosen["footprint"]["weights"]
    assert report["tried"][0]["drop"] == reference["metric_host"] - chosen["metric_host"]
    for row in (reference, chosen):
        assert row["parity"]["metric_board"] == row["metric_host"]
    pushed = project / ".edgeopt" / "apps" / "letters" / "current" / "tokenizer.json"
    assert Tokenizer.from_file(str(pushed)).get_vocab_size() == report["vocabulary"]["after"]
    assert "feed it with the release's tokenizer.json" in types(project, "report").stdout


def test_the_tokenizer_is_written_beside_the_compiled_files(project: Path) -> None:
    done = types(project, "compile", "--output", "out")
    assert done.returncode == 0, done.stderr
    assert "vocabulary 124 -> 28 pieces" in done.stdout
    assert Tokenizer.from_file(str(project / "out/tokenizer.json")).get_vocab_size() == 28


def test_the_option_overrules_the_project_file(project: Path) -> None:
    done = types(project, "compile", "--no-trim-vocabulary", "--output", "out")
    assert done.returncode == 0, done.stderr
    assert "pieces" not in done.stdout
    assert not (project / "out/tokenizer.json").exists()


def test_a_model_without_a_task_of_texts_has_no_vocabulary_to_trim(project: Path) -> None:
    (project / "edgeopt.toml").write_text('app = "a"\nmodel = "text.onnx"\n')
    done = types(project, "plan", "--trim-vocabulary")
    assert done.returncode == 2
    assert "--trim-vocabulary needs a task of texts" in done.stderr
