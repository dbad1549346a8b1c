"""A learning rate to begin with, by a range test: it rises with every update, and the loss says when it is too high."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mmformer.data.loading import training_loader
from mmformer.data.seeding import derive
from mmformer.errors import InputError
from mmformer.nn.router import rebalance, take_excess
from mmformer.parallel.clipping import clip_gradients
from mmformer.spec import require
from mmformer.training.fit import check_accelerator
from mmformer.training.rehearsal import rehearse
from mmformer.training.run import RunSpec
from mmformer.training.task import TrainingTask
from mmformer.training.update import add_gradient, in_precision
from mmformer.types import Batch

MEMORY = 0.8
"""The share of the smoothed loss that stays at an update."""

DIVERGED = 4.0
"""The test ends where the smoothed loss is this many times the lowest."""


@dataclass(frozen=True)
class RangeSpec:
    """A range test.

    Attributes:
        lowest: the rate of the first update.
        highest: that of the last; in between it rises by a factor.
        steps: how many updates; fewer where the loss grows out of bounds.
    """

    lowest: float = 1e-6
    highest: float = 1.0
    steps: int = 100

    def __post_init__(self) -> None:
        require(self.lowest > 0, self, "lowest", "positive")
        require(self.highest > self.lowest, self, "highest", f"above lowest ({self.lowest:g})")
        require(self.steps >= 10, self, "steps", "at least 10")

    def rate(self, step: int) -> float:
        """That of an update, 0 the first."""
        return self.lowest * math.pow(self.highest / self.lowest, step / (self.steps - 1))


class Trial(NamedTuple):
    """One update of a range test."""

    lr: float
    loss: float
    smoothed: float  # the mean of it and those before it, of which later ones count more


def find_lr(run: RunSpec, spec: RangeSpec) -> list[Trial]:
    """Train a run's model from its beginning, in one process, at rates that rise; the run's schedule is left aside.

    Raises:
        InputError: the run cannot start, or is one of several processes.
    """
    if run.parallel.processes > 1:
        raise InputError(
            f"find-lr trains in one process, but the run is spread over {run.parallel.arithmetic}: leave them out (the "
            f"rate found serves for all)."
        )
    check_accelerator(run.trainer.accelerator)
    task = TrainingTask(run)
    task.configure_model()
    rehearse(run, task.built)
    device = _device(run.trainer.accelerator)
    optimizer = run.optimizer.build(task.built.to(device))
    batches: Iterable[Any] = training_loader(run.data, run.model.text_encoders(), run.seed, 0, spec.steps)
    trials: list[Trial] = []
    mean = 0.0
    for step, batch in enumerate(batches):
        for group in optimizer.param_groups:
            group["lr"] = spec.rate(step) * group["lr_scale"]
        optimizer.zero_grad()
        loss = float(_update(task, optimizer, batch.to(device), step))
        mean = MEMORY * mean + (1 - MEMORY) * loss
        trials.append(Trial(spec.rate(step), loss, mean / (1 - MEMORY ** (step + 1))))
        if not math.isfinite(loss) or trials[-1].smoothed > DIVERGED * min(trial.smoothed for trial in trials):
            break
    return [trial for trial in trials if math.isfinite(trial.loss)]


def _update(task: TrainingTask, optimizer: torch.optim.Optimizer, batch: Batch, step: int) -> Tensor:
    """One update as in training; its loss."""
    run, model = task.run, task.built
    torch.manual_seed(derive(run.seed, "dropout", step))
    with in_precision(run, next(model.parameters()).device.type):
        losses = add_gradient(run, model, task.objectives, batch, lambda loss: loss.backward())  # type: ignore[no-untyped-call]
    task.thaw.drop_gradients(model, step)
    rebalance(take_excess(model))
    clip_gradients(model.parameters(), run.trainer.gradient_clip_val)
    optimizer.step()
    return losses["loss"]


def _device(accelerator: str) -> torch.device:
    if accelerator != "auto":
        return torch.device(accelerator)
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def suggest(trials: Sequence[Trial]) -> float | None:
    """The rate at which the smoothed loss falls fastest (Smith 2015, §3.3), over a quarter of the trials, since batches
    differ by chance; None: it never falls.
    """
    lowest = min(range(len(trials)), key=lambda place: trials[place].smoothed)
    reach = max(1, len(trials) // 8)
    slopes = {
        place: (trials[place + reach].smoothed - trials[place - reach].smoothed)
        / math.log(trials[place + reach].lr / trials[place - reach].lr)
        for place in range(reach, lowest - reach + 1)
    }
    steepest = min(slopes, key=lambda place: slopes[place], default=None)
    return None if steepest is None or slopes[steepest] >= 0 else trials[steepest].lr


def table(trials: Sequence[Trial]) -> str:
    """The trials as tab-separated text with a header."""
    rows = [f"{trial.lr:.6g}\t{trial.loss:.6g}\t{trial.smoothed:.6g}" for trial in trials]
    return "\n".join(["lr\tloss\tsmoothed", *rows]) + "\n"
