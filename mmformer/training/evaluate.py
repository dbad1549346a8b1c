"""Scores while training, and the table at the end."""

from __future__ import annotations

import math
import shutil
from collections.abc import Mapping
from pathlib import Path

import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader

from mmformer import collectives
from mmformer.data.collate import Sample
from mmformer.data.loading import evaluation_loader
from mmformer.evaluation.metric import Score, evaluate
from mmformer.models.model import Model
from mmformer.parallel.sharding import whole_model
from mmformer.tokenizers.text import TextEncoder
from mmformer.training.bundling import write_bundle
from mmformer.training.processes import is_first
from mmformer.training.run import RunSpec
from mmformer.training.task import TrainingTask


class Evaluation(pl.Callback):
    """Measures on the validation split every so many updates, and keeps the best model as a bundle."""

    def __init__(self, run: RunSpec, output: Path) -> None:
        self.run, self.output = run, output
        self.top: dict[int, float] = {}  # the updates of the best models, and how good each is
        self.latest: tuple[int, Mapping[str, Score]] = (0, {})  # the update that was measured last, and its scores
        self._loader: DataLoader[Sample] | None = None
        self._encoders: dict[str, TextEncoder] = {}

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: object, batch: object, batch_idx: int
    ) -> None:
        every = self.run.evaluation.every_steps
        last = trainer.global_step == trainer.max_steps
        if every is None or not (trainer.global_step % every == 0 or last):
            return
        assert isinstance(pl_module, TrainingTask)
        pl_module.check_finite()
        if self._loader is None:
            assert self.run.data.validation is not None, "RunSpec refuses this"
            self._encoders = self.run.model.text_encoders()
            self._loader = evaluation_loader(self.run.data, self.run.data.validation, self._encoders)
        metrics = self.run.evaluation.metrics
        with pl_module.averaged():
            learned = learned_from(self.run, self._encoders)
            scores = evaluate(pl_module.built, self._loader, metrics, self._encoders, pl_module.device, learned)
            for logger in trainer.loggers:
                values = {f"validation/{name}": score.value for name, score in scores.items()}
                logger.log_metrics(values, trainer.global_step)
            self._keep_best(pl_module, scores, trainer.global_step)
        self.latest = (trainer.global_step, scores)

    def _keep_best(self, task: TrainingTask, scores: Mapping[str, Score], step: int) -> None:
        name, keep = self.run.checkpoint.best, self.run.checkpoint.keep_best
        if name is None:
            return
        value = scores[name].value * (1 if self.run.checkpoint.mode == "max" else -1)
        # One decision: where scores differ in their last bit, some would gather the model and some would not.
        value = float(collectives.of_first(torch.tensor(value, device=task.device)))
        if math.isnan(value):
            return
        order = sorted({**self.top, step: value}.items(), key=lambda entry: (-entry[1], entry[0]))  # the earlier first
        self.top = dict(order[:keep])
        if step not in self.top:
            return
        whole = whole_model(task.built)
        if is_first():
            folders = [self.output / "top" / f"step-{step:09d}"] if keep > 1 else []
            folders += [self.output / "best"] if step == order[0][0] else []
            for folder in folders:
                write_bundle(folder, self.run, whole, step, scores, f"split {self.run.data.validation}")
            for folder in (self.output / "top").glob("step-*"):
                if int(folder.name.removeprefix("step-").partition(".")[0]) not in self.top:
                    shutil.rmtree(folder)
        collectives.barrier()

    def state_dict(self) -> dict[str, dict[int, float]]:
        return {"top": self.top}

    def load_state_dict(self, state_dict: dict[str, dict[int, float]]) -> None:
        self.top = dict(state_dict["top"])


def score_split(run: RunSpec, split: str, model: Model, device: str) -> dict[str, Score]:
    """A model's scores on a split of the run's data."""
    encoders = run.model.text_encoders()
    loader = evaluation_loader(run.data, split, encoders)
    return evaluate(model, loader, run.evaluation.metrics, encoders, device, learned_from(run, encoders))


def learned_from(run: RunSpec, encoders: Mapping[str, TextEncoder]) -> DataLoader[Sample] | None:
    """The training split, as it is read for evaluation, where a metric learns from it."""
    learns = any(metric.learns for metric in run.evaluation.metrics.values())
    skips = run.data.on_damage == "skip"
    return evaluation_loader(run.data, run.data.train, encoders, skips) if learns else None
