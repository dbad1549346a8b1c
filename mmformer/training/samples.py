"""Pictures of training, with what belongs to them, in TensorBoard: what the model is shown, and what it writes."""

from __future__ import annotations

import numpy as np
import pytorch_lightning as pl
from pytorch_lightning.loggers import TensorBoardLogger

from mmformer.evaluation.metric import evaluating
from mmformer.generation.sampling import GreedySpec
from mmformer.generation.writing import write_texts
from mmformer.models.decoder import DecoderSpec
from mmformer.models.model import Model
from mmformer.training.run import RunSpec
from mmformer.training.sheet import Card, draw_sheet
from mmformer.training.task import TrainingTask
from mmformer.types import Batch, Text


class Samples(pl.Callback):
    """Draws the first pictures of the first update and of those after which the model is measured.

    They are as the model sees them, after augmentation, each with the text that belongs to it, as the vocabulary gives
    it back. Where a decoder reads pictures alone, they have what it writes of them too (greedily), unless the model is
    sharded, which does not write while it is trained.
    """

    def __init__(self, run: RunSpec) -> None:
        self.run = run
        self.encoders = run.model.text_encoders()
        readers = [name for name, decoder in run.model.decoders.items() if self._reads_images(decoder)]
        self.decoder = readers[0] if readers and run.parallel.processes == 1 else None

    def _reads_images(self, decoder: DecoderSpec) -> bool:
        return self.run.model.modalities_of(decoder.reads) == {"image"}

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: object, batch: object, batch_idx: int
    ) -> None:
        step, every = trainer.global_step, self.run.evaluation.every_steps
        assert isinstance(batch, Batch)
        if batch.image is None or not (step in (1, trainer.max_steps) or (every is not None and step % every == 0)):
            return
        assert isinstance(pl_module, TrainingTask)
        lines = ["what the model was shown"] + ["and what it writes of it"] * (self.decoder is not None)
        sheet = draw_sheet(f"Update {step}", lines, self.cards(batch, pl_module.built), self.run.data.train)
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger):
                logger.experiment.add_image("samples", np.asarray(sheet), step, dataformats="HWC")

    def cards(self, batch: Batch, model: Model) -> list[Card]:
        """The first samples of a batch: with their texts under their keys, or what is written under their texts."""
        few = batch.rows(slice(0, self.run.logging.samples))
        texts = self._texts("target", few.target) or self._texts("text", few.text) or [None] * len(few.keys)
        written = self._written(few, model)
        names, captions = (texts, written) if written else (few.keys, texts)
        pictures = [few.picture(place).permute(1, 2, 0).cpu().numpy() for place in range(len(few.keys))]
        return [Card(*each, []) for each in zip(pictures, names, captions, strict=True)]

    def _written(self, few: Batch, model: Model) -> list[str]:
        if self.decoder is None:
            return []
        with evaluating(model):
            tokens, number = model(few, decode=False).tokens, len(few.keys)
            return write_texts(model, self.decoder, tokens, [""] * number, GreedySpec(), list(range(number)))

    def _texts(self, name: str, text: Text | None) -> list[str | None]:
        """Texts as the model reads them, cut and all."""
        if text is None:
            return []
        vocabulary = self.encoders[name].vocabulary
        rows = zip(text.ids.tolist(), text.lengths.tolist(), strict=True)
        return [vocabulary.decode(ids[:length]).strip() for ids, length in rows]
