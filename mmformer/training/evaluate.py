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
from mmformer.data.loading import Turns, evaluation_loader
from mmformer.evaluation.metric import Metric, Score, evaluate
from mmformer.evaluation.rows import of_all_ranks
from mmformer.models.model import Model
from mmformer.parallel.sharding import whole_model
from mmformer.training.bundling import write_bundle
from mmformer.training.run import RunSpec
from mmformer.training.task import TrainingTask


class Evaluation(pl.Callback):
    """Measures on the validation split every so many updates, and keeps the best model as a bundle."""

    def __init__(self, run: RunSpec, output: Path) -> None:
        self.run, self.output = run, output
        self.top: dict[int, float] = {}  # the updates of the best models, and how good each is
        self.latest: tuple[int, Mapping[str, Score]] = (0, {})  # the update that was measured last, and its scores
        self._split: Split | None = None  # opened when it is first measured

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: object, batch: object, batch_idx: int
    ) -> None:
        every = self.run.evaluation.every_steps
        last = trainer.global_step == trainer.max_steps
        if every is None or not (trainer.global_step % every == 0 or last):
            return
        assert isinstance(pl_module, TrainingTask)
        pl_module.check_finite()
        if self._split is None:
            self._split = Split(
                self.run, self.run.data.validation, collectives.data_rank(), collectives.data_world_size()
            )
        with pl_module.averaged():
            scores = self._split.scores(pl_module.built, pl_module.device, self.run.trainer.dtype)
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
        value = collectives.of_first_number(value, task.device)
        if math.isnan(value):
            return
        order = sorted({**self.top, step: value}.items(), key=lambda entry: (-entry[1], entry[0]))  # the earlier first
        self.top = dict(order[:keep])
        if step not in self.top:
            return
        whole = whole_model(task.built)
        if whole is not None:
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


class Split:
    """A split of a run's data, opened to measure on; of several ranks, each reads its turns of the batches.

    Metrics that learn do it from the training split, which is opened too.
    """

    def __init__(self, run: RunSpec, split: str | None, rank: int = 0, ranks: int = 1) -> None:
        assert split is not None, "RunSpec refuses this"
        self.metrics, self.ranks = run.evaluation.metrics, ranks
        self.encoders = run.model.text_encoders()
        self.loader = evaluation_loader(run.data, split, self.encoders, rank=rank, ranks=ranks)
        self.learned: DataLoader[Sample] | None = None
        if any(metric.learns for metric in self.metrics.values()):
            skips = run.data.on_damage == "skip"
            self.learned = evaluation_loader(run.data, run.data.train, self.encoders, skips, rank, ranks)

    def scores(self, model: Model, device: torch.device | str, dtype: torch.dtype = torch.float32) -> dict[str, Score]:
        """A model's scores, the same in each rank; ``dtype`` is what it computes in."""
        gather = self._gather if self.ranks > 1 else None
        return evaluate(model, self.loader, self.metrics, self.encoders, device, self.learned, gather, dtype)

    def _gather(self, metrics: Mapping[str, Metric]) -> None:
        for metric in metrics.values():
            metric.rows = of_all_ranks(metric.rows, _batches(self.loader))
            if self.learned is not None:
                metric.learned = of_all_ranks(metric.learned, _batches(self.learned))


def _batches(loader: DataLoader[Sample]) -> int:
    assert isinstance(loader.batch_sampler, Turns)
    return loader.batch_sampler.batches


def score_split(run: RunSpec, split: str, model: Model, device: str) -> dict[str, Score]:
    """A model's scores on a split of the run's data, by this process alone."""
    return Split(run, split).scores(model, device)
