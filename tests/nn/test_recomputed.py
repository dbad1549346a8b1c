"""Units that are made again for the gradient: the same bits, in less memory."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.checkpoint import checkpoint

from mmformer.nn import feedforward
from mmformer.nn.feedforward import (
    DenseFeedForwardSpec,
    FeedForward,
    GELUFeedForwardSpec,
    GLUFeedForwardSpec,
    ReLUFeedForwardSpec,
    SwiGLUFeedForwardSpec,
)
from mmformer.nn.recomputed import product_of_units
from mmformer.scaling.meter import Meter

SPECS: tuple[DenseFeedForwardSpec, ...] = (
    GELUFeedForwardSpec(),
    GELUFeedForwardSpec(approximate="sigmoid", bias=False),
    GELUFeedForwardSpec(dropout=0.2),
    ReLUFeedForwardSpec(squared=True),
    SwiGLUFeedForwardSpec(),
    GLUFeedForwardSpec(bias=True),
)


def plain(features: Tensor, units: Callable[[Tensor], Tensor], product: Callable[[Tensor], Tensor]) -> Tensor:
    """What it is in place of."""
    return product(units(features))


def built(spec: DenseFeedForwardSpec, width: int = 24) -> FeedForward:
    torch.manual_seed(0)
    module = spec.build(width)
    for part in module.modules():
        if isinstance(part, nn.Linear):
            part.reset_parameters()
    return module


def gradients(module: FeedForward, half: bool) -> list[Tensor]:
    torch.manual_seed(1)
    x = torch.randn(2, 9, 24, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16, enabled=half):
        y, _ = module(x)
    named = [parameter for parameter in module.parameters() if parameter.requires_grad]
    return [y.detach(), *torch.autograd.grad(y.float().square().sum(), [x, *named])]


@pytest.mark.parametrize("half", [False, True], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("frozen", ["", "up", "down"])
@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: f"{type(spec).__name__}-{spec.bias}-{spec.dropout}")
def test_the_gradient_is_the_same_to_the_bit(
    spec: DenseFeedForwardSpec, frozen: str, half: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = built(spec)
    for name, parameter in module.named_parameters():
        parameter.requires_grad_(not frozen or not name.split(".")[0].endswith(frozen))
    actual = gradients(module, half)
    monkeypatch.setattr(feedforward, "product_of_units", plain)
    expected = gradients(module, half)
    assert len(actual) == len(expected) > 2
    assert all(torch.equal(one, other) for one, other in zip(actual, expected, strict=True))


@pytest.mark.parametrize("spec", [spec for spec in SPECS if not spec.dropout], ids=str)
def test_only_features_are_kept(spec: DenseFeedForwardSpec) -> None:
    """What is alive between forward and backward, besides what goes in, comes out, and was there."""
    module = built(spec, 64)
    x = torch.randn(1, 512, 64, requires_grad=True)
    with Meter([x, *module.parameters()]) as meter:
        before = meter.live
        y, _ = module(x)
        held = meter.live - before
    assert held == 4 * (y.numel() + 512 * spec.features(64))
    y.sum().backward()


def test_a_second_gradient_and_one_that_is_never_asked_for() -> None:
    module = built(SPECS[0])
    x = torch.randn(1, 4, 24, requires_grad=True)
    y, _ = module(x)
    (first,) = torch.autograd.grad(y.sum(), x, retain_graph=True)
    (second,) = torch.autograd.grad(y.sum(), x)
    assert torch.equal(first, second)
    gone: list[weakref.ref[Any]] = []
    gc.disable()
    try:
        features = torch.randn(4, 8, requires_grad=True).mul(2)
        gone.append(weakref.ref(features))
        y = product_of_units(features, torch.relu, nn.Linear(8, 2))
        del features, y
        assert gone[0]() is None, "nothing goes round in a circle"
    finally:
        gc.enable()


def test_hooks_of_others_decide_what_is_kept() -> None:
    """Where layers are computed again as a whole, features are not kept either."""
    module, seen = built(SPECS[0]), []
    x = torch.randn(1, 4, 24, requires_grad=True)

    def pack(kept: Tensor) -> Tensor:
        seen.append(tuple(kept.shape))
        return kept

    with saved_tensors_hooks(pack, lambda kept: kept):
        module(x)
    assert (1, 4, 96) in seen, "the features"
    assert (4, 96) in seen, "the units"
    (expected,) = torch.autograd.grad(module(x)[0].sum(), x)
    (actual,) = torch.autograd.grad(checkpoint(lambda x: module(x)[0], x, use_reentrant=False).sum(), x)
    assert torch.equal(actual, expected)
