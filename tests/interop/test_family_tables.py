"""Families are tables."""

from __future__ import annotations

import ast
import importlib
import pkgutil
from pathlib import Path

import pytest

from mmformer import interop
from mmformer.interop import families
from mmformer.interop.family import Family

FILES = sorted(info.name for info in pkgutil.iter_modules(families.__path__))
HELPERS = {info.name for info in pkgutil.iter_modules(interop.__path__) if not info.ispkg}
MOST = 80
LARGER = {"coca": 193, "jamba": 149, "siglip_open_clip": 177}
"""Those that are not: with what no other family reads by, so many lines at most."""


def lines(package: object, name: str) -> list[str]:
    (folder,) = getattr(package, "__path__")  # noqa: B009 - of any package
    return (Path(folder) / f"{name}.py").read_text(encoding="utf-8").splitlines()


def helpers(package: object, name: str) -> set[str]:
    """The modules beside the families that one of them reads, or a module beside them does."""
    found = set()
    for node in ast.walk(ast.parse("\n".join(lines(package, name)))):
        if isinstance(node, ast.ImportFrom) and node.module is not None:
            names = [f"{node.module}.{each.name}" for each in node.names] + [node.module]
            found |= {each.split(".")[2] for each in names if each.startswith(f"{interop.__name__}.")}
    return found & HELPERS


READERS = {name: {each for each in FILES if name in helpers(families, each)} for name in HELPERS}
"""Of each module beside the families: those that import it."""


@pytest.mark.parametrize("name", FILES)
def test_a_family_is_under_80_lines(name: str) -> None:
    """Its file, and what stands beside it for it alone: not the imports of others' helpers, which are shared."""
    module = importlib.import_module(f"{families.__name__}.{name}")
    assert any(isinstance(value, Family) for value in vars(module).values()), "a file of families has some"
    assert len(lines(families, name)) < MOST
    beside = {each for each, readers in READERS.items() if readers == {name}}
    beside -= {each for other in HELPERS - beside for each in helpers(interop, other)}
    number = len(lines(families, name)) + sum(len(lines(interop, each)) for each in beside)
    assert number <= LARGER[name] if name in LARGER else number < MOST, sorted(beside)
