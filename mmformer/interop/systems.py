"""The named systems: what can be imported, and the files that say what each is."""

from __future__ import annotations

import re
from typing import NamedTuple, get_args

from mmformer import resources
from mmformer.interop.family import Library
from mmformer.interop.source import families_of


class System(NamedTuple):
    """A file under configs/models/, and the classes of other libraries that are that."""

    file: str
    title: str  # how its head comment begins
    lines: int  # of YAML, comments left out
    size: str  # parameters, as its head comment has them: "124 M"
    classes: tuple[str, ...]  # "hf gpt2 (GPT2LMHeadModel)"


def systems() -> list[System]:
    """All of them, by file."""
    found: dict[str, list[str]] = {}
    for library in get_args(Library):
        for family in families_of(library):
            names = found.setdefault(family.template, [])
            names += [f"{library} {family.name} ({layout})" for layout in family.layouts]
    return [_system(file, classes) for file, classes in sorted(found.items())]


def _system(file: str, classes: list[str]) -> System:
    text = resources.find(f"configs/models/{file}").read_text(encoding="utf-8")
    head = " ".join(line.lstrip("# ") for line in text.splitlines() if line.startswith("#"))
    lines = [line for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    size = re.search(r"([\d,.]+ [MB]) parameters", head)
    title = re.split(r"[:.] |; ", re.sub(r" \([^)]*\)", "", head), maxsplit=1)[0]
    return System(file, title, len(lines), size[1] if size else "", tuple(dict.fromkeys(classes)))
