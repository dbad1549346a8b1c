"""Packing: the same result as padding, in fewer tokens."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny import VOCABULARY

from mmformer.errors import InputError
from mmformer.models.decoder import DecoderSpec
from mmformer.models.encoder import EncoderSpec
from mmformer.nn.attention import AttentionSpec
from mmformer.nn.layer import LayerSpec
from mmformer.nn.packing import fill_rows, pack, pack_beside
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
    if causal and pool.reads_first:
        pytest.skip("refused: the first token would see itself alone")
    stack = StackSpec(16, 2, LayerSpec(AttentionSpec(heads=2)), position).build()
    spec = EncoderSpec(
        TextTokensSpec(VOCABULARY, 16), "text", pool, 12, causal=causal, class_token=pool.special > 0, registers=2
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


def test_what_is_packed_beside_stands_in_the_rows_of_its_samples() -> None:
    tokens, lengths = padded(LENGTHS), torch.tensor([5, 2, 9, 1, 1, 7, 3])
    packed, further = pack(tokens), padded(lengths)
    beside = pack_beside(packed, further)
    assert beside.tokens.valid is not None
    assert int(beside.tokens.valid.sum()) == int(lengths.sum())
    assert len(beside.tokens.x) == len(packed.tokens.x)
    assert further.valid is not None
    assert torch.equal(beside.unpack(beside.tokens.x), further.x * further.valid[..., None])
    assert packed.tokens.segment is not None
    assert beside.tokens.segment is not None
    for own, other in zip(packed.tokens.segment, beside.tokens.segment, strict=True):
        assert set(own.tolist()) - {-1} == set(other.tolist()) - {-1}
        samples = [sample for sample in other.tolist() if sample >= 0]
        assert samples == sorted(samples, key=samples.index), "each sample's tokens stand together"


@pytest.mark.parametrize("memory_valid", [False, True])
@pytest.mark.parametrize("position", [PositionSpec(), RotaryPositionSpec(), SinusoidalPositionSpec()])
@pytest.mark.parametrize("reads", [True, False])
def test_a_decoder_learns_the_same_packed(memory_valid: bool, position: PositionSpec, reads: bool) -> None:
    torch.manual_seed(0)
    layer = LayerSpec(AttentionSpec(heads=2), cross=AttentionSpec(heads=2) if reads else None)
    stack = StackSpec(16, 2, layer, position).build()
    spec = DecoderSpec(TextTokensSpec(VOCABULARY, 16), "writer", {"source": "cross"} if reads else {})
    plain = spec.build(16, {"source": 16})
    packed = dataclasses.replace(spec, packed=True).build(16, {"source": 16})
    packed.load_state_dict(plain.state_dict())
    text, x = Text(torch.randint(5, 300, (7, 16)), LENGTHS), torch.randn(7, 9, 16)
    valid = torch.arange(9) < torch.tensor([5, 2, 9, 1, 1, 7, 3])[:, None] if memory_valid else None
    found = []
    for decoder in (plain, packed):
        memory = {"source": Tokens(x.clone().requires_grad_(), torch.zeros(7, 9, 3, dtype=torch.int64), valid)}
        term, decoded = decoder.loss(text, memory, stack)
        term.total.backward()
        grads = [decoder.tokenizer.weight.grad, memory["source"].x.grad]
        found.append(
            (term.total.detach(), decoded.x[text.real].detach(), *(grad for grad in grads if grad is not None))
        )
    assert len(found[0]) == 3 + reads
    for ours, theirs in zip(*found, strict=True):
        assert torch.allclose(ours, theirs, atol=1e-5)


def test_a_packed_decoder_has_no_prefix() -> None:
    with pytest.raises(InputError, match=r"DecoderSpec\.packed must be false where"):
        DecoderSpec(TextTokensSpec(VOCABULARY, 16), "writer", {"source": "prefix"}, packed=True)
