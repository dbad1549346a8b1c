"""How well what a decoder writes agrees with what people wrote: exact match, BLEU, ROUGE-L and CIDEr-D."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from mmformer.evaluation.bleu import bleu
from mmformer.evaluation.cider import cider, cider_of_each
from mmformer.evaluation.details import Case, Details
from mmformer.evaluation.metric import MetricSpec, Score
from mmformer.evaluation.rouge import rouge_l
from mmformer.evaluation.words import plain
from mmformer.evaluation.writing import Writing, check_decoder
from mmformer.generation.generation import GenerationSpec
from mmformer.generation.sampling import GreedySpec
from mmformer.spec import Parts


@dataclass(frozen=True)
class CaptionsSpec(MetricSpec):
    """Captions against the references of each sample, or against the text that belongs to it where it has none.

    Attributes:
        decoder: which writes.
        generation: how.
    """

    generates: ClassVar[bool] = True

    decoder: str = "caption"
    generation: GenerationSpec = field(default_factory=GreedySpec)

    def build(self) -> Captions:
        return Captions(self.decoder, self.generation)

    def check(self, parts: Parts) -> None:
        check_decoder("CaptionsSpec", self.decoder, parts)


class Captions(Writing):
    def compute(self) -> dict[str, Score]:
        written, references = self.texts()
        scores = {"exact_match": Score(100 * exact_match(written, references), None, "%")}
        for size, value in enumerate(bleu(written, references), start=1):
            scores[f"BLEU-{size}"] = Score(100 * value, None, "%")
        scores["ROUGE-L"] = Score(100 * rouge_l(written, references), None, "%")
        scores["CIDEr"] = Score(cider(written, references))
        return scores

    def details(self) -> Details:
        written, references = self.texts()
        rows = zip(self.rows.values("key"), cider_of_each(written, references), references, written, strict=True)
        cases = [Case(n, key, good, " / ".join(right), said) for n, (key, good, right, said) in enumerate(rows)]
        return Details(cases, "CIDEr-D")


def exact_match(candidates: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    """The share of candidates that are one of their references, in lower case, with one space between words."""
    pairs = zip(candidates, references, strict=True)
    return sum(plain(text) in map(plain, known) for text, known in pairs) / len(candidates)
