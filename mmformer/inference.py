"""A model over what users hand in, batch by batch: what stands behind ``Predictor``."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from mmformer.bundle import Transforms
from mmformer.errors import InputError, nearest
from mmformer.models.head import ClassificationHeadSpec, ContrastiveHead
from mmformer.models.model import Model
from mmformer.reader import Reader
from mmformer.types import Outputs

Progress = Callable[[int], object]
"""Called with the number of items that were just done."""


class Inference:
    """Attributes:
    model: ``model(batch)`` returns Outputs, for those who make their own batches.
    transforms: what is done to pictures and sounds, and the classes that the heads know.
    reader: makes batches of what people have.
    """

    def __init__(self, model: Model, transforms: Transforms, device: torch.device | str, batch_size: int) -> None:
        if batch_size < 1:
            raise InputError(f"batch_size must be at least 1, but is {batch_size}.")
        self.model, self.transforms, self.batch_size = model, transforms, batch_size
        self.device = torch.device(device)
        self.reader = Reader(model.spec, transforms, batch_size)

    def embed_given(self, modality: str, value: Any, progress: Progress | None = None) -> Tensor:
        single, values = self.reader.listed(modality, value)
        embedded = self.embed_values(modality, values, progress)
        return embedded[0] if single else embedded

    def embed_values(self, modality: str, values: Sequence[Any], progress: Progress | None) -> Tensor:
        """N E, of unit length, in the order of the values."""
        name = self.encoder_of(modality)
        order: list[int] = []
        parts = []
        for places, outputs in self.run(modality, values, progress):
            order += places
            parts.append(F.normalize(outputs.embedding[name].float(), dim=-1).cpu())
        return torch.cat(parts)[torch.tensor(order).argsort()]

    def run(
        self, modality: str, values: Sequence[Any], progress: Progress | None
    ) -> Iterator[tuple[list[int], Outputs]]:
        """The model over the values, batch by batch, and their places."""
        self.encoder_of(modality)
        for places, batch in self.reader.batches(modality, values):
            with torch.inference_mode():
                outputs = self.model(batch.to(self.device), decode=False)
            yield places, outputs
            if progress is not None:
                progress(len(places))

    def head_logits(
        self, modality: str, values: Sequence[Any], head: str | None, progress: Progress | None
    ) -> tuple[Tensor, list[str]]:
        known = [
            name
            for name, spec in self.model.spec.heads.items()
            if isinstance(spec, ClassificationHeadSpec)
            and self.model.spec.encoders[spec.encoder].tokenizer.modality == modality
            and name in self.transforms.classes
        ]
        if head is None and len(known) == 1:
            head = known[0]
        if head not in known:
            raise InputError(
                f"Without labels, a classification head is asked ({head or 'none was named'}), but the model's are "
                f"{', '.join(known)}: name one of them.{nearest(head or '', known)}"
                if known
                else "The model has no classification head of its own: say which labels to choose from."
            )
        made = [(places, out.logits[head].float().cpu()) for places, out in self.run(modality, values, progress)]
        order = torch.tensor([place for places, _ in made for place in places]).argsort()
        return torch.cat([logits for _, logits in made])[order], self.transforms.classes[head]

    def scale(self) -> float:
        for head in self.model.heads.values():
            if isinstance(head, ContrastiveHead):
                return float(head.scale.detach())
        raise InputError("Zero-shot classification needs a contrastive head, but the model has none.")

    def encoder_of(self, modality: str) -> str:
        """The name of the first encoder that reads a modality."""
        for name, spec in self.model.spec.encoders.items():
            if spec.tokenizer.modality == modality:
                return name
        reads = ", ".join(spec.tokenizer.modality for spec in self.model.spec.encoders.values())
        raise InputError(f"This model reads no {modality}, only {reads}.")

    def decoder_of(self, modality: str, wanted: str | None) -> str:
        """The decoder to write with: one that reads this modality alone."""
        encoders, decoders = self.model.spec.encoders, self.model.spec.decoders
        fit = [
            name
            for name, spec in decoders.items()
            if spec.reads and all(encoders[read].tokenizer.modality == modality for read in spec.reads)
        ]
        if wanted is None and len(fit) == 1:
            return fit[0]
        if wanted not in fit:
            all_of_them = "; ".join(f"{name} reads {' and '.join(spec.reads)}" for name, spec in decoders.items())
            raise InputError(
                f"Captions need a decoder that reads {modality} alone ({wanted or 'none was named'}), but the model's "
                f"are: {all_of_them or 'none'}.{nearest(wanted or '', decoders)}"
            )
        return wanted
