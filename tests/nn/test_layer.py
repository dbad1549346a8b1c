"""Factors and dropout at the places that a layer and a stack have for them."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from contract import Case, make_inputs, randomise
from contract_checks import CHECKS, Check
from torch.testing import assert_close

from mmformer.errors import InputError
from mmformer.nn.attention import AttentionSpec
from mmformer.nn.feedforward import GELUFeedForwardSpec
from mmformer.nn.layer import LayerSpec
from mmformer.nn.mask import Mask
from mmformer.nn.mixer import View
from mmformer.nn.stack import StackSpec
from mmformer.types import Tokens


class Deep(Case):
    """A point of the contract's space under DeepNorm."""

    @property
    def spec(self) -> StackSpec:
        spec = super().spec
        layer = dataclasses.replace(spec.layer, placement="deep", skip_scale=1.0)
        return dataclasses.replace(spec, layer=layer, final_norm=False)


class Scaled(Case):
    """A point of the contract's space whose branches are scaled."""

    @property
    def spec(self) -> StackSpec:
        spec = super().spec
        return dataclasses.replace(spec, layer=dataclasses.replace(spec.layer, branch_scale=0.3))


class Gated(Case):
    """A point of the contract's space whose branches are gated."""

    @property
    def spec(self) -> StackSpec:
        spec = super().spec
        return dataclasses.replace(spec, layer=dataclasses.replace(spec.layer, gated=True, layer_scale=None))


CASES = [
    Deep("attention_grouped", "rotary", "causal", True, False, "layer_norm", "post", "gelu", "other_width", False),
    Deep("attention", "sinusoidal", "full", False, True, "rms_norm", "post", "none", "none", True),
    Scaled("attention", "learned", "prefix", True, True, "rms_norm", "parallel", "swiglu", "none", True),
    Scaled("attention_grouped", "rotary", "causal", True, False, "layer_norm", "sandwich", "gelu", "same_width", False),
    Gated("attention", "rotary", "causal", True, False, "layer_norm", "pre", "gelu", "other_width", True),
    Gated("attention", "learned", "full", False, True, "rms_norm", "sandwich", "swiglu", "same_width", False),
    Gated("attention", "sinusoidal", "prefix", True, True, "layer_norm", "post", "gelu", "none", False),
]


@pytest.mark.parametrize(("check", "case"), [(check, case) for check in CHECKS for case in CASES], ids=str)
def test_deepnorm_branch_scales_and_gates_hold_the_contract(check: Check, case: Case) -> None:
    for taken in check.cases([case]):
        check(taken)


CASE = Case("attention", "nowhere", "full", True, False, "layer_norm", "pre", "gelu", "none", False)
LAYER = LayerSpec(AttentionSpec(4))


@pytest.mark.parametrize("placement", ["pre", "post", "sandwich", "parallel"])
def test_a_branch_scale_is_a_gain_that_is_not_learned(placement: str) -> None:
    if placement == "parallel":
        layer = dataclasses.replace(LAYER, parallel=True)
    else:
        layer = dataclasses.replace(LAYER, placement=placement)
    scaled = randomise(StackSpec(32, 2, dataclasses.replace(layer, branch_scale=0.3)).build()).double()
    gained = StackSpec(32, 2, dataclasses.replace(layer, layer_scale=0.3)).build().double()
    missing, unexpected = gained.load_state_dict(scaled.state_dict(), strict=False)
    assert unexpected == [] and all(name.endswith(".gain") for name in missing)
    with torch.no_grad():
        for name in missing:
            gained.get_parameter(name).fill_(0.3)
    inputs = make_inputs(CASE)
    assert_close(inputs(scaled), inputs(gained), rtol=1e-12, atol=1e-12)


def test_gated_layers_begin_as_if_they_were_not_there() -> None:
    """Before layers that are trained already; and what makes a branch is reached as soon as its gate has moved."""
    seeing = LayerSpec(None, GELUFeedForwardSpec(), AttentionSpec(4), gated=True)
    mixed = StackSpec(32, 4, pattern=(seeing, LAYER)).build().double()
    plain = StackSpec(32, 2, LAYER).build().double()
    inner = {f"layers.{2 * i + 1}.{name}": x for i in range(2) for name, x in plain.layers[i].state_dict().items()}
    mixed.load_state_dict(
        {**mixed.state_dict(), **inner, **{f"norm.{n}": x for n, x in plain.norm.state_dict().items()}}
    )
    tokens = make_inputs(CASE).tokens
    memory = Tokens(torch.randn(len(tokens.x), 3, 32).double(), tokens.pos[:, :3])
    made = mixed(tokens, memory=memory).tokens.x
    assert torch.equal(made, plain(tokens).tokens.x)
    (made * torch.randn_like(made)).sum().backward()
    gates = [name for name, _ in mixed.named_parameters() if name.endswith(".gate")]
    assert len(gates) == 4 and all(mixed.get_parameter(name).grad.item() != 0 for name in gates)
    assert mixed.layers[0].cross.q.weight.grad.abs().max() == 0
    torch.nn.init.constant_(mixed.layers[0].cross_residual.gate, 0.5)
    assert not torch.allclose(mixed(tokens, memory=memory).tokens.x, made)


def test_dropout_may_be_the_feedforwards_alone() -> None:
    """DistilBERT's: what attention adds is whole, in training, too."""
    layer = LayerSpec(AttentionSpec(4), cross=AttentionSpec(4), dropout=0.5, mixer_dropout=0.0).build(32).train()
    assert layer.mixer_residual is not None and layer.cross_residual is not None
    assert layer.feedforward_residual is not None
    x = torch.ones(5, 7, 32)
    for branch in (layer.mixer_residual, layer.cross_residual):
        assert torch.equal(branch.leave(x, x), x + x)
    left = layer.feedforward_residual.leave(x, x)
    assert set(left.unique().tolist()) == {1.0, 3.0}


def test_output_dropout_is_on_what_leaves_the_last_layer() -> None:
    """After the norm, in training alone, and not on hidden states that are asked for."""
    stack = StackSpec(32, 2, LAYER, output_dropout=0.4).build().double()
    tokens = make_inputs(CASE).tokens
    tokens = tokens._replace(x=tokens.x.repeat(20, 1, 1), pos=tokens.pos.repeat(20, 1, 1), valid=None)
    torch.manual_seed(0)
    dropped, whole = stack.train()(tokens, intermediates=[1]), stack.eval()(tokens).tokens.x
    assert_close(stack.norm(dropped.intermediates[1]), whole)
    gone = dropped.tokens.x == 0
    assert float(gone.double().mean()) == pytest.approx(0.4, abs=0.02)
    assert_close(dropped.tokens.x[~gone], whole[~gone] / 0.6)


def test_input_dropout_is_on_what_enters_the_first_layer() -> None:
    """After the norm, in training alone: features are dropped by themselves, and the others are larger."""
    entering: list[torch.Tensor] = []
    stack = StackSpec(32, 2, LAYER, input_norm=True, input_dropout=0.4).build().double()
    stack.layers[0].register_forward_hook(lambda *arguments: entering.append(arguments[1][0]))
    tokens = make_inputs(CASE).tokens
    tokens = tokens._replace(x=tokens.x.repeat(20, 1, 1), pos=tokens.pos.repeat(20, 1, 1), valid=None)
    torch.manual_seed(0)
    stack.train()(tokens)
    stack.eval()(tokens)
    dropped, whole = entering
    assert torch.equal(whole, stack.input_norm(tokens.x))
    gone = dropped == 0
    assert float(gone.double().mean()) == pytest.approx(0.4, abs=0.02)
    assert_close(dropped[~gone], whole[~gone] / 0.6)


def test_a_layer_may_only_read_memory_and_normalise_it() -> None:
    """Two layers, of which the second has no mixer, against what they are by their equations; and step by step."""
    reads = LayerSpec(None, GELUFeedForwardSpec(), AttentionSpec(4), layer_scale=0.3, memory_norm=True)
    spec = StackSpec(32, 2, pattern=(LAYER, reads), memory_width=24)
    stack = randomise(spec.build()).double().eval()
    draw = torch.Generator().manual_seed(3)
    x, memory = (torch.randn(2, length, width, generator=draw).double() for length, width in ((5, 32), (4, 24)))
    pos = torch.zeros(2, 5, 3, dtype=torch.int64)
    shown = Tokens(memory, pos[:, :4])
    output = stack(Tokens(x, pos), causal=True, memory=shown, intermediates=[0]).tokens.x
    before = stack(Tokens(x, pos), causal=True, span=range(1)).tokens.x  # what reads no memory needs none
    layer = stack.layers[1]
    assert [name for name, _ in layer.named_children()] == [
        *("cross", "cross_residual", "memory_norm", "feedforward", "feedforward_residual")
    ]
    seen = View(Mask(), memory=layer.memory_norm(memory))
    y = before + layer.cross_residual.gain * layer.cross(layer.cross_residual.norm(before), seen, None, False)[0]
    y = y + layer.feedforward_residual.gain * layer.feedforward(layer.feedforward_residual.norm(y))[0]
    assert_close(output, stack.norm(y), rtol=1e-12, atol=1e-12)
    state, steps = stack.empty_state(), []
    for place in range(5):
        made = stack(Tokens(x[:, place : place + 1], pos[:, :1]), causal=True, memory=shown, state=state)
        state = made.state
        steps.append(made.tokens.x)
    assert_close(torch.cat(steps, dim=1), output, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"mixer": None}, "LayerSpec.mixer must be a mixer, or None beside a cross"),
        ({"memory_norm": True}, "LayerSpec.memory_norm must be false where there is no cross"),
    ],
)
def test_what_needs_a_cross_is_refused_without(options: dict[str, Any], told: str) -> None:
    with pytest.raises(InputError, match=told):
        LayerSpec(**options)
    with pytest.raises(InputError, match=r"StackSpec\.reversible must be false"):
        StackSpec(32, 2, LayerSpec(None, cross=AttentionSpec(4)), reversible=True)
