"""How well a decoder foresees texts: perplexity of its tokens, and bits for each byte of the text."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch

from mmformer.errors import InputError
from mmformer.evaluation.details import Case, Details
from mmformer.evaluation.metric import Metric, MetricSpec, Score
from mmformer.evaluation.rows import Column
from mmformer.evaluation.words import decoded
from mmformer.evaluation.writing import check_decoder
from mmformer.models.decoder import Decoder
from mmformer.models.model import Model
from mmformer.spec import Parts
from mmformer.tokenizers.text import TextEncoder
from mmformer.types import Batch, Outputs


@dataclass(frozen=True)
class PerplexitySpec(MetricSpec):
    """The perplexity of a decoder's tokens, the end of the text among them, and its bits per byte.

    Perplexity is over the vocabulary's tokens, so that only decoders of one vocabulary compare; bits per byte (of the
    text in UTF-8) compare across vocabularies. A text that is longer than the context is measured as far as it is read.

    Attributes:
        decoder: whose.
    """

    decoder: str

    def build(self) -> Perplexity:
        return Perplexity(self.decoder)

    def check(self, parts: Parts) -> None:
        check_decoder("PerplexitySpec", self.decoder, parts)


class Perplexity(Metric):
    def __init__(self, decoder: str) -> None:
        super().__init__()
        self.decoder = decoder
        self.model: Model | None = None
        self.encoders: Mapping[str, TextEncoder] = {}
        self.pieces = 0

    def start(self, model: Model, encoders: Mapping[str, TextEncoder], device: torch.device) -> None:
        self.model, self.encoders = model, encoders
        decoder = model.decoders[self.decoder]
        assert isinstance(decoder, Decoder)
        self.pieces = len(decoder.pieces)

    def keep(self, outputs: Outputs, batch: Batch) -> Mapping[str, Column]:
        assert self.model is not None, "start() comes first"
        if batch.written is None:
            raise InputError("Perplexity is of the texts of samples, but the batch has none: set data.text.")
        decoder = self.model.decoders[self.decoder]
        assert isinstance(decoder, Decoder)
        texts = decoded(batch.written, self.encoders["text" if batch.target is None else "target"].vocabulary)
        return {
            "nats": decoder.nats(batch.written, outputs.tokens, self.model.stack_of(decoder.spec.stack)),
            "tokens": batch.written.real.sum(1),
            "bytes": torch.tensor([len(text.encode()) for text in texts]),
            "text": texts,
        }

    def compute(self) -> dict[str, Score]:
        if not self.rows:
            raise InputError("Perplexity was asked for, but there was no sample.")
        nats, tokens, size = (float(self.rows.tensor(name).double().sum()) for name in ("nats", "tokens", "bytes"))
        bits, guessed = (value / math.log(2) / max(1.0, size) for value in (nats, tokens * math.log(self.pieces)))
        perplexity = Score(math.exp(nats / tokens), float(self.pieces))
        return {"perplexity": perplexity, "bits_per_byte": Score(bits, guessed)}

    def details(self) -> Details:
        bits = self.rows.tensor("nats").double() / math.log(2) / self.rows.tensor("bytes").clamp(min=1)
        rows = zip(self.rows.values("key"), self.rows.values("text"), bits.tolist(), strict=True)
        cases = [Case(n, key, -value, text, f"{value:.2f} bits per byte") for n, (key, text, value) in enumerate(rows)]
        return Details(cases, "minus the bits per byte")
