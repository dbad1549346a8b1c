"""Runs of what convolves, drops patches, or holds timm's BatchNorm: resumed as in one go, in parts as the whole."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny import tiny_batch, tiny_run, write_shards
from torch import Tensor

from mmformer.models.model import ModelSpec
from mmformer.nn.attention import AttentionSpec
from mmformer.nn.convolution import ConvolutionSpec, GridConvolutionSpec
from mmformer.nn.layer import LayerSpec
from mmformer.nn.stack import StackSpec
from mmformer.tokenizers.image import ConvolutionalStemSpec
from mmformer.tokenizers.mobilevit import MobileViTBlockSpec
from mmformer.tokenizers.timm_features import TimmFeaturesSpec
from mmformer.tokenizers.tokenizer import TokenizerSpec
from mmformer.training.accumulate import accumulate
from mmformer.training.fit import fit
from mmformer.training.run import RunSpec
from mmformer.training.schedule import ConstantScheduleSpec

BLOCK = MobileViTBlockSpec(StackSpec(8, 1, LayerSpec(AttentionSpec(2))))
TOKENIZERS = [
    TimmFeaturesSpec(name="test_resnet", level=1),
    ConvolutionalStemSpec(channels=(8,), blocks=(BLOCK,)),
]


def make_run(shards: Path, tokenizer: TokenizerSpec, steps: int, patch_dropout: float = 0.5) -> RunSpec:
    run = tiny_run(shards, steps=steps, data={"test": None}, schedule=ConstantScheduleSpec(2))
    picture = dataclasses.replace(run.model.encoders["image"], tokenizer=tokenizer, patch_dropout=patch_dropout)
    mixers = {
        "image": (GridConvolutionSpec(None, activation=None), AttentionSpec(2), GridConvolutionSpec(2.0)),
        "text": (AttentionSpec(2), ConvolutionSpec(gated=True)),
    }
    stacks = {
        name: StackSpec(16, len(each), pattern=tuple(LayerSpec(mixer, feedforward=None) for mixer in each))
        for name, each in mixers.items()
    }
    model = ModelSpec(stacks, {"image": picture, "text": run.model.encoders["text"]}, heads=run.model.heads)
    return dataclasses.replace(run, model=model)


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_shards(tmp_path_factory.mktemp("shards"))


def weights(output: Path) -> dict[str, Tensor]:
    return load_file(output / "bundle" / "model.safetensors")


@pytest.mark.parametrize("tokenizer", TOKENIZERS, ids=lambda tokenizer: type(tokenizer).__name__)
def test_a_resumed_run_is_the_uninterrupted_one(tokenizer: TokenizerSpec, shards: Path, tmp_path: Path) -> None:
    """Patches that are dropped are a function of the update, and so all weights are."""
    fit(make_run(shards, tokenizer, 4), tmp_path / "whole")
    fit(make_run(shards, tokenizer, 2), tmp_path / "run")
    fit(make_run(shards, tokenizer, 4), tmp_path / "run", resume=True)
    one, other = weights(tmp_path / "run"), weights(tmp_path / "whole")
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)
    still = [name for name in one if "running" in name or "num_batches" in name]
    assert bool(still) == isinstance(tokenizer, TimmFeaturesSpec)
    for name in still:
        assert one[name].unique().tolist() == [1.0 if name.endswith("var") else 0.0], "BatchNorm saw no batch"


@pytest.mark.parametrize("tokenizer", TOKENIZERS, ids=lambda tokenizer: type(tokenizer).__name__)
def test_a_batch_in_parts_is_the_whole_one(tokenizer: TokenizerSpec, shards: Path) -> None:
    """Without dropping, which draws anew for each part: no token depends on the rest of its batch."""
    run = make_run(shards, tokenizer, 1, patch_dropout=0.0)
    objectives = {name: spec.build() for name, spec in run.objectives.items()}
    batch, gradients = tiny_batch(["a red square", "blue", "two", "a large green square"]), []
    for parts in (1, 2):
        model = run.model.build().train()
        model.initialise(0)
        accumulate(model, objectives, dict.fromkeys(objectives, 1.0), batch, parts, lambda loss: loss.backward())
        gradients.append({name: parameter.grad for name, parameter in model.named_parameters()})
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradient, gradients[1][name], atol=1e-5, rtol=1e-3)
