"""Pictures of training, with what belongs to them, in TensorBoard: what the model is shown."""

from __future__ import annotations

import numpy as np
import pytorch_lightning as pl
from pytorch_lightning.loggers import TensorBoardLogger

from mmformer.training.run import RunSpec
from mmformer.training.sheet import Card, draw_sheet
from mmformer.types import Batch, Text


class Samples(pl.Callback):
    """Draws the first pictures of the first update and of those after which the model is measured.

    They are as the model sees them, after augmentation, each with its key, the text that is read with it, as the
    vocabulary gives it back, and its labels.
    """

    def __init__(self, run: RunSpec) -> None:
        self.run = run
        self.encoders = run.model.text_encoders()

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: object, batch: object, batch_idx: int
    ) -> None:
        step, every = trainer.global_step, self.run.evaluation.every_steps
        assert isinstance(batch, Batch)
        if batch.image is None or not (step in (1, trainer.max_steps) or (every is not None and step % every == 0)):
            return
        sheet = draw_sheet(f"Update {step}", ["what the model was shown"], self.cards(batch), self.run.data.train)
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger):
                logger.experiment.add_image("samples", np.asarray(sheet), step, dataformats="HWC")

    def cards(self, batch: Batch) -> list[Card]:
        """The first samples of a batch."""
        number = min(self.run.logging.samples, len(batch.keys))
        texts = self._texts("text", batch.text) or self._texts("target", batch.target)
        return [
            Card(
                batch.picture(place).permute(1, 2, 0).cpu().numpy(),
                batch.keys[place],
                texts[place] if texts else None,
                [],
            )
            for place in range(number)
        ]

    def _texts(self, name: str, text: Text | None) -> list[str]:
        """Texts as the model reads them, cut and all."""
        if text is None:
            return []
        vocabulary = self.encoders[name].vocabulary
        rows = zip(text.ids.tolist(), text.lengths.tolist(), strict=True)
        return [vocabulary.decode(ids[:length]).strip() for ids, length in rows]
