"""Ending early and in order: a signal to any process ends all of them after the same update, with a checkpoint."""

from __future__ import annotations

import signal
import sys
import threading
from types import FrameType
from typing import Any

import pytorch_lightning as pl
import torch

from mmformer import collectives
from mmformer.training.checkpoint import ASKED_EVERY, Checkpoint
from mmformer.training.processes import is_first
from mmformer.training.task import TrainingTask

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)


def _nothing() -> None: ...


class Stopping(pl.Callback):
    """Takes Ctrl-C, SIGTERM and SIGUSR1 while training: notes them, and lets the update end.

    The second Ctrl-C ends it at once. Other signals may come twice, from whoever started a process and from whoever
    started that: they mean the same each time.

    Nothing is sent within a handler: a process that was signalled alone would wait for the others for ever.

    Attributes:
        stopped: whether training ended so.
    """

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.checkpoint, self.stopped = checkpoint, False
        self._signalled = self._agreed = False
        self._before: dict[signal.Signals, Any] = {}

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Leave signals to this callback alone: Lightning's own handlers send within, and requeue a job of SLURM's; and
        before each update of several processes it waits for the device, to hear of a signal.
        """
        trainer._signal_connector.register_signal_handlers = _nothing  # type: ignore[method-assign]
        trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor = _nothing  # type: ignore[method-assign]

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._note) for number in _SIGNALS}

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self._signalled and number == signal.SIGINT:
            raise KeyboardInterrupt
        if is_first() and not self._signalled:
            again = " Once more: at once." if number == signal.SIGINT else ""
            print(f"\nStopping after this update, with a checkpoint.{again}", file=sys.stderr)
        self._signalled = True

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: object, batch: object, batch_idx: int
    ) -> None:
        last = trainer.global_step == trainer.max_steps
        if not self._agreed and (last or (collectives.world_size() > 1 and trainer.global_step % ASKED_EVERY)):
            return
        if self.asked(pl_module.device):
            assert isinstance(pl_module, TrainingTask)
            self.checkpoint.save(trainer, pl_module)
            trainer.should_stop = self.stopped = True

    def asked(self, device: torch.device) -> bool:
        """Whether any process was signalled, in which case all end after this update; all have to ask at once."""
        self._agreed = self._agreed or collectives.any_rank(self._signalled, device)
        return self._agreed

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._restore()

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        self._restore()

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}
