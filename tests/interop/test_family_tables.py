"""Families are tables."""

from __future__ import annotations

import importlib
import pkgutil
from pathlib import Path

import pytest

from mmformer.interop import families
from mmformer.interop.family import Family

FILES = sorted(info.name for info in pkgutil.iter_modules(families.__path__))
MOST = 80


@pytest.mark.parametrize("name", FILES)
def test_a_family_is_under_80_lines(name: str) -> None:
    """What it shares with others stands beside the families, and has no limit but that of all files."""
    module = importlib.import_module(f"{families.__name__}.{name}")
    number = sum(isinstance(value, Family) for value in vars(module).values())
    assert number >= 1, "a file of families has some"
    assert module.__file__ is not None
    lines = Path(module.__file__).read_text(encoding="utf-8").splitlines()
    assert len(lines) < MOST * number
