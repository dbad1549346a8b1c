"""Kaldi's filterbank, as the audio spectrogram transformer reads it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F
from torchaudio.compliance import kaldi

from mmformer.spec import require
from mmformer.tokenizers.spectrum import BandEnergies, SpectrumSpec, frame_by_frame

if TYPE_CHECKING:
    from mmformer.tokenizers.spectrogram import SpectrogramSpec

_EMPHASIS = 0.97
"""The share of each sample that is taken off the next one."""

_FLOOR = torch.finfo(torch.float32).eps


@dataclass(frozen=True)
class KaldiFilterbankSpec(SpectrumSpec):
    """Kaldi's: frames without their mean and with high frequencies raised, bands that are triangles on the mel scale.

    A sound has as many frames as lie wholly within it, and one that is filled up with zeros where it is shorter. Past
    its last frame stands 0, which is no silence: so AST was trained. A symmetric Hann window, a transform of the next
    power of two, no dither. Narrow bands may hold no frequency, and stay at the floor.
    """

    cost: ClassVar[str] = "frames·window·bands"
    source: ClassVar[str] = "Povey et al. 2011, Kaldi; AST, Gong et al. 2021, §2.1"

    past: ClassVar[float] = 0.0

    def check(self, numbers: SpectrogramSpec) -> None:
        require(numbers.bands >= 4, numbers, "bands", "at least 4 with KaldiFilterbankSpec")

    def count(self, samples: Tensor, numbers: SpectrogramSpec) -> Tensor:
        return torch.clamp(samples - numbers.window, min=0) // numbers.hop + 1

    def energies(self, samples: Tensor, lengths: Tensor, numbers: SpectrogramSpec) -> tuple[Tensor, Tensor]:
        length = 1 << (numbers.window - 1).bit_length()
        window = torch.hann_window(numbers.window, periodic=False, device=samples.device)
        with torch.device(samples.device):
            banks, _ = kaldi.get_mel_banks(
                numbers.bands, length, numbers.rate, numbers.lowest, numbers.top, 100.0, -500.0, 1.0
            )
        bands = BandEnergies(F.pad(banks, (0, 1)).T)
        room = samples.new_zeros(0, length)

        def put(cut: Tensor, made: Tensor) -> None:
            nonlocal room
            if len(room) < len(cut):
                room = samples.new_zeros(len(cut), length)  # zeros past a window stay
            cut = cut - cut.mean(dim=1, keepdim=True)
            raised = room[: len(cut), : cut.shape[1]]
            torch.mul(cut[:, :1], _EMPHASIS, out=raised[:, :1])
            torch.mul(cut[:, :-1], _EMPHASIS, out=raised[:, 1:])
            torch.sub(cut, raised, out=raised).mul_(window)
            bands.put(room[: len(cut)], made)

        return frame_by_frame(put, _FLOOR, samples, lengths, numbers)
