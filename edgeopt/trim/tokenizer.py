"""A tokenizer with fewer pieces: chosen by texts, renumbered densely, compared with the old one."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tokenizers import Tokenizer

from edgeopt.errors import ConfigError
from edgeopt.trim.pieces import ModelTable, choose_pieces, merge_pair

_BATCH = 1024


@dataclass(frozen=True, slots=True)
class ShortTokenizer:
    """A tokenizer.json with fewer pieces, and the ids that those had before."""

    text: str
    #: In their order: the new id of a piece is its place here.
    kept: tuple[int, ...]
    #: How many pieces there were.
    before: int


def trim_tokenizer(
    tokenizer: Tokenizer, corpus: Sequence[str], *, padding: int = 0
) -> ShortTokenizer:
    """Keep the pieces that the corpus is cut into, all special ones, and what others fall back to.

    padding: an id that is kept in any case. Texts of the corpus are cut as before, which is
    checked. Raises ConfigError for a tokenizer that cannot be trimmed so.
    """
    text = tokenizer.to_str()
    whole, document = _open(text), json.loads(text)
    vocabulary: dict[str, int] = whole.get_vocab()
    seen = {each for ids in _cut(whole, corpus) for each in ids}
    pieces = {piece for piece, index in vocabulary.items() if index in seen}
    chosen = choose_pieces(document["model"], pieces) | whole.get_added_tokens_decoder().keys()
    named = {holder[key] for holder, key in _id_places(document)}
    ids = {index for piece, index in vocabulary.items() if piece in chosen} | named | {padding}
    ids |= set(whole.get_added_tokens_decoder())
    known = set(vocabulary.values())
    if not ids <= known:
        raise _refusal(f"it names the id {min(ids - known)}, which no piece has")
    kept = tuple(sorted(ids))
    renumbered = {old: new for new, old in enumerate(kept)}
    _rewrite(document, {p: renumbered[i] for p, i in vocabulary.items() if i in renumbered})
    for holder, key in _id_places(document):
        holder[key] = renumbered[holder[key]]
    short = json.dumps(document, ensure_ascii=False, separators=(",", ":"))
    _compare(whole, _open(short), renumbered, corpus)
    return ShortTokenizer(text=short, kept=kept, before=len(vocabulary))


def _open(text: str) -> Tokenizer:
    """Load a tokenizer that neither cuts texts off nor fills them up."""
    tokenizer = Tokenizer.from_str(text)
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def _cut(tokenizer: Tokenizer, corpus: Sequence[str]) -> Iterator[list[int]]:
    for start in range(0, len(corpus), _BATCH):
        for each in tokenizer.encode_batch(list(corpus[start : start + _BATCH])):
            yield each.ids


def _id_places(document: dict[str, Any]) -> Iterator[tuple[Any, Any]]:
    """Yield where a tokenizer.json holds an id, as a container and the key in it."""
    yield from ((each, "id") for each in document.get("added_tokens") or ())
    if document.get("padding"):
        yield document["padding"], "pad_id"
    if document["model"].get("unk_id") is not None:
        yield document["model"], "unk_id"
    waiting = [document.get("post_processor")]
    while waiting:
        match waiting.pop():
            case {"type": "Sequence", "processors": list(inner)}:
                waiting.extend(inner)
            case {"type": "TemplateProcessing", "special_tokens": dict(tokens)}:
                for each in tokens.values():
                    yield from ((each["ids"], place) for place in range(len(each["ids"])))
            case {"sep": list(sep), "cls": list(cls)}:
                yield from ((sep, 1), (cls, 1))


def _rewrite(document: dict[str, Any], vocabulary: Mapping[str, int]) -> None:
    """Leave only the pieces of the vocabulary, with its ids, in a tokenizer's model."""
    table: ModelTable = document["model"]
    if isinstance(table["vocab"], list):
        table["vocab"] = [entry for entry in table["vocab"] if entry[0] in vocabulary]
        return
    own = (piece for piece in table["vocab"] if piece in vocabulary)
    table["vocab"] = {p: vocabulary[p] for p in sorted(own, key=lambda piece: vocabulary[piece])}
    if "merges" in table:
        table["merges"] = [
            [left, right]
            for left, right in table["merges"]
            if {left, right, merge_pair(table, left, right)} <= table["vocab"].keys()
        ]


def _compare(
    whole: Tokenizer, short: Tokenizer, renumbered: Mapping[int, int], corpus: Sequence[str]
) -> None:
    """Refuse a tokenizer that numbers pieces or cuts the corpus in another way than was meant."""
    expected = {p: renumbered[i] for p, i in whole.get_vocab().items() if i in renumbered}
    if short.get_vocab() != expected:
        raise _refusal("its pieces cannot be renumbered densely in their order")
    for text, old, new in zip(corpus, _cut(whole, corpus), _cut(short, corpus), strict=True):
        if [renumbered[each] for each in old] != new:
            raise _refusal(f"it would cut {text[:80]!r} into other pieces")


def _refusal(why: str) -> ConfigError:
    return ConfigError(
        "the tokenizer cannot be trimmed",
        why=why,
        fix="leave trim_vocabulary out, or write tokenizer.json anew with the library tokenizers",
    )
