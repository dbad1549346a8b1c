"""A run ends when its score has got no better, resumed or not; and the best of its models are kept."""

from __future__ import annotations

import csv
import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from killed import fit_killed_and_resumed
from safetensors.torch import load_file
from tiny import tiny_run, write_shards

from mmformer.errors import InputError
from mmformer.evaluation.metric import Score
from mmformer.training import evaluate as evaluation
from mmformer.training.checkpoint import whole_checkpoints
from mmformer.training.fit import fit
from mmformer.training.run import CheckpointSpec, EarlyStoppingSpec, EvaluationSpec, RunSpec

SCORE = "retrieval/image_to_text/R@1"
OTHER = "retrieval/text_to_image/R@1"


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_shards(tmp_path_factory.mktemp("shards"))


def measured_every_update(shards: Path, steps: int = 9, **changes: Any) -> RunSpec:
    run = tiny_run(shards, steps=steps, data={"test": None})
    return dataclasses.replace(run, evaluation=EvaluationSpec(run.evaluation.metrics, every_steps=1), **changes)


@pytest.fixture
def scores(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[int, float]]:
    """What evaluations after each update find, in place of what they would."""
    made: dict[int, float] = {}
    real = evaluation.Evaluation.on_train_batch_end

    def told(self: Any, trainer: Any, *args: Any) -> None:
        value = made[trainer.global_step]
        monkeypatch.setattr(evaluation, "evaluate", lambda *_: {SCORE: Score(value), OTHER: Score(value)})
        real(self, trainer, *args)

    monkeypatch.setattr(evaluation.Evaluation, "on_train_batch_end", told)
    yield made


def steps(output: Path) -> list[int]:
    with (output / "metrics.csv").open() as file:
        return [int(row["step"]) for row in csv.DictReader(file)]


def step_of_bundle(folder: Path) -> str:
    return (folder / "README.md").read_text().partition("trained for ")[2].partition(" updates")[0]


@pytest.mark.parametrize(
    ("spec", "last"),
    [
        (EarlyStoppingSpec(SCORE, patience=1), 3),
        (EarlyStoppingSpec(SCORE, patience=2), 7),
        (EarlyStoppingSpec(SCORE, patience=3), 9),
        (EarlyStoppingSpec(SCORE, patience=2, least=1.0), 4),
        (EarlyStoppingSpec(SCORE, patience=2, mode="min"), 3),
    ],
    ids=str,
)
def test_it_ends_when_the_score_gets_no_better(
    spec: EarlyStoppingSpec, last: int, shards: Path, tmp_path: Path, scores: dict[int, float]
) -> None:
    scores |= dict(enumerate([10, 12, 11, 12.5, 12.9, float("nan"), 12.9, 14, 15], 1))
    fit(measured_every_update(shards, early_stopping=spec), tmp_path / "run")
    assert steps(tmp_path / "run")[-1] == last
    assert step_of_bundle(tmp_path / "run" / "bundle") == str(last), "finished as it is"
    assert whole_checkpoints(tmp_path / "run")[-1].parent.name == f"step-{last:09d}"


def test_what_it_waited_is_resumed(
    shards: Path, tmp_path: Path, scores: dict[int, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    scores |= dict(enumerate([10, 9, 9, 9, 9, 9, 20, 9, 9], 1))
    run = measured_every_update(shards, early_stopping=EarlyStoppingSpec(SCORE, patience=5))
    run = dataclasses.replace(run, checkpoint=CheckpointSpec(every_steps=2))

    fit_killed_and_resumed(run, tmp_path / "run", 5, monkeypatch)
    assert steps(tmp_path / "run")[-1] == 6
    weights = load_file(tmp_path / "run" / "bundle" / "model.safetensors")
    # Resumed again, it is over; with more patience, it goes on.
    fit(run, tmp_path / "run", resume=True)
    again = load_file(tmp_path / "run" / "bundle" / "model.safetensors")
    assert all(torch.equal(value, again[name]) for name, value in weights.items())
    assert steps(tmp_path / "run")[-1] == 6
    fit(dataclasses.replace(run, early_stopping=EarlyStoppingSpec(SCORE, patience=6)), tmp_path / "run", resume=True)
    assert steps(tmp_path / "run")[-1] == 9


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"mode": "min"}, "mode: max before, min now"),
        (
            {"score": OTHER, "split": "train"},
            f"score: {SCORE} before, {OTHER} now; data.validation: val before, train now",
        ),
    ],
    ids=["mode", "score and split"],
)
def test_scores_of_another_measure_are_not_carried_over(
    change: dict[str, str],
    said: str,
    shards: Path,
    tmp_path: Path,
    scores: dict[int, float],
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The first three updates are scored by one measure, the others by one whose numbers are ten times less."""
    scores |= dict(enumerate([60, 50, 55, 6, 6.5, 5], 1))

    def measured(steps: int, score: str = SCORE, mode: Any = "max", split: str = "val") -> RunSpec:
        run = measured_every_update(shards, steps=steps)
        return dataclasses.replace(
            run,
            data=dataclasses.replace(run.data, validation=split),
            checkpoint=CheckpointSpec(every_steps=1, best=score, mode=mode),
            early_stopping=EarlyStoppingSpec(score, mode=mode, patience=3),
        )

    fit(measured(2), tmp_path / "run")
    fit(measured(3), tmp_path / "run", resume=True)
    assert "anew" not in capsys.readouterr().err
    fit(measured(6, **change), tmp_path / "run", resume=True)
    told = capsys.readouterr().err
    for field in ("checkpoint.best", "early_stopping"):
        assert (
            f"mmformer: {field}: the best score begins anew, for those so far are of another measure ({said})." in told
        )
    assert steps(tmp_path / "run")[-1] == 6, "it was not stopped by the scores before"
    assert step_of_bundle(tmp_path / "run" / "best") == ("6" if "mode" in change else "5")


def test_the_best_models_are_kept(shards: Path, tmp_path: Path, scores: dict[int, float]) -> None:
    scores |= dict(enumerate([10, 30, 20, 30, 5, float("nan")], 1))
    run = measured_every_update(shards, steps=6)
    for mode, keep, best, top in (("max", 3, 2, [2, 3, 4]), ("min", 2, 5, [1, 5]), ("max", 1, 2, [])):
        output = tmp_path / f"{mode}{keep}"
        spec = CheckpointSpec(every_steps=2, best=SCORE, mode=mode, keep_best=keep)  # type: ignore[arg-type]
        fit(dataclasses.replace(run, checkpoint=spec), output)
        kept = sorted(output.glob("top/*"))
        assert [folder.name for folder in kept] == [f"step-{step:09d}" for step in top]
        assert [step_of_bundle(folder) for folder in kept] == [str(step) for step in top]
        assert step_of_bundle(output / "best") == str(best), "the earlier of equals"


REFUSED: list[tuple[Any, str]] = [
    (lambda run: EarlyStoppingSpec(SCORE, patience=0), "EarlyStoppingSpec.patience must be at least 1"),
    (lambda run: EarlyStoppingSpec(SCORE, least=-1.0), "EarlyStoppingSpec.least must be at least 0"),
    (lambda run: CheckpointSpec(keep_best=0), "CheckpointSpec.keep_best must be at least 1"),
    (
        lambda run: dataclasses.replace(run, checkpoint=CheckpointSpec(keep_best=2)),
        "checkpoint.keep_best is of what checkpoint.best names",
    ),
    (
        lambda run: dataclasses.replace(run, early_stopping=EarlyStoppingSpec(SCORE), evaluation=EvaluationSpec()),
        "early_stopping.score needs scores while training",
    ),
    (
        lambda run: dataclasses.replace(run, early_stopping=EarlyStoppingSpec("retrievl/R@1")),
        "early_stopping.score is 'retrievl/R@1', but evaluation.metrics names retrieval. Did you mean 'retrieval'?",
    ),
    (
        lambda run: fit(
            dataclasses.replace(run, early_stopping=EarlyStoppingSpec("retrieval/image_to_text/R@2")), Path("nowhere")
        ),
        "early_stopping.score is 'retrieval/image_to_text/R@2', but the evaluation's scores are retrieval/",
    ),
]


@pytest.mark.parametrize(("make", "message"), REFUSED, ids=lambda value: value if isinstance(value, str) else "")
def test_what_cannot_be_meant_is_refused(make: Any, message: str, shards: Path) -> None:
    with pytest.raises(InputError) as caught:
        make(measured_every_update(shards))
    assert str(caught.value).startswith(message)
