"""A linear map and its GELU in one: what the two make, and only where they would be."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from mmformer.nn import feedforward, prepacked
from mmformer.nn.feedforward import GELUFeedForwardSpec, PlainFeedForward
from mmformer.nn.fused import FEWEST, can_fuse, linear_gelu
from mmformer.nn.prepacked import PackedLinear

supported = pytest.mark.skipif(
    not (torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()),  # type: ignore[no-untyped-call]
    reason="the kernel is for CPUs that compute in bfloat16",
)

onednn = pytest.mark.skipif(
    not torch.backends.mkldnn.is_available(),  # type: ignore[no-untyped-call]
    reason="PyTorch without oneDNN",
)


def built(approximate: Literal["none", "tanh", "sigmoid"]) -> PlainFeedForward:
    torch.manual_seed(0)
    module = GELUFeedForwardSpec(approximate=approximate).build(32)
    assert isinstance(module, PlainFeedForward)
    for part in (module.up, module.down):
        part.reset_parameters()
    return module


@supported
@pytest.mark.parametrize("approximate", ["none", "tanh"])
@pytest.mark.parametrize("autocast", [False, True])
def test_a_feedforward_is_what_its_parts_are(
    approximate: Literal["none", "tanh"], autocast: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = built(approximate)
    x = torch.randn(4, FEWEST // 4, 32)
    exact = module.float()(x)[0]
    if not autocast:
        module, x = module.bfloat16(), x.bfloat16()
    called: list[str] = []
    monkeypatch.setattr(feedforward, "linear_gelu", lambda *given: (called.append(given[2]), linear_gelu(*given))[1])
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        actual, _ = module(x)
        assert called == [approximate]
        monkeypatch.setattr(feedforward, "can_fuse", lambda *_: False)
        plain, _ = module(x)
    assert len(called) == 1
    error = (plain.float() - exact).abs().max()
    assert (actual.float() - exact).abs().max() <= 1.5 * error


@supported
@pytest.mark.parametrize(
    "change",
    [
        lambda up: up.register_forward_hook(lambda *called: None),
        lambda up: up.register_parameter("bias", None),
    ],
)
def test_what_is_more_than_two_maps_is_left(change: Callable[[nn.Linear], object]) -> None:
    up = nn.Linear(32, 8).bfloat16()
    x = torch.randn(FEWEST, 32).bfloat16()
    with torch.inference_mode():
        assert can_fuse(x, up, "none")
        assert not can_fuse(x[:-1], up, "none")
        assert not can_fuse(x, up, "sigmoid")
        with FlopCounterMode(display=False):
            assert not can_fuse(x, up, "none")
        assert not can_fuse(x, nn.Linear(32, 8), "none"), "which is refused in products, too"
        assert not can_fuse(x.float(), up, "none"), "and so is that"
        change(up)
        assert not can_fuse(x, up, "none")
    with torch.no_grad():
        assert not can_fuse(x, nn.Linear(32, 8).bfloat16(), "none"), "one with a gradient may follow"


@supported
def test_a_packed_map_is_fused_for_any_number_of_tokens() -> None:
    up, x = nn.Linear(32, 64).bfloat16(), torch.randn(1, 32).bfloat16()
    with torch.inference_mode():
        packed = PackedLinear.of(up.weight, up.bias, rows=1)
        assert can_fuse(x, packed, "tanh")
        assert not can_fuse(x, up, "tanh")
        expected = nn.functional.gelu(up(x).float(), approximate="tanh")
        torch.testing.assert_close(linear_gelu(x, packed, "tanh").float(), expected, rtol=2e-2, atol=2e-2)


@onednn
@pytest.mark.parametrize("approximate", ["none", "tanh"])
def test_float32_is_fused_where_its_products_are_not_mkls(
    approximate: Literal["none", "tanh"], monkeypatch: pytest.MonkeyPatch
) -> None:
    module, x = built(approximate), torch.randn(4, FEWEST // 4, 32)
    called = list[str]()
    monkeypatch.setattr(feedforward, "linear_gelu", lambda *given: (called.append(given[2]), linear_gelu(*given))[1])
    made = {}
    with torch.inference_mode():
        for processor in ("intel", "unknown", "other"):
            monkeypatch.setattr(prepacked, "_processor", lambda answer=processor: answer)
            made[processor], _ = module(x)
            assert called == ([approximate] if processor == "other" else [])
            assert not can_fuse(x.double(), module.up.double(), approximate)
            module.float()
        weight = module.up.weight.as_subclass(Odd)
        module.up.register_parameter("weight", nn.Parameter(weight, requires_grad=False))
        assert type(module.up.weight) is Odd
        assert not can_fuse(x, module.up, approximate), "it may hold what it does not seem to"
    torch.testing.assert_close(made["other"], made["unknown"], rtol=1e-5, atol=1e-6)


class Odd(torch.Tensor):
    """A tensor that is more than it seems."""


@onednn
@pytest.mark.skipif(not torch.backends.mkl.is_available(), reason="PyTorch without MKL")
@pytest.mark.parametrize("approximate", ["none", "tanh"])
def test_float32_is_fused_in_onednns_order_alone(
    approximate: Literal["none", "tanh"], monkeypatch: pytest.MonkeyPatch
) -> None:
    up, x = nn.Linear(32, 64), torch.randn(3, 32)
    for processor in ("intel", "other"):
        monkeypatch.setattr(prepacked, "_processor", lambda answer=processor: answer)
        with torch.inference_mode():
            packed = PackedLinear.of(up.weight, up.bias, rows=1)
            assert can_fuse(x, packed, approximate) == (processor == "other")
            assert not can_fuse(x.bfloat16(), packed, approximate)
    with torch.inference_mode():
        expected = nn.functional.gelu(up(x), approximate=approximate)
        torch.testing.assert_close(linear_gelu(x, packed, approximate), expected, rtol=1e-5, atol=1e-6)
