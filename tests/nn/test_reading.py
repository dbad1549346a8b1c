"""A stack of which few tokens are read makes of those what it makes of all, and computes the others no further."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from contract import FEEDFORWARDS, make_inputs, make_stack
from test_stack import CASE, equal
from torch import Tensor, nn

from mmformer.nn.feedforward import DenseFeedForwardSpec
from mmformer.nn.halting import HaltingSpec
from mmformer.nn.mixer import picked
from mmformer.nn.sharing import SharingSpec
from mmformer.nn.stack import Stack

READ = torch.tensor([[2, 1], [13, 11], [26, 18]])
"""Two of each of three rows of nine."""


def entering(stack: Stack) -> list[int]:
    """How many tokens enter each layer's feed-forward, as passes are made."""
    found: list[int] = []

    def note(_: nn.Module, inputs: tuple[Any, ...]) -> None:
        found.append(inputs[0][..., 0].numel())

    for layer in stack.layers:
        if layer.feedforward is not None:
            layer.feedforward.register_forward_pre_hook(note)
    return found


@pytest.mark.parametrize("placement", ["pre", "post", "sandwich", "deep", "parallel"])
@pytest.mark.parametrize("feedforward", FEEDFORWARDS)
def test_those_that_are_read_are_what_they_are_among_all(feedforward: str, placement: str) -> None:
    case = dataclasses.replace(CASE, feedforward=feedforward, cross="none", order="full")
    if placement != "parallel":
        case = dataclasses.replace(case, placement=placement)
    elif FEEDFORWARDS[feedforward] is None:
        pytest.skip("there is nothing beside the mixer")
    spec = case.spec
    spec = dataclasses.replace(spec, layer=dataclasses.replace(spec.layer, parallel=placement == "parallel"))
    stack, inputs = make_stack(spec), make_inputs(case)
    whole = inputs(stack)
    found = entering(stack)  # from here on
    left = inputs.run(stack, read=READ).tokens
    equal(left.x, picked(whole, READ))
    assert torch.equal(left.pos, picked(inputs.tokens.pos, READ))
    assert left.valid is left.segment is None
    if found:
        alone = isinstance(spec.layer.feedforward, DenseFeedForwardSpec)  # experts choose among tokens
        assert found == [27, READ.numel() if alone else 27]


@pytest.mark.parametrize("placement", ["pre", "post", "sandwich", "parallel"])
@pytest.mark.parametrize("mixer", ["attention", "attention_one_key_qk_norm", "attention_wide_heads"])
def test_where_all_see_all_attention_has_their_queries_alone(mixer: str, placement: str) -> None:
    free = {"order": "full", "position": "nowhere", "cross": "none", "padded": False, "packed": False}
    case = dataclasses.replace(CASE, mixer=mixer, placement=placement, **free)
    stack, inputs, joined = make_stack(case.spec), make_inputs(case), list[int]()
    expected, x = picked(inputs(stack), READ), inputs.tokens.x.requires_grad_()
    for layer in stack.layers:
        layer.mixer.out.register_forward_pre_hook(lambda _, given: joined.append(given[0][..., 0].numel()))
    found = inputs.run(stack, read=READ).tokens.x
    equal(found, expected)
    alone = placement != "parallel"  # whose feed-forward reads what the mixer reads
    assert joined == [27, READ.numel() if alone else 27]
    weight = torch.randn(found.shape, dtype=x.dtype, generator=torch.Generator().manual_seed(1))
    wanted = [x, *stack.parameters()]
    ours = torch.autograd.grad((found * weight).sum(), wanted)
    theirs = torch.autograd.grad((picked(inputs(stack), READ) * weight).sum(), wanted)
    for mine, other in zip(ours, theirs, strict=True):
        equal(mine, other)


@pytest.mark.parametrize("change", ["relative_grid", "attention_window", "rotary", "padded", "a hook", "another map"])
def test_where_something_is_between_attention_has_all_queries(change: str) -> None:
    free = {"order": "full", "position": "nowhere", "cross": "none", "padded": False, "packed": False}
    case = dataclasses.replace(CASE, **{**free, "mixer": "attention", "padded": change == "padded"})
    if change in ("relative_grid", "rotary"):
        case = dataclasses.replace(case, position=change)
    elif change == "attention_window":
        case = dataclasses.replace(case, mixer=change)
    stack, inputs, seen = make_stack(case.spec), make_inputs(case), list[int]()
    mixer = stack.layers[-1].mixer
    if change == "another map":
        mixer.qkv.__class__ = type("Adapted", (nn.Linear,), {})
    expected = picked(inputs(stack), READ)
    joined = list[int]()
    if change == "a hook":
        mixer.qkv.register_forward_hook(lambda _, given, made: seen.append(made[..., 0].numel()))
    mixer.out.register_forward_pre_hook(lambda _, given: joined.append(given[0][..., 0].numel()))
    equal(inputs.run(stack, read=READ).tokens.x, expected)
    assert joined == [27]
    assert seen == ([27] if change == "a hook" else [])


def test_a_mixer_of_another_kind() -> None:
    case = dataclasses.replace(CASE, mixer="linear", cross="none")
    stack, inputs = make_stack(case.spec), make_inputs(case)
    equal(inputs.run(stack, read=READ).tokens.x, picked(inputs(stack), READ))


@pytest.mark.parametrize(
    "changes",
    [
        {"sharing": SharingSpec(distinct=1)},
        {"halting": HaltingSpec()},
        {"reversible": True},
    ],
)
def test_however_the_layers_are_run(changes: dict[str, Any]) -> None:
    case = dataclasses.replace(CASE, mixer="attention", cross="none")
    stack, inputs = make_stack(dataclasses.replace(case.spec, **changes)), make_inputs(case)
    equal(inputs.run(stack, read=READ).tokens.x, picked(inputs(stack), READ))


def test_layers_that_read_memory_and_spans_of_them() -> None:
    stack, inputs = make_stack(CASE.spec), make_inputs(CASE)
    equal(inputs.run(stack, read=READ).tokens.x, picked(inputs(stack), READ))
    first = inputs.run(stack, span=range(1))
    equal(inputs.run(stack, span=range(1), read=READ).tokens.x, picked(first.tokens.x, READ))


def test_the_gradient_is_that_of_what_is_read() -> None:
    stack, inputs = make_stack(CASE.spec), make_inputs(CASE)
    x = inputs.tokens.x.requires_grad_()
    wanted = [x, *stack.parameters()]
    weight = torch.randn(*READ.shape, x.shape[2], dtype=x.dtype, generator=torch.Generator().manual_seed(1))

    def gradients(made: Tensor) -> tuple[Tensor, ...]:
        return torch.autograd.grad((made * weight).sum(), wanted)

    ours, expected = gradients(inputs.run(stack, read=READ).tokens.x), gradients(picked(inputs(stack), READ))
    for mine, other in zip(ours, expected, strict=True):
        equal(mine, other)
