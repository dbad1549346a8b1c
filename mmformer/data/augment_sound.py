"""Augmentations of sounds: waveforms one at a time, each from the stream that its position names, and SpecAugment.

SpecAugment hides rectangles of the spectrogram, which is computed on the device: what is drawn here travels with the
waveforms, and the tokenizer hides it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.random import Generator
from numpy.typing import NDArray

from mmformer.data.seeding import generator
from mmformer.data.sound import resampler
from mmformer.spec import family, require

Samples = NDArray[np.float32]


@family
@dataclass(frozen=True)
class SoundAugmentationSpec(ABC):
    """A random change of a waveform."""

    @abstractmethod
    def apply(self, samples: Samples, rate: int, random: Generator) -> Samples:
        """Change one sound.

        Args:
            samples: S, one channel; not written to.
            rate: samples a second.
            random: the sound's own stream.

        Returns:
            As many samples or others, 1 at least.
        """


def augment_sounds(
    sounds: Sequence[Samples], specs: Sequence[SoundAugmentationSpec], rate: int, seed: int, positions: Sequence[int]
) -> list[Samples]:
    """Apply augmentations in turn, each sound seeded by (seed, augmentation, its position)."""
    changed = list(sounds)
    for index, spec in enumerate(specs):
        purpose = f"augment_sound.{index}.{type(spec).__name__}"
        for row, position in enumerate(positions):
            changed[row] = spec.apply(changed[row], rate, generator(seed, purpose, position))
    return changed


@dataclass(frozen=True)
class GainSpec(SoundAugmentationSpec):
    """Louder or softer.

    Attributes:
        decibels: at most so much, either way.
    """

    decibels: float = 6.0

    def __post_init__(self) -> None:
        require(0 < self.decibels <= 60, self, "decibels", "above 0 and at most 60")

    def apply(self, samples: Samples, rate: int, random: Generator) -> Samples:
        return samples * np.float32(10 ** (random.uniform(-self.decibels, self.decibels) / 20))


@dataclass(frozen=True)
class TimeShiftSpec(SoundAugmentationSpec):
    """Begins later, after silence, or earlier, without its first samples.

    Attributes:
        seconds: at most so many, either way; of a sound that is shorter than twice that, its first half at most is
            lost.
    """

    seconds: float = 0.1

    def __post_init__(self) -> None:
        require(0 < self.seconds <= 60, self, "seconds", "above 0 and at most 60")

    def apply(self, samples: Samples, rate: int, random: Generator) -> Samples:
        shift = round(random.uniform(-self.seconds, self.seconds) * rate)
        if shift >= 0:
            return np.concatenate((np.zeros(shift, np.float32), samples))
        return samples[min(-shift, len(samples) // 2) :]


@dataclass(frozen=True)
class SpeedSpec(SoundAugmentationSpec):
    """Faster or slower, and so higher or lower (Ko et al. 2015, Audio Augmentation for Speech Recognition, §2.1).

    Attributes:
        factors: one is drawn; 1.1 is a tenth faster.
    """

    factors: tuple[float, ...] = (0.9, 1.0, 1.1)

    def __post_init__(self) -> None:
        distinct = len(self.factors) >= 2 and len(set(self.factors)) == len(self.factors)
        require(distinct, self, "factors", "different factors, at least two")
        require(all(0.5 <= factor <= 2 for factor in self.factors), self, "factors", "from 0.5 to 2 each")

    def apply(self, samples: Samples, rate: int, random: Generator) -> Samples:
        factor = self.factors[int(random.integers(len(self.factors)))]
        if factor == 1:
            return samples
        changed: Samples = resampler(round(rate * factor), rate)(torch.from_numpy(samples)).numpy()
        return changed


@dataclass(frozen=True)
class NoiseSpec(SoundAugmentationSpec):
    """White noise on top.

    Attributes:
        decibels: (lowest, highest) ratio of the sound's power to the noise's, which is drawn uniformly; 0 is as loud.
    """

    decibels: tuple[float, float] = (10.0, 40.0)

    def __post_init__(self) -> None:
        low, high = self.decibels
        require(-30 <= low <= high <= 100, self, "decibels", "lowest and highest in order, from -30 to 100")

    def apply(self, samples: Samples, rate: int, random: Generator) -> Samples:
        ratio = 10 ** (random.uniform(*self.decibels) / 20)
        noise = random.standard_normal(len(samples), dtype=np.float32)
        loudness = np.sqrt(np.mean(np.square(samples), dtype=np.float64))
        return samples + noise * np.float32(loudness / ratio)


@dataclass(frozen=True)
class ReverberationSpec(SoundAugmentationSpec):
    """As in a room, whose response is noise that dies away exponentially (Polack's model; Jot et al. 1997, §1).

    Attributes:
        seconds: (least, most) until the room is 60 dB softer.
        share: (least, most) of the room's energy in what is heard; the rest comes directly.
    """

    seconds: tuple[float, float] = (0.1, 0.6)
    share: tuple[float, float] = (0.05, 0.3)

    def __post_init__(self) -> None:
        require(0 < self.seconds[0] <= self.seconds[1] <= 10, self, "seconds", "in order, above 0 and at most 10")
        require(0 <= self.share[0] <= self.share[1] < 1, self, "share", "in order, from 0 to below 1")

    def apply(self, samples: Samples, rate: int, random: Generator) -> Samples:
        from torchaudio.functional import fftconvolve

        seconds, share = random.uniform(*self.seconds), random.uniform(*self.share)
        times = np.arange(1, max(2, int(seconds * rate)), dtype=np.float32) / np.float32(seconds * rate)
        tail = random.standard_normal(len(times), dtype=np.float32) * np.power(np.float32(1e-3), times)
        tail *= np.sqrt(share / np.square(tail).sum())
        response = np.concatenate((np.array([np.sqrt(1 - share)]), tail)).astype(np.float32)
        heard = fftconvolve(torch.from_numpy(samples), torch.from_numpy(response))
        changed: Samples = heard[: len(samples)].numpy()
        return changed


@dataclass(frozen=True)
class SpecAugmentSpec:
    """Stretches of time and of frequency are hidden (Park et al. 2019, §2; their parts as in Park et al. 2020, §3).

    Attributes:
        time_masks: stretches of time.
        time: the longest, as a part of the sound.
        frequency_masks: stretches of frequency.
        frequency: the widest, as a part of the bands.
    """

    time_masks: int = 2
    time: float = 0.1
    frequency_masks: int = 2
    frequency: float = 0.2

    def __post_init__(self) -> None:
        require(self.time_masks >= 0, self, "time_masks", "at least 0")
        require(self.frequency_masks >= 0, self, "frequency_masks", "at least 0")
        require(self.time_masks + self.frequency_masks >= 1, self, "time_masks", "at least 1, or frequency_masks is")
        for name, number in (("time", self.time_masks), ("frequency", self.frequency_masks)):
            part: float = getattr(self, name)
            used = number > 0 or part == getattr(SpecAugmentSpec, name)
            require(used, self, name, f"left alone where {name}_masks is 0")
            require(0 < part <= 1, self, name, "above 0 and at most 1")

    def draw(self, seed: int, positions: Sequence[int]) -> torch.Tensor:
        """What is hidden of each sound: Audio.hidden."""
        masks = self.time_masks + self.frequency_masks
        uniform = [generator(seed, "spec_augment", position).random((masks, 2)) for position in positions]
        place, extent = torch.from_numpy(np.stack(uniform)).float().unbind(-1)  # B N
        along = torch.arange(masks) < self.time_masks  # N
        extent = extent * torch.where(along, self.time, self.frequency)
        begin = place * (1 - extent)
        stretch = torch.stack((begin, begin + extent), dim=-1)  # B N 2
        whole = torch.tensor([0.0, 1.0]).expand_as(stretch)
        along = along[:, None]
        return torch.cat((torch.where(along, stretch, whole), torch.where(along, whole, stretch)), dim=-1)
