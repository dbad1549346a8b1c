"""Classification by the nearest embeddings of the training split."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from mmformer.evaluation.features import FeatureClassifier, FeaturesSpec
from mmformer.spec import require


@dataclass(frozen=True)
class NeighboursSpec(FeaturesSpec):
    """k nearest neighbours by cosine similarity, each with the vote exp(similarity / temperature), as representations
    that were learned without labels are measured (Wu et al. 2018, §3.4; DINO, Caron et al. 2021, §4.1).

    Attributes:
        neighbours: how many vote; all, where the training split has fewer.
        temperature: how much more the nearest count.
    """

    neighbours: int = 20
    temperature: float = 0.07

    def __post_init__(self) -> None:
        require(self.neighbours >= 1, self, "neighbours", "at least 1")
        require(self.temperature > 0, self, "temperature", "positive")

    def build(self) -> Neighbours:
        return Neighbours(self)


class Neighbours(FeatureClassifier):
    def __init__(self, spec: NeighboursSpec) -> None:
        super().__init__(spec.label, spec.encoder)
        self.spec = spec

    def classify(self, known: Tensor, classes: Tensor, asked: Tensor, number: int) -> Tensor:
        known, asked = F.normalize(known, dim=-1), F.normalize(asked, dim=-1)
        parts = []
        for chunk in torch.split(asked, 1024):
            similarity, places = (chunk @ known.T).topk(min(self.spec.neighbours, len(known)))  # c k
            weight = ((similarity - 1) / self.spec.temperature).exp()  # 1 at most: nothing overflows
            parts.append(chunk.new_zeros(len(chunk), number).scatter_add_(1, classes[places], weight))
        return torch.cat(parts)
