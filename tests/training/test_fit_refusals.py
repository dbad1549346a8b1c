"""What a run refuses, before anything is written: data, names and numbers that cannot work, and folders in use."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import pytest
from tiny import labels, tiny_model, tiny_run, write_shards

from mmformer.config import parse, read_yaml
from mmformer.errors import InputError
from mmformer.evaluation.zero_shot import ZeroShotSpec
from mmformer.objectives.classification import ClassificationSpec
from mmformer.training.fit import fit
from mmformer.training.run import CheckpointSpec, EvaluationSpec, RunSpec, TrainerSpec


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_shards(tmp_path_factory.mktemp("shards"))


@pytest.fixture(scope="module")
def plain(shards: Path) -> RunSpec:
    return dataclasses.replace(tiny_run(shards, steps=1, data={"test": None}), checkpoint=CheckpointSpec())


def test_an_output_that_is_there_is_not_overwritten(plain: RunSpec, tmp_path: Path) -> None:
    output = tmp_path / "run"
    fit(plain, output)
    (output / "mine.txt").touch()
    with pytest.raises(InputError, match=r"a run's output is there already: go on with it \(--resume\), replace it"):
        fit(plain, output)
    fit(dataclasses.replace(plain, seed=9), output, overwrite=True)
    assert not (output / "mine.txt").exists()
    assert parse(RunSpec, read_yaml(output / "config.yaml"), "x").seed == 9


def test_overwrite_removes_runs_only(plain: RunSpec, tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(InputError, match="holds something that is not a run's output"):
        fit(plain, tmp_path, overwrite=True)
    with pytest.raises(InputError, match="is a file, but must be a folder"):
        fit(plain, tmp_path / "thesis.tex")
    assert (tmp_path / "thesis.tex").read_text() == "years of work"


BROKEN: dict[str, tuple[Any, str]] = {
    "no shards": (lambda run, folder: with_data(run, source=str(folder / "no")), "no"),
    "no split": (lambda run, folder: with_data(run, train="trian"), "Did you mean 'train'"),
    "no validation split": (
        lambda run, folder: dataclasses.replace(
            with_data(run, validation="vall"), evaluation=EvaluationSpec(run.evaluation.metrics, 1)
        ),
        "Did you mean 'val'",
    ),
    "no test split": (lambda run, folder: with_data(run, test="tset"), "Did you mean 'test'"),
    "other classes": (
        lambda run, folder: dataclasses.replace(
            with_data(run, labels=labels(Path(run.data.source))),
            model=tiny_model(classes=5),
            objectives={"colour": ClassificationSpec(head="colour")},
        ),
        "model.heads.colour has 5 classes, but .*names 8",
    ),
    "other prompts": (
        lambda run, folder: dataclasses.replace(
            with_data(run, labels=labels(Path(run.data.source))),
            evaluation=EvaluationSpec({"zero": ZeroShotSpec("colour", names_file(folder, "red\nblue"))}),
        ),
        "evaluation.metrics.zero: .*names 2 classes, but the label 'colour' has 8",
    ),
    "no prompts": (
        lambda run, folder: dataclasses.replace(
            with_data(run, labels=labels(Path(run.data.source))),
            evaluation=EvaluationSpec({"zero": ZeroShotSpec("colour", str(folder / "nowhere.txt"))}),
        ),
        "nowhere.txt: the class names cannot be read",
    ),
    "no such label": (
        lambda run, folder: dataclasses.replace(
            run, model=tiny_model(classes=8), objectives={"colour": ClassificationSpec(head="colour")}
        ),
        "reads the label 'colour', but data.labels has none",
    ),
    "unknown best score": (
        lambda run, folder: dataclasses.replace(
            run, evaluation=EvaluationSpec(run.evaluation.metrics, 1), checkpoint=CheckpointSpec(best="retrieva/R@1")
        ),
        "checkpoint.best is 'retrieva/R@1'.*Did you mean 'retrieval'",
    ),
}


def names_file(folder: Path, text: str) -> str:
    path = folder / "names.txt"
    path.write_text(text)
    return str(path)


def with_data(run: RunSpec, **changes: Any) -> RunSpec:
    return dataclasses.replace(run, data=dataclasses.replace(run.data, **changes))


@pytest.mark.parametrize("case", BROKEN)
def test_what_cannot_work_is_told_before_anything_is_written(case: str, shards: Path, tmp_path: Path) -> None:
    change, message = BROKEN[case]
    run = tiny_run(shards)
    with pytest.raises(InputError, match=message):
        fit(change(run, tmp_path), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: TrainerSpec(max_steps=0), "TrainerSpec.max_steps must be at least 1"),
        (lambda: TrainerSpec(gradient_clip_val=0.0), "TrainerSpec.gradient_clip_val must be None or positive"),
        (lambda: TrainerSpec(gradient_clip_val=math.nan), "TrainerSpec.gradient_clip_val must be None or positive"),
        (lambda: TrainerSpec(accumulate_grad_batches=0), "TrainerSpec.accumulate_grad_batches must be at least 1"),
        (lambda: TrainerSpec(log_every_n_steps=0), "TrainerSpec.log_every_n_steps must be at least 1"),
        (lambda: CheckpointSpec(every_steps=0), "CheckpointSpec.every_steps must be None or at least 1"),
        (lambda: CheckpointSpec(every_minutes=0.0), "CheckpointSpec.every_minutes must be None or positive"),
        (lambda: CheckpointSpec(keep=0), "CheckpointSpec.keep must be at least 1"),
        (lambda: EvaluationSpec(every_steps=0), "EvaluationSpec.every_steps must be None or at least 1"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_values_out_of_range_are_refused(make: Any, message: str) -> None:
    with pytest.raises(InputError) as caught:
        make()
    assert str(caught.value).startswith(message)
