"""The space that the nn contract is checked over: every part that exists, and how parts and masks are combined.

A new mixer, position, feed-forward, norm or pool needs an entry in the table of its kind below (and, for mixers,
positions, feed-forwards and norms, its meaning written as loops in ``nn_reference.py``). ``test_space.py`` fails
until it has one. A combination that a part rightly refuses goes into ``REFUSED``.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import itertools
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

from mmformer.nn.ability import Ability
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
from mmformer.nn.performer import PerformerSpec
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
from mmformer.nn.rotary import MixedRotaryPositionSpec, RotaryPositionSpec
from mmformer.nn.rotary_scaling import (
    LinearScalingSpec,
    Llama3ScalingSpec,
    NTKScalingSpec,
    RotaryScalingSpec,
    YaRNScalingSpec,
)
from mmformer.nn.router import ExpertChoiceSpec, RouterSpec, TokenChoiceSpec
from mmformer.nn.shaw import ShawAttentionSpec
from mmformer.nn.stack import Stack, StackOutput, StackSpec
from mmformer.types import Tokens

BATCH, LENGTH, WIDTH, DEPTH = 3, 9, 32, 2
MEMORY_LENGTH, MEMORY_WIDTH = 5, 24


MIXERS: dict[str, MixerSpec] = {
    "attention": AttentionSpec(heads=4),
    "attention_grouped": AttentionSpec(heads=4, key_value_heads=2),
    "attention_one_key_qk_norm": AttentionSpec(heads=4, key_value_heads=1, qk_norm=True, bias=False),
    "attention_wide_heads": AttentionSpec(heads=4, head_width=12, scale=0.3),
    "attention_window": AttentionSpec(heads=4, pattern=WindowSpec(before=2, after=1)),
    "attention_pattern": AttentionSpec(
        heads=4,
        key_value_heads=2,
        pattern=AnyOfSpec((WindowSpec(1, 1), GlobalSpec(1), RandomBlocksSpec(size=2, blocks=1))),
    ),
    "attention_blocks": AttentionSpec(heads=4, pattern=BlockSparseSpec(size=2, whole=4, first=3)),
    "attention_grid": AttentionSpec(heads=4, pattern=NeighbourhoodSpec(rows=0, columns=1)),
    "global": GlobalAttentionSpec(heads=4, pattern=AnyOfSpec((WindowSpec(1, 1), EverywhereSpec()))),
    "convolution": ConvolutionSpec(before=2, after=1),
    "convolution_module": ConvolutionSpec(0.5, True, LayerNormSpec(), "silu", before=1, after=1, dilation=2),
    "convolution_grid": GridConvolutionSpec(ratio=2.0, rows=1, columns=2),
    "convolution_bare": GridConvolutionSpec(ratio=None, activation=None, bias=False, rows=0, columns=1, dilation=2),
    "shaw": ShawAttentionSpec(heads=4, distance=2),
    "lsh": LSHAttentionSpec(heads=4, buckets=2, rounds=2, window=2),
    "linear": LinearAttentionSpec(heads=4),
    "performer": PerformerSpec(heads=4, features=12),
    "linformer": LinformerSpec(heads=4, length=12, projected=3),
    "mamba": MambaSpec(states=3),
    "mamba_normed": MambaSpec(expand=1, states=3, norm=RMSNormSpec()),
    "mamba_both_ways": MambaSpec(1, 2, 3, rank=1, bias=True, convolution_bias=False, bidirectional=True),
}
CHOOSY: tuple[type[MixerSpec], ...] = (LSHAttentionSpec,)
"""Mixers in which a token sees, of those that the mask allows, some that hang on what tokens hold."""
PATTERNS: dict[str, PatternSpec] = {
    "window": WindowSpec(before=30, after=20),
    "window_dilated": WindowSpec(before=6, after=0, dilation=3),
    "chunks": ChunksSpec(size=40),
    "global": GlobalSpec(tokens=3),
    "everywhere": EverywhereSpec(),
    "random_blocks": RandomBlocksSpec(size=10, blocks=1),
    "block_sparse": BlockSparseSpec(size=10, whole=80, first=3),
    "strided": StridedSpec(stride=60),
    "neighbourhood": NeighbourhoodSpec(rows=2, columns=3),
    "all_of": AllOfSpec((WindowSpec(before=60, after=60), StridedSpec(stride=7))),
    "any_of": AnyOfSpec((WindowSpec(before=8, after=8), GlobalSpec(2), RandomBlocksSpec(size=16, blocks=1))),
}
SCALINGS: dict[str, RotaryScalingSpec] = {
    "linear": LinearScalingSpec(3.0),
    "ntk": NTKScalingSpec(3.0),
    "yarn": YaRNScalingSpec(4.0, length=16, fast=2.0, slow=0.5),
    "llama3": Llama3ScalingSpec(4.0, length=16, fast=2.0, slow=0.5),
}
POSITIONS: dict[str, PositionSpec] = {
    "nowhere": PositionSpec(),
    "learned": LearnedPositionSpec(axes=(0,), sizes=(16,)),
    "learned_grid": LearnedPositionSpec(axes=(1, 2), sizes=(2, 3)),
    "learned_special": LearnedPositionSpec(axes=(0,), sizes=(16,), special=3),
    "learned_resized": LearnedPositionSpec(axes=(1, 2), sizes=(2, 3), learned=(3, 2)),
    "sinusoidal": SinusoidalPositionSpec(axes=(0,)),
    "sinusoidal_grid": SinusoidalPositionSpec(axes=(1, 2), base=100.0),
    "rotary": RotaryPositionSpec(axes=(0,)),
    "rotary_grid": RotaryPositionSpec(axes=(1, 2), base=100.0),
    "rotary_three_axes_part": RotaryPositionSpec(axes=(2, 0, 1), base=50.0, fraction=0.75),
    "rotary_yarn": RotaryPositionSpec(scaling=SCALINGS["yarn"]),
    "rotary_mixed": MixedRotaryPositionSpec(),
    "alibi": ALiBiPositionSpec(),
    "alibi_grid": ALiBiPositionSpec(axes=(1, 2)),
    "relative_bucket": RelativeBucketPositionSpec(buckets=6, max_distance=5),
    "relative_grid": RelativeGridPositionSpec(sizes=(2, 3)),
}
FEEDFORWARDS: dict[str, FeedForwardSpec | None] = {
    "gelu": GELUFeedForwardSpec(ratio=2.0),
    "quick_gelu": GELUFeedForwardSpec(ratio=1.0, approximate="sigmoid", bias=False),
    "relu_squared": ReLUFeedForwardSpec(ratio=1.0, squared=True),
    "silu": SiLUFeedForwardSpec(ratio=1.0),
    "swiglu": SwiGLUFeedForwardSpec(ratio=1.5),
    "geglu": GLUFeedForwardSpec(ratio=1.0, bias=True),
    "experts": MixtureOfExpertsSpec(4, GELUFeedForwardSpec(ratio=0.5), TokenChoiceSpec(top=2)),
    "experts_shared": MixtureOfExpertsSpec(
        3,
        GLUFeedForwardSpec(ratio=0.5, gate="relu"),
        TokenChoiceSpec(top=1, renormalise=False, scores="sigmoid", balance_rate=0.1),
        shared=ReLUFeedForwardSpec(ratio=0.5),
    ),
    # All experts choose all tokens: where they choose fewer, a token's output hangs on all tokens, seen or not.
    "experts_choose": MixtureOfExpertsSpec(3, GELUFeedForwardSpec(ratio=0.5), ExpertChoiceSpec(capacity=3.0)),
    "none": None,
}
ROUTERS = {name: spec.router for name, spec in FEEDFORWARDS.items() if isinstance(spec, MixtureOfExpertsSpec)}
NORMS: dict[str, NormSpec] = {"layer_norm": LayerNormSpec(), "rms_norm": RMSNormSpec()}
POOLS: dict[str, PoolSpec] = {
    "class_token": ClassTokenPoolSpec(),
    "second_token": ClassTokenPoolSpec(index=1),
    "special_tokens": ClassTokenPoolSpec(number=2),
    "first": FirstPoolSpec(),
    "joined": JoinedPoolSpec((FirstPoolSpec(), MeanPoolSpec())),
    "mean": MeanPoolSpec(),
    "last": LastPoolSpec(),
    "attention": AttentionPoolSpec(attention=AttentionSpec(heads=4)),
    "attention_feedforward": AttentionPoolSpec(
        attention=AttentionSpec(heads=4, key_value_heads=2, qk_norm=True), feedforward=GELUFeedForwardSpec(ratio=2.0)
    ),
}
CROSSES: dict[str, tuple[MixerSpec | None, int | None]] = {  # the reader of memory, the memory's width
    "none": (None, None),
    "same_width": (AttentionSpec(heads=4), None),
    "other_width": (AttentionSpec(heads=2, key_value_heads=1, qk_norm=True), MEMORY_WIDTH),
    "linear": (LinearAttentionSpec(heads=4), MEMORY_WIDTH),
}
FACTORS: dict[str, tuple[object, ...]] = {
    "mixer": tuple(MIXERS),
    "position": tuple(POSITIONS),
    "order": ("full", "causal", "prefix"),
    "padded": (False, True),
    "packed": (False, True),
    "norm": tuple(NORMS),
    "placement": ("pre", "post", "sandwich", "parallel"),
    "feedforward": tuple(FEEDFORWARDS),
    "cross": tuple(CROSSES),
    "extras": (False, True),
}
ASKED: dict[tuple[str, object], frozenset[Ability]] = {
    ("order", "full"): frozenset({"bidirectional"}),
    ("order", "causal"): frozenset({"causal"}),
    ("order", "prefix"): frozenset({"causal", "prefix"}),
    ("padded", True): frozenset({"padding"}),
    ("packed", True): frozenset({"packing"}),
    **{("position", name): position.needs for name, position in POSITIONS.items()},
}
"""What a mixer, and a feed-forward, must be able to do at a level of a factor."""
REFUSED: frozenset[frozenset[tuple[str, object]]] = (
    frozenset(
        frozenset({("placement", "parallel"), other})
        for other in (*(("cross", cross) for cross in CROSSES if cross != "none"), ("feedforward", "none"))
    )
    | frozenset(
        frozenset({("mixer", mixer), level})
        for mixer, (level, needed) in itertools.product(MIXERS, ASKED.items())
        if not needed <= MIXERS[mixer].abilities
    )
    | frozenset(
        frozenset({("feedforward", name), level})
        for (name, spec), (level, needed) in itertools.product(FEEDFORWARDS.items(), ASKED.items())
        if spec is not None and not needed <= spec.abilities
    )
    | frozenset(  # a mixer that is causal always, and experts that never are
        frozenset({("mixer", mixer), ("feedforward", name)})
        for mixer, (name, spec) in itertools.product(MIXERS, FEEDFORWARDS.items())
        if spec is not None and "bidirectional" not in MIXERS[mixer].abilities and "causal" not in spec.abilities
    )
)
"""Pairs of (factor, level) that cannot stand together; each must raise InputError when the stack is built or runs."""

INITIALISATIONS: dict[str, InitialisationSpec] = {  # what they draw: test_initialisations.py
    "gpt2": GPT2InitialisationSpec(),
    "t5": T5InitialisationSpec(),
    "truncated_normal": TruncatedNormalInitialisationSpec(),
    "xavier": XavierInitialisationSpec(),
    "zero_residual": ZeroResidualInitialisationSpec(),
    "deep_norm": DeepNormInitialisationSpec(),
}

TABLES: dict[type, tuple[str, dict]] = {
    MixerSpec: ("MIXERS", MIXERS),
    PositionSpec: ("POSITIONS", POSITIONS),
    RotaryScalingSpec: ("SCALINGS", SCALINGS),
    FeedForwardSpec: ("FEEDFORWARDS", FEEDFORWARDS),
    RouterSpec: ("FEEDFORWARDS", ROUTERS),
    NormSpec: ("NORMS", NORMS),
    PoolSpec: ("POOLS", POOLS),
    PatternSpec: ("PATTERNS", PATTERNS),
    InitialisationSpec: ("INITIALISATIONS", INITIALISATIONS),
}


def concrete_specs(base: type) -> set[type]:
    """The classes of mmformer, the base among them, that can be instantiated."""
    found, waiting = set(), [base]
    while waiting:
        spec = waiting.pop()
        waiting.extend(spec.__subclasses__())
        if not inspect.isabstract(spec) and spec.__module__.startswith("mmformer."):
            found.add(spec)
    return found


@dataclass(frozen=True)
class Case:
    """One point of the space; every field is a level of the factor of its name."""

    mixer: str
    position: str
    order: str
    padded: bool
    packed: bool
    norm: str
    placement: str
    feedforward: str
    cross: str
    extras: bool  # what no mask concerns: gains on what branches add and on what passes by, a norm of what enters

    def __str__(self) -> str:
        seen = "+".join(name for name in ("padded", "packed") if getattr(self, name))
        parts = (self.mixer, self.position, self.order, seen, self.placement, self.norm, self.feedforward)
        cross, extras = "" if self.cross == "none" else f"cross_{self.cross}", "extras" if self.extras else ""
        return "-".join(filter(None, (*parts, cross, extras)))

    def with_(self, **changes: object) -> Case:
        return dataclasses.replace(self, **changes)

    @property
    def spec(self) -> StackSpec:
        cross, memory_width = CROSSES[self.cross]
        layer = LayerSpec(
            mixer=MIXERS[self.mixer],
            feedforward=FEEDFORWARDS[self.feedforward],
            cross=cross,
            norm=NORMS[self.norm],
            placement="pre" if self.placement == "parallel" else self.placement,
            parallel=self.placement == "parallel",
            skip_scale=0.8 if self.extras and self.placement != "parallel" else 1.0,
            layer_scale=0.5 if self.extras else None,
        )
        return StackSpec(
            WIDTH,
            DEPTH,
            layer,
            POSITIONS[self.position],
            input_norm=self.extras,
            final_norm=self.placement != "post",
            memory_width=memory_width,
        )

    @property
    def float32_tables(self) -> bool:
        """Waves, rotations, distances and what patterns add are computed in float32 whatever the tokens are."""
        exact = (LearnedPositionSpec, RelativeBucketPositionSpec, RelativeGridPositionSpec)
        counts = isinstance(getattr(MIXERS[self.mixer], "pattern", None), BlockSparseSpec)
        return counts or type(POSITIONS[self.position]) not in (PositionSpec, *exact)


@functools.cache
def covering_array() -> tuple[Case, ...]:
    """Cases such that any two levels of any two factors meet in one of them (greedy, the same at every run)."""
    names, draw, cases = list(FACTORS), random.Random(0), []

    def gain(row: dict, name: str, level: object) -> int:
        """How many pairs that are still missing a level makes with those that a row has."""
        before = sum(
            ((other, row[other]), (name, level)) in missing for other in names[: names.index(name)] if other in row
        )
        after = names[names.index(name) + 1 :]
        return before + sum(((name, level), (other, row[other])) in missing for other in after if other in row)

    missing = {
        pair
        for a, b in itertools.combinations(names, 2)
        for pair in itertools.product(((a, level) for level in FACTORS[a]), ((b, level) for level in FACTORS[b]))
        if frozenset(pair) not in REFUSED
    }
    while missing:
        start = min(missing, key=repr)
        best, covered = None, set()
        for _ in range(30):
            row = dict(start)
            for name in draw.sample(names, len(names)):
                if name not in row:
                    allowed = [level for level in FACTORS[name] if not clashes(row, name, level)]
                    draw.shuffle(allowed)
                    row[name] = max(allowed, key=functools.partial(gain, row, name))
            new = _pairs(row, names) & missing
            if len(new) > len(covered):
                best, covered = row, new
        assert best is not None
        cases.append(Case(**best))
        missing -= covered
    return tuple(cases)


def few_are_fast(cases: Sequence[Case]) -> list[Any]:
    """Parameters of a test: the cases, slow but for few in which every level of every factor is (greedy)."""
    absent = {(name, getattr(case, name)) for case in cases for name in FACTORS}
    few: set[str] = set()
    while absent:
        best = max(cases, key=lambda case: sum((name, getattr(case, name)) in absent for name in FACTORS))
        few.add(str(best))
        absent -= {(name, getattr(best, name)) for name in FACTORS}
    return [case if str(case) in few else pytest.param(case, marks=pytest.mark.slow) for case in cases]


MASKS = ("order", "padded", "packed")


def full_product(mixer: str, position: str) -> Iterator[Case]:
    """Every mask with a mixer and a position; levels of the other factors are drawn, the same at every run."""
    draw = random.Random(f"{mixer} {position}")
    for levels in itertools.product(*(FACTORS[name] for name in MASKS)):
        row = {"mixer": mixer, "position": position, **dict(zip(MASKS, levels, strict=True))}
        if refused(row):
            continue
        for name in [name for name in FACTORS if name not in row]:
            row[name] = draw.choice([level for level in FACTORS[name] if not clashes(row, name, level)])
        yield Case(**row)


def _pairs(row: dict, names: list[str]) -> set:
    return set(itertools.combinations([(name, row[name]) for name in names if name in row], 2))


def refused(row: dict) -> bool:
    return any(clashes(row, name, level) for name, level in row.items())


def clashes(row: dict, name: str, level: object) -> bool:
    """Whether a level cannot stand beside one of a row's."""
    return any(frozenset({(name, level), other}) in REFUSED for other in row.items())


class Inputs(NamedTuple):
    """What a stack's forward takes."""

    tokens: Tokens
    causal: bool = False
    prefix: Tensor | None = None
    memory: Tokens | None = None

    def run(self, stack: Stack, **more: object) -> StackOutput:
        return stack(self.tokens, causal=self.causal, prefix=self.prefix, memory=self.memory, **more)

    def __call__(self, stack: Stack) -> Tensor:
        return self.run(stack).tokens.x


PLACES = torch.tensor([[-1] * 3, [0, 0, 0], [0, 0, 2], [0, 1, 1], [-2] * 3, [4, 0, 0], [5, 0, 0], [6, 0, 0], [7, 0, 0]])
"""A class token, three patches of an image, a register, four tokens of text."""
VALID = torch.tensor(
    [
        [1, 1, 1, 1, 1, 1, 0, 0, 0],  # padded on the right
        [1, 1, 1, 0, 0, 1, 1, 1, 1],  # a padded prompt, then what was generated
        [0, 0, 1, 1, 1, 1, 1, 1, 1],  # padded on the left: the first rows see nothing in a causal pass
    ]
).bool()
SEGMENT = torch.tensor([[0, 0, 0, 0, 1, 1, 1, 1, 1], [0, 0, 1, 1, 1, 2, 2, 2, 2], [5, 4, 5, 4, 5, 4, 5, 4, 5]])
PREFIX = torch.tensor([2, 3, 0])
MEMORY_VALID = torch.tensor([[1, 1, 1, 1, 0], [0, 1, 0, 1, 1], [0, 0, 0, 0, 0]]).bool()  # the last sample has none
MEMORY_SEGMENT = torch.tensor([[0, 0, 1, 1, 1], [2, 1, 0, 2, 1], [4, 4, 5, 5, 5]])


def make_inputs(case: Case, dtype: torch.dtype = torch.float64, seed: int = 0) -> Inputs:
    draw = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=draw, dtype=torch.float64).to(dtype)

    pos = PLACES.repeat(BATCH, 1, 1)
    valid = VALID if case.padded else None
    tokens = Tokens(normal(BATCH, LENGTH, WIDTH), pos, valid, SEGMENT if case.packed else None)
    memory = None
    if case.cross != "none":
        memory = Tokens(
            normal(BATCH, MEMORY_LENGTH, CROSSES[case.cross][1] or WIDTH),
            torch.zeros(BATCH, MEMORY_LENGTH, 3, dtype=torch.int64),
            MEMORY_VALID if case.padded else None,
            MEMORY_SEGMENT if case.packed else None,
        )
    return Inputs(tokens, case.order != "full", PREFIX if case.order == "prefix" else None, memory)


@functools.cache
def make_stack(spec: StackSpec, dtype: torch.dtype = torch.float64) -> Stack:
    """A stack in evaluation mode, no parameter of which is trivial. Shared between tests: do not change it."""
    return randomise(spec.build()).to(dtype).eval()


def randomise(module: nn.Module, scale: float = 0.15, seed: int = 1) -> nn.Module:
    """Move every parameter, so that gains are not 1, biases not 0 and tables not small."""
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.uniform_(-0.2, 0.2, generator=draw) if parameter.dim() > 1 else parameter.fill_(0.6)
            parameter += scale * torch.randn(parameter.shape, generator=draw)
    return module
