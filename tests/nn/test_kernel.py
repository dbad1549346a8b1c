"""The routes that attention may take have one meaning: plain products equal PyTorch's fused kernel."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.testing import assert_close

from mmformer.nn import kernel

QUERIES, KEYS = 5, 7


def tensors(key_heads: int, queries: int, keys: int, dtype: torch.dtype) -> list[Tensor]:
    draw = torch.Generator().manual_seed(0)
    shapes = ((2, 4, queries, 8), (2, key_heads, keys, 8), (2, key_heads, keys, 8))
    return [torch.randn(shape, generator=draw).to(dtype).requires_grad_() for shape in shapes]


def make_mask(kind: str, dtype: torch.dtype) -> Tensor | None:
    """Masks in which the first sample sees all but what is hidden, and one query of the second sees nothing."""
    if kind in ("none", "causal"):
        return None
    draw = torch.Generator().manual_seed(1)
    allowed = torch.rand(2, 1, QUERIES, KEYS, generator=draw) > 0.4
    allowed[:, :, :, 0] = True
    allowed[1, :, 2] = False
    if kind == "boolean":
        return allowed
    if kind == "keys":  # one row for all queries; the second sample sees nothing
        return (torch.arange(KEYS) < torch.tensor([4, 0])[:, None])[:, None, None]
    bias = torch.randn(1 if kind == "shared bias" else 2, 4, QUERIES, KEYS, generator=draw).to(dtype)
    return bias if kind == "shared bias" else bias.masked_fill(~allowed, float("-inf"))


@pytest.mark.parametrize("kind", ["none", "causal", "boolean", "keys", "shared bias", "bias"])
@pytest.mark.parametrize("key_heads", [4, 2, 1])
def test_plain_products_equal_the_fused_kernel(key_heads: int, kind: str) -> None:
    """Values and gradients, in float64."""
    keys = QUERIES if kind == "causal" else KEYS
    mask, results = make_mask(kind, torch.float64), []
    for route in (kernel._plain, kernel.attend):
        inputs = tensors(key_heads, QUERIES, keys, torch.float64)
        y = route(*inputs, mask, kind == "causal", 0.0)
        results.append((y, *torch.autograd.grad(y.square().sum(), inputs)))
    assert_close(results[0], results[1], rtol=1e-12, atol=1e-12)
    assert all(bool(tensor.isfinite().all()) for tensor in results[0])


@pytest.mark.parametrize("kind", ["none", "boolean", "keys", "shared bias", "bias"])
@pytest.mark.parametrize("key_heads", [4, 2, 1])
def test_one_query_by_any_route_is_the_same(key_heads: int, kind: str) -> None:
    """Values and gradients, in float64; one that sees nothing gets zero."""
    mask, results = make_mask(kind, torch.float64), []
    mask = None if mask is None else mask[:, :, 2:3] if mask.shape[2] > 1 else mask
    for route in (
        lambda *given: kernel._of_one(*given, mask, 0.0, 0.7),
        lambda *given: kernel.attend(*given, mask, False, 0.0, 0.7),
        lambda *given: kernel._plain(*given, mask, False, 0.0, 0.7),
    ):
        inputs = tensors(key_heads, 1, KEYS, torch.float64)
        y = route(*inputs)
        results.append((y, *torch.autograd.grad(y.square().sum(), inputs)))
    assert_close(results[0], results[2], rtol=1e-12, atol=1e-12)
    assert_close(results[1], results[2], rtol=1e-12, atol=1e-12)
    assert bool(results[0][0][1].any()) == (kind in ("none", "shared bias")), "the second sample's may see nothing"


@pytest.mark.parametrize("peaked", [1, 8])
@pytest.mark.parametrize("kind", ["none", "boolean", "keys", "shared bias"])
def test_one_query_in_bfloat16_goes_that_way_in_inference_mode(
    kind: str, peaked: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also by a mask that was lowered; as near to what is exact as an update's plain products are."""
    fused, calls = F.scaled_dot_product_attention, []
    monkeypatch.setattr(F, "scaled_dot_product_attention", lambda *a, **k: (calls.append(1), fused(*a, **k))[1])
    query, key, value = (tensor.detach() for tensor in tensors(2, 1, KEYS, torch.bfloat16))
    inputs, mask = (query * peaked, key, value), make_mask(kind, torch.bfloat16)
    mask = None if mask is None else mask[:, :, :1]
    exact = mask if mask is None or mask.dtype == torch.bool else mask.double()
    expected = kernel._plain(*(tensor.double() for tensor in inputs), exact, False, 0.0)
    plain = kernel._plain(*inputs, mask, False, 0.0)
    monkeypatch.setattr(kernel, "FEWEST_HEADS", 9)  # there are two rows of four
    with torch.inference_mode():
        kernel.attend(*inputs, mask, False, 0.0)
        assert len(calls) == 1
        monkeypatch.setattr(kernel, "FEWEST_HEADS", 8)
        lowered = None if mask is None else kernel.lower(mask, torch.zeros(2, 1, 32, dtype=torch.bfloat16), KEYS)
        found = [kernel.attend(*inputs, each, False, 0.0) for each in (mask, lowered)]
    assert len(calls) == 1
    error = (plain.double() - expected).abs().max()
    for each in found:
        assert each.dtype == torch.bfloat16
        assert (each.double() - expected).abs().max() <= 1.5 * error + 1e-3


def test_one_query_with_a_gradient_is_an_updates() -> None:
    inputs = tensors(2, 1, KEYS, torch.bfloat16)
    assert torch.equal(kernel.attend(*inputs, None, False, 0.0), kernel._plain(*inputs, None, False, 0.0))


@pytest.mark.parametrize("kind", ["none", "causal", "boolean", "keys", "shared bias", "bias"])
def test_bfloat16_takes_a_route_by_its_length_and_means_the_same(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    keys = QUERIES if kind == "causal" else KEYS
    fused, calls, results = F.scaled_dot_product_attention, [], []
    monkeypatch.setattr(F, "scaled_dot_product_attention", lambda *a, **k: (calls.append(1), fused(*a, **k))[1])
    mask = make_mask(kind, torch.bfloat16)
    for longest in (keys, keys - 1):
        monkeypatch.setattr(kernel, "PLAIN_KEYS", longest)
        results.append(kernel.attend(*tensors(2, QUERIES, keys, torch.bfloat16), mask, kind == "causal", 0.0))
        assert len(calls) == (0 if longest == keys else 1)
    exact = None if mask is None or mask.dtype == torch.bool else mask.double()
    inputs = [tensor.double() for tensor in tensors(2, QUERIES, keys, torch.bfloat16)]
    expected = kernel.attend(*inputs, mask if exact is None else exact, kind == "causal", 0.0)
    for result in results:
        assert result.dtype == torch.bfloat16
        assert_close(result.double(), expected, rtol=0, atol=1.5e-2)


@pytest.mark.parametrize("kind", ["none", "causal", "boolean", "keys", "shared bias", "bias"])
def test_bfloat16_takes_the_fused_kernel_in_inference_mode(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also by a mask that was lowered; a pass that is only without a gradient is as one with it."""
    keys = QUERIES if kind == "causal" else KEYS
    fused, calls = F.scaled_dot_product_attention, []
    monkeypatch.setattr(F, "scaled_dot_product_attention", lambda *a, **k: (calls.append(1), fused(*a, **k))[1])
    mask, results = make_mask(kind, torch.bfloat16), []
    inputs = [tensor.detach() for tensor in tensors(2, QUERIES, keys, torch.bfloat16)]
    for mode, route in ((torch.no_grad, 0), (torch.inference_mode, 1)):
        calls.clear()
        with mode():
            lowered = None if mask is None else kernel.lower(mask, inputs[0], keys)
            assert lowered is None or mask is None or (lowered is mask) == (not route or mask.dtype != torch.bool)
            results.append(kernel.attend(*inputs, lowered, kind == "causal", 0.0))
        assert len(calls) == route
    assert_close(results[0], results[1].clone(), rtol=0, atol=1.5e-2)


def test_dropout_drops_weights_on_every_route() -> None:
    """Weights are dropped and the rest scaled up: with values of 1, what comes out is 1 on average, and varies."""
    for route in (kernel._plain, kernel.attend):
        torch.manual_seed(0)
        query, key = torch.zeros(1, 1, 2000, 4), torch.zeros(1, 1, 20, 4)
        y = route(query, key, torch.ones(1, 1, 20, 4), None, False, 0.25)[0, 0, :, 0]
        assert abs(float(y.mean()) - 1) < 0.02
        # of 20 weights of 1/20, each kept with 3/4 and scaled by 4/3: the variance is (4/3 - 1) / 20
        assert abs(float(y.var()) * 60 - 1) < 0.15


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", ["boolean", "keys", "bias"])
def test_a_mask_that_is_lowered_once_means_the_same(
    kind: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in float64, by the plain and the fused way."""
    mask, x = make_mask(kind, torch.float64), torch.empty(2, QUERIES, 32, dtype=dtype)
    assert mask is not None
    inputs = tensors(4, QUERIES, KEYS, dtype)
    expected = kernel.attend(*(each.double() for each in inputs), mask, False, 0.0)
    for longest in (KEYS, KEYS - 1):
        monkeypatch.setattr(kernel, "PLAIN_KEYS", longest)
        made = kernel.lower(mask, x, KEYS)
        plain = dtype == torch.bfloat16 and longest == KEYS
        assert made.dtype == (torch.bool if plain and kind != "bias" else dtype)
        y = kernel.attend(*inputs, made, False, 0.0)
        tolerance = 1e-6 if dtype == torch.float32 else 2e-2
        assert_close(y.double(), expected, rtol=0, atol=tolerance)


def test_gradients_of_a_learned_bias_are_added_up_as_precisely_as_it_is() -> None:
    """Over layers, whose queries autocast has in bfloat16."""
    bias, x = torch.zeros(1, 4, QUERIES, KEYS, requires_grad=True), torch.empty(2, QUERIES, 32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        made = kernel.lower(bias, x, KEYS)
    (gradient,) = torch.autograd.grad((made * 256.0).sum() + sum((made * 0.5).sum() for _ in range(8)), bias)
    assert torch.equal(gradient, torch.full_like(gradient, 260.0)), "in bfloat16 the small ones would be lost"


def test_a_mask_is_lowered_to_what_autocast_computes_in() -> None:
    mask, x = make_mask("boolean", torch.float32), torch.empty(2, QUERIES, 32)
    assert mask is not None
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert kernel.lower(mask, x, kernel.PLAIN_KEYS + 1).dtype == torch.bfloat16
        assert kernel.lower(mask, x, kernel.PLAIN_KEYS).dtype == torch.bool


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_a_scale_stands_in_for_the_root_of_the_heads_width(dtype: torch.dtype) -> None:
    query, key, value = tensors(4, QUERIES, KEYS, dtype)
    expected = (0.7 * query.double() @ key.double().mT).softmax(-1) @ value.double()
    y = kernel.attend(query, key, value, None, False, 0.0, scale=0.7)
    assert_close(y.double(), expected, rtol=0, atol=1e-12 if dtype == torch.float64 else 2e-2)
