import json
from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models

from edgeopt.errors import ConfigError
from edgeopt.trim.pieces import choose_pieces
from edgeopt.trim.tokenizer import trim_tokenizer
from tests.trim.kit import merging, pieces_of, scored, word_piece

LETTERS = "abc"
SPELLED = ["".join(each) for size in (2, 3) for each in product(LETTERS, repeat=size)]
WORDS = st.text(LETTERS, min_size=1, max_size=8)
TEXTS = st.lists(WORDS, min_size=1, max_size=4).map(" ".join)


@st.composite
def tokenizers(draw: st.DrawFn) -> Tokenizer:
    """Any tokenizer of one of the three kinds in which each letter has all its forms."""
    longer = draw(st.lists(st.sampled_from(SPELLED), unique=True))
    match draw(st.sampled_from(["WordPiece", "BPE", "Unigram"])):
        case "WordPiece":
            within = [f"##{each}" for each in draw(st.lists(st.sampled_from(SPELLED)))]
            return word_piece([*LETTERS, *(f"##{each}" for each in LETTERS), *longer, *within])
        case "BPE":
            pairs = [(each[:-1], each[-1]) for each in SPELLED if each in longer]
            known = {*LETTERS, *longer}
            return merging(LETTERS, [pair for pair in pairs if pair[0] in known])
        case _:
            score = st.floats(-9, -1, allow_nan=False)
            return scored({each: draw(score) for each in (*LETTERS, *longer)})


@settings(deadline=None)
@given(tokenizers(), st.lists(TEXTS, min_size=1), st.lists(TEXTS))
def test_kept_texts_are_cut_as_before_and_no_other_one_becomes_unknown(
    whole: Tokenizer, corpus: list[str], others: list[str]
) -> None:
    made = trim_tokenizer(whole, corpus)
    short = Tokenizer.from_str(made.text)
    for text in corpus:
        assert pieces_of(short, text) == pieces_of(whole, text)
        assert [made.kept[each] for each in short.encode(text).ids] == whole.encode(text).ids
    for text in others:
        assert "[UNK]" not in pieces_of(short, text)
        assert "".join(pieces_of(short, text)[1:-1]).replace("##", "") == text.replace(" ", "")


@settings(deadline=None)
@given(st.lists(WORDS), st.text("abx", min_size=1, max_size=6))
def test_what_was_unknown_stays_unknown(corpus: list[str], word: str) -> None:
    whole = word_piece([*LETTERS, *(f"##{each}" for each in LETTERS), *SPELLED])
    short = Tokenizer.from_str(trim_tokenizer(whole, corpus).text)
    assert ("[UNK]" in pieces_of(short, word)) == ("[UNK]" in pieces_of(whole, word))


def test_ids_are_dense_and_in_their_old_order_and_special_tokens_follow() -> None:
    whole = word_piece(["zzz", "a", "##a", "aa", "b", "##b", "bb"])
    whole.enable_padding(pad_id=0, pad_token="[PAD]")
    made = trim_tokenizer(whole, ["bb"])
    assert made.kept == (0, 1, 2, 3, 4, 5, 6, 8, 9, 10)
    assert (made.before, len(made.kept)) == (11, 10)
    short = Tokenizer.from_str(made.text)
    assert short.get_vocab()["bb"] == 9
    assert pieces_of(short, "bb aa") == ["[CLS]", "bb", "a", "##a", "[SEP]"]


def test_special_tokens_that_come_last_are_numbered_anew_everywhere() -> None:
    vocabulary = {"a": 0, "aa": 1, "b": 2, "[UNK]": 3}
    whole = Tokenizer(models.BPE(vocabulary, [("a", "a")], unk_token="[UNK]"))
    whole.add_special_tokens(["<pad>"])
    whole.enable_padding(pad_id=4, pad_token="<pad>", length=3)
    made = trim_tokenizer(whole, ["b"])
    short = Tokenizer.from_str(made.text)
    assert made.kept == (0, 2, 3, 4)
    assert short.encode("b").ids == [1, 3, 3]
    assert json.loads(made.text)["model"]["merges"] == []


def test_a_piece_that_no_single_characters_spell_is_kept() -> None:
    whole = word_piece(["a", "##a", "ax", "aa"])
    short = Tokenizer.from_str(trim_tokenizer(whole, ["a"]).text)
    assert "aa" not in short.get_vocab()
    assert pieces_of(short, "ax") == pieces_of(whole, "ax") == ["[CLS]", "ax", "[SEP]"]


def test_without_the_single_characters_words_would_become_unknown() -> None:
    # What the guarantee rests on: the same vocabulary without them.
    bare = word_piece(["bb"])
    assert "[UNK]" in pieces_of(bare, "aa")
    table = json.loads(word_piece(["a", "##a", "aa"]).to_str())["model"]
    assert {"a", "##a"} <= choose_pieces(table, frozenset())
    assert "aa" not in choose_pieces(table, frozenset())


def test_a_vocabulary_of_whole_words_is_refused() -> None:
    whole = Tokenizer(models.WordLevel({"?": 0, "a": 1}, unk_token="?"))
    with pytest.raises(ConfigError, match="WordLevel cannot be trimmed"):
        trim_tokenizer(whole, ["a"])


def test_merges_that_are_left_out_at_random_are_refused() -> None:
    whole = merging("ab", [("a", "b")])
    whole.model.dropout = 0.1
    with pytest.raises(ConfigError, match="at random"):
        trim_tokenizer(whole, ["ab"])
