"""What a meter counts, on tensors with data and without."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from mmformer.nn.kernel import attend
from mmformer.nn.prepacked import PackedLinear
from mmformer.scaling.accelerator import as_on_an_accelerator
from mmformer.scaling.meter import FORMULAS, PACKED, Meter, Weightless

ROWS, WIDTH = 6, 8


def update(layer: nn.Linear, x: Tensor) -> None:
    layer(x).relu().sum().backward()


def test_flops_and_bytes_of_a_linear_map() -> None:
    made = Weightless()
    layer, x = made.module(lambda: nn.Linear(WIDTH, WIDTH, bias=False)), made.tensor(ROWS, WIDTH)
    with Meter([x, *layer.parameters()]) as meter:
        before = meter.live
        y = layer(x)
        assert meter.live - before == 4 * ROWS * WIDTH
        del y
        assert meter.live == before == 4 * (ROWS * WIDTH + WIDTH * WIDTH)
    assert meter.flops == 2 * ROWS * WIDTH * WIDTH
    assert meter.peak() == before + 4 * ROWS * WIDTH


def test_it_is_the_same_with_data_and_without() -> None:
    real, made = nn.Linear(WIDTH, WIDTH), Weightless()
    planned = made.module(lambda: nn.Linear(WIDTH, WIDTH))
    found = []
    for layer, x in ((real, torch.randn(ROWS, WIDTH)), (planned, made.tensor(ROWS, WIDTH))):
        with Meter([x, *layer.parameters()]) as meter:
            update(layer, x)
        found.append((meter.flops, meter.peak(), meter.live))
    assert found[0] == found[1]


def test_the_gradients_of_a_weight_that_is_used_twice_are_added_up_in_place() -> None:
    real, made = torch.randn(99, WIDTH, requires_grad=True), Weightless().module(lambda: nn.Embedding(99, WIDTH))
    found = []
    for weight in (real, made.weight):
        with Meter([weight]) as meter:
            x = F.embedding(torch.arange(ROWS), weight)
            F.linear(x, weight).sum().backward()
        found.append(meter.peak())
    assert found[0] == found[1]
    assert found[0] < 4 * weight.nbytes, "the weight and its two gradients, and less than another"


def test_gradients_are_told_from_the_rest() -> None:
    made = Weightless()
    layer, x = made.module(lambda: nn.Linear(WIDTH, WIDTH, bias=False)), made.tensor(ROWS, WIDTH)
    meter = Meter([x, *layer.parameters()])
    layer.weight.register_post_accumulate_grad_hook(lambda p: meter.mark_gradient(p.grad))
    with meter:
        update(layer, x)
    size = 4 * WIDTH * WIDTH
    assert meter.gradients == size
    assert meter.peak(0.5) <= meter.peak() <= meter.peak(0.5) + size / 2


def test_a_mask_that_is_known_says_how_many_rows_there_are() -> None:
    x = Weightless().tensor(4, WIDTH)
    with Meter():
        assert x[torch.tensor([True, False, True, True])].shape == (3, WIDTH)


def test_attention_is_counted_as_its_products() -> None:
    heads, queries, width = 2, 5, 4
    shape = (1, heads, queries, width)
    tensors = [torch.randn(shape, requires_grad=True) for _ in range(3)]
    product = 2 * heads * queries * queries * width
    with Meter() as meter, FlopCounterMode(display=False, custom_mapping=FORMULAS) as counter:
        y = attend(*tensors, None, causal=False, dropout=0.0)
        assert meter.flops == meter.attention == 2 * product
        y.sum().backward()
    assert meter.flops == counter.get_total_flops() == 7 * product


def test_inference_mode_counts_the_same_products_and_bytes() -> None:
    """It dispatches composite operations as they are, which have no formula by themselves."""
    x, layer = torch.randn(2, ROWS, WIDTH), nn.Linear(WIDTH, WIDTH)
    tokens = torch.randn(1, 2, ROWS, WIDTH)

    def work() -> Tensor:
        return layer(x) @ x.mT + F.scaled_dot_product_attention(tokens, tokens, tokens).sum()

    with torch.no_grad(), Meter() as plain:
        work()
    with torch.inference_mode(), Meter() as inferring:
        work()
    products = 2 * x.numel() * WIDTH + 2 * x.numel() * ROWS + 4 * tokens.numel() * ROWS
    assert plain.flops == inferring.flops == products
    assert plain.attention == inferring.attention == 4 * tokens.numel() * ROWS
    assert plain.peak() == inferring.peak()


@pytest.mark.skipif(not PACKED, reason="this PyTorch has no packed weights")
def test_products_with_packed_weights_are_counted_as_those_with_plain_ones() -> None:
    x, layer = torch.randn(ROWS, 3, WIDTH), nn.Linear(WIDTH, 2 * WIDTH)
    with torch.inference_mode(), Meter() as meter:
        PackedLinear.of(layer.weight, layer.bias, 3 * ROWS)(x)
    assert meter.flops == 2 * x.numel() * 2 * WIDTH


def test_one_query_is_the_fused_kernels_as_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Which a CPU has products of its own for."""
    fused, calls = F.scaled_dot_product_attention, list[int]()
    monkeypatch.setattr(F, "scaled_dot_product_attention", lambda *a, **k: (calls.append(1), fused(*a, **k))[1])
    query, key = torch.randn(4, 8, 1, 8).bfloat16(), torch.randn(4, 8, 5, 8).bfloat16()
    with torch.inference_mode():
        attend(query, key, key, None, False, 0.0)
        assert not calls
        with as_on_an_accelerator():
            attend(query, key, key, None, False, 0.0)
        assert calls == [1]
        attend(query, key, key, None, False, 0.0)
    assert calls == [1]
