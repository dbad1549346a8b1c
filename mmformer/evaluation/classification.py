"""Classification by a head that was trained for it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from mmformer.errors import InputError, nearest
from mmformer.evaluation.classified import Classifier
from mmformer.evaluation.metric import MetricSpec, check_label
from mmformer.evaluation.rows import Column
from mmformer.spec import Parts
from mmformer.types import Batch, Outputs


@dataclass(frozen=True)
class AccuracySpec(MetricSpec):
    """How often a head's highest logit is the label's, and how well its probabilities are calibrated.

    Attributes:
        head: a classification head.
        label: which of the data's labels; None: the one that has the head's name.
    """

    head: str
    label: str | None = None

    def build(self) -> HeadAccuracy:
        return HeadAccuracy(self.head, self.label or self.head)

    def check(self, parts: Parts) -> None:
        check_label("AccuracySpec", self.label or self.head, parts.labels)
        if not hasattr(parts.heads.get(self.head), "classes"):
            known = [name for name, head in parts.heads.items() if hasattr(head, "classes")]
            raise InputError(
                f"AccuracySpec.head is '{self.head}', but the model's classification heads are "
                f"{', '.join(known) or 'none'}.{nearest(self.head, known)}"
            )


class HeadAccuracy(Classifier):
    calibrated = True

    def __init__(self, head: str, label: str) -> None:
        super().__init__(label)
        self.head = head

    def keep(self, outputs: Outputs, batch: Batch) -> Mapping[str, Column]:
        return {**self.labelled(batch), "logits": outputs.logits[self.head].float()}

    def logits(self) -> Tensor:
        return self.rows.tensor("logits")
