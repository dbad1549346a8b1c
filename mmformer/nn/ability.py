"""What some parts can and others cannot. A combination that needs it is refused when its spec is built."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable
from contextlib import suppress
from typing import Any, Literal, Protocol

from mmformer.errors import InputError
from mmformer.spec import FAMILIES, concrete, told

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
        InputError: which ability it lacks, which of its options is in the way, and which of its family have all.
    """
    needed = list(needed)
    for ability in needed:
        if ability not in part.abilities:
            base = next(base for base in type(part).__mro__ if base in FAMILIES)
            option = _in_the_way(part, ability)
            others = [spec for spec in concrete(base) if option is None or spec is not type(part)]
            fitting = [spec for spec in others if spec().abilities.issuperset(needed)]
            fitting = fitting or [spec for spec in others if ability in spec().abilities]
            ways = [] if option is None else [f"set its {option}"]
            ways += [f"take {' or '.join(sorted(spec.__name__ for spec in fitting))}"] if fitting else []
            raise InputError(
                f"{why} needs a {base.__name__.removesuffix('Spec').lower()} that {MEANINGS[ability]}, but {where} is "
                f"{told(part)}, which does not: {', or '.join(ways)}."
            )


def _in_the_way(part: Able, ability: Ability) -> str | None:
    """The option of a part without which it has an ability, and what to set it to: "bidirectional to true"."""
    spec: Any = part  # a dataclass, as all specs are
    for field in dataclasses.fields(spec):
        value = getattr(part, field.name)
        other = not value if isinstance(value, bool) else field.default
        if other != value and (other is None or isinstance(other, bool | int | float | str)):
            with suppress(InputError):
                if ability in dataclasses.replace(spec, **{field.name: other}).abilities:
                    return f"{field.name} to {json.dumps(other)}"
    return None
