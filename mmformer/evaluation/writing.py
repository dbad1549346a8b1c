"""What metrics share that have a decoder write of every sample."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from mmformer.errors import InputError, nearest
from mmformer.evaluation.metric import Metric
from mmformer.evaluation.rows import Column
from mmformer.generation.generation import GenerationSpec
from mmformer.generation.packs import Packs
from mmformer.generation.writing import write_texts
from mmformer.models.model import Model
from mmformer.spec import Parts
from mmformer.tokenizers.text import TextEncoder
from mmformer.types import Batch, Outputs


class Writing(Metric):
    """Keeps what a decoder writes of each sample, and the texts that are right for it."""

    def __init__(self, decoder: str, generation: GenerationSpec) -> None:
        super().__init__()
        self.decoder, self.generation = decoder, generation
        self.model: Model | None = None
        self.encoders: Mapping[str, TextEncoder] = {}
        self.packs = Packs()

    def start(self, model: Model, encoders: Mapping[str, TextEncoder], device: torch.device) -> None:
        self.model, self.encoders, self.packs = model, encoders, Packs()

    def keep(self, outputs: Outputs, batch: Batch) -> Mapping[str, Column]:
        assert self.model is not None, "start() comes first"
        references = self._references(batch)
        numbers = self._numbers(batch)
        prompts = [""] * len(batch.keys)
        written = write_texts(self.model, self.decoder, outputs.tokens, prompts, self.generation, numbers, self.packs)
        return {"written": written, "references": references}

    def _numbers(self, batch: Batch) -> list[int]:
        """The samples' numbers in the split: what is drawn for one depends on nothing else."""
        if batch.positions is not None:
            return [int(position) for position in batch.positions]
        seen = sum(len(part["written"]) for part in self.rows.parts)
        return list(range(seen, seen + len(batch.keys)))

    def _references(self, batch: Batch) -> list[tuple[str, ...]]:
        if batch.references is not None:
            return list(batch.references)
        if batch.written is None:
            raise InputError("What is written is measured against the texts of samples, but the batch has none.")
        vocabulary = self.encoders["text" if batch.target is None else "target"].vocabulary
        references: list[tuple[str, ...]] = []
        for ids, length in zip(batch.written.ids.tolist(), batch.written.lengths.tolist(), strict=True):
            text = vocabulary.decode([index for index in ids[:length] if index not in vocabulary.ids.eos])
            # A text that was cut at the context's length is not the whole answer: nothing that is written equals it.
            ended = not {*vocabulary.ids.eos}.isdisjoint(ids[:length])
            references.append(((text if ended else text + " …").removeprefix(" "),))
        return references

    def texts(self) -> tuple[list[str], list[tuple[str, ...]]]:
        """What was written, and what would have been right.

        Raises:
            InputError: there was no sample.
        """
        if not self.rows:
            raise InputError("What a decoder writes was to be measured, but there was no sample.")
        return self.rows.values("written"), self.rows.values("references")


def check_decoder(spec: str, decoder: str, parts: Parts) -> None:
    """Refuse a decoder that the model does not have."""
    if decoder not in parts.decoders:
        raise InputError(
            f"{spec}.decoder is '{decoder}', but the model's decoders are "
            f"{', '.join(parts.decoders) or 'none'}.{nearest(decoder, parts.decoders)}"
        )
