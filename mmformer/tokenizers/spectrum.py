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

from mmformer.spec import Catalogued, family, require

if TYPE_CHECKING:
    from mmformer.tokenizers.spectrogram import SpectrogramSpec

_AT_ONCE = 512
"""Frames that a CPU makes at once: what they are in between stays in its caches."""

_BANDS_AT_ONCE = 32
"""Bands that a CPU sums at once: fewer would be too narrow a product, of more most weights would be zero."""

Put = Callable[[Tensor, Tensor], None]
"""Puts energies of frames, N window, into N bands. It does not write into the frames, which share their samples."""


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
    put: Put, floor: float, samples: Tensor, lengths: Tensor, numbers: SpectrogramSpec
) -> tuple[Tensor, Tensor]:
    """Logarithms of what is made of each frame by itself: of those that hold sound, for padding would cost as much.

    Args:
        put: makes energies. Past a sound's end its frames have zeros.
        floor: the least energy that is told from silence.

    Returns:
        B T bands, and each sound's frames, no more than ``numbers.frames``.
    """
    frames = numbers.spectrum.count(lengths, numbers)  # B
    if numbers.frames is not None:
        frames = frames.clamp(max=numbers.frames)
    values = samples.new_empty(len(samples), numbers.frames or int(frames.max()), numbers.bands)
    within = torch.div(lengths - numbers.window, numbers.hop, rounding_mode="floor") + 1
    within = torch.minimum(within, frames).clamp(min=0)  # B
    time = torch.arange(values.shape[1], device=samples.device)
    there = time < frames[:, None]  # B T
    _put_within(put, samples, within, values, numbers)
    _put_ends(put, samples, lengths, there & (time >= within[:, None]), values, numbers)
    values.clamp_(min=floor).log_()
    if not bool(there.all()):
        values.masked_fill_(~there[:, :, None], numbers.spectrum.past)
    return values, frames


def _put_within(put: Put, samples: Tensor, within: Tensor, values: Tensor, numbers: SpectrogramSpec) -> None:
    """Energies of those frames of each sound that lie within it: the first ones, so many."""
    if not bool(within.any()):
        return
    cut = samples.unfold(1, numbers.window, numbers.hop)[:, : values.shape[1]]  # B T' window, of shared memory
    if samples.device.type == "cpu":
        for row, number in enumerate(within.tolist()):
            for first in range(0, number, _AT_ONCE):
                part = slice(first, min(number, first + _AT_ONCE))
                put(cut[row, part], values[row, part])
        return
    there = torch.arange(cut.shape[1], device=samples.device) < within[:, None]  # B T'
    made = values.new_empty(int(there.sum()), numbers.bands)
    put(cut[there], made)
    values[:, : cut.shape[1]][there] = made


def _put_ends(
    put: Put, samples: Tensor, lengths: Tensor, ends: Tensor, values: Tensor, numbers: SpectrogramSpec
) -> None:
    """Energies of frames that reach past their sound's end: ``ends`` says which, B T."""
    rows, places = ends.nonzero(as_tuple=True)  # N
    if len(rows) == 0:
        return
    at = places[:, None] * numbers.hop + torch.arange(numbers.window, device=samples.device)  # N window
    real = at < lengths[rows, None]
    frames = samples[rows[:, None], at.clamp(max=samples.shape[1] - 1)].where(real, 0.0)
    made = values.new_empty(len(rows), numbers.bands)
    put(frames, made)
    values[rows, places] = made


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
