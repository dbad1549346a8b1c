"""What some parts can and others cannot. A combination that needs it is refused when its spec is built."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal, Protocol

from mmformer.errors import InputError
from mmformer.spec import FAMILIES, concrete

Ability = Literal[
    "causal", "bidirectional", "prefix", "cache", "cross", "padding", "packing", "rotary", "rotary_heads", "bias"
]

MEANINGS: dict[Ability, str] = {
    "causal": "lets a token see itself and those before it alone",
    "bidirectional": "lets a token see those after it",
    "prefix": "lets the first tokens of a causal pass be seen by all",
    "cache": "goes on from earlier tokens, as decoding does",
    "cross": "reads a memory",
    "padding": "passes over tokens that are not valid",
    "packing": "keeps the segments of a row apart",
    "rotary": "has queries and keys to rotate",
    "rotary_heads": "has a key for each query, to rotate by a table of each head's own",
    "bias": "has scores to add a bias to",
}


class Able(Protocol):
    """A spec of a family whose members can different things."""

    @property
    def abilities(self) -> frozenset[Ability]:
        """What it can, with its settings."""


def require_abilities(where: str, part: Able, needed: Iterable[Ability], why: str) -> None:
    """Refuse a part that cannot what it is to do.

    Args:
        where: the field that names the part.
        why: what needs it, as the beginning of a sentence: "A decoder".

    Raises:
        InputError: which ability it lacks, and which of its family have it.
    """
    for ability in needed:
        if ability not in part.abilities:
            base = next(base for base in type(part).__mro__ if base in FAMILIES)
            having = sorted(spec.__name__ for spec in concrete(base) if ability in spec().abilities)
            raise InputError(
                f"{why} needs a {base.__name__.removesuffix('Spec').lower()} that {MEANINGS[ability]}, but {where} is "
                f"{part}, which does not: take {' or '.join(having)}."
            )
