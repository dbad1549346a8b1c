"""Every field of every spec does something: it changes the parameters, the output, or the output in training.

A new spec, or a new field of an old one, fails here until ``FIELDS`` says what another value of it does.
"""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import pkgutil
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Literal, NamedTuple, get_args, get_origin, get_type_hints

import pytest
import torch
from contract import MEMORY_LENGTH, PLACES, randomise
from torch import Tensor, nn

import mmformer.nn
from mmformer.errors import InputError
from mmformer.nn.attention import AttentionSpec
from mmformer.nn.bias import ALiBiPositionSpec, RelativeBucketPositionSpec, RelativeGridPositionSpec
from mmformer.nn.block_sparse import BlockSparseSpec
from mmformer.nn.convolution import ConvolutionSpec, GridConvolutionSpec
from mmformer.nn.everywhere import EverywhereSpec, GlobalAttentionSpec
from mmformer.nn.feedforward import (
    FeedForwardSpec,
    GELUFeedForwardSpec,
    GLUFeedForwardSpec,
    ReLUFeedForwardSpec,
    SiLUFeedForwardSpec,
    SwiGLUFeedForwardSpec,
)
from mmformer.nn.halting import HaltingSpec
from mmformer.nn.initialisation import (
    DeepNormInitialisationSpec,
    GPT2InitialisationSpec,
    InitialisationSpec,
    T5InitialisationSpec,
    TruncatedNormalInitialisationSpec,
    XavierInitialisationSpec,
    ZeroResidualInitialisationSpec,
)
from mmformer.nn.layer import LayerSpec
from mmformer.nn.linear_attention import LinearAttentionSpec
from mmformer.nn.linformer import LinformerSpec
from mmformer.nn.lsh import LSHAttentionSpec
from mmformer.nn.mamba import MambaSpec
from mmformer.nn.mixer import MixerSpec
from mmformer.nn.moe import MixtureOfExpertsSpec
from mmformer.nn.norm import LayerNormSpec, NormSpec, RMSNormSpec
from mmformer.nn.pattern import (
    AllOfSpec,
    AnyOfSpec,
    ChunksSpec,
    GlobalSpec,
    NeighbourhoodSpec,
    PatternSpec,
    StridedSpec,
    WindowSpec,
)
from mmformer.nn.perceiver import PerceiverResamplerSpec
from mmformer.nn.performer import PerformerSpec, redraw
from mmformer.nn.pool import (
    AttentionPoolSpec,
    ClassTokenPoolSpec,
    FirstPoolSpec,
    JoinedPoolSpec,
    LastPoolSpec,
    MeanPoolSpec,
    PoolSpec,
)
from mmformer.nn.position import LearnedPositionSpec, PositionSpec, SinusoidalPositionSpec
from mmformer.nn.random_blocks import RandomBlocksSpec
from mmformer.nn.resampler import AttentionResamplerSpec, ResamplerSpec
from mmformer.nn.rotary import MixedRotaryPositionSpec, RotaryPositionSpec
from mmformer.nn.rotary_scaling import (
    LinearScalingSpec,
    Llama3ScalingSpec,
    NTKScalingSpec,
    RotaryScalingSpec,
    YaRNScalingSpec,
)
from mmformer.nn.router import ExpertChoiceSpec, RouterSpec, TokenChoiceSpec
from mmformer.nn.sharing import SharingSpec
from mmformer.nn.shaw import ShawAttentionSpec
from mmformer.nn.stack import StackSpec
from mmformer.spec import Catalogued
from mmformer.types import SPECIAL, Tokens

PARAMETERS, OUTPUT, TRAINING = "the parameters", "the output", "the output in training only"
ASKED, START = "what is asked to be minimised", "the first weights"


class Change(NamedTuple):
    """Another value of a field, what it changes, and the other fields of both specs."""

    value: Any
    changes: str
    beside: Mapping[str, Any] = MappingProxyType({})


FEEDFORWARD = {
    "ratio": Change(2.0, PARAMETERS),
    "multiple": Change(48, PARAMETERS),
    "bias": Change(False, PARAMETERS),
    "dropout": Change(0.5, TRAINING),
    "hidden_width": Change(24, PARAMETERS),
}
ROUTER = {"jitter": Change(0.5, TRAINING), "z_loss": Change(0.5, ASKED)}
DEPTHWISE = {
    "ratio": Change(None, PARAMETERS),
    "gated": Change(True, PARAMETERS),
    "norm": Change(LayerNormSpec(), PARAMETERS),
    "activation": Change("silu", OUTPUT),
    "bias": Change(False, PARAMETERS),
    "dropout": Change(0.5, TRAINING),
    "dilation": Change(2, OUTPUT),
}
FIELDS: dict[type, dict[str, Change]] = {
    ConvolutionSpec: {**DEPTHWISE, "before": Change(2, PARAMETERS), "after": Change(0, PARAMETERS)},
    GridConvolutionSpec: {
        **DEPTHWISE,
        "rows": Change(2, PARAMETERS),
        "columns": Change(0, PARAMETERS),
        "axes": Change((2, 1), OUTPUT),
    },
    AttentionSpec: {
        "heads": Change(4, OUTPUT),
        "key_value_heads": Change(2, PARAMETERS),
        "head_width": Change(12, PARAMETERS),
        "scale": Change(1.0, OUTPUT),
        "qk_norm": Change(True, PARAMETERS),
        "bias": Change(False, PARAMETERS),
        "dropout": Change(0.5, TRAINING),
        "pattern": Change(WindowSpec(1, 1), OUTPUT),
    },
    GlobalAttentionSpec: {
        "heads": Change(4, OUTPUT),
        "pattern": Change(WindowSpec(1, 1), OUTPUT),
        "bias": Change(False, PARAMETERS),
        "dropout": Change(0.5, TRAINING),
    },
    LSHAttentionSpec: {
        "heads": Change(4, OUTPUT),
        "buckets": Change(2, OUTPUT),
        "rounds": Change(1, OUTPUT),
        "window": Change(1, OUTPUT, {"buckets": 2}),
        "seed": Change(1, OUTPUT),
    },
    LinearAttentionSpec: {"heads": Change(4, OUTPUT), "bias": Change(False, PARAMETERS)},
    PerformerSpec: {
        "heads": Change(4, OUTPUT),
        "bias": Change(False, PARAMETERS),
        "features": Change(64, OUTPUT),
        "redraw": Change(None, TRAINING),
        "seed": Change(1, OUTPUT),
    },
    LinformerSpec: {
        "heads": Change(4, OUTPUT),
        "length": Change(64, PARAMETERS, {"length": 32, "projected": 8}),
        "projected": Change(4, PARAMETERS, {"length": 32, "projected": 8}),
        "sharing": Change("none", PARAMETERS),
        "bias": Change(False, PARAMETERS),
        "dropout": Change(0.5, TRAINING),
    },
    ShawAttentionSpec: {
        "heads": Change(4, PARAMETERS),
        "distance": Change(2, PARAMETERS),
        "relative_keys": Change(False, PARAMETERS),
        "relative_values": Change(False, PARAMETERS),
        "bias": Change(False, PARAMETERS),
        "dropout": Change(0.5, TRAINING),
    },
    WindowSpec: {
        "before": Change(2, OUTPUT, {"before": 1, "after": 1}),
        "after": Change(0, OUTPUT, {"before": 1, "after": 1}),
        "dilation": Change(2, OUTPUT, {"before": 1, "after": 1}),
    },
    ChunksSpec: {"size": Change(3, OUTPUT)},
    GlobalSpec: {"tokens": Change(2, OUTPUT)},
    EverywhereSpec: {},
    RandomBlocksSpec: {
        "size": Change(2, OUTPUT, {"size": 1, "blocks": 1}),
        "blocks": Change(2, OUTPUT, {"size": 1, "blocks": 1}),
        "seed": Change(1, OUTPUT, {"size": 1, "blocks": 1}),
    },
    BlockSparseSpec: {
        "size": Change(2, OUTPUT, {"size": 1, "whole": 0}),
        "whole": Change(100, OUTPUT, {"size": 1, "whole": 0}),
        "first": Change(2, OUTPUT, {"size": 1, "whole": 0}),
    },
    StridedSpec: {"stride": Change(3, OUTPUT)},
    NeighbourhoodSpec: {
        "rows": Change(0, OUTPUT, {"rows": 1, "columns": 0}),
        "columns": Change(1, OUTPUT, {"rows": 1, "columns": 0}),
        "axes": Change((0, 2), OUTPUT, {"rows": 1, "columns": 0}),
    },
    AllOfSpec: {"patterns": Change((WindowSpec(2, 2), StridedSpec(2)), OUTPUT)},
    AnyOfSpec: {"patterns": Change((WindowSpec(1, 1), GlobalSpec()), OUTPUT)},
    MambaSpec: {
        "expand": Change(1, PARAMETERS),
        "states": Change(8, PARAMETERS),
        "convolution": Change(3, PARAMETERS),
        "rank": Change(2, PARAMETERS),
        "norm": Change(RMSNormSpec(), PARAMETERS),
        "steps": Change((0.01, 0.2), START),
        "bias": Change(True, PARAMETERS),
        "convolution_bias": Change(False, PARAMETERS),
        "bidirectional": Change(True, PARAMETERS),
    },
    GELUFeedForwardSpec: {**FEEDFORWARD, "approximate": Change("tanh", OUTPUT)},
    ReLUFeedForwardSpec: {**FEEDFORWARD, "squared": Change(True, OUTPUT)},
    SiLUFeedForwardSpec: FEEDFORWARD,
    SwiGLUFeedForwardSpec: {**FEEDFORWARD, "bias": Change(True, PARAMETERS)},
    GLUFeedForwardSpec: {**FEEDFORWARD, "bias": Change(True, PARAMETERS), "gate": Change("relu", OUTPUT)},
    MixtureOfExpertsSpec: {
        "experts": Change(4, PARAMETERS),
        "expert": Change(GELUFeedForwardSpec(approximate="tanh"), OUTPUT),
        "router": Change(ExpertChoiceSpec(), OUTPUT),
        "shared": Change(GELUFeedForwardSpec(), PARAMETERS),
    },
    TokenChoiceSpec: {
        "top": Change(3, OUTPUT),
        "renormalise": Change(False, OUTPUT),
        "scores": Change("sigmoid", OUTPUT),
        "capacity": Change(0.5, TRAINING),
        "places": Change(1, OUTPUT),
        "balance_loss": Change(0.5, ASKED),
        "balance_rate": Change(0.1, PARAMETERS),
        **ROUTER,
    },
    ExpertChoiceSpec: {"capacity": Change(1.0, OUTPUT), **ROUTER},
    LayerNormSpec: {"eps": Change(1.0, OUTPUT), "bias": Change(False, PARAMETERS)},
    RMSNormSpec: {"eps": Change(1.0, OUTPUT)},
    LayerSpec: {
        "mixer": Change(AttentionSpec(heads=4), OUTPUT),
        "feedforward": Change(None, PARAMETERS),
        "cross": Change(AttentionSpec(heads=4), PARAMETERS),
        "norm": Change(RMSNormSpec(), PARAMETERS),
        "placement": Change("post", OUTPUT),
        "parallel": Change(True, PARAMETERS),
        "skip_scale": Change(0.5, OUTPUT),
        "dropout": Change(0.5, TRAINING),
        "layer_scale": Change(0.5, PARAMETERS),
        "branch_scale": Change(0.5, OUTPUT),
        "memory_norm": Change(True, PARAMETERS, {"cross": AttentionSpec(heads=4)}),
        "mixer_dropout": Change(0.5, TRAINING),
        "gated": Change(True, PARAMETERS),
    },
    PositionSpec: {},
    LearnedPositionSpec: {
        "axes": Change((1, 0), OUTPUT, {"axes": (0, 1), "sizes": (9, 9)}),
        "sizes": Change((8,), PARAMETERS),
        "learned": Change((8,), PARAMETERS),
        "special": Change(0, PARAMETERS),
        "antialias": Change(False, OUTPUT, {"sizes": (9,), "learned": (24,)}),
        "fixed": Change(True, START),
    },
    SinusoidalPositionSpec: {"axes": Change((1, 2), OUTPUT), "base": Change(100.0, OUTPUT)},
    RotaryPositionSpec: {
        "axes": Change((1, 0), OUTPUT),
        "base": Change(100.0, OUTPUT),
        "fraction": Change(0.5, OUTPUT),
        "scaling": Change(LinearScalingSpec(), OUTPUT),
    },
    MixedRotaryPositionSpec: {"axes": Change((2, 0), OUTPUT), "base": Change(100.0, START)},
    LinearScalingSpec: {"factor": Change(4.0, OUTPUT)},
    NTKScalingSpec: {"factor": Change(4.0, OUTPUT)},
    YaRNScalingSpec: {
        "factor": Change(2.0, OUTPUT),
        "length": Change(64, OUTPUT),
        "fast": Change(2.0, OUTPUT),
        "slow": Change(0.01, OUTPUT),
        "attention_factor": Change(1.0, OUTPUT),
    },
    Llama3ScalingSpec: {
        "factor": Change(4.0, OUTPUT),
        "length": Change(64, OUTPUT),
        "fast": Change(40.0, OUTPUT),
        "slow": Change(1.2, OUTPUT),
    },
    ALiBiPositionSpec: {
        "axes": Change((1,), OUTPUT),
        "metric": Change("manhattan", OUTPUT, {"axes": (1, 2)}),
    },
    RelativeBucketPositionSpec: {
        "axis": Change(1, OUTPUT),
        "buckets": Change(16, PARAMETERS),
        "max_distance": Change(8, OUTPUT, {"buckets": 8}),
        "bidirectional": Change(False, OUTPUT),
    },
    RelativeGridPositionSpec: {"axes": Change((0, 1), OUTPUT), "sizes": Change((9, 9), PARAMETERS)},
    StackSpec: {
        "width": Change(32, PARAMETERS, {"width": 64, "depth": 1}),
        "depth": Change(2, PARAMETERS, {"width": 64, "depth": 1}),
        "layer": Change(LayerSpec(placement="post"), OUTPUT, {"width": 64, "depth": 1}),
        "position": Change(RotaryPositionSpec(), OUTPUT, {"width": 64, "depth": 1}),
        "input_norm": Change(True, PARAMETERS, {"width": 64, "depth": 1}),
        "final_norm": Change(False, PARAMETERS, {"width": 64, "depth": 1}),
        "drop_path": Change(0.5, TRAINING, {"width": 64, "depth": 2}),
        "input_dropout": Change(0.5, TRAINING, {"width": 64, "depth": 1}),
        "output_dropout": Change(0.5, TRAINING, {"width": 64, "depth": 1}),
        "embedding_dropout": Change(0.5, TRAINING, {"width": 64, "depth": 1, "input_norm": True}),
        "sharing": Change(SharingSpec(), PARAMETERS, {"width": 64, "depth": 2}),
        "reversible": Change(True, OUTPUT, {"width": 64, "depth": 2}),
        "halting": Change(HaltingSpec(), PARAMETERS, {"width": 64, "depth": 2}),
        "initialisation": Change(GPT2InitialisationSpec(), START, {"width": 64, "depth": 1}),
        "pattern": Change((LayerSpec(placement="post"), LayerSpec()), OUTPUT, {"width": 64, "depth": 2}),
        "memory_width": Change(
            24, PARAMETERS, {"width": 64, "depth": 1, "layer": LayerSpec(cross=AttentionSpec(heads=4))}
        ),
    },
    SharingSpec: {
        "distinct": Change(2, PARAMETERS),
        "order": Change("cycle", OUTPUT, {"distinct": 2}),
        "step_signal": Change(True, OUTPUT),
    },
    HaltingSpec: {"threshold": Change(0.3, OUTPUT), "ponder_cost": Change(0.5, ASKED)},
    GPT2InitialisationSpec: {"std": Change(0.1, START)},
    TruncatedNormalInitialisationSpec: {"std": Change(0.1, START)},
    T5InitialisationSpec: {"factor": Change(0.5, START), "head_width": Change(16, START)},
    XavierInitialisationSpec: {},
    ZeroResidualInitialisationSpec: {},
    DeepNormInitialisationSpec: {},
    ClassTokenPoolSpec: {"index": Change(1, OUTPUT), "number": Change(2, OUTPUT)},
    FirstPoolSpec: {},
    JoinedPoolSpec: {"pools": Change((MeanPoolSpec(), LastPoolSpec()), OUTPUT)},
    MeanPoolSpec: {},
    LastPoolSpec: {},
    AttentionPoolSpec: {
        "attention": Change(AttentionSpec(heads=4), OUTPUT),
        "feedforward": Change(GELUFeedForwardSpec(), PARAMETERS),
        "norm": Change(LayerNormSpec(eps=1.0), OUTPUT, {"feedforward": GELUFeedForwardSpec()}),
    },
    AttentionResamplerSpec: {
        "queries": Change(5, PARAMETERS),
        "width": Change(32, PARAMETERS),
        "class_query": Change(True, OUTPUT),
        "attention": Change(AttentionSpec(heads=4), OUTPUT),
        "norm": Change(LayerNormSpec(eps=1.0), OUTPUT),
        "final_norm": Change(True, PARAMETERS),
    },
    PerceiverResamplerSpec: {
        "queries": Change(5, PARAMETERS),
        "width": Change(32, PARAMETERS),
        "class_query": Change(True, OUTPUT),
        "depth": Change(2, PARAMETERS),
        "attention": Change(AttentionSpec(heads=4, bias=False), OUTPUT),
        "feedforward": Change(ReLUFeedForwardSpec(bias=False), OUTPUT),
        "norm": Change(LayerNormSpec(eps=1.0), OUTPUT),
        "content": Change(True, OUTPUT),
    },
}


def all_specs() -> set[type]:
    """Every concrete dataclass in mmformer.nn that builds something."""
    found = set()
    for info in pkgutil.iter_modules(mmformer.nn.__path__):
        module = importlib.import_module(f"mmformer.nn.{info.name}")
        for _, value in inspect.getmembers(module, inspect.isclass):
            builds = hasattr(value, "build") or issubclass(value, Catalogued)
            if dataclasses.is_dataclass(value) and builds and not inspect.isabstract(value):
                found.add(value)
    return found


def settings(spec: object) -> StackSpec | PoolSpec | ResamplerSpec:
    """A stack that a spec stands in, or the pool or the resampler that it is."""
    width, depth = 64, 1
    match spec:
        case StackSpec() | PoolSpec() | ResamplerSpec():
            return spec
        case LayerSpec():
            return StackSpec(width, depth, spec)
        case SharingSpec():
            return StackSpec(width, 4, sharing=spec)
        case HaltingSpec():
            return StackSpec(width, 4, halting=spec)
        case InitialisationSpec():
            return StackSpec(width, depth, initialisation=spec)
        case MixerSpec():
            return StackSpec(width, depth, LayerSpec(mixer=spec))
        case PatternSpec():
            return StackSpec(width, depth, LayerSpec(AttentionSpec(pattern=spec)))
        case FeedForwardSpec():
            return StackSpec(width, depth, LayerSpec(feedforward=spec))
        case RouterSpec():
            return StackSpec(width, depth, LayerSpec(feedforward=MixtureOfExpertsSpec(router=spec)))
        case NormSpec():
            return StackSpec(width, depth, LayerSpec(norm=spec))
        case PositionSpec():
            return StackSpec(width, depth, position=spec)
        case RotaryScalingSpec():
            return StackSpec(width, depth, position=RotaryPositionSpec(scaling=spec))
    raise AssertionError(f"Say in settings() of tests/nn/test_spec_fields.py where {type(spec).__name__} stands.")


class Built:
    """What a spec builds, with parameters that depend on their shapes and order only."""

    def __init__(self, spec: object) -> None:
        self.place = settings(spec)
        torch.manual_seed(0)
        module = self.place.build() if isinstance(self.place, StackSpec) else self.place.build(64)
        assert isinstance(module, nn.Module)
        self.start = {name: parameter.detach().clone() for name, parameter in module.named_parameters()}
        self.asked: dict[str, Tensor] = {}
        self.module = randomise(module).double()
        self.parameters = {name: parameter.shape for name, parameter in self.module.named_parameters()}

    def run(self, training: bool) -> Tensor:
        draw = torch.Generator().manual_seed(0)
        width = self.place.width if isinstance(self.place, StackSpec) else 64
        pos = PLACES.clamp(min=0)[None].expand(2, -1, -1).clone()
        pos[..., 1] += torch.arange(len(PLACES)) % 2
        tokens = Tokens(torch.randn(2, len(PLACES), width, generator=draw, dtype=torch.float64), pos)
        self.module.train(training)
        if training:
            redraw(self.module, 1000)
        torch.manual_seed(0)
        if isinstance(self.place, PoolSpec):
            return self.module(tokens).detach()
        if isinstance(self.place, ResamplerSpec):
            pos[:, 0] = SPECIAL
            made = self.module(tokens)
            return torch.cat(
                (made.x, made.pos.double()), dim=-1
            ).detach()  # what a class query changes is where it stands
        memory = None
        if self.place.reads_memory:
            shape = (2, MEMORY_LENGTH, self.place.memory_width or width)
            x = torch.randn(shape, generator=draw, dtype=torch.float64)
            memory = Tokens(x, torch.zeros(2, MEMORY_LENGTH, 3, dtype=torch.int64))
        output = self.module(tokens, memory=memory, causal="bidirectional" not in self.place.abilities)
        self.asked = {name: term.total.detach() for name, term in output.aux.items()}
        return output.tokens.x.detach()


def what_changes(spec: object, other: object) -> str:
    one, two = Built(spec), Built(other)
    if one.parameters != two.parameters:
        for built in (one, two):
            assert bool(built.run(training=False).isfinite().all())
        return PARAMETERS
    for training, answer in ((False, OUTPUT), (True, TRAINING)):
        if not torch.allclose(one.run(training), two.run(training), rtol=0, atol=1e-6):
            return answer
    if one.asked != two.asked:
        return ASKED
    return "nothing" if all(torch.equal(one.start[name], two.start[name]) for name in one.start) else START


def test_every_spec_and_field_is_in_the_table() -> None:
    where = "Add it to FIELDS in tests/nn/test_spec_fields.py."
    missing = {spec.__name__ for spec in all_specs() - set(FIELDS)}
    assert not missing, f"{missing}: what do their fields change? {where}"
    for spec, changes in FIELDS.items():
        fields = {field.name for field in dataclasses.fields(spec)}
        assert fields == set(changes), f"{spec.__name__} has {fields ^ set(changes)} without an entry. {where}"


@pytest.mark.parametrize(("spec", "field"), [(spec, field) for spec in FIELDS for field in FIELDS[spec]])
def test_field_changes_something(spec: type, field: str) -> None:
    change = FIELDS[spec][field]
    one = spec(**change.beside)
    assert getattr(one, field) != change.value, "the table's other value is the default"
    assert what_changes(one, dataclasses.replace(one, **{field: change.value})) == change.changes


@pytest.mark.parametrize("field", sorted(set(FIELDS[AttentionSpec]) - {"pattern"}))
def test_attention_field_changes_something_where_it_reads(field: str) -> None:
    """The same fields, of the mixer that reads memory and of the one in a pool."""
    change = FIELDS[AttentionSpec][field]
    other = AttentionSpec(**{field: change.value})
    assert what_changes(LayerSpec(cross=AttentionSpec()), LayerSpec(cross=other)) == change.changes
    assert what_changes(AttentionPoolSpec(), AttentionPoolSpec(attention=other)) == change.changes


@pytest.mark.parametrize("spec", FIELDS, ids=lambda spec: spec.__name__)
def test_a_word_that_is_no_choice_is_refused(spec: type) -> None:
    for name, hint in get_type_hints(spec).items():
        if get_origin(hint) is Literal:
            with pytest.raises(InputError, match=rf"{spec.__name__}\.{name} must be .*{get_args(hint)[0]}.*'other'"):
                spec(**{name: "other"})


def test_specs_are_frozen_and_hashable() -> None:
    for spec, changes in FIELDS.items():
        beside = next((change.beside for change in changes.values()), {})
        value = spec(**beside)
        assert hash(value) == hash(spec(**beside))
        for field in dataclasses.fields(spec):
            with pytest.raises(dataclasses.FrozenInstanceError):
                setattr(value, field.name, None)
