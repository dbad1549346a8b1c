"""Spectrogram patches: torchaudio's log-mel, cut as told, and nothing of a sound's neighbours or padding in it."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
import torchaudio
from torch import Tensor

from mmformer.errors import InputError
from mmformer.models.encoder import EncoderSpec
from mmformer.nn.attention import AttentionSpec
from mmformer.nn.layer import LayerSpec
from mmformer.nn.rotary import RotaryPositionSpec
from mmformer.nn.stack import StackSpec
from mmformer.tokenizers.audio import SpectrogramPatches, SpectrogramPatchesSpec
from mmformer.tokenizers.kaldi import KaldiFilterbankSpec
from mmformer.types import Audio, Tokens

SPEC = SpectrogramPatchesSpec(window=64, hop=32, bands=8, rate=2000, patch=(4, 4), mean=-5.0, std=3.0)
LENGTHS = torch.tensor([500, 1, 63, 64, 65, 96, 97, 192, 193, 700])


def sounds(lengths: Tensor = LENGTHS, seed: int = 0) -> Audio:
    samples = 0.1 * torch.randn(len(lengths), int(lengths.max()), generator=torch.Generator().manual_seed(seed))
    past = torch.arange(samples.shape[1]) >= lengths[:, None]
    return Audio(samples.masked_fill(past, 0.0), lengths, SPEC.rate)


def built(spec: SpectrogramPatchesSpec = SPEC) -> SpectrogramPatches:
    torch.manual_seed(0)
    return spec.build(6)


def alone(audio: Audio, row: int) -> Audio:
    return audio.rows(slice(row, row + 1))


def expected_mel(samples: Tensor, spec: SpectrogramPatchesSpec) -> Tensor:
    """torchaudio's, of one sound: T bands."""
    frames = -(-max(len(samples) - spec.window, 0) // spec.hop) + 1
    padded = torch.nn.functional.pad(samples, (0, (frames - 1) * spec.hop + spec.window - len(samples)))
    mel = torchaudio.transforms.MelSpectrogram(
        spec.rate, spec.window, spec.window, spec.hop, spec.lowest, spec.highest, n_mels=spec.bands, center=False
    )(padded)
    return (mel.T.clamp(min=1e-5).log() - spec.mean) / spec.std


@pytest.mark.parametrize(
    "spec",
    [
        SPEC,
        SpectrogramPatchesSpec(),
        SpectrogramPatchesSpec(window=512, hop=320, lowest=50.0, highest=7000.0, patch=(4, 64)),
    ],
    ids=["small", "default", "wide"],
)
def test_the_spectrogram_is_torchaudios(spec: SpectrogramPatchesSpec) -> None:
    lengths = torch.tensor([spec.window * 7 + 5, spec.window, 3])
    audio = sounds(lengths)._replace(rate=spec.rate)
    mel, frames = spec.spectrogram(audio)
    for row, length in enumerate(lengths.tolist()):
        wanted = expected_mel(audio.samples[row, :length], spec)
        assert int(frames[row]) == len(wanted)
        assert torch.allclose(mel[row, : len(wanted)], wanted, atol=2e-5)
        silence = (torch.tensor(1e-5).log() - spec.mean) / spec.std
        assert torch.allclose(mel[row, len(wanted) :], silence)


@pytest.mark.parametrize("stride", [None, (2, 2), (4, 1), (1, 4), (3, 2)])
def test_patches_are_cut_as_told(stride: tuple[int, int] | None) -> None:
    """Against loops over one sound at a time."""
    spec = dataclasses.replace(SPEC, stride=stride)
    module, audio = built(spec), sounds()
    mel, frames = module.spec.spectrogram(audio)
    tokens = module(audio)
    (high, wide), (down, across) = spec.patch, spec.step
    silence = float(mel[1, 5, 0])
    assert tokens.valid is not None
    for row in range(len(LENGTHS)):
        found = 0
        for time in range(1000):
            if time and (time - 1) * down + high >= int(frames[row]):
                break  # the patch before reached the last frame
            for band in range((spec.bands - wide) // across + 1):
                patch = torch.full((high, wide), silence)
                cut = mel[
                    row, time * down : min(time * down + high, int(frames[row])), band * across : band * across + wide
                ]
                patch[: len(cut)] = cut
                assert tokens.pos[row, found].tolist() == [time, band, 0]
                assert torch.allclose(tokens.x[row, found], module.projection(patch.flatten()), atol=1e-5)
                found += 1
        assert int(tokens.valid[row].sum()) == found
        assert tokens.valid[row, :found].all()


def embedding(audio: Audio) -> Tensor:
    stack = StackSpec(8, 1, LayerSpec(AttentionSpec(2)), RotaryPositionSpec((0, 1))).build()
    encoder = EncoderSpec(SPEC, "s", embedding=4).build(8)
    for module in (stack, encoder):
        generator = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for parameter in module.parameters():
                parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
    embedded: Tensor = encoder(audio, stack).embedding
    return embedded


def test_a_sound_is_the_same_alone_and_in_any_batch() -> None:
    audio = sounds()
    together = embedding(audio)
    for row in range(len(LENGTHS)):
        assert torch.allclose(embedding(alone(audio, row))[0], together[row], atol=1e-5)
    assert torch.equal(embedding(audio), together), "and from call to call, to the bit"


def test_what_stands_past_the_end_is_not_heard() -> None:
    audio = sounds()
    past = torch.arange(audio.samples.shape[1]) >= LENGTHS[:, None]
    for noise in (5.0, float("nan"), float("inf")):
        noisy = audio._replace(samples=audio.samples.masked_fill(past, noise))
        assert torch.equal(built()(noisy).x, built()(audio).x)


@pytest.mark.parametrize(
    "change",
    [
        {"rate": 4000},
        {"window": 80},
        {"hop": 40},
        {"bands": 10, "patch": (4, 5)},
        {"lowest": 100.0},
        {"highest": 800.0},
        {"patch": (2, 4)},
        {"stride": (2, 4)},
        {"mean": -4.0},
        {"std": 2.0},
        {"frames": 12},
        {"spectrum": KaldiFilterbankSpec()},
    ],
    ids=lambda change: next(iter(change)),
)
def test_every_field_changes_the_tokens(change: dict[str, Any]) -> None:
    spec = dataclasses.replace(SPEC, **change)
    base, other = built()(sounds()), built(spec)(sounds()._replace(rate=spec.rate))
    assert base.x.shape != other.x.shape or not torch.allclose(base.x, other.x, atol=1e-3)


def test_every_field_is_changed_above() -> None:
    marked = test_every_field_changes_the_tokens.pytestmark  # type: ignore[attr-defined]
    changed = {name for change in marked[0].args[1] for name in change}
    assert changed == {field.name for field in dataclasses.fields(SpectrogramPatchesSpec)}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rate": 0}, "rate must be at least 1"),
        ({"window": 1}, "window must be at least 2"),
        ({"hop": 0}, "hop must be from 1 to the window"),
        ({"hop": 65}, r"hop must be from 1 to the window \(64 samples\)"),
        ({"bands": 0}, "bands must be at least 1"),
        ({"bands": 64}, "bands must be so few that each holds a frequency of the window's; .* would hold none"),
        ({"lowest": 1000.0}, r"lowest must be from 0 to below half the rate \(1000 Hz\)"),
        ({"highest": 1001.0}, "highest must be None, or above lowest and at most half the rate"),
        ({"highest": 10.0}, "highest must be None, or above lowest"),
        ({"patch": (0, 4)}, "patch must be at least 1 frame and 1 band"),
        ({"patch": (4, 9)}, "patch must be at least 1 frame and 1 band"),
        ({"patch": (4, 5)}, "stride must be one whose patches end with the last of the 8 bands"),
        ({"stride": (0, 4)}, "stride must be at least 1 frame"),
        ({"stride": (5, 4)}, "stride must be at most the patch"),
        ({"std": 0.0}, "std must be positive"),
        ({"frames": 0}, "frames must be None or at least 1"),
        ({"frames": 3}, "patch must be at most the 3 frames"),
    ],
)
def test_what_cannot_be_is_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=f"SpectrogramPatchesSpec.{message}"):
        dataclasses.replace(SPEC, **change)


def test_another_rate_or_kind_of_samples_is_refused() -> None:
    with pytest.raises(InputError, match=r"rate is 2000, but the sounds have 8000 samples a second: resample them"):
        built()(sounds()._replace(rate=8000))
    with pytest.raises(InputError, match=r"float32 of shape .* but was handed int16 of shape \(10, 700\)"):
        built()(sounds()._replace(samples=sounds().samples.to(torch.int16)))


def test_under_autocast_the_spectrogram_stays_whole() -> None:
    module = built()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mel, _ = module.spec.spectrogram(sounds())
        tokens: Tokens = module(sounds())
    assert mel.dtype == torch.float32
    assert torch.equal(mel, module.spec.spectrogram(sounds())[0])
    assert tokens.x.dtype == torch.bfloat16


def test_places_are_told() -> None:
    assert SPEC.places == (None, 2, 1)
    assert dataclasses.replace(SPEC, stride=(4, 2)).places == (None, 3, 1)
