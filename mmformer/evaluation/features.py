"""What metrics share that learn a classifier of embeddings that stay as they are."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from mmformer.errors import InputError
from mmformer.evaluation.classified import Classifier
from mmformer.evaluation.metric import MetricSpec, check_encoder, check_label
from mmformer.evaluation.rows import Column
from mmformer.spec import Parts
from mmformer.types import Batch, Outputs


@dataclass(frozen=True)
class FeaturesSpec(MetricSpec, ABC):
    """A classifier of frozen embeddings, learned from the training split.

    Attributes:
        label: which of the data's labels.
        encoder: whose embeddings.
    """

    learns: ClassVar[bool] = True

    label: str
    encoder: str = "image"

    def check(self, parts: Parts) -> None:
        check_label(type(self).__name__, self.label, parts.labels)
        check_encoder(f"{type(self).__name__}.encoder", self.encoder, parts.embedding_widths)


class FeatureClassifier(Classifier):
    """Learns of the training split's embeddings and labels to name those of the split that is measured."""

    def __init__(self, label: str, encoder: str) -> None:
        super().__init__(label)
        self.encoder = encoder

    def keep(self, outputs: Outputs, batch: Batch) -> Mapping[str, Column]:
        if self.encoder not in outputs.embedding:
            raise InputError(
                f"The data has nothing that the encoder '{self.encoder}' reads: say in data how it is read."
            )
        return {**self.labelled(batch), "embedding": outputs.embedding[self.encoder].float()}

    def logits(self) -> Tensor:
        known, classes = self.known()
        number = int(max(classes.max(), self.rows.tensor("target").max())) + 1
        return self.classify(known, classes, self.rows.tensor("embedding"), number)

    @abstractmethod
    def classify(self, known: Tensor, classes: Tensor, asked: Tensor, number: int) -> Tensor:
        """M number, float32: logits of embeddings M E, after N E whose classes, N int64, are known."""

    def known(self) -> tuple[Tensor, Tensor]:
        """Embeddings N E of the training split's samples that have the label, and their classes N, int64.

        Raises:
            InputError: there are none.
        """
        target = self.learned.tensor("target") if self.learned else torch.empty(0)
        there = target >= 0
        if not there.any():
            raise InputError(f"No sample of the training split has the label '{self.label}' to learn from.")
        return self.learned.tensor("embedding")[there], target[there]
