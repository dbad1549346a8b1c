"""Sounds of samples: one of several in training, decoded alone, and cached."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import soundfile

from mmformer.data import dataset
from mmformer.data.dataset import SampleDataset
from mmformer.data.inputs import AudioInputSpec
from mmformer.data.order import OrderSpec
from mmformer.data.shards import RawSample, ShardWriter
from mmformer.data.sound import AudioTransformSpec, Sound, decode_sound
from mmformer.data.sources import DataSpec
from mmformer.errors import InputError

RATE = 8000
VOICES = ("low.wav", "high.wav")


def spoken(level: float) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, np.full(RATE, level, np.float32), RATE, format="WAV", subtype="FLOAT")
    return file.getvalue()


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight samples, each in two voices; the last of another split, with one voice."""
    folder = tmp_path_factory.mktemp("sounds")
    with ShardWriter(folder, "tone") as writer:
        for number in range(8):
            voices = {voice: spoken(number / 16 + place / 2) for place, voice in enumerate(VOICES)}
            writer.write(RawSample(f"s{number}", voices))
        for number in (8, 9):
            voices = {voice: spoken(0.1) for voice in VOICES[: number - 7]}
            writer.write(RawSample(f"s{number}", voices), "test")
    return folder


def read(shards: Path, split: str = "train", training: bool = True, cache: int = 256) -> SampleDataset:
    sounds = AudioInputSpec(VOICES, AudioTransformSpec(RATE, seconds=0.25))
    return SampleDataset(
        DataSpec(str(shards), audio=sounds, cache_mib=cache), split, OrderSpec(shuffle=False), 3, training
    )


def levels(samples: SampleDataset, positions: int) -> list[float]:
    found = [samples[position].audio for position in range(positions)]
    assert all(sound is not None and len(sound) == RATE // 4 for sound in found)
    return [float(sound[0]) for sound in found if sound is not None]


def test_training_hears_each_voice_and_evaluation_the_first(shards: Path) -> None:
    heard = levels(read(shards), 64)
    assert {round(level * 16) for level in heard} == set(range(16)), "every voice of every sample"
    assert levels(read(shards), 64) == heard, "a function of the seed and the position"
    assert levels(read(shards, training=False), 8) == [number / 16 for number in range(8)]


@pytest.mark.parametrize("cache", [0, 256])
def test_only_the_voice_that_is_heard_is_decoded(shards: Path, cache: int, monkeypatch: pytest.MonkeyPatch) -> None:
    decoded: list[tuple[str, float | None]] = []

    def spy(data: bytes, name: str, seconds: float | None = None) -> Sound:
        decoded.append((name, seconds))
        return decode_sound(data, name, seconds)

    monkeypatch.setattr(dataset, "decode_sound", spy)
    samples = read(shards, cache=cache)
    levels(samples, 64)
    assert set(decoded) == {(f"s{number}.{voice}", 0.25) for number in range(8) for voice in VOICES}
    assert len(decoded) == (16 if cache else 64), "once each, where there is room to keep it"


def test_a_voice_that_a_sample_lacks_is_named(shards: Path) -> None:
    samples = read(shards, "test")
    with pytest.raises(
        InputError, match=r"sample 's8' has no member '\.high\.wav', which data asks for; it has low\.wav"
    ):
        levels(samples, 32)
