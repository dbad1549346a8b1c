"""Sounds to tokens: patches of a log-mel spectrogram (AST, Gong et al. 2021, §2.1), which overlap where asked.

Waveforms travel as samples; the spectrogram is computed here, on the device. A frame holds samples of its own sound
alone, so that a clip's tokens do not depend on what it is batched with.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
import torchaudio
from torch import Tensor, nn
from torch.nn import functional as F

from mmformer.errors import InputError
from mmformer.spec import require
from mmformer.tokenizers.tokenizer import TokenizerSpec
from mmformer.types import AXES, Audio, Tokens


@dataclass(frozen=True)
class SpectrogramPatchesSpec(TokenizerSpec):
    """Patches of time × frequency, flattened and projected; they stand at (time, frequency, 0).

    Attributes:
        rate: samples a second; sounds of another rate are refused (the data resamples them).
        window: samples of one frame, a Hann window.
        hop: samples from one frame to the next.
        bands: mel bands.
        lowest: frequency in Hz at which the bands begin.
        highest: frequency in Hz at which they end; None: half the rate.
        patch: (frames, bands) of a patch.
        stride: (frames, bands) from one patch to the next; smaller than the patch, they overlap; None: as the patch.
        mean: of log-mel values (natural logarithm of power); subtracted.
        std: of log-mel values; divided by.
    """

    cost: ClassVar[str] = "L·patch²·D"
    source: ClassVar[str] = "AST, Gong et al. 2021, §2.1"

    modality: ClassVar[str] = "audio"

    rate: int = 16_000
    window: int = 400
    hop: int = 160
    bands: int = 64
    lowest: float = 20.0
    highest: float | None = None
    patch: tuple[int, int] = (16, 16)
    stride: tuple[int, int] | None = None
    mean: float = -6.0
    std: float = 4.0

    def __post_init__(self) -> None:
        require(self.rate >= 1, self, "rate", "at least 1 sample a second")
        require(self.window >= 2, self, "window", "at least 2 samples")
        require(1 <= self.hop <= self.window, self, "hop", f"from 1 to the window ({self.window} samples)")
        require(self.bands >= 1, self, "bands", "at least 1")
        nyquist = self.rate / 2
        require(0 <= self.lowest < nyquist, self, "lowest", f"from 0 to below half the rate ({nyquist:g} Hz)")
        top = self.highest is None or self.lowest < self.highest <= nyquist
        require(top, self, "highest", f"None, or above lowest and at most half the rate ({nyquist:g} Hz)")
        large = self.patch[0] >= 1 and 1 <= self.patch[1] <= self.bands
        require(large, self, "patch", f"at least 1 frame and 1 band, and at most the {self.bands} bands")
        require(min(self.step) >= 1, self, "stride", "at least 1 frame and 1 band")
        empty = self._empty_bands()
        require(
            not empty, self, "bands", f"so few that each holds a frequency of the window's; {empty} would hold none"
        )
        whole = (self.bands - self.patch[1]) % self.step[1] == 0
        require(whole, self, "stride", f"one whose patches end with the last of the {self.bands} bands")
        gap = self.step[0] <= self.patch[0] and self.step[1] <= self.patch[1]
        require(gap, self, "stride", f"at most the patch {self.patch}, or there would be sound that nothing reads")
        require(self.std > 0, self, "std", "positive")

    def _empty_bands(self) -> int:
        """How many mel bands lie between two of the transform's frequencies."""
        highest = self.rate / 2 if self.highest is None else self.highest
        low, high = (2595 * math.log10(1 + hertz / 700) for hertz in (self.lowest, highest))
        mels = [low + (high - low) * place / (self.bands + 1) for place in range(self.bands + 2)]
        edges = [700 * (10 ** (mel / 2595) - 1) * self.window / self.rate for mel in mels]  # in frequencies
        return sum(math.floor(a) + 1 >= b for a, b in zip(edges, edges[2:], strict=False))

    @property
    def step(self) -> tuple[int, int]:
        """(frames, bands) from one patch to the next."""
        return self.stride or self.patch

    @property
    def columns(self) -> int:
        """Patches over the bands."""
        return (self.bands - self.patch[1]) // self.step[1] + 1

    @property
    def places(self) -> tuple[int | None, ...]:
        return (None, self.columns, *(1,) * (AXES - 2))

    def build(self, width: int) -> SpectrogramPatches:
        return SpectrogramPatches(self, width)


class SpectrogramPatches(nn.Module):
    def __init__(self, spec: SpectrogramPatchesSpec, width: int) -> None:
        super().__init__()
        self.spec = spec
        self.projection = nn.Linear(spec.patch[0] * spec.patch[1], width)

    def forward(self, audio: Audio) -> Tokens:
        """Tokens of a batch of sounds; the last patch of each may reach past its end, into silence.

        Raises:
            InputError: another rate than the spec's, or samples that are not float32 B S.
        """
        mel, frames = self.log_mel(audio)
        (high, wide), (down, across) = self.spec.patch, self.spec.step
        rows = -(-torch.clamp(frames - high, min=0) // down) + 1  # B: patches over time, the last one padded
        count = -(-max(mel.shape[1] - high, 0) // down) + 1
        missing = (count - 1) * down + high - mel.shape[1]
        mel = F.pad(mel, (0, 0, 0, missing), value=self._silence())
        patches = mel.unfold(1, high, down).unfold(2, wide, across)  # B T' F' frames bands
        x = self.projection(patches.flatten(3).flatten(1, 2))  # B (T' F') D
        time = torch.arange(count, device=x.device).repeat_interleave(self.spec.columns)
        band = torch.arange(self.spec.columns, device=x.device).repeat(count)
        pos = torch.stack((time, band, torch.zeros_like(time)), dim=-1)  # L A
        return Tokens(x, pos.expand(len(x), -1, -1), time < rows[:, None])

    def log_mel(self, audio: Audio) -> tuple[Tensor, Tensor]:
        """The normalised log-mel spectrogram.

        Returns:
            B T bands, float32, silence past each sound's last frame, the mean where it is hidden; and each sound's
            number of frames, B. Frame t begins at sample t × hop; a sound has as many as begin within it and are not
            all of the one before.
        """
        spec = self.spec
        self._check(audio)
        with torch.autocast(audio.samples.device.type, enabled=False):
            samples, lengths = audio.samples, audio.lengths
            frames = -(-torch.clamp(lengths - spec.window, min=0) // spec.hop) + 1  # B
            count = int(frames.max())
            missing = (count - 1) * spec.hop + spec.window - samples.shape[1]
            samples = F.pad(samples, (0, missing)) if missing > 0 else samples
            begin = torch.arange(count, device=samples.device) * spec.hop  # T
            there = begin < frames[:, None] * spec.hop  # B T
            # Only frames that hold sound: the transforms of padding would cost as much.
            cut = samples.unfold(1, spec.window, spec.hop)[:, :count][there]  # N window
            left = (lengths[:, None] - begin)[there]  # N: real samples from where a frame begins
            last = (left < spec.window).nonzero()[:, 0]
            past = torch.arange(spec.window, device=samples.device) >= left[last, None]
            cut[last] = cut[last].masked_fill(past, 0.0)
            # Made on each pass: a buffer would be lost when a model is built on the meta device.
            cut *= torch.hann_window(spec.window, device=samples.device)
            spectrum = torch.view_as_real(torch.fft.rfft(cut)).square().flatten(1)  # N (bins 2)
            filters = self._filters(samples.device).repeat_interleave(2, dim=0)  # real and imaginary parts add up
            power = spectrum @ filters  # N bands
            mel = power.new_full((*there.shape, spec.bands), self._silence())  # B T bands
            mel[there] = (power.clamp(min=_FLOOR).log() - spec.mean) / spec.std
            if audio.hidden is not None:
                # The mean, which is 0 now, says less about what is hidden than silence would.
                mel = mel.masked_fill(self._hidden(audio.hidden, frames, count), 0.0)
            return mel, frames

    def _hidden(self, hidden: Tensor, frames: Tensor, count: int) -> Tensor:  # B T bands, bool
        time = (torch.arange(count, device=hidden.device) + 0.5) / frames[:, None]  # B T
        band = (torch.arange(self.spec.bands, device=hidden.device) + 0.5) / self.spec.bands
        begin, end, low, high = hidden[..., None].unbind(2)  # B N 1
        when = (begin <= time[:, None]) & (time[:, None] < end)  # B N T
        where = (low <= band) & (band < high)  # B N bands
        return (when[..., None] & where[:, :, None]).any(dim=1)

    def _filters(self, device: torch.device) -> Tensor:  # bins bands
        spec = self.spec
        highest = spec.rate / 2 if spec.highest is None else spec.highest
        with torch.device(device):
            filters: Tensor = torchaudio.functional.melscale_fbanks(
                spec.window // 2 + 1, spec.lowest, highest, spec.bands, spec.rate, norm=None, mel_scale="htk"
            )
        return filters

    def _silence(self) -> float:
        return float((torch.tensor(_FLOOR).log() - self.spec.mean) / self.spec.std)

    def _check(self, audio: Audio) -> None:
        if audio.rate != self.spec.rate:
            raise InputError(
                f"SpectrogramPatchesSpec.rate is {self.spec.rate}, but the sounds have {audio.rate} samples a second: "
                f"resample them (data.audio.transform.rate), or change the tokenizer's rate."
            )
        if audio.samples.ndim != 2 or audio.samples.dtype != torch.float32:
            raise InputError(
                f"SpectrogramPatches reads sounds as float32 of shape (batch, samples), but was handed "
                f"{str(audio.samples.dtype).removeprefix('torch.')} of shape {tuple(audio.samples.shape)}."
            )


_FLOOR = 1e-5
"""The lowest power that is told from silence; the logarithm needs one."""
