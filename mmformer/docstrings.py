"""What docstrings say, in sections as Google writes them."""

from __future__ import annotations

import inspect
import re
import textwrap
from collections.abc import Iterator

SECTIONS = ("Args", "Attributes", "Returns", "Yields", "Raises")
_HEADING = re.compile(rf"^({'|'.join(SECTIONS)}):$", flags=re.MULTILINE)


def before_sections(docstring: str) -> str:
    """What stands before the first section."""
    return _HEADING.split(docstring, maxsplit=1)[0]


def sections_of(docstring: str) -> Iterator[tuple[str, list[tuple[str, str]]]]:
    """Section -> its items, each a name and a text; without names where it is one text."""
    parts = _HEADING.split(docstring)
    for section, body in zip(parts[1::2], parts[2::2], strict=True):
        lines = textwrap.dedent(body).strip().splitlines()
        if section in ("Returns", "Yields"):
            yield section, [("", " ".join(lines))]
            continue
        items: list[tuple[str, str]] = []
        for line in lines:
            named = re.match(r"([\w.]+): ?(.*)", line)
            if named:
                items.append((named[1], named[2]))
            elif items:
                items[-1] = (items[-1][0], f"{items[-1][1]} {line.strip()}".rstrip())
        yield section, items


def attributes(spec: type) -> dict[str, str]:
    """Field -> what docstrings say of it, those of a class before those of its bases."""
    found: dict[str, str] = {}
    for cls in reversed(spec.__mro__):
        for section, items in sections_of(inspect.cleandoc(cls.__dict__.get("__doc__") or "")):
            if section == "Attributes":
                found |= dict(items)
    return found


def summary(value: object) -> str:
    """The first paragraph, in one line."""
    return " ".join((inspect.getdoc(value) or "").partition("\n\n")[0].split())
