"""What positions refuse, and that the message names the field, what was found, and the way out."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
from test_nn_refusals import HeadlessSpec

from mmformer.errors import InputError
from mmformer.nn.attention import AttentionSpec
from mmformer.nn.bias import ALiBiPositionSpec, RelativeBucketPositionSpec, RelativeGridPositionSpec
from mmformer.nn.layer import LayerSpec
from mmformer.nn.position import LearnedPositionSpec, SinusoidalPositionSpec
from mmformer.nn.rotary import MixedRotaryPositionSpec, RotaryPositionSpec
from mmformer.nn.rotary_scaling import LinearScalingSpec, Llama3ScalingSpec, YaRNScalingSpec
from mmformer.nn.shaw import ShawAttentionSpec
from mmformer.nn.stack import StackSpec

SPECS: list[tuple[Callable[[], object], str]] = [
    (lambda: LearnedPositionSpec(axes=(3,)), "LearnedPositionSpec.axes must be different axes out of 0 to 2, but is"),
    (lambda: LearnedPositionSpec(axes=(-1,)), "LearnedPositionSpec.axes must be different axes out of 0 to 2, but is"),
    (lambda: LearnedPositionSpec(axes=()), "LearnedPositionSpec.axes must be different axes out of 0 to 2, but is ()."),
    (lambda: LearnedPositionSpec((1, 2)), "LearnedPositionSpec.sizes must be one size for each of the axes (1, 2)"),
    (lambda: LearnedPositionSpec(special=-1), "LearnedPositionSpec.special must be at least 0, but is -1."),
    (lambda: LearnedPositionSpec(sizes=(0,)), "LearnedPositionSpec.sizes must be at least 1 each, but is (0,)."),
    (lambda: SinusoidalPositionSpec(axes=(1, 1)), "SinusoidalPositionSpec.axes must be different axes out of 0 to 2"),
    (lambda: SinusoidalPositionSpec(base=1.0), "SinusoidalPositionSpec.base must be above 1, but is 1.0."),
    (lambda: RotaryPositionSpec(axes=(0, 3)), "RotaryPositionSpec.axes must be different axes out of 0 to 2, but is"),
    (lambda: RotaryPositionSpec(base=0.5), "RotaryPositionSpec.base must be above 1, but is 0.5."),
    (lambda: RotaryPositionSpec(fraction=0.0), "RotaryPositionSpec.fraction must be above 0 and at most 1, but is 0."),
    (lambda: RotaryPositionSpec(fraction=1.5), "RotaryPositionSpec.fraction must be above 0 and at most 1, but is 1."),
    (lambda: LearnedPositionSpec(learned=(0,)), "LearnedPositionSpec.learned must be None, or one size for each of"),
    (lambda: LearnedPositionSpec(learned=(4, 4)), "LearnedPositionSpec.learned must be None, or one size for each of"),
    (lambda: LearnedPositionSpec((0, 1, 2), (2, 2, 2), (3, 3, 3)), "learned must be None, or one size for each of the"),
    (lambda: LinearScalingSpec(0.5), "LinearScalingSpec.factor must be at least 1, but is 0.5."),
    (lambda: YaRNScalingSpec(length=0), "YaRNScalingSpec.length must be at least 1, but is 0."),
    (lambda: YaRNScalingSpec(fast=1.0), "YaRNScalingSpec.fast must be above slow, 1.0, but is 1.0."),
    (lambda: YaRNScalingSpec(slow=0.0), "YaRNScalingSpec.slow must be positive, but is 0.0."),
    (lambda: YaRNScalingSpec(attention_factor=0.0), "YaRNScalingSpec.attention_factor must be positive, but is 0.0."),
    (lambda: Llama3ScalingSpec(length=0), "Llama3ScalingSpec.length must be at least 1, but is 0."),
    (lambda: Llama3ScalingSpec(fast=0.5), "Llama3ScalingSpec.fast must be above slow, 1.0, but is 0.5."),
    (lambda: MixedRotaryPositionSpec(axes=(1, 1)), "MixedRotaryPositionSpec.axes must be different axes out of 0 to 2"),
    (lambda: ALiBiPositionSpec(axes=()), "ALiBiPositionSpec.axes must be different axes out of 0 to 2, but is ()."),
    (lambda: ALiBiPositionSpec(metric="manhattan"), "ALiBiPositionSpec.metric must be left alone where there is one"),
    (lambda: RelativeBucketPositionSpec(axis=3), "RelativeBucketPositionSpec.axis must be from 0 to 2, but is 3."),
    (lambda: RelativeBucketPositionSpec(buckets=7), "buckets must be an even number from 4 on, but is 7."),
    (lambda: RelativeBucketPositionSpec(buckets=1, bidirectional=False), "buckets must be at least 2, but is 1."),
    (lambda: RelativeBucketPositionSpec(max_distance=8), "max_distance must be above 8, the buckets of one distance"),
    (lambda: RelativeGridPositionSpec(axes=(2, 2)), "RelativeGridPositionSpec.axes must be different axes out of 0 to"),
    (lambda: RelativeGridPositionSpec(sizes=(0, 4)), "RelativeGridPositionSpec.sizes must be at least 1 each, but is"),
    (lambda: ShawAttentionSpec(heads=0), "ShawAttentionSpec.heads must be at least 1, but is 0."),
    (lambda: ShawAttentionSpec(distance=0), "ShawAttentionSpec.distance must be at least 1, but is 0."),
    (
        lambda: ShawAttentionSpec(relative_keys=False, relative_values=False),
        "ShawAttentionSpec.relative_values must be true where relative_keys is not: without both, take AttentionSpec",
    ),
]


@pytest.mark.parametrize(("make", "words"), SPECS, ids=[words.split(",")[0][:60] for _, words in SPECS])
def test_spec_is_refused(make: Callable[[], object], words: str) -> None:
    with pytest.raises(InputError, match=re.escape(words)):
        make()


BUILDS: list[tuple[Callable[[], object], str]] = [
    (
        lambda: StackSpec(6, 1, LayerSpec(AttentionSpec(2)), SinusoidalPositionSpec(axes=(1, 2))).build(),
        "SinusoidalPositionSpec over 2 axes needs a width that is a multiple of 4, but the stack's width is 6.",
    ),
    (
        lambda: StackSpec(16, 1, LayerSpec(AttentionSpec(8)), RotaryPositionSpec(axes=(1, 2))).build(),
        "RotaryPositionSpec over 2 axes needs at least 4 rotated features in a head, but heads are 2 wide",
    ),
    (
        lambda: StackSpec(16, 1, LayerSpec(AttentionSpec(4)), RotaryPositionSpec(fraction=0.25)).build(),
        "needs at least 2 rotated features in a head, but heads are 4 wide and the fraction is 0.25.",
    ),
    (
        lambda: StackSpec(16, 1, LayerSpec(HeadlessSpec()), RotaryPositionSpec()),
        "RotaryPositionSpec needs a mixer that has queries and keys to rotate, but StackSpec.layer.mixer is "
        "HeadlessSpec(), which does not: take AttentionSpec",
    ),
    (
        lambda: StackSpec(
            16, 2, pattern=(LayerSpec(AttentionSpec(2)), LayerSpec(AttentionSpec(4))), position=RotaryPositionSpec()
        ).build(),
        "RotaryPositionSpec makes one table for all layers, but their mixers have heads that differ, 2 of width 8 and "
        "4 of width 4: give them the same heads.",
    ),
    (
        lambda: StackSpec(16, 1, LayerSpec(AttentionSpec(4, key_value_heads=2)), MixedRotaryPositionSpec()),
        "MixedRotaryPositionSpec needs a mixer that has a key for each query, to rotate by a table of each head's own, "
        "but StackSpec.layer.mixer is AttentionSpec(heads=4, key_value_heads=2",
    ),
    (
        lambda: StackSpec(
            16,
            2,
            pattern=(LayerSpec(AttentionSpec(4)), LayerSpec(AttentionSpec(4, key_value_heads=1))),
            position=MixedRotaryPositionSpec(),
        ),
        "MixedRotaryPositionSpec needs a mixer that has a key for each query",
    ),
    (
        lambda: StackSpec(24, 1, LayerSpec(AttentionSpec(4)), MixedRotaryPositionSpec()).build(),
        "MixedRotaryPositionSpec needs heads whose width is a multiple of 4, but they are 6 wide.",
    ),
    (
        lambda: StackSpec(16, 1, LayerSpec(HeadlessSpec()), ALiBiPositionSpec()),
        "ALiBiPositionSpec needs a mixer that has scores to add a bias to, but StackSpec.layer.mixer is HeadlessSpec()",
    ),
    (
        lambda: LayerSpec(cross=ShawAttentionSpec()),
        "A reader of memory needs a mixer that reads a memory, but LayerSpec.cross is ShawAttentionSpec(",
    ),
]


@pytest.mark.parametrize(("build", "words"), BUILDS, ids=[words[:60] for _, words in BUILDS])
def test_build_is_refused(build: Callable[[], object], words: str) -> None:
    with pytest.raises(InputError, match=re.escape(words)):
        build()
