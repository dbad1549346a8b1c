"""A run that is told to end while it is measured does not wait for that, and measures when it is resumed."""

from __future__ import annotations

import csv
import dataclasses
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from killed import assert_equal
from tiny import tiny_run, write_shards

from mmformer.evaluation.metric import Metric
from mmformer.training.checkpoint import Checkpoint, whole_checkpoints
from mmformer.training.evaluate import Evaluation
from mmformer.training.fit import fit
from mmformer.training.run import CheckpointSpec, EarlyStoppingSpec, EMASpec, EvaluationSpec, RunSpec
from mmformer.training.task import TrainingTask

SCORE = "retrieval/image_to_text/R@1"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunSpec:
    """Six updates, of which each other is measured, in four batches."""
    run = tiny_run(write_shards(tmp_path_factory.mktemp("shards")), dropout=0.2, steps=6, data={"test": None})
    return dataclasses.replace(
        run,
        data=dataclasses.replace(run.data, evaluation_batch_size=2),
        checkpoint=CheckpointSpec(every_steps=3, best=SCORE),
        evaluation=EvaluationSpec({"retrieval": run.evaluation.metrics["retrieval"]}, every_steps=2),
        early_stopping=EarlyStoppingSpec(SCORE, patience=3),
        ema=EMASpec(decay=0.5),
    )


@pytest.fixture(scope="module")
def whole(run: RunSpec, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("whole") / "run"
    fit(run, output)
    return output


def signalled(monkeypatch: pytest.MonkeyPatch, step: int) -> list[int]:
    """Have the process signalled at the first batch on which an update is measured; the updates of all batches."""
    measured: list[int] = []
    measure, update = Evaluation._measure, Metric.update

    def begins(self: Evaluation, trainer: Any, task: Any) -> None:
        def tells(metric: Metric, *args: Any) -> None:
            measured.append(trainer.global_step)
            if measured.count(step) == 1 and measured[-1] == step:
                os.kill(os.getpid(), signal.SIGTERM)
            update(metric, *args)

        monkeypatch.setattr(Metric, "update", tells)
        measure(self, trainer, task)

    monkeypatch.setattr(Evaluation, "_measure", begins)
    return measured


def stop_in(monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    """Have the process signalled in an update, 1 the first."""
    train = TrainingTask.training_step

    def training_step(self: TrainingTask, *given: Any) -> None:
        if self.global_step + 1 == step:
            os.kill(os.getpid(), signal.SIGTERM)
        train(self, *given)

    monkeypatch.setattr(TrainingTask, "training_step", training_step)


def measured_steps(output: Path) -> list[int]:
    with (output / "metrics.csv").open() as file:
        return [int(row["step"]) for row in csv.DictReader(file) if row.get(f"validation/{SCORE}")]


def assert_same(
    whole: Path, output: Path, parts: tuple[str, ...] = ("global_step", "state_dict", "optimizer_states", "callbacks")
) -> None:
    one, other = (torch.load(whole_checkpoints(folder)[-1], weights_only=True) for folder in (whole, output))
    for part in parts:
        assert_equal(one[part], other[part], part)
    for file in ("metrics.csv", "bundle/model.safetensors", "best/model.safetensors", "best/README.md"):
        assert (output / file).read_bytes() == (whole / file).read_bytes(), file


def test_it_is_measured_when_it_is_resumed(
    run: RunSpec, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Signalled in the second evaluation, after the fourth update: it ends in the bits of a run that never was."""
    output = tmp_path / "run"
    with monkeypatch.context() as patch:
        measured = signalled(patch, 4)
        with pytest.raises(KeyboardInterrupt):
            fit(run, output)
    assert measured == [2] * 4 + [4], "it ends before the next batch"
    assert whole_checkpoints(output)[-1].parent.name == "step-000000004"
    assert measured_steps(output) == [2]
    fit(run, output, resume=True)
    assert measured_steps(output) == measured_steps(whole) == [2, 4, 6]
    assert_same(whole, output)


def test_the_last_evaluation_is_left_too(
    run: RunSpec, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And again, by the run that is resumed and has nothing else to do; the third one makes it."""
    output = tmp_path / "run"
    for measured_before in ([2] * 4 + [4] * 4, []):
        with monkeypatch.context() as patch:
            measured = signalled(patch, 6)
            with pytest.raises(KeyboardInterrupt):
                fit(run, output, resume=not measured_before)
        assert measured == [*measured_before, 6], "it ends before the next batch"
        assert whole_checkpoints(output)[-1].parent.name == "step-000000006"
        assert not (output / "bundle").exists()
    fit(run, output, resume=True)
    assert measured_steps(output) == measured_steps(whole) == [2, 4, 6]
    assert_same(whole, output, ("state_dict", "optimizer_states"))  # that it was to be measured is in it


def test_a_run_that_is_to_measure_first_and_is_told_to_end_makes_no_update(
    run: RunSpec, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The scores would be those of the next."""
    output = tmp_path / "run"
    for resume in (False, True):
        with monkeypatch.context() as patch:
            signalled(patch, 4)
            with pytest.raises(KeyboardInterrupt):
                fit(run, output, resume=resume)
        assert whole_checkpoints(output)[-1].parent.name == "step-000000004"
    fit(run, output, resume=True)
    assert_same(whole, output)


@pytest.mark.parametrize(("step", "measured"), [(4, [2, 4]), (5, [2, 4, 5])])
def test_a_run_that_ends_earlier_when_it_is_resumed_is_measured_there(
    step: int, measured: list[int], run: RunSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At an update whose evaluation was left, or that was not one to be measured before."""
    output = tmp_path / "run"
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        if step == 4:
            signalled(patch, 4)
        else:
            stop_in(patch, 5)
        fit(run, output)
    assert whole_checkpoints(output)[-1].parent.name == f"step-{step:09d}"
    ending = dataclasses.replace(run, trainer=dataclasses.replace(run.trainer, max_steps=step))
    fit(ending, output, resume=True)
    assert measured_steps(output) == measured
    fit(ending, output, resume=True)
    assert measured_steps(output) == measured


def test_a_run_that_was_measured_to_its_end_is_not_measured_again(
    run: RunSpec, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "run"
    shutil.copytree(whole, output)
    monkeypatch.setattr(Evaluation, "_measure", lambda *given: pytest.fail("measured"))
    fit(run, output, resume=True)
    assert_same(whole, output)


def test_a_signal_while_the_last_checkpoint_is_written_is_heard(
    run: RunSpec, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output, ends = tmp_path / "run", Checkpoint.on_train_end

    def signalled_there(self: Checkpoint, *given: Any) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        ends(self, *given)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Checkpoint, "on_train_end", signalled_there)
        fit(run, output)
    assert not (output / "bundle").exists()
    fit(run, output, resume=True)
    assert_same(whole, output)


def test_what_was_left_to_measure_may_end_a_run(run: RunSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second score is no better by enough: resumed, it makes no update more."""
    run = dataclasses.replace(run, early_stopping=EarlyStoppingSpec(SCORE, patience=1, least=1000.0))
    with monkeypatch.context() as patch:
        signalled(patch, 4)
        with pytest.raises(KeyboardInterrupt):
            fit(run, tmp_path / "run")
    fit(run, tmp_path / "run", resume=True)
    assert measured_steps(tmp_path / "run") == [2, 4]
    assert "trained for 4 updates" in (tmp_path / "run" / "bundle" / "README.md").read_text()
