"""Tokens that see one part of a memory each, by its number: against passes over that part alone; and step by step."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from contract import randomise
from torch import Tensor
from torch.testing import assert_close

from mmformer.errors import InputError
from mmformer.nn.attention import AttentionSpec
from mmformer.nn.feedforward import GELUFeedForwardSpec
from mmformer.nn.layer import LayerSpec
from mmformer.nn.linear_attention import LinearAttentionSpec
from mmformer.nn.mixer import MixerSpec
from mmformer.nn.stack import Stack, StackSpec
from mmformer.types import Tokens

SEES = LayerSpec(None, GELUFeedForwardSpec(bias=False), AttentionSpec(4, bias=False), gated=True)
PLAIN = LayerSpec(AttentionSpec(4))
MEDIA = torch.tensor([[0, 0, 1, 1, 2, 2, 3], [1, 1, 2, 2, 2, 2, 2]])
PARTS, SIZE = 3, 4
"""The memory's parts, and the tokens of each."""


def stack(*pattern: LayerSpec) -> Stack:
    return randomise(StackSpec(16, 2 * len(pattern), pattern=pattern, memory_width=24).build()).double().eval()


def inputs() -> tuple[Tokens, Tokens]:
    draw = torch.Generator().manual_seed(4)
    x = torch.randn(*MEDIA.shape, 16, generator=draw, dtype=torch.float64)
    memory = torch.randn(2, PARTS * SIZE, 24, generator=draw, dtype=torch.float64)
    number = torch.arange(1, PARTS + 1).repeat_interleave(SIZE).expand(2, -1)
    valid = torch.ones(2, PARTS * SIZE, dtype=torch.bool)
    valid[1, 5] = False  # one of the second part's
    return Tokens(x, torch.zeros(*MEDIA.shape, 3, dtype=torch.int64)), Tokens(memory, at(memory), valid, number)


def at(x: Tensor) -> Tensor:
    return torch.zeros(*x.shape[:2], 3, dtype=torch.int64)


@pytest.mark.parametrize(
    "mixer", [AttentionSpec(4, bias=False), LinearAttentionSpec(4)], ids=lambda x: type(x).__name__
)
def test_each_token_sees_its_part_alone(mixer: MixerSpec) -> None:
    """Where layers only read, each token is on its own: the same pass over its part, or over nothing that is real."""
    made, (tokens, memory) = stack(dataclasses.replace(SEES, cross=mixer)), inputs()
    output = made(tokens, causal=True, memory=memory, media=MEDIA).tokens.x
    assert memory.valid is not None and memory.segment is not None
    for row, numbers in enumerate(MEDIA.tolist()):
        for place, number in enumerate(numbers):
            one = Tokens(tokens.x[row : row + 1, place : place + 1], tokens.pos[:1, :1])
            real = memory.valid[row : row + 1] & (memory.segment[row : row + 1] == number)
            part = Tokens(memory.x[row : row + 1], memory.pos[:1], real)
            alone = made(one, memory=part).tokens.x
            assert_close(output[row, place], alone[0, 0], rtol=1e-12, atol=1e-12)
    moved = memory._replace(x=memory.x + 1.0)
    same = (output - made(tokens, causal=True, memory=moved, media=MEDIA).tokens.x).abs().amax(-1) == 0
    assert torch.equal(same, MEDIA == 0), "what sees no part is what it is without"


def test_step_by_step_it_is_the_same_and_the_last_number_is_carried() -> None:
    made, (tokens, memory) = stack(SEES, PLAIN), inputs()
    whole = made(tokens, causal=True, memory=memory, media=MEDIA).tokens.x
    state, steps = made.empty_state(), []
    for begin, end in ((0, 3), (3, 4), (4, 7)):
        some = Tokens(tokens.x[:, begin:end], tokens.pos[:, begin:end])
        output = made(some, causal=True, memory=memory, media=MEDIA[:, begin:end], state=state)
        state = output.state
        steps.append(output.tokens.x)
        assert torch.equal(state.media, MEDIA[:, end - 1])
    assert_close(torch.cat(steps, dim=1), whole, rtol=1e-12, atol=1e-12)


def test_gradients_reach_the_parts_that_are_seen() -> None:
    made, (tokens, memory) = stack(SEES, PLAIN), inputs()
    x = memory.x.clone().requires_grad_()
    made(tokens, causal=True, memory=memory._replace(x=x), media=MEDIA).tokens.x.square().sum().backward()
    assert x.grad is not None
    reached = x.grad.abs().amax(-1) > 0
    assert reached[0].all() and reached[1].tolist() == [True] * 5 + [False] + [True] * 2 + [False] * 4


def test_media_without_parts_are_refused() -> None:
    made, (tokens, memory) = stack(SEES, PLAIN), inputs()
    for shown, read in ((tokens, memory._replace(segment=None)), (tokens._replace(segment=MEDIA), memory)):
        with pytest.raises(InputError, match="Media say which segment of a memory each token sees"):
            made(shown, causal=True, memory=read, media=MEDIA)
    plain = StackSpec(16, 1, PLAIN).build().double()
    with pytest.raises(InputError, match="hand in a memory that has segments"):
        plain(tokens, causal=True, media=MEDIA)
