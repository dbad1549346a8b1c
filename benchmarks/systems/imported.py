"""A library's model and ours with its weights."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import mmformer
from benchmarks.systems.case import Reference
from mmformer.interop.importing import import_model
from mmformer.models.model import Model


def imported(reference: Reference) -> tuple[Any, Model]:
    """Theirs, as it was made, and ours, both in evaluation."""
    with tempfile.TemporaryDirectory() as folder:
        theirs = reference.save(Path(folder) / "in").eval()
        import_model(f"{reference.library}:{folder}/in", Path(folder) / "bundle")
        return theirs, mmformer.load(Path(folder) / "bundle").model
