"""Vision transformers as transformers names them: what the families of ViT, DeiT and DINOv2 share."""

from __future__ import annotations

import math

import torch

from mmformer.interop.fields import Field, fixed, same
from mmformer.interop.plain import Data
from mmformer.interop.rules import Rule, joined, viewed
from mmformer.interop.rules import same as named
from mmformer.interop.towers import patches, read_grid, write_grid

STACK, IMAGE = "stacks.image", "encoders.image"

DEFAULTS = {
    **{"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "image_size": 224, "patch_size": 16},
    **{"num_channels": 3, "qkv_bias": True, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0},
    "hidden_act": "gelu",
}


def fields(*dropout: str) -> tuple[Field, ...]:
    """What all of their configs say but for the grid; ``dropout`` is where ``hidden_dropout_prob`` goes."""
    return (
        same("hidden_size", f"{STACK}.width"),
        same("num_hidden_layers", f"{STACK}.depth"),
        same("num_attention_heads", f"{STACK}.layer.mixer.heads"),
        same("layer_norm_eps", f"{STACK}.layer.norm.eps"),
        same("attention_probs_dropout_prob", f"{STACK}.layer.mixer.dropout"),
        same("hidden_dropout_prob", *dropout),
        fixed("num_channels", 3),
        fixed("qkv_bias", True),
    )


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
    places = math.prod(read_grid(config["image_size"], config["patch_size"])[1])
    return [
        special_rule({f"{embeddings}.{name}": number for name, number in special.items()}, width),
        patches(f"{embeddings}.patch_embeddings.projection.weight", width, config["patch_size"]),
        named(f"{IMAGE}.tokenizer.projection.bias", f"{embeddings}.patch_embeddings.projection.bias"),
        viewed(f"{STACK}.position.weight", f"{embeddings}.position_embeddings", (1, places + rows, width)),
        named(f"{STACK}.norm.{{p}}", "{base}layernorm.{p}"),
    ]


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
    """The layers of ViT and DeiT, or of a stack with others' names."""
    layer = f"{stack}.layers.{{i}}"
    return [
        named(f"{layer}.mixer_residual.norm.{{p}}", f"{theirs}.layernorm_before.{{p}}"),
        *attention_rules(layer, theirs),
        named(f"{layer}.feedforward_residual.norm.{{p}}", f"{theirs}.layernorm_after.{{p}}"),
        named(f"{layer}.feedforward.up.{{p}}", f"{theirs}.intermediate.dense.{{p}}"),
        named(f"{layer}.feedforward.down.{{p}}", f"{theirs}.output.dense.{{p}}"),
    ]
