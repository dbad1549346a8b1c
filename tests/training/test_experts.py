"""Mixtures of experts in training: what they ask for is minimised and told, and balances move outside the optimizer."""

from __future__ import annotations

import csv
import dataclasses
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny import tiny_batch, tiny_model, tiny_run, write_shards

from mmformer.models.model import ModelSpec
from mmformer.nn.feedforward import GELUFeedForwardSpec
from mmformer.nn.moe import MixtureOfExpertsSpec
from mmformer.nn.router import TokenChoice, TokenChoiceSpec, rebalance, take_excess
from mmformer.objectives.classification import ClassificationSpec
from mmformer.training.accumulate import accumulate
from mmformer.training.fit import fit
from mmformer.training.parameter_groups import parameter_table, settings
from mmformer.training.run import CheckpointSpec, RunSpec

ROUTER = TokenChoiceSpec(top=1, renormalise=False, capacity=1.0, balance_loss=0.5, z_loss=0.25, balance_rate=0.125)
BALANCE = "stacks.image.layers.0.feedforward.router.balance"


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_shards(tmp_path_factory.mktemp("shards"))


def with_experts(model: ModelSpec, router: TokenChoiceSpec = ROUTER) -> ModelSpec:
    """A model whose image stack has experts."""
    stack = model.stacks["image"]
    experts = MixtureOfExpertsSpec(4, GELUFeedForwardSpec(ratio=1.0), router)
    stack = dataclasses.replace(stack, layer=dataclasses.replace(stack.layer, feedforward=experts))
    return dataclasses.replace(model, stacks={**model.stacks, "image": stack})


def run_of(shards: Path, router: TokenChoiceSpec = ROUTER, steps: int = 4) -> RunSpec:
    run = tiny_run(shards, steps=steps, data={"test": None}, checkpoint=CheckpointSpec(every_steps=2))
    run = dataclasses.replace(run, trainer=dataclasses.replace(run.trainer, log_every_n_steps=1))
    return dataclasses.replace(run, model=with_experts(run.model, router))


def rows(output: Path) -> list[dict[str, float]]:
    with (output / "metrics.csv").open() as file:
        return [{key: float(value) for key, value in row.items() if value} for row in csv.DictReader(file)]


def test_what_routers_ask_for_is_in_the_loss_and_in_the_table(shards: Path, tmp_path: Path) -> None:
    """The share that is dropped is in the table alone."""
    fit(run_of(shards), tmp_path / "run")
    trained = [row for row in rows(tmp_path / "run") if "train/loss" in row]
    assert len(trained) == 4
    for row in trained:
        asked = [value for name, value in row.items() if name.startswith("train/aux/") and "dropped" not in name]
        assert len(asked) == 2 and row["train/aux/image/balance"] > 0.4 and row["train/aux/image/router_z"] > 0.25
        objectives = row["train/contrastive/image_text"]
        assert row["train/loss"] == pytest.approx(objectives + sum(asked), rel=1e-5)
        assert 0 < row["train/aux/image/dropped"] < 1


def test_a_resumed_run_has_the_same_balances(shards: Path, tmp_path: Path) -> None:
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    fit(run_of(shards), whole)
    shutil.copytree(whole, resumed)
    shutil.rmtree(resumed / "checkpoints" / "step-000000004")
    fit(run_of(shards), resumed, resume=True)
    expected, found = (load_file(path / "bundle" / "model.safetensors") for path in (whole, resumed))
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
    steps = (expected[BALANCE] / ROUTER.balance_rate).tolist()
    assert all(abs(step) <= 4 and step == int(step) for step in steps) and any(steps)


def test_weights_of_what_is_asked_matter(shards: Path, tmp_path: Path) -> None:
    """A balance loss that counts for something leaves experts chosen more evenly than one that counts for nothing."""
    uneven = {}
    for weight in (1e-6, 1.0):
        router = dataclasses.replace(ROUTER, balance_loss=weight, balance_rate=0.0, z_loss=0.0)
        fit(run_of(shards, router, steps=24), tmp_path / str(weight))
        last = rows(tmp_path / str(weight))[-8:]
        uneven[weight] = sum(row["train/aux/image/balance"] / weight for row in last if "train/loss" in row)
    assert uneven[1.0] < uneven[1e-6]


@pytest.mark.parametrize("parts", [1, 2])
def test_balances_move_by_the_whole_batch(parts: int) -> None:
    model = with_experts(tiny_model(classes=8)).build()
    model.initialise(0)
    texts = ["red", "blue", "a small blue square", "green"]
    objective = ClassificationSpec(head="colour")
    accumulate(model, {"c": objective.build()}, {"c": 1.0}, tiny_batch(texts), parts, lambda loss: loss.backward())
    balance = model.get_parameter(BALANCE)
    assert balance.grad is not None and float(balance.grad.abs().max()) >= 1
    assert float(balance.grad.sum()) == 0
    tokens = 4 * 4  # of four pictures
    load = (balance.grad + tokens) / 4
    assert bool((load >= 0).all()) and load.sum() == tokens
    assert torch.equal(load, load.round())
    rebalance(take_excess(model))
    assert balance.grad is None
    assert set((balance.detach() / 0.125).tolist()) <= {-1.0, 0.0, 1.0}
    listed = settings(model, 0.1)
    assert BALANCE not in {each.name for each in listed}, "no optimizer has it"
    (row,) = (line for line in parameter_table(model, 1e-3, listed).splitlines() if line.startswith(BALANCE))
    assert row.split("\t") == [BALANCE, "4", "4", "0.0", "0.0", "by itself", "no"]
    assert isinstance(model.get_submodule(BALANCE.removesuffix(".balance")), TokenChoice)
