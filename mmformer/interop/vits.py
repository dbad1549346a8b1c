"""Vision transformers as transformers names them: what the families of ViT, DeiT, DINOv2, MAE and AST share."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from mmformer.interop.fields import ACTIVATIONS, Field, choice, fixed, same
from mmformer.interop.plain import Data
from mmformer.interop.rules import Rule, joined, viewed
from mmformer.interop.rules import same as named
from mmformer.interop.towers import patches, read_grid, write_grid

STACK, IMAGE = "stacks.image", "encoders.image"
ALONE: Mapping[str, str] = {"": STACK}
_SIZES = {
    "hidden_size": "width",
    "num_hidden_layers": "depth",
    "num_attention_heads": "layer.mixer.heads",
}

DEFAULTS = {
    **{"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "image_size": 224, "patch_size": 16},
    **{"num_channels": 3, "qkv_bias": True, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0},
    "hidden_act": "gelu",
}


def layer_fields(*dropout: str, stacks: Mapping[str, str] = ALONE, norms: Sequence[str] = ()) -> tuple[Field, ...]:
    """What configs say of layers, but for their hidden units.

    Args:
        dropout: where ``hidden_dropout_prob`` goes.
        stacks: each by what stands before the keys that are its own; the others say the same of all.
        norms: those beside the stacks' that have the same eps.
    """
    layers = [f"{stack}.layer" for stack in stacks.values()]
    return (
        *(same(f"{at}{key}", f"{stack}.{path}") for at, stack in stacks.items() for key, path in _SIZES.items()),
        same("layer_norm_eps", *(f"{norm}.eps" for norm in (*(f"{layer}.norm" for layer in layers), *norms))),
        same("attention_probs_dropout_prob", *(f"{layer}.mixer.dropout" for layer in layers)),
        same("hidden_dropout_prob", *dropout),
        fixed("qkv_bias", True),
    )


def hidden_fields(stacks: Mapping[str, str] = ALONE) -> tuple[Field, ...]:
    """Plain hidden units: of each stack how many, and an activation that all have."""
    units = {at: f"{stack}.layer.feedforward" for at, stack in stacks.items()}
    return (
        *(same(f"{at}intermediate_size", f"{each}.hidden_width") for at, each in units.items()),
        choice("hidden_act", ACTIVATIONS, *units.values()),
    )


def fields(*dropout: str, stacks: Mapping[str, str] = ALONE) -> tuple[Field, ...]:
    """What all that read pictures say but for their grids and hidden units; see ``layer_fields``."""
    return (*layer_fields(*dropout, stacks=stacks), fixed("num_channels", 3))


def grid_field() -> Field:
    """How many patches there are."""
    paths = (f"{IMAGE}.tokenizer.patch", f"{STACK}.position.sizes", f"{IMAGE}.tokenizer.remainder")
    return Field(("image_size", "patch_size"), paths, read_grid, write_grid)


def embedding_rules(config: Data, special: dict[str, int], rows: int) -> list[Rule]:
    """Patches, special tokens and positions.

    Args:
        special: the special tokens' names, and how many each is.
        rows: how many of them have a row among the positions.
    """
    embeddings, width = "{base}embeddings", config["hidden_size"]
    return [
        special_rule({f"{embeddings}.{name}": number for name, number in special.items()}, width),
        patches(f"{embeddings}.patch_embeddings.projection.weight", width, config["patch_size"]),
        named(f"{IMAGE}.tokenizer.projection.bias", f"{embeddings}.patch_embeddings.projection.bias"),
        viewed(f"{STACK}.position.weight", f"{embeddings}.position_embeddings", (1, rows + places(config), width)),
        named(f"{STACK}.norm.{{p}}", "{base}layernorm.{p}"),
    ]


def places(config: Data) -> int:
    """How many patches a picture has."""
    return math.prod(read_grid(config["image_size"], config["patch_size"])[1])


def special_rule(numbers: dict[str, int], width: int) -> Rule:
    """Their special tokens, each name with so many, as ours: one after the other."""
    return Rule(
        (f"{IMAGE}.special",),
        tuple(numbers),
        lambda found, _: [torch.cat([part.reshape(-1, width) for part in found])],
        lambda made: [part[None] for part in torch.split(made[0], list(numbers.values()))],
    )


def attention_rules(layer: str, theirs: str) -> list[Rule]:
    """The attention of a layer; its names begin with these."""
    return [
        joined(
            f"{layer}.mixer.qkv.{{p}}", [f"{theirs}.attention.attention.{x}.{{p}}" for x in ("query", "key", "value")]
        ),
        named(f"{layer}.mixer.out.{{p}}", f"{theirs}.attention.output.dense.{{p}}"),
    ]


def layer_rules(stack: str = STACK, theirs: str = "{base}encoder.layer.{i}") -> list[Rule]:
    """The layers of ViT, DeiT and AST, or of a stack with others' names."""
    layer = f"{stack}.layers.{{i}}"
    return [
        named(f"{layer}.mixer_residual.norm.{{p}}", f"{theirs}.layernorm_before.{{p}}"),
        *attention_rules(layer, theirs),
        named(f"{layer}.feedforward_residual.norm.{{p}}", f"{theirs}.layernorm_after.{{p}}"),
        named(f"{layer}.feedforward.up.{{p}}", f"{theirs}.intermediate.dense.{{p}}"),
        named(f"{layer}.feedforward.down.{{p}}", f"{theirs}.output.dense.{{p}}"),
    ]


POOLER = (f"{IMAGE}.embedding", f"{IMAGE}.projection")


def _read_pooler(width: int, pooled: int) -> Sequence[Any]:
    if pooled != width:
        raise ValueError("a pooler_output_size that is hidden_size")
    return [pooled, width]


POOLED_FIELDS = (
    Field(  # a classifier has no pooler: what this one's width would be is said by its stack
        ("hidden_size", "pooler_output_size"),
        (f"{IMAGE}.embedding", f"{STACK}.width"),
        _read_pooler,
        lambda _, width: [width, width],
    ),
    *fields(f"{STACK}.layer.dropout", f"{STACK}.input_dropout"),
    grid_field(),
    *hidden_fields(),
    choice("pooler_act", {"tanh": "tanh", "linear": "none"}, f"{IMAGE}.projection.activation"),
)
"""What ViT and DeiT say: they may have a pooler after the class token."""
POOLED_DEFAULTS = {
    **DEFAULTS,
    **{"intermediate_size": 3072, "layer_norm_eps": 1e-12, "pooler_act": "tanh"},
    "pooler_output_size": lambda config: config["hidden_size"],
}


def pooled_rules(config: Data, *special: str) -> list[Rule]:
    """The same of parameters; ``special`` names the special tokens, one of each."""
    return [
        *embedding_rules(config, dict.fromkeys(special, 1), len(special)),
        *layer_rules(),
        named(f"{IMAGE}.projection.0.{{p}}", "{base}pooler.dense.{p}"),
    ]
