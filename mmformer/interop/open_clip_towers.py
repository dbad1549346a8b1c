"""Towers of pictures and texts as open_clip names them: what its families share."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from mmformer.interop.fields import Field, all_fixed, fixed, same
from mmformer.interop.plain import Data, Named
from mmformer.interop.rules import Rule, transposed, viewed
from mmformer.interop.rules import same as named
from mmformer.interop.temperature import BOUND, log_scale, temperature
from mmformer.interop.text_end import TextEnd
from mmformer.interop.towers import patches, read_grid, write_grid

_ALWAYS = {"mlp_ratio": 4.0, "layers": 12, "ls_init_value": None, "norm_kwargs": None, "act_kwargs": None}
CUSTOM = ("qk_norm", "scaled_cosine_attn", "scale_heads", "scale_attn_inner", "scale_attn", "scale_fc")
PICTURE_DEFAULTS: Mapping[str, Any] = {
    **{**_ALWAYS, **dict.fromkeys(CUSTOM, False)},
    **{"width": 768, "head_width": 64, "image_size": 224, "patch_size": 16, "patch_dropout": 0.0},
    **{"no_ln_pre": False, "final_ln_after_pool": False, "pool_type": "tok", "pos_embed_type": "learnable"},
    **{"attentional_pool": False, "timm_model_name": None},
}
TEXT_DEFAULTS: Mapping[str, Any] = {
    **{**_ALWAYS, **dict.fromkeys(CUSTOM, False)},
    **{"width": 512, "heads": 8, "context_length": 77, "vocab_size": 49408, "no_causal_mask": False},
    **{
        "pool_type": "argmax",
        "eos_id": 2,
        "proj_bias": False,
        "proj_type": "linear",
        "embed_cls": False,
        "hf_model_name": None,
    },
}
PAIR_DEFAULTS: Mapping[str, Any] = {
    **{"quick_gelu": False, "init_logit_scale": math.log(1 / 0.07), "init_logit_bias": None},
    "nonscalar_logit_scale": False,
}
IGNORED = (
    *("custom_text", "vision_cfg.output_tokens", "vision_cfg.block_type", "vision_cfg.attn_pooler_*"),
    *("text_cfg.output_tokens", "text_cfg.block_type", "text_cfg.pad_id", "text_cfg.eos_id"),
    *("text_cfg.hf_tokenizer_name", "text_cfg.tokenizer_*", "text_cfg.hf_*", "text_cfg.final_ln_after_pool"),
)
"""What says how weights are named, what is returned, or what others than the towers read."""


def pair_fields() -> tuple[Field, ...]:
    """What a config says of how pictures and texts are compared."""
    shape = Field(("nonscalar_logit_scale",), (), lambda _: [], lambda: [False])  # of the scale's tensor alone
    return (temperature("init_logit_scale"), BOUND, shape)


def pair_rules(config: Data) -> list[Rule]:
    """The scale and the bias of similarities."""
    shape = (1,) if config["nonscalar_logit_scale"] else ()
    scale = log_scale("logit_scale", shape, bounded=config["init_logit_bias"] is None)
    return [scale, viewed("heads.contrastive.bias", "logit_bias", shape)]


def tower_fields(stack: str, at: str) -> tuple[Field, ...]:
    """What both kinds of towers say of their layers."""
    hidden = (f"{stack}.width", f"{stack}.layer.feedforward.hidden_width")
    return (
        Field(
            (f"{at}.width", f"{at}.mlp_ratio"), hidden, lambda width, ratio: [width, int(width * ratio)], write_ratio
        ),
        Field((f"{at}.layers",), (f"{stack}.depth",), _read_depth, lambda depth: [depth]),
        same(f"{at}.ls_init_value", f"{stack}.layer.layer_scale"),
        *plain_fields(at),
    )


def plain_fields(at: str) -> tuple[Field, ...]:
    """What no attention of theirs has with us."""
    return all_fixed({f"{at}.{key}": False for key in CUSTOM})


def activations(*towers: tuple[str, str]) -> Field:
    """QuickGELU for all towers, or what each says of its GELU.

    Args:
        towers: the part of the config, and the stack.
    """

    def read(quick: bool, *options: Mapping[str, Any] | None) -> Sequence[Any]:
        allowed: tuple[Any, ...] = ({},) if quick else ({}, {"approximate": "none"}, {"approximate": "tanh"})
        if any((each or {}) not in allowed for each in options):
            raise ValueError("a GELU, whole or with its tanh, or QuickGELU for all")
        kinds = ["sigmoid" if quick else (each or {}).get("approximate", "none") for each in options]
        return [Named("GELUFeedForwardSpec", {"approximate": kind}) for kind in kinds]

    def write(*found: Data) -> Sequence[Any]:
        kinds = [
            each["init_args"].get("approximate") if each["class_path"] == "GELUFeedForwardSpec" else None
            for each in found
        ]
        if None in kinds or len({kind == "sigmoid" for kind in kinds}) > 1:
            raise ValueError("GELUs, and QuickGELU in all towers or in none")
        options = [{"approximate": "tanh"} if kind == "tanh" else None for kind in kinds]
        return [kinds[0] == "sigmoid", *options]

    keys = tuple(f"{part}.act_kwargs" for part, _ in towers)
    return Field(("quick_gelu", *keys), tuple(f"{stack}.layer.feedforward" for _, stack in towers), read, write)


def picture_fields() -> tuple[Field, ...]:
    """What a vision transformer of open_clip's own says."""
    at, stack, encoder = "vision_cfg", "stacks.image", "encoders.image"
    cut = (f"{encoder}.tokenizer.patch", f"{stack}.position.sizes", f"{encoder}.tokenizer.remainder")
    return (
        *tower_fields(stack, at),
        Field(
            (f"{at}.width", f"{at}.head_width"),
            (f"{stack}.width", f"{stack}.layer.mixer.heads"),
            lambda width, head: [width, width // head],
            lambda width, heads: [width, width // heads],
        ),
        Field((f"{at}.image_size", f"{at}.patch_size"), cut, read_grid, write_grid),
        Field((f"{at}.no_ln_pre",), (f"{stack}.input_norm",), lambda none: [not none], lambda has: [not has]),
        same(f"{at}.patch_dropout", f"{encoder}.patch_dropout"),
        fixed(f"{at}.pos_embed_type", "learnable"),
        fixed(f"{at}.timm_model_name", None),
    )


def end_field() -> Field:
    """How such a vision transformer makes one vector of its tokens."""
    keys = tuple(f"vision_cfg.{key}" for key in ("pool_type", "final_ln_after_pool", "norm_kwargs"))
    paths = ("encoders.image.pool", "stacks.image.final_norm", "encoders.image.norm", "stacks.image.layer.norm.eps")
    return Field(keys, paths, _read_end, _write_end)


def text_fields() -> tuple[Field, ...]:
    """What a text transformer of open_clip's own says."""
    at, stack, encoder = "text_cfg", "stacks.text", "encoders.text"
    read = (f"{encoder}.causal", f"{encoder}.tokenizer.padded")
    return (
        *tower_fields(stack, at),
        same(f"{at}.heads", f"{stack}.layer.mixer.heads"),
        same(f"{at}.context_length", f"{encoder}.tokenizer.context_length", f"{stack}.position.sizes.0"),
        same(f"{at}.vocab_size", f"{encoder}.tokenizer.rows"),
        eps_field(f"{at}.norm_kwargs", f"{stack}.layer.norm.eps"),
        Field((f"{at}.no_causal_mask", f"{at}.pool_type"), read, _read_reading, _write_reading),
        fixed(f"{at}.embed_cls", False),
        *text_projection_fields(),
    )


def text_projection_fields() -> tuple[Field, ...]:
    """What is made of the vector of a text that such a transformer has read."""
    return (
        same("text_cfg.proj_bias", "encoders.text.projection.bias"),
        fixed("text_cfg.proj_type", "linear"),
        fixed("text_cfg.hf_model_name", None),
    )


def text_end() -> TextEnd:
    """What the pool of such a text transformer looks for: the highest id, or the one that the config says."""

    def read(config: Data) -> int | None:
        said = config["text_cfg"]
        return {"argmax": said["vocab_size"] - 1, "eos": said["eos_id"]}.get(said["pool_type"])

    def write(end: int, highest: bool) -> Mapping[str, Any]:
        return {} if highest else {"text_cfg.pool_type": "eos", "text_cfg.eos_id": end}

    return TextEnd("encoders.text.tokenizer", read, write)


def eps_field(key: str, path: str) -> Field:
    """What is said to norms."""
    return Field((key,), (path,), lambda kept: [_eps(kept)], lambda eps: [{"eps": eps}])


def layer_rules(stack: str, theirs: str) -> list[Rule]:
    """A stack's layers; ``theirs`` is what their names begin with."""
    return block_rules(f"{stack}.layers.{{i}}", f"{theirs}.resblocks.{{i}}")


def block_rules(layer: str, theirs: str) -> list[Rule]:
    """One layer, or all of a pattern."""
    return [
        named(f"{layer}.mixer_residual.norm.{{p}}", f"{theirs}.ln_1.{{p}}"),
        named(f"{layer}.mixer.qkv.{{p}}", f"{theirs}.attn.in_proj_{{p}}"),
        named(f"{layer}.mixer.out.{{p}}", f"{theirs}.attn.out_proj.{{p}}"),
        named(f"{layer}.mixer_residual.gain", f"{theirs}.ls_1.gamma"),
        named(f"{layer}.feedforward_residual.norm.{{p}}", f"{theirs}.ln_2.{{p}}"),
        named(f"{layer}.feedforward.up.{{p}}", f"{theirs}.mlp.c_fc.{{p}}"),
        named(f"{layer}.feedforward.down.{{p}}", f"{theirs}.mlp.c_proj.{{p}}"),
        named(f"{layer}.feedforward_residual.gain", f"{theirs}.ls_2.gamma"),
    ]


def picture_rules(config: Data) -> list[Rule]:
    """A vision transformer of open_clip's own, but for its end."""
    seen = config["vision_cfg"]
    return [
        viewed("encoders.image.special", "visual.class_embedding", (seen["width"],)),
        patches("visual.conv1.weight", seen["width"], seen["patch_size"]),
        named("stacks.image.position.weight", "visual.positional_embedding"),
        named("stacks.image.input_norm.{p}", "visual.ln_pre.{p}"),
        *layer_rules("stacks.image", "visual.transformer"),
        transposed("encoders.image.projection.weight", "visual.proj"),
    ]


def text_rules(config: Data) -> list[Rule]:
    """A text transformer of open_clip's own; ``{base}`` is what its names begin with."""
    return [
        named("encoders.text.tokenizer.weight", "{base}token_embedding.weight"),
        named("stacks.text.position.weight", "{base}positional_embedding"),
        *layer_rules("stacks.text", "{base}transformer"),
        named("stacks.text.norm.{p}", "{base}ln_final.{p}"),
        text_projection(config),
    ]


def text_projection(config: Data) -> Rule:
    """A text's projection, which is a matrix from the other side where it has no bias."""
    if config["text_cfg"]["proj_bias"]:
        return named("encoders.text.projection.{p}", "{base}text_projection.{p}")
    return transposed("encoders.text.projection.weight", "{base}text_projection")


def write_ratio(width: int, hidden: int | None) -> Sequence[Any]:
    if hidden is None:
        raise ValueError("given as a number: hidden_width")
    ratio = hidden / width
    return [width, ratio if int(width * ratio) == hidden else math.nextafter(ratio, math.inf)]


def _read_depth(layers: Any) -> Sequence[Any]:
    if not isinstance(layers, int):
        raise ValueError("one number: of a vision transformer, and no ResNet")
    return [layers]


def _eps(kept: Mapping[str, Any] | None) -> float:
    if not set(kept or {}) <= {"eps"}:
        raise ValueError("of eps alone")
    return float((kept or {}).get("eps", 1e-5))


_POOLS = {"tok": Named("ClassTokenPoolSpec", {"index": 0, "number": 1}), "avg": Named("MeanPoolSpec")}


def _read_end(pool: str, after: bool, kept: Mapping[str, Any] | None) -> Sequence[Any]:
    if pool not in _POOLS:
        raise ValueError(f"one of {', '.join(_POOLS)}")
    eps = _eps(kept)
    return [_POOLS[pool], not after, Named("LayerNormSpec", {"eps": eps, "bias": True}) if after else None, eps]


def _write_end(pool: Data, before: bool, norm: Data | None, eps: float) -> Sequence[Any]:
    kinds = [kind for kind, known in _POOLS.items() if known.describes(pool)]
    alike = norm is None or norm["init_args"].get("eps") == eps
    if not kinds or before == (norm is not None) or not alike:
        raise ValueError("the class token or the mean, with one norm before it or after it that is as the layers' are")
    return [kinds[0], not before, {"eps": eps}]


def _read_reading(everywhere: bool, pool: str) -> Sequence[Any]:
    if pool == "last":
        return [not everywhere, True]  # whatever stands there: padding, mostly
    if pool not in ("argmax", "eos") or everywhere:
        raise ValueError("'last', or 'argmax' or 'eos' with a causal mask, for padding is read otherwise")
    return [True, False]


def _write_reading(causal: bool, padded: bool) -> Sequence[Any]:
    if not causal and not padded:
        raise ValueError("causal, or over padding too")
    return [not causal, "last" if padded else "argmax"]
