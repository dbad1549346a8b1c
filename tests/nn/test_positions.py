"""Positions against formulas written from the papers, and what they do with special and expanded coordinates."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from contract import PLACES, POSITIONS, Inputs, make_stack
from timm.layers import resample_abs_pos_embed
from torch import Tensor
from torch.nn import functional as F
from torch.testing import assert_close

from mmformer.errors import InputError
from mmformer.nn.attention import AttentionSpec
from mmformer.nn.bias import RelativeGridPositionSpec
from mmformer.nn.layer import LayerSpec
from mmformer.nn.position import (
    Heads,
    LearnedPositionSpec,
    Position,
    PositionSpec,
    SinusoidalPositionSpec,
    resample,
)
from mmformer.nn.rotary import RotaryPositionSpec
from mmformer.nn.stack import StackSpec
from mmformer.types import Tokens


def at(*places: tuple[int, int, int]) -> Tensor:
    return torch.tensor([places])  # 1 L A


def time(length: int) -> Tensor:
    return at(*((t, 0, 0) for t in range(length)))


def grid(rows: int, columns: int) -> Tensor:
    return at(*((0, row, column) for row in range(rows) for column in range(columns)))


def added(spec: PositionSpec, pos: Tensor, width: int) -> Tensor:
    """What the position adds, B L D in float64."""
    x = torch.zeros(*pos.shape[:2], width, dtype=torch.float64)
    return spec.build(width, None).embed(x, pos).detach()


def test_sinusoidal_is_vaswanis() -> None:
    """PE(pos, 2i) = sin(pos / 10000^(2i/d)), PE(pos, 2i+1) the cosine; the sines come first here, then the cosines."""
    width, length = 32, 64
    table = np.zeros((length, width))
    for place in range(length):
        for i in range(width // 2):
            table[place, 2 * i] = math.sin(place / 10_000 ** (2 * i / width))
            table[place, 2 * i + 1] = math.cos(place / 10_000 ** (2 * i / width))
    expected = torch.from_numpy(np.concatenate([table[:, 0::2], table[:, 1::2]], axis=1))
    assert_close(added(SinusoidalPositionSpec(), time(length), width)[0], expected, rtol=0, atol=4e-6)


def mae_wave(width: int, places: np.ndarray) -> np.ndarray:
    """``get_1d_sincos_pos_embed_from_grid`` of MAE's published code, from its description."""
    omega = 1.0 / 10_000 ** (np.arange(width // 2) / (width / 2.0))
    angle = np.einsum("m,d->md", places.reshape(-1), omega)
    return np.concatenate([np.sin(angle), np.cos(angle)], axis=1)


@pytest.mark.parametrize("rows_first", [True, False])
def test_sinusoidal_grid_is_maes(rows_first: bool) -> None:
    """Half of the features by row, half by column. MAE's code has the columns first, which is axes (2, 1)."""
    width, rows, columns = 32, 4, 6
    column, row = np.meshgrid(np.arange(columns), np.arange(rows))
    halves = [mae_wave(width // 2, row), mae_wave(width // 2, column)]
    expected = torch.from_numpy(np.concatenate(halves if rows_first else halves[::-1], axis=1))
    spec = SinusoidalPositionSpec(axes=(1, 2) if rows_first else (2, 1))
    assert_close(added(spec, grid(rows, columns), width)[0], expected, rtol=0, atol=2e-7)


def test_learned_rows_are_a_grid_in_row_major_order_after_the_special_one() -> None:
    spec = LearnedPositionSpec(axes=(1, 2), sizes=(3, 4))
    module = spec.build(8, None)
    assert module.weight.shape == (1 + 3 * 4, 8)
    pos = torch.cat((at((-1, -1, -1)), grid(3, 4)), dim=1)
    assert torch.equal(module.embed(torch.zeros(1, 13, 8), pos)[0], module.weight)


def test_a_fixed_table_is_maes_and_does_not_train() -> None:
    """Its published code has the columns' waves first, zero for the class token, and no gradient."""
    module = LearnedPositionSpec((1, 2), (3, 4), fixed=True).build(24, None)
    column, row = np.tile(np.arange(4), 3), np.repeat(np.arange(3), 4)
    expected = np.concatenate([mae_wave(12, column), mae_wave(12, row)], axis=1)
    assert torch.equal(module.weight[0], torch.zeros(24))
    assert torch.equal(module.weight[1:], torch.from_numpy(expected).float())
    assert not module.weight.requires_grad
    with pytest.raises(InputError, match="LearnedPositionSpec over 2 axes needs a width that is a multiple of 4, but"):
        LearnedPositionSpec((1, 2), (3, 4), fixed=True).build(10, None)


@pytest.mark.parametrize("special", [0, 1, 2, 5])
def test_special_tokens_have_rows_in_their_order_and_further_ones_have_none(special: int) -> None:
    module = LearnedPositionSpec(sizes=(2,), special=special).build(8, None)
    assert module.weight.shape == (special + 2, 8)
    pos = at((-1, -1, -1), (1, 0, 0), (-3, -3, -3), (-2, -2, -2), (0, 0, 0)).expand(2, -1, -1)
    x = torch.full((2, 5, 8), 3.0)
    rows = [*module.weight[:special], *torch.zeros(3, 8)]
    expected = torch.stack((rows[0], module.weight[-1], rows[2], rows[1], module.weight[-2]))
    assert torch.equal(module.embed(x, pos) - x, (x + expected) - x)
    module.embed(x, pos).sum().backward()
    used = torch.tensor([number < 3 for number in range(special)] + [True, True])
    assert module.weight.grad is not None
    assert torch.equal(module.weight.grad, (2.0 * used)[:, None].expand(-1, 8))


def test_axes_that_are_not_asked_for_do_not_matter() -> None:
    one, other = at((1, 2, 0), (3, 1, 1)), at((1, 0, 7), (3, 5, 0))
    for spec in (LearnedPositionSpec(), SinusoidalPositionSpec()):
        torch.manual_seed(0)
        first = added(spec, one, 16)
        torch.manual_seed(0)
        assert torch.equal(first, added(spec, other, 16))
    module = RotaryPositionSpec().build(16, Heads(2, 8))
    assert torch.equal(module.rotary(one).cos, module.rotary(other).cos)


@pytest.mark.parametrize("axes", [(0,), (1, 2), (2, 1), (0, 1, 2)], ids=str)
def test_special_tokens_stand_nowhere(axes: tuple[int, ...]) -> None:
    """No wave, no rotation, and in a learned table a row that no place has."""
    pos = at((-1, -1, -1), (0, 0, 0), (2, 1, 2))
    wave = added(SinusoidalPositionSpec(axes=axes), pos, 24)[0]
    assert bool((wave[0] == 0).all())
    assert bool((wave[1] != 0).any())  # place 0 has its cosines
    table = RotaryPositionSpec(axes=axes).build(24, Heads(2, 12)).rotary(pos)
    assert bool((table.cos[..., 0, :] == 1).all())
    assert bool((table.sin[..., 0, :] == 0).all())
    assert bool((table.sin[..., 2, :] != 0).all())
    rows = added(LearnedPositionSpec(axes=axes, sizes=(3,) * len(axes)), pos, 24)[0]
    assert len(rows.unique(dim=0)) == 3


@pytest.mark.parametrize("name", POSITIONS)
def test_expanded_coordinates_equal_materialised_ones(name: str) -> None:
    """Images of one size share one row of coordinates, expanded; it is computed once, and means the same."""
    stack = make_stack(StackSpec(32, 2, LayerSpec(AttentionSpec(4)), POSITIONS[name]))
    x = torch.randn(3, len(PLACES), 32, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    expanded = PLACES.expand(3, -1, -1)
    assert expanded.stride(0) == 0
    materialised = expanded.contiguous()
    assert torch.equal(Inputs(Tokens(x, expanded))(stack), Inputs(Tokens(x, materialised))(stack))
    shared, own = stack.position.rotary(expanded), stack.position.rotary(materialised)
    if shared is not None and own is not None:
        assert (shared.cos.shape[0], own.cos.shape[0]) == (1, 3)
    rows = materialised.clone()
    rows[1] = rows[1].flip(0)
    if name != "nowhere":  # rows that differ are not taken for one
        assert not torch.allclose(Inputs(Tokens(x, rows))(stack)[1], Inputs(Tokens(x, materialised))(stack)[1])


@pytest.mark.parametrize(("axis", "place"), [(1, (0, 3, 0)), (2, (0, 0, 4))])
def test_learned_refuses_what_is_out_of_range(axis: int, place: tuple[int, int, int]) -> None:
    module = LearnedPositionSpec(axes=(1, 2), sizes=(3, 4)).build(8, None)
    size = (3, 4)[axis - 1]
    words = rf"{size} places on axis {axis}, but a token stands at {size}: raise LearnedPositionSpec.sizes"
    with pytest.raises(InputError, match=words):
        module.embed(torch.zeros(1, 2, 8), at((0, 0, 0), place))
    with pytest.raises(InputError, match=words):
        module.embed(torch.zeros(5, 2, 8), at((0, 0, 0), place).expand(5, -1, -1))


@pytest.mark.parametrize("name", POSITIONS)
@pytest.mark.parametrize("shape", [(2, 0), (0, 5), (1, 1)], ids=str)
def test_no_samples_and_no_tokens_are_no_special_case(shape: tuple[int, int], name: str) -> None:
    stack = make_stack(StackSpec(32, 2, LayerSpec(AttentionSpec(4)), POSITIONS[name]))
    tokens = Tokens(torch.zeros(*shape, 32, dtype=torch.float64), torch.zeros(*shape, 3, dtype=torch.int64))
    for causal in (False, True):
        assert Inputs(tokens, causal)(stack).shape == (*shape, 32)


@pytest.mark.parametrize(("old", "new"), [((14, 14), (24, 24)), ((14, 14), (7, 9)), ((3, 5), (5, 3)), ((4, 4), (4, 4))])
def test_tables_are_resized_as_timm_does(old: tuple[int, int], new: tuple[int, int]) -> None:
    table = torch.randn(old[0] * old[1], 6, generator=torch.Generator().manual_seed(0))
    expected = resample_abs_pos_embed(table[None], list(new), list(old), num_prefix_tokens=0)
    assert_close(resample(table, old, new), expected[0], rtol=0, atol=1e-6)


def test_without_antialiasing_a_shrunk_table_skips_places() -> None:
    """As DINOv2's positions are, for pictures of another size than those that it learned from."""
    table = torch.randn(14 * 14, 6, generator=torch.Generator().manual_seed(0))
    image = table.T.reshape(1, 6, 14, 14)
    expected = F.interpolate(image, (7, 9), mode="bicubic", align_corners=False)[0].flatten(1).T
    assert_close(resample(table, (14, 14), (7, 9), antialias=False), expected)
    spec = LearnedPositionSpec((1, 2), (7, 9), (14, 14), special=0, antialias=False)
    module = spec.build(6, None)
    module.load_state_dict({"weight": table})
    assert_close(module.embed(torch.zeros(1, 63, 6), grid(7, 9))[0], expected)


def test_tables_of_one_axis_are_resized_linearly() -> None:
    """A line stays a line, but near its ends; a table that shrinks does not skip places."""
    line = torch.arange(8.0)[:, None]
    assert_close(resample(line, (8,), (16,))[1:-1, 0], torch.arange(0.25, 7, 0.5))
    assert_close(resample(line, (8,), (4,))[1:-1, 0], torch.tensor([2.5, 4.5]))
    comb = torch.tensor([0.0, 1.0] * 8)[:, None]
    assert bool(((resample(comb, (16,), (4,)) - 0.5).abs() < 0.1).all())


def test_a_table_that_is_resized_in_each_pass_is_the_one_resized_once() -> None:
    """Also where weights that were learned at one size are opened at another; and special tokens keep their row."""
    small = LearnedPositionSpec((1, 2), (3, 4)).build(8, None)
    spec = LearnedPositionSpec((1, 2), (6, 8), learned=(3, 4))
    running, opened = spec.build(8, None), LearnedPositionSpec((1, 2), (6, 8)).build(8, None)
    running.load_state_dict(small.state_dict())
    weight = opened.resized(small.weight.detach(), LearnedPositionSpec((1, 2), (3, 4)))
    assert weight is not None
    assert opened.resized(small.weight.detach(), LearnedPositionSpec((1, 2), (3, 4), special=2)) is None
    opened.load_state_dict({"weight": weight})
    pos, x = torch.cat((at((-1, -1, -1)), grid(6, 8)), dim=1), torch.zeros(1, 49, 8)
    assert_close(running.embed(x, pos), opened.embed(x, pos))
    assert torch.equal(running.embed(x, pos)[0, 0], small.weight[0])
    assert not torch.allclose(running.embed(x, pos)[0, 1], small.weight[1])


def test_only_the_same_kind_of_table_is_resized() -> None:
    text, picture = LearnedPositionSpec((0,), (12,)), LearnedPositionSpec((1, 2), (3, 4))
    offsets, weight = RelativeGridPositionSpec(sizes=(3, 4)), torch.zeros(13, 8)
    assert text.build(8, None).resized(weight, picture) is None
    assert picture.build(8, None).resized(weight, text) is None
    assert picture.build(8, None).resized(weight, offsets) is None
    assert offsets.build(32, Heads(8, 4)).resized(weight, picture) is None
    assert Position().resized(weight, picture) is None


def test_offsets_are_resized_and_the_special_rows_are_kept() -> None:
    """A bias that falls with the distance falls half as fast on a grid of twice the size."""
    old, new = RelativeGridPositionSpec(sizes=(4, 4)), RelativeGridPositionSpec(sizes=(8, 8))
    down = torch.arange(-3.0, 4)[:, None].expand(7, 7).reshape(-1, 1)
    weight = new.build(4, Heads(1, 4)).resized(torch.cat((down, torch.tensor([[7.0], [8.0], [9.0]]))), old)
    assert weight is not None
    assert weight[-3:, 0].tolist() == [7, 8, 9]
    middle = weight[:-3].view(15, 15)
    assert_close(middle[5:10, 7], torch.arange(-2.0, 3) * 7 / 15, rtol=0, atol=0.02)
