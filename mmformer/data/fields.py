"""The texts in a decoded member, at some dotted paths."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any


def select(value: Any, fields: Sequence[str]) -> Iterator[str]:
    """The texts at some dotted paths; all of them for a value that is text itself."""
    for field in fields if not isinstance(value, str) else [""]:
        reached = [value]
        for key in field.split(".") if field else ():
            reached = [below for above in reached for below in _step(above, key)]
        yield from _leaves(reached)


def _step(value: Any, key: str) -> list[Any]:
    if isinstance(value, dict):
        return list(value.values()) if key == "*" else [value[key]] if key in value else []
    return value if isinstance(value, list) and key == "*" else []


def _leaves(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, (list, dict)):
        for below in value.values() if isinstance(value, dict) else value:
            yield from _leaves(below)
