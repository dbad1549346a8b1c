"""Units and norms that are made again for the gradient: the same bits, in less memory."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
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
from mmformer.nn.layer import LayerSpec
from mmformer.nn.norm import LayerNormSpec, NormSpec, RMSNormSpec
from mmformer.nn.recomputed import normed, product_of, product_of_units
from mmformer.nn.stack import StackSpec
from mmformer.scaling.meter import Meter
from mmformer.types import AXES, Tokens

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


def test_what_was_changed_in_place_is_told() -> None:
    product = nn.Linear(8, 2)
    y = product_of_units(torch.randn(4, 8, requires_grad=True).mul(2), torch.relu, product)
    with torch.no_grad():
        product.weight.add_(1)
    with pytest.raises(RuntimeError, match=r"of shape \((8, 2|2, 8)\) that a gradient needs was changed in place"):
        y.sum().backward()


def test_a_plan_counts_what_is_kept() -> None:
    """Tensors without data keep as much as others."""
    held = []
    for mode in (nullcontext(), FakeTensorMode()):
        with mode:
            stack = StackSpec(width=64, depth=2).build()
            x = torch.randn(1, 128, 64, requires_grad=True)
            tokens = Tokens(x, torch.zeros(1, 128, AXES, dtype=torch.int64))
            with Meter([x, *stack.parameters()]) as meter:
                before = meter.live
                made = stack(tokens)
                held.append(meter.live - before)
                del made
    assert held[0] == held[1]


NORMS: tuple[NormSpec, ...] = (LayerNormSpec(), LayerNormSpec(bias=False), RMSNormSpec())


def drawn_norm(spec: NormSpec) -> nn.Module:
    norm = spec.build(24)
    for parameter in norm.parameters():
        nn.init.normal_(parameter)
    return norm


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("spec", NORMS, ids=str)
def test_a_product_of_normed_tokens_has_the_gradient_of_the_plain_one(spec: NormSpec, frozen: bool) -> None:
    torch.manual_seed(0)
    norm, product = drawn_norm(spec), nn.Linear(24, 8)
    norm.requires_grad_(not frozen)
    x = torch.randn(2, 9, 24, requires_grad=True)
    wanted = [x, *(each for each in (*norm.parameters(), *product.parameters()) if each.requires_grad)]
    expected = torch.autograd.grad(product(norm(x)).square().sum(), wanted)
    entered = normed(x, norm)
    twice = torch.autograd.grad(product_of(entered, product).square().sum(), wanted, retain_graph=True)
    assert all(torch.equal(one, other) for one, other in zip(twice, expected, strict=True))
    beside = torch.autograd.grad(product(entered).square().sum(), wanted)  # one that keeps what it reads
    assert all(torch.equal(one, other) for one, other in zip(beside, expected, strict=True))


@pytest.mark.parametrize("spec", NORMS, ids=str)
def test_normed_tokens_are_not_kept(spec: NormSpec) -> None:
    norm, product = drawn_norm(spec), nn.Linear(24, 8)
    x = torch.randn(1, 512, 24, requires_grad=True)
    with Meter([x, *norm.parameters(), *product.parameters()]) as meter:
        before = meter.live
        y = product_of(normed(x, norm), product)
        assert meter.live - before == 4 * y.numel()


def test_norms_are_plain_where_they_are_more_than_they_seem() -> None:
    """Hooks of a norm are called once; in another precision the product keeps a copy of its own anyway."""
    norm, seen = LayerNormSpec().build(24), []
    x = torch.randn(2, 24, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        assert "_Made" not in type(normed(x, norm).grad_fn).__name__
    identity = nn.Identity()
    assert normed(x, identity) is x
    norm.register_forward_hook(lambda *called: seen.append(called))
    normed(x, norm).sum().backward()
    assert len(seen) == 1


@pytest.mark.parametrize("placement", ["pre", "sandwich"])
@pytest.mark.parametrize("parallel", [False, True])
def test_a_stack_keeps_no_normed_tokens(placement: str, parallel: bool) -> None:
    """Of each layer: what its branches read, q k v, what attention makes and its softmax's sums, and features."""
    if parallel and placement != "pre":
        pytest.skip("layers of branches side by side normalise once")
    layer = LayerSpec(placement=placement, parallel=parallel)  # type: ignore[arg-type]
    held = []
    for depth in (1, 3):
        torch.manual_seed(0)
        stack = StackSpec(width=64, depth=depth, layer=layer).build()
        x = torch.randn(1, 128, 64, requires_grad=True)
        with Meter([x, *stack.parameters()]) as meter:
            before = meter.live
            y = stack(Tokens(x, torch.zeros(1, 128, AXES, dtype=torch.int64)))
            held.append(meter.live - before)
        del y
    token = 4 * 128 * 64
    # A sandwich keeps a branch's end, and its norm's mean and deviation, too.
    units = 10 - parallel + 2 * (placement == "sandwich")
    rest = (held[1] - held[0]) / 2 - units * token
    assert 0 <= rest <= 0.3 * token, "sums of softmax, means and deviations"
