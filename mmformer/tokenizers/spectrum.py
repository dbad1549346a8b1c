"""Kinds of spectra: how the energies of mel bands are made of a sound's samples. The numbers (rate, window, bands …)
are a SpectrogramSpec's, which normalises what a kind makes.

A frame holds samples of its own sound alone, so that a clip's spectrum does not depend on what it is batched with.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from mmformer.spec import Catalogued, family, require

if TYPE_CHECKING:
    from mmformer.tokenizers.spectrogram import SpectrogramSpec

_AT_ONCE = 512
"""Frames that a CPU makes at once: what they are in between stays in its caches."""

_BANDS_AT_ONCE = 32
"""Bands that a CPU sums at once: fewer would be too narrow a product, of more most weights would be zero."""


@family
@dataclass(frozen=True)
class SpectrumSpec(Catalogued, ABC):
    """A way from samples to logarithms of the energies of mel bands. It has no parameters, and computes by itself."""

    past: ClassVar[float]
    """What it has past a sound's last frame, where sounds have lengths of their own."""

    @abstractmethod
    def check(self, numbers: SpectrogramSpec) -> None:
        """Refuse numbers that it cannot be made with.

        Raises:
            InputError: it names the number.
        """

    @abstractmethod
    def count(self, samples: Tensor, numbers: SpectrogramSpec) -> Tensor:
        """How many frames sounds of so many samples have, where that is not fixed: both int64."""

    @abstractmethod
    def energies(self, samples: Tensor, lengths: Tensor, numbers: SpectrogramSpec) -> tuple[Tensor, Tensor]:
        """Logarithms of energies, not normalised.

        Args:
            samples: B S, float32; what stands past a sound's end is not read.
            lengths: B, samples that are real.

        Returns:
            B T bands, float32, ``numbers.frames`` of them where that is given; and how many frames each sound has, B.
        """


def frame_by_frame(
    log_mel: Callable[[Tensor, Tensor], None], samples: Tensor, lengths: Tensor, numbers: SpectrogramSpec
) -> tuple[Tensor, Tensor]:
    """What is made of each frame by itself: of those that hold sound alone, for padding would cost as much.

    Args:
        log_mel: of frames, N window, into N bands; it does not write into the frames, which share their samples. Past a
            sound's end there are zeros.

    Returns:
        B T bands, and each sound's frames, no more than ``numbers.frames``.
    """
    frames = numbers.spectrum.count(lengths, numbers)  # B
    if numbers.frames is not None:
        frames = frames.clamp(max=numbers.frames)
    shape = (len(samples), numbers.frames or int(frames.max()), numbers.bands)
    values = torch.empty(shape, device=samples.device)
    missing = max(0, (int(frames.max()) - 1) * numbers.hop + numbers.window - samples.shape[1])
    if samples.device.type == "cpu":
        room = samples.new_zeros(samples.shape[1] + missing)
        cut = room.unfold(0, numbers.window, numbers.hop)  # frames of one sound, of shared memory
        for row, (length, number) in enumerate(zip(lengths.tolist(), frames.tolist(), strict=True)):
            room[:length] = samples[row, :length]
            room[length:] = 0.0
            for first in range(0, number, _AT_ONCE):
                part = slice(first, min(number, first + _AT_ONCE))
                log_mel(cut[part], values[row, part])
            values[row, number:] = numbers.spectrum.past
        return values, frames
    beyond = torch.arange(samples.shape[1], device=samples.device) >= lengths[:, None]
    samples = F.pad(samples.masked_fill(beyond, 0.0), (0, missing))
    cut = samples.unfold(1, numbers.window, numbers.hop)[:, : shape[1]]  # B T window
    there = torch.arange(cut.shape[1], device=samples.device) < frames[:, None]  # B T
    values.fill_(numbers.spectrum.past)
    made = values.new_empty(int(there.sum()), numbers.bands)
    log_mel(cut[there], made)
    values[:, : cut.shape[1]][there] = made
    return values, frames


class BandEnergies:
    """Energies in bands of frequencies, each of which reads a few that lie together.

    Args:
        filters: bins bands, how much of each frequency's power belongs to each band.
    """

    def __init__(self, filters: Tensor) -> None:
        each = filters.repeat_interleave(2, dim=0)  # real and imaginary parts add up
        together = _BANDS_AT_ONCE if filters.device.type == "cpu" else filters.shape[1]
        self.products: list[tuple[slice, Tensor]] = []
        for first in range(0, filters.shape[1], together):
            bands = slice(first, first + together)
            read = each[:, bands].any(dim=1).nonzero()[:, 0]
            parts = slice(int(read[0]), int(read[-1]) + 1) if len(read) else slice(0, 1)
            self.products.append((parts, each[parts, bands].contiguous()))

    def put(self, frames: Tensor, energies: Tensor) -> None:
        """Those of frames, N window, into N bands."""
        # Not the magnitude's square: its root would take longer than the transform.
        powers = torch.view_as_real(torch.fft.rfft(frames)).square_().flatten(1)  # N (bins 2)
        each = torch.split(energies, _BANDS_AT_ONCE, dim=1) if len(self.products) > 1 else (energies,)
        for (parts, weights), out in zip(self.products, each, strict=True):
            torch.mm(powers[:, parts], weights, out=out)


def require_full_bands(edges: Sequence[float], numbers: SpectrogramSpec) -> None:
    """Refuse so many bands that some lie between two of the transform's frequencies.

    Args:
        edges: in Hz; band b rises from edge b to b + 1 and falls from there to b + 2.
    """
    places = [hertz * numbers.window / numbers.rate for hertz in edges]  # in frequencies
    empty = sum(math.floor(a) + 1 >= b for a, b in zip(places, places[2:], strict=False))
    must = f"so few that each holds a frequency of the window's; {empty} would hold none"
    require(not empty, numbers, "bands", must)
