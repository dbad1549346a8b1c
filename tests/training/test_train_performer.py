"""A run of Performers: directions change where they should, and a resumed run has those of an uninterrupted one."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import torch
from safetensors.torch import load_file
from tiny import tiny_run, write_shards

from mmformer.nn.performer import PerformerSpec, orthogonal_directions
from mmformer.training.fit import fit
from mmformer.training.run import RunSpec
from mmformer.training.schedule import ConstantScheduleSpec

PERFORMER = PerformerSpec(heads=2, features=8, redraw=3)


def make_run(shards: Path, steps: int) -> RunSpec:
    run = tiny_run(shards, steps=steps, data={"test": None}, schedule=ConstantScheduleSpec(2))
    stacks = {
        name: dataclasses.replace(stack, layer=dataclasses.replace(stack.layer, mixer=PERFORMER))
        for name, stack in run.model.stacks.items()
    }
    return dataclasses.replace(run, model=dataclasses.replace(run.model, stacks=stacks))


def test_a_resumed_run_is_the_uninterrupted_one(tmp_path: Path) -> None:
    shards = write_shards(tmp_path / "shards")
    fit(make_run(shards, 8), tmp_path / "whole")
    fit(make_run(shards, 4), tmp_path / "run")
    fit(make_run(shards, 8), tmp_path / "run", resume=True)
    one, other = (load_file(tmp_path / run / "bundle" / "model.safetensors") for run in ("run", "whole"))
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)
    drawn = [name for name in one if name.endswith("directions")]
    assert len(drawn) == 3
    for name in drawn:  # the last of the updates, 7, is two redraws from the first
        assert torch.equal(one[name], orthogonal_directions((2, 8, 8), PERFORMER.seed, 2).float())
