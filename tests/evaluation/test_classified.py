"""What is made of logits and classes: each score by a plain loop or by hand."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from mmformer.evaluation.classification import AccuracySpec
from mmformer.evaluation.classified import (
    answers,
    calibration_error,
    classification_scores,
    confusion,
    precision_recall,
)
from mmformer.types import Batch, Outputs

LOGITS = torch.randn(200, 7, generator=torch.Generator().manual_seed(0))
TARGET = (
    torch.randint(0, 7, (200,), generator=torch.Generator().manual_seed(1)) // 2
)  # of unequal sizes; 4 to 6 have none


def test_scores_are_those_of_plain_loops() -> None:
    scores = classification_scores(LOGITS, TARGET, calibrated=True)
    order = [sorted(range(7), key=lambda c, x=row: -x[c]) for row in LOGITS.tolist()]  # type: ignore[misc]
    pairs = list(zip(order, TARGET.tolist(), strict=True))
    assert scores["accuracy"].value == pytest.approx(sum(best[0] == right for best, right in pairs) / 2)
    assert scores["top5"].value == pytest.approx(sum(right in best[:5] for best, right in pairs) / 2)
    assert scores["top5"].chance == pytest.approx(500 / 7)
    shares = []
    for index in range(4):
        own = [best[0] == right for best, right in pairs if right == index]
        shares.append(sum(own) / len(own))
    assert scores["per_class"].value == pytest.approx(100 * sum(shares) / 4)
    assert scores["per_class"].value != pytest.approx(scores["accuracy"].value)
    losses = [
        math.log(sum(map(math.exp, row))) - row[c] for row, c in zip(LOGITS.tolist(), TARGET.tolist(), strict=True)
    ]
    assert scores["cross_entropy"].value == pytest.approx(sum(losses) / 200)
    assert scores["cross_entropy"].chance == pytest.approx(math.log(7))
    assert set(classification_scores(LOGITS[:, :4], TARGET)) == {"accuracy", "per_class"}, "five of four are all"


def test_equal_logits_stand_in_their_order() -> None:
    same = torch.zeros(7, 7)
    scores = classification_scores(same, torch.arange(7))
    assert scores["accuracy"].value == pytest.approx(100 / 7)
    assert scores["top5"].value == pytest.approx(500 / 7)


def test_confusion_counts_rows_of_the_right_class() -> None:
    answer, target = torch.tensor([0, 2, 2, -1, 1]), torch.tensor([0, 0, 2, 1, 1])
    assert confusion(answer, target, 3).tolist() == [[1, 0, 1], [0, 1, 0], [0, 0, 1]]
    assert answers(torch.tensor([[1.0, 2], [math.nan, 2]])).tolist() == [1, -1]


def logits_of(probability: Tensor) -> Tensor:
    return torch.stack((probability.log(), (1 - probability).log()), dim=1)


def test_calibration_is_the_gap_in_each_bin() -> None:
    confidence = torch.tensor([0.9] * 10 + [0.6] * 10, dtype=torch.float64)
    right = torch.tensor([0] * 9 + [1] + [0] * 6 + [1] * 4)  # 9 of 10, 6 of 10
    assert calibration_error(logits_of(confidence), right) == pytest.approx(0, abs=1e-9)
    wrong = torch.tensor([0] * 5 + [1] * 5 + [0] * 6 + [1] * 4)
    assert calibration_error(logits_of(confidence), wrong) == pytest.approx(0.4 / 2)
    both = torch.tensor([0.9] * 10 + [0.88] * 10, dtype=torch.float64)  # one bin: their errors cancel
    mixed = torch.tensor([0] * 10 + [0] * 8 + [1] * 2)
    assert calibration_error(logits_of(both), mixed) == pytest.approx(abs(18 / 20 - 0.89))
    nan = torch.full((3, 2), math.nan)
    assert calibration_error(nan, torch.tensor([0, 1, 0])) == 0, "no probability was claimed, and none is right"


def test_average_precision_is_the_sum_over_thresholds() -> None:
    generator = torch.Generator().manual_seed(3)
    score = torch.randint(0, 12, (60,), generator=generator).float()  # many equal ones
    positive = torch.rand(60, generator=generator) < 0.3
    curve = precision_recall(score, positive)
    assert curve is not None
    expected, before, place = 0.0, 0.0, 0
    for threshold in sorted(set(score.tolist()), reverse=True):
        taken = score >= threshold
        hits = int((taken & positive).sum())
        if hits == before * int(positive.sum()):
            continue  # nothing more of the class is found here
        precision, recall = hits / int(taken.sum()), hits / int(positive.sum())
        assert float(curve.precision[place]) == pytest.approx(precision)
        assert float(curve.recall[place]) == pytest.approx(recall)
        expected += precision * (recall - before)
        before, place = recall, place + 1
    assert len(curve.recall) == place < 12
    assert curve.average == pytest.approx(expected)
    assert precision_recall(score, torch.zeros(60, dtype=torch.bool)) is None
    perfect = precision_recall(positive.float(), positive)
    assert perfect is not None
    assert perfect.average == pytest.approx(1)


def test_details_say_each_sample_with_its_probability() -> None:
    metric = AccuracySpec("colour").build()
    logits = torch.tensor([[2.0, 0, 0], [0, 0, 3], [0, 1, 0], [5, 0, math.nan]])
    batch = Batch(tuple("abcd"), {"colour": torch.tensor([0, 1, -1, 2])})
    metric.update(Outputs.empty()._replace(logits={"colour": logits}), batch)
    scores, details = metric.compute(), metric.details()
    assert scores["accuracy"].value == pytest.approx(100 / 3)
    assert [(case.number, case.key, case.right, case.said) for case in details.cases] == [
        (0, "a", "0", "0"),
        (1, "b", "1", "2"),
        (3, "d", "2", "nothing"),
    ]
    assert details.cases[0].goodness == pytest.approx(math.exp(2) / (math.exp(2) + 2), abs=1e-5)
    assert details.classified is not None
    assert details.classified.confusion.tolist() == [[1, 0, 0], [0, 0, 1], [0, 0, 0]]
    assert "calibration_error" in scores
