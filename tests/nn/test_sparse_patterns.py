"""Sparse patterns: what each means, that no block is left out, and that blocks compute what the dense mask does."""

from __future__ import annotations

import nn_reference
import pytest
import torch
from contract import PATTERNS
from torch import Tensor
from torch.nn.attention.flex_attention import flex_attention
from torch.testing import assert_close

from mmformer.nn import blocked
from mmformer.nn import plan as plan_module
from mmformer.nn.blocked import blocked_plan
from mmformer.nn.flex import flex_plan
from mmformer.nn.kernel import attend
from mmformer.nn.mask import Mask
from mmformer.nn.pattern import PatternSpec, WindowSpec
from mmformer.nn.plan import make_plan
from mmformer.nn.random_blocks import RandomBlocksSpec
from mmformer.nn.state import counted, totals

CPU = torch.device("cpu")


def grid(length: int, columns: int = 24) -> Tensor:
    """1 L A: two special tokens, then rows of a picture."""
    place = torch.arange(length - 2)
    pos = torch.stack((torch.zeros_like(place), place // columns, place % columns), dim=-1)
    return torch.cat((torch.full((2, 3), -1), pos))[None]


def meaning(pattern: PatternSpec, pos: Tensor) -> Tensor:
    rows = pos[0].tolist()
    length = range(len(rows))
    return torch.tensor(
        [
            [bool(nn_reference.pattern_allows(pattern, i, j, rows[i], rows[j], len(rows))) for j in length]
            for i in length
        ]
    )


def whole(pattern: PatternSpec, length: int, pos: Tensor | None = None) -> Mask:
    """Of a row without padding."""
    return Mask(pattern=pattern, pos=pos, total=totals(None, None, length, CPU))


@pytest.mark.parametrize("name", PATTERNS)
def test_a_pattern_is_its_words(name: str) -> None:
    pos = grid(330)
    dense = whole(PATTERNS[name], 330, pos).dense(330, 330)
    assert dense is not None
    assert torch.equal(dense[0, 0], meaning(PATTERNS[name], pos))


@pytest.mark.parametrize("name", PATTERNS)
def test_no_block_that_holds_a_pair_is_left_out(name: str) -> None:
    pattern, length, size = PATTERNS[name], 330, 16
    mask = whole(pattern, length, grid(length))
    places = mask.places(torch.zeros(1, 1, dtype=torch.int64), torch.arange(length)[None])
    occupied = pattern.occupied(places, places, size)[0]
    dense = mask.dense(length, length)
    assert dense is not None
    missing = -length % size
    blocks = (
        torch.nn.functional.pad(dense[0, 0], (0, missing, 0, missing)).unflatten(1, (-1, size)).unflatten(0, (-1, size))
    )
    holds = blocks.any(3).any(1)
    assert not bool((holds & ~occupied).any())
    if name not in ("strided", "neighbourhood", "all_of"):  # whose blocks are told by what surrounds them
        assert torch.equal(holds, occupied)


def made(length: int, kind: str) -> Mask:
    draw = torch.Generator().manual_seed(0)
    valid = torch.rand(2, length, generator=draw) > 0.1
    valid[1, length - 90 :] = False
    segment = (torch.arange(length)[None] // torch.tensor([[70], [201]])).long()
    segment[1, :60:2] = 9  # two that take turns
    all_real = totals(None, None, length, CPU)
    match kind:
        case "plain":
            return Mask(total=all_real)
        case "causal":
            return Mask(causal=True, total=all_real)
        case "prefix":
            return Mask(causal=True, prefix=torch.tensor([5, 200]), total=all_real)
        case "padded":
            return Mask(valid=valid, order=counted(valid, None), total=totals(valid, None, length, CPU))
        case "packed":
            total = totals(valid, segment, length, CPU)
            return Mask(True, None, valid, segment, segment, order=counted(valid, segment), total=total)
    raise AssertionError(kind)


def lowered(mask: Mask, length: int, dtype: torch.dtype = torch.float64) -> Tensor:
    """The dense mask, as booleans, or with what the pattern adds to scores."""
    made, causal = mask.sdpa(length, length, None, CPU)
    assert made is not None and not causal
    return made if made.dtype == torch.bool else made.to(dtype)


@pytest.mark.parametrize("kind", ["plain", "causal", "prefix", "padded", "packed"])
@pytest.mark.parametrize("name", PATTERNS)
def test_blocks_compute_what_the_dense_mask_does(name: str, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocked, "BLOCK", 16)
    monkeypatch.setattr(blocked, "LEAST", 64)
    blocked._shared_plan.cache_clear()
    length = 330
    mask = made(length, kind)._replace(pattern=PATTERNS[name], pos=grid(length))
    plan = blocked_plan(mask, length, CPU)
    if plan is None:
        # What is a sample's own, padding and segments, makes the blocks of one the blocks of all.
        assert name == "strided" or (kind in ("padded", "packed") and name in ("all_of", "any_of"))
        return
    draw = torch.Generator().manual_seed(1)
    shapes = ((2, 2, length, 4), (2, 1, length, 4), (2, 1, length, 4))
    query, key, value = (torch.randn(s, generator=draw, dtype=torch.float64).requires_grad_() for s in shapes)
    expected = attend(query, key, value, lowered(mask, length), False, 0.0)
    found = plan.attend(query, key, value, 0.0)
    assert_close(found, expected, rtol=1e-12, atol=1e-12)
    weight = torch.randn(expected.shape, generator=draw, dtype=torch.float64)
    for one, other in zip(
        torch.autograd.grad((found * weight).sum(), (query, key, value)),
        torch.autograd.grad((expected * weight).sum(), (query, key, value)),
        strict=True,
    ):
        assert_close(one, other, rtol=1e-11, atol=1e-11)
    blocked._shared_plan.cache_clear()


@pytest.mark.filterwarnings("ignore:flex_attention called without:UserWarning")  # as it is meant to be here
@pytest.mark.parametrize("kind", ["plain", "causal", "prefix", "padded", "packed"])
@pytest.mark.parametrize("name", PATTERNS)
def test_flex_computes_what_the_dense_mask_does(name: str, kind: str) -> None:
    """Its forward pass: on the CPU there is no other."""
    length = 330
    mask = made(length, kind)._replace(pattern=PATTERNS[name], pos=grid(length))
    plan = flex_plan(mask, length, CPU)
    assert plan is not None
    draw = torch.Generator().manual_seed(1)
    shapes = ((2, 2, length, 4), (2, 1, length, 4), (2, 1, length, 4))
    query, key, value = (torch.randn(s, generator=draw, dtype=torch.float64) for s in shapes)
    found = plan.attend(query, key, value, 0.0)
    assert_close(found, attend(query, key, value, lowered(mask, length), False, 0.0), rtol=1e-12, atol=1e-12)
    if name == "window" and kind == "causal":  # 330 tokens are three blocks: the third is too far for the first
        assert plan.blocks.kv_num_blocks.tolist() == [[[1, 2, 2]]]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:`torch.jit.script_method`:DeprecationWarning")
def test_flex_compiles_a_pattern() -> None:
    """What the fused kernel is asked of one pair is element by element, for every pattern."""
    length = 300
    query, key, value = torch.randn(3, 2, 2, length, 16).unbind(0)
    compiled = torch.compile(flex_attention, dynamic=False)
    for pattern in PATTERNS.values():
        torch.compiler.reset()
        mask = made(length, "packed")._replace(pattern=pattern, pos=grid(length))
        plan = flex_plan(mask, length, CPU)
        assert plan is not None
        found = compiled(query, key, value, score_mod=plan.added, block_mask=plan.blocks)
        assert_close(found, attend(query, key, value, lowered(mask, length, query.dtype), False, 0.0))


def test_a_plan_is_flex_where_it_can_be() -> None:
    mask, cuda = Mask(pattern=WindowSpec(2, 2)), torch.device("cuda")
    asked: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        for kind in ("flex_plan", "blocked_plan"):
            patch.setattr(plan_module, kind, lambda *_, kind=kind: asked.append(kind))
        make_plan(mask, 600, cuda, 0.0)
        make_plan(mask, 600, cuda, 0.1)  # which flex cannot drop
        make_plan(mask, 600, CPU, 0.0)
    assert asked == ["flex_plan", "blocked_plan", "blocked_plan"]


def test_what_a_window_computes_grows_with_the_length() -> None:
    def pairs(length: int) -> int:
        plan = blocked_plan(Mask(pattern=WindowSpec(256, 256)), length, CPU)
        assert plan is not None
        return plan.allowed.numel() + plan.wide_allowed.numel()

    assert pairs(8192) == 2 * pairs(4096) == 4 * pairs(2048)
    assert pairs(4096) <= 1.5 * 513 * 4096


def test_what_a_random_block_sees_does_not_depend_on_the_length() -> None:
    pattern = RandomBlocksSpec(size=4, blocks=2)
    long, short = (Mask(pattern=pattern).dense(length, length) for length in (96, 40))
    assert long is not None
    assert short is not None
    assert torch.equal(long[..., :40, :40], short)
    other = Mask(pattern=RandomBlocksSpec(size=4, blocks=2, seed=1)).dense(96, 96)
    assert other is not None
    assert not torch.equal(other, long)
    seen = long[0, 0, ::4, ::4].sum(1)
    assert int(seen.max()) <= 4, "blocks on each side"


def test_patterns_are_joined_by_operators() -> None:
    window, strided = WindowSpec(2, 2), PATTERNS["strided"]
    both, either = (Mask(pattern=each).dense(200, 200) for each in (window & strided, window | strided))
    one, other = (Mask(pattern=each).dense(200, 200) for each in (window, strided))
    assert one is not None
    assert other is not None
    assert both is not None
    assert either is not None
    assert torch.equal(both, one & other)
    assert torch.equal(either, one | other)


def test_places_are_counted_over_the_real_tokens_of_a_segment() -> None:
    segment = torch.tensor([[0, 0, 1, 1, 0, 1]])
    valid = torch.tensor([[True, False, True, True, True, True]])
    assert counted(None, None) is None
    assert torch.equal(counted(valid, None), torch.tensor([[0, 1, 1, 2, 3, 4]]))  # type: ignore[arg-type]
    assert torch.equal(counted(None, segment), torch.tensor([[0, 1, 0, 1, 2, 2]]))  # type: ignore[arg-type]
    assert torch.equal(counted(valid, segment), torch.tensor([[0, 1, 0, 1, 1, 2]]))  # type: ignore[arg-type]


def test_lengths_are_those_of_segments_in_real_tokens() -> None:
    segment = torch.tensor([[0, 0, 1, 1, 0, 1]])
    valid = torch.tensor([[True, False, True, True, True, True]])
    assert totals(None, None, 6, CPU).tolist() == [[6] * 6]
    assert totals(valid, None, 6, CPU).tolist() == [[5] * 6]
    assert totals(None, segment, 6, CPU).tolist() == [[3] * 6]
    assert totals(valid, segment, 6, CPU).tolist() == [[2, 2, 3, 3, 2, 3]]
