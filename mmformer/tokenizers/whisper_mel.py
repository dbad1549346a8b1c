"""Whisper's log-mel spectrum, over a sound of a fixed length."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from mmformer.spec import require
from mmformer.tokenizers.spectrum import SpectrumSpec, require_full_bands

if TYPE_CHECKING:
    from mmformer.tokenizers.spectrogram import SpectrogramSpec

_FLOOR = 1e-10

_RANGE = 8.0
"""In powers of ten."""

_STEP = math.log(6.4) / 27
"""Of Slaney's scale above 1 kHz: so much further up is the logarithm of the frequency, for each mel."""


@dataclass(frozen=True)
class WhisperLogMelSpec(SpectrumSpec):
    """Whisper's: the decimal logarithm of the power in bands of Slaney's mel scale, each of area one, cut off 80 dB
    below a sound's loudest.

    Sounds are cut to ``frames`` × ``hop`` samples, or filled up with silence, which belongs to them. Frame t is centred
    on sample t × hop; past both ends the samples are mirrored.
    """

    cost: ClassVar[str] = "frames·window·bands"
    source: ClassVar[str] = "Whisper, Radford et al. 2022, §2.2"

    past: ClassVar[float] = math.log10(_FLOOR)

    def check(self, numbers: SpectrogramSpec) -> None:
        require(numbers.frames is not None, numbers, "frames", "given with WhisperLogMelSpec, such as 3000 for 30 s")
        mirrored = (numbers.frames or 0) * numbers.hop > numbers.window // 2
        require(mirrored, numbers, "frames", f"over more than half a window ({numbers.window // 2} samples)")
        require_full_bands(_edges(numbers), numbers)

    def count(self, samples: Tensor, numbers: SpectrogramSpec) -> Tensor:
        return samples // numbers.hop

    def energies(self, samples: Tensor, lengths: Tensor, numbers: SpectrogramSpec) -> tuple[Tensor, Tensor]:
        assert numbers.frames is not None, "checked"
        whole = numbers.frames * numbers.hop
        beyond = torch.arange(samples.shape[1], device=samples.device) >= lengths[:, None]
        samples = F.pad(samples.masked_fill(beyond, 0.0)[:, :whole], (0, max(0, whole - samples.shape[1])))  # B whole
        window = torch.hann_window(numbers.window, device=samples.device)
        spectrum = torch.stft(samples, numbers.window, numbers.hop, window=window, return_complex=True)  # B bins T+1
        power = spectrum[..., :-1].abs().square().transpose(1, 2)  # B T bins
        values = (power @ mel_filters(numbers).to(samples.device)).clamp(min=_FLOOR).log10()  # B T bands
        loudest = values.amax(dim=(1, 2), keepdim=True)
        return torch.maximum(values, loudest - _RANGE), torch.full_like(lengths, numbers.frames)


def mel_filters(numbers: SpectrogramSpec) -> Tensor:
    """bins bands, float32: triangles over the transform's frequencies."""
    edges = torch.tensor(_edges(numbers), dtype=torch.float64)
    frequency = torch.linspace(0, numbers.rate // 2, numbers.window // 2 + 1, dtype=torch.float64)[:, None]
    rising = (frequency - edges[:-2]) / (edges[1:-1] - edges[:-2])
    falling = (edges[2:] - frequency) / (edges[2:] - edges[1:-1])
    return (torch.minimum(rising, falling).clamp(min=0) * 2 / (edges[2:] - edges[:-2])).float()


def _edges(numbers: SpectrogramSpec) -> list[float]:
    """Where bands begin, peak and end, in Hz: bands + 2. Slaney's scale is linear to 1 kHz, and logarithmic above."""
    low, high = (
        hertz * 3 / 200 if hertz < 1000 else 15 + math.log(hertz / 1000) / _STEP
        for hertz in (numbers.lowest, numbers.top)
    )
    mels = (low + (high - low) * place / (numbers.bands + 1) for place in range(numbers.bands + 2))
    return [mel * 200 / 3 if mel < 15 else 1000 * math.exp(_STEP * (mel - 15)) for mel in mels]
