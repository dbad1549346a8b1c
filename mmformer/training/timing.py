"""How long updates wait for their data, and how long they take: which of the two is slow."""

from __future__ import annotations

import sys
from pathlib import Path
from time import perf_counter

import pytorch_lightning as pl
from pytorch_lightning.profilers import Profiler

from mmformer.training.metrics import MetricsTable
from mmformer.training.processes import is_first
from mmformer.training.run import RunSpec
from mmformer.training.stopping import Stopping

TOLERATED = 0.2
"""The share of the time that may be spent waiting before it is told."""

LEAST = 20.0
"""Seconds that have to be measured before it is told: loaders take a while to fill."""

_WAIT, _STEP = "train_dataloader_next", "run_training_batch"


class Stopwatch(Profiler):
    """Adds up what Lightning says of the two that matter here: reading a batch, and training on it.

    An accelerator works on while the next batch is read: what is waited for is what is not there when it is asked for.
    """

    def __init__(self, stopping: Stopping) -> None:
        """Args: stopping: is told when a batch is waited for."""
        super().__init__()
        self.stopping = stopping
        self.seconds = {_WAIT: 0.0, _STEP: 0.0}
        self._began: dict[str, float] = {}

    def start(self, action_name: str) -> None:
        name = action_name.rpartition(".")[2]
        self._began[name] = perf_counter()
        if name == _WAIT:
            self.stopping.wait()

    def stop(self, action_name: str) -> None:
        name = action_name.rpartition(".")[2]
        if name == _WAIT:
            self.stopping.wait(None)
        if name in self.seconds:
            self.seconds[name] += perf_counter() - self._began[name]

    def read(self) -> tuple[float, float]:
        """The seconds of waiting and of training so far."""
        return self.seconds[_WAIT], self.seconds[_STEP]


class Timing(pl.Callback):
    """Writes both, as means over the updates since the last row, in seconds: to ``timing.csv`` and to other loggers.

    Not to ``metrics.csv``, which is the same however often a run is repeated or resumed.
    """

    def __init__(self, run: RunSpec, output: Path, first_step: int, stopwatch: Stopwatch) -> None:
        self.run, self.stopwatch = run, stopwatch
        self.table = MetricsTable(output / "timing.csv", first_step)
        self._last = (0, 0.0, 0.0)
        self._updates, self._told = 0, False

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: object, batch: object, batch_idx: int
    ) -> None:
        self._updates += 1
        step, every = trainer.global_step, self.run.trainer.log_every_n_steps
        if step % every and step != trainer.max_steps:
            return
        waited, stepped = self.stopwatch.read()
        updates, before_waited, before_stepped = self._last
        number = self._updates - updates
        values = {
            "timing/data_wait": (waited - before_waited) / number,
            "timing/step": (stepped - before_stepped) / number,
        }
        self._last = (self._updates, waited, stepped)
        for logger in (self.table, *(other for other in trainer.loggers if not isinstance(other, MetricsTable))):
            logger.log_metrics(values, step)
        self._tell(waited, stepped)

    def _tell(self, waited: float, stepped: float) -> None:
        """Say once that data is the slow part, where it is."""
        if self._told or waited + stepped < LEAST or waited <= TOLERATED * (waited + stepped) or not is_first():
            return
        self._told = True
        workers = self.run.data.workers
        fix = "raise data.workers" if workers else "set data.workers, so that batches are read while the model trains"
        print(
            f"\nReading data is the slow part: of {(waited + stepped) / self._updates:.3g} s an update, "
            f"{waited / self._updates:.3g} s ({100 * waited / (waited + stepped):.0f} %) are spent waiting for it, "
            f"with {workers} workers: {fix}; keep decoded samples (data.cache_mib), or have smaller files read.",
            file=sys.stderr,
        )
