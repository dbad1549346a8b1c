"""Few-shot classification: a few samples of each class are known, drawn anew by each of several seeds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from mmformer.errors import InputError
from mmformer.evaluation.classified import classification_scores
from mmformer.evaluation.details import Details
from mmformer.evaluation.features import FeatureClassifier, FeaturesSpec
from mmformer.evaluation.metric import Score
from mmformer.spec import require


@dataclass(frozen=True)
class FewShotSpec(FeaturesSpec):
    """The nearest class mean of a few embeddings (prototypical networks, Snell et al. 2017, §2.2), by cosine.

    Each score is the mean over draws, with its 95 % confidence interval (Student's t over the draws).

    Attributes:
        shots: samples of each class that are known; one score for each number.
        draws: how often they are drawn from the training split.
        seed: of the first draw; the others have the seeds after it.
    """

    shots: tuple[int, ...] = (1, 5)
    draws: int = 10
    seed: int = 0

    def __post_init__(self) -> None:
        good = len(self.shots) >= 1 and min(self.shots) >= 1 and len(set(self.shots)) == len(self.shots)
        require(good, self, "shots", "different numbers, each at least 1")
        require(self.draws >= 2, self, "draws", "at least 2, for an interval")

    def build(self) -> FewShot:
        return FewShot(self)


class FewShot(FeatureClassifier):
    def __init__(self, spec: FewShotSpec) -> None:
        super().__init__(spec.label, spec.encoder)
        self.spec = spec

    def compute(self) -> dict[str, Score]:
        (known, classes), (logits, target, places) = self.known(), self.answers
        asked, number = self.rows.tensor("embedding")[places], logits.shape[1]
        scores = {}
        for shots in self.spec.shots:
            values = []
            for seed in range(self.spec.seed, self.spec.seed + self.spec.draws):
                drawn = draw(classes, shots, seed)
                answer = nearest_mean(known[drawn], classes[drawn], asked, number)
                values.append(classification_scores(answer, target)["accuracy"].value)
            scores[f"{shots}_shot"] = Score(*interval(values, 100 / number))
        return scores

    def classify(self, known: Tensor, classes: Tensor, asked: Tensor, number: int) -> Tensor:
        """After the first draw of the most shots: what the details show."""
        drawn = draw(classes, max(self.spec.shots), self.spec.seed)
        return nearest_mean(known[drawn], classes[drawn], asked, number)

    def details(self) -> Details:
        shown = f"{max(self.spec.shots)} samples of each class, drawn with seed {self.spec.seed}"
        return super().details()._replace(measure="softmax of the right class", notes={"samples": shown})


def draw(classes: Tensor, shots: int, seed: int) -> Tensor:
    """Places of so many samples of each class, without one twice.

    Raises:
        InputError: a class has fewer.
    """
    order = torch.randperm(len(classes), generator=torch.Generator().manual_seed(seed))
    drawn = []
    for index in sorted(set(classes.tolist())):
        own = order[classes[order] == index]
        if len(own) < shots:
            raise InputError(
                f"FewShotSpec.shots asks for {shots} samples of each class, but class {index} has {len(own)} in the "
                f"training split: ask for fewer."
            )
        drawn.append(own[:shots])
    return torch.cat(drawn)


def nearest_mean(known: Tensor, classes: Tensor, asked: Tensor, number: int) -> Tensor:
    """M number: the cosine of embeddings M E with the mean of each class's; a class without any is never the answer."""
    known, asked = F.normalize(known, dim=-1), F.normalize(asked, dim=-1)
    mean = F.normalize(known.new_zeros(number, known.shape[1]).index_add_(0, classes, known), dim=-1)
    absent = torch.bincount(classes, minlength=number) == 0
    return (asked @ mean.T).masked_fill(absent, -torch.inf)


def interval(values: Sequence[float], chance: float) -> tuple[float, float, str, float]:
    """The fields of a Score in percent: the mean of draws, and half of its 95 % confidence interval."""
    number = len(values)
    mean = sum(values) / number
    deviation = math.sqrt(sum((value - mean) ** 2 for value in values) / (number - 1))
    return mean, chance, "%", student(number - 1) * deviation / math.sqrt(number)


def student(freedom: int) -> float:
    """The 97.5 % quantile of Student's t distribution, to 0.001: from a table to 5 degrees of freedom, and by its
    expansion above (Abramowitz and Stegun, 26.7.5).
    """
    if freedom <= len(_STUDENT):
        return _STUDENT[freedom - 1]
    z = 1.959964
    terms = (
        z,
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160,
    )
    return math.fsum(term / float(freedom) ** power for power, term in enumerate(terms))


_STUDENT = (12.7062, 4.3027, 3.1824, 2.7764, 2.5706)
