"""Where the time of a run's updates goes, by phase and by module: on its data, on this machine, without its folder."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from time import perf_counter
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, record_function
from torch.profiler import profile as record

from mmformer.data.loading import training_loader
from mmformer.data.seeding import derive
from mmformer.errors import InputError
from mmformer.nn.router import rebalance, take_excess
from mmformer.parallel.clipping import clip_gradients
from mmformer.training.fit import check_accelerator
from mmformer.training.run import RunSpec
from mmformer.training.task import TrainingTask
from mmformer.training.update import add_gradient, in_precision
from mmformer.types import Batch

WARM = 3
"""Updates that come before those that are timed: kernels are chosen in them, and memory is asked for."""

SHOWN = 12
"""Modules that are told, at most."""

PHASES = ("data wait", "host to device", "forward", "backward", "optimizer")
OTHER = "outside modules (losses, gradients that are added up …)"

_MODULE = "module: "


class Phase(NamedTuple):
    """A part of an update."""

    median: float  # seconds
    share: float  # of the time of all updates


class Spent(NamedTuple):
    """What a module took in an update, without those inside it."""

    name: str
    forward: float  # seconds
    backward: float
    share: float  # of what all modules took


class Profile(NamedTuple):
    """Where the time of updates went."""

    device: str
    precision: str
    batch: int
    workers: int
    steps: int
    step: float  # seconds of an update, the median
    phases: dict[str, Phase]
    modules: list[Spent]

    @property
    def lever(self) -> str:
        """What would shorten an update most, in a sentence."""
        name = max(self.phases, key=lambda phase: self.phases[phase].share)
        share = f"{100 * self.phases[name].share:.0f} %"
        if name == "data wait":
            fix = (
                f"it has {self.workers} workers: raise data.workers"
                if self.workers
                else "data.workers is 0: set it, and batches are read while the model trains"
            )
            return f"the loader: {share} of an update is waiting for data, and {fix}; or keep samples (data.cache_mib)."
        if name == "host to device":
            return f"moving batches to the device: {share} of an update; have smaller pictures or sounds read."
        if name == "optimizer":
            fix = "one with less state, a larger data.batch_size, or parameters that do not train (freeze, adapters)"
            return f"the optimizer, with clipping: {share} of an update; take {fix}."
        top = max(self.modules, key=lambda module: module.share)
        slow = self.precision == "32-true"
        fix = "set trainer.precision to bf16-mixed" if slow else "make it smaller, or its rows shorter"
        where = f"of what modules take, {100 * top.share:.0f} % are in {top.name}"
        return f"the model: {share} of an update is its {name} pass, and {where}: {fix}."


def profile(run: RunSpec, steps: int) -> Profile:
    """Time a run's first updates, in one process. Nothing is written.

    Args:
        steps: how many are timed by phase; two more, by module.

    Raises:
        InputError: the run cannot start, or is one of several processes.
    """
    if run.parallel.processes > 1:
        raise InputError(
            f"profile trains in one process, but the run is spread over {run.parallel.arithmetic}: leave them out."
        )
    check_accelerator(run.trainer.accelerator)
    updates = _Updates(run, WARM + steps + 2)
    rows = [updates.take() for _ in range(WARM + steps)][WARM:]
    total = sum(map(sum, rows))
    phases = {
        name: Phase(statistics.median(spent), sum(spent) / total)
        for name, spent in zip(PHASES, zip(*rows, strict=True), strict=True)
    }
    return Profile(
        torch.cuda.get_device_name() if updates.device.type == "cuda" else str(updates.device),
        run.trainer.precision,
        run.data.batch_size,
        run.data.workers,
        steps,
        statistics.median(map(sum, rows)),
        phases,
        _by_module(updates),
    )


class _Updates:
    """A run's updates, one after the other, each timed."""

    def __init__(self, run: RunSpec, number: int) -> None:
        self.run, self.task = run, TrainingTask(run)
        self.task.configure_model()
        name = run.trainer.accelerator
        found = "cuda" if torch.cuda.is_available() else "cpu"
        self.device = torch.device(found if name == "auto" else name)
        self.model = self.task.built.to(self.device).train()
        self.optimizer = run.optimizer.build(self.model)
        self.batches = iter(training_loader(run.data, run.model.text_encoders(), run.seed, 0, number))

    def take(self) -> list[float]:
        """Make an update; the seconds of each phase, in the order of ``PHASES``."""
        marks = [self._now()]
        batch: Any = next(self.batches, None)
        if batch is None:
            raise InputError("the data ended before the updates that are to be timed: take fewer (--steps).")
        marks.append(self._now())
        batch = batch.to(self.device)
        marks.append(self._now())
        torch.manual_seed(derive(self.run.seed, "dropout", 0))
        backward = self._gradient(batch)
        now = self._now()
        marks += [now - backward, now]
        rebalance(take_excess(self.model))
        clip_gradients(self.model.parameters(), self.run.trainer.gradient_clip_val)
        self.optimizer.step()
        self.optimizer.zero_grad()
        marks.append(self._now())
        return [after - before for before, after in pairwise(marks)]

    def _gradient(self, batch: Batch) -> float:
        """Forward and backward passes, those of all micro-batches; the seconds of the latter."""
        spent = 0.0

        def backward(loss: Tensor) -> None:
            nonlocal spent
            began = self._now()
            loss.backward()  # type: ignore[no-untyped-call]
            spent += self._now() - began

        with in_precision(self.run, self.device.type):
            add_gradient(self.run, self.model, self.task.objectives, batch, backward)
        return spent

    def _now(self) -> float:
        """The time, once the device has done what it was told."""
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        return perf_counter()


def _by_module(updates: _Updates) -> list[Spent]:
    """What modules take in two updates, by PyTorch's profiler; the largest first.

    Operations have a number in their forward pass which they have again in the backward pass: so that is told by
    module, too.
    """
    activities = [ProfilerActivity.CPU, *[ProfilerActivity.CUDA] * (updates.device.type == "cuda")]
    with _named(updates.model), record(activities=activities, acc_events=True) as found:
        for _ in range(2):
            updates.take()
    on_device = updates.device.type == "cuda"
    forward: dict[str, float] = defaultdict(float)
    backward: dict[str, float] = defaultdict(float)
    owner: dict[int, str] = {}
    events = found.events() or []
    for event in events:
        if event.name.startswith(_MODULE):
            inside = (below for child in event.cpu_children for below in _modules_in(child))
            own = _seconds(event, on_device) - sum(_seconds(below, on_device) for below in inside)
            forward[event.name.removeprefix(_MODULE)] += own
        elif event.sequence_nr >= 0 and not event.name.startswith(_ENGINE):
            name = _module_of(event)
            if name is not None:
                owner.setdefault(event.sequence_nr, name)
    for event in events:
        if event.name.startswith(_ENGINE):
            backward[owner.get(event.sequence_nr, OTHER)] += _seconds(event, on_device)
    total = sum(forward.values()) + sum(backward.values())
    names = sorted({*forward, *backward}, key=lambda name: -forward[name] - backward[name])[:SHOWN]
    return [
        Spent(name, forward[name] / 2, backward[name] / 2, (forward[name] + backward[name]) / total) for name in names
    ]


_ENGINE = "autograd::engine::evaluate_function"


def _seconds(event: Any, on_device: bool) -> float:
    return float(event.device_time_total if on_device else event.cpu_time_total) / 1e6


def _modules_in(event: Any) -> Iterator[Any]:
    """The outermost modules at or below an event."""
    if event.name.startswith(_MODULE):
        yield event
        return
    for child in event.cpu_children:
        yield from _modules_in(child)


def _module_of(event: Any) -> str | None:
    """The module that an operation ran in; None: it ran in none."""
    above = event.cpu_parent
    while above is not None:
        name: str = above.name
        if name.startswith(_MODULE):
            return name.removeprefix(_MODULE)
        above = above.cpu_parent
    return None


@contextmanager
def _named(model: nn.Module) -> Iterator[None]:
    """Inside, the profiler is told of each module's forward pass."""
    open_passes: list[Any] = []

    def enter(name: str) -> Callable[..., None]:
        def hook(*_: Any) -> None:
            open_passes.append(record_function(_MODULE + name).__enter__())  # type: ignore[no-untyped-call]

        return hook

    def leave(*_: Any) -> None:
        open_passes.pop().__exit__(None, None, None)

    hooks = []
    for name, module in model.named_modules():
        hooks += [module.register_forward_pre_hook(enter(name or "the model")), module.register_forward_hook(leave)]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
