"""Signals end a run after the update that it is in, with one whole checkpoint; twice the same is no hurry."""

from __future__ import annotations

import dataclasses
import inspect
import multiprocessing
import os
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
from pytorch_lightning.loops.training_epoch_loop import _TrainingEpochLoop
from pytorch_lightning.trainer.connectors.signal_connector import _SignalConnector
from tiny import tiny_run, write_shards

from mmformer.training.checkpoint import Checkpoint, newest_checkpoint, step_of
from mmformer.training.fit import fit
from mmformer.training.run import CheckpointSpec, RunSpec
from mmformer.training.stopping import Stopping
from mmformer.training.task import TrainingTask


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunSpec:
    run = tiny_run(write_shards(tmp_path_factory.mktemp("shards")), steps=9, data={"test": None})
    return dataclasses.replace(run, checkpoint=CheckpointSpec())


def signalled(monkeypatch: pytest.MonkeyPatch, *numbers: signal.Signals) -> None:
    """Have the process, and its loader's workers before it, signalled in the fourth update."""
    step = TrainingTask.training_step

    def training_step(self: TrainingTask, batch: Any, batch_idx: int) -> None:
        if self.global_step == 3:
            for child in multiprocessing.active_children():  # not by their loader, which they obey
                subprocess.run(["kill", f"-{numbers[0].value}", str(child.pid)], check=True)
            for number in numbers:
                os.kill(os.getpid(), number)
        step(self, batch, batch_idx)

    monkeypatch.setattr(TrainingTask, "training_step", training_step)


@pytest.mark.parametrize(
    "numbers", [(signal.SIGUSR1,), (signal.SIGTERM, signal.SIGTERM), (signal.SIGUSR1, signal.SIGTERM)]
)
def test_signals_of_schedulers_end_it_in_order(
    numbers: tuple[signal.Signals, ...],
    run: RunSpec,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """They may come from a scheduler and, passed on, from whatever it started."""
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR1)]
    signalled(monkeypatch, *numbers)
    with pytest.raises(KeyboardInterrupt):
        fit(run, tmp_path / "run")
    state = newest_checkpoint(tmp_path / "run").newest
    assert state is not None and step_of(state) == 4
    assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()] == ["step-000000004"]
    assert capsys.readouterr().err == "\nStopping after this update, with a checkpoint.\n"
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR1)] == before


@pytest.mark.parametrize(
    "number",
    [signal.SIGTERM, *(pytest.param(number, marks=pytest.mark.slow) for number in (signal.SIGINT, signal.SIGUSR1))],
)
def test_workers_read_on_where_all_processes_of_a_job_are_signalled(
    number: signal.Signals, run: RunSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Were they gone, the updates before all processes of a run have agreed to stop would have nothing to read."""
    run = dataclasses.replace(run, data=dataclasses.replace(run.data, workers=2))
    seen: list[int] = []
    ends = Stopping.on_train_batch_end

    def later(self: Stopping, trainer: Any, *arguments: Any) -> None:
        seen.append(trainer.global_step)
        if trainer.global_step >= 8:
            ends(self, trainer, *arguments)

    monkeypatch.setattr(Stopping, "on_train_batch_end", later)
    monkeypatch.setattr(Stopping, "_leave", lambda self: None)  # as where others are in the update already
    signalled(monkeypatch, number)
    with pytest.raises(KeyboardInterrupt):
        fit(run, tmp_path / "run")
    assert seen == list(range(1, 9))
    assert not multiprocessing.active_children()


def test_a_second_ctrl_c_ends_it_at_once(run: RunSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    signalled(monkeypatch, signal.SIGINT, signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        fit(run, tmp_path / "run")
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_lightning_takes_no_signals_and_sends_none(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Its handlers send within, and requeue jobs of SLURM; before each update of several processes it broadcasts, and
    waits for the device. It has both under these names.
    """
    for owner, name, caller in (
        (_SignalConnector, "register_signal_handlers", pl.Trainer._run),
        (_TrainingEpochLoop, "_broadcast_sigterm_tensor", _TrainingEpochLoop.advance),
    ):
        monkeypatch.setattr(owner, name, lambda self: pytest.fail("called"))
        assert f".{name}()" in inspect.getsource(caller)
    trainer = pl.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
    stopping = Stopping(Checkpoint(CheckpointSpec(), tmp_path))
    stopping.setup(trainer, pl.LightningModule(), "fit")
    before = signal.getsignal(signal.SIGTERM)
    trainer._signal_connector.register_signal_handlers()
    assert signal.getsignal(signal.SIGTERM) == stopping._note, "ours in its place"
    stopping.teardown(trainer, pl.LightningModule(), "fit")
    assert signal.getsignal(signal.SIGTERM) == before
    trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor()
