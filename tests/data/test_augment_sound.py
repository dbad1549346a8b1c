"""Sounds' augmentations: what each changes, by how much at most, and the promise of seeding by position."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from mmformer.data.augment_sound import (
    GainSpec,
    NoiseSpec,
    ReverberationSpec,
    Samples,
    SoundAugmentationSpec,
    SpecAugmentSpec,
    SpeedSpec,
    TimeShiftSpec,
    augment_sounds,
)
from mmformer.data.inputs import AudioInputSpec
from mmformer.data.loading import evaluation_loader, training_loader
from mmformer.data.seeding import generator
from mmformer.data.shards import RawSample, ShardWriter
from mmformer.data.sound import AudioTransformSpec
from mmformer.data.sources import DataSpec
from mmformer.errors import InputError
from mmformer.tokenizers.audio import SpectrogramPatchesSpec
from mmformer.types import Audio, Batch

RATE = 8000
ALL: tuple[SoundAugmentationSpec, ...] = (
    GainSpec(),
    TimeShiftSpec(),
    SpeedSpec(),
    NoiseSpec(),
    ReverberationSpec(),
)


def tone(seconds: float = 0.5, frequency: float = 440.0) -> Samples:
    times = np.arange(int(seconds * RATE)) / RATE
    return (0.5 * np.sin(2 * np.pi * frequency * times)).astype(np.float32)


def many(spec: SoundAugmentationSpec, sound: Samples, number: int = 200) -> list[Samples]:
    return augment_sounds([sound] * number, [spec], RATE, 0, range(number))


# ------------------------------------------------------------------------------------------------- seeding


@pytest.mark.parametrize("spec", ALL, ids=lambda spec: type(spec).__name__)
def test_a_sound_depends_on_its_position_and_not_on_its_batch(spec: SoundAugmentationSpec) -> None:
    sound = tone()
    before = sound.copy()
    together = augment_sounds([sound, tone(0.3), sound], [spec], RATE, 7, [4, 5, 6])
    alone = augment_sounds([sound], [spec], RATE, 7, [6])[0]
    np.testing.assert_array_equal(together[2], alone)
    assert together[2].dtype == np.float32
    assert len({made.tobytes() for made in many(spec, sound, 20)}) > 1, "another position, another change"
    seeds = {augment_sounds([sound], [spec], RATE, seed, [6])[0].tobytes() for seed in range(20)}
    assert len(seeds) > 1, "another seed, another change"
    np.testing.assert_array_equal(sound, before, "what is cached is not written to")


def test_augmentations_are_applied_in_turn_each_with_its_own_stream() -> None:
    specs = GainSpec(), ReverberationSpec(), GainSpec()
    made = augment_sounds([tone()], specs, RATE, 1, [2])[0]
    expected = tone()
    for index, spec in enumerate(specs):
        expected = spec.apply(expected, RATE, generator(1, f"augment_sound.{index}.{type(spec).__name__}", 2))
    np.testing.assert_array_equal(made, expected)


@pytest.mark.parametrize("spec", ALL, ids=lambda spec: type(spec).__name__)
@pytest.mark.parametrize("length", [1, 2, 5])
def test_the_shortest_sounds_stay_sounds(spec: SoundAugmentationSpec, length: int) -> None:
    for made in many(spec, np.full(length, 0.5, np.float32), 20):
        assert len(made) >= 1
        assert np.isfinite(made).all()


# ------------------------------------------------------------------------------------------------- what each does


def test_gain_is_a_factor_within_its_decibels() -> None:
    sound = tone()
    factors = [made[100] / sound[100] for made in many(GainSpec(12), sound)]
    decibels = 20 * np.log10(factors)
    assert np.abs(decibels).max() <= 12.001
    assert decibels.min() < -11
    assert decibels.max() > 11


def test_a_shift_moves_the_sound_within_its_seconds() -> None:
    sound = tone()
    shifts = []
    for made in many(TimeShiftSpec(0.05), sound):
        shift = len(made) - len(sound)
        shifts.append(shift)
        if shift >= 0:
            assert not made[:shift].any()
            np.testing.assert_array_equal(made[shift:], sound)
        else:
            np.testing.assert_array_equal(made, sound[-shift:])
    assert min(shifts) < -0.045 * RATE
    assert max(shifts) > 0.045 * RATE
    assert max(np.abs(shifts)) <= 0.05 * RATE


def test_a_short_sound_loses_half_at_most() -> None:
    assert min(len(made) for made in many(TimeShiftSpec(5.0), tone(0.1))) == len(tone(0.1)) // 2


def test_speed_changes_length_and_pitch_by_its_factors() -> None:
    lengths = set()
    for made in many(SpeedSpec((0.8, 1.0, 1.25)), tone()):
        factor = len(tone()) / len(made)
        lengths.add(round(factor, 2))
        peak = np.abs(np.fft.rfft(made)).argmax() * RATE / len(made)
        assert peak == pytest.approx(440 * factor, rel=0.01)
    assert lengths == {0.8, 1.0, 1.25}


def test_noise_has_the_power_that_is_drawn() -> None:
    sound = tone()
    ratios = [
        10 * np.log10(np.square(sound).mean() / np.square(made - sound).mean())
        for made in many(NoiseSpec((5, 20)), sound)
    ]
    assert 4.5 < min(ratios) < 7
    assert 18 < max(ratios) < 20.5


def test_silence_stays_silent_under_noise() -> None:
    assert not many(NoiseSpec(), np.zeros(100, np.float32), 1)[0].any()


def test_a_room_rings_after_the_sound_and_dies_away() -> None:
    click = np.zeros(RATE, np.float32)
    click[0] = 1
    made = np.stack(many(ReverberationSpec((0.4, 0.4), (0.2, 0.2)), click, 50))
    energy = np.square(made).mean(axis=0)
    assert energy[0] == pytest.approx(0.8, abs=1e-3), "what comes directly"
    assert energy.sum() == pytest.approx(1.0, abs=0.02), "as loud as before"
    assert not energy[int(0.41 * RATE) :].max() > 1e-9
    early, late = energy[1:400].mean(), energy[1601:2000].mean()  # half the time later: 30 dB softer
    assert 10 * np.log10(early / late) == pytest.approx(30, abs=2)


@pytest.mark.parametrize(
    ("make", "names"),
    [
        (lambda: GainSpec(0), "decibels"),
        (lambda: TimeShiftSpec(float("nan")), "seconds"),
        (lambda: SpeedSpec((1.0,)), "factors"),
        (lambda: SpeedSpec((1.0, 3.0)), "factors"),
        (lambda: NoiseSpec((20, 10)), "decibels"),
        (lambda: ReverberationSpec((0, 1)), "seconds"),
        (lambda: ReverberationSpec(share=(0.5, 1.0)), "share"),
        (lambda: SpecAugmentSpec(time_masks=0, frequency_masks=0), "time_masks"),
        (lambda: SpecAugmentSpec(time=0), "time"),
        (lambda: SpecAugmentSpec(frequency_masks=0, frequency=0.5), "frequency"),
    ],
)  # fmt: skip
def test_what_makes_no_sense_is_refused(make: type, names: str) -> None:
    with pytest.raises(InputError, match=rf"Spec\.{names} "):
        make()


# ------------------------------------------------------------------------------------------------- SpecAugment


def test_masks_are_stretches_of_time_and_of_frequency() -> None:
    spec = SpecAugmentSpec(time_masks=1, time=0.3, frequency_masks=2, frequency=0.5)
    hidden = spec.draw(0, range(2000))
    assert hidden.shape == (2000, 3, 4)
    time, frequency = hidden[:, :1], hidden[:, 1:]
    assert (time[..., 2:] == torch.tensor([0.0, 1.0])).all(), "over all frequencies"
    assert (frequency[..., :2] == torch.tensor([0.0, 1.0])).all(), "over all the time"
    for stretch, most in ((time[..., :2], 0.3), (frequency[..., 2:], 0.5)):
        begin, end = stretch.unbind(-1)
        assert begin.min() >= 0
        assert end.max() <= 1
        extent = end - begin
        assert extent.max() == pytest.approx(most, abs=0.01)
        assert extent.mean() == pytest.approx(most / 2, abs=0.01), "uniform"
        assert begin.min() < 0.01
        assert end.max() > 0.99
    torch.testing.assert_close(spec.draw(0, [7, 1500])[1], hidden[1500], rtol=0, atol=0)
    assert not torch.equal(spec.draw(1, [7]), hidden[7:8])


def test_what_is_hidden_is_the_mean_and_the_rest_is_as_it_was() -> None:
    tokenizer = SpectrogramPatchesSpec(rate=RATE, window=200, hop=80, bands=20, patch=(4, 20)).build(8)
    sound = torch.from_numpy(np.stack([tone(0.5), np.pad(tone(0.25), (0, RATE // 4))]))
    audio = Audio(sound, torch.tensor([RATE // 2, RATE // 4]), RATE)
    plain, frames = tokenizer.spec.spectrogram(audio)
    rectangles = torch.tensor([[[0.25, 0.5, 0, 1], [0, 1, 0.5, 0.75]], [[0.5, 1, 0, 0.25], [0, 0, 0, 0]]]).float()
    shown, _ = tokenizer.spec.spectrogram(audio._replace(hidden=rectangles))
    expected = plain.clone()
    first, second = frames.tolist()
    expected[0, round(first * 0.25) : round(first * 0.5)] = 0
    expected[0, :first, 10:15] = 0
    expected[1, round(second * 0.5) : second, :5] = 0
    torch.testing.assert_close(shown, expected, rtol=0, atol=0)
    assert (plain[1, second:] == shown[1, second:]).all(), "silence past the end stays"
    tokens, masked = tokenizer(audio), tokenizer(audio._replace(hidden=rectangles))
    assert (tokens.valid == masked.valid).all()  # type: ignore[union-attr]
    assert not torch.equal(tokens.x, masked.x)


def test_what_is_hidden_stays_with_its_sound() -> None:
    hidden = SpecAugmentSpec().draw(0, range(4))
    audio = Audio(torch.zeros(4, 100), torch.tensor([100, 50, 20, 10]), RATE, hidden)
    torch.testing.assert_close(Batch((), {}, audio=audio).rows(slice(1, 3)).audio.hidden, hidden[1:3])  # type: ignore[union-attr]
    assert audio.to("meta").hidden.device.type == "meta"  # type: ignore[union-attr]
    assert audio._replace(hidden=None).rows(slice(2)).hidden is None


# ------------------------------------------------------------------------------------------------- in the data


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tones")
    with ShardWriter(folder, "tone") as writer:
        for number in range(8):
            file = io.BytesIO()
            soundfile.write(file, tone(0.3, 300 + 50 * number), RATE, format="WAV", subtype="FLOAT")
            writer.write(RawSample(f"s{number}", {"wav": file.getvalue()}))
    return folder


def data(shards: Path, **options: object) -> DataSpec:
    sounds = AudioInputSpec(transform=AudioTransformSpec(RATE, seconds=0.3), **options)  # type: ignore[arg-type]
    return DataSpec(str(shards), audio=sounds, batch_size=4)


def first_batch(spec: DataSpec, first_step: int = 0) -> Audio:
    batch: Batch = next(iter(training_loader(spec, {}, 5, first_step, first_step + 1)))
    assert batch.audio is not None
    return batch.audio


def test_training_changes_sounds_and_evaluation_does_not(shards: Path) -> None:
    changed = data(shards, augment=(TimeShiftSpec(), NoiseSpec()), spec_augment=SpecAugmentSpec())
    plain = data(shards)
    audio, untouched = first_batch(changed), first_batch(plain)
    assert audio.hidden is not None
    assert audio.hidden.shape == (4, 4, 4)
    assert untouched.hidden is None
    assert not torch.equal(audio.samples, untouched.samples)
    assert int(audio.lengths.max()) <= int(0.3 * RATE), "no longer than the transform keeps"
    again = first_batch(changed)
    torch.testing.assert_close(again.samples, audio.samples, rtol=0, atol=0)
    torch.testing.assert_close(again.hidden, audio.hidden, rtol=0, atol=0)
    later = first_batch(changed, first_step=2)  # the same samples in another epoch
    assert not torch.equal(later.hidden, audio.hidden)  # type: ignore[arg-type]
    seen, expected = (next(iter(evaluation_loader(spec, "train", {}))).audio for spec in (changed, plain))
    assert seen.hidden is None
    torch.testing.assert_close(seen.samples, expected.samples, rtol=0, atol=0)
