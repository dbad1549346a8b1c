"""Retrieval: each sample's embedding in one modality looks for its own in another, among all of the split."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from mmformer.errors import InputError
from mmformer.evaluation.metric import Metric, MetricSpec, Score, check_pair
from mmformer.spec import Parts, require
from mmformer.types import Batch, Outputs


@dataclass(frozen=True)
class RetrievalSpec(MetricSpec):
    """Recall at k, in percent, and the median rank, both ways.

    A candidate that scores as high as the right one counts as found before it, so that embeddings that do not tell
    samples apart score nothing.

    Attributes:
        pairs: encoders that are held against each other.
        recall: the ks.
    """

    pairs: tuple[tuple[str, str], ...] = (("image", "text"),)
    recall: tuple[int, ...] = (1, 10)

    def __post_init__(self) -> None:
        require(len(self.pairs) >= 1, self, "pairs", "at least one pair of encoders")
        distinct = all(a != b for a, b in self.pairs) and len({frozenset(p) for p in self.pairs}) == len(self.pairs)
        require(distinct, self, "pairs", "different pairs of two different encoders")
        require(len(self.recall) >= 1 and min(self.recall) >= 1, self, "recall", "at least one k, each at least 1")

    def build(self) -> Retrieval:
        return Retrieval(self)

    def check(self, parts: Parts) -> None:
        for pair in self.pairs:
            check_pair("RetrievalSpec.pairs", pair, parts.embedding_widths)


class Retrieval(Metric):
    def __init__(self, spec: RetrievalSpec) -> None:
        self.spec = spec
        self.embeddings: dict[str, list[Tensor]] = {name: [] for pair in spec.pairs for name in pair}

    def update(self, outputs: Outputs, batch: Batch) -> None:
        for name, kept in self.embeddings.items():
            kept.append(F.normalize(outputs.embedding[name].float(), dim=-1).cpu())

    def compute(self) -> dict[str, Score]:
        if not all(self.embeddings.values()):
            raise InputError("Retrieval was asked for, but there was no sample.")
        joined = {name: torch.cat(kept) for name, kept in self.embeddings.items()}
        scores: dict[str, Score] = {}
        for first, second in (way for pair in self.spec.pairs for way in (pair, pair[::-1])):
            rank, number = ranks(joined[first], joined[second]), len(joined[first])
            for k in self.spec.recall:
                recall = (rank <= k).double().mean().item() * 100
                scores[f"{first}_to_{second}/R@{k}"] = Score(recall, min(k, number) / number * 100, "%")
            scores[f"{first}_to_{second}/median_rank"] = Score(rank.double().quantile(0.5).item(), (number + 1) / 2)
        return scores


def ranks(query: Tensor, candidate: Tensor, chunk: int = 4096) -> Tensor:
    """The rank, from 1, of candidate i for query i: how many candidates do not score lower.

    A score that is not a number is not lower than any: a model whose embeddings are NaN finds nothing.

    Args:
        query: N E.
        candidate: N E.
        chunk: queries at once, which bounds the memory.

    Returns:
        N, int64.
    """
    parts = []
    for start in range(0, len(query), chunk):
        score = query[start : start + chunk] @ candidate.T  # c N
        right = score.diagonal(start)[:, None]  # c 1
        parts.append((~(score < right)).sum(1))  # what is not a number is not below: it counts as found before
    return torch.cat(parts)
