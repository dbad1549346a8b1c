"""Neighbours, linear probes and few-shot: against plain loops, against what must hold, and what they refuse."""

from __future__ import annotations

import math
import statistics
from typing import Any

import pytest
import torch
from tiny import tiny_batch, tiny_model
from torch import Tensor
from torch.nn import functional as F

from mmformer.errors import InputError
from mmformer.evaluation.few_shot import FewShotSpec, draw, interval, nearest_mean, student
from mmformer.evaluation.metric import Metric, MetricSpec, evaluate
from mmformer.evaluation.neighbours import NeighboursSpec
from mmformer.evaluation.probe import LinearProbeSpec, fit, predict, search, set_aside
from mmformer.spec import Parts
from mmformer.types import Batch, Outputs


def clusters(number: int, spread: float, seed: int) -> tuple[Tensor, Tensor]:
    """Points around three centres, N 4, and which centre: the last number of each is noise of a large scale."""
    generator = torch.Generator().manual_seed(seed)
    classes = torch.arange(number) % 3
    centres = torch.tensor([[1.0, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0]])
    x = centres[classes] + spread * torch.randn(number, 4, generator=generator)
    x[:, 3] *= 50
    return x, classes


def taught(spec: MetricSpec, spread: float = 0.3) -> Metric:
    metric = spec.build()
    for learning, (x, classes) in ((True, clusters(60, spread, 0)), (False, clusters(30, spread, 1))):
        for rows in (slice(0, 7), slice(7, None)):
            batch = Batch(tuple(map(str, range(len(x[rows])))), {"colour": classes[rows]})
            outputs = Outputs.empty()._replace(embedding={"image": x[rows]})
            (metric.learn if learning else metric.update)(outputs, batch)
    return metric


def test_neighbours_vote_by_likeness() -> None:
    metric = taught(NeighboursSpec("colour", neighbours=5, temperature=0.1))
    (known, classes), (asked, target) = clusters(60, 0.3, 0), clusters(30, 0.3, 1)
    right = 0
    for x, wanted in zip(asked, target.tolist(), strict=True):
        likeness = [float(F.cosine_similarity(x, y, dim=0)) for y in known]
        votes = [0.0, 0.0, 0.0]
        for place in sorted(range(60), key=lambda i, a=likeness: -a[i])[:5]:  # type: ignore[misc]
            votes[classes[place]] += math.exp(likeness[place] / 0.1)
        right += votes.index(max(votes)) == wanted
    assert metric.compute()["accuracy"].value == pytest.approx(100 * right / 30)
    assert taught(NeighboursSpec("colour", neighbours=1000)).compute()["accuracy"].chance == pytest.approx(100 / 3)


def test_the_probe_is_the_optimum_and_needs_no_scale() -> None:
    x, classes = clusters(60, 0.3, 0)
    x = x.double()
    weight = fit(x, classes, 3, penalty=2.0, iterations=1000)
    asked = weight.clone().requires_grad_()
    loss = F.cross_entropy(predict(x, asked), classes, reduction="sum") + asked[:-1].square().sum()
    (gradient,) = torch.autograd.grad(loss, asked)
    assert gradient.abs().max() < 1e-3, "sum of cross-entropies + penalty / 2 of the squares: scikit-learn's, C = 1/2"
    metric = taught(LinearProbeSpec("colour"))
    scores = metric.compute()
    assert scores["accuracy"].value >= 90, "the noise of a large scale is no obstacle, as it is to neighbours"
    assert scores["accuracy"].value > taught(NeighboursSpec("colour")).compute()["accuracy"].value
    assert 1e-6 <= float(metric.details().notes["penalty"]) <= 1e6
    assert "calibration_error" in scores


def test_a_small_penaltys_optimum_is_reached_where_numbers_depend_on_each_other() -> None:
    generator = torch.Generator().manual_seed(0)
    mixed = torch.randn(12, 12, generator=generator).double() * torch.logspace(0, -3, 12)[:, None]
    x = torch.randn(300, 12, generator=generator).double() @ mixed
    x -= x.mean(0)
    classes = (x @ torch.randn(12, 4, generator=generator).double()).add(torch.randn(300, 4, generator=generator))
    classes = classes.argmax(1)
    for penalty in (1e-6, 1.0):
        weight = fit(x, classes, 4, penalty, iterations=300).requires_grad_()
        loss = F.cross_entropy(predict(x, weight), classes) + penalty / 600 * weight[:-1].square().sum()
        (gradient,) = torch.autograd.grad(loss, weight)
        assert gradient.abs().max() < 1e-5, penalty


def test_the_penalty_is_searched_between_the_best_powers_of_ten() -> None:
    tried = []

    def score(exponent: float) -> tuple[float, ...]:
        tried.append(exponent)
        return (-abs(exponent - 2.3),)

    assert search(score) == pytest.approx(2.25, abs=0.13)
    assert tried[:7] == [-6, -4, -2, 0, 2, 4, 6]
    assert len(tried) == len(set(tried)) <= 15
    assert search(lambda exponent: (1.0,)) == 6, "of equal ones the simplest"


def test_what_is_set_aside_is_a_share_of_each_class() -> None:
    classes = torch.tensor([0] * 10 + [1] * 5 + [2])
    aside = set_aside(classes, 0.2, seed=0)
    assert [int(aside[classes == index].sum()) for index in range(3)] == [2, 1, 0]
    assert not torch.equal(aside, set_aside(classes, 0.2, seed=1))
    assert torch.equal(aside, set_aside(classes, 0.2, seed=0))


def test_few_shots_are_drawn_anew_and_averaged() -> None:
    metric = taught(FewShotSpec("colour", shots=(1, 4), draws=5, seed=3), spread=0.15)
    scores = metric.compute()
    (known, classes), (asked, target) = clusters(60, 0.15, 0), clusters(30, 0.15, 1)
    for shots in (1, 4):
        values = []
        for seed in range(3, 8):
            drawn = draw(classes, shots, seed)
            assert sorted(classes[drawn].tolist()) == sorted(list(range(3)) * shots)
            assert len(set(drawn.tolist())) == 3 * shots
            answer = nearest_mean(known[drawn], classes[drawn], asked, 3).argmax(1)
            values.append(100 * float((answer == target).double().mean()))
        score = scores[f"{shots}_shot"]
        assert score.value == pytest.approx(statistics.mean(values))
        assert score.margin == pytest.approx(2.7764 * statistics.stdev(values) / math.sqrt(5))
    assert "±" in scores["1_shot"].text
    assert metric.details().notes["samples"].startswith("4 samples of each class")


def test_the_nearest_mean_is_of_directions() -> None:
    known = torch.tensor([[2.0, 0], [0, 1], [3, 3]])
    logits = nearest_mean(known, torch.tensor([0, 0, 1]), torch.tensor([[5.0, 5.0]]), 3)
    assert logits[0].tolist() == [pytest.approx(1), pytest.approx(1), -math.inf]


def test_students_quantile() -> None:
    stats = pytest.importorskip("scipy.stats")
    for freedom in (1, 2, 5, 6, 8, 10, 20, 100):
        assert student(freedom) == pytest.approx(stats.t.ppf(0.975, freedom), abs=1e-3)
    assert interval([50.0, 50.0], 10) == (50, 10, "%", 0)


def test_they_learn_from_the_training_split_of_a_model() -> None:
    model = tiny_model().build()
    model.initialise(0)
    batch = tiny_batch(["x"] * 16)
    for spec in (NeighboursSpec("colour", neighbours=1), LinearProbeSpec("colour"), FewShotSpec("colour", shots=(2,))):
        scores = evaluate(model, [batch], {"m": spec}, {}, training=[batch])
        least = 100 if isinstance(spec, NeighboursSpec) else 60
        assert next(iter(scores.values())).value >= least, "what was learned is asked again"
        with pytest.raises(InputError, match="The metric 'm' learns from a training split, but none was handed in"):
            evaluate(model, [batch], {"m": spec}, {})


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: NeighboursSpec("colour", neighbours=0), "NeighboursSpec.neighbours must be at least 1"),
        (lambda: NeighboursSpec("colour", temperature=0), "NeighboursSpec.temperature must be positive"),
        (lambda: LinearProbeSpec("colour", validation=1.0), "LinearProbeSpec.validation must be above 0 and below 1"),
        (lambda: LinearProbeSpec("colour", iterations=0), "LinearProbeSpec.iterations must be at least 1"),
        (lambda: FewShotSpec("colour", shots=(1, 1)), "FewShotSpec.shots must be different numbers"),
        (lambda: FewShotSpec("colour", draws=1), "FewShotSpec.draws must be at least 2"),
    ],
)
def test_values_out_of_range_are_refused(make: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        make()


def test_what_is_missing_is_said() -> None:
    parts = Parts({"image": 4}, {}, {}, ("colour",))
    with pytest.raises(InputError, match=r"NeighboursSpec reads the label 'color'.* Did you mean 'colour'"):
        NeighboursSpec("color").check(parts)
    with pytest.raises(InputError, match=r"FewShotSpec.encoder is 'imag', but .* Did you mean 'image'"):
        FewShotSpec("colour", "imag").check(parts)
    with pytest.raises(InputError, match="asks for 21 samples of each class, but class 0 has 20 in the training split"):
        taught(FewShotSpec("colour", shots=(21,))).compute()
    metric = NeighboursSpec("colour").build()
    batch = Batch(("a",), {"colour": torch.tensor([-1])})
    outputs = Outputs.empty()._replace(embedding={"image": torch.ones(1, 4)})
    metric.learn(outputs, batch)
    metric.update(outputs, batch._replace(labels={"colour": torch.tensor([0])}))
    with pytest.raises(InputError, match="No sample of the training split has the label 'colour' to learn from"):
        metric.compute()
    with pytest.raises(InputError, match="nothing that the encoder 'image' reads"):
        metric.update(Outputs.empty(), batch)
