"""Ending a run whose score gets no better."""

from __future__ import annotations

import math
import sys
from typing import Any

import pytorch_lightning as pl

from mmformer import collectives
from mmformer.training.checkpoint import Checkpoint
from mmformer.training.evaluate import Evaluation, is_same_measure, measure_of
from mmformer.training.processes import is_first
from mmformer.training.run import EarlyStoppingSpec
from mmformer.training.task import TrainingTask


class EarlyStopping(pl.Callback):
    """Looks at each evaluation's score; the run ends as one does that has come to its last update."""

    def __init__(self, spec: EarlyStoppingSpec, evaluation: Evaluation, checkpoint: Checkpoint) -> None:
        self.spec, self.evaluation, self.checkpoint = spec, evaluation, checkpoint
        self.measure = measure_of(evaluation.run, spec.score, spec.mode)
        self.best, self.waited = -math.inf, 0  # evaluations since the best one

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Where a run had ended so, or was told to end before it was measured, and is resumed."""
        self._look(trainer, pl_module)
        trainer.should_stop = trainer.should_stop or self.waited >= self.spec.patience

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: object, batch: object, batch_idx: int
    ) -> None:
        if self._look(trainer, pl_module):
            assert isinstance(pl_module, TrainingTask)
            self.checkpoint.save(trainer, pl_module)
            trainer.should_stop = True

    def _look(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> bool:
        """Take in the score of this update, if there is one; whether it is the last that was waited for."""
        step, scores = self.evaluation.latest
        if step != trainer.global_step:
            return False
        value = scores[self.spec.score].value * (1 if self.spec.mode == "max" else -1)
        # One decision: where scores differ in their last bit, some would go on and some would not.
        value = collectives.of_first_number(value, pl_module.device)
        if value > self.best + self.spec.least:  # never where it is not a number
            self.best, self.waited = value, 0
        else:
            self.waited += 1
        if self.waited < self.spec.patience:
            return False
        if is_first():
            print(
                f"\nStopped after {step} updates: {self.spec.score} got no better in {self.waited} evaluations.",
                file=sys.stderr,
            )
        return True

    def state_dict(self) -> dict[str, Any]:
        return {"best": self.best, "waited": self.waited, "measure": self.measure}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        if is_same_measure("early_stopping", state_dict.get("measure"), self.measure):
            self.best, self.waited = state_dict["best"], int(state_dict["waited"])
