"""The range test of the learning rate: what it tries, where it ends, what it suggests and draws."""

from __future__ import annotations

import csv
import dataclasses
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tiny import tiny_run, write_shards

from mmformer.cli.main import main
from mmformer.config import to_yaml
from mmformer.errors import InputError
from mmformer.parallel.mesh import ParallelSpec
from mmformer.training.find_lr import RangeSpec, Trial, find_lr, suggest
from mmformer.training.find_lr_chart import draw_trials
from mmformer.training.parameter_groups import GroupSpec
from mmformer.training.run import RunSpec


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunSpec:
    return tiny_run(write_shards(tmp_path_factory.mktemp("shards")), dropout=0.1)


def made(loss: Any, number: int = 60) -> list[Trial]:
    """Trials from 1e-6 to 1 whose smoothed loss is a function of the rate's power of ten."""
    spec = RangeSpec(steps=number)
    return [Trial(spec.rate(n), 1.0, loss(math.log10(spec.rate(n)))) for n in range(number)]


def test_it_suggests_where_the_loss_falls_fastest() -> None:
    found = suggest(made(lambda power: -1 / (1 + math.exp(-4 * (power + 3))) + max(0.0, power + 1) ** 2))
    assert found is not None
    assert math.log10(found) == pytest.approx(-3, abs=0.3)
    assert suggest(made(lambda power: 6 + power)) is None, "it rises from the beginning"


def test_rates_rise_by_a_factor_and_the_test_ends_where_it_diverges(run: RunSpec) -> None:
    trials = find_lr(run, RangeSpec(1e-5, 1e3, 60))
    rates = [trial.lr for trial in trials]
    assert rates[0] == pytest.approx(1e-5)
    ratios = np.array(rates[1:]) / np.array(rates[:-1])
    assert np.allclose(ratios, 1e8 ** (1 / 59))
    assert all(math.isfinite(trial.loss) for trial in trials)
    mean = 0.0
    for number, trial in enumerate(trials, 1):
        mean = 0.8 * mean + 0.2 * trial.loss
        assert trial.smoothed == pytest.approx(mean / (1 - 0.8**number))
    lowest = min(trial.smoothed for trial in trials)
    assert lowest < trials[0].smoothed, "it learns"
    assert all(trial.smoothed <= 4 * min(t.smoothed for t in trials[: n + 1]) for n, trial in enumerate(trials[:-1]))
    found = suggest(trials)
    assert found is not None
    assert 5e-5 < found < 0.1


def test_it_is_the_run_that_is_tried(run: RunSpec) -> None:
    """Its seed, its frozen parameters, its groups' rates: what it would train with."""
    spec = RangeSpec(1e-4, 1e-2, 10)
    plain = [trial.loss for trial in find_lr(run, spec)]
    assert plain == [trial.loss for trial in find_lr(run, spec)]
    optimizer = dataclasses.replace(run.optimizer, groups=(GroupSpec("stacks.*", 0.1),))
    for changed in (
        dataclasses.replace(run, seed=1),
        dataclasses.replace(run, freeze=("stacks.*",)),
        dataclasses.replace(run, optimizer=optimizer),
        dataclasses.replace(run, trainer=dataclasses.replace(run.trainer, precision="bf16-mixed")),
    ):
        assert [trial.loss for trial in find_lr(changed, spec)] != plain


def test_the_picture_has_the_curve_and_the_suggestion() -> None:
    trials = made(lambda power: 2 - 1 / (1 + math.exp(-4 * (power + 3))))
    one, other = (np.asarray(draw_trials(trials, found)) for found in (1e-3, None))
    assert one.shape == other.shape == (460, 760, 3)
    column = 70 + (760 - 70 - 24) // 2  # 1e-3 is in the middle of 1e-6 to 1
    green = (np.abs(one.astype(int) - np.array([0x2F, 0x8F, 0x5B])).sum(2) < 60).any(0)
    assert green[column - 2 : column + 3].any()
    assert not (np.abs(other[60:].astype(int) - np.array([0x2F, 0x8F, 0x5B])).sum(2) < 60).any()


def test_the_command(run: RunSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.chdir(tmp_path)
    Path("mine.yaml").write_text(to_yaml(run))
    assert main(["find-lr", "--config", "mine.yaml", "--updates", "30", "--lowest", "1e-4", "--highest", "0.1"]) == 0
    folder = Path("runs/mine-find-lr")
    with (folder / "find_lr.tsv").open() as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    assert [float(row["lr"]) for row in rows] == pytest.approx(
        [RangeSpec(1e-4, 0.1, 30).rate(n) for n in range(30)], rel=1e-5
    )
    with Image.open(folder / "find_lr.png") as image:
        assert image.size == (760, 460)
    said = capsys.readouterr().out
    assert "30 learning rates were tried: runs/mine-find-lr/find_lr.tsv" in said
    assert "begin with --optimizer.lr " in said
    assert not Path("runs/mine").exists(), "the run's own folder stays free"


REFUSED: list[tuple[str, str]] = [
    ("--updates 5", "RangeSpec.steps must be at least 10, but is 5"),
    ("--lowest 0", "RangeSpec.lowest must be positive"),
    ("--lowest 2", "RangeSpec.highest must be above lowest (2)"),
    ("--highest high", "--highest must be a number, but is 'high'"),
    ("--parallel.shard 2", "find-lr trains in one process"),
    ("--resume", "unknown option '--resume'"),
]


@pytest.mark.parametrize(("words", "message"), REFUSED)
def test_what_cannot_be_meant_is_refused(
    words: str, message: str, run: RunSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("mine.yaml").write_text(to_yaml(run))
    assert main(["find-lr", "--config", "mine.yaml", *words.split()]) == 2
    assert message in capsys.readouterr().err
    assert not Path("runs").exists()


def test_several_processes_are_refused(run: RunSpec) -> None:
    with pytest.raises(InputError, match="find-lr trains in one process"):
        find_lr(dataclasses.replace(run, parallel=ParallelSpec(shard=2)), RangeSpec())
