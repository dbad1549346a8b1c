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
    theirs, opened = predictor(reference)
    return theirs, opened.model


def predictor(reference: Reference) -> tuple[Any, mmformer.Predictor]:
    """The same, with what ours does to texts and pictures."""
    with tempfile.TemporaryDirectory() as folder:
        theirs = reference.save(Path(folder) / "in").eval()
        import_model(f"{reference.library}:{folder}/in", Path(folder) / "bundle")
        opened = mmformer.load(Path(folder) / "bundle")
        _ = opened.reader.text_encoders  # read, before the folder goes
        return theirs, opened
