"""Ending early and in order: a signal to any process ends all of them after the same update, with a checkpoint."""

from __future__ import annotations

import multiprocessing
import signal
import sys
import threading
from collections.abc import Iterable, Iterator
from time import monotonic
from types import FrameType
from typing import Any, TypeVar

import pytorch_lightning as pl
import torch

from mmformer import collectives
from mmformer.training.checkpoint import ASKED_EVERY, Checkpoint
from mmformer.training.processes import is_first
from mmformer.training.task import TrainingTask

T = TypeVar("T")

PATIENCE = 60.0
"""Seconds that one of several processes waits for a batch after a signal. The others may be in its update already,
which has to be made for all of them to end in order."""

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)


def _nothing() -> None: ...


class Stopping(pl.Callback):
    """Takes Ctrl-C, SIGTERM and SIGUSR1 while training and measuring: notes them, and lets the update end.

    The second Ctrl-C ends it at once. Other signals may come twice, from whoever started a process and from whoever
    started that: they mean the same each time.

    Where no update is under way, since its batch is waited for, one process ends at once: what cannot be reached may be
    asked for again for longer than a process has before it is killed. One of several processes waits for ``PATIENCE``,
    and ends without a checkpoint then.

    Nothing is sent within a handler: a process that was signalled alone would wait for the others for ever.

    Attributes:
        left_alone: one of several processes ended, and the others know nothing of it yet.
    """

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.checkpoint, self.left_alone = checkpoint, False
        self._signalled = self._agreed = False
        self._waiting: type[BaseException] | None = None  # for a batch, and what a signal raises then
        self._left = False  # an update was not begun, whose batch was waited for
        self._opening = False  # data, before the first update: there is nothing to lose yet
        self._deadline = 0.0  # of waiting
        self._before: dict[signal.Signals, Any] = {}

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Leave signals to this callback alone: Lightning's own handlers send within, and requeue a job of SLURM's; and
        before each update of several processes it waits for the device, to hear of a signal.

        Where it takes signals, this does: a state to go on from is loaded then, and nothing was measured yet.
        """
        trainer._signal_connector.register_signal_handlers = self._take  # type: ignore[method-assign]
        trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor = _nothing  # type: ignore[method-assign]

    def _take(self) -> None:
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._note) for number in _SIGNALS}
            self._before[signal.SIGALRM] = signal.signal(signal.SIGALRM, self._look_again)
            self._opening = True

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._opening = False

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self._opening or (self._signalled and number == signal.SIGINT):
            self.left_alone = collectives.world_size() > 1
            raise KeyboardInterrupt
        if is_first() and not self._signalled:
            when = "now" if self._waiting and collectives.world_size() == 1 else "after this update"
            again = " Once more: at once." if number == signal.SIGINT else ""
            print(f"\nStopping {when}, with a checkpoint.{again}", file=sys.stderr)
        self._signalled = True
        self._leave()

    def wait(self, left_by: type[BaseException] | None = KeyboardInterrupt) -> None:
        """Say that this process waits for a batch, and by which exception a signal ends that; None: it is there."""
        self._waiting, self._opening = left_by, False
        if left_by is None and self._deadline:
            self._deadline = 0.0
            signal.setitimer(signal.ITIMER_REAL, 0.0)
        self._leave()

    def _leave(self) -> None:
        """Where this process was signalled, and waits, raise what ends that; one of several waits for a while."""
        error = self._waiting
        if error is None or not self._signalled:
            return
        if collectives.world_size() > 1:
            if not self._deadline:
                self._deadline = monotonic() + PATIENCE
                signal.setitimer(signal.ITIMER_REAL, PATIENCE)  # whatever it waits in
            if monotonic() < self._deadline:
                return
            error, self.left_alone = KeyboardInterrupt, True
        self._left = error is KeyboardInterrupt and collectives.world_size() == 1
        self._waiting = None
        raise error

    def _look_again(self, number: int, frame: FrameType | None) -> None:
        self._leave()

    def watched(self, batches: Iterable[T], left_by: type[BaseException]) -> Iterator[T]:
        """The same; a signal while one of them is waited for raises an exception."""
        iterator = iter(batches)
        while True:
            self.wait(left_by)
            try:
                batch = next(iterator)
            except StopIteration:
                return
            finally:
                self.wait(None)
            yield batch

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: object, batch: object, batch_idx: int
    ) -> None:
        last = trainer.global_step == trainer.max_steps
        if not self._agreed and (last or (collectives.world_size() > 1 and trainer.global_step % ASKED_EVERY)):
            return
        if self.asked(pl_module.device):
            assert isinstance(pl_module, TrainingTask)
            self.checkpoint.save(trainer, pl_module)
            trainer.should_stop = True

    def asked(self, device: torch.device) -> bool:
        """Whether any process was signalled, in which case all end after this update; all have to ask at once.

        To be asked after training too: a signal may come while the last update is measured or written.
        """
        self._agreed = self._agreed or collectives.any_rank(self._signalled, device)
        return self._agreed

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        self._restore()

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        try:
            if self._left:
                assert isinstance(pl_module, TrainingTask)
                self.checkpoint.save(trainer, pl_module)  # of the last update: none was under way
                self.checkpoint.background.wait()
                for worker in multiprocessing.active_children():  # loaders wait five seconds for each that waits, too
                    worker.terminate()
        finally:
            self._restore()  # until here, a signal that comes twice kills nobody

    def _restore(self) -> None:
        if self._before:
            signal.setitimer(signal.ITIMER_REAL, 0.0)
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}
