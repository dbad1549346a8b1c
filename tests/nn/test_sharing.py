"""Layers that are applied several times: which, with which weights, and the signal that tells applications apart."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from contract import Case, Inputs, make_inputs, randomise
from contract_checks import CHECKS, Check, decode
from torch import nn
from torch.testing import assert_close

from mmformer.nn.attention import AttentionSpec
from mmformer.nn.layer import LayerSpec
from mmformer.nn.position import SinusoidalPositionSpec
from mmformer.nn.sharing import SharingSpec, step_signal
from mmformer.nn.stack import Stack, StackSpec
from mmformer.types import Tokens

LAYER = LayerSpec(AttentionSpec(4))


class Shared(Case):
    """A point of the contract's space whose two layers are one."""

    @property
    def spec(self) -> StackSpec:
        return dataclasses.replace(super().spec, sharing=SharingSpec(step_signal=self.extras))


CASES = [
    Shared("attention_grouped", "rotary", "causal", True, False, "layer_norm", "pre", "gelu", "other_width", False),
    Shared("attention_pattern", "learned", "prefix", True, True, "rms_norm", "post", "swiglu", "none", False),
    Shared("attention", "sinusoidal", "full", False, True, "layer_norm", "sandwich", "gelu", "none", True),
]


@pytest.mark.parametrize(("check", "case"), [(check, case) for check in CHECKS for case in CASES], ids=str)
def test_a_shared_layer_holds_the_contract(check: Check, case: Shared) -> None:
    for taken in check.cases([case]):
        check(taken)


@pytest.mark.parametrize(
    ("spec", "depth", "applied"),
    [
        (SharingSpec(), 4, (0, 0, 0, 0)),
        (SharingSpec(2), 6, (0, 0, 0, 1, 1, 1)),
        (SharingSpec(2), 5, (0, 0, 0, 1, 1)),
        (SharingSpec(3), 7, (0, 0, 0, 1, 1, 2, 2)),
        (SharingSpec(2, "cycle"), 5, (0, 1, 0, 1, 0)),
        (SharingSpec(3, "cycle"), 6, (0, 1, 2, 0, 1, 2)),
    ],
    ids=str,
)
def test_which_layer_is_applied(spec: SharingSpec, depth: int, applied: tuple[int, ...]) -> None:
    assert spec.applied(depth) == applied
    assert StackSpec(16, depth, sharing=spec).applied == applied


def parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def test_parameters_are_those_of_the_distinct_layers() -> None:
    layer = parameters(LAYER.build(32))
    ends = parameters(StackSpec(32, 1, LAYER).build()) - layer
    for depth, distinct in ((12, 1), (12, 3), (5, 2)):
        stack = StackSpec(32, depth, LAYER, sharing=SharingSpec(distinct)).build()
        assert parameters(stack) == distinct * layer + ends
        assert len(stack.empty_state().layers) == depth


@pytest.mark.parametrize("spec", [SharingSpec(2), SharingSpec(2, "cycle")], ids=str)
def test_it_is_a_stack_of_copies(spec: SharingSpec) -> None:
    """The same output and intermediates as layers of their own that hold the same weights; gradients are their sum."""
    shared = randomise(StackSpec(32, 5, LAYER, SinusoidalPositionSpec(), sharing=spec).build()).double()
    copies = StackSpec(32, 5, LAYER, SinusoidalPositionSpec()).build().double()
    assert isinstance(shared, Stack)
    copies.norm.load_state_dict(shared.norm.state_dict())
    for layer, index in zip(copies.layers, spec.applied(5), strict=True):
        layer.load_state_dict(shared.layers[index].state_dict())
    tokens = make_inputs(CASES[2]).tokens
    outputs = [stack(tokens, intermediates=range(5)) for stack in (shared, copies)]
    for index in range(5):
        assert torch.equal(*(output.intermediates[index] for output in outputs))
    for output in outputs:
        output.tokens.x.square().sum().backward()
    for index in range(2):
        own = shared.layers[index].mixer.qkv.weight.grad
        parts = [
            layer.mixer.qkv.weight.grad
            for layer, which in zip(copies.layers, spec.applied(5), strict=True)
            if which == index
        ]
        assert_close(own, torch.stack(parts).sum(0))


def test_a_pattern_is_of_the_distinct_layers() -> None:
    wide, narrow = LayerSpec(AttentionSpec(4)), LayerSpec(AttentionSpec(2))
    spec = StackSpec(32, 6, pattern=(wide, narrow), sharing=SharingSpec(2, "cycle"))
    assert spec.layers == (wide, narrow) * 3
    assert [layer.mixer.heads for layer in spec.build().layers] == [4, 2]
    grouped = dataclasses.replace(spec, sharing=SharingSpec(2))
    assert grouped.layers == (wide,) * 3 + (narrow,) * 3


def test_each_application_drops_its_own_share_of_paths() -> None:
    stack = StackSpec(32, 5, LAYER, sharing=SharingSpec(), drop_path=0.8).build()
    assert stack.drop_path == pytest.approx([0.0, 0.2, 0.4, 0.6, 0.8])
    x = torch.randn(2000, 1, 32, generator=torch.Generator().manual_seed(0))
    torch.manual_seed(0)
    with torch.no_grad():
        seen = randomise(stack)(Tokens(x, torch.zeros(2000, 1, 3, dtype=torch.int64)), intermediates=range(5))
    for index, chance in enumerate((0.2, 0.4, 0.6, 0.8), start=1):
        same = (seen.intermediates[index] == seen.intermediates[index - 1]).all(-1).double().mean()
        assert float(same) == pytest.approx(chance**2, abs=0.04)


def test_the_signal_is_a_wave_of_the_application() -> None:
    for width in (6, 7):
        half = (width + 1) // 2
        for application in (0, 3):
            angles = [(application + 1) / 10_000 ** (i / half) for i in range(half)]
            expected = [*map(math.sin, angles), *map(math.cos, angles)][:width]
            assert_close(step_signal(application, width, torch.device("cpu")), torch.tensor(expected))


def test_the_signal_enters_each_application() -> None:
    spec = StackSpec(32, 3, LAYER, sharing=SharingSpec(step_signal=True))
    stack, tokens = randomise(spec.build()).double().eval(), make_inputs(CASES[2]).tokens
    plain = randomise(dataclasses.replace(spec, sharing=SharingSpec()).build()).double().eval()
    x = tokens.x
    for index in range(3):
        x = plain(tokens._replace(x=x + step_signal(index, 32, x.device).double()), span=range(1)).tokens.x
    assert_close(stack(tokens, intermediates=[2]).intermediates[2], x, rtol=1e-12, atol=1e-12)


def test_a_pass_in_spans_is_the_whole_pass() -> None:
    case = dataclasses.replace(CASES[0])
    spec = StackSpec(32, 5, LAYER, SinusoidalPositionSpec(), input_norm=True, sharing=SharingSpec(2))
    stack, inputs = randomise(spec.build()).double().eval(), make_inputs(case)._replace(memory=None)
    for cuts in ((1,), (2, 4)):
        tokens = inputs.tokens
        for start, stop in zip((0, *cuts), (*cuts, 5), strict=True):
            tokens = stack(tokens, causal=True, span=range(start, stop)).tokens
        assert torch.equal(tokens.x, inputs(stack))


def test_decoding_goes_on_from_every_application() -> None:
    spec = StackSpec(32, 4, LAYER, sharing=SharingSpec(2, "cycle", step_signal=True))
    stack, inputs = randomise(spec.build()).double().eval(), make_inputs(CASES[0])._replace(memory=None)
    assert isinstance(inputs, Inputs)
    assert_close(decode(stack, inputs, (3, 1, 1, 4)), inputs(stack), rtol=1e-12, atol=1e-12)
