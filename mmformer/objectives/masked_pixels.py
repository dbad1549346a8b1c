"""Masked pixels: an encoder sees a few patches of a picture, a head tells the others (MAE, He et al. 2021, §3)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mmformer.errors import InputError, nearest
from mmformer.objectives.objective import Objective, ObjectiveSpec
from mmformer.spec import Parts, require
from mmformer.types import Batch, LossTerm, Outputs, Patches


@dataclass(frozen=True)
class MaskedPixelsSpec(ObjectiveSpec):
    """The squared error of a head's pixels in patches that were not seen; the mean over those, and over their pixels.

    Which patches are seen is drawn evenly for each sample. All image encoders see those alone, in every objective of
    the run.

    Attributes:
        head: which tells the pixels.
        patch: side of a patch in pixels; that of the head's encoder.
        share: of a picture's patches, those that are not seen (§4.1: three quarters).
    """

    head: str = "pixels"
    patch: int = 16
    share: float = 0.75

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.patch >= 1, self, "patch", "at least 1 pixel")
        require(0 < self.share < 1, self, "share", "above 0 and below 1")

    def build(self) -> MaskedPixels:
        return MaskedPixels(self)

    def check(self, parts: Parts) -> None:
        telling = {name: head for name, head in parts.heads.items() if hasattr(head, "normalised")}
        if self.head not in telling:
            raise InputError(
                f"A masked pixels objective reads the head '{self.head}', but the model's heads over pixels are "
                f"{', '.join(telling) or 'none'}.{nearest(self.head, telling)}"
            )
        encoder = getattr(telling[self.head], "encoder", "")
        side = parts.patches[encoder]
        if side != self.patch:
            raise InputError(
                f"A masked pixels objective hides patches of {self.patch}x{self.patch} pixels, but those of the "
                f"encoder '{encoder}' are {side}x{side}: set its patch to {side}."
            )


class MaskedPixels(Objective):
    def __init__(self, spec: MaskedPixelsSpec) -> None:
        self.spec = spec

    def prepare(self, batch: Batch, seed: int) -> Batch:
        if batch.image is None:
            return batch
        if isinstance(batch.image, Patches) or batch.image.ndim != 4:
            found, other = "have sizes of their own (fit: native)", "take another fit"
            if not isinstance(batch.image, Patches):
                found, other = f"are of shape {tuple(batch.image.shape)}", "hand in one of each sample"
            raise InputError(
                f"A masked pixels objective hides patches of pictures of one size, one of each sample, but these "
                f"{found}: {other}."
            )
        positions = batch.positions
        if positions is None:
            positions = torch.arange(len(batch.image), device=batch.image.device)
        seen = drawn(seed, positions, self._number(batch.image)).argsort(1)[:, : self._seen(batch.image)]
        return batch._replace(seen=seen.sort(1).values)

    def items(self, batch: Batch) -> dict[str, Tensor]:
        if not isinstance(batch.image, Tensor):
            return {}
        hidden = self._number(batch.image) - self._seen(batch.image)
        return {"squared_error": batch.image.new_full((), len(batch.image) * hidden, dtype=torch.float32)}

    def losses(self, outputs: Outputs, batch: Batch) -> dict[str, LossTerm]:
        told = outputs.losses.get(self.spec.head)
        return {} if told is None else {"squared_error": told}

    def _number(self, image: Tensor) -> int:
        height, width = image.shape[2:]
        return (height // self.spec.patch) * (width // self.spec.patch)

    def _seen(self, image: Tensor) -> int:
        """How many patches of a picture are, one at least."""
        return max(1, int(self._number(image) * (1 - self.spec.share)))


def drawn(seed: int, positions: Tensor, number: int) -> Tensor:
    """Numbers for each sample that only (seed, its position) determine: B -> B number, int64.

    They are hashes (SplitMix64's, Steele et al. 2014), made where the positions are: asking for these would make an
    accelerator wait.
    """
    place = (positions[:, None] << 20) + torch.arange(number, device=positions.device)  # B number
    x = place * -0x61C8864680B583EB + seed  # what goes past 64 bits is lost, as it is to be
    for shift, factor in ((30, -0x40A7B892E31B1A47), (27, -0x6B2FB644ECCEEE15), (31, 1)):
        x = (x ^ ((x >> shift) & ((1 << (64 - shift)) - 1))) * factor
    return x
