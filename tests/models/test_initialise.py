"""Whole models of every shipped part: built on the meta device, allocated, initialised, nothing left as it was."""

from __future__ import annotations

import dataclasses
import inspect
import itertools
from collections import Counter
from typing import Any

import pytest
import torch
from tiny import VOCABULARY, tiny_model
from torch import nn

from mmformer.models.encoder import EncoderSpec
from mmformer.models.exits import EarlyExitHeadSpec
from mmformer.models.head import ClassificationHeadSpec, ContrastiveHeadSpec, HeadSpec, MeanLogitsHeadSpec
from mmformer.models.language_head import LanguageHeadSpec
from mmformer.models.model import ModelSpec
from mmformer.models.pixel_head import PixelHeadSpec
from mmformer.nn.attention import AttentionSpec
from mmformer.nn.bias import ALiBiPositionSpec, RelativeBucketPositionSpec, RelativeGridPositionSpec
from mmformer.nn.convolution import ConvolutionSpec, GridConvolutionSpec
from mmformer.nn.everywhere import GlobalAttentionSpec
from mmformer.nn.feedforward import (
    FeedForwardSpec,
    GELUFeedForwardSpec,
    GLUFeedForwardSpec,
    ReLUFeedForwardSpec,
    SiLUFeedForwardSpec,
    SwiGLUFeedForwardSpec,
)
from mmformer.nn.layer import LayerSpec
from mmformer.nn.linear_attention import LinearAttentionSpec
from mmformer.nn.linformer import LinformerSpec
from mmformer.nn.lsh import LSHAttentionSpec
from mmformer.nn.mamba import MambaSpec
from mmformer.nn.mixer import MixerSpec
from mmformer.nn.moe import MixtureOfExpertsSpec
from mmformer.nn.norm import LayerNormSpec, NormSpec, RMSNormSpec
from mmformer.nn.perceiver import PerceiverResamplerSpec
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
from mmformer.nn.resampler import AttentionResamplerSpec, ResamplerSpec
from mmformer.nn.rotary import MixedRotaryPositionSpec, RotaryPositionSpec
from mmformer.nn.router import TokenChoiceSpec
from mmformer.nn.shaw import ShawAttentionSpec
from mmformer.nn.stack import StackSpec
from mmformer.tokenizers.audio import SpectrogramPatchesSpec
from mmformer.tokenizers.audio_stem import SpectrogramStemSpec
from mmformer.tokenizers.image import ConvolutionalStemSpec, ImagePatchesSpec
from mmformer.tokenizers.text import TextTokensSpec
from mmformer.tokenizers.timm_features import TimmFeaturesSpec
from mmformer.tokenizers.tokenizer import TokenizerSpec

PARTS: dict[type, list[Any]] = {
    TokenizerSpec: [
        ImagePatchesSpec(patch=8),
        ConvolutionalStemSpec(channels=(4, 6), norm=RMSNormSpec()),
        TextTokensSpec(VOCABULARY, context_length=16),
        SpectrogramPatchesSpec(),
        SpectrogramStemSpec(),
        TimmFeaturesSpec(name="test_resnet"),
    ],
    PoolSpec: [
        ClassTokenPoolSpec(),
        FirstPoolSpec(),
        JoinedPoolSpec(),
        MeanPoolSpec(),
        LastPoolSpec(),
        AttentionPoolSpec(AttentionSpec(2), GELUFeedForwardSpec(ratio=2), RMSNormSpec()),
    ],
    PositionSpec: [
        LearnedPositionSpec((0, 1), (16, 4)),
        SinusoidalPositionSpec(),
        RotaryPositionSpec(),
        MixedRotaryPositionSpec(),
        ALiBiPositionSpec(),
        RelativeBucketPositionSpec(),
        RelativeGridPositionSpec(),
        PositionSpec(),
    ],
    MixerSpec: [
        ConvolutionSpec(norm=RMSNormSpec()),
        GridConvolutionSpec(None),
        AttentionSpec(2),
        AttentionSpec(4, 2, qk_norm=True),
        LSHAttentionSpec(4),
        LinearAttentionSpec(2),
        PerformerSpec(2, features=4),
        LinformerSpec(2, 64, 4),
        ShawAttentionSpec(4),
        MambaSpec(states=3, bidirectional=True, norm=RMSNormSpec()),
        GlobalAttentionSpec(2),
    ],
    FeedForwardSpec: [
        GELUFeedForwardSpec(ratio=2),
        ReLUFeedForwardSpec(squared=True),
        SiLUFeedForwardSpec(),
        SwiGLUFeedForwardSpec(),
        GLUFeedForwardSpec(bias=True),
        MixtureOfExpertsSpec(3, router=TokenChoiceSpec(balance_rate=0.001), shared=SwiGLUFeedForwardSpec()),
    ],
    NormSpec: [LayerNormSpec(), RMSNormSpec()],
    ResamplerSpec: [
        AttentionResamplerSpec(3, 8, class_query=True, attention=AttentionSpec(2), final_norm=True),
        PerceiverResamplerSpec(3, 8, class_query=True, depth=2, attention=AttentionSpec(2)),
    ],
    HeadSpec: [
        ContrastiveHeadSpec(),
        ClassificationHeadSpec("e", 5),
        EarlyExitHeadSpec("e", 4, exits=(0,)),
        LanguageHeadSpec("e", tied=False),
        MeanLogitsHeadSpec("e", 5, ("k", "k")),
        PixelHeadSpec("e", "pixels"),
    ],
}


def shipped(base: type) -> set[type]:
    """The concrete specs of a family that mmformer has, the base itself among them where it can be built."""
    found = set() if inspect.isabstract(base) else {base}
    for spec in base.__subclasses__():
        found |= shipped(spec)
    return {spec for spec in found if spec.__module__.startswith("mmformer.")}


def models() -> list[ModelSpec]:
    """Each pair of a tokenizer and a pool, the other parts by turns."""
    made: list[ModelSpec] = []
    used: Counter[MixerSpec] = Counter()
    for index, (tokenizer, pool) in enumerate(itertools.product(PARTS[TokenizerSpec], PARTS[PoolSpec])):
        feedforward, norm, position = (
            PARTS[base][index % len(PARTS[base])] for base in (FeedForwardSpec, NormSpec, PositionSpec)
        )
        mixer = min((each for each in PARTS[MixerSpec] if position.needs <= each.abilities), key=used.__getitem__)
        used[mixer] += 1
        gain = 0.1 if index % 3 else None
        layer = LayerSpec(mixer, feedforward, norm=norm, layer_scale=gain, gated=gain is None)
        encoder = EncoderSpec(tokenizer, "s", pool, 12, class_token=True, registers=index % 2)
        if index % 4 == 1:
            encoder = dataclasses.replace(encoder, resampler=PARTS[ResamplerSpec][index // 4 % 2])
        stack = StackSpec(16, 1 + index % 2, layer, position, input_norm=True)
        exiting = index % 2 and encoder.resampler is None
        heads = {"c": PARTS[HeadSpec][0], "k": PARTS[HeadSpec][2 if exiting else 1]}
        if encoder.reads_text:
            heads["w"] = PARTS[HeadSpec][3]
        elif not exiting:
            heads["m"] = PARTS[HeadSpec][4]
        stacks = {"s": stack}
        if encoder.patches is not None:
            heads["p"], stacks["pixels"] = PARTS[HeadSpec][5], StackSpec(8, 1, LayerSpec(AttentionSpec(2)))
        made.append(ModelSpec(stacks, {"e": encoder}, heads=heads))
    return made


@pytest.mark.parametrize("base", PARTS, ids=lambda base: base.__name__)
def test_every_shipped_part_is_below(base: type) -> None:
    assert {type(spec) for spec in PARTS[base]} == shipped(base)
    used = repr(models())
    assert all(repr(spec) in used for spec in PARTS[base])


@pytest.mark.parametrize("spec", models(), ids=lambda s: " ".join(type(p).__name__ for p in (s.encoders["e"].tokenizer, s.encoders["e"].pool)))  # fmt: skip  # noqa: E501
def test_every_part_initialises_from_meta(spec: ModelSpec) -> None:
    with torch.device("meta"):
        model = spec.build()
    model = model.to_empty(device="cpu")
    with torch.no_grad():
        for tensor in [*model.parameters(), *model.buffers()]:
            tensor.fill_(float("nan") if tensor.is_floating_point() else -7)
    model.initialise(3)
    reference = spec.build()
    reference.initialise(3)
    expected = dict(reference.named_parameters()) | dict(reference.named_buffers())
    found = dict(model.named_parameters()) | dict(model.named_buffers())
    assert found.keys() == expected.keys()
    for name, tensor in found.items():
        assert tensor.isfinite().all(), f"{name} was not initialised"
        assert torch.equal(tensor, expected[name]), name


class Bare(nn.Module):
    """Holds something, and cannot initialise it."""

    def __init__(self, buffer: bool) -> None:
        super().__init__()
        if buffer:
            self.register_buffer("table", torch.empty(3))
        else:
            self.weight = nn.Parameter(torch.empty(3))


@pytest.mark.parametrize("buffer", [False, True])
def test_a_part_that_would_stay_uninitialised_is_named(buffer: bool) -> None:
    model = tiny_model().build()
    model.initialise(0)
    model.heads["odd"] = nn.Sequential(Bare(buffer))
    held = "table" if buffer else "weight"
    with pytest.raises(AssertionError, match=rf"heads.odd.0 \(Bare\) holds {held}, but has no reset_parameters"):
        model.initialise(0)
