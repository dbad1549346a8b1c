"""BLEU (Papineni et al. 2002), as the captions of COCO are measured with it."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

from mmformer.evaluation.words import Run, runs, spoken


def bleu(candidates: Sequence[str], references: Sequence[Sequence[str]], longest: int = 4) -> list[float]:
    """BLEU-1 to BLEU-``longest`` over all candidates, 0 to 1, equal to pycocoevalcap's on the same words.

    The geometric mean of the precisions of runs of one word up to so many, each run counted no more often than in the
    reference that has it most often; times the penalty for texts that are shorter, in all, than the references nearest
    in length. (For translations, sacreBLEU is the common measure, which reads words otherwise.)

    Args:
        candidates: N texts.
        references: of each, one or more.
    """
    right, given = [0] * longest, [0] * longest
    written = wanted = 0
    for text, texts in zip(candidates, references, strict=True):
        words, known = spoken(text), [spoken(other) for other in texts]
        written += len(words)
        wanted += min((len(other) for other in known), key=lambda length: (abs(length - len(words)), length))
        for size in range(1, longest + 1):
            most: Counter[Run] = Counter()
            for other in known:
                most |= runs(other, size)
            found = runs(words, size)
            right[size - 1] += (found & most).total()
            given[size - 1] += found.total()
    penalty = min(1.0, math.exp(1 - wanted / written)) if written else 0.0
    scores, product = [], 1.0
    for size, (numerator, denominator) in enumerate(zip(right, given, strict=True), start=1):
        product *= numerator / denominator if denominator else 0.0
        scores.append(product ** (1 / size) * penalty)
    return scores
