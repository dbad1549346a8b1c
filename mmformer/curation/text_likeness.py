"""Texts that say almost the same: sets of short pieces that overlap."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache, partial
from typing import Any, ClassVar, NamedTuple

from mmformer.curation.candidates import Candidates, Place
from mmformer.curation.extras import extra
from mmformer.curation.likeness import Index, IndexedLikeness, Match
from mmformer.spec import require

PERMUTATIONS = 128
"""Numbers of a MinHash; with so many, two texts that are just alike enough are found in 96 of 100 cases or more."""


class TextPrint(NamedTuple):
    """What is compared of a text."""

    pieces: frozenset[str]
    minhash: Any


@dataclass(frozen=True)
class TextLikeness(IndexedLikeness):
    """The texts share most of their pieces, so many characters long, without regard to case and white space.

    Candidates come from MinHash with locality-sensitive hashing (Broder, 1997; Leskovec et al., Mining of Massive
    Datasets, ch. 3, as datasketch has it) and are compared as they are: what is found is alike for certain, and of what
    is alike a few in a hundred of those near the threshold may be missed.

    Attributes:
        place: of the text; several are taken together.
        jaccard: the least share of the pieces of both that both have.
        characters: of a piece.
    """

    reason: ClassVar[str] = "like text"

    place: Place = field(default=Place("text"))
    jaccard: float = 0.8
    characters: int = 3

    def __post_init__(self) -> None:
        require(0.2 <= self.jaccard <= 1, self, "jaccard", "0.2 to 1")
        require(self.characters >= 1, self, "characters", "at least 1")

    def prints(self, samples: Candidates) -> list[TextPrint | None]:
        return samples.each(partial(text_print, self.characters), self.place)

    def index(self) -> Index:
        return _OverlapIndex(self.jaccard)


def text_print(characters: int, texts: Sequence[str] | None) -> TextPrint | None:
    """The print of some texts taken together, by their pieces of so many characters; None: there is nothing in them."""
    cut = pieces("\n".join(texts or ()), characters)
    if not cut:
        return None
    minhash = _empty().copy()
    minhash.update_batch([piece.encode("utf-8", "surrogatepass") for piece in sorted(cut)])
    return TextPrint(cut, extra("datasketch", "Comparing texts").LeanMinHash(minhash))


@cache
def _empty() -> Any:
    """A MinHash of nothing: its permutations take longer to draw than to apply."""
    return extra("datasketch", "Comparing texts").MinHash(PERMUTATIONS)


def normal(text: str) -> str:
    """A text without regard to case, white space and compatible forms of characters."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def pieces(text: str, characters: int) -> frozenset[str]:
    """All pieces of a text that are so many characters long; the text itself where it is shorter."""
    text = normal(text)
    return frozenset(text[i : i + characters] for i in range(max(1, len(text) - characters + 1))) - {""}


def overlap(one: frozenset[str], other: frozenset[str]) -> float:
    """Jaccard's index of two sets that are not empty: the share of what either has that both have."""
    both = len(one & other)
    return both / (len(one) + len(other) - both)


class _OverlapIndex(Index):
    def __init__(self, least: float) -> None:
        datasketch = extra("datasketch", "Comparing texts")
        self._least = least
        # Candidates are looked at again, so false ones cost a little time, and missed ones are lost.
        self._near = datasketch.MinHashLSH(least, PERMUTATIONS, weights=(0.02, 0.98)) if least < 1 else None
        self._same: dict[frozenset[str], int] = {}
        self._pieces: dict[int, frozenset[str]] = {}

    def add(self, row: int, made: TextPrint) -> None:
        if made.pieces not in self._same:
            self._same[made.pieces] = row
            self._pieces[row] = made.pieces
            if self._near is not None:
                self._near.insert(row, made.minhash, check_duplication=False)

    def find(self, made: TextPrint) -> Match | None:
        if made.pieces in self._same:
            return Match(self._same[made.pieces], "the same pieces")
        near = () if self._near is None else self._near.query(made.minhash)
        shares = ((overlap(self._pieces[row], made.pieces), -row) for row in near)
        best = max((share for share in shares if share[0] >= self._least), default=None)
        return None if best is None else Match(-best[1], f"{best[0]:.2f} of the pieces shared")
