"""The bar that counts a run's updates."""

from __future__ import annotations

from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import TQDMProgressBar


class Progress(TQDMProgressBar):
    """Counts the run's updates, whatever step it was resumed from."""

    def __init__(self, first_step: int, steps: int) -> None:
        super().__init__(refresh_rate=5)
        self.first_step, self.steps = first_step, steps

    def init_train_tqdm(self) -> Any:
        bar = super().init_train_tqdm()
        bar.reset(total=self.steps)
        bar.initial = bar.n = self.first_step
        bar.set_description("Training")
        return bar

    def on_train_epoch_start(self, *_: Any) -> None:
        """Nothing: a resumed run goes on within an epoch, of whose start Lightning does not tell."""

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        done = trainer.global_step
        if self.is_enabled and (done % self.refresh_rate == 0 or done == self.steps):
            self.train_progress_bar.n = done
            self.train_progress_bar.set_postfix(self.get_metrics(trainer, pl_module))

    def get_metrics(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> dict[str, Any]:
        metrics = super().get_metrics(trainer, pl_module)
        return {name.removeprefix("train/"): value for name, value in metrics.items() if name != "v_num"}
