"""Attention in linear time: chunks and recurrence compute the sums over all pairs, and no table of pairs is made."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode

from mmformer.nn import linear_product
from mmformer.nn.layer import LayerSpec
from mmformer.nn.linear_attention import LinearAttentionSpec
from mmformer.nn.linear_product import weigh
from mmformer.nn.linformer import LinformerSpec
from mmformer.nn.mask import Mask
from mmformer.nn.mixer import MixerSpec, State
from mmformer.nn.performer import PerformerSpec
from mmformer.nn.rotary import RotaryPositionSpec
from mmformer.nn.stack import Stack, StackSpec
from mmformer.types import Tokens

BATCH, HEADS, LENGTH, FEATURES, WIDTH = 2, 3, 23, 5, 4
MASKS = ["full", "causal", "prefix"]


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linear_product, "CHUNK", 4)


def made() -> tuple[Tensor, Tensor, Tensor]:
    draw = torch.Generator().manual_seed(0)
    shapes = ((BATCH, HEADS, LENGTH, width) for width in (FEATURES, FEATURES, WIDTH))
    query, key, value = (torch.randn(shape, generator=draw, dtype=torch.float64) for shape in shapes)
    return query.requires_grad_(), key.requires_grad_(), value.requires_grad_()


def mask_of(kind: str, padded: bool, packed: bool, begin: int = 0, end: int = LENGTH) -> Mask:
    """As a stack makes it for the tokens from begin to end of a row, with those before them as keys."""
    valid = torch.rand(BATCH, LENGTH, generator=torch.Generator().manual_seed(1)) > 0.2
    # Two that take turns and a third; one longer than several chunks between short ones.
    segment = torch.tensor([[3, 1] * 11 + [2], [0] * 2 + [7] + [5] * 15 + [7] * 5])
    return Mask(
        kind != "full",
        torch.tensor([3, 11]) if kind == "prefix" else None,
        valid[:, :end] if padded else None,
        segment[:, begin:end] if packed else None,
        segment[:, :end] if packed else None,
    )


def over_pairs(query: Tensor, key: Tensor, value: Tensor, mask: Mask) -> Tensor:
    pairs, seen = query @ key.mT, mask.dense(query.shape[2], key.shape[2])
    return (pairs if seen is None else pairs * seen) @ value


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("kind", MASKS)
def test_chunks_compute_the_sums_over_pairs(kind: str, padded: bool, packed: bool) -> None:
    inputs, mask = made(), mask_of(kind, padded, packed)
    found, expected = weigh(*inputs, mask, None, keep=False)[0], over_pairs(*inputs, mask)
    assert_close(found, expected, rtol=1e-12, atol=1e-12)
    weight = torch.randn(expected.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    gradients = (torch.autograd.grad((y * weight).sum(), inputs) for y in (found, expected))
    for one, other in zip(*gradients, strict=True):
        assert_close(one, other, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("kind", ["causal", "prefix"])
@pytest.mark.parametrize("calls", [(LENGTH,), (11, 1, 1, 7, 3), (12, *(1,) * 11)])
def test_calls_that_go_on_from_one_another_are_one(
    kind: str, padded: bool, packed: bool, calls: tuple[int, ...]
) -> None:
    query, key, value = made()
    past: State | None = None
    parts, begin = [], 0
    for number in calls:
        new = slice(begin, begin + number)
        mask = mask_of(kind, padded, packed, begin, begin + number)
        y, past = weigh(query[:, :, new], key[:, :, new], value[:, :, new], mask, past, keep=True)
        parts.append(y)
        begin += number
    whole = over_pairs(query, key, value, mask_of(kind, padded, packed))
    assert_close(torch.cat(parts, dim=2), whole, rtol=1e-12, atol=1e-12)


def test_later_tokens_leave_earlier_ones_as_they_are_to_the_bit() -> None:
    query, key, value = (x.detach().float() for x in made())
    mask = mask_of("causal", False, False)
    y = weigh(query, key, value, mask, None, keep=False)[0]
    for cut in (5, 8, 18):  # inside a chunk and between two
        changed = [x.clone() for x in (query, key, value)]
        for x in changed:
            x[:, :, cut:] = 1e4 * x[:, :, cut:].flip(2)
        later = weigh(*changed, mask, None, keep=False)[0]  # type: ignore[arg-type]
        assert torch.equal(later[:, :, :cut], y[:, :, :cut])
        assert not torch.equal(later[:, :, cut:], y[:, :, cut:])


def test_what_decoding_carries_does_not_grow() -> None:
    stack = stack_of(LinearAttentionSpec(heads=2))
    state = stack.empty_state()
    for call in range(3):
        state = stack(tokens(5, first=5 * call), causal=True, state=state).state
        assert [tuple(t.shape) for t in state.layers[0].mixer] == [(1, 2, 8, 9)]  # heads, features, values and 1


def stack_of(mixer: MixerSpec, **options: object) -> Stack:
    torch.manual_seed(0)
    return StackSpec(16, 1, LayerSpec(mixer, feedforward=None), **options).build().eval()


def tokens(length: int, first: int = 0, width: int = 16) -> Tokens:
    pos = torch.zeros(1, length, 3, dtype=torch.int64)
    pos[..., 0] = torch.arange(first, first + length)
    return Tokens(torch.randn(1, length, width, generator=torch.Generator().manual_seed(first)), pos)


class Largest(TorchDispatchMode):
    """The numbers in the largest tensor that any operation makes."""

    def __init__(self) -> None:
        super().__init__()
        self.numbers = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        made = function(*args, **(kwargs or {}))
        for each in made if isinstance(made, (tuple, list)) else (made,):
            if isinstance(each, Tensor):
                self.numbers = max(self.numbers, each.numel())
        return made


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(
    "mixer",
    [LinearAttentionSpec(2), PerformerSpec(2, features=16), LinformerSpec(2, length=1024, projected=8)],
    ids=str,
)
def test_nothing_grows_with_the_square_of_the_length(mixer: MixerSpec, causal: bool, packed: bool) -> None:
    if (causal and "causal" not in mixer.abilities) or (packed and "packing" not in mixer.abilities):
        return
    stack = stack_of(mixer)

    def largest(length: int) -> int:
        x = tokens(length)
        x = x._replace(segment=x.pos[..., 0] // 100) if packed else x
        with Largest() as seen:
            stack(x, causal=causal).tokens.x.square().sum().backward()
        return seen.numbers

    assert largest(1024) <= 2 * largest(512)


def test_rotation_sees_how_far_apart_tokens_are() -> None:
    stack = stack_of(LinearAttentionSpec(2), position=RotaryPositionSpec())
    x, moved = tokens(9), tokens(9)
    moved.pos[..., 0] += 40
    assert_close(stack(moved).tokens.x, stack(x).tokens.x, rtol=1e-5, atol=1e-6)
    moved.pos[..., 4:, 0] += 1
    assert not torch.allclose(stack(moved).tokens.x, stack(x).tokens.x, rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize("causal", [False, True])
def test_long_rows_are_summed_in_float32(causal: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """In bfloat16, a sum of ones ends at 256."""
    monkeypatch.setattr(linear_product, "CHUNK", 64)
    stack, x = stack_of(LinearAttentionSpec(2)), tokens(4096)
    x = x._replace(x=x.x + 2 * tokens(1, first=9).x)  # values whose mean is not 0
    with torch.no_grad():
        exact = stack(x, causal=causal).tokens.x
        with torch.autocast("cpu", torch.bfloat16):
            found = stack(x, causal=causal).tokens.x
    last = (found - exact)[:, 2048:].norm() / exact[:, 2048:].norm()
    assert float(last) < 0.01
