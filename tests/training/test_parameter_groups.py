"""What decays, what moves at a rate of its own, and what a run's table says of it."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest
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
from mmformer.nn.sharing import SharingSpec
from mmformer.nn.stack import StackSpec
from mmformer.tokenizers.image import ConvolutionalStemSpec
from mmformer.tokenizers.text import TextTokensSpec
from mmformer.training.optimizers.adamw import AdamWSpec
from mmformer.training.parameter_groups import GroupSpec, decays, parameter_groups, parameter_table, settings


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
    decayed, free = sorted(parameter_groups(settings(model, 0.3)), key=lambda group: -float(group["weight_decay"]))
    assert decayed["weight_decay"] == 0.3
    assert free["weight_decay"] == 0.0
    held = [id(p) for group in (decayed, free) for p in group["params"]]
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
    assert len(parameter_groups(settings(nn.Linear(2, 2, bias=False), 0.1))) == 1
    assert len(parameter_groups(settings(nn.LayerNorm(2), 0.1))) == 1


def test_the_table_says_how_each_parameter_moves() -> None:
    model = tiny_model().build()
    spec = AdamWSpec(0.01, 0.2, groups=(GroupSpec("heads.*", lr_scale=0.1),))
    table = parameter_table(model, spec.lr, spec.settings(model))
    header, *rows = [line.split("\t") for line in table.splitlines()]
    assert header == ["parameter", "shape", "size", "lr", "weight_decay", "trains", "loaded"]
    assert [row[0] for row in rows] == [name for name, _, _ in decays(model)]
    assert {tuple(row[5:]) for row in rows} == {("yes", "no")}
    found = {name: (shape, int(size), float(lr), float(decay)) for name, shape, size, lr, decay, *_ in rows}
    assert found["encoders.text.projection.weight"] == ("12x16", 192, 0.01, 0.2)
    assert found["heads.contrastive.log_scale"] == ("1", 1, 0.001, 0.0)
    assert sum(size for _, size, *_ in found.values()) == sum(p.numel() for p in model.parameters())


# ------------------------------------------------------------------------------------------------- rates


def scales(model: Model, spec: AdamWSpec) -> dict[str, float]:
    """The rate of each parameter, as the optimizer has it."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    groups = spec.build(model).param_groups
    return {names[id(p)]: group["lr_scale"] for group in groups for p in group["params"]}


def test_layers_move_the_less_the_deeper_they_are() -> None:
    """As in BEiT: the whole rate after the stack, a share of it in the last layer, and so on down to the tokenizer."""
    model = tiny_model(classes=3, caption=True).build()
    found = scales(model, AdamWSpec(layer_decay=0.5))
    stacks = {"image": 2, "text": 1, "caption": 1}
    expected = {f"stacks.{name}.layers.{n}.": 0.5 ** (d - n) for name, d in stacks.items() for n in range(d)}
    expected |= {f"encoders.{name}.tokenizer.": 0.5 ** (stacks[name] + 1) for name in ("image", "text")}
    expected |= {"decoders.caption.tokenizer.": 0.25, "heads.": 1.0, "encoders.text.projection": 1.0}
    expected |= {f"stacks.{name}.norm.": 1.0 for name in stacks}
    for start, scale in expected.items():
        own = {value for name, value in found.items() if name.startswith(start)}
        assert own == {scale}, start
    assert set(scales(model, AdamWSpec()).values()) == {1.0}
    below = scales(everything(), AdamWSpec(layer_decay=0.1))
    for name in ("stacks.trunk.input_norm.weight", "encoders.text.special"):
        assert below[name] == pytest.approx(0.01), name
    assert {round(s, 9) for name, s in below.items() if name.startswith("stacks.trunk.position.")} == {0.01}
    assert below["encoders.image.pool.query"] == 1.0


def test_a_layer_that_is_applied_several_times_counts_once() -> None:
    model = tiny_model()
    shared = dataclasses.replace(model.stacks["image"], depth=6, sharing=SharingSpec(2))
    built = dataclasses.replace(model, stacks={**model.stacks, "image": shared}).build()
    found = scales(built, AdamWSpec(layer_decay=0.5))
    expected = {"stacks.image.layers.1.": 0.5, "stacks.image.layers.0.": 0.25, "encoders.image.tokenizer.": 0.125}
    for start, scale in expected.items():
        assert {value for name, value in found.items() if name.startswith(start)} == {scale}, start


def test_a_pattern_gives_a_rate_and_a_decay() -> None:
    model = tiny_model().build()
    groups = (
        GroupSpec("stacks.text.layers.0.mixer.*", lr_scale=0.5),
        GroupSpec("stacks.text.*", weight_decay=0.7),
        GroupSpec("*.tokenizer.*", lr_scale=3, weight_decay=0.0),
    )
    found = {each.name: each for each in settings(model, 0.2, layer_decay=0.5, groups=groups)}
    plain = {each.name: each for each in settings(model, 0.2, layer_decay=0.5)}
    for name, own in found.items():
        before = plain[name]
        if name.startswith("stacks.text.layers.0.mixer."):  # the first that fits
            assert (own.lr_scale, own.weight_decay) == (before.lr_scale / 2, before.weight_decay)
        elif name.startswith("stacks.text."):
            assert (own.lr_scale, own.weight_decay) == (before.lr_scale, 0.7), "biases too: they were named"
        elif ".tokenizer." in name:
            assert (own.lr_scale, own.weight_decay) == (before.lr_scale * 3, 0.0)
        else:
            assert own[2:] == before[2:]


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        (
            (GroupSpec("encoders.imge.*", 2),),
            r"optimizer\.groups: no parameter .* like 'encoders\.imge\.\*'\. Did you mean",
        ),
        (
            (GroupSpec("stacks.*", 2), GroupSpec("stacks.text.*", 3)),
            r"all that 'stacks\.text\.\*' fits is in the groups",
        ),
    ],
)
def test_a_group_that_nothing_is_in_is_refused(groups: tuple[GroupSpec, ...], message: str) -> None:
    with pytest.raises(InputError, match=message):
        AdamWSpec(groups=groups).build(tiny_model().build())


REFUSED: list[tuple[Any, str]] = [
    (lambda: GroupSpec("*", lr_scale=0.0), "GroupSpec.lr_scale must be positive"),
    (lambda: GroupSpec("*", weight_decay=-1.0), "GroupSpec.weight_decay must be None or at least 0"),
    (lambda: GroupSpec("*"), "GroupSpec.lr_scale must be other than 1 where weight_decay is null"),
    (lambda: AdamWSpec(layer_decay=0.0), "AdamWSpec.layer_decay must be above 0 and at most 1"),
    (lambda: AdamWSpec(layer_decay=math.nan), "AdamWSpec.layer_decay must be above 0 and at most 1"),
]


@pytest.mark.parametrize(("make", "message"), REFUSED, ids=lambda value: value if isinstance(value, str) else "")
def test_values_out_of_range_are_refused(make: Any, message: str) -> None:
    with pytest.raises(InputError) as caught:
        make()
    assert str(caught.value).startswith(message)
