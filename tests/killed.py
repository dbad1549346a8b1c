"""Runs that die between two updates, and go on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from mmformer.training.checkpoint import Checkpoint
from mmformer.training.fit import fit
from mmformer.training.run import RunSpec


class Killed(BaseException):
    """Nothing in a run catches it."""


def fit_killed_and_resumed(run: RunSpec, output: Path, step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fit, die after an update, before a checkpoint of it could be written, and resume."""
    real = Checkpoint.on_train_batch_end

    def dies(self: Any, trainer: Any, *args: Any) -> None:
        if trainer.global_step == step:
            raise Killed
        real(self, trainer, *args)

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(Checkpoint, "on_train_batch_end", dies)
        fit(run, output)
    fit(run, output, resume=True)
