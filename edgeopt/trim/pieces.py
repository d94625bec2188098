"""Which pieces a tokenizer keeps: those that were seen, and those that other words fall back to."""

import re
from collections.abc import Iterable, Set
from dataclasses import dataclass
from typing import Any

from edgeopt.errors import ConfigError

#: The "model" of a tokenizer.json, as the library tokenizers writes it.
ModelTable = dict[str, Any]

#: How byte_fallback spells a byte that no piece holds.
_BYTE = re.compile(r"<0x[0-9A-F]{2}>")


def choose_pieces(table: ModelTable, seen: Set[str]) -> frozenset[str]:
    """Return the pieces of a tokenizer's model to keep, given those that a corpus was cut into.

    A text that was cut into seen pieces alone is cut into the same ones again. One of other words
    is cut into shorter pieces: every single character is kept in every form that it has, and so
    is every piece that could not be spelled with these. Where each character has all forms, as in
    BERT's vocabularies, no text that was known becomes unknown. Raises ConfigError for a model
    that has no shorter pieces.

    How each model cuts: https://huggingface.co/docs/tokenizers/components#models.
    """
    match table.get("type"):
        case "WordPiece":
            spelling = Spelling(table["vocab"], prefix=table["continuing_subword_prefix"])
            return frozenset(_kept(spelling, seen) | {table["unk_token"]})
        case "BPE":
            return _choose_merged(table, seen)
        case "Unigram":
            return _choose_scored(table["vocab"], table.get("unk_id"), seen)
        case other:
            raise ConfigError(
                f"a vocabulary of the kind {other or 'unknown'} cannot be trimmed",
                why="it has no shorter pieces that a word which was not seen could fall back to",
                fix="leave trim_vocabulary out, or use a WordPiece, BPE or Unigram tokenizer",
            )


@dataclass(frozen=True, slots=True)
class Spelling:
    """The pieces of a vocabulary, and how their places in a word are marked."""

    pieces: Iterable[str]
    #: Before a piece that does not begin a word ("##"), and after one that ends it ("</w>").
    prefix: str = ""
    suffix: str = ""

    def symbols(self, piece: str) -> list[str]:
        """Return the single-character pieces that would spell a piece.

        >>> Spelling((), prefix="##").symbols("##ing")
        ['##i', '##n', '##g']
        >>> Spelling((), prefix="##", suffix="$").symbols("do$")
        ['d', '##o$']
        """
        continued = bool(self.prefix) and piece.startswith(self.prefix)
        ends = bool(self.suffix) and piece.endswith(self.suffix)
        body = piece.removeprefix(self.prefix) if continued else piece
        body = body.removesuffix(self.suffix) if ends else body
        found = [self.prefix + character for character in body]
        if found and not continued:
            found[0] = body[0]
        if found and ends:
            found[-1] += self.suffix
        return found


def _kept(spelling: Spelling, seen: Set[str]) -> set[str]:
    """Return what was seen, the single characters, and what these cannot spell."""
    single = {piece for piece in spelling.pieces if len(spelling.symbols(piece)) <= 1}
    unspelled = {
        piece for piece in spelling.pieces if not single.issuperset(spelling.symbols(piece))
    }
    return single | unspelled | (seen & set(spelling.pieces))


def _choose_merged(table: ModelTable, seen: Set[str]) -> frozenset[str]:
    """Keep, for each piece, all that it is merged from: a merge needs both of its parts.

    Merges of the highest rank come first, and those that are left keep their order: each word
    whose merges are all kept is merged as before.
    """
    if table.get("dropout"):
        raise ConfigError(
            "a vocabulary whose merges are left out at random cannot be trimmed",
            why="the same text is cut into other pieces each time (dropout)",
            fix='set "dropout" to null in tokenizer.json',
        )
    prefix, suffix = (
        table.get(name) or "" for name in ("continuing_subword_prefix", "end_of_word_suffix")
    )
    kept = _kept(Spelling(table["vocab"], prefix, suffix), seen)
    kept |= _stand_ins(table["vocab"], table.get("unk_token"))
    parts: dict[str, set[str]] = {}
    for left, right in table["merges"]:
        parts.setdefault(merge_pair(table, left, right), set()).update((left, right))
    waiting = list(kept)
    while waiting:
        new = parts.get(waiting.pop(), set()) - kept
        kept |= new
        waiting.extend(new)
    return frozenset(kept)


def merge_pair(table: ModelTable, left: str, right: str) -> str:
    """Return the piece that a pair becomes: the second one loses the mark of a continuation."""
    return left + right[len(table.get("continuing_subword_prefix") or "") :]


def _choose_scored(
    entries: list[tuple[str, float]], unknown: int | None, seen: Set[str]
) -> frozenset[str]:
    """Keep also the least likely piece, from whose score that of the unknown is made.

    The most likely way to cut a text is found among fewer, with the same scores.
    """
    pieces = [piece for piece, _ in entries]
    least = min(entries, key=lambda entry: entry[1])[0]
    kept = _kept(Spelling(pieces), seen) | {least}
    return frozenset(kept | _stand_ins(pieces, None if unknown is None else pieces[unknown]))


def _stand_ins(pieces: Iterable[str], unknown: str | None) -> set[str]:
    """Return what stands for characters that the vocabulary does not have."""
    found = {piece for piece in pieces if _BYTE.fullmatch(piece)}
    return found if unknown is None else found | {unknown}
