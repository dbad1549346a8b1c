"""What specs share: families whose members YAML may name, and checks that refuse a field clearly.

A spec is a frozen dataclass beside the module that it builds. It is the schema of the YAML, the documentation and the
type at once; it validates in ``__post_init__``.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Mapping
from types import MappingProxyType
from typing import ClassVar, NamedTuple, TypeVar

from mmformer.errors import InputError

T = TypeVar("T", bound=type)

FAMILIES: list[type] = []
"""Base specs; where a field has such a type, YAML may name any subclass by its short class name."""


def family(base: T) -> T:
    """Register a base spec (a class decorator)."""
    FAMILIES.append(base)
    return base


class Catalogued:
    """What the catalogue (``mmformer parts``) says of a part of a stack, beside its docstring and its fields.

    In costs, L is the tokens of a row, D the width; the rest are fields.
    """

    cost: ClassVar[str]
    """The order of its time for one row: ``"L·w·D"``."""

    source: ClassVar[str]
    """Where it comes from: authors, year, name, section."""


def concrete(base: type) -> list[type]:
    """The base spec and those below it that can be made, by name."""
    found: list[type] = []
    waiting = [base]
    while waiting:
        spec = waiting.pop()
        waiting.extend(spec.__subclasses__())
        if not inspect.isabstract(spec) and spec.__module__.partition(".")[0] == "mmformer":
            found.append(spec)
    return sorted(found, key=lambda spec: spec.__name__)


def require(condition: bool, spec: object, field: str, must: str) -> None:
    """Refuse a spec's field.

    Raises:
        InputError: "AttentionSpec.heads must be at least 1, but is 0."
    """
    if not condition:
        raise InputError(f"{type(spec).__name__}.{field} must be {must}, but is {told(getattr(spec, field))}.")


def require_probability(spec: object, field: str) -> None:
    """Refuse a field outside [0, 1)."""
    require(0.0 <= getattr(spec, field) < 1.0, spec, field, "at least 0 and below 1")


def told(value: object) -> str:
    """A value as a message has it: as Python writes it, but of specs only what is not the default."""
    if isinstance(value, tuple):
        return f"({', '.join(map(told, value))}{',' * (len(value) == 1)})"
    if not dataclasses.is_dataclass(value) or isinstance(value, type):
        return repr(value)
    shown = []
    for field in dataclasses.fields(value):
        made = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
        if getattr(value, field.name) != made:
            shown.append(f"{field.name}={told(getattr(value, field.name))}")
    return f"{type(value).__name__}({', '.join(shown)})"


class Parts(NamedTuple):
    """What a run has, by name, for the check of those who read it: objectives and metrics."""

    embedding_widths: Mapping[str, int]  # encoder -> width of its embedding
    heads: Mapping[str, object]  # head -> its spec
    decoders: Mapping[str, object]  # decoder -> its spec
    labels: tuple[str, ...]  # of the data
    patches: Mapping[str, int] = MappingProxyType({})  # encoder of patches of pictures -> their side
