"""ROUGE-L (Lin 2004, §3), as the captions of COCO are measured with it."""

from __future__ import annotations

from collections.abc import Sequence

from mmformer.evaluation.words import spoken

_BETA = 1.2
"""How much more recall counts than precision; COCO's."""


def rouge_l(candidates: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    """The mean over candidates, 0 to 1, equal to pycocoevalcap's on the same words.

    The F measure of the longest sequence of words that a candidate and a reference have in common, in order but with
    gaps: its best share of the candidate and its best share of a reference, each over all references.

    Args:
        candidates: N texts.
        references: of each, one or more.
    """
    pairs = zip(candidates, references, strict=True)
    return sum(_score(spoken(text), [spoken(other) for other in texts]) for text, texts in pairs) / len(candidates)


def _score(words: list[str], known: list[list[str]]) -> float:
    common = [_common(words, other) for other in known]
    precision = max(length / len(words) if words else 0.0 for length in common)
    recall = max(length / len(other) if other else 0.0 for length, other in zip(common, known, strict=True))
    if not precision or not recall:
        return 0.0
    return (1 + _BETA**2) * precision * recall / (recall + _BETA**2 * precision)


def _common(a: Sequence[str], b: Sequence[str]) -> int:
    """The length of the longest common subsequence."""
    before = [0] * (len(b) + 1)
    for word in a:
        now = [0]
        for place, other in enumerate(b):
            now.append(before[place] + 1 if word == other else max(before[place + 1], now[place]))
        before = now
    return before[-1]
