"""Without its tokens, a model makes the same embeddings and logits, and does not compute what nobody reads."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from tiny import VOCABULARY, in_double, tiny_batch, tiny_model
from torch import Tensor, nn
from torch.testing import assert_close

from mmformer.models.decoder import DecoderSpec
from mmformer.models.encoder import EncoderSpec
from mmformer.models.head import ClassificationHeadSpec, MeanLogitsHeadSpec
from mmformer.models.model import Model, ModelSpec
from mmformer.nn.attention import AttentionSpec
from mmformer.nn.layer import LayerSpec
from mmformer.nn.norm import LayerNormSpec
from mmformer.nn.pool import (
    AttentionPoolSpec,
    ClassTokenPoolSpec,
    FirstPoolSpec,
    JoinedPoolSpec,
    LastPoolSpec,
    MeanPoolSpec,
)
from mmformer.nn.resampler import AttentionResamplerSpec
from mmformer.nn.stack import StackSpec
from mmformer.objectives.contrastive import ContrastiveSpec
from mmformer.objectives.objective import Objective
from mmformer.tokenizers.image import ImagePatchesSpec
from mmformer.tokenizers.text import TextTokensSpec
from mmformer.training.accumulate import accumulate
from mmformer.training.norms import ActivationNorms
from mmformer.types import Batch, LossTerm, Outputs

TEXTS = ["red", "a small blue square", "", "green on the left"]
WORDS = TextTokensSpec(VOCABULARY, context_length=16)
TRUNK = StackSpec(16, 3, LayerSpec(AttentionSpec(heads=2)))

FEW: dict[str, dict[str, Any]] = {
    "class token": {"pool": ClassTokenPoolSpec(), "class_token": True},
    "second special": {"pool": ClassTokenPoolSpec(index=1), "class_token": True, "registers": 2},
    "two special": {"pool": ClassTokenPoolSpec(number=2), "class_token": True, "registers": 1},
    "first": {"pool": FirstPoolSpec(), "registers": 2},
    "last": {"pool": LastPoolSpec()},
    "last, causal": {"pool": LastPoolSpec(), "causal": True},
    "last, of the first layers": {"pool": LastPoolSpec(), "layers": 2},
    "last, normed, projected": {"pool": LastPoolSpec(), "norm": LayerNormSpec(), "embedding": 5},
}
ALL: dict[str, dict[str, Any]] = {
    "mean": {"pool": MeanPoolSpec()},
    "attention": {"pool": AttentionPoolSpec(AttentionSpec(2))},
    "joined": {"pool": JoinedPoolSpec((FirstPoolSpec(), MeanPoolSpec()))},
    "class token last": {"pool": ClassTokenPoolSpec(), "class_token": True, "class_last": True, "causal": True},
    "resampled": {"pool": LastPoolSpec(), "resampler": AttentionResamplerSpec(4, attention=AttentionSpec(2))},
}


def built(encoder: EncoderSpec, **parts: Any) -> Model:
    model = ModelSpec({"trunk": TRUNK}, {"text": encoder}, **parts).build().eval()
    model.initialise(0)
    return in_double(model)


def entered(model: Model) -> list[int]:
    """How many tokens enter the feed-forward of each layer, from here on."""
    found: list[int] = []

    def note(_: nn.Module, inputs: tuple[Any, ...]) -> None:
        found.append(inputs[0][..., 0].numel())

    for layer in model.stack_of("trunk").layers:
        layer.feedforward.register_forward_pre_hook(note)  # type: ignore[union-attr]
    return found


@pytest.mark.parametrize("packed", [False, True], ids=["", "packed"])
@pytest.mark.parametrize("name", [*FEW, *ALL])
def test_the_embedding_is_the_same(name: str, packed: bool) -> None:
    spec = EncoderSpec(WORDS, "trunk", packed=packed, **{**FEW, **ALL}[name])
    model, batch = built(spec), tiny_batch(TEXTS)._replace(image=None)
    whole = model(batch)
    found = entered(model)
    alone = model(batch, tokens=False)
    assert_close(alone.embedding["text"], whole.embedding["text"], rtol=1e-12, atol=1e-12)
    assert list(whole.tokens) == ["text"]
    assert list(alone.tokens) == ([] if name in FEW else ["text"])
    assert (found[-1] == len(TEXTS) * spec.pool.special or found[-1] == len(TEXTS)) == (name in FEW), found


@pytest.mark.parametrize("kind", ["decoder", "head with a pool"])
def test_what_some_part_reads_is_there(kind: str) -> None:
    images = EncoderSpec(ImagePatchesSpec(patch=8), "trunk", ClassTokenPoolSpec(), class_token=True)
    stacks, parts = {"trunk": TRUNK}, dict[str, Any]()
    if kind == "decoder":
        crossed = LayerSpec(AttentionSpec(2), cross=AttentionSpec(2))
        stacks["writer"] = StackSpec(16, 1, crossed)
        parts["decoders"] = {"writer": DecoderSpec(WORDS, "writer", {"image": "cross"})}
    else:
        parts["heads"] = {"classes": ClassificationHeadSpec("image", 3, pool=MeanPoolSpec())}
    model = ModelSpec(stacks, {"image": images}, **parts).build().eval()
    model.initialise(0)
    batch = tiny_batch(TEXTS)
    whole, alone = (model(batch, decode=False, tokens=tokens) for tokens in (True, False))
    assert torch.equal(alone.tokens["image"].x, whole.tokens["image"].x)


def test_heads_of_embeddings_and_of_logits_read_no_tokens() -> None:
    heads = {
        "one": ClassificationHeadSpec("text", 3),
        "other": ClassificationHeadSpec("text", 3),
        "both": MeanLogitsHeadSpec("text", 3, ("one", "other")),
    }
    model, batch = built(EncoderSpec(WORDS, "trunk", LastPoolSpec()), heads=heads), tiny_batch(TEXTS)
    batch = batch._replace(image=None)
    alone, whole = model(batch, tokens=False), model(batch)
    assert alone.tokens == {}
    for name in heads:
        assert_close(alone.logits[name], whole.logits[name], rtol=1e-12, atol=1e-12)


def test_intermediates_are_whole() -> None:
    model, batch = built(EncoderSpec(WORDS, "trunk", LastPoolSpec())), tiny_batch(TEXTS)._replace(image=None)
    found = model(batch, ["text/2"], tokens=False)
    assert torch.equal(found.intermediates["text/2"], model(batch, ["text/2"]).intermediates["text/2"])


def test_a_sample_without_ids_has_no_place_in_packed_rows() -> None:
    """What it is in rows of its own, it is there: nothing of others."""
    model = built(EncoderSpec(WORDS, "trunk", LastPoolSpec(), packed=True))
    batch = tiny_batch(TEXTS)._replace(image=None)
    assert batch.text is not None
    real = batch.text.real.clone()
    real[1] = False
    batch = batch._replace(text=batch.text._replace(valid=real))
    whole, alone = model(batch), model(batch, tokens=False)
    assert torch.equal(whole.embedding["text"], alone.embedding["text"])


def test_norms_of_a_last_layer_are_of_what_is_read() -> None:
    model, batch = built(EncoderSpec(WORDS, "trunk", LastPoolSpec())), tiny_batch(TEXTS)._replace(image=None)
    with ActivationNorms(model) as norms:
        model(batch, tokens=False)
    found = norms.read()
    hidden = model(batch, ["text/0", "text/2"]).intermediates
    assert batch.text is not None
    last = hidden["text/2"][torch.arange(len(TEXTS)), batch.text.lengths - 1]
    first = hidden["text/0"][batch.text.real]
    for layer, x in ((0, first), (2, last)):
        expected = x.square().mean().sqrt().float()
        assert_close(found[f"activation_rms/stacks.trunk.layers.{layer}"], expected, rtol=1e-5, atol=1e-6)


class Reading(Objective):
    """For this test: it notes whether it is handed tokens."""

    def __init__(self, reads: bool) -> None:
        self.reads_tokens, self.seen = reads, list[bool]()

    def items(self, batch: Batch) -> dict[str, Tensor]:
        return {"mean": torch.tensor(1.0)}

    def losses(self, outputs: Outputs, batch: Batch) -> dict[str, LossTerm]:
        self.seen.append("text" in outputs.tokens)
        total = outputs.embedding["text"].square().sum()
        return {"mean": LossTerm(total, torch.tensor(1.0))}


@pytest.mark.parametrize("parts", [1, 2])
@pytest.mark.parametrize("reads", [False, True])
def test_an_objective_says_whether_it_reads_tokens_and_the_gradient_is_the_same(reads: bool, parts: int) -> None:
    def gradients(whole: bool) -> dict[str, Tensor]:
        spec = tiny_model(dropout=0.0)
        text = dataclasses.replace(spec.encoders["text"], pool=LastPoolSpec())
        model = dataclasses.replace(spec, encoders={**spec.encoders, "text": text}).build().train()
        model.initialise(0)
        objective = Reading(whole)
        objectives: dict[str, Objective] = {"own": objective, "contrastive": ContrastiveSpec().build()}
        accumulate(
            in_double(model),
            objectives,
            dict.fromkeys(objectives, 1.0),
            tiny_batch(TEXTS),
            parts,
            lambda x: x.backward(),
        )
        assert objective.seen == [whole] * parts
        return {name: each.grad for name, each in model.named_parameters() if each.grad is not None}

    found, expected = gradients(reads), gradients(True)
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        assert_close(found[name], gradient, rtol=1e-10, atol=1e-12)
