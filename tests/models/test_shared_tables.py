"""A decoder that shares an encoder's token embeddings: one table, in forward, gradient, state and optimizer."""

from __future__ import annotations

import copy
import dataclasses
from typing import Any

import pytest
import torch
from decoders import BOS, EOS, ROWS, build, decoder, padded
from tiny import SIDE, VOCABULARY
from torch.nn import functional as F
from torch.testing import assert_close

from mmformer.errors import InputError
from mmformer.models.decoder import DecoderSpec
from mmformer.models.encoder import EncoderSpec
from mmformer.models.model import ModelSpec
from mmformer.nn.attention import AttentionSpec
from mmformer.nn.layer import LayerSpec
from mmformer.nn.stack import StackSpec
from mmformer.tokenizers.image import ImagePatchesSpec
from mmformer.tokenizers.text import TextTokensSpec
from mmformer.training.parameter_groups import decays
from mmformer.types import Batch

SOURCE = [[20, 21, 22, EOS], [23, EOS], [24, 25, EOS]]
WORDS = TextTokensSpec(VOCABULARY, context_length=16)


def spec(shares: str | None = "source", width: int = 16, **changes: Any) -> ModelSpec:
    reader = StackSpec(width, 1, LayerSpec(AttentionSpec(2)))
    writer = StackSpec(16, 1, LayerSpec(AttentionSpec(2), cross=AttentionSpec(2)), memory_width=width)
    source = EncoderSpec(dataclasses.replace(WORDS, begin=True, context_length=20), "reader")
    caption = DecoderSpec(WORDS, "writer", {"source": "cross"}, shares=shares, **changes)
    return ModelSpec({"reader": reader, "writer": writer}, {"source": source}, {"caption": caption})


def loss(model: Any) -> torch.Tensor:
    outputs = model(Batch((), {}, text=padded(SOURCE), target=padded(ROWS)))
    total: torch.Tensor = outputs.losses["caption"].total
    return total


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
def test_one_table_is_two_that_are_equal_and_its_gradient_their_sum(tied: bool) -> None:
    one, two = build(spec(tied=tied, logit_scale=0.25)), build(spec(None, tied=tied, logit_scale=0.25))
    name, theirs = "encoders.source.tokenizer.weight", "decoders.caption.tokenizer.weight"
    assert set(two.state_dict()) - set(one.state_dict()) == {theirs}
    state = one.state_dict()
    two.load_state_dict({**state, theirs: state[name]})
    assert_close(loss(one), loss(two), rtol=0, atol=0)
    loss(one).backward()
    loss(two).backward()
    gradients = dict(two.named_parameters())
    shared = dict(one.named_parameters())[name].grad
    assert gradients[name].grad is not None and gradients[theirs].grad is not None
    assert_close(shared, gradients[name].grad + gradients[theirs].grad)
    assert (gradients[theirs].grad != 0).any() and (gradients[name].grad != 0).any()
    if tied:
        assert shared is not None and shared.abs().amax(1).all(), "logits are over all of its rows"


def test_it_is_one_wherever_the_model_goes() -> None:
    model = build(spec())
    table = model.encoders["source"].tokenizer.weight  # type: ignore[union-attr]
    assert decoder(model).tokenizer.table is table is decoder(model).pieces._base
    other = copy.deepcopy(model).float()
    assert decoder(other).tokenizer.table is other.encoders["source"].tokenizer.weight  # type: ignore[union-attr]
    assert decoder(other).tokenizer.table is not table
    assert decoder(other).tokenizer.table.dtype == torch.float32
    with torch.device("meta"):
        empty = spec().build()
    empty.load_state_dict({key: value.float() for key, value in model.state_dict().items()}, assign=True)
    assert_close(loss(empty.eval()), loss(other), rtol=1e-5, atol=1e-5)
    names = [name for name, _, decayed in decays(model) if name.endswith("tokenizer.weight") and not decayed]
    assert names == ["encoders.source.tokenizer.weight"]


def test_first_weights_are_those_of_the_encoder_alone() -> None:
    one, two = spec().build(), spec(None).build()
    one.initialise(3)
    two.initialise(3)
    own = two.state_dict()
    assert all(torch.equal(value, own[name]) for name, value in one.state_dict().items())


def test_its_first_id_and_its_length_are_its_own() -> None:
    model = build(spec())
    assert decoder(model).tokenizer.start == BOS
    assert model.spec.text_encoders()["text"].spec.context_length == 20
    assert model.spec.text_encoders()["target"].spec.context_length == 16


def test_logits_are_scaled_and_moved() -> None:
    made = spec(None)
    plain, model = build(made), build(spec(None, logit_scale=0.25, logit_bias=True))
    bias = decoder(model).logit_bias
    assert bias is not None and not bias.any() and bias.shape == (8192,)
    model.load_state_dict({**plain.state_dict(), "decoders.caption.logit_bias": torch.randn(8192)})
    x = torch.randn(2, 16, dtype=torch.float64)
    assert_close(decoder(model).logits(x), decoder(plain).logits(x) / 4 + bias)
    outputs = model(Batch((), {}, text=padded(SOURCE), target=padded(ROWS)))
    x = torch.cat([outputs.tokens["caption"].x[index, : len(row)] for index, row in enumerate(ROWS)])
    wanted = F.cross_entropy(decoder(model).logits(x), torch.tensor([i for row in ROWS for i in row]), reduction="sum")
    assert_close(outputs.losses["caption"].total, wanted)
    gradient = torch.autograd.grad(outputs.losses["caption"].total, bias, retain_graph=True)
    assert_close(gradient, torch.autograd.grad(wanted, bias))


OTHER, ELSE = TextTokensSpec(None, 16, rows=99), TextTokensSpec("other.model", 16)
EYE = EncoderSpec(ImagePatchesSpec(patch=SIDE), "reader")


@pytest.mark.parametrize(
    ("made", "told"),
    [
        (lambda: spec("sorce"), "decoders.caption.shares is 'sorce', but the encoders are source. Did you mean"),
        (lambda: spec(width=8), r"its width of the stack is 16, and there it is 8: make them the same"),
        (
            lambda: dataclasses.replace(spec(), encoders={"source": EncoderSpec(OTHER, "reader")}),
            "shares the token embeddings of model.encoders.source, but its rows is None, and there it is 99: make",
        ),
        (
            lambda: dataclasses.replace(spec(), encoders={"source": EncoderSpec(ELSE, "reader")}),
            "but its vocabulary is '.*emoji-12.model', and there it is 'other.model': make them the same",
        ),
        (
            lambda: dataclasses.replace(spec(), encoders={"source": EYE}),
            "but that reads image: name a text encoder, or leave shares out",
        ),
        (lambda: spec(logit_scale=0.0), "logit_scale"),
    ],
)
def test_what_cannot_be_shared_is_refused(made: Any, told: str) -> None:
    with pytest.raises(InputError, match=told):
        made()
