"""Cross-entropy of a classification head."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from mmformer.errors import InputError, nearest
from mmformer.objectives.objective import Objective, ObjectiveSpec
from mmformer.spec import Parts, require_probability
from mmformer.types import Batch, LossTerm, Outputs


@dataclass(frozen=True)
class ClassificationSpec(ObjectiveSpec):
    """Cross-entropy between a head's logits and a label; the mean over its exits, where it has some.

    Attributes:
        head: whose logits.
        label: which of the data's labels; None: the one that has the head's name. -1 counts as no label.
        smoothing: share of the target that is spread over all classes (Szegedy et al. 2016, §7).
    """

    mixes: ClassVar[bool] = True

    head: str = "classification"
    label: str | None = None
    smoothing: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        require_probability(self, "smoothing")

    def build(self) -> Classification:
        return Classification(self)

    def check(self, parts: Parts) -> None:
        if not hasattr(parts.heads.get(self.head), "classes"):
            known = [name for name, head in parts.heads.items() if hasattr(head, "classes")]
            raise InputError(
                f"A classification objective reads the head '{self.head}', but the model's classification heads are "
                f"{', '.join(known) or 'none'}.{nearest(self.head, known)}"
            )
        label, given = self.label or self.head, parts.labels
        if label not in given:
            raise InputError(
                f"A classification objective reads the label '{label}', but data.labels has "
                f"{', '.join(given) or 'none'}.{nearest(label, given)}"
            )


class Classification(Objective):
    def __init__(self, spec: ClassificationSpec) -> None:
        self.spec = spec
        self.label = spec.label or spec.head

    def items(self, batch: Batch) -> dict[str, Tensor]:
        label = batch.labels.get(self.label)
        return {} if label is None else {"cross_entropy": (label >= 0).sum().float()}

    def losses(self, outputs: Outputs, batch: Batch) -> dict[str, LossTerm]:
        if self.label not in batch.labels or self.spec.head not in outputs.logits:
            return {}
        items = self.items(batch)["cross_entropy"]
        logits, early = outputs.logits[self.spec.head], outputs.exits.get(self.spec.head)
        every = [logits] if early is None else [logits, *early.unbind(1)]  # each of them B classes
        with torch.autocast(logits.device.type, enabled=False):
            each = torch.stack([self._each(made.float(), batch) for made in every]).mean(0)  # B
        return {"cross_entropy": LossTerm(each.sum(), items)}

    def _each(self, logits: Tensor, batch: Batch) -> Tensor:
        target = batch.labels[self.label]
        each = self._loss(logits, target)  # B
        if batch.mixed is None:
            return each
        other = batch.mixed.labels[self.label]
        # Where the other has no label, all of the target is the sample's own.
        share = torch.where(other < 0, 1.0, batch.mixed.share)
        return (share * each + (1 - share) * self._loss(logits, other)).where(target >= 0, 0.0)

    def _loss(self, logits: Tensor, target: Tensor) -> Tensor:
        return F.cross_entropy(logits, target, ignore_index=-1, reduction="none", label_smoothing=self.spec.smoothing)
