"""Checkpoints: a folder for each, which has its name only when it is whole (see ``files.whole_folder``)."""

from __future__ import annotations

import io
import shutil
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from lightning_fabric.plugins.io.torch_io import TorchCheckpointIO

from mmformer import collectives
from mmformer.files import partial_of, whole_folder
from mmformer.training.processes import is_first
from mmformer.training.run import CheckpointSpec
from mmformer.training.task import TrainingTask


def whole_checkpoints(output: Path) -> list[Path]:
    """The state files of a run's whole checkpoints, oldest first."""
    folders = (output / "checkpoints").glob("step-*")
    return sorted(folder / "state.ckpt" for folder in folders if not folder.suffix)


class PlainIO(TorchCheckpointIO):
    """Writes where it is told.

    Lightning's own writes into the system's temporary folder first, which may be smaller, and which it does not clear
    where the disk is full. Ours are written in a folder that has no name yet.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        state = io.BytesIO()  # torch.save into a file would not say what the disk said
        torch.save(checkpoint, state)
        Path(path).write_bytes(state.getbuffer())


class Checkpoint(pl.Callback):
    """Writes a checkpoint every so many updates, after the last, and when it is told to."""

    def __init__(self, spec: CheckpointSpec, output: Path) -> None:
        self.spec, self.output = spec, output
        self._saved = 0  # the step of the last one

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: object, batch: object, batch_idx: int
    ) -> None:
        last = trainer.global_step == trainer.max_steps
        due = self.spec.every_steps is not None and trainer.global_step % self.spec.every_steps == 0
        if not (due or last):
            return
        assert isinstance(pl_module, TrainingTask)
        self.save(trainer, pl_module)

    def save(self, trainer: pl.Trainer, task: TrainingTask) -> None:
        """Write one, if there is none of this step; all processes do at once."""
        if self._saved == trainer.global_step:
            return
        self._saved = trainer.global_step
        task.check_finite()
        self._save(trainer, self.output / "checkpoints" / f"step-{trainer.global_step:09d}")
        if is_first():
            for old in whole_checkpoints(self.output)[: -self.spec.keep]:
                shutil.rmtree(old.parent)

    def _save(self, trainer: pl.Trainer, folder: Path) -> None:
        """All processes write into the folder that the first one makes, and renames when they have."""
        if not is_first():
            collectives.barrier()
            trainer.save_checkpoint(partial_of(folder) / "state.ckpt")
            collectives.barrier()
            return
        with whole_folder(folder) as partial:
            collectives.barrier()
            trainer.save_checkpoint(partial / "state.ckpt")
            collectives.barrier()
