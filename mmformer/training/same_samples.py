"""A resumed run reads on where it was: in the same samples, cut into the same ids."""

from __future__ import annotations

import pytorch_lightning as pl

from mmformer.data.dataset import MixedDataset
from mmformer.errors import InputError
from mmformer.training.run import RunSpec


class SameSamples(pl.Callback):
    """Refuses to go on where a position does not mean the sample any more that it meant when a checkpoint was written.

    The run's configuration names the same files: this is about what is in them.
    """

    def __init__(self, run: RunSpec) -> None:
        self.run = run
        self._now: dict[str, dict[str, str]] = {}
        self._before: dict[str, dict[str, str]] = {}  # of the checkpoint; empty: there is none

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        assert trainer.train_dataloader is not None
        dataset = trainer.train_dataloader.dataset
        assert isinstance(dataset, MixedDataset)
        sources = zip(self.run.data.named, dataset.sources, strict=True)
        words = self.run.model.text_encoders()
        self._now = {
            "sources": {where: source.reader.digest for where, source in sources},
            "vocabularies": {name: encoder.vocabulary.fingerprint for name, encoder in words.items()},
        }
        for where in self._changed("sources"):
            raise InputError(
                f"{where}.source: {self.run.data.named[where].source} has other samples, or has them in another order, "
                f"than when the checkpoint was written: restore it as it was, or begin another run with what this one "
                f"has learned (initial.path)."
            )
        for name in self._changed("vocabularies"):
            raise InputError(
                f"data.{name} is cut into ids by another vocabulary than when the checkpoint was written: the file "
                f"{words[name].spec.vocabulary} was changed. Restore it."
            )

    def _changed(self, kind: str) -> list[str]:
        before = self._before.get(kind, {})
        return [name for name, value in self._now[kind].items() if before.get(name, value) != value]

    def state_dict(self) -> dict[str, dict[str, str]]:
        return self._now

    def load_state_dict(self, state_dict: dict[str, dict[str, str]]) -> None:
        self._before = state_dict
