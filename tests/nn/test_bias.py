"""Biases on scores: slopes against the paper's code, buckets against transformers, offsets against the grid."""

from __future__ import annotations

from unittest import mock

import pytest
import torch
from contract import PLACES, randomise
from position_reference import alibi_slopes
from test_positions import at, grid, time
from torch import Tensor
from torch.testing import assert_close

from mmformer.errors import InputError
from mmformer.nn import blocked
from mmformer.nn.attention import AttentionSpec
from mmformer.nn.bias import ALiBiPositionSpec, RelativeBucketPositionSpec, RelativeGridPositionSpec, slopes
from mmformer.nn.layer import LayerSpec
from mmformer.nn.pattern import AnyOfSpec, GlobalSpec, WindowSpec
from mmformer.nn.position import Heads, PositionSpec
from mmformer.nn.stack import StackSpec
from mmformer.types import Tokens

SPECIAL = at((-1, -1, -1))


def bias_of(spec: PositionSpec, query: Tensor, key: Tensor | None = None, heads: int = 4) -> Tensor:
    """H Q K, from tables that hold their rows' numbers: row r and head h have r + h / 10."""
    module = spec.build(32, Heads(heads, 8))
    with torch.no_grad():
        for table in module.parameters():
            table.copy_(torch.arange(len(table))[:, None] + torch.arange(heads) / 10)
    bias = module.bias(query, query if key is None else key)
    assert bias is not None
    return bias[0].detach()


@pytest.mark.parametrize("heads", [1, 2, 3, 6, 8, 12, 16, 20])
def test_slopes_are_those_of_the_papers_code(heads: int) -> None:
    assert_close(slopes(heads, torch.device("cpu")), torch.tensor(alibi_slopes(heads)))


def test_eight_slopes_are_the_papers() -> None:
    """1/2, 1/4, … 1/256 (§3)."""
    assert slopes(8, torch.device("cpu")).tolist() == [2.0**-k for k in range(1, 9)]


def test_alibi_falls_with_the_distance_either_way() -> None:
    bias = bias_of(ALiBiPositionSpec(), time(5))
    place = torch.arange(5.0)
    assert_close(bias, -slopes(4, bias.device)[:, None, None] * (place[:, None] - place).abs())


def test_alibi_in_a_causal_pass_is_the_papers() -> None:
    """There it is slope × (key - query): as keys stand before, and what all keys have in common drops out, also
    slope × key, as the paper's code has it."""
    stack = StackSpec(32, 1, LayerSpec(AttentionSpec(4)), ALiBiPositionSpec()).build().double().eval()
    x = torch.randn(2, 7, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    tokens = Tokens(x, time(7).expand(2, -1, -1))
    expected = stack(tokens, causal=True).tokens.x
    position, slope = stack.position, slopes(4, torch.device("cpu"))[:, None, None]
    position.bias = lambda query, key: slope * key[:, None, None, :, 0]  # type: ignore[method-assign]
    assert_close(stack(tokens, causal=True).tokens.x, expected)
    assert not torch.allclose(stack(tokens).tokens.x, stack(tokens, causal=True).tokens.x)


@pytest.mark.parametrize(("metric", "distance"), [("euclidean", 5.0), ("manhattan", 7.0)])
def test_alibi_measures_distances_on_a_grid(metric: str, distance: float) -> None:
    spec = ALiBiPositionSpec(axes=(1, 2), metric=metric)  # type: ignore[arg-type]
    bias = bias_of(spec, at((0, 1, 1)), at((0, 4, 5), (0, 1, 1), (9, 1, 0)))
    assert_close(bias[:, 0], -slopes(4, bias.device)[:, None] * torch.tensor([distance, 0.0, 1.0]))


@pytest.mark.parametrize("spec", [ALiBiPositionSpec(), ALiBiPositionSpec((1, 2)), RelativeBucketPositionSpec()])
def test_special_tokens_are_biased_neither_way(spec: PositionSpec) -> None:
    pos = torch.cat((SPECIAL, at((3, 2, 1), (5, 1, 0))), dim=1)
    bias = bias_of(spec, pos)
    assert bool((bias[:, 0] == 0).all())
    assert bool((bias[:, :, 0] == 0).all())
    assert bool((bias[:, 1, 2] != 0).all())


# The first distance of each of T5's buckets, as transformers 4.57.6 has them.
CAUSAL = [*range(17), 19, 21, 24, 27, 31, 35, 40, 46, 52, 59, 67, 77, 87, 99, 113]
EITHER_WAY = [*range(9), 12, 16, 23, 32, 46, 64, 91]


@pytest.mark.parametrize(("bidirectional", "firsts"), [(False, CAUSAL), (True, EITHER_WAY)])
def test_buckets_are_t5s(bidirectional: bool, firsts: list[int]) -> None:
    spec = RelativeBucketPositionSpec(bidirectional=bidirectional)
    bias = bias_of(spec, at((200, 0, 0)), time(401))[0, 0]  # the table's rows hold their numbers
    before = bias[:201].flip(0).long().tolist()
    assert [before.index(bucket) for bucket in range(len(firsts))] == firsts
    assert before == sorted(before)
    after = bias[200:].long().tolist()
    assert after == ([0, *(bucket + 16 for bucket in before[1:])] if bidirectional else [0] * 201)


def test_buckets_are_of_the_axis_that_was_asked_for() -> None:
    spec = RelativeBucketPositionSpec(axis=2, buckets=8, max_distance=16)
    assert torch.equal(bias_of(spec, at((5, 7, 0), (0, 0, 3))), bias_of(spec, at((0, 0, 0), (9, 1, 3))))
    assert not torch.equal(bias_of(spec, at((0, 0, 0), (0, 0, 3))), bias_of(spec, at((0, 0, 0), (0, 0, 1))))


def test_each_offset_on_the_grid_has_a_row_and_special_tokens_three() -> None:
    rows, columns = 2, 3
    bias = bias_of(RelativeGridPositionSpec(sizes=(rows, columns)), torch.cat((SPECIAL, grid(rows, columns)), dim=1))
    table = torch.arange((2 * rows - 1) * (2 * columns - 1)).view(2 * rows - 1, 2 * columns - 1)
    for i in range(rows * columns):
        for j in range(rows * columns):
            down, right = j // columns - i // columns, j % columns - i % columns
            assert bias[0, i + 1, j + 1] == table[down + rows - 1, right + columns - 1]
    last = table.numel()
    assert bias[0, 0, 1:].unique().tolist() == [last]  # what it sees
    assert bias[0, 1:, 0].unique().tolist() == [last + 1]  # what sees it
    assert bias[0, 0, 0] == last + 2
    assert_close(bias[3] - bias[0], torch.full_like(bias[0], 0.3), rtol=0, atol=1e-5)  # each head has its own


def test_a_grid_that_is_too_small_is_refused() -> None:
    module = RelativeGridPositionSpec(sizes=(2, 3)).build(32, Heads(4, 8))
    words = r"3 places on axis 2, but a token stands at 3: raise RelativeGridPositionSpec\.sizes"
    with pytest.raises(InputError, match=words):
        module.bias(at((0, 0, 0), (0, 1, 3)), at((0, 0, 0), (0, 1, 3)))


@pytest.mark.parametrize(
    "spec",
    [
        ALiBiPositionSpec(),
        ALiBiPositionSpec((1, 2)),
        RelativeBucketPositionSpec(buckets=8, max_distance=6),
        RelativeGridPositionSpec(sizes=(4, 4)),
    ],
)
def test_a_bias_depends_on_offsets_alone(spec: PositionSpec) -> None:
    assert torch.equal(bias_of(spec, grid(2, 2)), bias_of(spec, grid(2, 2) + 2))
    assert bias_of(spec, PLACES[None, 1:4], PLACES[None, 1:3]).shape == (4, 3, 2)


BIASES = [
    ALiBiPositionSpec(),
    ALiBiPositionSpec((1, 2), "manhattan"),
    RelativeBucketPositionSpec(),
    RelativeGridPositionSpec(sizes=(46, 24)),
]


@pytest.mark.parametrize("described", [False, True])
@pytest.mark.parametrize("position", BIASES)
def test_a_pattern_in_blocks_has_the_bias_of_its_pairs_alone(
    position: PositionSpec, described: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same output and gradient as of all pairs under a mask, and no bias is made for all pairs."""
    length, pattern = 1100, AnyOfSpec((WindowSpec(60, 40), GlobalSpec(2)))
    stack = StackSpec(16, 1, LayerSpec(AttentionSpec(2, pattern=pattern)), position).build()
    randomise(stack).double().eval()
    pos = torch.zeros(2, length, 3, dtype=torch.int64)
    pos[..., 0], pos[..., 1], pos[..., 2] = torch.arange(length), torch.arange(length) // 24, torch.arange(length) % 24
    pos[:, :2] = -1
    valid, segment = (torch.arange(length) < torch.tensor([[length], [900]])), torch.arange(length).expand(2, -1) // 500
    draw = torch.Generator().manual_seed(0)
    x, weight = (torch.randn(2, length, 16, dtype=torch.float64, generator=draw) for _ in range(2))
    tokens = Tokens(x, pos, valid, segment) if described else Tokens(x, pos[:1].expand(2, -1, -1))
    made: list[int] = []
    bias = stack.position.bias

    def counting(query: Tensor, key: Tensor) -> Tensor | None:
        made.append(query.shape[1] * key.shape[1] * (1 if query.stride(0) == 0 else len(query)))
        return bias(query, key)

    monkeypatch.setattr(stack.position, "bias", counting)
    results = []
    for blocks in (True, False):
        if not blocks:
            monkeypatch.setattr(blocked, "LEAST", 10 * length)
        made.clear()
        y = stack(tokens).tokens.x
        assert (max(made) < 0.7 * length**2 * (2 if described else 1)) == blocks
        results.append((y.detach(), torch.autograd.grad((y * weight).sum(), list(stack.parameters()))))
    assert_close(results[0], results[1], rtol=1e-9, atol=1e-9)


def test_a_bias_of_all_pairs_is_made_where_a_layer_computes_all() -> None:
    """Beside one that computes its pattern in blocks; and none is made where no layer reads it."""
    windowed, full = (LayerSpec(AttentionSpec(4, pattern=pattern)) for pattern in (WindowSpec(30, 30), None))
    for layers, expected in (((windowed, full), 1), ((windowed, windowed), 0)):
        stack = StackSpec(32, 2, pattern=layers, position=ALiBiPositionSpec()).build()
        with mock.patch.object(stack.position, "bias", wraps=stack.position.bias) as bias:
            stack(Tokens(torch.randn(1, 1100, 32), time(1100)))
        whole = [call for call in bias.call_args_list if call.args[0].shape[1] == 1100]
        assert len(whole) == expected
