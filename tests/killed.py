"""Runs that die and go on: between two updates, or at any moment, by SIGKILL in a process of their own."""

from __future__ import annotations

import importlib
import json
import multiprocessing
import os
import signal
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from mmformer.training.checkpoint import Checkpoint, whole_checkpoints
from mmformer.training.fit import fit
from mmformer.training.layouts import read_parts
from mmformer.training.run import RunSpec
from mmformer.training.task import TrainingTask


class Killed(BaseException):
    """Nothing in a run catches it."""


def fit_killed_and_resumed(run: RunSpec, output: Path, step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fit, die after an update, before a checkpoint of it could be written, and resume."""
    real = Checkpoint.on_train_batch_end

    def dies(self: Any, trainer: Any, *args: Any) -> None:
        if trainer.global_step == step:
            raise Killed
        real(self, trainer, *args)

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(Checkpoint, "on_train_batch_end", dies)
        fit(run, output)
    fit(run, output, resume=True)


# ------------------------------------------------------------------------------------------------- any moment


class Moment(NamedTuple):
    """Before or after a call of a function."""

    place: str  # "module:function" or "module:Class.method"
    call: int  # 1 the first in the process
    after: bool = False

    def __str__(self) -> str:
        return f"{'after' if self.after else 'before'} call {self.call} of {self.place.rpartition(':')[2]}"


PLACES = {
    "start": (
        "mmformer.training.fit:rehearse",
        "mmformer.training.fit:begin",
        "mmformer.training.fit:write_whole",
        "mmformer.training.task:TrainingTask.configure_optimizers",
        "mmformer.training.task:TrainingTask.train_dataloader",
    ),
    "update": (
        "mmformer.training.update:accumulate",
        "mmformer.training.divergence:Guard.judge",
        "mmformer.training.average:WeightAverage.update",
        "mmformer.training.metrics:MetricsTable.log_metrics",
    ),
    "checkpoint": (
        "mmformer.training.background:HostCopy.take",
        "mmformer.training.checkpoint:write_state",
        "mmformer.training.writing_state:_Teller.write",
        "mmformer.training.checkpoint:content_of",
        "mmformer.training.checkpoint:seal",
        "mmformer.training.checkpoint:discard",
        "mmformer.files:sync",
        "pathlib:Path.mkdir",
        "pathlib:Path.rename",
        "pathlib:Path.replace",
        "shutil:rmtree",
    ),
    "evaluation": (
        "mmformer.training.evaluate:evaluate",
        "mmformer.training.evaluate:write_bundle",
        "mmformer.evaluation.metric:Metric.update",
        "mmformer.evaluation.retrieval:Retrieval.compute",
    ),
    "end": ("mmformer.training.fit:write_bundle", "mmformer.training.fit:write_report"),
}
"""Where runs die, by what they do there. Checkpoints are written by a thread, so that much of the rest goes on."""


def fit_alone(run: RunSpec, output: Path, resume: bool = False, moment: Moment | None = None) -> int:
    """Fit in another process, which kills itself at a moment; its exit code.

    Beside the output lie ``keys.jsonl``, the samples of every update that was tried, and, where it came to its end,
    ``calls.json``: how often each place was called.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["mmformer.training.fit", "killed"])  # imported once for all
    process = context.Process(target=_fit, args=(run, output, resume, moment))
    process.start()
    process.join(180)
    if process.exitcode is None:
        process.kill()
    assert process.exitcode is not None
    return process.exitcode


def _fit(run: RunSpec, output: Path, resume: bool, moment: Moment | None) -> None:
    torch.set_num_threads(1)
    multiprocessing.set_start_method("fork", force=True)  # of loaders' workers, as in a run that a user starts
    log = os.open(output.parent / "log.txt", os.O_CREAT | os.O_APPEND | os.O_WRONLY)
    for stream in (1, 2):
        os.dup2(log, stream)
    calls = watched(output.parent / "keys.jsonl", PLACES, moment)
    fit(run, output, resume=resume)
    (output.parent / "calls.json").write_text(json.dumps(calls))


def watched(file: Path, places: Mapping[str, Sequence[str]], moment: Moment | None) -> Counter[str]:
    """Have this process write its updates' samples to a file, and die at a moment; how often it came by places."""
    keys = os.open(file, os.O_CREAT | os.O_APPEND | os.O_WRONLY)
    step = TrainingTask.training_step

    def tells(self: TrainingTask, batch: Any, batch_idx: int) -> None:
        os.write(keys, (json.dumps([self.global_step, *batch.keys]) + "\n").encode())
        step(self, batch, batch_idx)

    TrainingTask.training_step = tells  # type: ignore[method-assign]
    calls: Counter[str] = Counter()
    for place in (place for group in places.values() for place in group):
        _count(place, calls, moment)
    return calls


def _count(place: str, calls: Counter[str], moment: Moment | None) -> None:
    """Have a place counted, and the process die there if it is the moment's."""
    module, _, path = place.partition(":")
    *owners, name = path.split(".")
    owner: Any = importlib.import_module(module)
    for each in owners:
        owner = getattr(owner, each)
    real: Callable[..., Any] = getattr(owner, name)
    own = os.getpid()

    def counted(*arguments: Any, **named: Any) -> Any:
        if os.getpid() != own:  # a loader's worker
            return real(*arguments, **named)
        calls[place] += 1
        here = moment is not None and (moment.place, moment.call) == (place, calls[place])
        if here and moment is not None and not moment.after:
            os.kill(own, signal.SIGKILL)
        done = real(*arguments, **named)
        if here:
            os.kill(own, signal.SIGKILL)
        return done

    setattr(owner, name, counted)


def assert_survives(run: RunSpec, whole: Path, output: Path, *moments: Moment) -> None:
    """A run that was killed at these moments, one after the other, ends as the whole one: in the same bits."""
    for moment in moments:
        code = fit_alone(run, output, bool(whole_checkpoints(output)), moment)
        assert code == -signal.SIGKILL, f"{moment}: exit code {code}: {_log(output)}"
    code = fit_alone(run, output, bool(whole_checkpoints(output)))
    assert code == 0, _log(output)
    assert_same_end(whole, output)


def assert_same_end(whole: Path, output: Path) -> None:
    """The same weights, averages, optimizer, scores and samples; and nothing is left lying about."""
    one, other = (_state(whole_checkpoints(folder)[-1]) for folder in (whole, output))
    for part in ("global_step", "state_dict", "optimizer_states", "callbacks"):
        assert_equal(one[part], other[part], part)
    assert (output / "metrics.csv").read_text() == (whole / "metrics.csv").read_text()
    for bundle in ("bundle", "best"):
        first, second = (folder / bundle / "model.safetensors" for folder in (whole, output))
        assert first.read_bytes() == second.read_bytes(), bundle
    expected = dict(_keys(whole))
    for update, keys in _keys(output):
        assert keys == expected[update], f"update {update} read other samples"
    assert {update for update, _ in _keys(output)} == set(expected)
    left, whole_files = (
        {str(path.relative_to(folder)) for path in folder.rglob("*") if not path.name.startswith("events")}
        for folder in (output, whole)
    )
    assert left == whole_files, left ^ whole_files


def assert_equal(one: Any, other: Any, where: str = "") -> None:
    """Nested states are the same in every bit."""
    if isinstance(one, Tensor):
        assert torch.equal(one, other), where
    elif isinstance(one, dict):
        assert one.keys() == other.keys(), where
        for key in one:
            assert_equal(one[key], other[key], f"{where}.{key}")
    elif isinstance(one, list | tuple):
        assert len(one) == len(other), where
        for place, (a, b) in enumerate(zip(one, other, strict=True)):
            assert_equal(a, b, f"{where}.{place}")
    else:
        assert one == other, where


def _state(path: Path) -> dict[str, Any]:
    """What one process wrote, or several."""
    read: dict[str, Any] = read_parts(path) if path.is_dir() else torch.load(path, weights_only=True)
    return read


def _keys(output: Path) -> list[tuple[tuple[str, int], list[str]]]:
    """The samples of every update that was tried, by the process's file and the update, in the order of the trials."""
    files = sorted(output.parent.glob("keys*.jsonl"))
    lines = [(file.name, json.loads(line)) for file in files for line in file.read_text().splitlines()]
    return [((name, step), keys) for name, (step, *keys) in lines]


def _log(output: Path) -> str:
    return (output.parent / "log.txt").read_text()[-2000:]
