"""A decoder that goes on where an encoder left their stack: one pass, with the numbers and gradients of two."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from decoders import build
from tiny import VOCABULARY, in_double, tiny_batch
from torch import Tensor
from torch.testing import assert_close

from mmformer.models.decoder import DecoderSpec
from mmformer.models.encoder import EncoderSpec
from mmformer.models.model import Model, ModelSpec
from mmformer.nn.attention import AttentionSpec
from mmformer.nn.feedforward import GELUFeedForwardSpec
from mmformer.nn.layer import LayerSpec
from mmformer.nn.mamba import MambaSpec
from mmformer.nn.moe import MixtureOfExpertsSpec
from mmformer.nn.pool import ClassTokenPoolSpec, LastPoolSpec
from mmformer.nn.position import LearnedPositionSpec, PositionSpec
from mmformer.nn.rotary import RotaryPositionSpec
from mmformer.nn.stack import StackSpec
from mmformer.tokenizers.image import ImagePatchesSpec
from mmformer.tokenizers.text import TextTokensSpec
from mmformer.types import Batch, Outputs

WORDS = TextTokensSpec(VOCABULARY, context_length=16)
ALONE = LayerSpec(AttentionSpec(2), GELUFeedForwardSpec(2))
SEEING = dataclasses.replace(ALONE, mixer=None, cross=AttentionSpec(2))
TEXTS = ["red", "a small blue square", "", "green on the left and far away from all of the other ones"]
LAST: dict[str, Any] = {"pool": ClassTokenPoolSpec(), "class_token": True, "class_last": True}


def spec(
    text: dict[str, Any] | None = None,
    caption: dict[str, Any] | None = None,
    first: LayerSpec = ALONE,
    position: PositionSpec | None = None,
) -> ModelSpec:
    """CoCa, small: of four layers, a text is read by two, and a picture by the last."""
    stack = StackSpec(16, 4, pattern=(first, first, ALONE, SEEING), position=position or RotaryPositionSpec())
    stack = dataclasses.replace(stack, input_norm=True)
    read = {"causal": True, "layers": 2, "embedding": 12, **LAST, **(text or {})}
    return ModelSpec(
        {"image": StackSpec(16, 1, ALONE), "text": stack},
        {
            "image": EncoderSpec(ImagePatchesSpec(patch=8), "image"),
            "text": EncoderSpec(dataclasses.replace(WORDS, begin=True), "text", **read),
        },
        {"caption": DecoderSpec(WORDS, "text", {"image": "cross"}, shares="text", chunk=7, **(caption or {}))},
    )


def batch(made: ModelSpec) -> Batch:
    """Texts as the model's own half on the host makes them."""
    return tiny_batch(TEXTS)._replace(text=made.text_encoders()["text"].encode(TEXTS))


def apart(given: Batch) -> Batch:
    """The same, where what is to be written is said: a pass of the decoder's own."""
    return given._replace(target=given.written)


def ran(model: Model, given: Batch) -> tuple[Outputs, int]:
    """What a model makes, and how often the first layer of texts ran."""
    runs: list[int] = []
    hook = model.stack_of("text").layers[0].register_forward_hook(lambda *_: runs.append(1))
    outputs = model(given)
    hook.remove()
    return outputs, len(runs)


def numbers(outputs: Outputs) -> tuple[Tensor, ...]:
    """All that is learned from."""
    loss = outputs.losses["caption"]
    return loss.total / loss.items, outputs.embedding["text"], outputs.embedding["image"]


def check_alike(model: Model, given: Batch, once: int, twice: int = 2) -> None:
    parameters = list(model.parameters())
    found = []
    for each, runs in ((given, once), (apart(given), twice)):
        outputs, number = ran(model, each)
        assert number == runs
        made = numbers(outputs)
        total = made[0] + sum((x * torch.linspace(-1, 1, x.numel()).view_as(x)).sum() for x in made[1:])
        assert outputs.losses["caption"].items == given.text.lengths.sum() - len(TEXTS)  # type: ignore[union-attr]
        found.append((*made, *torch.autograd.grad(total, parameters, allow_unused=True)))
    for one, other in zip(*found, strict=True):
        assert (one is None) == (other is None)
        if one is not None:  # sums that nearly cancel hold rounding: of the largest, then
            assert_close(one, other, rtol=0, atol=5e-6 * float(other.detach().abs().max()))


GOING_ON: dict[str, ModelSpec] = {
    "class token behind": spec(),
    "shifted": spec({"class_shifted": True}),
    "no class token": spec({"class_token": False, "class_last": False, "pool": LastPoolSpec()}),
    "the encoder packed": spec({"packed": True}),
    "the decoder packed": spec(caption={"packed": True}),
    "learned positions": spec(position=LearnedPositionSpec(sizes=(17,), special=0)),
    "logits of its own": spec(caption={"tied": False}),
    "mamba": spec(first=LayerSpec(MambaSpec(states=4), feedforward=None)),
}


@pytest.mark.parametrize("kind", GOING_ON)
def test_one_pass_is_two(kind: str) -> None:
    made = GOING_ON[kind]
    check_alike(build(made).float(), batch(made), once=1)


def test_what_left_a_decoder_is_the_same() -> None:
    made = spec()
    model, given = in_double(build(made)), batch(made)
    one, two = (model(each).tokens["caption"] for each in (given, apart(given)))
    assert given.written is not None
    real = given.written.real
    assert torch.equal(one.pos, two.pos) and torch.equal(one.valid, two.valid)
    assert_close(one.x[real], two.x[real], rtol=1e-5, atol=1e-6)


BEGINNING: dict[str, ModelSpec] = {
    "a class token before": spec({"class_last": False, "class_token": False, "registers": 1, "pool": LastPoolSpec()}),
    "a table of its own": dataclasses.replace(
        spec(), decoders={"caption": dataclasses.replace(spec().decoders["caption"], shares=None)}
    ),
    "another context": dataclasses.replace(
        spec(),
        decoders={
            "caption": dataclasses.replace(
                spec().decoders["caption"], tokenizer=dataclasses.replace(WORDS, context_length=15)
            )
        },
    ),
}


@pytest.mark.parametrize("kind", BEGINNING)
def test_what_is_not_the_same_is_made_twice(kind: str) -> None:
    made = BEGINNING[kind]
    check_alike(build(made).float(), batch(made), once=2)


def test_texts_with_marks_or_without_a_beginning_are_read_anew() -> None:
    made = spec()
    model, given = build(made).float(), batch(made)
    assert given.text is not None
    marked = given._replace(text=given.text._replace(valid=given.text.real))
    assert ran(model, marked)[1] == 2
    assert_close(numbers(model(marked)), numbers(model(given)), rtol=1e-5, atol=1e-6)
    assert ran(model, given._replace(text=given.text._replace(begun=False)))[1] == 2
    assert ran(model, given._replace(text=None, target=given.written))[1] == 1, "there is no embedding"
    assert model(given, decode=False).losses == {}


def test_what_layers_ask_for_is_asked_once() -> None:
    """Dropout is drawn once, too: training is a pass through a stack as deep as it is."""
    experts = LayerSpec(AttentionSpec(2), MixtureOfExpertsSpec(experts=2), dropout=0.5)
    made = spec(first=experts)
    model = build(made).float().train()
    outputs, runs = ran(model, batch(made))
    assert runs == 1
    assert {name.split("/")[0] for name in outputs.aux} == {"text"}
    outputs.losses["caption"].total.backward()
    gradient = next(model.stack_of("text").layers[0].parameters()).grad
    assert gradient is not None and gradient.any(), "captions teach the layers that read texts alone"
