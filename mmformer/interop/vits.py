"""Vision transformers as transformers names them: what the families of ViT, DeiT and DINOv2 share."""

from __future__ import annotations

from collections.abc import Sequence

from mmformer.interop.fields import Field, fixed, same
from mmformer.interop.plain import Data
from mmformer.interop.rules import Rule, joined, viewed
from mmformer.interop.rules import same as named
from mmformer.interop.towers import grid_field, patches, places

STACK, IMAGE = "stacks.image", "encoders.image"

DEFAULTS = {
    **{"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "image_size": 224, "patch_size": 16},
    **{"num_channels": 3, "qkv_bias": True, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0},
    "hidden_act": "gelu",
}


def fields(dropout: Sequence[str] = (f"{STACK}.layer.dropout", f"{STACK}.input_dropout")) -> tuple[Field, ...]:
    """What all of their configs say; ``dropout`` is where ``hidden_dropout_prob`` goes."""
    return (
        same("hidden_size", f"{STACK}.width"),
        same("num_hidden_layers", f"{STACK}.depth"),
        same("num_attention_heads", f"{STACK}.layer.mixer.heads"),
        same("layer_norm_eps", f"{STACK}.layer.norm.eps"),
        same("attention_probs_dropout_prob", f"{STACK}.layer.mixer.dropout"),
        same("hidden_dropout_prob", *dropout),
        grid_field(""),
        fixed("num_channels", 3),
        fixed("qkv_bias", True),
    )


def embedding_rules(config: Data, special: Sequence[str], rows: int) -> list[Rule]:
    """Patches, special tokens and positions.

    Args:
        special: the special tokens, by their names.
        rows: how many of them have a row among the positions.
    """
    embeddings, width = "{base}embeddings", config["hidden_size"]
    return [
        joined(f"{IMAGE}.special", [f"{embeddings}.{name}" for name in special], shape=(1, 1, width)),
        patches(f"{embeddings}.patch_embeddings.projection.weight", width, config["patch_size"]),
        named(f"{IMAGE}.tokenizer.projection.bias", f"{embeddings}.patch_embeddings.projection.bias"),
        viewed(f"{STACK}.position.weight", f"{embeddings}.position_embeddings", (1, places(config) + rows, width)),
        named(f"{STACK}.norm.{{p}}", "{base}layernorm.{p}"),
    ]


def attention_rules(layer: str, theirs: str) -> list[Rule]:
    """The attention of a layer; its names begin with these."""
    return [
        joined(
            f"{layer}.mixer.qkv.{{p}}", [f"{theirs}.attention.attention.{x}.{{p}}" for x in ("query", "key", "value")]
        ),
        named(f"{layer}.mixer.out.{{p}}", f"{theirs}.attention.output.dense.{{p}}"),
    ]


def layer_rules() -> list[Rule]:
    """The layers of ViT and DeiT."""
    layer, theirs = f"{STACK}.layers.{{i}}", "{base}encoder.layer.{i}"
    return [
        named(f"{layer}.mixer_residual.norm.{{p}}", f"{theirs}.layernorm_before.{{p}}"),
        *attention_rules(layer, theirs),
        named(f"{layer}.feedforward_residual.norm.{{p}}", f"{theirs}.layernorm_after.{{p}}"),
        named(f"{layer}.feedforward.up.{{p}}", f"{theirs}.intermediate.dense.{{p}}"),
        named(f"{layer}.feedforward.down.{{p}}", f"{theirs}.output.dense.{{p}}"),
    ]
