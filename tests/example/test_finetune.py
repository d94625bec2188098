import random

import pytest

finetune = pytest.importorskip("edgeopt.example.finetune")


def test_every_text_is_in_one_batch_beside_texts_of_about_its_length() -> None:
    lengths = [index % 29 + 3 for index in range(1000)]
    batches = finetune.draw_batches(lengths, 32, random.Random(0))
    assert sorted(index for batch in batches for index in batch) == list(range(1000))
    padded = sum(len(batch) * max(lengths[index] for index in batch) for batch in batches)
    assert padded < 1.15 * sum(lengths)
    assert batches != finetune.draw_batches(lengths, 32, random.Random(1))


def test_the_rate_rises_and_falls_to_almost_nothing() -> None:
    shares = [finetune.share_of_rate(step, 363) for step in range(363)]
    assert max(shares) == 1.0
    assert shares.index(1.0) == 35
    assert 0 < shares[-1] < 0.01
