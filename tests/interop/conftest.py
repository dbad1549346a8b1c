"""``pytest tests/interop --systems FILE`` writes what was measured, a row a test file, for ``docs/systems.md``."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import parity
import pytest

ROWS: dict[str, dict[str, float]] = {}


@pytest.fixture(autouse=True)
def _measured(request: pytest.FixtureRequest) -> Iterator[None]:
    parity.MEASURED.clear()
    yield
    row = ROWS.setdefault(Path(request.node.fspath).stem.removeprefix("test_"), {})
    for what, error in parity.MEASURED:
        kind = "gradients" if what.startswith("gradient") else what
        row[kind] = max(error, row.get(kind, 0.0))


def pytest_sessionfinish(session: pytest.Session) -> None:
    file = session.config.getoption("--systems", default=None)
    if file is not None:
        found = {name: row for name, row in sorted(ROWS.items()) if row}
        Path(file).write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
