"""The parts that a stack can be made of, as ``mmformer parts`` and the documentation list them: read off the code."""

from __future__ import annotations

import dataclasses
import re
from typing import Any, NamedTuple

import mmformer.nn  # noqa: F401 every part
from mmformer.docstrings import attributes, summary
from mmformer.nn.ability import MEANINGS
from mmformer.nn.mixer import MixerSpec
from mmformer.spec import Catalogued, concrete

OF_MIXERS = {"cross", "rotary", "rotary_heads", "bias"}
"""Abilities that a feed-forward or a router merely does not stand in the way of."""


class Option(NamedTuple):
    """A field of a part's spec."""

    name: str
    default: Any
    meaning: str


class Entry(NamedTuple):
    """A part."""

    kind: str  # "Mixer", "Position", …
    name: str  # of its class, as YAML has it
    what: str
    cost: str  # the order of its time for one row, in L tokens, width D and its fields
    supports: tuple[str, ...]  # what it can, with the settings that it has by default
    needs: tuple[str, ...]  # what a mixer must have that it serves
    source: str
    options: tuple[Option, ...]


def catalogue() -> list[Entry]:
    """Every part, by kind and name."""
    bases = sorted(Catalogued.__subclasses__(), key=lambda base: base.__name__)
    return [_entry(kind_of(base), spec) for base in bases for spec in concrete(base)]


def kind_of(base: type) -> str:
    """What the members of a family are: ``FeedForwardSpec`` -> "Feed forward"."""
    return re.sub(r"(?<=[a-z])([A-Z])", r" \1", base.__name__.removesuffix("Spec")).capitalize()


def _entry(kind: str, spec: type[Catalogued]) -> Entry:
    meanings = attributes(spec)
    default: Any = spec()
    options = tuple(
        Option(field.name, getattr(default, field.name), meanings[field.name]) for field in dataclasses.fields(default)
    )
    able = set(getattr(default, "abilities", ())) - (set() if isinstance(default, MixerSpec) else OF_MIXERS)
    flat = "axes" in meanings or getattr(default, "over_coordinates", False)
    needs = getattr(default, "needs", None)
    needed = () if needs is None else (needs,) if isinstance(needs, str) else tuple(needs)
    supports = (*(ability for ability in MEANINGS if ability in able), *["2-D"] * flat)
    return Entry(kind, spec.__name__, summary(spec), spec.cost, supports, needed, spec.source, options)
