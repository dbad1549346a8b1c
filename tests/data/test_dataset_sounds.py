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

    def spy(data: bytes, name: str, seconds: float | None = None, place: float = 0.0) -> Sound:
        decoded.append((name, seconds))
        assert place == 0
        return decode_sound(data, name, seconds, place)

    monkeypatch.setattr(dataset, "decode_sound", spy)
    samples = read(shards, cache=cache)
    levels(samples, 64)
    assert set(decoded) == {(f"s{number}.{voice}", 0.25) for number in range(8) for voice in VOICES}
    assert len(decoded) == (16 if cache else 64), "once each, where there is room to keep it"


def test_training_hears_any_part_of_a_long_sound(tmp_path: Path) -> None:
    """A ramp, whose values say where they stand, and a sound that is short."""
    ramp, short = io.BytesIO(), io.BytesIO()
    soundfile.write(ramp, np.linspace(0, 1, RATE, dtype=np.float32), RATE, format="WAV", subtype="FLOAT")
    soundfile.write(short, np.full(RATE // 8, 0.5, np.float32), RATE, format="WAV", subtype="FLOAT")
    with ShardWriter(tmp_path, "ramp") as writer:
        for key, file in (("long", ramp), ("short", short)):
            writer.write(RawSample(key, {"wav": file.getvalue()}))
    sounds = AudioInputSpec(transform=AudioTransformSpec(RATE, seconds=0.25), part="random")

    def heard(training: bool, cache: int) -> list[np.ndarray]:
        spec = DataSpec(str(tmp_path), audio=sounds, cache_mib=cache)
        samples = SampleDataset(spec, "train", OrderSpec(shuffle=False), 3, training)
        return [sound for position in range(200) if (sound := samples[position].audio) is not None]

    cached, plain = heard(True, 256), heard(True, 0)
    assert all((one == other).all() for one, other in zip(cached, plain, strict=True)), "what is kept changes nothing"
    begins = [float(sound[0]) for sound in cached[::2]]
    assert all(len(sound) == RATE // 4 for sound in cached[::2])
    assert 0 <= min(begins) < 0.05
    assert 0.7 < max(begins) <= 0.7501
    assert len(set(begins)) > 90
    assert all((sound == 0.5).all() and len(sound) == RATE // 8 for sound in cached[1::2])
    assert {float(sound[0]) for sound in heard(False, 0)[::2]} == {0.0}, "evaluation hears the first part"


def test_a_voice_that_a_sample_lacks_is_named(shards: Path) -> None:
    samples = read(shards, "test")
    with pytest.raises(
        InputError, match=r"sample 's8' has no member '\.high\.wav', which data asks for; it has low\.wav"
    ):
        levels(samples, 32)
