"""First weights by name: each matrix has the distribution that its formula says, for what it is and the depth."""

from __future__ import annotations

import dataclasses
import math
import re

import pytest
import torch
from contract import FEEDFORWARDS, INITIALISATIONS, MIXERS, Inputs, make_inputs
from test_sharing import CASES
from torch import Tensor, nn
from torch.testing import assert_close

from mmformer.errors import InputError
from mmformer.models.encoder import EncoderSpec
from mmformer.models.model import ModelSpec
from mmformer.nn.attention import AttentionSpec
from mmformer.nn.feedforward import FeedForward, FeedForwardSpec, GELUFeedForwardSpec, SwiGLUFeedForwardSpec
from mmformer.nn.initialisation import (
    DeepNormInitialisationSpec,
    GPT2InitialisationSpec,
    InitialisationSpec,
    Part,
    T5InitialisationSpec,
    TruncatedNormalInitialisationSpec,
    XavierInitialisationSpec,
    ZeroResidualInitialisationSpec,
)
from mmformer.nn.layer import LayerSpec
from mmformer.nn.sharing import SharingSpec
from mmformer.nn.stack import Stack, StackSpec
from mmformer.tokenizers.image import ImagePatchesSpec

WIDTH, DEPTH, MEMORY = 128, 4, 64
LAYER = LayerSpec(AttentionSpec(4, key_value_heads=2), GELUFeedForwardSpec(ratio=2.0))
READER = dataclasses.replace(LAYER, cross=AttentionSpec(4), feedforward=SwiGLUFeedForwardSpec())


def built(initialisation: InitialisationSpec | None, layer: LayerSpec = LAYER, depth: int = DEPTH) -> Stack:
    memory = MEMORY if layer.cross is not None else None
    torch.manual_seed(0)
    return StackSpec(WIDTH, depth, layer, memory_width=memory, initialisation=initialisation).build()


def matrices(stack: Stack) -> dict[str, list[Tensor]]:
    """The matrices of all layers by what they are, written out here independently of what the parts say."""
    found: dict[str, list[Tensor]] = {}
    for layer in stack.layers:
        q, k, v = layer.mixer.qkv.weight.split((128, 64, 64))
        named = {"query": [q], "key": [k], "value": [v], "output": [layer.mixer.out.weight], "inner": []}
        if layer.cross is not None:
            k, v = layer.cross.kv.weight.chunk(2)
            named["query"].append(layer.cross.q.weight)
            named["key"].append(k)
            named["value"].append(v)
            named["output"].append(layer.cross.out.weight)
        feedforward = layer.feedforward
        hidden = feedforward.gate_up.weight.chunk(2) if layer.cross is not None else (feedforward.up.weight,)
        named["inner"] += hidden
        named["output"].append(feedforward.down.weight)
        for role, weights in named.items():
            found.setdefault(role, []).extend(weight.detach() for weight in weights)
    return found


def biases(stack: Stack) -> Tensor:
    return torch.cat(
        [m.bias.detach() for m in stack.layers.modules() if isinstance(m, nn.Linear) and m.bias is not None]
    )


def expected(spec: InitialisationSpec, role: str, weight: Tensor, branches: int) -> float:
    """The standard deviation that the papers' formulas say."""
    outputs, inputs = weight.shape
    match spec:
        case GPT2InitialisationSpec():
            return spec.std / math.sqrt(branches) if role == "output" else spec.std
        case TruncatedNormalInitialisationSpec():
            density = math.exp(-2) / math.sqrt(2 * math.pi)  # of a normal distribution, cut at two deviations
            return spec.std * math.sqrt(1 - 4 * density / math.erf(math.sqrt(2)))
        case XavierInitialisationSpec():
            return math.sqrt(2 / (inputs + outputs))
        case T5InitialisationSpec():
            smaller = spec.head_width if role == "query" and spec.head_width else 1
            return spec.factor / math.sqrt(inputs * smaller)
        case DeepNormInitialisationSpec():
            small = 1.0 if role in ("query", "key") else (4 * branches) ** -0.25
            return small * math.sqrt(2 / (inputs + outputs))
    raise AssertionError(spec)


@pytest.mark.parametrize("layer", [LAYER, READER], ids=["encoder", "reader"])
@pytest.mark.parametrize(
    "spec",
    [
        GPT2InitialisationSpec(),
        GPT2InitialisationSpec(std=0.1),
        TruncatedNormalInitialisationSpec(),
        XavierInitialisationSpec(),
        T5InitialisationSpec(),
        T5InitialisationSpec(factor=0.5),
        T5InitialisationSpec(head_width=16),
        DeepNormInitialisationSpec(),
    ],
    ids=str,
)
@pytest.mark.parametrize("depth", [2, 6])
def test_spread_follows_the_formula(spec: InitialisationSpec, layer: LayerSpec, depth: int) -> None:
    deep = isinstance(spec, DeepNormInitialisationSpec)
    layer = dataclasses.replace(layer, placement="deep") if deep else layer
    stack = built(spec, layer, depth)
    branches = depth * (2 if layer.cross is None else 3)
    assert stack.spec.branches == branches
    for role, weights in matrices(stack).items():
        for weight in weights:
            std = expected(spec, role, weight, branches)
            assert float(weight.std()) == pytest.approx(std, rel=0.04), role
            assert float(weight.mean().abs()) < 5 * std / math.sqrt(weight.numel()), role
            if isinstance(spec, TruncatedNormalInitialisationSpec):
                assert float(weight.abs().max()) <= 2 * spec.std
            if isinstance(spec, XavierInitialisationSpec):
                assert float(weight.abs().max()) <= math.sqrt(3) * std
    assert bool((biases(stack) == 0).all())


def test_deepnorm_s_constants_are_those_of_the_paper() -> None:
    """Table of figure 2: α = (2N)^¼, β = (8N)^-¼ for an encoder; α = (3M)^¼, β = (12M)^-¼ for a decoder that reads."""
    for layer, number in ((LAYER, 2), (READER, 3)):
        stack = built(None, dataclasses.replace(layer, placement="deep"), depth=6)
        for each in stack.layers:
            residuals = (each.mixer_residual, each.cross_residual, each.feedforward_residual)
            scales = {residual.skip_scale for residual in residuals if residual is not None}
            assert [*scales] == pytest.approx([(number * 6) ** 0.25])
        weight = stack.layers[0].mixer.out.weight
        beta = (4 * number * 6) ** -0.25
        assert float(weight.detach().std()) == pytest.approx(beta * math.sqrt(1 / WIDTH), rel=0.04)


def test_deepnorm_is_post_norm_with_its_constants() -> None:
    """``placement: deep`` alone: the same weights, handed to a post-norm stack with α, give the same output."""
    deep = built(None, dataclasses.replace(LAYER, placement="deep"), depth=3).double()
    alpha = (2 * 3) ** 0.25
    post = built(None, dataclasses.replace(LAYER, placement="post", skip_scale=alpha), depth=3).double()
    post.load_state_dict(deep.state_dict())
    tokens = make_inputs(CASES[2]).tokens
    tokens = tokens._replace(x=tokens.x.repeat(1, 1, 4))
    assert_close(deep(tokens).tokens.x, post(tokens).tokens.x, rtol=1e-12, atol=1e-12)


def test_deepnorm_s_update_is_bounded_where_post_norm_s_is_not() -> None:
    """What it is for (§3): one step changes a deep stack's output far less than a post-norm one's."""

    def change(placement: str) -> float:
        stack = built(None, dataclasses.replace(LAYER, placement=placement), depth=24)
        x = torch.randn(2, 8, WIDTH, generator=torch.Generator().manual_seed(0))
        tokens = Inputs(make_inputs(CASES[2]).tokens._replace(x=x, pos=torch.zeros(2, 8, 3).long(), segment=None))
        target = torch.randn(2, 8, WIDTH, generator=torch.Generator().manual_seed(1))
        before = tokens(stack)
        (before - target).square().mean().backward()
        with torch.no_grad():
            for parameter in stack.layers.parameters():
                parameter -= 1e-3 * parameter.grad.sign()  # as Adam's first step
            return float((tokens(stack) - before).square().mean().sqrt())

    assert change("deep") < 0.6 * change("post")


@pytest.mark.parametrize("layer", [LAYER, READER], ids=["encoder", "reader"])
def test_with_zero_residuals_a_stack_is_the_identity(layer: LayerSpec) -> None:
    stack = built(ZeroResidualInitialisationSpec(), layer)
    tokens = make_inputs(CASES[2], torch.float32).tokens
    tokens = tokens._replace(x=tokens.x.repeat(1, 1, 4))
    memory = None if layer.cross is None else tokens._replace(x=tokens.x[..., :MEMORY])
    output = stack(tokens, memory=memory, intermediates=[DEPTH - 1])
    assert torch.equal(output.intermediates[DEPTH - 1], tokens.x)
    plain = built(None, layer)
    for (name, one), other in zip(stack.named_parameters(), plain.parameters(), strict=True):
        last = re.search(r"\.(out|down)\.", name)
        assert bool((one == 0).all()) if last else torch.equal(one, other), name


def test_gpt2_s_outputs_keep_the_variance_of_the_sum() -> None:
    """Twice the depth adds as much in all, where plain weights would add twice."""
    added = {}
    for depth in (4, 16):
        stack = built(GPT2InitialisationSpec(std=0.1), depth=depth)
        x = torch.randn(4, 16, WIDTH, generator=torch.Generator().manual_seed(0))
        tokens = make_inputs(CASES[2]).tokens._replace(x=x, pos=torch.zeros(4, 16, 3).long(), segment=None)
        with torch.no_grad():
            last = stack(tokens, intermediates=[depth - 1]).intermediates[depth - 1]
        added[depth] = float((last - x).var())
    assert added[16] == pytest.approx(added[4], rel=0.35)


def test_sharing_counts_applications() -> None:
    spec = StackSpec(WIDTH, 8, LAYER, sharing=SharingSpec(), initialisation=GPT2InitialisationSpec())
    torch.manual_seed(0)
    assert float(spec.build().layers[0].mixer.out.weight.detach().std()) == pytest.approx(0.02 / 4, rel=0.04)


def model(initialisation: InitialisationSpec | None, depth: int = 2) -> ModelSpec:
    stack = StackSpec(WIDTH, depth, LAYER, initialisation=initialisation)
    return ModelSpec({"s": stack}, {"e": EncoderSpec(ImagePatchesSpec(patch=8), "s")})


def test_a_model_draws_as_its_stacks_say() -> None:
    """Also one that was built without values; each module from its own stream, the rest of the model as ever."""
    spec = model(GPT2InitialisationSpec())
    with torch.device("meta"):
        made = spec.build()
    made = made.to_empty(device="cpu")
    made.initialise(3)
    for role, weights in matrices(made.stack_of("s")).items():
        for weight in weights:
            std = 0.02 / math.sqrt(4) if role == "output" else 0.02
            assert float(weight.std()) == pytest.approx(std, rel=0.04)
    again, deeper, plain = spec.build(), model(GPT2InitialisationSpec(), depth=3).build(), model(None).build()
    for other in (again, deeper, plain):
        other.initialise(3)
    own, others = dict(made.named_parameters()), dict(plain.named_parameters())
    assert all(torch.equal(value, own[name]) for name, value in again.named_parameters())
    name = "stacks.s.layers.0.mixer.qkv.weight"
    assert torch.equal(dict(deeper.named_parameters())[name], own[name]), "depth scales outputs alone"
    name = "stacks.s.layers.0.mixer.out.weight"
    assert_close(dict(deeper.named_parameters())[name] * math.sqrt(6), own[name] * math.sqrt(4))
    assert all(
        torch.equal(value, others[name]) for name, value in own.items() if not name.startswith("stacks.s.layers")
    )


OWN_START = {"select"}
"""Linear maps that belong to a recurrence, which begins as its paper says (Mamba's step, B and C)."""
UNTOLD = {"convolution_bare"}
"""Parts that have no matrices."""
LINEAR = {**MIXERS, **{name: spec for name, spec in FEEDFORWARDS.items() if spec is not None}}


@pytest.mark.parametrize("name", sorted(LINEAR.keys() - UNTOLD))
def test_every_part_says_what_its_matrices_are_for(name: str) -> None:
    """All linear maps, or else they keep a start of their own, named here; rows add up; one map is the last."""
    part = LINEAR[name].build(32)
    assert isinstance(part, Part)
    roles = {
        f"{at}.{path}".strip("."): rows
        for at, p in part.named_modules()
        if isinstance(p, Part)
        for path, rows in p.roles().items()
    }
    maps = {path for path, module in part.named_modules() if isinstance(module, nn.Linear)}
    assert {path for path in maps if path.rpartition(".")[2] not in OWN_START} <= set(roles)
    for path, rows in roles.items():
        found = part.get_submodule(path).weight if path in dict(part.named_modules()) else part.get_parameter(path)
        assert sum(each.number or found.shape[-2] for each in rows) == found.shape[-2], path
    assert [path for path, rows in roles.items() if any(each.role == "output" for each in rows)], "nothing is last"


@dataclasses.dataclass(frozen=True)
class SilentSpec(FeedForwardSpec):
    """A feed-forward that does not say what its matrix is for."""

    def build(self, width: int) -> FeedForward:
        return Silent(width)


class Silent(FeedForward):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.map = nn.Linear(width, width)

    def forward(self, x: Tensor, valid: Tensor | None = None) -> tuple[Tensor, dict]:
        return self.map(x), {}


def test_a_part_that_does_not_say_is_refused() -> None:
    layer = dataclasses.replace(LAYER, feedforward=SilentSpec())
    StackSpec(32, 2, layer).build()
    with pytest.raises(InputError, match="GPT2InitialisationSpec draws matrices by what they are for, but Silent does"):
        StackSpec(32, 2, layer, initialisation=GPT2InitialisationSpec()).build()


@pytest.mark.parametrize("name", INITIALISATIONS)
def test_every_initialisation_draws_weights_of_its_own_the_same_under_a_seed(name: str) -> None:
    layer = dataclasses.replace(LAYER, placement="deep" if name == "deep_norm" else "pre")

    def drawn(initialisation: InitialisationSpec | None) -> Tensor:
        return torch.cat(
            [matrix.flatten() for each in matrices(built(initialisation, layer)).values() for matrix in each]
        )

    found = drawn(INITIALISATIONS[name])
    assert bool(found.isfinite().all())
    assert torch.equal(found, drawn(INITIALISATIONS[name]))
    assert name == "deep_norm" or not torch.equal(found, drawn(None))  # which a deep placement means anyway
