"""Maps that pack their weights once so many rows have met them: what the module makes, and when, and what is left."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from bundles import pixels, save_dual
from contract import make_inputs, make_stack
from test_reading import READ
from test_stack import CASE
from torch import nn
from torch.testing import assert_close
from torch.utils.flop_counter import FlopCounterMode

import mmformer
from mmformer.models.model import Model
from mmformer.nn import feedforward, prepacked
from mmformer.nn.feedforward import GELUFeedForwardSpec
from mmformer.nn.patient import WORTH, PatientLinear, patient

pytestmark = pytest.mark.skipif(
    not torch.backends.mkldnn.is_available(),  # type: ignore[no-untyped-call]
    reason="PyTorch without oneDNN",
)

in_bfloat16 = pytest.mark.skipif(
    not (torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()),  # type: ignore[no-untyped-call]
    reason="the kernel is for CPUs that compute in bfloat16",
)
MANY = WORTH[torch.float32]


@pytest.fixture(autouse=True)
def processor(monkeypatch: pytest.MonkeyPatch) -> None:
    """One on which oneDNN has float32's products, too."""
    monkeypatch.setattr(prepacked, "_processor", lambda: "other")


def maps(part: nn.Module) -> list[PatientLinear]:
    return [each for each in part.modules() if isinstance(each, PatientLinear)]


@pytest.mark.parametrize("dtype", [torch.float32, pytest.param(torch.bfloat16, marks=in_bfloat16)])
@pytest.mark.parametrize("bias", [False, True])
@torch.inference_mode()
def test_a_map_is_packed_when_so_many_rows_have_met_it(dtype: torch.dtype, bias: bool) -> None:
    linear, x = nn.Linear(24, 40, bias=bias, dtype=dtype), torch.randn(WORTH[dtype] // 2, 2, 24, dtype=dtype)
    made = patient(linear)
    assert isinstance(made, PatientLinear)
    assert made.weight is linear.weight
    tolerance = 1e-6 if dtype == torch.float32 else 1e-2
    assert torch.equal(made(x[1:]), linear(x[1:]))
    assert made.packed is None
    assert made.met == WORTH[dtype] - 2
    for rows in (x[:1], x, x[0, :1], x[:0]):
        assert_close(made(rows), linear(rows), rtol=tolerance, atol=tolerance)
        assert made.packed is not None, "with those that make them enough, too"


def test_a_stack_of_them_is_the_stack_and_shares_its_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(WORTH, torch.float32, 48)
    stack, inputs = make_stack(CASE.spec, torch.float32), make_inputs(CASE, torch.float32)
    with torch.no_grad():
        made = patient(stack)
        assert len(maps(made)) == sum(type(part) is nn.Linear for part in stack.modules())
        assert not maps(stack)
        assert {id(value) for value in made.parameters()} == {id(value) for value in stack.parameters()}
        assert list(made.state_dict()) == list(stack.state_dict())
        expected = inputs(stack)
        for _ in range(6):  # a memory has less rows than tokens have
            assert_close(inputs(made), expected, rtol=1e-5, atol=1e-5)
    assert all(each.packed is not None for each in maps(made))


def test_a_gradient_goes_through_the_weights_as_they_are() -> None:
    linear, x = nn.Linear(24, 40), torch.randn(MANY, 24)
    with torch.no_grad():
        made = patient(linear)
        made(x)
    assert made.packed is not None
    (gradient,) = torch.autograd.grad(made(x).sum(), [linear.weight])
    assert_close(gradient, x.sum(0).expand(40, 24), rtol=1e-5, atol=1e-4)


@in_bfloat16
@torch.inference_mode()
def test_in_another_precision_than_it_was_packed_in() -> None:
    linear, x = nn.Linear(24, 40), torch.randn(WORTH[torch.bfloat16], 24)
    made = patient(linear)
    with torch.autocast("cpu", torch.bfloat16):
        assert_close(made(x), linear(x), rtol=1e-2, atol=1e-2)
    assert made.packed is not None
    assert made.packed.packed.dtype == torch.bfloat16
    assert torch.equal(made(x), linear(x)), "not rounded"
    with pytest.raises(RuntimeError, match="dtype"):
        made(x.bfloat16())


@pytest.mark.parametrize("approximate", ["none", "tanh"])
@torch.inference_mode()
def test_a_feedforward_is_fused_before_and_after(approximate: str, monkeypatch: pytest.MonkeyPatch) -> None:
    plain, x = GELUFeedForwardSpec(approximate=approximate).build(32), torch.randn(2, MANY // 4, 32)  # type: ignore[arg-type]
    for part in plain.modules():
        if isinstance(part, nn.Linear):
            part.reset_parameters()
    made, fused, expected = patient(plain), list[type](), plain(x)[0]
    kernel = feedforward.linear_gelu
    monkeypatch.setattr(feedforward, "linear_gelu", lambda *given: (fused.append(type(given[1])), kernel(*given))[1])
    for _ in range(2):
        assert_close(made(x)[0], expected, rtol=1e-5, atol=1e-5)
    assert fused == [nn.Linear, prepacked.PackedLinear]


@torch.inference_mode()
def test_a_last_layers_queries_are_still_asked_alone() -> None:
    free = {"order": "full", "position": "nowhere", "cross": "none", "padded": False, "packed": False}
    case = dataclasses.replace(CASE, mixer="attention", **free)
    stack, inputs, joined = make_stack(case.spec, torch.float32), make_inputs(case, torch.float32), list[int]()
    expected, made = inputs.run(stack, read=READ).tokens.x, patient(stack)
    made.layers[-1].mixer.out.register_forward_pre_hook(lambda _, given: joined.append(given[0][..., 0].numel()))
    assert_close(inputs.run(made, read=READ).tokens.x, expected, rtol=1e-5, atol=1e-5)
    assert joined == [READ.numel()]


@pytest.mark.parametrize(
    "change",
    [
        lambda linear, patch: patch.setattr(prepacked, "_processor", lambda: "intel"),
        lambda linear, patch: linear.register_forward_hook(lambda *called: None),
        lambda linear, patch: linear.double(),
        lambda linear, patch: linear.to("meta"),
        lambda linear, patch: patch.setattr(prepacked, "MOST", 4 * 24 * 40 - 1),
        lambda linear, patch: FlopCounterMode(display=False).__enter__(),
    ],
    ids=["intel", "hook", "float64", "meta", "large", "counted"],
)
def test_where_none_would_pack_the_module_is_itself(
    change: Callable[[nn.Linear, pytest.MonkeyPatch], object], monkeypatch: pytest.MonkeyPatch
) -> None:
    linear = nn.Linear(24, 40)
    with torch.no_grad():
        assert patient(linear) is not linear
        made = change(linear, monkeypatch)
        assert patient(linear) is linear
        if isinstance(made, FlopCounterMode):
            made.__exit__(None, None, None)


def test_where_a_gradient_may_be_wanted_the_module_is_itself() -> None:
    linear = nn.Linear(24, 40)
    assert patient(linear) is linear


def test_a_predictor_packs_within_a_call_and_sees_weights_that_changed_before_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    predictor = mmformer.load(save_dual(tmp_path / "bundle"), batch_size=4)
    pictures, made = [pixels(seed) for seed in range(12)], list[nn.Module]()
    expected = predictor.embed(image=pictures)
    monkeypatch.setitem(WORTH, torch.float32, 16)
    monkeypatch.setattr(Model, "for_many", lambda model: (made.append(patient(model)), made[-1])[1])
    assert_close(predictor.embed(image=pictures), expected, rtol=1e-5, atol=1e-5)
    assert any(each.packed is not None for each in maps(made[0]))
    assert not maps(predictor.model)
    with torch.no_grad():
        for value in predictor.model.stacks["image"].parameters():
            value.mul_(-0.5)
    changed = predictor.embed(image=pictures)
    assert (changed - expected).abs().max() > 0.1
    fresh = predictor.embed(image=pictures[:1])
    assert_close(changed[:1], fresh, rtol=1e-5, atol=1e-5)


def test_prompts_of_labels_go_through_packed_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    predictor, made = mmformer.load(save_dual(tmp_path / "bundle"), batch_size=2), list[nn.Module]()
    labels = ["red", "a very light blue", "green", "black"]
    expected = predictor.classify(pixels(0), labels)
    monkeypatch.setitem(WORTH, torch.float32, 16)
    monkeypatch.setattr(Model, "for_many", lambda model: (made.append(patient(model)), made[-1])[1])
    found = predictor.classify(pixels(0), labels)
    assert any(each.packed is not None for each in maps(made[0].stacks["text"]))  # type: ignore[index]
    assert list(found) == list(expected)
    for label in labels:
        assert found[label] == pytest.approx(expected[label], abs=1e-5)
