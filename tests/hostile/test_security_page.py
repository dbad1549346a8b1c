"""SECURITY.md says what the tests here hold, line by line; and dependencies are locked."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest
from tiny import ROOT

PAGE = (ROOT / "SECURITY.md").read_text(encoding="utf-8")
ROWS = [
    [cell.strip() for cell in line.strip("|").split("|")]
    for line in PAGE.splitlines()
    if line.startswith("|") and not line.startswith(("|---", "| what | what holds"))
]


def names_of_tests() -> set[str]:
    """The names of the tests in this folder."""
    trees = (ast.parse(path.read_text(encoding="utf-8")) for path in Path(__file__).parent.glob("test_*.py"))
    functions = (node for tree in trees for node in ast.walk(tree) if isinstance(node, ast.FunctionDef))
    return {function.name for function in functions if function.name.startswith("test_")}


@pytest.mark.parametrize("row", ROWS, ids=[row[0] for row in ROWS])
def test_each_line_is_held_by_tests(row: list[str]) -> None:
    what, holds, tests = row
    named = re.findall(r"`(test_\w+)`", tests)
    assert what and holds.endswith(".")
    assert named, "a line that no test holds"
    assert set(named) <= names_of_tests()


OF_THE_TESTS_THEMSELVES = {"test_the_canaries_sing", "test_each_line_is_held_by_tests", "test_each_test_holds_a_line"}


def test_each_test_holds_a_line() -> None:
    named = set(re.findall(r"`(test_\w+)`", PAGE))
    assert names_of_tests() - named == OF_THE_TESTS_THEMSELVES
    assert len(ROWS) > 15


def test_dependencies_are_locked_by_hash() -> None:
    lock = (ROOT / "requirements.lock").read_text(encoding="utf-8").replace("\\\n", " ")
    required = [line for line in lock.splitlines() if line and not line.lstrip().startswith("#")]
    assert len(required) > 50
    for line in required:
        assert re.match(r"[A-Za-z0-9._-]+(\[[a-z,]+\])?==\S+", line), f"{line[:60]} is not one version"
        assert "--hash=sha256:" in line, f"{line[:60]} has no hash"
    assert "://" not in lock and "index-url" not in lock
    assert "--require-hashes" in (ROOT / "Makefile").read_text(encoding="utf-8")
