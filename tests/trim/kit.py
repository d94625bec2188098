"""Small tokenizers whose vocabularies are given, one of each kind."""

from collections.abc import Mapping, Sequence

from tokenizers import Tokenizer, models, pre_tokenizers, processors

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]")


def numbered(pieces: Sequence[str]) -> dict[str, int]:
    return {piece: index for index, piece in enumerate(dict.fromkeys((*SPECIAL, *pieces)))}


def finish(model: models.Model, vocabulary: Mapping[str, int]) -> Tokenizer:
    """Add what a classifier's tokenizer has around its model."""
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.add_special_tokens(list(SPECIAL))
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        special_tokens=[(name, vocabulary[name]) for name in ("[CLS]", "[SEP]")],
    )
    return tokenizer


def word_piece(pieces: Sequence[str]) -> Tokenizer:
    vocabulary = numbered(pieces)
    return finish(models.WordPiece(vocabulary, unk_token="[UNK]"), vocabulary)


def merging(alphabet: str, pairs: Sequence[tuple[str, str]]) -> Tokenizer:
    """BPE over an alphabet with these merges, the first ones first."""
    vocabulary = numbered([*alphabet, *(left + right for left, right in pairs)])
    return finish(models.BPE(vocabulary, list(pairs), unk_token="[UNK]"), vocabulary)


def scored(pieces: Mapping[str, float]) -> Tokenizer:
    entries = [*((name, 0.0) for name in SPECIAL), *pieces.items()]
    return finish(models.Unigram(entries, unk_id=1), numbered(list(pieces)))


def pieces_of(tokenizer: Tokenizer, text: str) -> list[str]:
    tokens: list[str] = tokenizer.encode(text).tokens
    return tokens
