"""Every optimizer against a slow reading of its paper, field by field; what it saves goes on to the bit."""

from __future__ import annotations

import dataclasses
import io
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from optimizer_references import REFERENCES
from torch import nn

from mmformer.errors import InputError
from mmformer.nn.grouped import GroupedLinear
from mmformer.nn.linformer import LinformerSpec
from mmformer.training.optimizers.adafactor import AdafactorSpec
from mmformer.training.optimizers.adamw import AdamWSpec
from mmformer.training.optimizers.lamb import LAMBSpec
from mmformer.training.optimizers.lion import LionSpec
from mmformer.training.optimizers.muon import MuonSpec, orthogonal
from mmformer.training.optimizers.optimizer import AveragingOptimizer, OptimizerSpec
from mmformer.training.optimizers.schedule_free import ScheduleFreeAdamWSpec
from mmformer.training.parameter_groups import GroupSpec

STEPS = 4


def model() -> nn.Linear:
    """A matrix, which decays, and a bias, which does not."""
    torch.manual_seed(0)
    return nn.Linear(7, 5)


def gradients(step: int, layer: nn.Module) -> None:
    """Made up, of very different sizes by place and step."""
    draw = torch.Generator().manual_seed(step)
    for parameter in layer.parameters():
        noise = torch.randn(parameter.shape, generator=draw)
        parameter.grad = noise * torch.linspace(0.1, 3, parameter.numel()).view(parameter.shape) / (step + 1)


def run(spec: OptimizerSpec, steps: int = STEPS) -> tuple[nn.Linear, torch.optim.Optimizer]:
    layer = model()
    optimizer = spec.build(layer)
    for step in range(steps):
        update(spec, optimizer, layer, step)
    return layer, optimizer


def update(spec: OptimizerSpec, optimizer: torch.optim.Optimizer, layer: nn.Module, step: int) -> None:
    gradients(step, layer)
    for group in optimizer.param_groups:
        group["lr"] = rate(spec, step) * group["lr_scale"]
    optimizer.step()


def rate(spec: OptimizerSpec, step: int) -> float:
    """Not constant, as schedules are not."""
    return spec.lr * (1 + step) / STEPS


def values(layer: nn.Module) -> dict[str, np.ndarray]:
    return {name: parameter.detach().double().numpy() for name, parameter in layer.named_parameters()}


BASES: list[OptimizerSpec] = [
    AdamWSpec(0.01, 0.5),
    LionSpec(0.01, 0.5),
    LAMBSpec(0.01, 0.5),
    AdafactorSpec(0.01, 0.5, least_factored=3),
    MuonSpec(0.01, 0.5),
    ScheduleFreeAdamWSpec(0.01, 0.5),
]
CHANGES: dict[type[OptimizerSpec], dict[str, Any]] = {
    AdamWSpec: {"betas": (0.5, 0.6), "eps": 0.3},
    LionSpec: {"betas": (0.5, 0.6)},
    LAMBSpec: {"betas": (0.5, 0.6), "eps": 0.3},
    AdafactorSpec: {"momentum": 0.5, "decay": 0.5, "most": 0.3, "clip": 0.2, "least_factored": 6},
    MuonSpec: {"momentum": 0.5, "iterations": 3, "betas": (0.5, 0.6), "eps": 0.3},
    ScheduleFreeAdamWSpec: {"betas": (0.5, 0.6), "eps": 0.3},
}
COMMON: dict[str, Any] = {"lr": 0.02, "weight_decay": 0.1, "groups": (GroupSpec("bias", 0.5, weight_decay=0.2),)}
ALL = BASES + [
    dataclasses.replace(base, **{name: value})
    for base in BASES
    for name, value in {**COMMON, **CHANGES[type(base)]}.items()
]
ALL += [AdafactorSpec(0.01, 0.5, momentum=None), AdafactorSpec(0.01, 0.5, clip=None), LionSpec(0.01, 0.0)]


@pytest.mark.parametrize("spec", ALL, ids=str)
def test_it_is_its_papers(spec: OptimizerSpec) -> None:
    layer, optimizer = run(spec)
    recorded = []
    for step in range(STEPS):
        gradients(step, layer)
        recorded.append({name: p.grad.double().numpy() for name, p in layer.named_parameters() if p.grad is not None})
    named = bool(spec.groups)
    found = values(layer)
    for name, first in values(model()).items():
        decay = spec.weight_decay if name == "weight" else 0.2 if named else 0.0
        scale = 0.5 if named and name == "bias" else 1.0
        steps = [(rate(spec, step) * scale, recorded[step][name]) for step in range(STEPS)]
        expected = REFERENCES[type(spec)](spec, first, steps, decay)
        # Adafactor's mean of steps is kept in bfloat16, of eight bits.
        error = 1e-2 if getattr(spec, "momentum", None) and isinstance(spec, AdafactorSpec) else 1e-5
        assert np.allclose(found[name] - first, expected.trained - first, rtol=error, atol=error * 0.02), name
        if isinstance(optimizer, AveragingOptimizer):
            with optimizer.averaged(layer):
                assert np.allclose(values(layer)[name], expected.kept, rtol=1e-5, atol=1e-6), name
            assert np.array_equal(values(layer)[name], found[name]), "and back, to the bit"


@pytest.mark.parametrize("base", BASES, ids=lambda spec: type(spec).__name__)
def test_every_field_acts(base: OptimizerSpec) -> None:
    changes = {**COMMON, **CHANGES[type(base)]}
    fields = {field.name for field in dataclasses.fields(base)}
    assert changes.keys() == fields - {"layer_decay"}, "layer_decay needs a model that has layers"
    before = values(run(base)[0])
    for name, value in changes.items():
        after = values(run(dataclasses.replace(base, **{name: value}))[0])
        assert any(not np.allclose(before[key], after[key], rtol=1e-4) for key in before), name


@pytest.mark.parametrize("spec", BASES, ids=lambda spec: type(spec).__name__)
def test_what_is_saved_goes_on_to_the_bit(spec: OptimizerSpec) -> None:
    whole, _ = run(spec, STEPS)
    layer, optimizer = run(spec, 2)
    file = io.BytesIO()
    torch.save((layer.state_dict(), optimizer.state_dict()), file)
    file.seek(0)
    weights, state = torch.load(file, weights_only=True)
    other = nn.Linear(7, 5)
    other.load_state_dict(weights)
    again = spec.build(other)
    again.load_state_dict(state)
    for step in range(2, STEPS):
        update(spec, again, other, step)
    assert all(np.array_equal(value, values(other)[name]) for name, value in values(whole).items())


@pytest.mark.parametrize("spec", BASES, ids=lambda spec: type(spec).__name__)
def test_what_has_no_gradient_stays(spec: OptimizerSpec) -> None:
    layer = model()
    optimizer = spec.build(layer)
    gradients(0, layer)
    layer.weight.grad = None
    before = layer.weight.detach().clone()
    optimizer.step()
    assert torch.equal(layer.weight, before)
    assert layer.weight not in optimizer.state or not optimizer.state[layer.weight]
    assert not np.array_equal(values(layer)["bias"], values(model())["bias"])
    if isinstance(optimizer, AveragingOptimizer):
        with optimizer.averaged(layer):
            assert torch.equal(layer.weight, before), "what was never moved is its own average"


@pytest.mark.parametrize("shape", [(5, 5), (3, 9), (12, 4)])
def test_orthogonal_is_nearly_so(shape: tuple[int, int]) -> None:
    torch.manual_seed(1)
    x = torch.randn(shape)
    left, _, right = torch.linalg.svd(x, full_matrices=False)
    found = orthogonal(x, 5)
    assert torch.linalg.svdvals(found).sub(0.95).abs().max() < 0.3
    assert torch.nn.functional.cosine_similarity(found.flatten(), (left @ right).flatten(), dim=0) > 0.97
    assert torch.isfinite(orthogonal(torch.zeros(shape), 5)).all(), "a gradient may be nothing"


def test_a_kernel_is_a_matrix_to_muon() -> None:
    torch.manual_seed(0)
    kernel, matrix = nn.Conv2d(2, 3, 2, bias=False), nn.Linear(8, 3, bias=False)
    with torch.no_grad():
        matrix.weight.copy_(kernel.weight.flatten(1))
    for layer in (kernel, matrix):
        optimizer = MuonSpec(0.1).build(layer)
        layer.weight.grad = torch.sin(torch.arange(24.0)).view(layer.weight.shape)
        optimizer.step()
    assert torch.allclose(kernel.weight.flatten(1), matrix.weight)


def test_stacked_weights_are_a_matrix_each_to_muon() -> None:
    torch.manual_seed(0)
    grouped, single = GroupedLinear(3, 4, 6, bias=True), [nn.Linear(4, 6) for _ in range(3)]
    for index, linear in enumerate(single):
        linear.weight.data = grouped.weight.data[index].clone()
        linear.bias.data = grouped.bias.data[index].clone()  # type: ignore[union-attr]
    for step in range(3):
        gradient = torch.randn(3, 6, 4)
        for index, linear in enumerate(single):
            linear.weight.grad = gradient[index].clone()
        grouped.weight.grad = gradient
        if step == 0:
            optimizers = [MuonSpec(0.1).build(module) for module in (grouped, *single)]
        for optimizer in optimizers:
            optimizer.step()
    for index, linear in enumerate(single):
        assert torch.allclose(grouped.weight[index], linear.weight, atol=1e-6)


@pytest.mark.parametrize("sharing", ["none", "heads", "keys_and_values"])
def test_linformers_sums_are_a_matrix_for_each_set_to_muon(sharing: str) -> None:
    torch.manual_seed(0)
    mixer = LinformerSpec(heads=2, length=6, projected=3, sharing=sharing).build(4)  # type: ignore[arg-type]
    optimizer = MuonSpec(0.1, 0.0).build(mixer)
    for parameter in mixer.parameters():
        parameter.grad = torch.randn_like(parameter)
    before = mixer.key_sums.detach().clone()
    optimizer.step()
    turned = torch.linalg.svdvals(mixer.key_sums.detach() - before)  # sets projected
    assert bool((turned.amin(-1) > 0.5 * turned.amax(-1)).all())


REFUSED: list[tuple[Callable[[], Any], str]] = [
    (lambda: AdamWSpec(lr=0.0), "AdamWSpec.lr must be positive, but is 0.0."),
    (lambda: AdamWSpec(lr=math.nan), "AdamWSpec.lr must be positive, but is nan."),
    (lambda: AdamWSpec(weight_decay=-0.1), "AdamWSpec.weight_decay must be at least 0"),
    (lambda: AdamWSpec(betas=(1.0, 0.9)), "AdamWSpec.betas must be at least 0 and below 1 each"),
    (lambda: AdamWSpec(eps=0.0), "AdamWSpec.eps must be positive"),
    (lambda: LionSpec(betas=(0.9, -0.1)), "LionSpec.betas must be at least 0 and below 1 each"),
    (lambda: LAMBSpec(betas=(0.9, 1.0)), "LAMBSpec.betas must be at least 0 and below 1 each"),
    (lambda: LAMBSpec(eps=-1.0), "LAMBSpec.eps must be positive"),
    (lambda: AdafactorSpec(momentum=0.0), "AdafactorSpec.momentum must be None, or above 0 and below 1"),
    (lambda: AdafactorSpec(decay=0.0), "AdafactorSpec.decay must be above 0 and at most 1"),
    (lambda: AdafactorSpec(most=1.0), "AdafactorSpec.most must be above 0 and below 1"),
    (lambda: AdafactorSpec(clip=0.0), "AdafactorSpec.clip must be None or positive"),
    (lambda: AdafactorSpec(least_factored=1), "AdafactorSpec.least_factored must be at least 2"),
    (lambda: MuonSpec(momentum=1.0), "MuonSpec.momentum must be at least 0 and below 1"),
    (lambda: MuonSpec(iterations=0), "MuonSpec.iterations must be at least 1"),
    (lambda: MuonSpec(betas=(-0.1, 0.9)), "MuonSpec.betas must be at least 0 and below 1 each"),
    (lambda: MuonSpec(eps=0.0), "MuonSpec.eps must be positive"),
    (lambda: ScheduleFreeAdamWSpec(betas=(0.0, 0.9)), "ScheduleFreeAdamWSpec.betas must be below 1, the first above 0"),
    (lambda: ScheduleFreeAdamWSpec(eps=0.0), "ScheduleFreeAdamWSpec.eps must be positive"),
]


@pytest.mark.parametrize(("make", "message"), REFUSED, ids=lambda value: value if isinstance(value, str) else "")
def test_values_out_of_range_are_refused(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(InputError) as caught:
        make()
    assert str(caught.value).startswith(message)
