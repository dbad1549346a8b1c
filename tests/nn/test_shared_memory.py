"""Rows that share a row of memory, as beams do: against a memory that is there for each of them."""

from __future__ import annotations

import pytest
import torch
from contract import Case, Inputs, make_inputs, make_stack
from test_parts_of_memory import MEDIA, SEES, inputs, stack
from torch import Tensor
from torch.testing import assert_close

from mmformer.errors import InputError
from mmformer.types import Tokens

EACH = 2


def twice(value: Tensor | None) -> Tensor | None:
    return None if value is None else value.repeat_interleave(EACH, 0)


def cases() -> list[Case]:
    return [
        Case("attention", "rotary", "causal", padded, packed, "layer_norm", "pre", "gelu", cross, False)
        for cross in ("same_width", "other_width", "linear")
        for padded in (False, True)
        for packed in (False, True)
    ]


def both(case: Case) -> tuple[Inputs, Inputs]:
    """More rows of tokens than of memory; and memory for each."""
    made = make_inputs(case)
    assert made.memory is not None
    x = torch.randn(EACH * len(made.tokens.x), *made.tokens.x.shape[1:], dtype=torch.float64)
    memory = made.memory._replace(x=made.memory.x.requires_grad_())
    tokens = Tokens(x, *(twice(value) for value in made.tokens[1:]))  # type: ignore[arg-type]
    shared = Inputs(tokens, True, None, memory)
    return shared, shared._replace(memory=Tokens(*(twice(value) for value in memory)))  # type: ignore[arg-type]


@pytest.mark.parametrize("case", cases(), ids=lambda case: f"{case.cross}-{case.padded}-{case.packed}")
def test_rows_may_share_a_row_of_memory(case: Case) -> None:
    """Values, and gradients of what is read."""
    made, (shared, own) = make_stack(case.spec), both(case)
    assert shared.memory is not None
    left = [each.run(made, state=made.empty_state()).tokens.x for each in (shared, own)]
    assert_close(*left, rtol=1e-12, atol=1e-12)
    gradients = [torch.autograd.grad(x.square().sum(), shared.memory.x)[0] for x in left]
    assert_close(*gradients, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("cross", ["other_width", "linear"])
def test_what_was_made_of_a_shared_row_serves_later_calls(cross: str) -> None:
    case = Case("attention", "rotary", "causal", True, False, "layer_norm", "pre", "gelu", cross, False)
    made, (shared, own) = make_stack(case.spec), both(case)
    pieces = [slice(0, 5), slice(5, 6), slice(6, 9)]
    left = []
    for each in (shared, own):
        state, parts = made.empty_state(), []
        for piece in pieces:
            tokens = Tokens(*(None if value is None else value[:, piece] for value in each.tokens))  # type: ignore[arg-type]
            output = each._replace(tokens=tokens).run(made, state=state)
            state, parts = output.state, [*parts, output.tokens.x]
        left.append(torch.cat(parts, 1))
        held = {len(value) for layer in state.layers for value in layer.cross if value is not None}
        assert held == {len(each.memory.x)}, "no row is held twice"  # type: ignore[union-attr]
    assert_close(*left, rtol=1e-12, atol=1e-12)


def test_each_row_has_its_own_part_of_what_is_shared() -> None:
    """Media: rows that read the same pictures see other ones of them."""
    made, (tokens, memory) = stack(SEES), inputs()
    x = torch.cat((tokens.x, tokens.x.flip(1)))  # of row 0, row 0; of row 1, row 1
    media = torch.stack((MEDIA[0], MEDIA[1], MEDIA[1].flip(0), MEDIA[0]))
    more = Tokens(x, tokens.pos.repeat(EACH, 1, 1))
    own = Tokens(*(twice(value) for value in memory))  # type: ignore[arg-type]
    left = [
        made(more, causal=True, memory=each, media=media, state=made.empty_state()).tokens.x for each in (memory, own)
    ]
    assert_close(*left, rtol=1e-12, atol=1e-12)
    assert not torch.equal(left[0], made(more, causal=True, memory=own, media=media.flip(0)).tokens.x)


def test_rows_that_do_not_share_evenly() -> None:
    made, (tokens, memory) = stack(SEES), inputs()
    three = Tokens(tokens.x[[0, 0, 1]], tokens.pos[[0, 0, 1]])
    with pytest.raises(InputError, match="or a divisor of their number, but 3 would read 2"):
        made(three, causal=True, memory=memory, state=made.empty_state())


def test_rows_share_only_where_something_is_written() -> None:
    made, (tokens, memory) = stack(SEES), inputs()
    four = Tokens(tokens.x[[0, 0, 1, 1]], tokens.pos[[0, 0, 1, 1]])
    with pytest.raises(InputError, match="a row for each row of tokens, but 4 would read 2"):
        made(four, causal=True, memory=memory)
    none = Tokens(tokens.x[:0], tokens.pos[:0])
    assert made(none, causal=True, memory=Tokens(memory.x[:0], memory.pos[:0])).tokens.x.shape == (0, 7, 16)
    numbered = Tokens(*(None if value is None else value[:0] for value in memory))  # type: ignore[arg-type]
    assert made(none, causal=True, memory=numbered, media=MEDIA[:0]).tokens.x.shape == (0, 7, 16)
