"""The position-wise feed-forwards: each activation by its formula, their shapes, and their weights' names."""

from __future__ import annotations

import dataclasses

import feedforward_reference as reference
import pytest
import torch
from contract import randomise

from mmformer.nn.feedforward import (
    DenseFeedForwardSpec,
    GELUFeedForwardSpec,
    GLUFeedForwardSpec,
    ReLUFeedForwardSpec,
    SiLUFeedForwardSpec,
    SwiGLUFeedForwardSpec,
)

SPECS: dict[str, DenseFeedForwardSpec] = {
    "gelu": GELUFeedForwardSpec(),
    "gelu_tanh": GELUFeedForwardSpec(approximate="tanh"),
    "quick_gelu": GELUFeedForwardSpec(approximate="sigmoid"),
    "relu": ReLUFeedForwardSpec(),
    "relu_squared": ReLUFeedForwardSpec(squared=True),
    "silu": SiLUFeedForwardSpec(),
    "swiglu": SwiGLUFeedForwardSpec(bias=True),
    "geglu": GLUFeedForwardSpec(bias=True),
    "geglu_tanh": GLUFeedForwardSpec(gate="gelu_tanh"),
    "reglu": GLUFeedForwardSpec(gate="relu"),
    "glu": GLUFeedForwardSpec(gate="sigmoid"),
    "bilinear": GLUFeedForwardSpec(gate="identity", bias=True),
}


@pytest.mark.parametrize("name", SPECS)
def test_output_is_the_formula(name: str) -> None:
    spec = SPECS[name]
    module = randomise(spec.build(12)).double()
    x = torch.randn(2, 5, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    y, aux = module(x)
    assert aux == {}
    torch.testing.assert_close(y, torch.from_numpy(reference.dense(spec, module, x.numpy())), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", ["relu_squared", "bilinear"])
def test_what_is_of_second_degree_grows_with_the_square(name: str) -> None:
    spec = dataclasses.replace(SPECS[name], bias=False)
    module, x = randomise(spec.build(12)).double(), torch.randn(1, 3, 12, dtype=torch.float64)
    torch.testing.assert_close(module(3 * x)[0], 9 * module(x)[0])


def test_names_and_shapes_of_weights_are_those_that_bundles_hold() -> None:
    plain = {name: tuple(p.shape) for name, p in GELUFeedForwardSpec(ratio=2.0).build(12).named_parameters()}
    assert plain == {"up.weight": (24, 12), "up.bias": (24,), "down.weight": (12, 24), "down.bias": (12,)}
    gated = {name: tuple(p.shape) for name, p in SwiGLUFeedForwardSpec(ratio=2.0).build(12).named_parameters()}
    assert gated == {"gate_up.weight": (48, 12), "down.weight": (12, 24)}


def test_default_sizes_have_equal_parameters() -> None:
    sizes = [sum(p.numel() for p in spec.build(192).parameters() if p.dim() == 2) for spec in SPECS.values()]
    assert set(sizes) == {8 * 192 * 192}
