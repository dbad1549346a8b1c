"""Linear maps of rows in groups: one matrix for each group, and none for the rows past the last."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from mmformer.nn import grouped
from mmformer.nn.grouped import GroupedLinear, grouped_linear

ENDS = torch.tensor([3, 3, 8])  # the second group has no rows; two rows are no group's


def by_hand(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    y = torch.zeros(len(x), weight.shape[1], dtype=x.dtype)
    for group, rows in enumerate((slice(0, 3), slice(3, 3), slice(3, 8))):
        y[rows] = F.linear(x[rows], weight[group], None if bias is None else bias[group])
    return y


@pytest.mark.parametrize("bias", [False, True])
def test_each_group_has_its_matrix(bias: bool) -> None:
    module = GroupedLinear(3, 6, 5, bias).double()
    x = torch.randn(10, 6, dtype=torch.float64, requires_grad=True)
    leaves = [x, *module.parameters()]
    y, expected = module(x, ENDS), by_hand(x, module.weight, module.bias)
    torch.testing.assert_close(y, expected)
    assert bool((y[8:] == 0).all())
    upstream = torch.randn_like(y)
    for ours, theirs in zip(
        torch.autograd.grad(y, leaves, upstream), torch.autograd.grad(expected, leaves, upstream), strict=True
    ):
        torch.testing.assert_close(ours, theirs)


def test_rows_of_no_group_touch_nothing() -> None:
    module, x = GroupedLinear(3, 6, 5, True), torch.randn(10, 6)
    x[8:] = float("nan")
    x.requires_grad_()
    y = module(x, ENDS)
    gradients = torch.autograd.grad(y.sum(), [x, *module.parameters()])
    assert bool(y.isfinite().all()) and all(bool(g.isfinite().all()) for g in gradients)


def test_the_operation_keeps_pytorchs_rules() -> None:
    """Its shapes without data, its gradient, and that it changes nothing in place."""
    x = torch.randn(10, 6, requires_grad=True)
    weight, bias = torch.randn(3, 5, 6, requires_grad=True), torch.randn(3, 5, requires_grad=True)
    for given in (bias, None):
        torch.library.opcheck(grouped_linear, (x, weight, given, ENDS))


def test_first_weights_are_those_of_a_linear_map() -> None:
    torch.manual_seed(0)
    grouped, linear = GroupedLinear(4, 64, 128, True), torch.nn.Linear(64, 128)
    for name in ("weight", "bias"):
        ours, theirs = getattr(grouped, name).detach(), getattr(linear, name).detach()
        assert float(ours.abs().max()) <= 64**-0.5
        assert float(ours.std() / theirs.std()) == pytest.approx(1, rel=0.1)
    assert not torch.equal(grouped.weight[0], grouped.weight[1])


def test_autocast_computes_products_in_its_precision() -> None:
    module, x = GroupedLinear(3, 6, 5, True), torch.randn(10, 6)
    with torch.autocast("cpu", torch.bfloat16):
        y = module(x, ENDS)
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y.float(), module(x, ENDS), rtol=0.03, atol=0.03)
    y.float().sum().backward()
    assert module.weight.grad is not None and module.weight.grad.dtype == torch.float32


@pytest.mark.parametrize("bias", [False, True])
def test_the_gpus_way_means_the_same(bias: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is done around its kernel, which PyTorch also has for the CPU: rows of no group, biases, gradients."""
    module, x = GroupedLinear(3, 16, 8, bias), torch.randn(10, 16, requires_grad=True)
    leaves, upstream, found = [x, *module.parameters()], torch.randn(10, 8), []
    for kernel in (False, True):
        monkeypatch.setattr(grouped, "_has_kernel", lambda *_, kernel=kernel: kernel)
        y = module(x, ENDS)
        found.append([y, *torch.autograd.grad(y, leaves, upstream)])
    for one, two in zip(*found, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-5, atol=1e-5)
