"""Layers that are applied several times, tokens that halt and samples that leave: two processes do what one does."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from launched import assert_alike, fit, rows
from tiny import COLOURS, labels, tiny_model, tiny_run, write_shards

from mmformer.config import to_yaml
from mmformer.evaluation.classification import AccuracySpec
from mmformer.models.exits import EarlyExitHeadSpec
from mmformer.nn.attention import AttentionSpec
from mmformer.nn.halting import HaltingSpec
from mmformer.nn.initialisation import GPT2InitialisationSpec
from mmformer.nn.sharing import SharingSpec
from mmformer.objectives.classification import ClassificationSpec
from mmformer.objectives.contrastive import ContrastiveSpec
from mmformer.training.run import EvaluationSpec, RunSpec


def run(shards: Path) -> RunSpec:
    model = tiny_model()
    # The gradient of keys' biases is zero but for rounding, which Adam makes steps of.
    layer = dataclasses.replace(model.stacks["image"].layer, mixer=AttentionSpec(2, bias=False))
    shared = dataclasses.replace(model.stacks["image"], depth=4, layer=layer, sharing=SharingSpec(2, "cycle"))
    halting = dataclasses.replace(
        model.stacks["text"],
        depth=3,
        layer=layer,
        sharing=SharingSpec(step_signal=True),
        halting=HaltingSpec(),
        initialisation=GPT2InitialisationSpec(),
    )
    heads = {**model.heads, "colour": EarlyExitHeadSpec("image", len(COLOURS), exits=(0, 2), threshold=0.2)}
    model = dataclasses.replace(model, stacks={"image": shared, "text": halting}, heads=heads)
    made = tiny_run(shards, data={"labels": labels(shards)}, model=model, seed=1)
    return dataclasses.replace(
        made,
        objectives={"contrastive": ContrastiveSpec(), "colour": ClassificationSpec(head="colour")},
        trainer=dataclasses.replace(made.trainer, log_every_n_steps=1),
        evaluation=EvaluationSpec({"colour": AccuracySpec("colour")}, every_steps=3),
    )


@pytest.mark.slow
@pytest.mark.parametrize("parts", ["1", "2"])
def test_two_processes_train_what_one_trains(parts: str, tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text(to_yaml(run(write_shards(tmp_path / "shards"))), encoding="utf-8")
    micro = ("--trainer.accumulate_grad_batches", parts)
    fit(file, tmp_path / "one", *micro)
    fit(file, tmp_path / "two", "--parallel.shard", "2", *micro)
    assert_alike(tmp_path / "one", tmp_path / "two")
    assert {"train/aux/text/ponder", "train/aux/text/applications"} <= rows(tmp_path / "two")[0].keys()
