"""A class token behind a text: where it stands, what it sees, and where others find it."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from tiny import VOCABULARY
from torch import Tensor
from torch.testing import assert_close

from mmformer.errors import InputError
from mmformer.models.encoder import EncoderSpec
from mmformer.models.model import Model, ModelSpec
from mmformer.nn.attention import AttentionSpec
from mmformer.nn.layer import LayerSpec
from mmformer.nn.pool import ClassTokenPoolSpec
from mmformer.nn.position import LearnedPositionSpec
from mmformer.nn.stack import StackSpec
from mmformer.tokenizers.text import TextTokensSpec
from mmformer.types import SPECIAL, Batch, Text, Tokens

WORDS = TextTokensSpec(VOCABULARY, context_length=8)
STACK = StackSpec(16, 2, LayerSpec(AttentionSpec(2)), position=LearnedPositionSpec(sizes=(9,), special=0))
LAST = EncoderSpec(WORDS, "text", ClassTokenPoolSpec(), causal=True, class_token=True, class_last=True)
IDS = torch.tensor([[5, 9, 7, 8, 6, 11, 12, 3], [5, 4, 3, 0, 0, 0, 0, 0], [8, 3, 0, 0, 0, 0, 0, 0]])
LENGTHS = torch.tensor([8, 3, 2])


def model(**changes: bool) -> Model:
    made = ModelSpec({"text": STACK}, {"text": dataclasses.replace(LAST, **changes)}).build()
    random = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for value in made.parameters():
            value.copy_(torch.randn(value.shape, generator=random) * 0.3)
    return made.double().eval()


def embedded(made: Model, ids: Tensor = IDS, lengths: Tensor = LENGTHS) -> tuple[Tensor, Tokens]:
    outputs = made(Batch((), {}, text=Text(ids, lengths)))
    return outputs.embedding["text"], outputs.tokens["text"]


def by_hand(made: Model, ids: list[int], seen: list[int]) -> Tensor:
    """One text's class token, at the ninth place, which sees some of the places before it, or itself."""
    encoder, stack = made.encoders["text"], made.stack_of("text")
    x = torch.cat((encoder.tokenizer.table[torch.tensor(ids)], encoder.special))[None]
    pos = torch.zeros(1, 9, 3, dtype=torch.int64)
    pos[0, :, 0] = torch.arange(9)
    valid = torch.zeros(1, 9, dtype=torch.bool)
    valid[0, seen] = True
    return stack(Tokens(x, pos, valid), causal=True).tokens.x[0, -1]


def test_it_has_seen_the_text_and_itself() -> None:
    made = model()
    found, tokens = embedded(made)
    for row, number in enumerate(LENGTHS.tolist()):
        assert_close(found[row], by_hand(made, IDS[row].tolist(), [*range(number), 8]))
    short, _ = embedded(made, IDS[1:, :3], LENGTHS[1:])
    assert_close(short, found[1:])
    packed, _ = embedded(model(packed=True))
    assert_close(packed, found)
    assert_close(tokens.x[:, 0], found)
    assert tokens.pos[:, 0].eq(SPECIAL).all() and tokens.pos[0, 1:, 0].tolist() == list(range(8))
    assert tokens.valid is not None and tokens.valid.sum(1).tolist() == (LENGTHS + 1).tolist()


def test_shifted_it_has_seen_the_first_padding_in_place_of_itself() -> None:
    made = model(class_shifted=True)
    found, _ = embedded(made)
    for row, number in enumerate(LENGTHS.tolist()):
        assert_close(found[row], by_hand(made, IDS[row].tolist(), list(range(number + 1))))
    short, _ = embedded(made, IDS[1:, :3], LENGTHS[1:])
    assert_close(short, found[1:])
    assert (found - embedded(model())[0]).abs().max() > 1e-3


def test_what_it_cannot_go_with_is_refused() -> None:
    for changes, told in (
        ({"registers": 1}, "class_last must be false, unless a class token alone goes with a text"),
        (
            {"class_last": False, "class_shifted": True, "causal": False},
            "class_shifted must be false where class_last is",
        ),
        ({"class_shifted": True, "packed": True}, "packed must be false where class_shifted"),
        ({"class_last": False}, "causal must be false with ClassTokenPoolSpec"),
    ):
        with pytest.raises(InputError, match=told):
            dataclasses.replace(LAST, **changes)
    short = dataclasses.replace(STACK, position=LearnedPositionSpec(sizes=(8,), special=0))
    with pytest.raises(InputError, match=r"has 8 places on axis 0, but the tokens of .* stand at up to 9"):
        ModelSpec({"text": short}, {"text": LAST})
