"""Decoders in a model: what they are handed, what of a batch they write, sharing, and gradients."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from decoders import READS, ROWS, WORDS, build, decoder, run, spec
from tiny import tiny_batch
from torch.testing import assert_close

from mmformer.errors import InputError
from mmformer.models.decoder import DecoderSpec
from mmformer.models.encoder import EncoderSpec
from mmformer.models.model import Model, ModelSpec
from mmformer.nn.attention import AttentionSpec
from mmformer.nn.feedforward import GELUFeedForwardSpec
from mmformer.nn.layer import LayerSpec
from mmformer.nn.position import LearnedPositionSpec
from mmformer.nn.rotary import RotaryPositionSpec
from mmformer.nn.stack import StackSpec
from mmformer.tokenizers.image import ImagePatchesSpec
from mmformer.types import Batch, Text


def built(made: ModelSpec) -> Model:
    """In float32, as pictures enter it."""
    return build(made).float()


def batch() -> Batch:
    return tiny_batch(["red", "a small blue square", ""])


@pytest.mark.parametrize("kind", READS)
def test_a_model_hands_it_what_its_encoders_made(kind: str) -> None:
    model, given = built(spec(kind)), batch()
    outputs = model(given)
    assert given.text is not None
    loss, decoded = decoder(model).loss(given.text, outputs.tokens, model.stack_of("writer"))
    assert set(outputs.losses) == {"caption"}
    assert_close(outputs.losses["caption"].total, loss.total)
    assert outputs.losses["caption"].items == given.text.lengths.sum()
    assert_close(outputs.tokens["caption"].x, decoded.tokens.x)
    assert set(outputs.embedding) == set(READS[kind]), "a decoder has none"
    if READS[kind]:
        assert given.image is not None
        other = model(given._replace(image=255 - given.image)).losses["caption"].total
        assert not torch.allclose(other, loss.total, rtol=1e-3)


def test_what_is_absent_leaves_it_out() -> None:
    model, given = built(spec("cross")), batch()
    assert model(given, decode=False).losses == {}
    assert list(model(given, decode=False).tokens) == ["image"]
    assert model(given._replace(text=None)).losses == {}
    alone = built(spec("alone"))
    assert set(alone(given._replace(image=None)).losses) == {"caption"}, "it reads nothing"
    with pytest.raises(InputError, match="This model reads image, but the batch has none of it"):
        model(given._replace(image=None))
    with pytest.raises(InputError, match="This model reads text, but the batch has none of it"):
        alone(given._replace(text=None))
    with pytest.raises(InputError, match="A decoder reads 'image', but there is nothing of it to read"):
        run(model, ROWS, {})


def test_it_writes_the_target_where_there_is_one() -> None:
    model, given = built(spec("cross")), batch()
    other = tiny_batch(["green", "far away", "pink and large"]).text
    both = model(given._replace(target=other)).losses["caption"]
    alone = model(given._replace(text=other)).losses["caption"]
    assert torch.equal(both.total, alone.total)
    assert other is not None
    assert both.items == other.lengths.sum()
    assert not torch.allclose(both.total, model(given).losses["caption"].total)


def test_the_host_has_an_encoder_for_each_field_that_is_read() -> None:
    reader = EncoderSpec(dataclasses.replace(WORDS, context_length=8), "writer")
    alone, read = spec("alone"), spec("prefix")
    both = dataclasses.replace(read, encoders={**read.encoders, "text": reader})
    found = {name: encoder.spec for name, encoder in alone.text_encoders().items()}
    assert found == {"text": WORDS, "target": WORDS}
    found = {name: encoder.spec for name, encoder in both.text_encoders().items()}
    assert found == {"text": reader.tokenizer, "target": WORDS}
    assert list(ModelSpec({"writer": alone.stacks["writer"]}, {"text": reader}).text_encoders()) == ["text"]


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("kind", READS)
def test_every_parameter_learns(kind: str, tied: bool) -> None:
    model = built(spec(kind, tied=tied)).train()
    model(batch()).losses["caption"].total.backward()
    idle = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert not idle


@pytest.mark.parametrize("kind", READS)
def test_bfloat16_autocast_is_near(kind: str) -> None:
    model, given = built(spec(kind)), batch()
    expected = model(given).losses["caption"].total
    with torch.autocast("cpu", torch.bfloat16):
        found = model(given).losses["caption"].total
    assert found.dtype == torch.float32
    assert_close(found, expected, rtol=0.02, atol=0)


def test_an_encoder_and_a_decoder_may_share_a_stack() -> None:
    """One trunk reads the picture, both ways, and then writes of it, causally, as a prefix language model does."""
    trunk = StackSpec(16, 2, LayerSpec(AttentionSpec(2), GELUFeedForwardSpec(2)), RotaryPositionSpec())
    encoders = {"image": EncoderSpec(ImagePatchesSpec(patch=8), "trunk")}
    shared = ModelSpec({"trunk": trunk}, encoders, {"caption": DecoderSpec(WORDS, "trunk", {"image": "prefix"})})
    model = built(shared)
    twice = built(
        dataclasses.replace(
            shared,
            stacks={"trunk": trunk, "writer": trunk},
            decoders={"caption": DecoderSpec(WORDS, "writer", {"image": "prefix"})},
        )
    )
    state = model.state_dict()
    state |= {name.replace("trunk", "writer"): value for name, value in state.items() if "trunk" in name}
    twice.load_state_dict(state)
    losses = [made(batch()).losses["caption"].total for made in (model, twice)]
    assert_close(losses[0], losses[1])
    for loss in losses:
        loss.backward()
    apart = {name: p.grad for name, p in twice.named_parameters()}
    for name, parameter in model.named_parameters():
        both = [apart[name], apart[name.replace("trunk", "writer")]] if "trunk" in name else [apart[name]]
        assert_close(parameter.grad, torch.stack([grad for grad in both if grad is not None]).sum(0))


def test_decoders_that_name_one_stack_share_its_weights_and_nothing_else() -> None:
    made = spec("cross")
    one = made.decoders["caption"]
    model = built(dataclasses.replace(made, decoders={"caption": one, "other": one}))
    losses = model(batch()).losses
    assert set(losses) == {"caption", "other"}
    assert not torch.allclose(losses["caption"].total, losses["other"].total), "each has a table of its own"
    assert len(model.stacks) == 2


@pytest.mark.parametrize("kind", ["cross", "prefix"])
def test_a_model_built_on_meta_is_the_same(kind: str) -> None:
    made = spec(kind, tied=False)
    with torch.device("meta"):
        model = made.build()
    model = model.to_empty(device="cpu")
    with torch.no_grad():
        for tensor in [*model.parameters(), *model.buffers()]:
            tensor.fill_(float("nan"))
    other = made.build()
    for each in (model, other):
        each.initialise(7)
    one, two = model.state_dict(), other.state_dict()
    assert one.keys() == two.keys()
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert torch.equal(model.eval()(batch()).losses["caption"].total, other.eval()(batch()).losses["caption"].total)


def test_learned_positions_have_room_for_all_that_stands_in_a_decoder() -> None:
    """bos takes the place that the last id leaves: a text of the context length fits."""
    made = spec("alone")
    stack = dataclasses.replace(made.stacks["writer"], position=LearnedPositionSpec((0,), (16,)))
    model = built(dataclasses.replace(made, stacks={"writer": stack}))
    full = Text(torch.full((1, 16), 7), torch.tensor([16]))
    assert decoder(model).loss(full, {}, model.stack_of("writer"))[0].total.isfinite()
