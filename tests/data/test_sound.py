"""Sounds: every format, depth and rate; what is damaged is refused, and nothing else comes out of it."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
import torchaudio
from hypothesis import given, settings
from hypothesis import strategies as st

from mmformer.data.decode import decode
from mmformer.data.manifest import Manifest
from mmformer.data.shards import ShardReader
from mmformer.data.sound import AudioTransformSpec, Sound, decode_sound, resampler
from mmformer.data.waveform import listed_sounds, read_sound
from mmformer.errors import InputError

ROOT = Path(__file__).parents[2]
RATE = 16_000
EXACT = {"PCM_16": 2**-15, "PCM_24": 2**-22, "PCM_32": 2**-22, "FLOAT": 0.0}


def tone(seconds: float = 0.5, rate: int = RATE, frequency: float = 440.0) -> np.ndarray:
    return (0.5 * np.sin(2 * np.pi * frequency * np.arange(int(seconds * rate)) / rate)).astype(np.float32)


def written(samples: np.ndarray, rate: int = RATE, kind: str = "WAV", subtype: str | None = None) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, samples, rate, format=kind, subtype=subtype)
    return file.getvalue()


@pytest.mark.parametrize("subtype", EXACT)
def test_wav_is_read_as_it_was_written(subtype: str) -> None:
    sound = decode_sound(written(tone(), subtype=subtype), "a.wav")
    assert sound.rate == RATE
    assert sound.samples.dtype == np.float32
    assert np.abs(sound.samples - tone()).max() <= EXACT[subtype]


@pytest.mark.parametrize(
    ("kind", "subtype", "rate"),
    [("FLAC", None, RATE), ("OGG", "VORBIS", 44_100), ("OGG", "OPUS", 48_000), ("MP3", None, 44_100)],
)
def test_other_formats_sound_the_same(kind: str, subtype: str | None, rate: int) -> None:
    sound = decode_sound(written(tone(rate=rate), rate, kind, subtype), "a")
    assert sound.rate == rate
    spectrum = np.abs(np.fft.rfft(sound.samples))
    frequency = spectrum.argmax() * rate / len(sound.samples)
    assert frequency == pytest.approx(440, abs=5)
    assert np.abs(sound.samples[rate // 10 : -rate // 10]).max() == pytest.approx(0.5, abs=0.05)


def test_channels_are_averaged() -> None:
    both = np.stack((tone(), np.zeros_like(tone())), axis=1)
    assert np.allclose(decode_sound(written(both, subtype="FLOAT"), "a").samples, tone() / 2)


@pytest.mark.parametrize("rate", [8000, 22_050, 44_100, 48_000])
def test_other_rates_are_resampled(rate: int) -> None:
    made = AudioTransformSpec(RATE)(Sound(tone(rate=rate), rate))
    assert len(made) == pytest.approx(RATE / 2, abs=1)
    inner = slice(RATE // 20, -RATE // 20)
    wanted = tone(len(made) / RATE)[: len(made)]
    assert np.abs(made[inner] - wanted[inner]).max() < 0.01


def terms_of(rate: int, samples: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> tuple[np.ndarray, int, int]:
    """What a sound is resampled to, and the terms that torchaudio was asked for."""
    asked, real = [], torchaudio.transforms.Resample

    def recorded(old: int, new: int) -> torch.nn.Module:
        asked.append((old, new))
        return real(old, new)

    resampler.cache_clear()
    monkeypatch.setattr(torchaudio.transforms, "Resample", recorded)
    made = AudioTransformSpec(RATE, seconds=5.0)(Sound(samples, rate))
    return made, *asked[0]


@pytest.mark.parametrize("rate", [44_101, 47_999, 15_999, 7919, 44_056])
def test_odd_rates_are_resampled_by_small_filters(rate: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Filters of 16,000 × 44,101 numbers would take gigabytes."""
    made, old, new = terms_of(rate, tone(rate=rate), monkeypatch)
    assert max(old, new) <= 1000
    shift = (old / new) * (RATE / rate)
    assert shift == pytest.approx(1, abs=5e-4)
    inner = slice(RATE // 20, -RATE // 20)
    wanted = tone(len(made) / RATE, frequency=440 * shift)[: len(made)]
    assert np.abs(made[inner] - wanted[inner]).max() < 0.01


@pytest.mark.parametrize("rate", [8000, 11_025, 22_050, 24_000, 32_000, 44_100, 48_000, 88_200, 96_000, 192_000])
def test_rates_in_use_are_resampled_exactly(rate: int, monkeypatch: pytest.MonkeyPatch) -> None:
    _, old, new = terms_of(rate, tone(0.1, rate), monkeypatch)
    assert old * RATE == new * rate


@pytest.mark.parametrize("rate", [1, 3, 20_000_000])
def test_rates_of_no_sound_are_resampled_all_the_same(rate: int, monkeypatch: pytest.MonkeyPatch) -> None:
    made, old, new = terms_of(rate, np.ones(9, np.float32), monkeypatch)
    assert min(old, new) == 1
    assert old / new == pytest.approx(rate / RATE, rel=5e-4)
    assert len(made) >= 1


def test_something_is_left_of_every_sound() -> None:
    assert len(AudioTransformSpec(RATE, seconds=0.5)(Sound(np.ones(5, np.float32), 1))) == RATE


def test_what_is_cut_off_is_not_kept() -> None:
    made = AudioTransformSpec(RATE, seconds=0.25)(Sound(tone(), RATE))
    assert made.base is None


def test_the_rate_of_the_file_is_kept_where_it_is_the_models() -> None:
    assert np.array_equal(AudioTransformSpec(RATE)(Sound(tone(), RATE)), tone())


@pytest.mark.parametrize("rate", [RATE, 8000])
def test_long_sounds_are_cut(rate: int) -> None:
    assert len(AudioTransformSpec(RATE, seconds=0.25)(Sound(tone(rate=rate), rate))) == RATE // 4


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"rate": 0}, "rate must be at least 1"),
        ({"seconds": 0.0}, "seconds must be positive"),
        ({"seconds": np.inf}, "seconds must be positive and finite"),
    ],
)
def test_a_transform_that_cannot_be_is_refused(fields: dict[str, float], message: str) -> None:
    with pytest.raises(InputError, match=f"AudioTransformSpec.{message}"):
        AudioTransformSpec(**fields)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", r"a.wav: not a whole WAV, FLAC, Ogg or MP3 sound \(empty\): Format not recognised. Replace"),
        (b"hello", r"not a whole .* sound \(5 bytes, beginning with 68 65 6c 6c 6f\): Format not recognised. Replace"),
        (written(tone())[:-900], r"not a whole .*: it declares 16,044 bytes. Replace"),
        (written(tone(), kind="FLAC")[:-900], "not a whole"),
        (written(tone(), kind="AIFF"), "a sound of format AIFF; WAV, FLAC, Ogg and MP3 are read. Convert it"),
        (written(np.zeros((0,), np.float32)), "there is no sample in this sound"),
        (written(np.array([0.1, np.nan], np.float32), subtype="FLOAT"), "some samples are NaN or infinite"),
    ],
    ids=(
        "empty",
        "text",
        "cut WAV",
        "cut FLAC",
        "AIFF",
        "no samples",
        "NaN",
    ),  # a file may hold the time of its writing
)
def test_what_is_no_sound_is_refused(data: bytes, message: str) -> None:
    with pytest.raises(InputError, match=message):
        decode_sound(data, "a.wav")


@pytest.mark.parametrize("length", [0, 0x7FFF_FFFF, 0xFFFF_FFFF])
def test_a_wav_that_was_written_into_a_pipe_is_heard(length: int) -> None:
    data = bytearray(written(tone()))
    data[4:8] = length.to_bytes(4, "little")
    assert len(decode_sound(bytes(data), "a").samples) == len(tone())


def test_only_what_is_wanted_is_decoded() -> None:
    whole = decode_sound(written(tone(1.0), subtype="FLOAT"), "a")
    part = decode_sound(written(tone(1.0), subtype="FLOAT"), "a", seconds=0.25)
    assert np.array_equal(part.samples, whole.samples[: RATE // 4])
    longer = decode_sound(written(tone(1.0), subtype="FLOAT"), "a", seconds=9.0)
    assert np.array_equal(longer.samples, whole.samples)


def test_what_its_header_declares_too_long_is_not_decoded() -> None:
    """A FLAC of a few bytes may declare 2^36 samples of 8 channels."""
    data = bytearray(written(np.zeros((4000, 8)), kind="FLAC"))
    data[21:26] = bytes([data[21] | 0x0F, 0xFF, 0xFF, 0xFF, 0xFF])  # the samples that its STREAMINFO declares
    with pytest.raises(InputError, match=r"a: declares 68,719,476,735 samples of 8 channels, but at most 360,000,000"):
        decode_sound(bytes(data), "a")
    assert len(decode_sound(bytes(data), "a", seconds=0.1).samples) == RATE // 10


@pytest.mark.parametrize("loud", [17.0, 32768.0, 1e30, 3e38])
def test_what_was_never_scaled_is_refused_in_files_and_arrays_alike(loud: float) -> None:
    samples = np.stack([tone() * 0 + loud] * 2).astype(np.float32)
    for read in (
        lambda: decode_sound(written(samples.T, subtype="FLOAT"), "a"),
        lambda: read_sound((samples, RATE), "a"),
    ):
        with pytest.raises(
            InputError, match=r"a: samples of floats must lie within -1 and 1|a: some samples are NaN or"
        ):
            read()


KINDS = {kind: written(tone(0.1), kind=kind) for kind in ("WAV", "FLAC", "OGG", "MP3")}


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(sorted(KINDS)), st.data())
def test_damage_is_refused_or_heard_and_nothing_else(kind: str, data: st.DataObject) -> None:
    damaged = bytearray(KINDS[kind])
    for _ in range(data.draw(st.integers(1, 8))):
        damaged[data.draw(st.integers(0, min(len(damaged) - 1, 400)))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(damaged)))
    try:
        sound = decode_sound(bytes(damaged[:cut]), "a")
    except InputError:
        return
    assert np.isfinite(sound.samples).all()
    assert sound.rate >= 1


def test_the_embedded_emoji_speak() -> None:
    reader = ShardReader(Manifest.load(ROOT / "data" / "emoji"), "test")
    raw = reader[0]
    for member in ("en-0.ogg", "en-1.ogg"):
        sound = decode(member, raw.members[member], raw.key)
        assert sound.rate == RATE
        assert 0.2 < len(sound.samples) / RATE < 4


# ------------------------------------------------------------------------------------------------ as people have them


def test_paths_bytes_arrays_and_tensors_are_one_sound(tmp_path: Path) -> None:
    file = tmp_path / "a.wav"
    file.write_bytes(written(tone(), subtype="FLOAT"))
    stereo = np.stack((tone(), tone()))
    for given_sound in (
        file,
        str(file),
        file.read_bytes(),
        bytearray(file.read_bytes()),
        (tone(), RATE),
        (torch.from_numpy(tone()), RATE),
        (stereo, RATE),
    ):
        single, sounds = listed_sounds(given_sound)
        assert single
        assert np.allclose(read_sound(sounds[0], "sound 0").samples, tone(), atol=1e-7)
    single, sounds = listed_sounds([file, (tone(), RATE)])
    assert not single
    assert len(sounds) == 2


@pytest.mark.parametrize("kind", [np.int16, np.int32])
def test_integers_are_of_full_range(kind: type) -> None:
    samples = (tone() * np.iinfo(kind).max).astype(kind)
    assert np.allclose(read_sound((samples, RATE), "s").samples, tone(), atol=1e-4)


@pytest.mark.parametrize(
    ("sound", "message"),
    [
        (tone(), r"but is an array alone: say how many samples a second it has, \(array, 16000\)"),
        (5, "a sound must be a path, bytes, or .* but is int"),
        ([tone()], r"sound 0: .* say how many samples a second it has"),
        ([5], "sound 0: a sound must be a path, bytes"),
        ((tone(), 0), "the rate must be a whole number of samples a second, but is 0"),
        ((tone(), 1.5), "the rate must be a whole number"),
        ((tone()[:0], RATE), "samples must be S or channels S, but their shape is"),
        ((np.zeros((100, 2)), RATE), r"shape \(100, 2\) has more channels than samples: hand in its transpose"),
        ((tone().astype(np.uint8), RATE), "samples must be floats, int16 or int32, but are uint8"),
        ((np.array([np.nan]), RATE), "some samples are NaN or infinite"),
        ((tone() * 30_000, RATE), "must lie within -1 and 1, but span -15000 to 15000: divide them by"),
        ("nowhere.wav", "nowhere.wav: the sound cannot be read: No such file"),
    ],
)
def test_what_is_none_is_told(sound: object, message: str) -> None:
    with pytest.raises(InputError, match=message):
        for place, one in enumerate(listed_sounds(sound)[1]):  # type: ignore[arg-type]
            read_sound(one, f"sound {place}")
