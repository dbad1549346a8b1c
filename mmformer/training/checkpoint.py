"""Checkpoints: a folder for each, which has its name only when it is whole (see ``files.whole_folder``), and a seal by
which that can be told later (see ``sealing``).
"""

from __future__ import annotations

import errno
import re
import shutil
import sys
from collections.abc import Iterable
from pathlib import Path
from time import monotonic
from typing import Any, NamedTuple

import pytorch_lightning as pl
import torch
import torch.distributed as dist
from lightning_fabric.plugins.io.torch_io import TorchCheckpointIO
from torch import Tensor

from mmformer import collectives
from mmformer.files import discard, partial_of, sync, whole_folder
from mmformer.training.background import Background, HostCopy
from mmformer.training.layouts import read_parts
from mmformer.training.processes import is_first
from mmformer.training.run import CheckpointSpec
from mmformer.training.sealing import SEAL, content_of, damage, persistently, seal
from mmformer.training.task import TrainingTask
from mmformer.training.unpickling import as_data
from mmformer.training.writing_state import write_part, write_state

ASKED_EVERY = 4
"""Updates after which processes ask each other what they cannot know by themselves; one alone asks after each."""

STATE = "state.ckpt"


def whole_checkpoints(output: Path) -> list[Path]:
    """The states of a run's checkpoints that were written to their end, oldest first.

    Raises:
        InputError: it cannot be told, which is not the same as that there are none.
    """
    try:
        paths = persistently(lambda folder: [*folder.iterdir()], output / "checkpoints")
    except FileNotFoundError:
        return []
    folders = [path for path in paths if re.fullmatch(r"step-[0-9]+", path.name)]
    return sorted(folder / STATE for folder in folders if persistently(Path.exists, folder / SEAL))


def step_of(state: Path) -> int:
    """The updates that a checkpoint has behind it."""
    return int(state.parent.name.removeprefix("step-"))


class Found(NamedTuple):
    """What there is to go on from."""

    newest: Path | None  # the state of the newest checkpoint that is as it was written
    damaged: dict[Path, str]  # newer ones, with what is wrong with each


def newest_checkpoint(output: Path, by_size: bool = False) -> Found:
    """Look for the newest checkpoint that holds what was written; see ``sealing.damage``."""
    damaged: dict[Path, str] = {}
    for state in reversed(whole_checkpoints(output)):
        wrong = damage(state.parent, by_size)
        if wrong is None:
            return Found(state, damaged)
        damaged[state] = wrong
    return Found(None, damaged)


def set_aside(damaged: Iterable[Path]) -> None:
    """Give damaged checkpoints another name, under which they are in nobody's way, and can still be looked at."""
    for state in damaged:
        aside = state.parent.with_name(state.parent.name + ".damaged")
        shutil.rmtree(aside, ignore_errors=True)
        state.parent.rename(aside)


def remove_unfinished(output: Path) -> None:
    """Remove what processes that were killed had not written to its end, or not removed to its end.

    What ends in ``.old`` was to be removed, and may have lost some files: it does not get its name back.
    """
    folder = output / "checkpoints"
    for left in [*folder.glob("step-*.partial"), *folder.glob("step-*.old")]:
        shutil.rmtree(left, ignore_errors=True)


class StateIO(TorchCheckpointIO):
    """Keeps a copy of the state that Lightning would have it write; reads what any number of processes wrote."""

    def __init__(self) -> None:
        super().__init__()
        self.host = HostCopy()
        self.state: dict[str, Any] = {}
        self.still: list[Tensor] = []  # what of the next state only an update changes

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        self.state = self.host.take(checkpoint, self.still)
        self.still = []

    def load_checkpoint(self, path: str | Path, *settings: Any, **named: Any) -> dict[str, Any]:
        state = Path(path)
        with as_data(state):
            return read_parts(state) if state.is_dir() else super().load_checkpoint(path, *settings, **named)


class Checkpoint(pl.Callback):
    """Writes a checkpoint when it is time to, after the last update, and when it is told to.

    The state is copied, and training goes on while a thread writes the copy; at most one is written at a time. Where
    there are several processes, each has a thread that writes its part, and the threads speak to each other. What only
    an update changes is copied while the next one's gradient is computed, and the optimizer waits for it.
    """

    def __init__(self, spec: CheckpointSpec, output: Path) -> None:
        self.spec, self.output = spec, output
        self.io, self.background = StateIO(), Background()
        self._saved = 0  # the step of the last one
        self._when = monotonic()  # a clock that nobody sets
        self._group: dist.ProcessGroup | None = None  # of all processes, for the threads alone

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._saved, self._when = trainer.global_step, monotonic()
        if collectives.world_size() > 1:
            self._group = dist.new_group(backend="gloo")

    def on_before_optimizer_step(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        self.settle()

    def settle(self) -> None:
        """Wait until the state is copied: before weights, averages or what the optimizer keeps may be changed."""
        self.io.host.finish()

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: object, batch: object, batch_idx: int
    ) -> None:
        self.background.look()
        assert isinstance(pl_module, TrainingTask)
        if self._is_due(trainer, pl_module.device):
            self.save(trainer, pl_module)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.background.wait()

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Where a run was killed between its last checkpoint and this, the one that is resumed has none to write."""
        if is_first():
            self._prune()

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        try:
            self.background.wait()
        except Exception as error:  # noqa: BLE001  # it is the exception that is raised
            if is_first():
                print(f"mmformer: {self.output}: the last checkpoint was not written: {error}.", file=sys.stderr)

    def _is_due(self, trainer: pl.Trainer, device: torch.device) -> bool:
        """All processes say the same: the first one's clock counts."""
        step, every, minutes = trainer.global_step, self.spec.every_steps, self.spec.every_minutes
        if step == trainer.max_steps or (every is not None and step % every == 0):
            return True
        if minutes is None or (collectives.world_size() > 1 and step % ASKED_EVERY):
            return False
        return collectives.any_rank(is_first() and monotonic() - self._when >= 60 * minutes, device)

    def save(self, trainer: pl.Trainer, task: TrainingTask) -> None:
        """Write one, if there is none of this step; all processes do at once.

        Raises:
            InputError: the weights are not numbers any more, or not the same where processes hold copies.
            OSError: it cannot be written, or the one before could not.
        """
        if self._saved == trainer.global_step:
            return
        self._saved, self._when = trainer.global_step, monotonic()
        task.check_finite()
        task.check_copies()
        self.background.wait()
        folder = self.output / "checkpoints" / f"step-{trainer.global_step:09d}"
        self.io.still = task.changed_by_updates()
        trainer.save_checkpoint(folder / STATE)  # to self.io
        group = self._group
        if group is None:
            self.background.start(lambda: self._write(self.io.state, folder))
        else:
            self.background.start(lambda: self._write_together(self.io.state, folder, group))

    def _write(self, state: dict[str, Any], folder: Path) -> None:
        """Write a copied state as a checkpoint, and remove what is not to be kept any longer."""
        self.settle()
        self._check_output()
        with whole_folder(folder) as partial:
            write_state(state, partial / STATE)
            seal(partial, {STATE: content_of(partial / STATE)})
        self._prune()

    def _write_together(self, state: dict[str, Any], folder: Path, group: dist.ProcessGroup) -> None:
        """The same where each process has a part: they meet before the first one has named the folder, and after it."""
        self.settle()
        if is_first():
            self._check_output()
            with whole_folder(folder) as partial:
                dist.barrier(group)
                contents = write_part(state, partial / STATE, group)
                seal(partial, {f"{STATE}/{name}": content for name, content in contents.items()})
            self._prune()
        else:
            dist.barrier(group)
            write_part(state, partial_of(folder) / STATE, group)
        # The first one tells the others, and waits for none: they may leave as soon as they know.
        dist.broadcast(torch.zeros(1), src=0, group=group)

    def _check_output(self) -> None:
        """Refuse to make a folder anew that was there when training began: a disk is gone, or somebody removed it."""
        if not self.output.is_dir():
            raise FileNotFoundError(errno.ENOENT, "the run's folder is not there any more", str(self.output))

    def _prune(self) -> None:
        """Remove checkpoints that are not to be kept, and what processes that were killed left."""
        sync(self.output)  # which the folder may be new in
        for old in whole_checkpoints(self.output)[: -self.spec.keep]:
            if self.spec.keep_every is None or step_of(old) % self.spec.keep_every:
                discard(old.parent)
        remove_unfinished(self.output)
