"""Tokens in the places of placeholders, against a text that has their embeddings there; layers that are run alone."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from decoders import WORDS, spec
from tiny import tiny_batch, tiny_model
from torch.testing import assert_close

from mmformer.errors import InputError
from mmformer.models.decoder import Decoder, DecoderSpec
from mmformer.models.encoder import Encoder
from mmformer.models.insertion import content, inserted, spread
from mmformer.models.model import Model, ModelSpec
from mmformer.models.projection import ProjectionSpec
from mmformer.tokenizers.special import SpecialIds
from mmformer.tokenizers.text import TextTokensSpec
from mmformer.types import SPECIAL, Batch, Text, Tokens

MASK = WORDS.words().ids.mask


def randomise(made: Model, seed: int) -> None:
    """Every parameter, for first weights are close to indifferent."""
    random = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for value in made.parameters():
            value.copy_(torch.randn(value.shape, generator=random) * 0.3)


def model(**changes: Any) -> Model:
    """A writer that has a picture's patches, through two layers, in the places of its masks."""
    plain = spec("prefix")
    bridge = ProjectionSpec(bias=True, hidden=24, hidden_bias=True)
    options = {"reads": {"image": "insert"}, "bridge": bridge, "content": True, "placeholder": MASK, **changes}
    image = dataclasses.replace(plain.encoders["image"], registers=1)
    decoder = dataclasses.replace(plain.decoders["caption"], **options)
    made = ModelSpec(plain.stacks, {"image": image}, {"caption": decoder}).build()
    randomise(made, 1)
    return made.eval()


def parts(made: Model, batch: Batch) -> tuple[Decoder, Tokens]:
    (decoder,) = made.decoders.values()
    assert isinstance(decoder, Decoder)
    (read,) = decoder.spec.reads
    return decoder, made(batch, decode=False).tokens[read]


def test_a_text_has_the_picture_where_its_placeholders_are() -> None:
    made, batch = model(), tiny_batch(["a", "b"])
    decoder, tokens = parts(made, batch)
    (read,) = decoder.spec.reads
    assert isinstance(made.encoders[read], Encoder)
    shown = content(tokens, made.spec.encoders[read].special)
    number = shown.x.shape[1]
    assert number == decoder.places({read: tokens})
    ids = torch.tensor([[2, 9, *[MASK] * number, 11, 12], [2, *[MASK] * number, 7, 9, 10]])
    text = Text(ids, torch.full((2,), ids.shape[1]))
    stack = made.stack_of(decoder.spec.stack)
    found = decoder(text, {read: tokens}, stack).x
    whole = decoder.tokenizer(text)
    x = whole.x.clone()
    bridged = decoder.bridges[read](shown.x)
    x[0, 2 : 2 + number], x[1, 1 : 1 + number] = bridged[0], bridged[1]
    expected = stack(Tokens(x, whole.pos, whole.valid), causal=True).tokens.x
    assert_close(found, expected)


def test_placeholders_are_not_learned_and_are_put_first_where_there_are_none() -> None:
    made, batch = model(), tiny_batch(["a", "b"])
    decoder, tokens = parts(made, batch)
    (read,) = decoder.spec.reads
    stack, number = made.stack_of(decoder.spec.stack), decoder.places({read: tokens})
    rows = torch.tensor([[9, 10, 3], [7, 3, 0]])
    bare = Text(rows, torch.tensor([3, 2]))
    given = Text(torch.cat((torch.full((2, number), MASK), rows), dim=1), bare.lengths + number)
    first, second = (decoder.loss(text, {read: tokens}, stack)[0] for text in (bare, given))
    assert_close(first.total, second.total)
    assert first.items == second.items == 5


def test_a_row_with_another_number_of_placeholders_is_refused() -> None:
    x, places = torch.zeros(2, 4, 3), torch.tensor([[True, True, False, False], [True, False, False, False]])
    part = Tokens(torch.ones(2, 2, 3), torch.zeros(2, 2, 3, dtype=torch.int64))
    with pytest.raises(InputError, match="Row 1 has 1 placeholders, but 2 tokens are to be put"):
        inserted(x, places, [part])
    partly = part._replace(valid=torch.tensor([[True, True], [True, False]]))
    assert inserted(x, places, [partly]).sum() == 9


def test_one_placeholder_of_a_prompt_stands_for_all() -> None:
    assert spread([1, 9, 2], 9, 3) == [1, 9, 9, 9, 2]
    assert spread([1, 2], 9, 2) == [9, 9, 1, 2]
    assert spread([9, 9, 1], 9, 2) == [9, 9, 1]
    with pytest.raises(InputError, match="has 2 placeholders, but there is one picture or sound, of 3 tokens"):
        spread([9, 9], 9, 3)


def test_content_is_what_stands_somewhere() -> None:
    pos = torch.tensor([[[SPECIAL] * 3, [0, 1, 0], [0, 2, 0]]])
    left = content(Tokens(torch.arange(3.0).view(1, 3, 1), pos, torch.tensor([[True, True, False]])), 1)
    assert left.x.flatten().tolist() == [1.0, 2.0]
    assert left.valid is not None and left.valid.tolist() == [[True, False]]


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"placeholder": None}, "placeholder must be an id where something is inserted, or read as media, but is None"),
        (
            {"tokenizer": TextTokensSpec(None, 16, rows=9, ids=SpecialIds(bos=2, eos=(3,))), "placeholder": 9},
            "placeholder must be an id, which is from 0 to 8, but is 9",
        ),
        ({"reads": {}}, "bridge must be left alone: nothing needs one"),
    ],
)
def test_refusals(changes: dict[str, object], told: str) -> None:
    with pytest.raises(InputError, match=told):
        model(**changes)


def test_an_encoder_may_run_the_first_layers_alone() -> None:
    spec = tiny_model()
    name = next(iter(spec.encoders))
    stacks = {key: dataclasses.replace(stack, depth=3) for key, stack in spec.stacks.items()}
    whole = ModelSpec(stacks, spec.encoders).build()
    randomise(whole, 2)
    part = ModelSpec(stacks, {**spec.encoders, name: dataclasses.replace(spec.encoders[name], layers=2)}).build()
    part.load_state_dict(whole.state_dict())
    batch = tiny_batch(["a", "b"])
    kept = whole.eval()(batch, intermediates=[f"{name}/1"]).intermediates[f"{name}/1"]
    assert_close(part.eval()(batch).tokens[name].x, kept)
    with pytest.raises(InputError, match=r"layers is 3, but .* has 3, of which fewer can be run alone"):
        ModelSpec(stacks, {**spec.encoders, name: dataclasses.replace(spec.encoders[name], layers=3)})


def test_a_decoder_without_reads_needs_no_content() -> None:
    (old,) = tiny_model(caption=True).decoders.values()
    with pytest.raises(InputError, match="content must be false where nothing is read"):
        DecoderSpec(old.tokenizer, old.stack, content=True)
