"""The selective scan is the recurrence that it says, in values, in gradients, at the extremes, and in memory."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from mmformer.nn import scan
from mmformer.nn.scan import CHUNK, RESET, selective_scan


def naive(x: Tensor, step: Tensor, decay: Tensor, b: Tensor, c: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    """Token after token."""
    outputs = []
    for t in range(x.shape[1]):
        state = torch.exp(step[:, t, None, :] * decay) * state + b[:, t, :, None] * x[:, t, None, :]
        outputs.append((c[:, t, :, None] * state).sum(1))
    return torch.stack(outputs, 1), state


def inputs(batch: int, length: int, channels: int, states: int, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    """x, step, decay, b, c, state."""
    draw = torch.Generator().manual_seed(length)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=draw, dtype=torch.float64).to(dtype)

    step, decay = normal(batch, length, channels).exp(), -normal(states, channels).exp()
    x, b, c = normal(batch, length, channels), normal(batch, length, states), normal(batch, length, states)
    return [x, step, decay, b, c, normal(batch, states, channels)]


SHAPES = [(1, 1), (2, 5), (1, CHUNK), (2, CHUNK + 1), (3, 7 * CHUNK), (1, 9 * CHUNK + 3)]
"""Samples and lengths."""


@pytest.fixture(params=[1, 24, 36, 2**17], ids=lambda size: f"groups_of_{size}")
def group(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """How many states take a step together: one chunk of a row at a time, several, all."""
    monkeypatch.setattr(scan, "GROUP_ON_CPU", request.param)
    return request.param


@pytest.mark.usefixtures("group")
@pytest.mark.parametrize(("batch", "length"), SHAPES)
def test_it_is_the_recurrence(batch: int, length: int) -> None:
    """Outputs, the last state, and the gradients of everything, whatever chunks and groups the row is cut into."""
    made = [each.requires_grad_() for each in inputs(batch, length, 3, 4)]
    actual, expected = selective_scan(*made), naive(*made)
    assert_close(actual, expected, rtol=1e-12, atol=1e-12)
    weights = [torch.randn(each.shape, dtype=each.dtype) for each in expected]
    gradients = [
        torch.autograd.grad([(y * weight).sum() for y, weight in zip(result, weights, strict=True)], made)
        for result in (actual, expected)
    ]
    assert_close(gradients[0], gradients[1], rtol=1e-11, atol=1e-11)


@pytest.mark.usefixtures("group")
def test_gradients_are_those_of_finite_differences() -> None:
    made = tuple(each.requires_grad_() for each in inputs(1, CHUNK + 3, 2, 2))
    assert torch.autograd.gradcheck(selective_scan, made, fast_mode=True)


def test_it_goes_on_from_a_state() -> None:
    x, step, decay, b, c, state = inputs(2, 50, 3, 4)
    whole, last = selective_scan(x, step, decay, b, c)
    at, outputs, carried = 0, [], torch.zeros_like(state)
    for length in (1, 20, 16, 13):
        piece = slice(at, at + length)
        y, carried = selective_scan(x[:, piece], step[:, piece], decay, b[:, piece], c[:, piece], carried)
        outputs.append(y)
        at += length
    assert_close((torch.cat(outputs, 1), carried), (whole, last), rtol=1e-12, atol=1e-12)


def test_a_reset_leaves_nothing_of_what_was_before() -> None:
    """Bit for bit, whatever that was; and no gradient goes there."""
    x, step, decay, b, c, _ = inputs(1, 3 * CHUNK, 3, 4)
    at = CHUNK + 5
    step[:, at] = RESET
    x.requires_grad_()
    y, _ = selective_scan(x, step, decay, b, c)
    other = torch.cat((x[:, :at] * 1e6, x[:, at:]), 1)
    assert torch.equal(selective_scan(other, step, decay, b, c)[0][:, at:], y[:, at:])
    (gradient,) = torch.autograd.grad(y[:, at:].sum(), x)
    assert not gradient[:, :at].any()
    assert gradient[:, at:].all()


@pytest.mark.parametrize("size", [0.0, 1e-6, 10.0, 1e4, 1e20])
def test_steps_of_any_size_are_safe_in_float32(size: float) -> None:
    """Decays that add up to far more than float32's range neither overflow nor make what is not a number."""
    exact = inputs(2, 5 * CHUNK, 3, 4)
    exact[1] = exact[1] * size
    single = [each.float().requires_grad_() for each in exact]
    y, last = selective_scan(*single)
    expected = naive(*[each.detach().double() for each in single])
    assert_close((y.double(), last.double()), expected, rtol=1e-4, atol=1e-4)
    for gradient in torch.autograd.grad(y.sum() + last.sum(), single):
        assert gradient.isfinite().all()


def test_half_precision_is_added_up_in_single() -> None:
    made = inputs(1, 200, 3, 4, torch.bfloat16)
    y, last = selective_scan(*made)
    assert y.dtype == last.dtype == torch.float32
    assert_close((y, last), selective_scan(*[each.float() for each in made]), rtol=0, atol=0)


def test_only_states_between_chunks_are_kept_for_the_backward_pass() -> None:
    """Of all that is held, N states of each channel for one token in ``CHUNK``."""
    length, channels, states = 20 * CHUNK, 8, 32
    made = [each.requires_grad_() for each in inputs(1, length, channels, states)]
    held: dict[int, int] = {}

    def pack(x: Tensor) -> Tensor:
        held[x.data_ptr()] = x.numel()
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        selective_scan(*made)
    between = length // CHUNK * channels * states
    assert sum(held.values()) <= between + sum(each.numel() for each in made)
    assert between < length * channels * states / 10


def test_the_operator_is_what_pytorch_expects() -> None:
    """Its shapes without values, its gradient as seen by a compiler, and that it changes none of its inputs."""
    made = [each.requires_grad_() for each in inputs(2, 2 * CHUNK + 3, 3, 4)]
    torch.library.opcheck(torch.ops.mmformer.selective_scan.default, (*made, CHUNK))
