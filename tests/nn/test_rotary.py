"""Rotation: relative, with the norms kept; its learned form; and scaled rates against the papers' formulas."""

from __future__ import annotations

import math

import pytest
import torch
from contract import PLACES, POSITIONS, SCALINGS, Inputs, make_stack
from position_reference import scaled_rates
from test_positions import at, time
from torch import Tensor
from torch.testing import assert_close

from mmformer.nn.attention import AttentionSpec
from mmformer.nn.layer import LayerSpec
from mmformer.nn.position import Heads, PositionSpec, rates, rotate
from mmformer.nn.rotary import MixedRotaryPosition, MixedRotaryPositionSpec, RotaryPositionSpec
from mmformer.nn.rotary_scaling import RotaryScalingSpec, YaRNScalingSpec
from mmformer.nn.stack import StackSpec
from mmformer.types import Tokens

ROTARIES = {name: spec for name, spec in POSITIONS.items() if "rotary" in spec.needs}


def scores(spec: PositionSpec, pos: Tensor) -> Tensor:
    """B H L L products of the same queries and keys, rotated to pos."""
    draw = torch.Generator().manual_seed(0)
    query, key = (torch.randn(1, 2, pos.shape[1], 16, generator=draw, dtype=torch.float64) for _ in range(2))
    torch.manual_seed(0)  # of rates that are drawn
    table = spec.build(32, Heads(2, 16)).rotary(pos)
    return rotate(query, table) @ rotate(key, table).mT


@pytest.mark.parametrize("name", ROTARIES)
def test_rotation_is_relative(name: str) -> None:
    """Adding a constant to all coordinates leaves every score; moving one token does not."""
    spec = ROTARIES[name]
    pos = at((0, 0, 0), (1, 3, 2), (4, 1, 5), (2, 2, 2), (7, 0, 1))
    shifted = pos + torch.tensor([11, 5, 8])
    assert_close(scores(spec, shifted), scores(spec, pos), rtol=0, atol=4e-6)
    moved = pos.clone()
    moved[0, 2] += 1
    changed = (scores(spec, moved) - scores(spec, pos)).abs().amax(dim=1)[0] > 1e-3
    expected = torch.zeros(5, 5, dtype=torch.bool)
    expected[2], expected[:, 2], expected[2, 2] = True, True, False
    assert torch.equal(changed, expected)


@pytest.mark.parametrize("name", ROTARIES)
def test_a_stack_with_rotary_positions_is_shift_invariant(name: str) -> None:
    stack = make_stack(StackSpec(32, 2, LayerSpec(AttentionSpec(4)), ROTARIES[name]))
    x = torch.randn(1, 6, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    pos = at((0, 0, 0), (1, 3, 2), (4, 1, 5), (2, 2, 2), (7, 0, 1), (3, 3, 3))
    expected = Inputs(Tokens(x, pos), causal=True)(stack)
    shifted = Inputs(Tokens(x, pos + torch.tensor([4, 9, 2])), causal=True)(stack)
    assert_close(shifted, expected, rtol=0, atol=1e-7)
    elsewhere = Inputs(Tokens(x, pos * 2), causal=True)(stack)
    assert not torch.allclose(elsewhere, expected, atol=1e-3)


def test_rotation_keeps_norms_dtype_and_the_features_past_its_share() -> None:
    pos = at((0, 0, 0), (9, 3, 2), (31, 1, 5))
    for dtype, tolerance in ((torch.float64, 1e-6), (torch.float32, 1e-6), (torch.bfloat16, 1e-2)):
        x = torch.randn(1, 2, 3, 16, generator=torch.Generator().manual_seed(0)).to(dtype)
        y = rotate(x, RotaryPositionSpec(fraction=0.5).build(32, Heads(2, 16)).rotary(pos))
        assert y.dtype == dtype
        assert torch.equal(y[..., 8:], x[..., 8:])
        assert torch.equal(y[:, :, 0], x[:, :, 0])
        pairs, before = y.float()[..., :8].unflatten(-1, (2, 4)), x.float()[..., :8].unflatten(-1, (2, 4))
        assert_close(pairs.norm(dim=-2), before.norm(dim=-2), rtol=tolerance, atol=tolerance)


def test_mixed_rates_begin_as_those_of_two_axes_turned_by_an_angle() -> None:
    """RoPE-ViT's ``init_random_2d_freqs``: half of the pairs turn along a direction, half across it, one a head."""
    module = MixedRotaryPositionSpec(base=100.0).build(32, Heads(2, 16))
    assert isinstance(module, MixedRotaryPosition)
    along, across = module.rate.detach().split(4, dim=-1)  # axes H 4
    size = torch.tensor([1, 100**-0.25, 100**-0.5, 100**-0.75])
    assert_close(along.norm(dim=0), size.expand(2, 4))
    assert_close(across.norm(dim=0), size.expand(2, 4))
    assert_close((along * across).sum(0), torch.zeros(2, 4), rtol=0, atol=1e-6)
    direction = along[:, :, 0]  # axes H, of rate 1
    assert_close(along, direction[..., None] * size)
    assert not torch.allclose(direction[:, 0], direction[:, 1], atol=1e-3), "each head has its own"


def test_mixed_rates_of_the_axes_alone_are_rotation_over_two_axes() -> None:
    module, heads = MixedRotaryPositionSpec(base=100.0).build(32, Heads(2, 16)), Heads(2, 16)
    assert isinstance(module, MixedRotaryPosition)
    with torch.no_grad():
        module.rate.zero_()
        module.rate[0, :, :4] = module.rate[1, :, 4:] = rates(4, 100.0, torch.device("cpu"))
    pos, expected = PLACES[None], RotaryPositionSpec(axes=(1, 2), base=100.0).build(32, heads).rotary(PLACES[None])
    for table, other in zip(module.rotary(pos), expected, strict=True):
        assert_close(table, other.expand(1, 2, -1, -1))


def test_mixed_rates_stay_precise_under_autocast() -> None:
    """A coordinate of 1000 times a rate in bfloat16 would be off by whole turns."""
    module, pos = MixedRotaryPositionSpec().build(32, Heads(2, 16)), at((0, 1000, 999))
    with torch.autocast("cpu", torch.bfloat16):
        table = module.rotary(pos)
    assert table.cos.dtype == torch.float32
    assert torch.equal(table.cos, module.rotary(pos).cos)


@pytest.mark.parametrize("base", [1e4, 100.0])
@pytest.mark.parametrize("scaling", SCALINGS.values(), ids=SCALINGS)
def test_scaled_rates_are_the_papers(scaling: RotaryScalingSpec, base: float) -> None:
    for count in (2, 8, 32):
        expected, gain = scaled_rates(scaling, base, count)
        scaled = scaling.scaled(rates(count, base, torch.device("cpu")), base)
        assert_close(scaled, torch.tensor(expected), rtol=2e-6, atol=0)
        assert scaling.gain == pytest.approx(gain)


def test_scaling_by_one_changes_nothing() -> None:
    pos = time(20)
    plain = RotaryPositionSpec().build(32, Heads(2, 16)).rotary(pos)
    for scaling in SCALINGS.values():
        one = type(scaling)(factor=1.0)
        assert_close(RotaryPositionSpec(scaling=one).build(32, Heads(2, 16)).rotary(pos), plain)


def test_a_position_turns_by_scaled_rates_and_yarn_sharpens_attention() -> None:
    """Scores of tokens at one place are those of content alone, times the square of YaRN's factor."""
    spec = RotaryPositionSpec(scaling=YaRNScalingSpec(4.0, 64))
    plain, sharper = scores(RotaryPositionSpec(), at((0, 0, 0))), scores(spec, at((0, 0, 0)))
    assert_close(sharper, plain * (0.1 * math.log(4) + 1) ** 2, rtol=1e-6, atol=1e-6)
    spec = RotaryPositionSpec(scaling=YaRNScalingSpec(4.0, 64, attention_factor=1.0))
    assert_close(scores(spec, at((0, 0, 0))), plain)
    linear = RotaryPositionSpec(scaling=SCALINGS["linear"])
    assert_close(scores(linear, 3 * time(5)), scores(RotaryPositionSpec(), time(5)), rtol=0, atol=1e-6)
