"""Mixtures of experts over two processes: what routers ask for, drop, and are balanced by is one process's."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import pytest
import torch
from launched import assert_alike, fit, rows
from safetensors.torch import load_file
from tiny import tiny_model, tiny_run, write_shards

from mmformer.config import to_yaml
from mmformer.nn.attention import AttentionSpec
from mmformer.nn.feedforward import GELUFeedForwardSpec, SwiGLUFeedForwardSpec
from mmformer.nn.moe import MixtureOfExpertsSpec
from mmformer.nn.router import ExpertChoiceSpec, TokenChoiceSpec
from mmformer.training.average import EMASpec
from mmformer.training.optimizers.adamw import AdamWSpec
from mmformer.training.run import RunSpec

BALANCE = "stacks.text.layers.0.feedforward.router.balance"


def run(shards: Path, choosing: int = 3, chosen: int = 5) -> RunSpec:
    """Experts that choose in one layer of the pictures' stack, in the other dropped tokens; balances for texts.

    They are so many, which two processes share unevenly.
    """
    model, expert = tiny_model(), GELUFeedForwardSpec(ratio=1.0)
    # The gradient of keys' biases is zero but for rounding, which Adam makes steps of.
    layer = dataclasses.replace(model.stacks["image"].layer, mixer=AttentionSpec(2, bias=False))
    image = tuple(
        dataclasses.replace(layer, feedforward=MixtureOfExpertsSpec(choosing, expert, router))
        for router in (ExpertChoiceSpec(capacity=1.0), TokenChoiceSpec(top=1, renormalise=False, capacity=1.0))
    )
    balanced = TokenChoiceSpec(scores="sigmoid", balance_loss=0.0, balance_rate=0.125)
    text = MixtureOfExpertsSpec(chosen, expert, balanced, shared=SwiGLUFeedForwardSpec())
    stacks = {
        "image": dataclasses.replace(model.stacks["image"], layer=type(layer)(), pattern=image),
        "text": dataclasses.replace(model.stacks["text"], layer=dataclasses.replace(layer, feedforward=text)),
    }
    made = tiny_run(shards, model=dataclasses.replace(model, stacks=stacks), ema=EMASpec(0.5))
    return dataclasses.replace(made, trainer=dataclasses.replace(made.trainer, log_every_n_steps=1))


@pytest.mark.slow
def test_two_processes_train_what_one_trains_and_go_on_where_they_were(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text(to_yaml(run(write_shards(tmp_path / "shards"))), encoding="utf-8")
    one, two, resumed = (tmp_path / name for name in ("one", "two", "resumed"))
    fit(file, one)
    fit(file, two, "--parallel.shard", "2", "--trainer.accumulate_grad_batches", "2")
    assert_alike(one, two)
    told = rows(two)[0].keys()
    assert {f"train/aux/image/{name}" for name in ("balance", "router_z", "dropped")} <= told
    balance = load_file(two / "bundle" / "model.safetensors")[BALANCE]
    assert float(balance.abs().max()) > 0.1
    shutil.copytree(two, resumed)
    shutil.rmtree(resumed / "checkpoints" / "step-000000006")
    fit(file, resumed, "--parallel.shard", "2", "--trainer.accumulate_grad_batches", "2", "--resume")
    first, second = (load_file(path / "bundle" / "model.safetensors") for path in (two, resumed))
    assert all(torch.equal(first[name], second[name]) for name in first), "to the bit"


@pytest.mark.slow
def test_processes_that_share_out_the_experts_train_what_one_trains(tmp_path: Path) -> None:
    """Twenty updates of two and of four, and goings-on from two to one, and from one to four."""
    base = run(write_shards(tmp_path / "shards"), 4, 6)
    base = dataclasses.replace(
        base,
        data=dataclasses.replace(base.data, order=dataclasses.replace(base.data.order, lanes=4)),
        optimizer=AdamWSpec(lr=3e-3, eps=1e-3),  # a small one would make steps of rounding
        trainer=dataclasses.replace(base.trainer, max_steps=20, gradient_clip_val=0.5),
        evaluation=dataclasses.replace(base.evaluation, every_steps=10),
        checkpoint=dataclasses.replace(base.checkpoint, every_steps=10, keep=2),
    )
    file = tmp_path / "run.yaml"
    file.write_text(to_yaml(base), encoding="utf-8")
    one, two, four = (tmp_path / name for name in ("one", "two", "four"))
    pair, square = ("--parallel.expert", "2"), ("--parallel.expert", "2", "--parallel.shard", "2")
    for folder, words in ((one, ()), (two, pair), (four, square)):
        fit(file, folder, *words)
        assert_alike(one, folder)
    assert rows(four)[0]["train/aux/image/dropped"] > 0
    for before, name, words in ((two, "two and one", ()), (one, "one and four", square)):
        after = tmp_path / name
        shutil.copytree(before, after)
        shutil.rmtree(after / "bundle")
        shutil.rmtree(after / "checkpoints" / "step-000000020")
        fit(file, after, *words, "--resume")
        assert_alike(one, after)
