"""A run from its spec to its folder: what is in it, what repeats it, and what is refused before anything is written."""

from __future__ import annotations

import csv
import dataclasses
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tiny import COLOURS, labels, tiny_model, tiny_run, write_shards
from torch import Tensor

from mmformer.bundle import load_bundle
from mmformer.cli.main import main
from mmformer.config import parse, read_yaml
from mmformer.data.loading import training_loader
from mmformer.evaluation.classification import AccuracySpec
from mmformer.evaluation.retrieval import RetrievalSpec
from mmformer.evaluation.zero_shot import ZeroShotSpec
from mmformer.objectives.classification import ClassificationSpec
from mmformer.objectives.contrastive import ContrastiveSpec
from mmformer.parallel.clipping import clip_gradients
from mmformer.training.accumulate import accumulate
from mmformer.training.evaluate import score_split
from mmformer.training.fit import fit, score_bundle
from mmformer.training.parameter_groups import decays
from mmformer.training.run import (
    CheckpointSpec,
    EvaluationSpec,
    LoggingSpec,
    RunSpec,
    default_output,
)
from mmformer.training.schedule import CosineScheduleSpec
from mmformer.training.task import TrainingTask
from mmformer.types import Batch


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_shards(tmp_path_factory.mktemp("shards"))


def rows(output: Path) -> list[dict[str, str]]:
    with (output / "metrics.csv").open() as file:
        return list(csv.DictReader(file))


def weights(output: Path, which: str = "bundle") -> dict[str, Tensor]:
    return load_file(output / which / "model.safetensors")


def equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.fixture(scope="module")
def full(shards: Path) -> RunSpec:
    """Two objectives, scores while training and at the end, TensorBoard."""
    run = tiny_run(shards, dropout=0.1, data={"labels": labels(shards)})
    return dataclasses.replace(
        run,
        model=tiny_model(0.1, classes=8),
        objectives={"contrastive": ContrastiveSpec(), "colour": ClassificationSpec(head="colour", weight=0.5)},
        evaluation=EvaluationSpec(
            {
                "retrieval": RetrievalSpec(recall=(1, 3)),
                "colour": AccuracySpec("colour"),
                "zero_shot": ZeroShotSpec("colour", str(shards / "colours.txt"), ("a {} square", "{}")),
            },
            every_steps=3,
        ),
        checkpoint=CheckpointSpec(every_steps=2, keep=2, best="retrieval/image_to_text/R@3"),
        logging=LoggingSpec(tensorboard=True),
        seed=5,
    )


@pytest.fixture(scope="module")
def done(full: RunSpec, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    output = tmp_path_factory.mktemp("runs") / "full"
    result = fit(full, output)
    assert result is not None
    return output, result.scores


def test_the_folder_has_what_the_design_says(done: tuple[Path, Any]) -> None:
    output, _ = done
    found = {str(path.relative_to(output)) for path in output.rglob("*") if path.is_file()}
    events = {name for name in found if name.startswith("tensorboard/events.out.tfevents.")}
    assert len(events) == 1
    bundle = {"model.safetensors", "model.yaml", "transforms.yaml", "README.md", "text.model"}
    pictures = {name for name in found if name.startswith("pictures/")}
    assert len(pictures) == 6
    assert all(re.fullmatch(r"pictures/(small|large)_\w+_square_\w+\.png", name) for name in pictures)
    assert found - events - pictures == {
        "config.yaml",
        "parameters.tsv",
        "metrics.csv",
        "timing.csv",
        "report.png",
        "tensorboard/hparams.yaml",
        *(f"checkpoints/step-00000000{step}/{name}" for step in (4, 6) for name in ("state.ckpt", "whole.json")),
        *(f"bundle/{name}" for name in bundle),
        *(f"best/{name}" for name in bundle),
    }


def test_metrics_have_a_row_for_each_step_that_something_was_logged_at(done: tuple[Path, Any]) -> None:
    """Every second update's losses, every third one's scores."""
    output, _ = done
    table = rows(output)
    assert [row["step"] for row in table] == ["2", "3", "4", "6"]
    training, validation = "train/loss", "validation/retrieval/image_to_text/R@1"
    assert [bool(row[training]) for row in table] == [True, False, True, True]
    assert [bool(row[validation]) for row in table] == [False, True, False, True]
    assert set(table[0]) - {"step"} == {
        "train/loss",
        "train/lr",
        "train/gradient_norm",
        "train/contrastive_scale",
        "train/contrastive/image_text",
        "train/colour/cross_entropy",
        *(f"validation/{name}" for name in SCORES),
    }
    row = table[0]
    weighted = float(row["train/contrastive/image_text"]) + 0.5 * float(row["train/colour/cross_entropy"])
    assert float(row["train/loss"]) == pytest.approx(weighted, abs=1e-4)
    schedule = CosineScheduleSpec(warmup_steps=2)
    for row in (table[0], table[2], table[3]):
        assert float(row["train/lr"]) == pytest.approx(3e-3 * schedule.factor(int(row["step"]) - 1, 6), rel=1e-4)


CLASSIFIED = ("accuracy", "top5", "per_class", "calibration_error", "cross_entropy")
SCORES = {
    *(
        f"retrieval/{way}/{name}"
        for way in ("image_to_text", "text_to_image")
        for name in ("R@1", "R@3", "median_rank")
    ),
    *(f"{metric}/{name}" for metric in ("colour", "zero_shot") for name in CLASSIFIED),
}


def test_scores_at_the_end_are_the_bundles(full: RunSpec, done: tuple[Path, Any]) -> None:
    output, scores = done
    assert set(scores) == SCORES
    assert scores["colour/accuracy"].chance == pytest.approx(100 / 8)
    assert scores["retrieval/image_to_text/R@1"].chance == pytest.approx(100 / 8)
    assert scores == score_bundle(full, output / "bundle", "test")
    model, transforms = load_bundle(output / "bundle")
    assert score_split(full, "test", model, "cpu") == scores
    assert transforms.classes == {"colour": list(COLOURS)}
    assert full.data.image is not None
    assert transforms.image == full.data.image.transform
    card = (output / "bundle" / "README.md").read_text()
    assert "trained for 6 updates of 8 samples" in card
    assert "## Scores on the held-out split test" in card


def test_the_best_bundle_has_the_best_score(full: RunSpec, done: tuple[Path, Any]) -> None:
    output, _ = done
    key = "validation/retrieval/image_to_text/R@3"
    best = max(float(row[key]) for row in rows(output) if row[key])
    scores = score_bundle(full, output / "best", "val")
    assert scores["retrieval/image_to_text/R@3"].value == pytest.approx(best)
    assert "Scores on split val" in (output / "best" / "README.md").read_text()


def test_config_yaml_repeats_the_run(full: RunSpec, done: tuple[Path, Any], tmp_path: Path) -> None:
    output, scores = done
    assert parse(RunSpec, read_yaml(output / "config.yaml"), "config.yaml") == full
    words = ["fit", "--config", str(output / "config.yaml"), "--output", str(tmp_path / "again")]
    assert main(words) == 0
    assert equal(weights(tmp_path / "again"), weights(output))
    assert rows(tmp_path / "again") == rows(output)
    assert score_bundle(full, tmp_path / "again" / "bundle", "test") == scores


def test_parameters_tsv_lists_every_parameter(done: tuple[Path, Any]) -> None:
    output, _ = done
    lines = (output / "parameters.tsv").read_text().splitlines()[1:]
    model, _ = load_bundle(output / "bundle")
    assert [line.split("\t")[0] for line in lines] == [name for name, _, _ in decays(model)]


def test_training_is_the_plain_loop(shards: Path, tmp_path: Path) -> None:
    """The same weights, bit for bit, as a loop of a few lines makes without Lightning."""
    run = dataclasses.replace(tiny_run(shards, dropout=0.0), evaluation=EvaluationSpec())
    fit(run, tmp_path / "run")
    model = run.model.build()
    model.initialise(run.seed)
    optimizer = run.optimizer.build(model)
    batches: Any = training_loader(run.data, run.model.text_encoders(), run.seed, 0, 6)
    for step, batch in enumerate(batches):
        assert isinstance(batch, Batch)
        for group in optimizer.param_groups:
            group["lr"] = run.optimizer.lr * run.schedule.factor(step, 6)
        optimizer.zero_grad()
        objectives = {"contrastive": ContrastiveSpec().build()}
        accumulate(model, objectives, {"contrastive": 1.0}, batch, 1, lambda loss: loss.backward())
        clip_gradients(model.parameters(), 1.0)
        optimizer.step()
    assert equal(weights(tmp_path / "run"), dict(model.state_dict()))


def test_training_learns(shards: Path, tmp_path: Path) -> None:
    run = tiny_run(shards, steps=40)
    fit(run, tmp_path / "run")
    table = rows(tmp_path / "run")
    assert float(table[-1]["train/loss"]) < float(table[0]["train/loss"]) - 0.3


CHANGES: dict[str, Any] = {
    "seed": lambda run: dataclasses.replace(run, seed=1),
    "max_steps": lambda run: with_trainer(run, max_steps=3),
    "precision": lambda run: with_trainer(run, precision="bf16-mixed"),
    "gradient_clip_val": lambda run: with_trainer(run, gradient_clip_val=0.01),
    "no clipping": lambda run: with_trainer(run, gradient_clip_val=None),
    "accumulate_grad_batches": lambda run: with_trainer(run, accumulate_grad_batches=2),
    "lr": lambda run: dataclasses.replace(run, optimizer=dataclasses.replace(run.optimizer, lr=1e-3)),
    "schedule": lambda run: dataclasses.replace(run, schedule=CosineScheduleSpec(0)),
}


def with_trainer(run: RunSpec, **changes: Any) -> RunSpec:
    return dataclasses.replace(run, trainer=dataclasses.replace(run.trainer, **changes))


@pytest.fixture(scope="module")
def plain(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[RunSpec, Path]:
    run = dataclasses.replace(tiny_run(shards, dropout=0.1, steps=2, data={"test": None}), checkpoint=CheckpointSpec())
    output = tmp_path_factory.mktemp("plain") / "run"
    fit(run, output)
    return run, output


@pytest.mark.parametrize("change", CHANGES)
def test_every_field_changes_the_weights(change: str, plain: tuple[RunSpec, Path], tmp_path: Path) -> None:
    run, output = plain
    fit(CHANGES[change](run), tmp_path / "run")
    changed = weights(tmp_path / "run")
    assert all(torch.isfinite(value).all() for value in changed.values())
    assert not equal(changed, weights(output))


def test_without_a_test_split_there_are_no_scores(plain: tuple[RunSpec, Path], tmp_path: Path) -> None:
    run, output = plain
    result = fit(run, tmp_path / "run")
    assert result is not None
    assert result.scores == {}
    assert (output / "bundle" / "model.safetensors").is_file()
    assert not (output / "best").exists()
    assert [path.name for path in (output / "checkpoints").iterdir()] == ["step-000000002"], "the last one"


def test_the_model_is_built_once(shards: Path) -> None:
    task = TrainingTask(tiny_run(shards))
    task.configure_model()
    model = task.built
    task.configure_model()
    assert task.built is model
    assert default_output("configs/runs/emoji.yaml") == Path("runs/emoji")
