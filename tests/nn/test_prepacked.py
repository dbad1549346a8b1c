"""Packed weights make what weights make, and leave the module that they are of alone."""

from __future__ import annotations

import pytest
import torch
from contract import Case, make_inputs, make_stack
from torch import nn
from torch.testing import assert_close

from mmformer.nn import prepacked as packing
from mmformer.nn.feedforward import SwiGLUFeedForwardSpec
from mmformer.nn.layer import LayerSpec
from mmformer.nn.prepacked import PackedLinear, can_pack, packed_for, prepacked, weights_to_pack
from mmformer.nn.sharing import SharingSpec
from mmformer.nn.stack import StackSpec

CASE = Case("attention_grouped", "rotary", "causal", True, False, "layer_norm", "pre", "geglu", "other_width", False)
pytestmark = pytest.mark.skipif(
    not (torch.backends.mkl.is_available() and torch.backends.mkldnn.is_available()), reason="PyTorch without MKL"
)


@pytest.fixture(params=[True, False], ids=["mkl", "onednn"])
def of_mkl(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Float32 as on Intel's processors, and as on others: both orders are there on each of them."""
    intel: bool = request.param
    monkeypatch.setattr(packing, "_processor", lambda: "intel" if intel else "other")
    return intel


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(8, 24), (4, 2, 24), (8, 1, 24), (3, 24), (4, 24), (5, 1, 24), (5, 7, 24), (0, 24)])
def test_a_packed_map_is_the_map(shape: tuple[int, ...], dtype: torch.dtype, bias: bool, of_mkl: bool) -> None:
    """For as many rows as it was packed for, in any shape, and for others."""
    linear, x = nn.Linear(24, 40, bias=bias, dtype=dtype), torch.randn(shape, dtype=dtype)
    with torch.no_grad():
        packed = PackedLinear.of(linear.weight, linear.bias, rows=8)
        y = packed(x)
    assert packed.of_mkl == (of_mkl and dtype == torch.float32)
    assert y.shape == (*shape[:-1], 40)
    assert y.dtype == dtype
    tolerance = 1e-6 if dtype == torch.float32 else 1e-2
    assert_close(y, linear(x), rtol=tolerance, atol=tolerance)
    assert packed.weight.data_ptr() == linear.weight.data_ptr()


def test_a_map_is_packed_in_what_autocast_computes_in() -> None:
    linear, x = nn.Linear(24, 40), torch.randn(2, 24)
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        y = PackedLinear.of(linear.weight, linear.bias, rows=2)(x)
        assert y.dtype == torch.bfloat16
        assert_close(y, linear(x), rtol=1e-2, atol=1e-2)


def test_a_packed_stack_is_the_stack_and_shares_all_but_its_maps(of_mkl: bool) -> None:
    stack, inputs = make_stack(CASE.spec, torch.float32), make_inputs(CASE, torch.float32)
    with torch.no_grad():
        packed = prepacked(stack, rows=27)
        assert_close(inputs(packed), inputs(stack), rtol=1e-5, atol=1e-5)
    kinds = {type(part) for part in packed.modules()}
    assert PackedLinear in kinds
    assert nn.Linear not in kinds
    assert not any(isinstance(part, PackedLinear) for part in stack.modules())
    own = {value.data_ptr() for value in stack.parameters()}
    assert own == {value.data_ptr() for value in packed.parameters()}


@pytest.mark.parametrize(
    ("known", "expected"),
    [
        ({"architecture": "x86_64", "cpu_name": "Intel(R) Xeon(R) Processor"}, "mkl"),
        ({"architecture": "x86_64", "cpu_name": "AMD EPYC"}, "onednn"),
        ({"architecture": "x86_64"}, "mkl"),
        ({"architecture": "aarch64", "cpu_name": "Neoverse-N1"}, None),
        ({}, None),
    ],
)
def test_whose_order_float32_has(known: dict[str, str], expected: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: known)
    monkeypatch.setattr(packing, "_processor", packing._processor.__wrapped__)
    assert packing.is_mkls(torch.float32) == (expected == "mkl")
    assert packing.is_onednns(torch.float32) == (expected == "onednn")
    assert not packing.is_mkls(torch.bfloat16)
    assert not packing.is_onednns(torch.float64)
    assert packed_for(torch.float32, 8) == (8 if expected == "mkl" else 256), "exactly as many, or the best for few"
    assert packed_for(torch.bfloat16, 8) == 64
    assert packed_for(torch.float64, 8) == 8, "which is not packed"
    with torch.no_grad():
        assert can_pack([torch.randn(8, 8)], 4) == (expected is not None)
    monkeypatch.setattr(torch.backends.mkl, "is_available", lambda: False)
    assert not packing.is_mkls(torch.float32)


def test_layers_that_share_weights_are_packed_once() -> None:
    layer = LayerSpec(feedforward=SwiGLUFeedForwardSpec())
    stack = StackSpec(32, 4, layer, sharing=SharingSpec(distinct=2)).build()
    with torch.no_grad():
        packed = prepacked(stack, rows=4)
    maps = [part for part in packed.modules() if isinstance(part, PackedLinear)]
    assert len(maps) == sum(type(part) is nn.Linear for part in stack.modules())


def test_what_is_not_packed(monkeypatch: pytest.MonkeyPatch, of_mkl: bool) -> None:
    weights = [torch.randn(8, 8), torch.randn(8, 4)]
    assert not can_pack(weights, 4), "a gradient may be wanted"
    with torch.no_grad():
        assert can_pack(weights, 4)
        assert can_pack(weights, 3) != of_mkl, "so few rows are as fast"
        assert not can_pack([weight.double() for weight in weights], 4)
        assert not can_pack([weights[0], torch.empty(3, 3, device="meta")], 4)
        assert not can_pack([weights[0].as_subclass(Odd)], 4), "it may hold what it does not seem to"
        monkeypatch.setattr(packing, "MOST", 4 * 95)
        assert not can_pack(weights, 4), "96 numbers take too much memory together"


class Odd(torch.Tensor):
    """A tensor that is more than it seems."""


@pytest.mark.parametrize("name", ["forward", "computed", "_compiled_call_impl"])
def test_a_module_that_is_more_than_it_seems(name: str) -> None:
    """As ``parallel/compiling.py`` and ``nn.Module.compile`` leave one."""
    stack = StackSpec(32, 2).build()
    hook = stack.layers[0].register_forward_pre_hook(lambda module, args: None)
    assert weights_to_pack(stack) is None, "what a hook would do, it would do to another"
    hook.remove()
    assert len(weights_to_pack(stack) or ()) == 8
    setattr(stack.layers[1], name, stack.layers[1].forward)
    assert weights_to_pack(stack) is None, "a program is of the module that it was made of"


def test_a_child_that_is_not_there() -> None:
    module = nn.Sequential(nn.Linear(8, 8))
    module.register_module("missing", None)
    with torch.no_grad():
        packed = prepacked(module, 4)
    assert isinstance(packed[0], PackedLinear)
