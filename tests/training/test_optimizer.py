"""What decays and what does not, and that every field acts."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest
import torch
from tiny import VOCABULARY, tiny_model
from torch import nn

from mmformer.errors import InputError
from mmformer.models.encoder import EncoderSpec
from mmformer.models.head import ClassificationHeadSpec, ContrastiveHeadSpec
from mmformer.models.model import Model, ModelSpec
from mmformer.nn.attention import AttentionSpec
from mmformer.nn.feedforward import SwiGLUFeedForwardSpec
from mmformer.nn.layer import LayerSpec
from mmformer.nn.norm import RMSNormSpec
from mmformer.nn.pool import AttentionPoolSpec
from mmformer.nn.position import LearnedPositionSpec
from mmformer.nn.stack import StackSpec
from mmformer.tokenizers.image import ConvolutionalStemSpec
from mmformer.tokenizers.text import TextTokensSpec
from mmformer.training.optimizer import (
    AdamWSpec,
    OptimizerSpec,
    decays,
    parameter_groups,
    parameter_table,
)


def everything() -> Model:
    """A model with every kind of parameter that there is."""
    layer = LayerSpec(AttentionSpec(2, qk_norm=True), SwiGLUFeedForwardSpec(), norm=RMSNormSpec(), layer_scale=0.1)
    return ModelSpec(
        stacks={"trunk": StackSpec(16, 1, layer, LearnedPositionSpec((0, 1, 2), (16, 4, 4)), input_norm=True)},
        encoders={
            "image": EncoderSpec(ConvolutionalStemSpec(channels=(4,)), "trunk", AttentionPoolSpec(AttentionSpec(2))),
            "text": EncoderSpec(
                TextTokensSpec(VOCABULARY, context_length=16), "trunk", embedding=8, class_token=True, registers=2
            ),
        },
        heads={"contrastive": ContrastiveHeadSpec(), "colour": ClassificationHeadSpec("image", 3)},
    ).build()


def test_matrices_decay_and_nothing_else() -> None:
    model = everything()
    listed = {name: decay for name, _, decay in decays(model)}
    assert listed.keys() == dict(model.named_parameters()).keys()
    decayed = {name for name, decay in listed.items() if decay}
    assert decayed == {
        "stacks.trunk.layers.0.mixer.qkv.weight",
        "stacks.trunk.layers.0.mixer.out.weight",
        "stacks.trunk.layers.0.feedforward.gate_up.weight",
        "stacks.trunk.layers.0.feedforward.down.weight",
        "encoders.image.tokenizer.convolutions.0.weight",
        "encoders.image.tokenizer.convolutions.1.weight",
        "encoders.image.pool.attention.q.weight",
        "encoders.image.pool.attention.kv.weight",
        "encoders.image.pool.attention.out.weight",
        "encoders.text.projection.weight",
        "heads.colour.projection.weight",
    }
    free = {name: p for name, p in model.named_parameters() if name not in decayed}
    wide = {name for name, p in free.items() if p.ndim > 1}
    tables = {name for name in wide if name.startswith("stacks.trunk.position.")}
    assert len(tables) >= 1, "position tables"
    assert wide - tables == {
        "encoders.text.tokenizer.weight",
        "encoders.text.special",
        "encoders.image.pool.query",
    }
    assert "heads.contrastive.log_scale" in free


def test_groups_hold_every_parameter_once() -> None:
    model = everything()
    decayed, free = parameter_groups(model, 0.3)
    assert decayed["weight_decay"] == 0.3
    assert free["weight_decay"] == 0.0
    held = [id(p) for group in (decayed, free) for p in group["params"]]  # type: ignore[attr-defined]
    assert sorted(held) == sorted(map(id, model.parameters()))


def test_frozen_parameters_are_left_out() -> None:
    model = everything()
    frozen = model.encoders["text"]
    for parameter in frozen.parameters():
        parameter.requires_grad_(False)
    names = [name for name, _, _ in decays(model)]
    assert names
    assert not any(name.startswith("encoders.text") for name in names)
    optimizer = AdamWSpec().build(model)
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    assert not held & {id(p) for p in frozen.parameters()}


def test_a_shared_parameter_is_held_once() -> None:
    model = nn.Module()
    model.a, model.b = nn.Linear(3, 3), nn.Linear(3, 3)
    model.b.weight = model.a.weight
    names = [name for name, _, _ in decays(model)]
    assert names == ["a.weight", "a.bias", "b.bias"]
    AdamWSpec().build(model)


def test_an_empty_group_is_left_out() -> None:
    assert len(parameter_groups(nn.Linear(2, 2, bias=False), 0.1)) == 1
    assert len(parameter_groups(nn.LayerNorm(2), 0.1)) == 1


def test_the_table_says_what_decays() -> None:
    model = tiny_model().build()
    header, *rows = [line.split("\t") for line in parameter_table(model, 0.2).splitlines()]
    assert header == ["parameter", "shape", "size", "weight_decay", "trains", "loaded"]
    assert [row[0] for row in rows] == [name for name, _, _ in decays(model)]
    assert {tuple(row[4:]) for row in rows} == {("yes", "no")}
    table = {name: (shape, int(size), float(decay)) for name, shape, size, decay, *_ in rows}
    assert table["encoders.text.projection.weight"] == ("12x16", 192, 0.2)
    assert table["heads.contrastive.log_scale"] == ("1", 1, 0.0)
    assert sum(size for _, size, _ in table.values()) == sum(p.numel() for p in model.parameters())


# ------------------------------------------------------------------------------------------------- AdamW


def stepped(spec: OptimizerSpec, steps: int = 3) -> list[float]:
    """A matrix and a gain after some steps on a fixed gradient."""
    layer = nn.Linear(1, 1)
    with torch.no_grad():
        layer.weight.fill_(2.0)
        layer.bias.fill_(2.0)
    optimizer = spec.build(layer)
    for step in range(steps):
        for parameter in layer.parameters():
            parameter.grad = torch.full_like(parameter, 0.1 * (step + 1))
        optimizer.step()
    return [layer.weight.item(), layer.bias.item()]


def by_hand(spec: AdamWSpec, decay: float, steps: int = 3) -> float:
    """AdamW as Loshchilov and Hutter write it."""
    value, first, second = 2.0, 0.0, 0.0
    for step in range(1, steps + 1):
        gradient = 0.1 * step
        first = spec.betas[0] * first + (1 - spec.betas[0]) * gradient
        second = spec.betas[1] * second + (1 - spec.betas[1]) * gradient**2
        unbiased = first / (1 - spec.betas[0] ** step), second / (1 - spec.betas[1] ** step)
        value -= spec.lr * (decay * value + unbiased[0] / (math.sqrt(unbiased[1]) + spec.eps))
    return value


@pytest.mark.parametrize(
    "spec",
    [
        AdamWSpec(0.01, 0.5),
        AdamWSpec(0.02, 0.5),
        AdamWSpec(0.01, 0.1),
        AdamWSpec(0.01, 0.5, (0.5, 0.98)),
        AdamWSpec(0.01, 0.5, (0.9, 0.6)),
        AdamWSpec(0.01, 0.5, eps=0.3),
        AdamWSpec(0.01, 0.0),
    ],
    ids=str,
)
def test_adamw_is_adamw(spec: AdamWSpec) -> None:
    weight, bias = stepped(spec)
    assert math.isclose(weight, by_hand(spec, spec.weight_decay), rel_tol=1e-6)
    assert math.isclose(bias, by_hand(spec, 0.0), rel_tol=1e-6), "a bias does not decay"


def test_every_field_of_adamw_acts() -> None:
    base = AdamWSpec(0.01, 0.5)
    changes: list[dict[str, Any]] = [{"lr": 0.02}, {"weight_decay": 0.1}, {"betas": (0.5, 0.98)}, {"eps": 0.3}]
    assert {name for change in changes for name in change} == {field.name for field in dataclasses.fields(AdamWSpec)}
    for change in changes:
        assert stepped(dataclasses.replace(base, **change)) != stepped(base)


REFUSED: list[tuple[Any, str]] = [
    (lambda: AdamWSpec(lr=0.0), "AdamWSpec.lr must be positive, but is 0.0."),
    (lambda: AdamWSpec(lr=math.nan), "AdamWSpec.lr must be positive, but is nan."),
    (lambda: AdamWSpec(weight_decay=-0.1), "AdamWSpec.weight_decay must be at least 0"),
    (lambda: AdamWSpec(betas=(1.0, 0.9)), "AdamWSpec.betas must be at least 0 and below 1 each"),
    (lambda: AdamWSpec(eps=0.0), "AdamWSpec.eps must be positive"),
]


@pytest.mark.parametrize(("make", "message"), REFUSED, ids=lambda value: value if isinstance(value, str) else "")
def test_values_out_of_range_are_refused(make: Any, message: str) -> None:
    with pytest.raises(InputError) as caught:
        make()
    assert str(caught.value).startswith(message)
