"""Sounds to tokens: two convolutions over the frames of a spectrogram (Whisper)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmformer.tokenizers.spectrogram import SpectrogramSpec
from mmformer.types import AXES, Audio, Tokens


@dataclass(frozen=True)
class SpectrogramStemSpec(SpectrogramSpec):
    """Two convolutions over time, of three frames each and with GELU, the second of stride 2; the bands are the first
    one's channels. Tokens stand at (time, 0, 0), one for every two frames.
    """

    cost: ClassVar[str] = "L·D·(bands + D)"
    source: ClassVar[str] = "Whisper, Radford et al. 2022, §2.2"

    @property
    def places(self) -> tuple[int | None, ...]:
        return (None if self.frames is None else -(-self.frames // 2), *(1,) * (AXES - 1))

    def build(self, width: int) -> SpectrogramStem:
        return SpectrogramStem(self, width)


class SpectrogramStem(nn.Module):
    def __init__(self, spec: SpectrogramStemSpec, width: int) -> None:
        super().__init__()
        self.spec = spec
        self.first = nn.Conv1d(spec.bands, width, kernel_size=3, padding=1)
        self.second = nn.Conv1d(width, width, kernel_size=3, stride=2, padding=1)

    def forward(self, audio: Audio) -> Tokens:
        """Tokens of a batch of sounds; past the last frame of each there is zero, whatever the batch.

        Raises:
            InputError: another rate than the spec's, or samples that are not float32 B S.
        """
        mel, frames = self.spec.spectrogram(audio)  # B T bands, B
        x = F.gelu(self.first(self._ended(mel.transpose(1, 2), frames)))  # B D T
        x = F.gelu(self.second(self._ended(x, frames))).transpose(1, 2)  # B L D
        time = torch.arange(x.shape[1], device=x.device)
        pos = F.pad(time[:, None], (0, AXES - 1))  # L A
        valid = None if self.spec.frames is not None else time < -(-frames // 2)[:, None]
        return Tokens(x, pos.expand(len(x), -1, -1), valid)

    def _ended(self, x: Tensor, frames: Tensor) -> Tensor:  # B C T
        if self.spec.frames is not None:
            return x
        return x.masked_fill((torch.arange(x.shape[2], device=x.device) >= frames[:, None])[:, None], 0.0)
