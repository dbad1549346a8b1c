"""SIGKILL to one of two processes, or to both, while they write a checkpoint in parts or measure: resumed, the run ends
in the same bits, and read the same samples.
"""

from __future__ import annotations

import dataclasses
import json
import random
from pathlib import Path

import pytest
from killed import Moment
from killed_together import PLACES, assert_both_survive, fit_together, said
from tiny import tiny_run, write_shards

from mmformer.config import to_yaml
from mmformer.training.average import EMASpec
from mmformer.training.run import CheckpointSpec, EvaluationSpec

CHECKPOINT = "mmformer.training.checkpoint"
STATE = "mmformer.training.writing_state"


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Dropout, augmentation, sampled captions, averages, evaluation, the best bundle."""
    folder = tmp_path_factory.mktemp("run")
    run = tiny_run(write_shards(folder / "shards"), dropout=0.2, steps=8, data={"test": None})
    run = dataclasses.replace(
        run,
        ema=EMASpec(decay=0.9),
        trainer=dataclasses.replace(run.trainer, log_every_n_steps=1),
        evaluation=EvaluationSpec(run.evaluation.metrics, every_steps=4),
        checkpoint=CheckpointSpec(3, keep=1, best="retrieval/image_to_text/median_rank", mode="min"),
    )
    file = folder / "run.yaml"
    file.write_text(to_yaml(run), encoding="utf-8")
    return file


@pytest.fixture(scope="module")
def whole(file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The uninterrupted run."""
    output = tmp_path_factory.mktemp("whole") / "run"
    assert fit_together(file, output) == [0, 0], said(output)
    return output


def test_the_power_goes_between_the_parts_and_the_seal(file: Path, whole: Path, tmp_path: Path) -> None:
    moment = Moment(f"{CHECKPOINT}:seal", 2)
    assert_both_survive(file, whole, tmp_path / "run", {0: moment}, power=True)


@pytest.mark.slow
@pytest.mark.parametrize("power", [False, True], ids=["one", "both"])
@pytest.mark.parametrize(
    "deaths",
    [
        ({1: Moment(f"{CHECKPOINT}:write_part", 2)}, {0: Moment(f"{CHECKPOINT}:write_part", 1)}),
        ({1: Moment(f"{STATE}:save", 2, after=True)}, {0: Moment(f"{STATE}:save", 1, after=True)}),
        ({1: Moment(f"{CHECKPOINT}:write_part", 2, after=True)}, {0: Moment(f"{CHECKPOINT}:seal", 1)}),
        ({0: Moment("pathlib:Path.rename", 1)}, {0: Moment("pathlib:Path.rename", 1, after=True)}),
        ({0: Moment(f"{CHECKPOINT}:discard", 1)}, {0: Moment("shutil:rmtree", 3)}),
        (
            {1: Moment("mmformer.evaluation.metric:Metric.update", 2)},
            {0: Moment("mmformer.training.evaluate:of_all_ranks", 1)},
        ),
    ],
    ids=["before parts", "parts", "before the seal", "name", "removal", "evaluation"],
)
def test_each_stage(
    deaths: tuple[dict[int, Moment], ...], power: bool, file: Path, whole: Path, tmp_path: Path
) -> None:
    """Of a checkpoint in parts, and of an evaluation: the one process, then, in the run that goes on, the other."""
    assert_both_survive(file, whole, tmp_path / "run", *deaths, power=power)


@pytest.mark.slow
@pytest.mark.parametrize("number", range(24))
def test_drawn_moments(number: int, file: Path, whole: Path, tmp_path: Path) -> None:
    """From all calls of all places, in both processes by turns, alone and with the other."""
    rank, power, group = number % 2, number % 4 > 1, list(PLACES)[number % 3 == 2]
    calls = json.loads((whole.parent / f"calls-{rank}.json").read_text())
    draw = random.Random(number)
    place = draw.choice([place for place in PLACES[group] if calls.get(place)])
    moment = Moment(place, draw.randint(1, calls[place]), draw.random() < 0.5)
    assert_both_survive(file, whole, tmp_path / "run", {rank: moment}, power=power)


def test_every_place_is_come_by(whole: Path) -> None:
    """Otherwise nobody would die there."""
    calls = [json.loads((whole.parent / f"calls-{rank}.json").read_text()) for rank in range(2)]
    assert not [place for places in PLACES.values() for place in places if not calls[0].get(place)]
    assert calls[1].keys() < calls[0].keys(), "what the first process does alone"
