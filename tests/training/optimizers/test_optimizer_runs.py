"""Optimizers in runs: named in YAML, moved by the schedule, resumed; and averages that an optimizer keeps itself."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from killed import fit_killed_and_resumed
from safetensors.torch import load_file
from test_optimizers import BASES
from tiny import tiny_run, write_shards
from torch import Tensor

from mmformer.config import from_yaml, parse, to_yaml
from mmformer.errors import InputError
from mmformer.training.average import EMASpec
from mmformer.training.checkpoint import whole_checkpoints
from mmformer.training.fit import fit
from mmformer.training.optimizers.optimizer import OptimizerSpec
from mmformer.training.optimizers.schedule_free import ScheduleFreeAdamWSpec
from mmformer.training.parameter_groups import GroupSpec
from mmformer.training.run import CheckpointSpec, EvaluationSpec, RunSpec
from mmformer.training.schedule import ConstantScheduleSpec, CosineScheduleSpec


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_shards(tmp_path_factory.mktemp("shards"))


def a_run(shards: Path, spec: OptimizerSpec, **changes: Any) -> RunSpec:
    run = tiny_run(shards, data={"test": None}, steps=4, optimizer=spec, schedule=ConstantScheduleSpec(1))
    return dataclasses.replace(run, **changes)


def weights(output: Path) -> dict[str, Tensor]:
    return load_file(output / "bundle" / "model.safetensors")


def equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return all(torch.equal(value, other[name]) for name, value in one.items())


USUAL = ("AdamWSpec", "MuonSpec", "ScheduleFreeAdamWSpec")
"""One of each kind of state. That each goes on from all of its own is in ``test_optimizers``, without a run."""


@pytest.mark.parametrize(
    "spec",
    [pytest.param(spec, marks=[] if type(spec).__name__ in USUAL else pytest.mark.slow) for spec in BASES],
    ids=lambda spec: type(spec).__name__,
)
def test_a_killed_run_goes_on_to_the_bit(
    spec: OptimizerSpec, shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As YAML names it, and with groups, whose rates the schedule moves."""
    spec = dataclasses.replace(spec, layer_decay=0.9, groups=(GroupSpec("heads.*", 2.0),))
    run = a_run(shards, spec)
    assert parse(RunSpec, from_yaml(to_yaml(run), ""), "") == run
    fit(run, tmp_path / "whole")

    fit_killed_and_resumed(run, tmp_path / "run", 3, monkeypatch)
    assert equal(weights(tmp_path / "run"), weights(tmp_path / "whole"))


def test_a_share_of_the_rate_is_that_of_the_schedule(shards: Path, tmp_path: Path) -> None:
    """Half of twice the rate is the rate, at every update; of some parameters alone, the others are moved as before."""
    run = tiny_run(shards, data={"test": None}, steps=3)
    every = dataclasses.replace(run.optimizer, lr=2 * run.optimizer.lr, groups=(GroupSpec("*", 0.5),))
    some = dataclasses.replace(run.optimizer, groups=(GroupSpec("heads.*", 0.5),))
    for name, optimizer in (("plain", run.optimizer), ("every", every), ("some", some)):
        fit(dataclasses.replace(run, optimizer=optimizer), tmp_path / name)
    assert equal(weights(tmp_path / "every"), weights(tmp_path / "plain"))
    assert not equal(weights(tmp_path / "some"), weights(tmp_path / "plain"))


def test_what_is_measured_and_kept_is_the_average(shards: Path, tmp_path: Path) -> None:
    """Of schedule-free AdamW; training goes on from where it was, whether it is measured or not."""
    run = a_run(shards, ScheduleFreeAdamWSpec(0.01))
    measured = dataclasses.replace(
        run,
        evaluation=EvaluationSpec(run.evaluation.metrics, every_steps=1),
        checkpoint=CheckpointSpec(best="retrieval/image_to_text/median_rank", mode="min", keep_best=9),
    )
    for name, each in (("run", run), ("measured", measured)):
        fit(each, tmp_path / name)
    kept = weights(tmp_path / "run")
    assert equal(kept, weights(tmp_path / "measured"))
    state = torch.load(whole_checkpoints(tmp_path / "run")[-1], weights_only=True)
    trained = {name.removeprefix("model."): value for name, value in state["state_dict"].items()}
    assert not equal(kept, trained)
    fast = state["optimizer_states"][0]["state"]
    groups = run.optimizer.build(built := run.model.build()).param_groups
    names = {id(parameter): name for name, parameter in built.named_parameters()}
    order = [names[id(parameter)] for group in groups for parameter in group["params"]]
    for place, name in enumerate(order):  # y = (1 - b) z + b x
        assert torch.allclose(0.1 * fast[place]["z"] + 0.9 * kept[name], trained[name], atol=1e-6), name
    top = load_file(tmp_path / "measured" / "top" / "step-000000004" / "model.safetensors")
    assert equal(top, kept), "after the last update it was measured as it is kept"
    assert "Its weights are averages" in (tmp_path / "run" / "bundle" / "README.md").read_text()


def test_averages_are_taken_once_and_at_a_rate_that_does_not_fall(shards: Path) -> None:
    run = a_run(shards, ScheduleFreeAdamWSpec())
    with pytest.raises(
        InputError, match=r"optimizer ScheduleFreeAdamWSpec averages the weights itself: set ema to null"
    ):
        dataclasses.replace(run, ema=EMASpec())
    for schedule in (CosineScheduleSpec(), ConstantScheduleSpec(1, cooldown_steps=2)):
        with pytest.raises(InputError, match=r"made for a rate that does not fall: set schedule to a ConstantSchedule"):
            dataclasses.replace(run, schedule=schedule)
