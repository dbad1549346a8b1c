"""Cross-entropy of a head, summed over the samples that have a label."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from mmformer.errors import InputError
from mmformer.models.head import ClassificationHeadSpec, ContrastiveHeadSpec
from mmformer.objectives.classification import ClassificationSpec
from mmformer.spec import Parts
from mmformer.types import Batch, Outputs

LOGITS = torch.randn(5, 4, generator=torch.Generator().manual_seed(0), requires_grad=True)
TARGET = torch.tensor([0, 3, -1, 2, -1])


def outputs(logits: Tensor = LOGITS, head: str = "colour") -> Outputs:
    return Outputs.empty()._replace(logits={head: logits})


def batch(target: Tensor = TARGET, label: str = "colour") -> Batch:
    return Batch(tuple("abcde"), {label: target})


def by_hand(smoothing: float = 0.0, target: Tensor = TARGET) -> float:
    total = 0.0
    for row, label in zip(LOGITS.tolist(), target.tolist(), strict=True):
        normaliser = math.log(sum(math.exp(value) for value in row))
        for index, value in enumerate(row):
            share = smoothing / 4 + (1 - smoothing) * (index == label)
            total -= share * (value - normaliser) * (label >= 0)
    return total


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.9])
def test_the_loss_is_a_sum_over_samples_with_a_label(smoothing: float) -> None:
    objective = ClassificationSpec(head="colour", smoothing=smoothing).build()
    (term,) = objective.losses(outputs(), batch()).values()
    assert math.isclose(term.total.item(), by_hand(smoothing), rel_tol=1e-5)
    assert term.items == 3
    assert {name: float(n) for name, n in objective.items(batch()).items()} == {"cross_entropy": 3}
    assert not objective.couples_samples


def test_samples_without_a_label_get_no_gradient() -> None:
    logits = LOGITS.detach().clone().requires_grad_()
    ClassificationSpec(head="colour", smoothing=0.1).build().losses(outputs(logits), batch())[
        "cross_entropy"
    ].total.backward()
    assert logits.grad is not None
    assert logits.grad.abs().sum(1).ne(0).tolist() == [True, True, False, True, False]


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_a_batch_without_any_label_is_no_loss(smoothing: float) -> None:
    logits, spec = LOGITS.detach().clone().requires_grad_(), ClassificationSpec(head="colour", smoothing=smoothing)
    (term,) = spec.build().losses(outputs(logits), batch(torch.full((5,), -1))).values()
    assert term.total == 0
    assert term.items == 0
    term.total.backward()
    assert logits.grad is not None
    assert (logits.grad == 0).all()


def test_it_is_computed_in_float32_under_autocast() -> None:
    objective = ClassificationSpec(head="colour").build()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        term = objective.losses(outputs(LOGITS.bfloat16()), batch())["cross_entropy"]
    assert term.total.dtype == torch.float32
    assert math.isclose(term.total.item(), by_hand(), rel_tol=2e-2)


def test_head_and_label_are_found_by_name() -> None:
    other = torch.tensor([1, 1, 1, 1, 1])
    objective = ClassificationSpec(head="hue", label="colour").build()
    (term,) = objective.losses(outputs(head="hue"), batch(other)).values()
    assert math.isclose(term.total.item(), by_hand(target=other), rel_tol=1e-5)


HEADS: dict[str, Any] = {"contrastive": ContrastiveHeadSpec(), "colour": ClassificationHeadSpec("image", 4)}


@pytest.mark.parametrize(
    ("fields", "heads", "message"),
    [
        ({"head": "color"}, HEADS, "reads the head 'color', but .* are colour. Did you mean 'colour'"),
        (
            {"head": "contrastive"},
            HEADS,
            "reads the head 'contrastive', but .* classification heads are colour",
        ),
        ({}, {}, "reads the head 'classification', but the model's classification heads are none"),
        ({"head": "colour", "label": "hug"}, HEADS, "reads the label 'hug', but data.labels has colour, hue. .* 'hue'"),
    ],
)
def test_a_model_that_does_not_fit_is_refused(fields: dict[str, Any], heads: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        ClassificationSpec(**fields).check(Parts({"image": 4}, heads, {}, ("colour", "hue")))
    ClassificationSpec(head="colour").check(Parts({"image": 4}, HEADS, {}, ("colour",)))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"weight": -1.0}, "ClassificationSpec.weight must be positive"),
        ({"smoothing": 1.0}, "ClassificationSpec.smoothing must be at least 0 and below 1"),
        ({"smoothing": -0.1}, "ClassificationSpec.smoothing must be at least 0 and below 1"),
    ],
)
def test_values_out_of_range_are_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError) as caught:
        ClassificationSpec(**fields)
    assert str(caught.value).startswith(message)
