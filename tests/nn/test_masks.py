"""Masks: ``dense`` means what the words say, ``sdpa`` lowers it exactly, and a row that sees nothing gives zero."""

from __future__ import annotations

import dataclasses
import functools

import nn_reference
import position_reference
import pytest
import torch
from contract import MIXERS, make_stack, randomise
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F
from torch.testing import assert_close

from mmformer.nn.attention import AttentionSpec
from mmformer.nn.kernel import attend
from mmformer.nn.layer import LayerSpec
from mmformer.nn.mask import Mask
from mmformer.nn.mixer import View
from mmformer.nn.rotary import RotaryPosition, RotaryPositionSpec
from mmformer.nn.stack import StackSpec
from mmformer.types import Tokens

CPU = torch.device("cpu")
ATTENTIONS = {name: spec for name, spec in MIXERS.items() if isinstance(spec, AttentionSpec) and spec.pattern is None}


@st.composite
def masks(draw: st.DrawFn) -> tuple[Mask, int, int, int]:
    batch, queries = draw(st.integers(1, 3)), draw(st.integers(1, 5))
    keys = queries + draw(st.integers(0, 3))

    def rows(values: st.SearchStrategy, length: int) -> Tensor:
        row = st.lists(values, min_size=length, max_size=length)
        return torch.tensor(draw(st.lists(row, min_size=batch, max_size=batch)))

    causal, segmented = draw(st.booleans()), draw(st.booleans())
    prefix = rows(st.integers(0, 9), 1)[:, 0] if causal and draw(st.booleans()) else None
    valid = rows(st.booleans(), keys) if draw(st.booleans()) else None
    query_segment = rows(st.integers(0, 2), queries) if segmented else None
    key_segment = rows(st.integers(0, 2), keys) if segmented else None
    return Mask(causal, prefix, valid, query_segment, key_segment), batch, queries, keys


def sees(mask: Mask, b: int, query: int, key: int, past: int) -> bool:
    """The words of the documentation; ``past`` keys stand before the first query."""
    in_prefix = mask.prefix is not None and key < int(mask.prefix[b])
    if mask.causal and key > past + query and not in_prefix:
        return False
    if mask.valid is not None and not mask.valid[b, key]:
        return False
    if mask.query_segment is None or mask.key_segment is None:
        return True
    return int(mask.query_segment[b, query]) == int(mask.key_segment[b, key])


@settings(max_examples=150, deadline=None, derandomize=True, database=None)
@given(masks())
def test_dense_means_what_the_words_say(drawn: tuple[Mask, int, int, int]) -> None:
    mask, batch, queries, keys = drawn
    dense = mask.dense(queries, keys)
    expected = [
        [[sees(mask, b, i, j, keys - queries) for j in range(keys)] for i in range(queries)] for b in range(batch)
    ]
    if dense is None:
        assert all(all(all(row) for row in rows) for rows in expected)
    else:
        assert dense.dtype == torch.bool
        assert torch.equal(dense.expand(batch, 1, queries, keys)[:, 0], torch.tensor(expected))


@settings(max_examples=100, deadline=None, derandomize=True, database=None)
@given(masks(), st.sampled_from([None, (1, 1), (1, 4), (3, 1), (3, 4)]))
def test_sdpa_lowers_dense(drawn: tuple[Mask, int, int, int], bias_shape: tuple[int, int] | None) -> None:
    mask, batch, queries, keys = drawn
    draw = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(batch, 4, n, 8, generator=draw, dtype=torch.float64) for n in (queries, keys, keys))
    bias = None
    if bias_shape is not None:
        leading = (min(bias_shape[0], batch), bias_shape[1])
        bias = torch.randn(*leading, queries, keys, generator=draw, dtype=torch.float64)
    attn_mask, is_causal = mask.sdpa(queries, keys, bias, CPU)
    actual = F.scaled_dot_product_attention(q, k, v, attn_mask=attn_mask, is_causal=is_causal)

    score = q @ k.mT / 8**0.5 + (0 if bias is None else bias)
    dense = mask.dense(queries, keys)
    weight = score.exp() if dense is None else score.exp() * dense
    expected = weight @ v / weight.sum(-1, keepdim=True).clamp(min=1e-300)
    assert_close(actual, expected, rtol=1e-12, atol=1e-12)


def test_what_the_kernel_can_do_itself_is_not_materialised() -> None:
    for device in (CPU, torch.device("meta")):
        assert Mask().sdpa(4, 6, None, device) == (None, False)
        assert Mask(causal=True).sdpa(4, 4, None, device) == (None, True)
        assert Mask(causal=True).sdpa(1, 6, None, device) == (None, False)
        mask, causal = Mask(causal=True).sdpa(2, 6, None, device)  # a chunk that goes on from a cache
        assert mask is not None
        assert mask.device == device
        assert not causal


def test_padding_behind_a_causal_pass_needs_no_mask() -> None:
    """What is before it never sees it; what it becomes itself is nobody's."""
    valid = torch.arange(6) < torch.tensor([[6], [4], [1]])
    mask = Mask(causal=True, valid=valid, trailing=True)
    assert mask.sdpa(6, 6, None, CPU) == (None, True)
    whole, _ = mask._replace(trailing=False).sdpa(6, 6, None, CPU)
    assert whole is not None
    q, k, v = torch.randn(3, 3, 4, 6, 8, dtype=torch.float64)
    bare, dense = (attend(q, k, v, made, made is None, 0.0).transpose(1, 2)[valid] for made in (None, whole))
    assert_close(bare, dense, rtol=1e-12, atol=1e-12)
    for other in (
        mask._replace(causal=False),
        mask._replace(prefix=torch.tensor([1, 2, 0])),
        mask._replace(query_segment=valid.long(), key_segment=valid.long()),
    ):
        made, causal = other.sdpa(6, 6, None, CPU)
        assert made is not None and not causal
    made, _ = mask.sdpa(6, 6, torch.zeros(1, 1, 6, 6), CPU)
    assert made is not None and made.isneginf()[1, 0, 5, 5]


def joined_heads(module: torch.nn.Module, x: Tensor, view: View) -> tuple[Tensor, Tensor]:
    """What the kernel gave, heads joined, and the mixer's output."""
    seen: list[Tensor] = []
    hook = module.out.register_forward_pre_hook(lambda _, arguments: seen.append(arguments[0]))
    try:
        y, _, _ = module(x, view, None, False)
    finally:
        hook.remove()
    return seen[0], y


@pytest.mark.parametrize("cross", [False, True], ids=["self", "cross"])
@pytest.mark.parametrize("bias", [False, True], ids=["", "bias"])
@pytest.mark.parametrize("dropout", [0.0, 0.5], ids=["", "dropout"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("mixer", ATTENTIONS)
def test_a_row_that_sees_nothing_is_zero(
    mixer: str, dtype: torch.dtype, dropout: float, bias: bool, cross: bool
) -> None:
    spec = dataclasses.replace(ATTENTIONS[mixer], dropout=dropout)
    module = randomise(spec.build(32, memory_width=24 if cross else None)).to(dtype)
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(2, 6, 32, generator=draw).to(dtype).requires_grad_()
    memory = torch.randn(2, 6, 24, generator=draw).to(dtype).requires_grad_() if cross else None
    valid = torch.tensor([[0, 0, 1, 1, 1, 0], [0, 0, 0, 0, 0, 0]]).bool()
    scores = torch.randn(1, 4, 6, 6, generator=draw).to(dtype) if bias else None
    joined, y = joined_heads(module, x, View(Mask(causal=True, valid=valid), bias=scores, memory=memory))
    blind = torch.tensor([[1, 1, 0, 0, 0, 0], [1, 1, 1, 1, 1, 1]]).bool()
    assert bool((joined[blind] == 0).all())
    if dropout == 0:
        assert bool((joined[~blind] != 0).any(-1).all())
    y.sum().backward()
    for tensor in (x, *module.parameters(), *([] if memory is None else [memory])):
        assert tensor.grad is not None
        assert bool(tensor.grad.isfinite().all())


@pytest.mark.parametrize("placement", ["pre", "post"])
def test_a_sample_without_any_valid_token_is_finite(placement: str) -> None:
    stack = StackSpec(32, 2, LayerSpec(AttentionSpec(4), cross=AttentionSpec(4), placement=placement)).build()
    x = torch.randn(2, 5, 32, requires_grad=True)
    valid = torch.tensor([[True] * 5, [False] * 5])
    tokens = Tokens(x, torch.zeros(2, 5, 3, dtype=torch.int64), valid)
    output = stack(tokens, memory=tokens).tokens.x
    output.square().sum().backward()
    for tensor in (output, x.grad, *(parameter.grad for parameter in stack.parameters())):
        assert tensor is not None
        assert bool(tensor.isfinite().all())


@pytest.mark.parametrize("rotary", [False, True], ids=["", "rotary"])
@pytest.mark.parametrize("bias_shape", [None, (1, 1), (1, 4), (2, 1), (2, 4)], ids=str)
@pytest.mark.parametrize("mixer", ATTENTIONS)
def test_attention_is_its_loops(mixer: str, bias_shape: tuple[int, int] | None, rotary: bool) -> None:
    """The mixer alone against loops, allowed pairs from ``Mask.dense``; biases of every shape that may be shared."""
    spec = ATTENTIONS[mixer]
    module = randomise(spec.build(32)).double()
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(2, 5, 32, generator=draw, dtype=torch.float64)
    pos = torch.randint(-1, 6, (2, 5, 3), generator=draw)
    mask = Mask(causal=True, prefix=torch.tensor([0, 3]), valid=torch.tensor([[1, 1, 1, 1, 0], [0, 1, 1, 1, 1]]).bool())
    bias = None if bias_shape is None else torch.randn(*bias_shape, 5, 5, generator=draw, dtype=torch.float64)
    where = RotaryPositionSpec(axes=(0, 2), base=10.0)
    table = RotaryPosition(where, 2).rotary(pos) if rotary else None
    _, y = joined_heads(module, x, View(mask, table, bias))

    dense = mask.dense(5, 5)
    assert dense is not None
    full = None if bias is None else bias.expand(2, 4, 5, 5)
    turns = None
    if rotary:
        turn_of = functools.partial(position_reference.rotary, where, module, head=0, head_width=8)  # as all heads
        turns = [[[turn_of(place) for place in row]] * 4 for row in pos.numpy()]
    _, expected = nn_reference.attention(
        spec,
        module,
        x.numpy(),
        None,
        dense.expand(2, 1, 5, 5)[:, 0].numpy(),
        turns,
        None if full is None else lambda b, head, i, j: float(full[b, head, i, j]),
    )
    tolerance = 1e-6 if rotary else 1e-12
    assert_close(y, torch.from_numpy(expected), rtol=tolerance, atol=tolerance)


def test_a_mask_is_not_confused_between_samples() -> None:
    """One sample's padding or segments change nothing in another."""
    stack = make_stack(StackSpec(32, 2, LayerSpec(AttentionSpec(4))))
    x = torch.randn(3, 4, 32, dtype=torch.float64)
    pos = torch.zeros(3, 4, 3, dtype=torch.int64)
    valid = torch.tensor([[1, 1, 1, 1], [1, 0, 0, 1], [1, 1, 1, 1]]).bool()
    segment = torch.tensor([[0, 0, 0, 0], [0, 0, 1, 1], [7, 7, 7, 7]])
    masked = stack(Tokens(x, pos, valid, segment)).tokens.x
    plain = stack(Tokens(x, pos)).tokens.x
    assert_close(masked[[0, 2]], plain[[0, 2]], rtol=1e-12, atol=1e-12)
    assert not torch.allclose(masked[1], plain[1], atol=1e-3)
