"""A run that is told to end while it waits for its data, which may be for long: of a shard that cannot be reached."""

from __future__ import annotations

import dataclasses
import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from killed import assert_equal
from tiny import tiny_run, write_shards
from web_server import Asked, Fault, Server, serving

from mmformer import collectives
from mmformer.data.remote import CacheSpec
from mmformer.training import stopping
from mmformer.training.checkpoint import Checkpoint, newest_checkpoint, step_of, whole_checkpoints
from mmformer.training.evaluate import Evaluation
from mmformer.training.fit import fit
from mmformer.training.run import CheckpointSpec, EvaluationSpec, RunSpec
from mmformer.training.stopping import Stopping

GRACE = 10.0
"""Seconds that a run may take to end here; the shard is asked for during ten times as many."""


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    with serving(write_shards(tmp_path / "set")) as server:
        yield server


def make_run(server: Server, cache: Path, workers: int = 0) -> RunSpec:
    copies = CacheSpec(str(cache), attempts=8, timeout=100.0)
    data = {"source": server.url, "copies": copies, "workers": workers, "test": None, "cache_mib": 0}
    run = tiny_run(server.folder, steps=9, dropout=0.2, data=data)
    return dataclasses.replace(run, checkpoint=CheckpointSpec())


def lose(server: Server, split: str, number: int, stalls: bool = False) -> None:
    """All tars of a split but the first so many are away; the process is signalled twice when one is asked for."""
    known: list[str] = []

    def signal_twice() -> None:
        time.sleep(1.0)
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGTERM)

    def choose(_: int, asked: Asked) -> Fault | None:
        if f"-{split}-" not in asked.path or not asked.path.endswith(".tar"):
            return None
        if asked.path not in known:
            known.append(asked.path)
            if len(known) == number + 1:
                threading.Thread(target=signal_twice).start()
        if known.index(asked.path) < number:
            return None
        return Fault(stalls=GRACE + 2) if stalls and asked.method == "GET" else Fault(status=503)

    server.fault = choose


def interrupted(run: RunSpec, output: Path) -> int:
    """The updates that it has made when it is told to end; it does so in time."""
    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        fit(run, output)
    assert time.monotonic() - began < GRACE + 5, "with what it takes to begin"
    state = newest_checkpoint(output).newest
    assert state is not None
    return step_of(state)


@pytest.mark.parametrize(("workers", "stalls"), [(0, False), (2, False), (0, True)])
def test_it_ends_at_once_and_goes_on_in_the_same_bits(
    workers: int, stalls: bool, server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fit(make_run(server, tmp_path / "one"), tmp_path / "whole")
    before = signal.getsignal(signal.SIGTERM)
    lose(server, "train", 2, stalls)
    capsys.readouterr()
    run, output = make_run(server, tmp_path / "other", workers), tmp_path / "run"
    assert 0 < interrupted(run, output) < 9
    assert capsys.readouterr().err == "\nStopping now, with a checkpoint.\n"
    assert signal.getsignal(signal.SIGTERM) == before
    server.fault = lambda number, asked: None
    fit(run, output, resume=True)
    one, other = (
        torch.load(whole_checkpoints(folder)[-1], weights_only=True) for folder in (tmp_path / "whole", output)
    )
    for part in ("global_step", "state_dict", "optimizer_states", "callbacks"):
        assert_equal(one[part], other[part], part)
    for file in ("metrics.csv", "bundle/model.safetensors"):
        assert (output / file).read_bytes() == (tmp_path / "whole" / file).read_bytes(), file


@pytest.mark.parametrize("stalls", [False, True])
def test_what_is_measured_on_is_not_waited_for(
    stalls: bool, server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The update before it is kept, and measured when the run is resumed."""
    run = make_run(server, tmp_path / "copies")
    run = dataclasses.replace(run, evaluation=EvaluationSpec(run.evaluation.metrics, every_steps=2))
    measure = Evaluation._measure

    def without_copies(self: Evaluation, *words: Any) -> None:
        lose(server, "val", 0, stalls)  # which was read before the run began
        for path in run.data.copies.shards.glob("*.tar"):
            path.unlink()
        measure(self, *words)

    with monkeypatch.context() as patch:
        patch.setattr(Evaluation, "_measure", without_copies)
        assert interrupted(run, tmp_path / "run") == 2
    server.fault = lambda number, asked: None
    fit(run, tmp_path / "run", resume=True)
    assert (tmp_path / "run" / "metrics.csv").read_text().count("\n2,") == 1


def test_one_of_several_processes_waits_for_a_while(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The others may be in the update that its batch is for. What is there in time ends nothing."""
    monkeypatch.setattr(stopping, "PATIENCE", 0.3)
    monkeypatch.setattr(collectives, "world_size", lambda: 2)
    before = signal.getsignal(signal.SIGUSR1)
    own = Stopping(Checkpoint(CheckpointSpec(), tmp_path))
    own._take()
    own.on_train_start(None, None)  # type: ignore[arg-type]
    try:
        os.kill(os.getpid(), signal.SIGTERM)
        for _ in range(3):
            own.wait()
            time.sleep(0.15)
            own.wait(None)
        began = time.monotonic()
        with pytest.raises(KeyboardInterrupt):
            for _ in own.watched(iter(lambda: time.sleep(20.0), 0), ValueError):
                pass
        assert 0.3 <= time.monotonic() - began < 5
    finally:
        own._restore()
    assert not own._left
    assert signal.getsignal(signal.SIGUSR1) == before
    assert capsys.readouterr().err == "\nStopping after this update, with a checkpoint.\n"
