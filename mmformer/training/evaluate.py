"""Scores while training, and the table at the end."""

from __future__ import annotations

import json
import math
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.loops.fit_loop import _FitLoop
from torch.utils.data import DataLoader

from mmformer import collectives
from mmformer.config import to_data
from mmformer.data.collate import Sample
from mmformer.data.loading import Turns, evaluation_loader
from mmformer.evaluation.metric import Metric, Score, evaluate
from mmformer.evaluation.rows import of_all_ranks
from mmformer.models.model import Model
from mmformer.parallel.sharding import whole_model
from mmformer.training.bundling import write_bundle
from mmformer.training.checkpoint import ASKED_EVERY
from mmformer.training.processes import is_first
from mmformer.training.run import RunSpec
from mmformer.training.stopping import Stopping
from mmformer.training.task import TrainingTask
from mmformer.types import Batch


class Evaluation(pl.Callback):
    """Measures on the validation split every so many updates, and keeps the best model as a bundle.

    A run that is told to end does not wait for it: nothing is kept of what was measured so far, and the run that is
    resumed measures first, and after the last update nothing else.
    """

    def __init__(self, run: RunSpec, output: Path, stopping: Stopping) -> None:
        self.run, self.output, self.stopping = run, output, stopping
        self.top: dict[int, float] = {}  # the updates of the best models, and how good each is
        self.measure: dict[str, str] | None = None  # what ``top`` is ordered by
        if run.checkpoint.best is not None:
            self.measure = measure_of(run, run.checkpoint.best, run.checkpoint.mode)
        self.due = False  # whether the update that was made last is still to be measured
        self.measured = 0  # the update that was measured last, by this start or one before it
        self.latest: tuple[int, Mapping[str, Score]] = (-1, {})  # the update that was measured last, and its scores
        self._split: Split | None = None  # opened when it is first measured

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        trainer.fit_loop.__class__ = _Loop
        trainer.fit_loop.evaluation = self  # type: ignore[attr-defined]

    def owes(self, step: int) -> bool:
        """Whether a run that begins after so many updates measures first: it was left, or the run ends here now."""
        ends = self.run.evaluation.every_steps is not None and step == self.run.trainer.max_steps
        return self.due or (ends and self.measured != step)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self.owes(trainer.global_step):
            self._measure(trainer, pl_module)
            if self.due:  # left again: the next update would have its scores
                trainer.should_stop = True

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: object, batch: object, batch_idx: int
    ) -> None:
        every = self.run.evaluation.every_steps
        last = trainer.global_step == trainer.max_steps
        if every is None or not (trainer.global_step % every == 0 or last):
            return
        self._measure(trainer, pl_module)

    def _measure(self, trainer: pl.Trainer, task: pl.LightningModule) -> None:
        assert isinstance(task, TrainingTask)
        task.check_finite()
        self.due = True
        if self._split is None and not self._open():
            return
        assert self._split is not None, "it is open"
        with task.averaged():
            watch = partial(self._watched, device=task.device)
            try:
                scores = self._split.scores(task.built, task.device, self.run.trainer.dtype, watch)
            except _AbandonedError:
                return
            for logger in trainer.loggers:
                values = {f"validation/{name}": score.value for name, score in scores.items()}
                logger.log_metrics(values, trainer.global_step)
            self._keep_best(task, scores, trainer.global_step)
        self.latest, self.measured, self.due = (trainer.global_step, scores), trainer.global_step, False

    def _open(self) -> bool:
        """Open what is measured on; False: a signal came first."""
        ranks = (collectives.data_rank(), collectives.data_world_size())
        try:
            self.stopping.wait(_AbandonedError)
            self._split = Split(self.run, self.run.data.validation, *ranks)
        except _AbandonedError:
            return False
        finally:
            self.stopping.wait(None)
        return True

    def _watched(self, batches: Iterable[Batch], device: torch.device) -> Iterator[Batch]:
        """The same, until all processes have agreed to end."""
        every = ASKED_EVERY if collectives.world_size() > 1 else 1
        for number, batch in enumerate(self.stopping.watched(batches, _AbandonedError)):
            if number % every == 0 and self.stopping.asked(device):
                raise _AbandonedError
            yield batch

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
                number = folder.name.removeprefix("step-").partition(".")[0]
                if number.isdecimal() and int(number) not in self.top:
                    shutil.rmtree(folder)
        collectives.barrier()

    def state_dict(self) -> dict[str, Any]:
        return {"top": self.top, "measure": self.measure, "due": self.due, "measured": self.measured}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.due = state_dict.get("due", False) and self.run.evaluation.every_steps is not None
        self.measured = state_dict.get("measured", 0)
        before = state_dict.get("measure")
        if self.measure is None:  # nothing is looked for; another run may go on with it
            self.measure = before
        if not state_dict["top"] or is_same_measure("checkpoint.best", before, self.measure):
            self.top = dict(state_dict["top"])


class _AbandonedError(BaseException):
    """All processes have agreed to end."""


class _Loop(_FitLoop):
    """Lightning's, but that a run with no update left to make begins and ends, too, where the last is to be measured:
    signals, loggers and devices are there then, as in any other.
    """

    evaluation: Evaluation

    @property
    def skip(self) -> bool:
        skipped: bool = super().skip
        return skipped and not self.evaluation.owes(self.epoch_loop.global_step)


def measure_of(run: RunSpec, score: str, mode: str) -> dict[str, str]:
    """What a score means: numbers of another measure are not to be held against its own.

    Args:
        score: as in ``RunSpec.watched_scores``.
    """
    metric = to_data(run.evaluation.metrics[score.partition("/")[0]])
    split = str(run.data.validation)
    return {"score": score, "mode": mode, "data.validation": split, "metric": json.dumps(metric, sort_keys=True)}


def is_same_measure(field: str, before: Mapping[str, str] | None, now: Mapping[str, str] | None) -> bool:
    """Whether a resumed run goes on with the best score so far, which ``field`` is about; told where it does not."""
    if before == now:
        return True
    if is_first():
        known, asked = before or {}, now or {}
        differ = [name for name in asked if known.get(name) != asked[name]]
        changed = "; ".join(f"{name}: {known.get(name)} before, {asked[name]} now" for name in differ)
        print(
            f"mmformer: {field}: the best score begins anew, for those so far are of another measure ({changed}).",
            file=sys.stderr,
        )
    return False


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

    def scores(
        self,
        model: Model,
        device: torch.device | str,
        dtype: torch.dtype = torch.float32,
        watch: Callable[[Iterable[Batch]], Iterator[Batch]] = iter,
    ) -> dict[str, Score]:
        """A model's scores, the same in each rank.

        Args:
            dtype: what the model computes in.
            watch: makes batches of batches, in all ranks alike; what it raises ends the measuring.
        """
        gather = self._gather if self.ranks > 1 else None
        batches = watch(self.loader)
        learned = None if self.learned is None else watch(self.learned)
        return evaluate(model, batches, self.metrics, self.encoders, device, learned, gather, dtype)

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
