"""Whisper's stem: two convolutions over frames, and nothing of a sound's neighbours or padding in it."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch.nn import functional as F

from mmformer.errors import InputError
from mmformer.tokenizers.audio_stem import SpectrogramStem, SpectrogramStemSpec
from mmformer.tokenizers.whisper_mel import WhisperLogMelSpec
from mmformer.types import Audio

SPEC = SpectrogramStemSpec(rate=2000, window=64, hop=32, bands=8, mean=-5.0, std=3.0)
FIXED = dataclasses.replace(SPEC, frames=15, spectrum=WhisperLogMelSpec())
LENGTHS = torch.tensor([500, 1, 64, 96, 97, 192, 700])


def sounds() -> Audio:
    samples = 0.1 * torch.randn(len(LENGTHS), int(LENGTHS.max()), generator=torch.Generator().manual_seed(0))
    return Audio(samples, LENGTHS, SPEC.rate)


def built(spec: SpectrogramStemSpec) -> SpectrogramStem:
    torch.manual_seed(0)
    return spec.build(6)


@pytest.mark.parametrize("spec", [SPEC, FIXED], ids=["free", "fixed"])
def test_tokens_are_two_convolutions_over_each_sounds_own_frames(spec: SpectrogramStemSpec) -> None:
    module = built(spec)
    tokens = module(sounds())
    mel, frames = spec.spectrogram(sounds())
    for row, count in enumerate(frames.tolist()):
        x = F.gelu(F.conv1d(mel[row, :count].T, module.first.weight, module.first.bias, padding=1))
        x = F.gelu(F.conv1d(x, module.second.weight, module.second.bias, stride=2, padding=1)).T
        assert len(x) == -(-count // 2)
        torch.testing.assert_close(tokens.x[row, : len(x)], x)
        real = torch.ones(tokens.x.shape[1], dtype=torch.bool) if tokens.valid is None else tokens.valid[row]
        assert int(real.sum()) == len(x)
        assert real[: len(x)].all()
    assert tokens.pos[0].tolist() == [[time, 0, 0] for time in range(tokens.x.shape[1])]
    assert (tokens.valid is None) == (spec.frames is not None)


def test_places_are_told() -> None:
    assert SPEC.places == (None, 1, 1)
    assert FIXED.places == (8, 1, 1), "the last of 15 frames has a token of its own"


@pytest.mark.parametrize("spec", [SPEC, FIXED], ids=["free", "fixed"])
def test_the_gradient_reaches_every_parameter(spec: SpectrogramStemSpec) -> None:
    module = built(spec)
    module(sounds()).x.square().sum().backward()
    for name, parameter in module.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().min() > 0, name


def test_another_rate_is_refused() -> None:
    with pytest.raises(InputError, match=r"SpectrogramStemSpec.rate is 2000, but the sounds have 8000 samples"):
        built(SPEC)(sounds()._replace(rate=8000))
