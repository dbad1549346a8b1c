"""What tests of sets that lie elsewhere share."""

from __future__ import annotations

import pytest

from mmformer.data import transfer


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The waits between attempts, none of which is waited for."""
    found: list[float] = []
    monkeypatch.setattr(transfer, "sleep", found.append)
    return found
