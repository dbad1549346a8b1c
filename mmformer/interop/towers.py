"""Towers of pictures and texts as transformers names them: what the families of CLIP and SigLIP share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mmformer.interop.fields import ACTIVATIONS, Field, choice, fixed, same
from mmformer.interop.plain import Data
from mmformer.interop.rules import Rule, joined, viewed
from mmformer.interop.rules import same as named


def picture_fields(at: str) -> tuple[Field, ...]:
    """What a vision config says; ``at`` stands before its keys."""
    return (*_fields("stacks.image", at), fixed(f"{at}num_channels", 3), grid_field(at))


def grid_field(at: str) -> Field:
    """How a config says how many patches there are."""
    keys, paths = (f"{at}image_size", f"{at}patch_size"), ("encoders.image.tokenizer.patch", f"{_POSITION}.sizes")
    return Field(keys, paths, _read_grid, _write_grid)


def text_fields(at: str) -> tuple[Field, ...]:
    """What a text config says; ``at`` stands before its keys."""
    length = ("encoders.text.tokenizer.context_length", "stacks.text.position.sizes.0")
    return (
        *_fields("stacks.text", at),
        same(f"{at}vocab_size", "encoders.text.tokenizer.rows"),
        same(f"{at}max_position_embeddings", *length),
    )


def layer_rules(stack: str, theirs: str) -> list[Rule]:
    """A stack's layers; ``theirs`` is what their names begin with."""
    layer, theirs = f"{stack}.layers.{{i}}", f"{theirs}.layers.{{i}}"
    return [
        named(f"{layer}.mixer_residual.norm.{{p}}", f"{theirs}.layer_norm1.{{p}}"),
        joined(f"{layer}.mixer.qkv.{{p}}", [f"{theirs}.self_attn.{name}_proj.{{p}}" for name in "qkv"]),
        named(f"{layer}.mixer.out.{{p}}", f"{theirs}.self_attn.out_proj.{{p}}"),
        named(f"{layer}.feedforward_residual.norm.{{p}}", f"{theirs}.layer_norm2.{{p}}"),
        named(f"{layer}.feedforward.up.{{p}}", f"{theirs}.mlp.fc1.{{p}}"),
        named(f"{layer}.feedforward.down.{{p}}", f"{theirs}.mlp.fc2.{{p}}"),
    ]


def patches(theirs: str, width: int, side: int) -> Rule:
    """The weight of a convolution that cuts a picture into patches."""
    return viewed("encoders.image.tokenizer.projection.weight", theirs, (width, 3, side, side))


def under(group: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """Defaults of a config that is inside another."""
    return {f"{group}.{key}": value for key, value in values.items()}


_POSITION = "stacks.image.position"


def _fields(stack: str, at: str) -> tuple[Field, ...]:
    return (
        same(f"{at}hidden_size", f"{stack}.width"),
        same(f"{at}num_hidden_layers", f"{stack}.depth"),
        same(f"{at}num_attention_heads", f"{stack}.layer.mixer.heads"),
        same(f"{at}intermediate_size", f"{stack}.layer.feedforward.hidden_width"),
        choice(f"{at}hidden_act", ACTIVATIONS, f"{stack}.layer.feedforward"),
        same(f"{at}layer_norm_eps", f"{stack}.layer.norm.eps"),
        same(f"{at}attention_dropout", f"{stack}.layer.mixer.dropout"),
    )


def _read_grid(size: Any, patch: Any) -> Sequence[Any]:
    if not isinstance(size, int) or not isinstance(patch, int) or size % patch:
        raise ValueError("squares: an image_size that is a multiple of patch_size")
    return [patch, [size // patch] * 2]


def _write_grid(patch: int, sizes: list[int]) -> Sequence[Any]:
    if sizes[0] != sizes[1]:
        raise ValueError("as many rows of patches as columns")
    return [patch * sizes[0], patch]


def places(config: Data) -> int:
    """How many patches a vision config's picture has."""
    count: int = (config["image_size"] // config["patch_size"]) ** 2
    return count
