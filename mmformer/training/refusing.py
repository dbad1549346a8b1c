"""What becomes of a run at an update that was not applied: it is told, and the run goes on or ends as it was asked."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytorch_lightning as pl

from mmformer import collectives
from mmformer.errors import InputError
from mmformer.parallel.sharding import drop_gathered
from mmformer.training.checkpoint import Checkpoint, newest_checkpoint, step_of
from mmformer.training.divergence import Refused
from mmformer.training.processes import is_first
from mmformer.training.run import RunSpec
from mmformer.training.tables import add_rows, go_on_from, plain
from mmformer.training.task import TrainingTask
from mmformer.types import Batch

TABLE_NAME = "refused.tsv"

_COLUMNS = ("update", "cause", "loss", "gradient_norm", "then", "keys")
_TOLD = 8
"""Keys that are told at once; the table has all."""


class Refusing(pl.Callback):
    """Comes before what measures and keeps: what they see is a run that has gone on already."""

    def __init__(self, run: RunSpec, output: Path, task: TrainingTask, checkpoint: Checkpoint) -> None:
        self.run, self.output, self.task, self.checkpoint = run, output, task, checkpoint
        self.path = output / TABLE_NAME

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if is_first():
            go_on_from(trainer.global_step, self.path, _COLUMNS)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: object, batch: object, batch_idx: int
    ) -> None:
        refused = self.task.refused
        if refused is None:
            return
        self.checkpoint.settle()  # which an update would have done; what measures puts averages in the weights' place
        assert isinstance(batch, Batch)
        keys = list(dict.fromkeys(key for part in collectives.gather_values(batch.keys) for key in part))
        exhausted = self.task.guard.exhausted
        policy = self.run.divergence.policy if exhausted is None else "stop"
        self._write(refused, policy, keys)
        if exhausted is not None:
            raise InputError(self._diverged(refused, keys) + exhausted + self._fix())
        then = "it was not applied"
        if policy == "roll_back":
            then = f"the run went back to the weights after update {self._roll_back(trainer, refused, keys)}"
        if is_first():
            print(f"\n{self._diverged(refused, keys)} Here {then}.", file=sys.stderr)

    def _roll_back(self, trainer: pl.Trainer, refused: Refused, keys: list[str]) -> int:
        """Take weights, averages and optimizer from the newest checkpoint; the number of its updates.

        The data's position stays where it is, so that the batches in between are passed over.
        """
        self.checkpoint.background.wait()
        # This run has written it, or read all of it to go on from it: others need not wait until that is done again.
        own = str(newest_checkpoint(self.output, by_size=True).newest or "") if is_first() else ""
        state = collectives.of_all(own)[0]
        if not state:
            raise InputError(
                f"{self._diverged(refused, keys)} There is no checkpoint to roll back to yet: set "
                f"checkpoint.every_steps lower, or divergence.policy to skip." + self._fix()
            )
        drop_gathered(self.task.built)
        loaded = trainer.strategy.load_checkpoint(state, weights_only=True)
        trainer.strategy.load_model_state_dict(loaded)
        trainer.strategy.load_optimizer_state_dict(loaded)
        return step_of(Path(state))

    def _diverged(self, refused: Refused, keys: list[str]) -> str:
        more = f" and {len(keys) - _TOLD} more ({self.path})" if len(keys) > _TOLD else ""
        return (
            f"Training diverged: at update {refused.update} the loss is {refused.loss:g} and the norm of its gradient "
            f"{refused.norm:g} ({refused.cause}). Its samples: {', '.join(keys[:_TOLD])}{more}."
        )

    def _fix(self) -> str:
        return (
            f" Lower optimizer.lr (now {self.run.optimizer.lr:g}), raise schedule.warmup_steps (now "
            f"{self.run.schedule.warmup_steps}), lower trainer.gradient_clip_val, or go on from an earlier checkpoint "
            f"with --divergence.policy skip."
        )

    def _write(self, refused: Refused, then: str, keys: list[str]) -> None:
        if not is_first():
            return
        told = plain(json.dumps(keys, ensure_ascii=False))
        row = (refused.update, refused.cause, f"{refused.loss:g}", f"{refused.norm:g}", then, told)
        add_rows(self.path, _COLUMNS, [row])

    def state_dict(self) -> dict[str, Any]:
        return self.task.guard.state()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.task.guard.load(state_dict)
