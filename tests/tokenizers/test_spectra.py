"""Kaldi's and Whisper's spectra against torchaudio, and what a fixed number of frames means."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
import torchaudio
from torch import Tensor
from torch.nn import functional as F
from torchaudio.compliance import kaldi

from mmformer.errors import InputError
from mmformer.tokenizers.audio import SpectrogramPatchesSpec
from mmformer.tokenizers.audio_stem import SpectrogramStemSpec
from mmformer.tokenizers.kaldi import KaldiFilterbankSpec
from mmformer.tokenizers.log_mel import LogMelSpec
from mmformer.tokenizers.spectrogram import SpectrogramSpec
from mmformer.tokenizers.whisper_mel import WhisperLogMelSpec, mel_filters
from mmformer.types import Audio

RATE = 8000
KALDI = SpectrogramPatchesSpec(
    RATE, window=200, hop=80, bands=20, patch=(4, 5), mean=-7.0, std=5.0, spectrum=KaldiFilterbankSpec()
)
WHISPER = SpectrogramStemSpec(
    RATE, 200, 80, 20, lowest=0.0, mean=-4.0, std=4.0, frames=60, spectrum=WhisperLogMelSpec()
)
PLAIN = dataclasses.replace(KALDI, spectrum=LogMelSpec())
SPECS = [dataclasses.replace(PLAIN, frames=60), KALDI, dataclasses.replace(KALDI, frames=60), WHISPER]
IDS = ["log-mel fixed", "kaldi", "kaldi fixed", "whisper"]
LENGTHS = torch.tensor([4000, 1, 200, 199, 279, 280, 8000])


def sounds(seed: int = 0) -> Audio:
    samples = 0.1 * torch.randn(len(LENGTHS), int(LENGTHS.max()), generator=torch.Generator().manual_seed(seed))
    past = torch.arange(samples.shape[1]) >= LENGTHS[:, None]
    return Audio(samples.masked_fill(past, 0.0), LENGTHS, RATE)


def kaldis(samples: Tensor, spec: SpectrogramSpec) -> Tensor:
    """torchaudio's, of one sound: T bands."""
    values: Tensor = kaldi.fbank(
        F.pad(samples, (0, max(0, spec.window - len(samples))))[None],
        sample_frequency=spec.rate,
        htk_compat=True,
        window_type="hanning",
        num_mel_bins=spec.bands,
        frame_shift=1000 * spec.hop / spec.rate,
        frame_length=1000 * spec.window / spec.rate,
        low_freq=spec.lowest,
        high_freq=spec.top,
    )
    return values


def whispers(samples: Tensor, spec: SpectrogramSpec) -> Tensor:
    """Of one sound, by torchaudio's spectrogram and filters: T bands."""
    assert spec.frames is not None
    whole = spec.frames * spec.hop
    samples = F.pad(samples[:whole], (0, max(0, whole - len(samples))))
    mel = torchaudio.transforms.MelSpectrogram(
        spec.rate,
        spec.window,
        hop_length=spec.hop,
        f_min=spec.lowest,
        f_max=spec.top,
        n_mels=spec.bands,
        norm="slaney",
        mel_scale="slaney",
    )
    values = mel(samples)[:, :-1].clamp(min=1e-10).log10()
    return torch.maximum(values, values.max() - 8).T


@pytest.mark.parametrize("change", [{}, {"bands": 64, "patch": (4, 8)}, {"lowest": 0.0, "highest": 3000.0}], ids=str)
def test_kaldis_filterbank_is_torchaudios(change: dict[str, Any]) -> None:
    spec, audio = dataclasses.replace(KALDI, **change), sounds()
    mel, frames = spec.spectrogram(audio)
    for row, length in enumerate(LENGTHS.tolist()):
        wanted = kaldis(audio.samples[row, :length], spec)
        assert int(frames[row]) == len(wanted)
        torch.testing.assert_close(mel[row, : len(wanted)], (wanted + 7.0) / 5.0, rtol=0, atol=1e-5)
        assert (mel[row, len(wanted) :] == 7.0 / 5.0).all(), "0, before it is normalised"


@pytest.mark.parametrize("change", [{}, {"bands": 30}, {"lowest": 100.0, "highest": 3000.0}, {"frames": 7}], ids=str)
def test_whispers_spectrum_is_torchaudios_cut_off_below_the_loudest(change: dict[str, Any]) -> None:
    spec, audio = dataclasses.replace(WHISPER, **change), sounds()
    mel, frames = spec.spectrogram(audio)
    assert mel.shape == (len(LENGTHS), spec.frames, spec.bands)
    assert frames.tolist() == [spec.frames] * len(LENGTHS)
    for row, length in enumerate(LENGTHS.tolist()):
        wanted = whispers(audio.samples[row, :length], spec)
        torch.testing.assert_close(mel[row], (wanted + 4.0) / 4.0, rtol=0, atol=1e-5)


def test_whispers_filters_have_area_one() -> None:
    """Over Hz, as far as the transform's frequencies are dense enough to tell."""
    spec = dataclasses.replace(WHISPER, window=8000, frames=100)
    torch.testing.assert_close(mel_filters(spec).sum(0), torch.ones(20), rtol=0, atol=1e-3)


@pytest.mark.parametrize("spec", SPECS, ids=IDS)
def test_a_sound_is_the_same_alone_and_in_any_batch(spec: SpectrogramSpec) -> None:
    audio = sounds()
    together, frames = spec.spectrogram(audio)
    for row in range(len(LENGTHS)):
        alone, own = spec.spectrogram(audio.rows(slice(row, row + 1)))
        assert int(own) == int(frames[row])
        torch.testing.assert_close(alone[0], together[row, : alone.shape[1]], rtol=0, atol=1e-6)
    past = torch.arange(audio.samples.shape[1]) >= LENGTHS[:, None]
    noisy, _ = spec.spectrogram(audio._replace(samples=audio.samples.masked_fill(past, float("nan"))))
    assert torch.equal(noisy, together), "what stands past the end is not heard"


@pytest.mark.parametrize("spec", [PLAIN, KALDI, WHISPER], ids=["log-mel", "kaldi", "whisper"])
def test_frames_of_so_many_seconds_are_those_of_a_sound(spec: SpectrogramSpec) -> None:
    assert (
        spec.frames_of(0.5)
        == {"LogMelSpec": 49, "KaldiFilterbankSpec": 48, "WhisperLogMelSpec": 50}[type(spec.spectrum).__name__]
    )
    if spec.frames is None:
        assert spec.spectrogram(sounds())[1].tolist() == [spec.frames_of(n / RATE) for n in LENGTHS.tolist()]


@pytest.mark.parametrize("spec", [PLAIN, KALDI], ids=["log-mel", "kaldi"])
def test_a_fixed_number_of_frames_cuts_and_fills(spec: SpectrogramSpec) -> None:
    free, own = spec.spectrogram(sounds())
    fixed, frames = dataclasses.replace(spec, frames=60).spectrogram(sounds())
    assert fixed.shape[1] == 60
    assert (frames == 60).all()
    past = (torch.tensor(spec.spectrum.past) - spec.mean) / spec.std
    for row, count in enumerate(own.tolist()):
        assert torch.equal(fixed[row, : min(count, 60)], free[row, : min(count, 60)])
        assert (fixed[row, count:] == past).all()
    assert own.max() > 60 > own.min(), "some are cut, some filled up"


def test_patches_of_a_fixed_number_of_frames_lie_within() -> None:
    """Against unfolding in both directions; what is left over is not read."""
    spec = dataclasses.replace(KALDI, frames=62, bands=22, patch=(4, 6), stride=(3, 5))
    assert spec.places == (20, 4, 1)
    module = spec.build(8)
    tokens = module(sounds())
    assert tokens.valid is None, "all are read"
    mel, _ = spec.spectrogram(sounds())
    for place in ((0, 0), (19, 0), (7, 2), (19, 3)):
        found = (tokens.pos[0] == torch.tensor([*place, 0])).all(1).nonzero()
        time, band = 3 * place[0], 5 * place[1]
        patch = mel[:, time : time + 4, band : band + 6].flatten(1)
        torch.testing.assert_close(tokens.x[:, int(found)], module.projection(patch))


@pytest.mark.parametrize("spec", SPECS, ids=IDS)
def test_what_is_hidden_is_the_mean(spec: SpectrogramSpec) -> None:
    plain, frames = spec.spectrogram(sounds())
    rectangle = torch.tensor([[[0.5, 1.0, 0.0, 0.5]]]).expand(len(LENGTHS), -1, -1)
    shown, _ = spec.spectrogram(sounds()._replace(hidden=rectangle))
    half = int(frames[0]) // 2
    assert (shown[0, half : int(frames[0]), :10] == 0).all()
    assert torch.equal(shown[0, half:, 10:], plain[0, half:, 10:])
    assert torch.equal(shown[0, :half], plain[0, :half])


@pytest.mark.parametrize("spec", SPECS, ids=IDS)
def test_under_autocast_the_spectrogram_stays_whole(spec: SpectrogramSpec) -> None:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mel, _ = spec.spectrogram(sounds())
    assert torch.equal(mel, spec.spectrogram(sounds())[0])


@pytest.mark.parametrize(
    ("spec", "change", "message"),
    [
        (KALDI, {"bands": 3, "patch": (4, 3)}, "bands must be at least 4 with KaldiFilterbankSpec, but is 3"),
        (WHISPER, {"frames": None}, "frames must be given with WhisperLogMelSpec, such as 3000 for 30 s"),
        (WHISPER, {"frames": 1}, r"frames must be over more than half a window \(100 samples\)"),
        (WHISPER, {"bands": 300}, "bands must be so few that each holds a frequency of the window's; .* would hold"),
        (KALDI, {"frames": 3}, "patch must be at most the 3 frames"),
    ],
)
def test_what_cannot_be_is_refused(spec: SpectrogramSpec, change: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=f"{type(spec).__name__}.{message}"):
        dataclasses.replace(spec, **change)


@pytest.mark.parametrize(
    "change",
    [
        {"window": 240},
        {"hop": 100},
        {"bands": 21},
        {"lowest": 60.0},
        {"highest": 3000.0},
        {"mean": -3.0},
        {"std": 3.0},
        {"frames": 59},
        {"spectrum": KaldiFilterbankSpec()},
        {"spectrum": LogMelSpec()},
    ],
    ids=str,
)
def test_every_number_changes_whispers_spectrum(change: dict[str, Any]) -> None:
    base, other = (spec.spectrogram(sounds())[0] for spec in (WHISPER, dataclasses.replace(WHISPER, **change)))
    assert base.shape != other.shape or not torch.allclose(base, other, atol=1e-3)
