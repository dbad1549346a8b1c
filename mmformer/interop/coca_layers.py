"""CoCa's layers as open_clip has them, and as ours: a text tower and a captioner, which are one stack with us."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mmformer.interop.fields import Field, fixed, same
from mmformer.interop.open_clip_towers import block_rules, write_ratio
from mmformer.interop.plain import Data, get
from mmformer.interop.rules import Rule, joined, split
from mmformer.interop.rules import same as named

POOLER, STACK = "encoders.image.resampler", "stacks.text"
_KEYS = (
    *(f"text_cfg.{key}" for key in ("width", "heads", "layers", "mlp_ratio", "ls_init_value", "act_kwargs")),
    *(f"multimodal_cfg.{key}" for key in ("width", "heads", "layers", "ls_init_value")),
    *("quick_gelu", "embed_dim"),
)


def layers_field() -> Field:
    """What both towers say of their layers: those that read texts alone, then pairs, whose second reads the picture."""
    paths = (*(f"{STACK}.{name}" for name in ("width", "depth", "pattern")), "encoders.text.layers")
    return Field(_KEYS, paths, _read_layers, _write_layers)


def pooler_fields() -> tuple[Field, ...]:
    """What is said of the pooler, which reads the picture for both."""
    return (
        same("embed_dim", f"{POOLER}.width"),
        fixed("vision_cfg.attentional_pool", True),
        fixed("vision_cfg.pool_type", "tok"),
        same("vision_cfg.attn_pooler_queries", f"{POOLER}.queries"),
        same("vision_cfg.attn_pooler_heads", f"{POOLER}.attention.heads"),
        fixed("vision_cfg.norm_kwargs", None),  # the pooler would not hear of it
    )


def layers_rules(number: int, pairs: int) -> list[Rule]:
    """Those of a text tower of so many layers, and of a captioner of so many pairs."""
    layers = f"{STACK}.layers"
    texts = [(f"{layers}.{i}", f"{{base}}transformer.resblocks.{i}") for i in range(number)]
    texts += [(f"{layers}.{number + 2 * i}", f"text_decoder.resblocks.{i}") for i in range(pairs)]
    crossed = [(f"{layers}.{number + 2 * i + 1}", f"text_decoder.cross_attn.{i}") for i in range(pairs)]
    rules = [rule for pair in texts for rule in block_rules(*pair)]
    return rules + [rule for pair in crossed for rule in _cross_rules(*pair)]


def pooler_rules(width: int, made: int) -> list[Rule]:
    """Its queries' and tokens' weights are apart where their widths differ."""
    theirs, ours = "visual.attn_pool", f"{POOLER}.attention"
    matrices = [
        named(f"{ours}.q.weight", f"{theirs}.attn.q_proj_weight"),
        joined(f"{ours}.kv.weight", [f"{theirs}.attn.{name}_proj_weight" for name in "kv"]),
    ]
    if width == made:
        matrices = [split([f"{ours}.q.weight", f"{ours}.kv.weight"], f"{theirs}.attn.in_proj_weight")]
    return [
        named(f"{POOLER}.query", f"{theirs}.query"),
        named(f"{POOLER}.query_norm.{{p}}", f"{theirs}.ln_q.{{p}}"),
        named(f"{POOLER}.memory_norm.{{p}}", f"{theirs}.ln_k.{{p}}"),
        *matrices,
        split([f"{ours}.q.bias", f"{ours}.kv.bias"], f"{theirs}.attn.in_proj_bias"),
        named(f"{ours}.out.{{p}}", f"{theirs}.attn.out_proj.{{p}}"),
        named(f"{POOLER}.norm.{{p}}", "visual.ln_post.{p}"),
    ]


def _layer(cross: bool, heads: int, hidden: int, kind: str, scale: float | None) -> Data:
    attention = {"class_path": "AttentionSpec", "init_args": {"heads": heads}}
    return {
        **{"mixer": None if cross else attention, "cross": attention if cross else None, "memory_norm": cross},
        "feedforward": {
            "class_path": "GELUFeedForwardSpec",
            "init_args": {"hidden_width": hidden, "approximate": kind},
        },
        "norm": {"class_path": "LayerNormSpec", "init_args": {"eps": 1e-5}},
        "layer_scale": scale,
    }


def _read_layers(width: int, *found: Any) -> Sequence[Any]:
    heads, number, ratio, scale, options, again, other_heads, others, other_scale, quick, embedding = found
    if not width == again == embedding or (options or {}) not in ({}, {"approximate": "tanh"}) or (quick and options):
        raise ValueError(
            "text and decoder as wide as the embeddings, and GELUs, whole or with tanh, or QuickGELU alone"
        )
    kind = "sigmoid" if quick else "none"
    alone = _layer(False, heads, int(width * ratio), (options or {}).get("approximate", kind), scale)
    pair = [_layer(cross, other_heads, 4 * width, kind, other_scale) for cross in (False, True)]
    return [width, number + 2 * others, [alone] * number + pair * others, number]


def _write_layers(width: int, depth: int, pattern: Sequence[Data], number: int | None) -> Sequence[Any]:
    if number is None or len(pattern) != depth or number >= depth or (depth - number) % 2:
        raise ValueError("layers that read texts alone, then pairs of which the second reads the picture")
    alone, first, _ = pattern[0], *pattern[number : number + 2]
    kinds = [get(layer, "feedforward.approximate") for layer in (alone, first)]
    ratio = write_ratio(width, get(alone, "feedforward.hidden_width"))[1]
    return [
        *(width, get(alone, "mixer.heads"), number, ratio, alone["layer_scale"]),
        {"approximate": "tanh"} if kinds[0] == "tanh" else None,
        *(width, get(first, "mixer.heads"), (depth - number) // 2, first["layer_scale"]),
        *(kinds[1] == "sigmoid", width),
    ]


def _cross_rules(layer: str, theirs: str) -> list[Rule]:
    return [
        named(f"{layer}.cross_residual.norm.{{p}}", f"{theirs}.ln_1.{{p}}"),
        named(f"{layer}.memory_norm.{{p}}", f"{theirs}.ln_1_kv.{{p}}"),
        split([f"{layer}.cross.q.{{p}}", f"{layer}.cross.kv.{{p}}"], f"{theirs}.attn.in_proj_{{p}}"),
        named(f"{layer}.cross.out.{{p}}", f"{theirs}.attn.out_proj.{{p}}"),
        named(f"{layer}.cross_residual.gain", f"{theirs}.ls_1.gamma"),
        *block_rules(layer, theirs)[4:],
    ]
