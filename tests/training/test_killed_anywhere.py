"""SIGKILL at any moment, in whatever a run is doing: resumed, it ends in the same bits, and read the same samples."""

from __future__ import annotations

import dataclasses
import json
import random
from pathlib import Path

import pytest
from killed import PLACES, Moment, assert_survives, fit_alone
from tiny import tiny_run, write_shards

from mmformer.training.average import EMASpec
from mmformer.training.run import CheckpointSpec, EvaluationSpec, RunSpec

CHECKPOINT = "mmformer.training.checkpoint"
WRITE = "mmformer.training.writing_state:_Teller.write"


def make_run(shards: Path, workers: int) -> RunSpec:
    """Dropout, augmentation, sampled captions, accumulation, averages, evaluation, the best bundle."""
    run = tiny_run(shards, dropout=0.2, steps=8, data={"workers": workers, "test": None})
    return dataclasses.replace(
        run,
        ema=EMASpec(decay=0.9),
        trainer=dataclasses.replace(run.trainer, accumulate_grad_batches=2, log_every_n_steps=1),
        evaluation=EvaluationSpec(run.evaluation.metrics, every_steps=4),
        checkpoint=CheckpointSpec(3, keep=1, best="retrieval/image_to_text/median_rank", mode="min"),
    )


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_shards(tmp_path_factory.mktemp("shards"))


@pytest.fixture(scope="module")
def whole(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The uninterrupted run."""
    output = tmp_path_factory.mktemp("whole") / "run"
    assert fit_alone(make_run(shards, 0), output) == 0
    return output


@pytest.mark.parametrize(
    ("workers", "moments"),
    [
        (
            0,
            (
                Moment("mmformer.training.fit:write_whole", 1),
                Moment(WRITE, 7),
            ),
        ),
        (0, (Moment(f"{CHECKPOINT}:seal", 2), Moment(f"{CHECKPOINT}:discard", 1, after=True))),
        (2, (Moment("mmformer.evaluation.metric:Metric.update", 2), Moment(f"{CHECKPOINT}:content_of", 2))),
    ],
    ids=["start, state", "seal, removal", "evaluation, hash, workers"],
)
def test_killed_twice_it_ends_in_the_same_bits(
    workers: int, moments: tuple[Moment, ...], shards: Path, whole: Path, tmp_path: Path
) -> None:
    assert_survives(make_run(shards, workers), whole, tmp_path / "run", *moments)


@pytest.mark.slow
@pytest.mark.parametrize("number", range(50))
def test_fifty_moments(number: int, shards: Path, whole: Path, tmp_path: Path) -> None:
    """Drawn from all calls of all places; by turns from what a run does there, and with and without workers."""
    calls = json.loads((whole.parent / "calls.json").read_text())
    draw = random.Random(number)
    places = [place for place in list(PLACES.values())[number % len(PLACES)] if calls.get(place)]
    place = draw.choice(places)
    moment = Moment(place, draw.randint(1, calls[place]), draw.random() < 0.5)
    assert_survives(make_run(shards, 2 * (number % 2)), whole, tmp_path / "run", moment)


def test_every_place_is_come_by(whole: Path) -> None:
    """Otherwise nothing would die there."""
    calls = json.loads((whole.parent / "calls.json").read_text())
    assert not [place for places in PLACES.values() for place in places if not calls.get(place)]
