"""How sounds are prepared, against transformers: the same features of the same sounds, by configs that go both ways."""

from __future__ import annotations

import dataclasses
import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch

from mmformer.data.sound import AudioTransformSpec
from mmformer.errors import InputError
from mmformer.interop.sounds import read_sounds, write_sounds
from mmformer.tokenizers.audio import SpectrogramPatchesSpec
from mmformer.tokenizers.audio_stem import SpectrogramStemSpec
from mmformer.tokenizers.kaldi import KaldiFilterbankSpec
from mmformer.tokenizers.log_mel import LogMelSpec
from mmformer.tokenizers.spectrogram import SpectrogramSpec
from mmformer.tokenizers.whisper_mel import WhisperLogMelSpec
from mmformer.types import Audio

ROOT = Path(__file__).parents[2]
AST: dict[str, Any] = {"feature_extractor_type": "ASTFeatureExtractor"}
WHISPER: dict[str, Any] = {"feature_extractor_type": "WhisperFeatureExtractor"}
PATCHES = SpectrogramPatchesSpec(bands=128, frames=1024, spectrum=KaldiFilterbankSpec())
STEM = SpectrogramStemSpec(bands=80, frames=3000, spectrum=WhisperLogMelSpec())


@pytest.fixture(scope="module")
def transformers() -> Any:
    return pytest.importorskip("transformers", reason="transformers is not installed: nothing to compare with")


def sounds(rate: int = 16_000) -> list[np.ndarray]:
    """Real ones, noise, a sweep, silence, clicks; one of a single frame, and one longer than all that is read."""
    random, time = np.random.default_rng(0), np.arange(3 * rate) / rate
    made = [
        0.1 * random.standard_normal(2 * rate),
        1e-4 * random.standard_normal(rate),
        0.5 * np.sin(2 * np.pi * (50 * time + rate / 13 * time**2)),
        np.zeros(rate // 2),
        (np.arange(rate) % (rate // 4) == 0).astype(float),
        0.1 * random.standard_normal(rate // 40),
        0.1 * random.standard_normal(31 * rate + 77),
    ]
    with tarfile.open(ROOT / "data/emoji/emoji-val-000000.tar") as tar:
        members = [member for member in tar.getmembers() if member.name.endswith(".ogg")][:4]
        made += [soundfile.read(io.BytesIO(tar.extractfile(member).read()))[0] for member in members]  # type: ignore[union-attr]
    return [sound.astype(np.float32) for sound in made]


def features(tokenizer: SpectrogramSpec, transform: AudioTransformSpec, heard: list[np.ndarray]) -> torch.Tensor:
    """What the tokenizer makes of sounds in one batch, B T bands; each is cut by the transform first."""
    kept = [sound[: transform.most] for sound in heard]
    samples = torch.zeros(len(kept), max(map(len, kept)))
    for row, sound in enumerate(kept):
        samples[row, : len(sound)] = torch.from_numpy(sound)
    return tokenizer.spectrogram(Audio(samples, torch.tensor(list(map(len, kept))), transform.rate))[0]


def prepared(extractor: Any, heard: list[np.ndarray]) -> torch.Tensor:
    """What transformers makes of them: B T bands."""
    made = extractor(heard, sampling_rate=extractor.sampling_rate, return_tensors="pt")
    found: torch.Tensor = made["input_features"].transpose(1, 2) if "input_features" in made else made["input_values"]
    return found


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"max_length": 128, "mean": -6.845978, "std": 5.5654526},
        {"do_normalize": False, "num_mel_bins": 64},
        {"sampling_rate": 8000, "max_length": 200},
    ],
    ids=["audioset", "speech commands", "plain", "8 kHz"],
)
def test_asts_features_are_equal(transformers: Any, change: dict[str, Any]) -> None:
    """Measured: a unit at most in the last place of logarithms between 8 and 16, which is 9.5e-7."""
    extractor = transformers.ASTFeatureExtractor(**change)
    model = dataclasses.replace(PATCHES, bands=extractor.num_mel_bins, frames=extractor.max_length)
    tokenizer, transform = read_sounds(json.loads(extractor.to_json_string()), model, "here")
    heard = sounds(extractor.sampling_rate)
    torch.testing.assert_close(features(tokenizer, transform, heard), prepared(extractor, heard), rtol=0, atol=1e-6)
    written = transformers.ASTFeatureExtractor.from_dict(write_sounds(tokenizer, transform, "here"))
    torch.testing.assert_close(prepared(written, heard), prepared(extractor, heard), rtol=0, atol=0)
    assert read_sounds(written.to_dict(), model, "here") == (tokenizer, transform)


def test_asts_features_without_torchaudio_are_ours_too(transformers: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are made by NumPy in float64, ours in float32. Measured: 6e-5 at most, but 1.6e-3 far above and below a
    pure tone, where float32 has its rounding alone."""
    module = "transformers.models.audio_spectrogram_transformer.feature_extraction_audio_spectrogram_transformer"
    monkeypatch.setattr(f"{module}.is_speech_available", lambda: False)
    with pytest.warns(UserWarning, match="At least one mel filter has all zero values"):
        extractor = transformers.ASTFeatureExtractor()
    config = json.loads(extractor.to_json_string())
    tokenizer, transform = read_sounds(config, PATCHES, "here")
    heard = sounds()
    difference = (features(tokenizer, transform, heard) - prepared(extractor, heard)).abs()
    tone = 2
    assert difference[tone].max() < 3e-3
    assert difference[tone].mean() < 1e-5
    difference[tone] = 0
    assert difference.max() < 1e-4


@pytest.mark.parametrize(
    "change",
    [{}, {"feature_size": 128}, {"chunk_length": 5, "n_fft": 512, "hop_length": 200}],
    ids=["80 bands", "large v3", "other lengths"],
)
def test_whispers_features_are_equal(transformers: Any, change: dict[str, Any]) -> None:
    """Measured: bit for bit."""
    extractor = transformers.WhisperFeatureExtractor(**change)
    model = dataclasses.replace(STEM, bands=extractor.feature_size, frames=extractor.nb_max_frames)
    tokenizer, transform = read_sounds(json.loads(extractor.to_json_string()), model, "here")
    heard = sounds()
    torch.testing.assert_close(features(tokenizer, transform, heard), prepared(extractor, heard), rtol=0, atol=1e-6)
    written = transformers.WhisperFeatureExtractor.from_dict(write_sounds(tokenizer, transform, "here"))
    torch.testing.assert_close(prepared(written, heard), prepared(extractor, heard), rtol=0, atol=0)
    assert read_sounds(written.to_dict(), model, "here") == (tokenizer, transform)


def test_a_processors_config_is_read_as_well(transformers: Any) -> None:
    extractor = transformers.WhisperFeatureExtractor()
    nested = {"feature_extractor": extractor.to_dict(), "processor_class": "WhisperProcessor"}
    assert read_sounds(nested, STEM, "here") == read_sounds(extractor.to_dict(), STEM, "here")
    filters = extractor.mel_filters.T.tolist()  # early files have them
    assert read_sounds({**WHISPER, "mel_filters": filters}, STEM, "here") == read_sounds(WHISPER, STEM, "here")


def test_what_a_config_does_not_say_is_the_extractors_default(transformers: Any) -> None:
    for bare, made, model in (
        (AST, transformers.ASTFeatureExtractor(), PATCHES),
        (WHISPER, transformers.WhisperFeatureExtractor(), STEM),
    ):
        assert read_sounds(bare, model, "here") == read_sounds(made.to_dict(), model, "here")


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"feature_extractor_type": "ASTFeatureExtracter"}, "ASTFeatureExtracter, .* ASTFeatureExtractor, Whisper"),
        ({}, "feature_extractor_type None"),
        ({**AST, "nummelbins": 128}, "here has nummelbins 128, which ASTFeatureExtractor has not.*num_mel_bins"),
        ({**AST, "n_fft": 400}, "here has n_fft 400, which ASTFeatureExtractor has not"),
        ({**AST, "feature_size": 2}, "here has feature_size 2, but what mmformer can express is feature_size 1"),
        ({**AST, "padding_side": "left"}, "padding_side 'left', but .* padding_side 'right'"),
        ({**AST, "num_mel_bins": 64}, "here makes spectrograms of 64 bands, but the model reads 128"),
        ({**AST, "max_length": 512}, "here makes spectrograms of 512 frames, but the model reads 1024"),
        ({**AST, "max_length": "1024"}, "max_length '1024', but it must be a whole number, at least 1"),
        ({**AST, "do_normalize": 1}, "do_normalize 1, but it must be true or false"),
        ({**AST, "std": None}, "std None, but it must be a number"),
        ({**AST, "std": 0}, "SpectrogramPatchesSpec.std must be positive"),
        ({**WHISPER, "dither": 1e-4}, "here has dither 0.0001, but what mmformer can express is dither 0.0"),
        ({**WHISPER, "padding_value": 1.0}, "padding_value 1.0, but .* padding_value 0.0"),
        ({**WHISPER, "return_attention_mask": True}, "return_attention_mask True, but .* False"),
        ({**WHISPER, "n_samples": 16000}, "n_samples 16000, but .* n_samples 480000"),
        ({**WHISPER, "nb_max_frames": 1500}, "nb_max_frames 1500, but .* nb_max_frames 3000"),
        ({**WHISPER, "hop_length": 0}, "hop_length 0, but it must be a whole number, at least 1"),
        ({**WHISPER, "hop_length": 161}, "hop_length 161, .* the 480,000 samples of chunk_length 30 are no multiple"),
        ({**WHISPER, "sampling_rate": 8000, "hop_length": 80}, "highest must be None, or .* at most half the rate"),
        ({**WHISPER, "mel_filters": [[0.0] * 201] * 80}, r"mel_filters \(80, 201\) that are not Slaney's \(201, 80\)"),
    ],
)
def test_what_cannot_be_expressed_is_refused(config: dict[str, Any], message: str) -> None:
    model: SpectrogramSpec = STEM if config.get("feature_extractor_type", "").startswith("Whisper") else PATCHES
    with pytest.raises(InputError, match=message):
        read_sounds(config, model, "here")


@pytest.mark.parametrize(
    ("config", "model", "change", "message"),
    [
        (
            AST,
            PATCHES,
            {"spectrum": LogMelSpec(), "window": 1600},
            "no feature extractor for LogMelSpec, only for KaldiFilterbankSpec",
        ),
        (AST, PATCHES, {"window": 512}, "SpectrogramPatchesSpec.window is 512, but ASTFeatureExtractor, .* it 400"),
        (AST, PATCHES, {"frames": None, "bands": 112}, "frames is None, but ASTFeatureExtractor, .* make it 1024"),
        (AST, PATCHES, {"highest": 7000.0}, "highest is 7000.0, but ASTFeatureExtractor, .* make it None"),
        (WHISPER, STEM, {"mean": -3.0}, "SpectrogramStemSpec.mean is -3.0, but WhisperFeatureExtractor, .* it -4.0"),
        (WHISPER, STEM, {"frames": 2950}, "frames is 2950, but WhisperFeatureExtractor, .* it 2900"),
    ],
)
def test_what_no_extractor_makes_is_refused(
    config: dict[str, Any], model: SpectrogramSpec, change: dict[str, Any], message: str
) -> None:
    tokenizer, transform = read_sounds(config, model, "here")
    with pytest.raises(InputError, match=message):
        write_sounds(dataclasses.replace(tokenizer, **change), transform, "there")


@pytest.mark.parametrize(
    "change", [lambda t: dataclasses.replace(t, seconds=9.0), lambda t: dataclasses.replace(t, rate=44_100)]
)
def test_a_transform_that_no_extractor_has_is_refused(
    change: Callable[[AudioTransformSpec], AudioTransformSpec],
) -> None:
    tokenizer, transform = read_sounds(AST, PATCHES, "here")
    with pytest.raises(InputError, match=r"AudioTransformSpec\.(seconds|rate) is (9.0|44100), but ASTFeatureExtractor"):
        write_sounds(tokenizer, change(transform), "there")


def test_the_transform_keeps_all_that_is_read() -> None:
    for frames in (1, 7, 128, 998, 1024, 1026):
        config = {**AST, "max_length": frames}
        tokenizer, transform = read_sounds(config, dataclasses.replace(PATCHES, frames=frames, patch=(1, 16)), "here")
        assert 0 < transform.most - (tokenizer.window + (frames - 1) * tokenizer.hop) <= 160
