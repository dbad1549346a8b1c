"""``pytest tests/interop --systems FILE`` writes what was measured of each class, for ``docs/systems.md``."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import parity
import pytest

ROWS: dict[str, dict[str, float]] = {}


@pytest.fixture(autouse=True)
def _measured() -> Iterator[None]:
    parity.MEASURED.clear()
    parity.IMPORTED.clear()
    yield
    for name in dict.fromkeys(parity.IMPORTED):
        row = ROWS.setdefault(name, {})
        for what, error in parity.MEASURED:
            row[what] = max(error, row.get(what, 0.0))


def pytest_sessionfinish(session: pytest.Session) -> None:
    file = session.config.getoption("--systems", default=None)
    if file is not None:
        found = {name: row for name, row in sorted(ROWS.items()) if row}
        Path(file).write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
