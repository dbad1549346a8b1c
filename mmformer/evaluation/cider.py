"""CIDEr-D (Vedantam, Zitnick and Parikh 2015), the measure that was made for captions."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

from mmformer.evaluation.words import Run, runs, spoken

_SIZES = (1, 2, 3, 4)
_SIGMA = 6.0


def cider(candidates: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    """CIDEr-D (§3 and §5), the mean over candidates: 0, and 10 at best; equal to pycocoevalcap's on the same words.

    Runs of one to four words are weighed by how rare they are among the references of all candidates; a text of fewer
    than four words lacks the longer ones, so that a right answer of one word gets 2.5. Papers often print it times 10
    more (a CIDEr of 1.2 there, or 120, is 1.2 here).

    Args:
        candidates: N texts, compared in lower case, by words without punctuation.
        references: of each, one or more.
    """
    scores = cider_of_each(candidates, references)
    return sum(scores) / len(scores)


def cider_of_each(candidates: Sequence[str], references: Sequence[Sequence[str]]) -> list[float]:
    """CIDEr-D of each candidate."""
    known = [[spoken(text) for text in texts] for texts in references]
    seen: Counter[Run] = Counter()
    for texts in known:
        seen.update({run for words in texts for size in _SIZES for run in runs(words, size)})
    documents = math.log(len(known)) if len(known) > 1 else 1.0  # of one sample, nothing is rarer than the rest
    return [
        10 * sum(_similarity(spoken(text), words, seen, documents) for words in texts) / len(texts)
        for text, texts in zip(candidates, known, strict=True)
    ]


def _similarity(a: Sequence[str], b: Sequence[str], seen: Counter[Run], documents: float) -> float:
    """The mean over run lengths of the clipped cosine, less for texts of different lengths."""
    total = 0.0
    for size in _SIZES:
        one, other = (_weighed(words, size, seen, documents) for words in (a, b))
        norm = math.sqrt(sum(v * v for v in one.values()) * sum(v * v for v in other.values()))
        shared = sum(min(value, other[run]) * other[run] for run, value in one.items() if run in other)
        total += shared / norm if norm else 0.0
    return total / len(_SIZES) * math.exp(-((len(a) - len(b)) ** 2) / (2 * _SIGMA**2))


def _weighed(words: Sequence[str], size: int, seen: Counter[Run], documents: float) -> dict[Run, float]:
    """How often each run is there, times the logarithm of its rarity."""
    return {run: number * (documents - math.log(max(1, seen[run]))) for run, number in runs(words, size).items()}
