"""Linear probes: logistic regression on frozen embeddings, its regularisation searched."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from mmformer.evaluation.details import Details
from mmformer.evaluation.features import FeatureClassifier, FeaturesSpec
from mmformer.spec import require


@dataclass(frozen=True)
class LinearProbeSpec(FeaturesSpec):
    """Logistic regression with an L2 penalty, trained to its optimum by L-BFGS (CLIP, Radford et al. 2021, §A.3).

    The penalty's weight is chosen by the accuracy on a part of the training split that is set aside, as in CLIP; of
    equal ones, by the cross-entropy there. Powers of ten from 1e-6 to 1e6 are tried, a hundredfold apart, and then
    between the best and its neighbours, in steps that are halved four times. With the best one, the whole training
    split is learned.

    Attributes:
        validation: the share of each class's training samples that is set aside.
        iterations: of L-BFGS at most, for each weight that is tried.
        seed: of what is set aside.
    """

    validation: float = 0.2
    iterations: int = 1000
    seed: int = 0

    def __post_init__(self) -> None:
        require(0 < self.validation < 1, self, "validation", "above 0 and below 1")
        require(self.iterations >= 1, self, "iterations", "at least 1")

    def build(self) -> LinearProbe:
        return LinearProbe(self)


class LinearProbe(FeatureClassifier):
    calibrated = True

    def __init__(self, spec: LinearProbeSpec) -> None:
        super().__init__(spec.label, spec.encoder)
        self.spec = spec
        self.penalty = math.nan

    def classify(self, known: Tensor, classes: Tensor, asked: Tensor, number: int) -> Tensor:
        # Every number of the embedding on one scale, so that one weight of the penalty suits any model.
        mean, deviation = known.double().mean(0), known.double().std(0, correction=0).clamp(min=1e-6)
        known, asked = ((x.double() - mean) / deviation for x in (known, asked))
        aside = set_aside(classes, self.spec.validation, self.spec.seed)

        def score(exponent: float) -> tuple[float, float]:
            weight = fit(known[~aside], classes[~aside], number, 10**exponent, self.spec.iterations)
            logits = predict(known[aside], weight)
            right = (logits.argmax(1) == classes[aside]).double().mean().item()
            return right, -F.cross_entropy(logits, classes[aside]).item()

        # Where no class can spare a sample, nothing can be chosen: the middle is taken.
        self.penalty = 10 ** (search(score) if aside.any() else 0.0)
        return predict(asked, fit(known, classes, number, self.penalty, self.spec.iterations)).float()

    def details(self) -> Details:
        return super().details()._replace(notes={"penalty": f"{self.penalty:.3g}"})


def set_aside(classes: Tensor, share: float, seed: int) -> Tensor:
    """N, bool: a share of each class's samples, one at least of those that have two."""
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(classes), generator=generator)
    chosen = torch.zeros(len(classes), dtype=torch.bool)
    for index in sorted(set(classes.tolist())):
        own = order[classes[order] == index]
        chosen[own[: min(len(own) - 1, max(1, round(share * len(own))))]] = True
    return chosen


def search(score: Callable[[float], tuple[float, ...]]) -> float:
    """The exponent of ten with the best score; of equal ones the larger, which is the simpler model's."""
    tried = {float(exponent): score(exponent) for exponent in range(-6, 7, 2)}
    step = 1.0
    for _ in range(4):
        best = max(tried, key=lambda exponent: (tried[exponent], exponent))
        for exponent in (best - step, best + step):
            if exponent not in tried and -6 <= exponent <= 6:
                tried[exponent] = score(exponent)
        step /= 2
    return max(tried, key=lambda exponent: (tried[exponent], exponent))


def fit(x: Tensor, classes: Tensor, number: int, penalty: float, iterations: int) -> Tensor:
    """The weights of logistic regression, (E + 1) number, the bias last; the bias has no penalty.

    They minimise the mean cross-entropy plus penalty / (2 N) times their squares, which is scikit-learn's
    LogisticRegression with C = 1 / penalty.

    The search goes along the principal axes of x, each scaled by about the root of the loss's curvature there. Numbers
    of an embedding are far from independent: without that, a small penalty's optimum is not reached in any reasonable
    number of iterations.

    Args:
        x: N E, float64, whose means are about 0.
        classes: N, int64.
    """
    size = len(x)
    variance, axes = torch.linalg.eigh(x.T @ x / size)
    scale = (variance.clamp(min=0) / number + penalty / size).rsqrt()  # 1 / number: that of a softmax of equal logits
    turned = torch.cat((x @ axes * scale, x.new_full((size, 1), math.sqrt(number))), dim=1)  # N E+1
    shrink = torch.cat((penalty / size * scale.square(), x.new_zeros(1)))[:, None]
    target = F.one_hot(classes, number).to(x.dtype)
    weight = x.new_zeros(x.shape[1] + 1, number)
    optimizer = torch.optim.LBFGS(
        [weight],
        max_iter=iterations,
        history_size=10,
        tolerance_grad=1e-7,
        tolerance_change=1e-12,
        line_search_fn="strong_wolfe",
    )

    def closure() -> Tensor:
        logits = turned @ weight
        weight.grad = turned.T @ (logits.softmax(1) - target) / size + shrink * weight
        return (logits.logsumexp(1) - (logits * target).sum(1)).mean() + (shrink * weight.square()).sum() / 2

    optimizer.step(closure)  # type: ignore[no-untyped-call]
    return torch.cat((axes @ (scale[:, None] * weight[:-1]), math.sqrt(number) * weight[-1:]))


def predict(x: Tensor, weight: Tensor) -> Tensor:
    """N E, (E + 1) C -> N C."""
    return x @ weight[:-1] + weight[-1]
