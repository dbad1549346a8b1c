"""What is made of the answers of anything that chooses among classes: scores, and what stands behind them."""

from __future__ import annotations

import math
from abc import abstractmethod
from functools import cached_property

import torch
from torch import Tensor
from torch.nn import functional as F

from mmformer.errors import InputError
from mmformer.evaluation.details import Case, Classified, Curve, Details
from mmformer.evaluation.metric import Metric, Score
from mmformer.evaluation.rows import Column
from mmformer.types import Batch

BINS = 15
"""Of the calibration error (Guo et al. 2017, §4)."""


class Classifier(Metric):
    """Holds answers against a label; samples without it (-1) are left out, and logits with a NaN are no answer.

    Scores, in percent: ``accuracy`` (the highest logit is the label's), ``top5``, ``per_class`` (the mean over classes
    of the share of theirs that is right, which small classes count in as much as large ones). Where logits say
    probabilities also ``calibration_error`` (how far the probability of answers is from how many of them are right)
    and, in nats, ``cross_entropy``, which is the loss of a head that is trained without smoothing.
    """

    calibrated = False
    """Whether the softmax of the logits is meant as probabilities."""

    def __init__(self, label: str) -> None:
        super().__init__()
        self.label = label

    def labelled(self, batch: Batch) -> dict[str, Column]:
        return {"target": batch.labels[self.label]}

    @abstractmethod
    def logits(self) -> Tensor:
        """N C, float32, of all samples."""

    @cached_property
    def answers(self) -> tuple[Tensor, Tensor, Tensor]:
        """Logits K C, targets K, and places among all samples K, of those that have the label."""
        target = self.rows.tensor("target") if self.rows else torch.empty(0)
        places = (target >= 0).nonzero().flatten()
        if not len(places):
            raise InputError(f"Accuracy over the label '{self.label}' was asked for, but no sample has it.")
        logits = self.logits()
        if int(target.max()) >= logits.shape[1]:
            raise InputError(
                f"The label '{self.label}' has class {int(target.max())}, but there are only {logits.shape[1]} classes "
                f"(0 to {logits.shape[1] - 1}) to choose from: the list of classes does not belong to the label."
            )
        return logits[places], target[places], places

    def compute(self) -> dict[str, Score]:
        logits, target, _ = self.answers
        return classification_scores(logits, target, self.calibrated)

    def details(self) -> Details:
        logits, target, places = self.answers
        number = logits.shape[1]
        answer = answers(logits)
        goodness = logits.softmax(1).gather(1, target[:, None])[:, 0].nan_to_num(-1)
        keys = self.rows.values("key")
        cases = [
            Case(place, keys[place], round(good, 6), str(right), str(said) if said >= 0 else "nothing")
            for place, good, right, said in zip(
                places.tolist(), goodness.tolist(), target.tolist(), answer.tolist(), strict=True
            )
        ]
        curves = [precision_recall(logits[:, index], target == index) for index in range(number)]
        classified = Classified(self.label, tuple(map(str, range(number))), confusion(answer, target, number), curves)
        return Details(cases, "probability of the right class", classified)


def answers(logits: Tensor) -> Tensor:
    """N C -> N: the class of the highest logit, the first of equal ones; -1 where one is a NaN."""
    return logits.argmax(1).masked_fill(logits.isnan().any(1), -1)


def classification_scores(logits: Tensor, target: Tensor, calibrated: bool = False) -> dict[str, Score]:
    """Scores, in percent, of logits N C against classes N; see :class:`Classifier`."""
    number = logits.shape[1]
    answer = answers(logits)
    right = (answer == target).double()
    scores = {"accuracy": Score(right.mean().item() * 100, 100 / number, "%")}
    if number > 5:
        own = logits.gather(1, target[:, None])
        before = torch.arange(number) < target[:, None]
        rank = (logits > own).sum(1) + ((logits == own) & before).sum(1)  # equal logits stand in their order
        scores["top5"] = Score(((rank < 5) & (answer >= 0)).double().mean().item() * 100, 500 / number, "%")
    table = confusion(answer, target, number)
    samples = torch.bincount(target, minlength=number)
    there = samples > 0
    scores["per_class"] = Score((table.diagonal()[there] / samples[there]).mean().item() * 100, 100 / number, "%")
    if calibrated:
        scores["calibration_error"] = Score(calibration_error(logits, target) * 100, None, "%")
        scores["cross_entropy"] = Score(F.cross_entropy(logits.double(), target).item(), math.log(number))
    return scores


def confusion(answer: Tensor, target: Tensor, number: int) -> Tensor:
    """C C, int64: samples of the row's class that were taken for the column's; those without an answer are not in."""
    given = answer >= 0
    pairs = target[given] * number + answer[given]
    return torch.bincount(pairs, minlength=number * number).view(number, number)


def calibration_error(logits: Tensor, target: Tensor, bins: int = BINS) -> float:
    """The expected calibration error (Guo et al. 2017, eq. 3): over bins of equal width of the answers' probability,
    the mean distance between that probability and the share of right answers, weighed by how many fall into each.

    What is no number has no probability, and is wrong.
    """
    confidence, answer = logits.double().softmax(1).nan_to_num(0).max(1)
    right = ((answer == target) & ~logits.isnan().any(1)).double()
    place = (confidence * bins).ceil().long().clamp(1, bins) - 1  # a bin has its upper edge, as in the paper
    gap = torch.zeros(bins, dtype=torch.float64).index_add_(0, place, right - confidence)
    return gap.abs().sum().item() / len(target)


def precision_recall(score: Tensor, positive: Tensor) -> Curve | None:
    """Precision over recall at every score that something positive has, from the highest; None where nothing is.

    The average precision is the sum of precision over the steps of recall, without interpolation. Scores that only
    others have are no such steps: without them the curves of any number of classes have a point for each sample.

    Args:
        score: N; what is no number stands last.
        positive: N, bool.
    """
    if not positive.any():
        return None
    score, order = score.double().nan_to_num(-torch.inf, neginf=-torch.inf).sort(descending=True, stable=True)
    found = positive[order].double().cumsum(0)
    last = torch.cat((score[1:] != score[:-1], torch.ones(1, dtype=torch.bool)))  # of those of equal scores
    places = last.nonzero().flatten()
    places = places[found[places].diff(prepend=found.new_zeros(1)) > 0]
    precision, recall = found[places] / (places + 1), found[places] / found[-1]
    steps = recall.diff(prepend=recall.new_zeros(1))
    return Curve(recall, precision, float((precision * steps).sum()))
