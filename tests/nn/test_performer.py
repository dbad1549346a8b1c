"""Performer: what its features estimate and how well, what no exponent spoils, and when directions change."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.testing import assert_close

from mmformer.nn.layer import LayerSpec
from mmformer.nn.mask import Mask
from mmformer.nn.mixer import View
from mmformer.nn.performer import Performer, PerformerSpec, orthogonal_directions, redraw
from mmformer.nn.stack import StackSpec

HEADS, WIDTH, LENGTH = 4, 16, 64  # of a head


def normal(scale: float = 1.0, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    draw = torch.Generator().manual_seed(seed)
    query, key, value = torch.randn(3, 1, HEADS, LENGTH, WIDTH, generator=draw)
    return scale * query, scale * key, value


def performer(**options: int | None) -> Performer:
    return PerformerSpec(heads=HEADS, **options).build(HEADS * WIDTH)  # type: ignore[arg-type]


def estimate(inputs: tuple[Tensor, Tensor, Tensor], causal: bool = False, **options: int | None) -> Tensor:
    return performer(**options).attend(*inputs, View(Mask(causal)), None, keep=False)[0]


def error(causal: bool, features: int) -> float:
    """Against softmax attention, relative, root of the mean square over draws."""
    inputs = normal(0.4)
    exact = F.scaled_dot_product_attention(*inputs, is_causal=causal)
    errors = [estimate(inputs, causal, features=features, seed=seed) - exact for seed in range(6)]
    return float(torch.stack(errors).norm() / math.sqrt(len(errors)) / exact.norm())


@pytest.mark.parametrize("causal", [False, True])
def test_the_error_against_softmax_falls_as_one_over_the_root_of_the_features(causal: bool) -> None:
    errors = {features: error(causal, features) for features in (32, 128, 512, 2048)}
    for few, many in ((32, 128), (128, 512), (512, 2048)):
        assert errors[many] < 0.6 * errors[few], errors
    for features, found in errors.items():
        assert 0.7 < found * math.sqrt(features) < 1.3, errors


def test_the_kernel_is_estimated_without_bias() -> None:
    query, key, _ = normal(0.5)
    module = performer(features=64)
    kernels = []
    for number in range(400):
        module.draw(number)
        along = module.directions.mT / WIDTH**0.25
        of_queries, of_keys = (
            (x @ along - x.square().sum(-1, keepdim=True) / (2 * WIDTH**0.5)).exp() for x in (query, key)
        )
        assert_close(module._of_keys(key), of_keys, rtol=1e-4, atol=1e-6)
        ratio = module._of_queries(query) / of_queries  # a factor of each query's own
        assert_close(ratio, ratio[..., :1].expand_as(ratio), rtol=1e-3, atol=1e-6)
        kernels.append(of_queries @ of_keys.mT / 64)
    found, exact = torch.stack(kernels).mean(0), (query @ key.mT / math.sqrt(WIDTH)).exp()
    assert float((found / exact).mean()) == pytest.approx(1, abs=0.01)
    assert float((found - exact).norm() / exact.norm()) < 0.05


def test_directions_are_orthogonal_and_as_long_as_normal_ones() -> None:
    drawn = orthogonal_directions((3, 40, 16), seed=5, number=2)
    for head in drawn:
        for block in head.split(16):
            lengths = block.norm(dim=1)
            assert_close(block @ block.T, torch.diag(lengths**2), rtol=0, atol=1e-12)
    many = orthogonal_directions((8, 512, 16), seed=0, number=0)
    assert float(many.square().sum(-1).mean()) == pytest.approx(16, rel=0.03)
    assert float(many.mean(dim=(0, 1)).norm()) < 0.1
    assert not torch.equal(drawn[0], drawn[1]), "heads differ"


def test_orthogonal_directions_have_less_error_than_independent_ones() -> None:
    inputs = normal(0.6)
    exact = F.scaled_dot_product_attention(*inputs)
    errors = {"orthogonal": 0.0, "independent": 0.0}
    module = performer(features=WIDTH)
    for number in range(60):
        for kind in errors:
            module.draw(number)
            if kind == "independent":
                draw = torch.Generator().manual_seed(number)
                module.directions.copy_(torch.randn(module.directions.shape, generator=draw))
            found = module.attend(*inputs, View(Mask()), None, keep=False)[0]
            errors[kind] += float((found - exact).square().sum())
    assert errors["orthogonal"] < 0.95 * errors["independent"], errors


@pytest.mark.parametrize("scale", [1e-4, 30.0, 1e4])
def test_no_size_of_queries_and_keys_overflows(scale: float) -> None:
    inputs = tuple(x.requires_grad_() for x in normal(scale))
    y = estimate(inputs)  # type: ignore[arg-type]
    assert bool(y.isfinite().all())
    assert bool(y.abs().amax() <= 1.001 * inputs[2].abs().amax()), "a mean of values"
    for gradient in torch.autograd.grad(y.sum(), inputs):
        assert bool(gradient.isfinite().all())


def test_a_large_key_tells_nothing_of_itself_to_those_before_it() -> None:
    query, key, value = normal()
    large = key.clone()
    large[:, :, 40:] *= 1e3
    y, changed = (estimate((query, each, value), causal=True) for each in (key, large))
    assert torch.equal(y[:, :, :40], changed[:, :, :40])


def test_directions_are_a_function_of_the_seed_and_the_number_of_redraws() -> None:
    first = performer(redraw=10, seed=3)
    other = performer(redraw=10, seed=4)
    assert torch.equal(first.directions, performer(redraw=10, seed=3).directions)
    assert not torch.equal(first.directions, other.directions)
    seen = []
    for update in range(31):
        torch.manual_seed(update)
        redraw(first, update)
        seen.append(first.directions.clone())
    for number in range(4):
        drawn = orthogonal_directions(first.directions.shape, 3, number).float()
        assert all(torch.equal(each, drawn) for each in seen[10 * number : 10 * number + 10])
    assert len({float(each.sum()) for each in seen}) == 4


def test_a_resumed_run_has_the_directions_of_one_that_was_not_cut() -> None:
    def told(stack: torch.nn.Module, updates: range) -> Tensor:
        for update in updates:
            redraw(stack, update)
        return stack.state_dict()["layers.1.mixer.directions"].clone()

    spec = StackSpec(16, 2, LayerSpec(PerformerSpec(heads=2, features=8, redraw=4)))
    for cut in (3, 4, 9):
        one, resumed = spec.build(), spec.build()
        told(one, range(cut))
        resumed.load_state_dict(one.state_dict())
        assert torch.equal(told(one, range(cut, 11)), told(resumed, range(cut, 11)))


def test_without_redraw_directions_stay_those_that_were_loaded() -> None:
    module, other = performer(redraw=None), performer(redraw=None, seed=1)
    module.load_state_dict(other.state_dict())
    redraw(module, 0)
    redraw(module, 1000)
    assert torch.equal(module.directions, other.directions)


def test_a_frozen_layer_keeps_its_directions() -> None:
    module = performer(redraw=10).requires_grad_(False)
    before = module.directions.clone()
    redraw(module, 10)
    assert torch.equal(module.directions, before)
    module.out.requires_grad_(True)
    redraw(module, 10)
    assert not torch.equal(module.directions, before)
