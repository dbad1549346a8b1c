"""Killed at any step and resumed, a run ends as the uninterrupted one does: bit-equal weights, the same metrics."""

from __future__ import annotations

import dataclasses
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tiny import tiny_run, write_shards

from mmformer.cli.main import main
from mmformer.config import to_yaml
from mmformer.errors import InputError
from mmformer.training import checkpoint
from mmformer.training.average import EMASpec
from mmformer.training.checkpoint import whole_checkpoints
from mmformer.training.evaluate import Evaluation
from mmformer.training.fit import fit
from mmformer.training.metrics import MetricsTable
from mmformer.training.run import CheckpointSpec, EvaluationSpec, RunSpec
from mmformer.training.schedule import ConstantScheduleSpec

STEPS, EVERY = 60, 5
COMMAND = [sys.executable, "-c", "import sys; from mmformer.cli.main import main; sys.exit(main())"]
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_shards(tmp_path_factory.mktemp("shards"))


def make_run(shards: Path, steps: int = STEPS, every: int | None = EVERY, workers: int = 0, keep: int = 2) -> RunSpec:
    """Dropout, augmentation, sampled captions, averages, evaluation, the best bundle: all that could go astray."""
    run = tiny_run(shards, dropout=0.2, steps=steps, data={"workers": workers, "test": None})
    return dataclasses.replace(
        run,
        ema=EMASpec(decay=0.9),
        evaluation=EvaluationSpec(run.evaluation.metrics, every_steps=4),
        checkpoint=CheckpointSpec(every, keep=keep, best="retrieval/image_to_text/median_rank", mode="min"),
    )


@pytest.fixture(scope="module")
def whole(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The uninterrupted run."""
    output = tmp_path_factory.mktemp("whole") / "run"
    fit(make_run(shards), output)
    return output


@pytest.fixture(scope="module")
def short(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An uninterrupted run of eight updates."""
    output = tmp_path_factory.mktemp("short") / "run"
    fit(make_run(shards, 8, 2), output)
    return output


def assert_same(found: Path, expected: Path) -> None:
    for bundle in ("bundle", "best"):
        one, other = (load_file(output / bundle / "model.safetensors") for output in (found, expected))
        assert one.keys() == other.keys()
        assert all(torch.equal(one[name], other[name]) for name in one), bundle
    assert (found / "metrics.csv").read_text() == (expected / "metrics.csv").read_text()


def kill_once_it_runs(command: list[str], output: Path, after: int) -> int:
    """SIGKILL a while after a checkpoint of update ``after`` or later is there; the update of the last whole one."""
    process = subprocess.Popen(command, env=ENVIRONMENT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    try:
        deadline = time.monotonic() + 120
        while not [path for path in whole_checkpoints(output) if step_of(path) >= after]:
            assert process.poll() is None, process.stderr.read() if process.stderr else ""
            assert time.monotonic() < deadline
            time.sleep(0.002)
        time.sleep(0.03)  # two or three updates further
    finally:
        process.send_signal(signal.SIGKILL)
        _, errors = process.communicate()
    assert process.returncode == -signal.SIGKILL, errors
    return step_of(whole_checkpoints(output)[-1])


def step_of(state: Path) -> int:
    return int(state.parent.name.removeprefix("step-"))


@pytest.mark.parametrize(
    ("workers", "anew"),
    [(2, False), *(pytest.param(*each, marks=pytest.mark.slow) for each in ((0, False), (2, True)))],
)
def test_killed_and_resumed_is_as_never_killed(
    workers: int, anew: bool, shards: Path, whole: Path, tmp_path: Path
) -> None:
    """The real thing: another process, SIGKILL while it trains, and the words that a person would type.

    Resumed in this process (to save the imports) or in a new one.
    """
    config, output = tmp_path / "run.yaml", tmp_path / "run"
    config.write_text(to_yaml(make_run(shards, workers=workers)))
    words = ["fit", "--output", str(output)]
    last = kill_once_it_runs([*COMMAND, *words, "--config", str(config)], output, 2 * EVERY)
    assert 2 * EVERY <= last < STEPS
    assert not (output / "bundle").exists()
    if anew:
        done = subprocess.run([*COMMAND, *words, "--resume"], env=ENVIRONMENT, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    else:
        assert main([*words, "--resume"]) == 0
    assert_same(output, whole)


# ------------------------------------------------------------------------------------------------- any moment


class Killed(BaseException):
    """Stands in for SIGKILL inside this process."""


@pytest.fixture
def killed(monkeypatch: pytest.MonkeyPatch) -> Callable[[RunSpec, Path], None]:
    """Runs until something raises Killed, and writes nothing on the way out, as a process that is gone."""

    def run(spec: RunSpec, output: Path) -> None:
        with monkeypatch.context() as patch, pytest.raises(Killed):
            patch.setattr(MetricsTable, "finalize", lambda self, status: None)
            fit(spec, output)

    return run


def dies_at(step: int, call: Callable[..., Any], moment: str) -> Callable[..., Any]:
    """A function that dies before, in the middle of, or after the call for a step."""

    def wrapped(self: Any, trainer: Any, *args: Any) -> Any:
        if trainer.global_step != step:
            return call(self, trainer, *args)
        if moment == "writing":
            self.background.wait()  # the one before, whose thread clears away what is half written
            folder = self.output / "checkpoints" / f"step-{step:09d}.partial"
            folder.mkdir(parents=True)
            (folder / "state.ckpt").write_bytes(b"half of a checkpo")
        if moment == "after":
            call(self, trainer, *args)
        raise Killed

    return wrapped


@pytest.mark.parametrize("moment", ["before", "writing", "after"])
@pytest.mark.parametrize("step", [4, 8])
def test_any_moment_around_a_checkpoint(
    step: int, moment: str, shards: Path, short: Path, tmp_path: Path, killed: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before it is written, while it is, and right after it is committed, when nothing else of the step is done."""
    run, output = make_run(shards, 8, 2), tmp_path / "run"
    call = checkpoint.Checkpoint.on_train_batch_end
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint.Checkpoint, "on_train_batch_end", dies_at(step, call, moment))
        killed(run, output)
    last = step_of(whole_checkpoints(output)[-1])
    assert last == (step if moment == "after" else step - 2)
    assert list((output / "checkpoints").glob("*.partial")) == (
        [output / "checkpoints" / f"step-{step:09d}.partial"] if moment == "writing" else []
    )
    fit(run, output, resume=True)
    assert_same(output, short)
    assert [path.name for path in sorted((output / "checkpoints").iterdir())] == ["step-000000006", "step-000000008"]


@pytest.mark.parametrize("step", range(1, 9))
@pytest.mark.slow
def test_any_step(
    step: int, shards: Path, short: Path, tmp_path: Path, killed: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed before the callbacks of a step; with checkpoints at 2, 4, 6 and 8."""
    run, output = make_run(shards, 8, 2), tmp_path / "run"
    call = Evaluation.on_train_batch_end
    with monkeypatch.context() as patch:
        patch.setattr(Evaluation, "on_train_batch_end", dies_at(step, call, "before"))
        killed(run, output)
    if step <= 2:
        with pytest.raises(InputError, match="there is no whole checkpoint to resume from"):
            fit(run, output, resume=True)
        return
    fit(run, output, resume=True)
    assert_same(output, short)


def test_resumed_twice_and_with_other_workers(
    shards: Path, short: Path, tmp_path: Path, killed: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, output = make_run(shards, 8, 2), tmp_path / "run"
    call = checkpoint.Checkpoint.on_train_batch_end
    for step, resume, workers in ((3, False, 0), (6, True, 1)):
        spec = dataclasses.replace(run, data=dataclasses.replace(run.data, workers=workers))
        with monkeypatch.context() as patch, pytest.raises(Killed):
            patch.setattr(MetricsTable, "finalize", lambda self, status: None)
            patch.setattr(checkpoint.Checkpoint, "on_train_batch_end", dies_at(step, call, "before"))
            fit(spec, output, resume=resume)
    fit(run, output, resume=True)
    assert_same(output, short)


def test_a_run_that_was_killed_after_its_last_step_writes_its_bundle(short: Path, shards: Path, tmp_path: Path) -> None:
    output = tmp_path / "run"
    shutil.copytree(short, output)
    shutil.rmtree(output / "bundle")
    fit(make_run(shards, 8, 2), output, resume=True)
    assert_same(output, short)


def test_a_finished_run_goes_on_with_more_steps(shards: Path, tmp_path: Path) -> None:
    runs = [dataclasses.replace(make_run(shards, n, 2), schedule=ConstantScheduleSpec(2)) for n in (3, 8)]
    fit(runs[1], tmp_path / "whole")
    fit(runs[0], tmp_path / "run")
    fit(runs[1], tmp_path / "run", resume=True)
    one, other = (load_file(tmp_path / name / "bundle" / "model.safetensors") for name in ("run", "whole"))
    assert all(torch.equal(one[name], other[name]) for name in other)


@pytest.mark.parametrize("keep", [1, 3])
def test_the_newest_checkpoints_are_kept(keep: int, shards: Path, tmp_path: Path) -> None:
    fit(make_run(shards, 7, 2, keep=keep), tmp_path / "run")
    names = [path.parent.name for path in whole_checkpoints(tmp_path / "run")]
    assert names == [f"step-{step:09d}" for step in (2, 4, 6, 7)][-keep:]
    assert sorted(path.name for path in (tmp_path / "run" / "checkpoints").iterdir()) == names


def test_what_is_no_whole_checkpoint_is_ignored(short: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run" / "checkpoints"
    shutil.copytree(short / "checkpoints", folder)
    for name in ("step-000000099.partial", "step-000000099.old", "step-000000098.partial"):
        (folder / name).mkdir()
        (folder / name / "state.ckpt").write_bytes(b"half")
    assert [step_of(path) for path in whole_checkpoints(tmp_path / "run")] == [6, 8]
    assert whole_checkpoints(tmp_path / "nowhere") == []


def test_there_must_be_something_to_resume(shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(InputError, match="there is no whole checkpoint to resume from: start"):
        fit(make_run(shards), tmp_path / "run", resume=True)
    assert not (tmp_path / "run").exists()
    assert main(["fit", "--output", str(tmp_path / "run"), "--resume"]) == 2
    assert "there is no run in this folder (no config.yaml)" in capsys.readouterr().err


def test_a_checkpoint_holds_no_code(short: Path) -> None:
    state = torch.load(whole_checkpoints(short)[-1], weights_only=True)
    assert state["global_step"] == 8
    assert {"state_dict", "optimizer_states", "callbacks"} <= set(state)
