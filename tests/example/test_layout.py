from pathlib import Path

import pytest

from edgeopt.example.layout import Question, read_questions, split_questions


def test_a_text_is_taken_once_and_only_its_coarse_class(tmp_path: Path) -> None:
    path = tmp_path / "questions.txt"
    lines = "NUM:count How many ?\nHUM:ind Who  was Gödel ?\nNUM:other How many ?\n\n"
    path.write_text(lines, encoding="latin1")
    assert read_questions(path) == [
        Question("How many ?", "NUM"),
        Question("Who was Gödel ?", "HUM"),
    ]


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_every_class_is_split_alike_and_no_text_is_in_both(seed: int) -> None:
    questions = [Question(f"{index}", "AB"[index % 10 == 0]) for index in range(200)]
    train, test = split_questions(questions, seed=seed)
    assert {each.text for each in train} | {each.text for each in test} == {
        each.text for each in questions
    }
    assert len(train) + len(test) == 200
    assert [sum(each.label == label for each in test) for label in "AB"] == [36, 4]
    assert split_questions(questions, seed=seed) == (train, test)
    assert split_questions(questions, seed=seed + 1) != (train, test)
