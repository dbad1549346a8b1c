"""Our log-mel spectrum: the default."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
import torchaudio
from torch import Tensor

from mmformer.tokenizers.spectrum import BandEnergies, SpectrumSpec, frame_by_frame, require_full_bands

if TYPE_CHECKING:
    from mmformer.tokenizers.spectrogram import SpectrogramSpec

_FLOOR = 1e-5
"""The lowest power that is told from silence; the logarithm needs one."""


@dataclass(frozen=True)
class LogMelSpec(SpectrumSpec):
    """The natural logarithm of the power in bands of the HTK mel scale.

    Frame t begins at sample t × hop; a sound has as many as begin within it and are not all of the one before. Past
    its last frame there is silence.
    """

    cost: ClassVar[str] = "frames·window·bands"
    source: ClassVar[str] = "Davis and Mermelstein 1980; as torchaudio's MelSpectrogram"

    past: ClassVar[float] = float(torch.tensor(_FLOOR).log())

    def check(self, numbers: SpectrogramSpec) -> None:
        low, high = (2595 * math.log10(1 + hertz / 700) for hertz in (numbers.lowest, numbers.top))
        mels = (low + (high - low) * place / (numbers.bands + 1) for place in range(numbers.bands + 2))
        require_full_bands([700 * (10 ** (mel / 2595) - 1) for mel in mels], numbers)

    def count(self, samples: Tensor, numbers: SpectrogramSpec) -> Tensor:
        return -(-torch.clamp(samples - numbers.window, min=0) // numbers.hop) + 1

    def energies(self, samples: Tensor, lengths: Tensor, numbers: SpectrogramSpec) -> tuple[Tensor, Tensor]:
        # Made on each pass: buffers would be lost when a model is built on the meta device.
        window = torch.hann_window(numbers.window, device=samples.device)
        bands = BandEnergies(self._filters(numbers, samples.device))

        def put(cut: Tensor, made: Tensor) -> None:
            bands.put(cut * window, made)

        return frame_by_frame(put, _FLOOR, samples, lengths, numbers)

    def _filters(self, numbers: SpectrogramSpec, device: torch.device) -> Tensor:  # bins bands, on the HTK scale
        with torch.device(device):
            filters: Tensor = torchaudio.functional.melscale_fbanks(
                numbers.window // 2 + 1, numbers.lowest, numbers.top, numbers.bands, numbers.rate
            )
        return filters
