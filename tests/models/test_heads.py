"""Heads see all of a pass inside the model's forward, in order; and the temperature comes back from past its floor."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping

import pytest
import torch
from tiny import tiny_batch, tiny_model
from torch import Tensor, nn

from mmformer.models.head import ContrastiveHead, ContrastiveHeadSpec, Head, HeadOutput, Shared
from mmformer.types import Batch, Outputs

TEXTS = ["red", "a small blue square", "green on the left"]
LIMIT = math.log(100)  # of log_scale


class Spy(Head):
    """Sees what it is handed; adds one to the logits of a head before it."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[list[str], list[str], Batch]] = []
        self.tokens: Mapping[str, object] = {}

    def forward(self, outputs: Outputs, batch: Batch) -> HeadOutput | None:
        self.seen.append((list(outputs.embedding), list(outputs.logits), batch))
        self.tokens = outputs.tokens
        return HeadOutput(logits=outputs.logits["colour"] + 1) if "colour" in outputs.logits else None


def test_a_head_sees_tokens_ids_labels_and_the_heads_before_it() -> None:
    model, batch = tiny_model(classes=5).build().eval(), tiny_batch(TEXTS)
    model.initialise(0)
    model.heads["after"] = spy = Spy()
    outputs = model(batch)
    ((embeddings, heads, seen),) = spy.seen
    assert embeddings == ["image", "text"], "all encoders have run"
    assert heads == ["colour"]
    assert seen is batch
    assert seen.text is not None
    assert seen.labels["colour"].tolist() == [0, 1, 2]
    assert spy.tokens["text"] is outputs.tokens["text"]
    assert torch.equal(outputs.logits["after"], outputs.logits["colour"] + 1)


def test_a_head_may_find_nothing_to_read() -> None:
    model = tiny_model(classes=5).build().eval()
    model.initialise(0)
    model.heads["after"] = Spy()
    outputs = model(tiny_batch(TEXTS)._replace(image=None))
    assert outputs.logits == {}
    assert list(outputs.scale) == ["contrastive"]


# ------------------------------------------------------------------------------------------------- temperature


def head(log_scale: float) -> ContrastiveHead:
    built = ContrastiveHeadSpec(0.07, 0.01).build({}, Shared({}, {}))
    with torch.no_grad():
        built.log_scale.fill_(log_scale)
    return built


def gradient(built: ContrastiveHead, direction: float) -> float:
    """Of ``direction × scale``: positive wants it lower."""
    (found,) = torch.autograd.grad((direction * built.scale).sum(), built.log_scale)
    return found.item()


@pytest.mark.parametrize("past", [0.0, 1e-3, 0.5, 90.0])
def test_the_scale_is_bounded(past: float) -> None:
    built = head(LIMIT + past)
    assert built.scale.shape == (1,)
    assert built.scale.item() == pytest.approx(100, rel=1e-6)
    made = built(Outputs.empty(), Batch((), {}))
    assert torch.equal(made.scale, built.scale)
    assert built.log_scale.item() == pytest.approx(LIMIT + past), "forward leaves the parameter as it is"


def test_the_gradient_below_the_limit_is_that_of_exp() -> None:
    for log_scale in (0.0, 2.5, LIMIT - 0.01):
        for direction in (-3.0, 3.0):
            expected = direction * math.exp(log_scale)
            assert gradient(head(log_scale), direction) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("past", [1e-3, 0.5, 90.0])
def test_past_the_limit_only_the_way_back_has_a_gradient(past: float) -> None:
    assert gradient(head(LIMIT + past), 3.0) == pytest.approx(300, rel=1e-5), "as large as at the limit"
    assert gradient(head(LIMIT + past), -3.0) == 0
    assert math.isnan(gradient(head(LIMIT + past), float("nan"))), "a loss that diverged is not hidden"


@pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.AdamW])
def test_a_temperature_past_its_floor_comes_back(optimizer: type[torch.optim.SGD] | type[torch.optim.AdamW]) -> None:
    built = head(LIMIT + 0.5)
    steps = optimizer(built.parameters(), lr=1e-3 if optimizer is torch.optim.SGD else 0.05)
    for _ in range(60):
        steps.zero_grad()
        built.scale.sum().backward()
        steps.step()
    assert built.scale.item() < 50


@pytest.mark.parametrize("start", [LIMIT, LIMIT + 0.5])
def test_a_temperature_at_its_floor_stays_when_it_is_pushed_on(start: float) -> None:
    built = head(start)
    steps = torch.optim.AdamW(built.parameters(), lr=0.05, weight_decay=0)
    for _ in range(60):
        steps.zero_grad()
        (-built.scale).sum().backward()
        steps.step()
    assert built.log_scale.item() == pytest.approx(max(start, LIMIT), abs=1e-6)
    assert built.scale.item() == pytest.approx(100, rel=1e-6)


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")  # Dynamo's own, PyTorch 2.11
def test_the_bound_holds_in_a_compiled_pass_and_through_the_model() -> None:
    spec = dataclasses.replace(tiny_model(), heads={"c": ContrastiveHeadSpec(0.05, 0.02)})
    model = spec.build()
    model.initialise(0)
    parameter = model.heads["c"].log_scale
    assert isinstance(parameter, nn.Parameter)
    with torch.no_grad():
        parameter.fill_(100.0)
    scale: Tensor = model(tiny_batch(TEXTS)).scale["c"]
    assert scale.item() == pytest.approx(50, rel=1e-6)
    scale.sum().backward()
    assert parameter.grad is not None
    assert parameter.grad.item() == pytest.approx(50, rel=1e-5)
    built = head(LIMIT + 1)
    compiled = torch.compile(lambda: built.scale, backend="eager", fullgraph=True)
    assert torch.equal(compiled(), built.scale)


def test_without_a_bound_the_scale_is_that_of_its_parameter() -> None:
    built = ContrastiveHeadSpec(0.1, None).build({}, Shared({}, {}))
    assert built.scale.item() == pytest.approx(10, rel=1e-6)
    with torch.no_grad():
        built.log_scale.fill_(LIMIT + 2)
    assert built.scale.item() == pytest.approx(100 * math.exp(2), rel=1e-5)
    assert gradient(built, -3.0) == pytest.approx(-300 * math.exp(2), rel=1e-5), "both ways"


def test_a_bias_is_there_where_it_is_asked_for() -> None:
    without = ContrastiveHeadSpec().build({}, Shared({}, {}))
    built = ContrastiveHeadSpec(0.1, None, -10.0).build({}, Shared({}, {}))
    assert [name for name, _ in without.named_parameters()] == ["log_scale"]
    assert without(Outputs.empty(), Batch((), {})).bias is None
    model = dataclasses.replace(tiny_model(), heads={"c": ContrastiveHeadSpec(bias=-10.0)}).build()
    model.initialise(0)
    outputs = model(tiny_batch(TEXTS))
    assert outputs.bias["c"].tolist() == [-10.0]
    outputs.bias["c"].sum().backward()
    assert {name for name, p in model.named_parameters() if p.grad is not None} == {"heads.c.bias"}
    with torch.device("meta"):
        meta = ContrastiveHeadSpec(bias=-10.0).build({}, Shared({}, {}))
    meta.to_empty(device="cpu").reset_parameters()
    assert torch.equal(meta.bias, built.bias)
