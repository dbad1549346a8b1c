"""Counts of what was tried, for ``python -m benchmarks.hostile``."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from attempts import COUNTS


def pytest_sessionfinish(session: pytest.Session) -> None:
    file = session.config.getoption("--counts")
    if file is not None:
        Path(file).write_text(json.dumps(COUNTS, indent=1, sort_keys=True) + "\n", encoding="utf-8")
