"""A run that hangs ends, and says where it stood."""

from __future__ import annotations

import faulthandler
import sys

import pytorch_lightning as pl


class Watchdog(pl.Callback):
    """Where an update, with all that is done before the next, takes longer than it may, ends the process with code 1.

    Before that, the stacks of its threads are written to standard error: by a thread of C, which needs nothing of
    Python's that could hang, too. Other processes then end as they do where one is lost.
    """

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._begin()

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: object, batch: object, batch_idx: int
    ) -> None:
        self._begin()

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        faulthandler.cancel_dump_traceback_later()

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        faulthandler.cancel_dump_traceback_later()

    def _begin(self) -> None:
        faulthandler.dump_traceback_later(self.seconds, exit=True, file=sys.__stderr__ or 2)
