"""Packing: the same result as padding, in fewer tokens."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny import VOCABULARY

from mmformer.models.encoder import EncoderSpec
from mmformer.nn.attention import AttentionSpec
from mmformer.nn.layer import LayerSpec
from mmformer.nn.packing import fill_rows, pack
from mmformer.nn.pool import ClassTokenPoolSpec, LastPoolSpec, MeanPoolSpec
from mmformer.nn.position import PositionSpec, SinusoidalPositionSpec
from mmformer.nn.rotary import RotaryPositionSpec
from mmformer.nn.stack import StackSpec
from mmformer.tokenizers.text import TextTokensSpec
from mmformer.types import Text, Tokens

LENGTHS = torch.tensor([3, 16, 1, 8, 5, 2, 7])


def padded(lengths: torch.Tensor) -> Tokens:
    longest = int(lengths.max())
    x = torch.randn(len(lengths), longest, 4)
    time = torch.arange(longest)
    pos = torch.stack((time, torch.zeros_like(time), torch.zeros_like(time)), -1)
    return Tokens(x, pos.expand(len(lengths), -1, -1), time < lengths[:, None])


@given(st.lists(st.integers(1, 20), min_size=1, max_size=40))
def test_no_row_overflows_and_no_two_samples_overlap(lengths: list[int]) -> None:
    row, begin, rows = fill_rows(lengths, max(lengths))
    taken = [[0] * max(lengths) for _ in range(rows)]
    for target, first, length in zip(row, begin, lengths, strict=True):
        for place in range(first, first + length):
            taken[target][place] += 1
    assert all(count <= 1 for one in taken for count in one)
    assert all(any(one) for one in taken), "no row is empty"


def test_each_token_goes_to_one_place_and_comes_back() -> None:
    tokens = padded(LENGTHS)
    packed = pack(tokens)
    assert packed.tokens.valid is not None
    assert int(packed.tokens.valid.sum()) == int(LENGTHS.sum())
    assert len(packed.tokens.x) == 3, "42 tokens in rows of 16"
    assert tokens.valid is not None
    assert torch.equal(packed.unpack(packed.tokens.x), tokens.x * tokens.valid[..., None])
    assert torch.equal(packed.unpack(packed.tokens.pos), tokens.pos * tokens.valid[..., None])


def test_the_longest_sets_the_row_whatever_the_padding() -> None:
    tokens = padded(torch.tensor([16, 3]))
    short = Tokens(tokens.x[1:], tokens.pos[1:], tokens.valid[1:] if tokens.valid is not None else None)
    assert pack(short).tokens.x.shape == (1, 3, 4)


@pytest.mark.parametrize("pool", [MeanPoolSpec(), LastPoolSpec(), ClassTokenPoolSpec()], ids=lambda p: type(p).__name__)
@pytest.mark.parametrize("position", [PositionSpec(), RotaryPositionSpec(), SinusoidalPositionSpec()])
@pytest.mark.parametrize("causal", [False, True])
def test_an_encoder_gives_the_same_packed(pool: MeanPoolSpec, position: PositionSpec, causal: bool) -> None:
    if causal and pool.needs_class_token:
        pytest.skip("refused: the first token would see itself alone")
    stack = StackSpec(16, 2, LayerSpec(AttentionSpec(heads=2)), position).build()
    spec = EncoderSpec(
        TextTokensSpec(VOCABULARY, 16), "text", pool, 12, causal, pool.needs_class_token, registers=2, packed=False
    )
    plain = spec.build(16)
    packed = dataclasses.replace(spec, packed=True).build(16)
    packed.load_state_dict(plain.state_dict())
    text = Text(torch.randint(5, 300, (7, 16)), LENGTHS)
    made, seen = plain(text, stack, (0,)), packed(text, stack, (0,))
    assert torch.allclose(made.embedding, seen.embedding, atol=1e-6)
    assert made.tokens.valid is not None
    assert torch.equal(made.tokens.valid, seen.tokens.valid)
    real = made.tokens.valid[..., None]
    assert torch.allclose(made.tokens.x * real, seen.tokens.x, atol=1e-6)
    assert torch.allclose(made.intermediates[0] * real, seen.intermediates[0], atol=1e-6)


def test_the_gradient_is_the_same_packed() -> None:
    stack = StackSpec(16, 2, LayerSpec(AttentionSpec(heads=2)), RotaryPositionSpec()).build()
    spec = EncoderSpec(TextTokensSpec(VOCABULARY, 16), "text")
    plain, packed = spec.build(16), dataclasses.replace(spec, packed=True).build(16)
    packed.load_state_dict(plain.state_dict())
    text = Text(torch.randint(5, 300, (7, 16)), LENGTHS)
    for encoder in (plain, packed):
        encoder(text, stack).embedding.square().sum().backward()
    a, b = plain.tokenizer.weight.grad, packed.tokenizer.weight.grad
    assert a is not None
    assert torch.allclose(a, b, atol=1e-6)
