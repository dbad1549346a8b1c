"""Translations against references: BLEU and chrF as sacreBLEU computes them, as published ones are."""

from __future__ import annotations

from dataclasses import dataclass, field
from types import ModuleType
from typing import ClassVar, Literal

from mmformer.errors import InputError
from mmformer.evaluation.details import Case, Details
from mmformer.evaluation.metric import MetricSpec, Score
from mmformer.evaluation.writing import Writing, check_decoder
from mmformer.generation.generation import GenerationSpec
from mmformer.generation.sampling import GreedySpec
from mmformer.spec import Parts


@dataclass(frozen=True)
class TranslationSpec(MetricSpec):
    """sacreBLEU's BLEU (Post 2018) and chrF (Popović 2015) of what a decoder writes, over the whole split.

    Attributes:
        decoder: which writes.
        generation: how.
        tokenize: how sacreBLEU finds words; 13a is that of the WMT, and of its own default.
        lowercase: compare in lower case.
    """

    generates: ClassVar[bool] = True

    decoder: str = "translate"
    generation: GenerationSpec = field(default_factory=GreedySpec)
    tokenize: Literal["13a", "intl", "char", "none"] = "13a"
    lowercase: bool = False

    def build(self) -> Translation:
        return Translation(self)

    def check(self, parts: Parts) -> None:
        check_decoder("TranslationSpec", self.decoder, parts)
        _sacrebleu()


class Translation(Writing):
    def __init__(self, spec: TranslationSpec) -> None:
        super().__init__(spec.decoder, spec.generation)
        self.spec = spec
        self.signature = ""

    def compute(self) -> dict[str, Score]:
        written, references = self.texts()
        # sacreBLEU takes the first references of all texts, then the second ones; None stands for one that is absent.
        most = max(map(len, references))
        streams = [[known[place] if place < len(known) else None for known in references] for place in range(most)]
        metrics = _sacrebleu().metrics
        bleu = metrics.BLEU(lowercase=self.spec.lowercase, tokenize=self.spec.tokenize)
        chrf = metrics.CHRF(lowercase=self.spec.lowercase)
        scores = {
            "BLEU": Score(bleu.corpus_score(written, streams).score),
            "chrF": Score(chrf.corpus_score(written, streams).score),
        }
        self.signature = str(bleu.get_signature())
        return scores

    def details(self) -> Details:
        written, references = self.texts()
        chrf = _sacrebleu().metrics.CHRF(lowercase=self.spec.lowercase)
        rows = zip(self.rows.values("key"), written, references, strict=True)
        cases = [
            Case(number, key, chrf.sentence_score(text, list(known)).score, " / ".join(known), text)
            for number, (key, text, known) in enumerate(rows)
        ]
        return Details(cases, "chrF", notes={"sacreBLEU": self.signature})


def _sacrebleu() -> ModuleType:
    try:
        import sacrebleu
    except ImportError as error:
        raise InputError(
            'TranslationSpec needs sacrebleu, which is not installed: pip install "mmformer[translation]".'
        ) from error
    return sacrebleu
