"""Sounds to tokens: patches of a spectrogram (AST, Gong et al. 2021, §2.1), which overlap where asked."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn
from torch.nn import functional as F

from mmformer.spec import require
from mmformer.tokenizers.spectrogram import SpectrogramSpec
from mmformer.types import AXES, Audio, Tokens


@dataclass(frozen=True)
class SpectrogramPatchesSpec(SpectrogramSpec):
    """Patches of time × frequency, flattened and projected; they stand at (time, frequency, 0).

    They come one time after the other, and the bands of each, from the lowest (AST's come by band). Of sounds of their
    own lengths, the last patch may reach past the end, into silence; of a fixed number of ``frames``, patches lie
    within, and what is left over after the last one, on either axis, is not read, as in AST.

    Attributes:
        patch: (frames, bands) of a patch.
        stride: (frames, bands) from one patch to the next; smaller than the patch, they overlap; None: as the patch.
    """

    cost: ClassVar[str] = "L·patch²·D"
    source: ClassVar[str] = "AST, Gong et al. 2021, §2.1"

    patch: tuple[int, int] = (16, 16)
    stride: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        large = self.patch[0] >= 1 and 1 <= self.patch[1] <= self.bands
        require(large, self, "patch", f"at least 1 frame and 1 band, and at most the {self.bands} bands")
        within = self.frames is None or self.patch[0] <= self.frames
        require(within, self, "patch", f"at most the {self.frames} frames")
        require(min(self.step) >= 1, self, "stride", "at least 1 frame and 1 band")
        whole = self.frames is not None or (self.bands - self.patch[1]) % self.step[1] == 0
        require(whole, self, "stride", f"one whose patches end with the last of the {self.bands} bands")
        gap = self.step[0] <= self.patch[0] and self.step[1] <= self.patch[1]
        require(gap, self, "stride", f"at most the patch {self.patch}, or there would be sound that nothing reads")

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
        rows = None if self.frames is None else (self.frames - self.patch[0]) // self.step[0] + 1
        return (rows, self.columns, *(1,) * (AXES - 2))

    def build(self, width: int) -> SpectrogramPatches:
        return SpectrogramPatches(self, width)


class SpectrogramPatches(nn.Module):
    def __init__(self, spec: SpectrogramPatchesSpec, width: int) -> None:
        super().__init__()
        self.spec = spec
        self.projection = nn.Linear(spec.patch[0] * spec.patch[1], width)

    def forward(self, audio: Audio) -> Tokens:
        """Tokens of a batch of sounds.

        Raises:
            InputError: another rate than the spec's, or samples that are not float32 B S.
        """
        mel, frames = self.spec.spectrogram(audio)  # B T bands, B
        (high, wide), (down, across) = self.spec.patch, self.spec.step
        count, rows = self.spec.places[0], None
        if count is None:
            rows = -(-torch.clamp(frames - high, min=0) // down) + 1  # B: patches over time, the last one padded
            count = -(-max(mel.shape[1] - high, 0) // down) + 1
            mel = F.pad(mel, (0, 0, 0, (count - 1) * down + high - mel.shape[1]), value=self.spec.past)
        patches = mel.unfold(1, high, down).unfold(2, wide, across)  # B T' F' frames bands
        x = self.projection(patches.flatten(3).flatten(1, 2))  # B (T' F') D
        time = torch.arange(count, device=x.device).repeat_interleave(self.spec.columns)
        band = torch.arange(self.spec.columns, device=x.device).repeat(count)
        pos = torch.stack((time, band, torch.zeros_like(time)), dim=-1)  # L A
        return Tokens(x, pos.expand(len(x), -1, -1), None if rows is None else time < rows[:, None])
