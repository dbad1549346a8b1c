"""How well what a decoder writes agrees with what is written of the sample: exact match, and CIDEr."""

from __future__ import annotations

import math
import string
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import torch

from mmformer.errors import InputError, nearest
from mmformer.evaluation.metric import Metric, MetricSpec, Score
from mmformer.generation.generation import GenerationSpec
from mmformer.generation.sampling import GreedySpec
from mmformer.generation.writing import write_texts
from mmformer.models.model import Model
from mmformer.spec import Parts
from mmformer.tokenizers.text import TextEncoder
from mmformer.types import Batch, Outputs


@dataclass(frozen=True)
class CaptionsSpec(MetricSpec):
    """Captions against the text that belongs to each sample; both in lower case, with one space between words.

    Attributes:
        decoder: which writes.
        generation: how.
    """

    generates: ClassVar[bool] = True

    decoder: str = "caption"
    generation: GenerationSpec = field(default_factory=GreedySpec)

    def build(self) -> Captions:
        return Captions(self)

    def check(self, parts: Parts) -> None:
        if self.decoder not in parts.decoders:
            raise InputError(
                f"CaptionsSpec.decoder is '{self.decoder}', but the model's decoders are "
                f"{', '.join(parts.decoders) or 'none'}.{nearest(self.decoder, parts.decoders)}"
            )


class Captions(Metric):
    def __init__(self, spec: CaptionsSpec) -> None:
        self.spec = spec
        self.model: Model | None = None
        self.encoders: Mapping[str, TextEncoder] = {}
        self.written: list[str] = []
        self.references: list[str] = []

    def start(self, model: Model, encoders: Mapping[str, TextEncoder], device: torch.device) -> None:
        self.model, self.encoders = model, encoders

    def update(self, outputs: Outputs, batch: Batch) -> None:
        assert self.model is not None, "start() comes first"
        if batch.written is None:
            raise InputError("Captions are measured against the texts of samples, but the batch has none.")
        numbers = range(len(self.written), len(self.written) + len(batch.keys))
        prompts = [""] * len(batch.keys)
        self.written += write_texts(
            self.model, self.spec.decoder, outputs.tokens, prompts, self.spec.generation, numbers
        )
        vocabulary = self.encoders["text" if batch.target is None else "target"].vocabulary
        for ids, length in zip(batch.written.ids.tolist(), batch.written.lengths.tolist(), strict=True):
            text = vocabulary.decode([index for index in ids[:length] if index != vocabulary.eos])
            # A text that was cut at the context's length is not the whole answer: nothing that is written equals it.
            self.references.append(text if vocabulary.eos in ids[:length] else text + " …")

    def compute(self) -> dict[str, Score]:
        if not self.written:
            raise InputError("Captions were to be measured, but there was no sample.")
        references = [[reference] for reference in self.references]
        return {
            "exact_match": Score(100 * exact_match(self.written, references), None, "%"),
            "CIDEr": Score(cider(self.written, references)),
        }


def exact_match(candidates: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    """The share of candidates that are one of their references, in lower case, with one space between words."""
    pairs = zip(candidates, references, strict=True)
    return sum(_words(text) in map(_words, known) for text, known in pairs) / len(candidates)


def cider(candidates: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    """CIDEr-D (Vedantam, Zitnick and Parikh 2015, §3 and §5), the mean over candidates: 0, and 10 at best.

    Runs of one to four words are weighed by how rare they are among the references of all candidates; a text of fewer
    than four words lacks the longer ones, so that a right answer of one word gets 2.5.

    Args:
        candidates: N texts, compared in lower case, by words without punctuation.
        references: of each, one or more.
    """
    known = [[_spoken(text) for text in texts] for texts in references]
    seen: Counter[tuple[str, ...]] = Counter()
    for texts in known:
        seen.update({run for words in texts for size in _SIZES for run in _runs(words, size)})
    documents = math.log(len(known)) if len(known) > 1 else 1.0  # of one sample, nothing is rarer than the rest
    scores = [
        sum(_similarity(_spoken(text), words, seen, documents) for words in texts) / len(texts)
        for text, texts in zip(candidates, known, strict=True)
    ]
    return 10 * sum(scores) / len(scores)


_SIZES = (1, 2, 3, 4)
_SIGMA = 6.0


def _similarity(a: Sequence[str], b: Sequence[str], seen: Counter[tuple[str, ...]], documents: float) -> float:
    """The mean over run lengths of the clipped cosine, less for texts of different lengths."""
    total = 0.0
    for size in _SIZES:
        one, other = (_weighed(words, size, seen, documents) for words in (a, b))
        norm = math.sqrt(sum(v * v for v in one.values()) * sum(v * v for v in other.values()))
        shared = sum(min(value, other[run]) * other[run] for run, value in one.items() if run in other)
        total += shared / norm if norm else 0.0
    return total / len(_SIZES) * math.exp(-((len(a) - len(b)) ** 2) / (2 * _SIGMA**2))


def _weighed(
    words: Sequence[str], size: int, seen: Counter[tuple[str, ...]], documents: float
) -> dict[tuple[str, ...], float]:
    """How often each run is there, times the logarithm of its rarity."""
    counts = Counter(_runs(words, size))
    return {run: number * (documents - math.log(max(1, seen[run]))) for run, number in counts.items()}


def _runs(words: Sequence[str], size: int) -> list[tuple[str, ...]]:
    return [tuple(words[place : place + size]) for place in range(len(words) - size + 1)]


def _words(text: str) -> list[str]:
    return text.lower().split()


def _spoken(text: str) -> list[str]:
    """The words without punctuation; what is nothing else stays as it is."""
    return [word.strip(string.punctuation + "“”‘’«»…") or word for word in _words(text)]
