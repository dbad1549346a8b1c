"""The parts of stacks and encoders, as ``mmformer parts`` and the documentation list them: read off the code."""

from __future__ import annotations

import dataclasses
import inspect
import re
from typing import Any, NamedTuple, get_args, get_type_hints

import mmformer.tokenizers  # noqa: F401 every part, those of nn among them
from mmformer.docstrings import attributes, before_sections, summary
from mmformer.models.encoder import EncoderSpec
from mmformer.nn.ability import MEANINGS
from mmformer.nn.layer import LayerSpec
from mmformer.nn.mixer import MixerSpec
from mmformer.nn.stack import StackSpec
from mmformer.spec import Catalogued, concrete

PATHS: dict[type, str] = {
    StackSpec: "model.stacks.NAME",
    LayerSpec: "model.stacks.NAME.layer",
    EncoderSpec: "model.encoders.NAME",
}
"""Where a run file has what is made of parts."""

FLAT = "2-D"
"""What is supported by parts that work on the two axes of a grid, beside the abilities."""

ABILITIES = (*MEANINGS, FLAT)
"""What a part may support, in the order in which it is told."""

OF_MIXERS = {"cross", "rotary", "rotary_heads", "bias"}
"""Abilities that a feed-forward or a router merely does not stand in the way of."""


REQUIRED = "required"
"""What stands in place of a default where there is none."""


class Option(NamedTuple):
    """A field of a part's spec."""

    name: str
    default: Any
    meaning: str


class Entry(NamedTuple):
    """A part."""

    kind: str  # "Mixer", "Position", …
    place: tuple[str, ...]  # the fields that hold its kind: "model.stacks.NAME.layer.mixer", "AttentionSpec.pattern"
    name: str  # of its class, as YAML has it
    what: str
    more: str  # what else its docstring says of it as a whole
    cost: str  # the order of its time for one row, in L tokens, width D and its fields
    supports: tuple[str, ...]  # what it can, with the settings that it has by default
    needs: tuple[str, ...]  # what a mixer must have that it serves
    source: str
    options: tuple[Option, ...]


def catalogue() -> list[Entry]:
    """Every part, by kind and name."""
    return [_entry(base, spec) for base in _bases() for spec in concrete(base)]


def _bases() -> list[type[Catalogued]]:
    return sorted(Catalogued.__subclasses__(), key=lambda base: base.__name__)


def kind_of(base: type) -> str:
    """What the members of a family are: ``FeedForwardSpec`` -> "Feed forward"."""
    return re.sub(r"(?<=[a-z])([A-Z])", r" \1", base.__name__.removesuffix("Spec")).capitalize()


def _places(kind: type) -> tuple[str, ...]:
    """The fields that hold parts of a kind."""
    holders = [*PATHS, *(spec for base in _bases() for spec in concrete(base))]
    return tuple(
        f"{PATHS.get(holder, holder.__name__)}.{name}"
        for holder in holders
        for name, hint in get_type_hints(holder).items()
        if kind in (hint, *get_args(hint))
    )


def _entry(base: type[Catalogued], spec: type[Catalogued]) -> Entry:
    meanings, options = attributes(spec), []
    for field in dataclasses.fields(spec):  # type: ignore[arg-type]
        made = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
        options.append(Option(field.name, REQUIRED if made is dataclasses.MISSING else made, meanings[field.name]))
    default: Any = None if any(option.default is REQUIRED for option in options) else spec()
    able = set(getattr(default, "abilities", ())) - (set() if isinstance(default, MixerSpec) else OF_MIXERS)
    flat = "axes" in meanings or getattr(default, "over_coordinates", False)
    supports = (*(ability for ability in MEANINGS if ability in able), *[FLAT] * flat)
    needed = tuple(ability for ability in MEANINGS if ability in getattr(default, "needs", ()))
    more = " ".join(before_sections(inspect.getdoc(spec) or "").partition("\n\n")[2].split())
    what = summary(spec)
    said = (what, more, spec.cost, supports, needed, spec.source, tuple(options))
    return Entry(kind_of(base), _places(base), spec.__name__, *said)
