"""What tokenizers of sounds share: the numbers of a spectrogram, and the spectrogram itself, normalised.

Waveforms travel as samples; the spectrogram is computed here, on the device.
"""

from __future__ import annotations

from abc import ABC
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from mmformer.errors import InputError
from mmformer.spec import require
from mmformer.tokenizers.log_mel import LogMelSpec
from mmformer.tokenizers.spectrum import SpectrumSpec
from mmformer.tokenizers.tokenizer import TokenizerSpec
from mmformer.types import Audio


@dataclass(frozen=True)
class SpectrogramSpec(TokenizerSpec, ABC):
    """A tokenizer that reads the spectrogram of a sound.

    Attributes:
        rate: samples a second; sounds of another rate are refused (the data resamples them).
        window: samples of one frame, a Hann window.
        hop: samples from one frame to the next.
        bands: mel bands.
        lowest: frequency in Hz at which the bands begin.
        highest: frequency in Hz at which they end; None: half the rate.
        mean: of the spectrum's values, the logarithms of energies; subtracted.
        std: of these values; divided by.
        frames: every sound is made so many frames long: cut, or filled up with what the spectrum has past a sound's
            end, which is read as if it were sound. None: each is as long as it is.
        spectrum: the kind of spectrum.
    """

    modality: ClassVar[str] = "audio"

    rate: int = 16_000
    window: int = 400
    hop: int = 160
    bands: int = 64
    lowest: float = 20.0
    highest: float | None = None
    mean: float = -6.0
    std: float = 4.0
    frames: int | None = None
    spectrum: SpectrumSpec = field(default_factory=LogMelSpec)

    def __post_init__(self) -> None:
        require(self.rate >= 1, self, "rate", "at least 1 sample a second")
        require(self.window >= 2, self, "window", "at least 2 samples")
        require(1 <= self.hop <= self.window, self, "hop", f"from 1 to the window ({self.window} samples)")
        require(self.bands >= 1, self, "bands", "at least 1")
        nyquist = self.rate / 2
        require(0 <= self.lowest < nyquist, self, "lowest", f"from 0 to below half the rate ({nyquist:g} Hz)")
        top = self.highest is None or self.lowest < self.highest <= nyquist
        require(top, self, "highest", f"None, or above lowest and at most half the rate ({nyquist:g} Hz)")
        require(self.std > 0, self, "std", "positive")
        require(self.frames is None or self.frames >= 1, self, "frames", "None or at least 1")
        self.spectrum.check(self)

    @property
    def top(self) -> float:
        """Frequency in Hz at which the bands end."""
        return self.rate / 2 if self.highest is None else self.highest

    @property
    def past(self) -> float:
        """What the spectrogram has past a sound's end, normalised."""
        return float((torch.tensor(self.spectrum.past) - self.mean) / self.std)

    def frames_of(self, seconds: float) -> int:
        """How many frames a sound of so many seconds has, where that is not fixed."""
        return int(self.spectrum.count(torch.tensor(int(seconds * self.rate)), self))

    def spectrogram(self, audio: Audio) -> tuple[Tensor, Tensor]:
        """The normalised spectrogram.

        Returns:
            B T bands, float32, the mean where it is hidden; and how many frames each sound has, B: all ``frames``,
            where that is given.

        Raises:
            InputError: another rate than the spec's, or samples that are not float32 B S, or want a gradient.
        """
        self._check_sounds(audio)
        with torch.autocast(audio.samples.device.type, enabled=False):
            values, frames = self.spectrum.energies(audio.samples, audio.lengths, self)
            if self.frames is not None:
                frames = torch.full_like(frames, self.frames)
            mel = values.sub_(self.mean).div_(self.std)  # B T bands; nobody else has them
            if audio.hidden is not None:
                # The mean, which is 0 now, says less about what is hidden than silence would.
                mel = mel.masked_fill(self._hidden(audio.hidden, frames, mel.shape[1]), 0.0)
            return mel, frames

    def _hidden(self, hidden: Tensor, frames: Tensor, count: int) -> Tensor:  # B T bands, bool
        time = (torch.arange(count, device=hidden.device) + 0.5) / frames[:, None]  # B T
        band = (torch.arange(self.bands, device=hidden.device) + 0.5) / self.bands
        begin, end, low, high = hidden[..., None].unbind(2)  # B N 1
        when = (begin <= time[:, None]) & (time[:, None] < end)  # B N T
        where = (low <= band) & (band < high)  # B N bands
        return (when[..., None] & where[:, :, None]).any(dim=1)

    def _check_sounds(self, audio: Audio) -> None:
        if audio.rate != self.rate:
            raise InputError(
                f"{type(self).__name__}.rate is {self.rate}, but the sounds have {audio.rate} samples a second: "
                f"resample them (data.audio.transform.rate), or change the tokenizer's rate."
            )
        if audio.samples.requires_grad:
            raise InputError(f"{type(self).__name__}: spectra have no gradient, but the sounds want one: detach them.")
        if audio.samples.ndim != 2 or audio.samples.dtype != torch.float32:
            raise InputError(
                f"{type(self).__name__} reads sounds as float32 of shape (batch, samples), but was handed "
                f"{str(audio.samples.dtype).removeprefix('torch.')} of shape {tuple(audio.samples.shape)}."
            )
