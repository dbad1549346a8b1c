"""Captioning: a decoder learns to write what belongs to what it reads (CoCa, Yu et al. 2022, §3.2)."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from mmformer.errors import InputError, nearest
from mmformer.objectives.objective import Objective, ObjectiveSpec
from mmformer.spec import Parts
from mmformer.types import Batch, LossTerm, Outputs


@dataclass(frozen=True)
class CaptioningSpec(ObjectiveSpec):
    """The cross-entropy of each token of a text after those before it; the mean over tokens, eos with them.

    Attributes:
        decoder: whose; it names the text that it writes, and what it reads.
    """

    decoder: str = "caption"

    def build(self) -> Captioning:
        return Captioning(self)

    def check(self, parts: Parts) -> None:
        if self.decoder not in parts.decoders:
            raise InputError(
                f"A captioning objective reads the decoder '{self.decoder}', but the model's decoders are "
                f"{', '.join(parts.decoders) or 'none'}.{nearest(self.decoder, parts.decoders)}"
            )


class Captioning(Objective):
    def __init__(self, spec: CaptioningSpec) -> None:
        self.spec = spec

    def items(self, batch: Batch) -> dict[str, Tensor]:
        return {} if batch.written is None else {"cross_entropy": batch.written.real.sum().float()}

    def losses(self, outputs: Outputs, batch: Batch) -> dict[str, LossTerm]:
        written = outputs.losses.get(self.spec.decoder)
        return {} if written is None else {"cross_entropy": written}
