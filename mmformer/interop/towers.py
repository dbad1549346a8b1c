"""Towers of pictures and texts as transformers names them: what the families of CLIP and SigLIP share."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from mmformer.interop.fields import ACTIVATIONS, Field, choice, find, fixed, same
from mmformer.interop.plain import Data
from mmformer.interop.rules import Rule, counted, joined, viewed
from mmformer.interop.rules import same as named


def picture_fields(at: str, pool: str | None = None) -> tuple[Field, ...]:
    """What a vision config says.

    Args:
        at: what stands before its keys.
        pool: the path of an attention pool that is as the layers are.
    """
    return (*_fields("stacks.image", at, pool), fixed(f"{at}num_channels", 3), grid_field(at))


def grid_field(at: str) -> Field:
    """How a config says how many patches there are."""
    tokenizer = "encoders.image.tokenizer"
    paths = (f"{tokenizer}.patch", "stacks.image.position.sizes", f"{tokenizer}.remainder")
    return Field((f"{at}image_size", f"{at}patch_size"), paths, _read_square, _write_square)


def text_fields(at: str) -> tuple[Field, ...]:
    """What a text config says; ``at`` stands before its keys."""
    length = ("encoders.text.tokenizer.context_length", "stacks.text.position.sizes.0")
    return (
        *_fields("stacks.text", at),
        same(f"{at}vocab_size", "encoders.text.tokenizer.rows"),
        same(f"{at}max_position_embeddings", *length),
    )


def picture_rules(config: Data, special: int = 0) -> list[Rule]:
    """Patches, positions, layers and their norm, for a vision config.

    Args:
        special: how many special tokens have positions, too.
    """
    embeddings = "vision_model.embeddings"
    return [
        patches(f"{embeddings}.patch_embedding.weight", config["hidden_size"], config["patch_size"]),
        named("encoders.image.tokenizer.projection.bias", f"{embeddings}.patch_embedding.bias"),
        named("stacks.image.position.weight", f"{embeddings}.position_embedding.weight"),
        counted(f"{embeddings}.position_ids", special + places(config)),
        *layer_rules("stacks.image", "vision_model.encoder"),
        named("stacks.image.norm.{p}", "vision_model.post_layernorm.{p}"),
    ]


def text_rules(config: Data) -> list[Rule]:
    """Embeddings, positions, layers and their norm, for a text config."""
    embeddings = "text_model.embeddings"
    return [
        named("encoders.text.tokenizer.weight", f"{embeddings}.token_embedding.weight"),
        named("stacks.text.position.weight", f"{embeddings}.position_embedding.weight"),
        counted(f"{embeddings}.position_ids", config["max_position_embeddings"]),
        *layer_rules("stacks.text", "text_model.encoder"),
        named("stacks.text.norm.{p}", "text_model.final_layer_norm.{p}"),
    ]


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
    """Defaults of a config that is inside another; callables get that one."""
    return {f"{group}.{key}": _inside(group, value) if callable(value) else value for key, value in values.items()}


def _inside(group: str, default: Callable[[Mapping[str, Any]], Any]) -> Callable[[Mapping[str, Any]], Any]:
    return lambda config: default(find(config, group) or {})


def read_grid(size: Any, patch: Any) -> Sequence[Any]:
    """A picture's size, and that of a patch -> the patch, the grid, the pixels that remain."""
    sides = [size] * 2 if isinstance(size, int) else size
    whole = isinstance(patch, int) and isinstance(sides, list) and len(sides) == 2
    if not whole or sides[0] % patch != sides[1] % patch or min(sides) < patch:
        raise ValueError("a patch_size that is one number, and an image_size in which it leaves the same of both sides")
    return [patch, [side // patch for side in sides], sides[0] % patch]


def write_grid(patch: int, sizes: Sequence[int], remainder: int) -> Sequence[Any]:
    """The same backwards."""
    sides = [size * patch + remainder for size in sizes]
    return [sides[0] if sides[0] == sides[1] else sides, patch]


def _read_square(size: Any, patch: Any) -> Sequence[Any]:
    if not isinstance(size, int):
        raise ValueError("an image_size that is one number")
    return read_grid(size, patch)


def _write_square(patch: int, sizes: Sequence[int], remainder: int) -> Sequence[Any]:
    if sizes[0] != sizes[1]:
        raise ValueError("as many rows of patches as columns")
    return write_grid(patch, sizes, remainder)


def _fields(stack: str, at: str, pool: str | None = None) -> tuple[Field, ...]:
    own, kinds = f"{stack}.layer", f"{stack}.layer.feedforward"
    return (
        same(f"{at}hidden_size", f"{stack}.width"),
        same(f"{at}num_hidden_layers", f"{stack}.depth"),
        same(f"{at}num_attention_heads", f"{own}.mixer.heads", *_at(pool, "attention.heads")),
        same(f"{at}intermediate_size", f"{kinds}.hidden_width", *_at(pool, "feedforward.hidden_width")),
        choice(f"{at}hidden_act", ACTIVATIONS, kinds, *_at(pool, "feedforward")),
        same(f"{at}layer_norm_eps", f"{own}.norm.eps", *_at(pool, "norm.eps")),
        same(f"{at}attention_dropout", f"{own}.mixer.dropout"),
    )


def _at(part: str | None, path: str) -> list[str]:
    return [f"{part}.{path}"] if part else []


def places(config: Data) -> int:
    """How many patches a vision config's picture has."""
    count: int = (config["image_size"] // config["patch_size"]) ** 2
    return count
