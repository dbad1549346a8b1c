"""CoCa as open_clip keeps it (``CoCa``): its text tower and its decoder are one stack with us."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mmformer.interop.family import Family, Layout
from mmformer.interop.fields import Field, fixed, same
from mmformer.interop.open_clip_towers import (
    IGNORED,
    PICTURE_DEFAULTS,
    TEXT_DEFAULTS,
    activations,
    block_rules,
    layer_rules,
    picture_fields,
    text_projection,
    write_ratio,
)
from mmformer.interop.plain import Data, get
from mmformer.interop.rules import Rule, joined, split, transposed, viewed
from mmformer.interop.rules import same as named
from mmformer.interop.temperature import BOUND, log_scale, temperature
from mmformer.interop.towers import patches, under

_POOLER, _STACK = "encoders.image.resampler", "stacks.text"
_WORDS = ("encoders.text.tokenizer", "decoders.caption.tokenizer")
_KEYS = (
    *(f"text_cfg.{key}" for key in ("width", "heads", "layers", "mlp_ratio", "ls_init_value", "act_kwargs")),
    *(f"multimodal_cfg.{key}" for key in ("width", "heads", "layers", "ls_init_value")),
    *("quick_gelu", "embed_dim"),
)


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


def _pooler_rules(width: int, made: int) -> list[Rule]:
    """Its queries' and tokens' weights are apart where their widths differ."""
    theirs, ours = "visual.attn_pool", f"{_POOLER}.attention"
    matrices = [
        named(f"{ours}.q.weight", f"{theirs}.attn.q_proj_weight"),
        joined(f"{ours}.kv.weight", [f"{theirs}.attn.{name}_proj_weight" for name in "kv"]),
    ]
    if width == made:
        matrices = [split([f"{ours}.q.weight", f"{ours}.kv.weight"], f"{theirs}.attn.in_proj_weight")]
    return [
        named(f"{_POOLER}.query", f"{theirs}.query"),
        named(f"{_POOLER}.query_norm.{{p}}", f"{theirs}.ln_q.{{p}}"),
        named(f"{_POOLER}.memory_norm.{{p}}", f"{theirs}.ln_k.{{p}}"),
        *matrices,
        split([f"{ours}.q.bias", f"{ours}.kv.bias"], f"{theirs}.attn.in_proj_bias"),
        named(f"{ours}.out.{{p}}", f"{theirs}.attn.out_proj.{{p}}"),
        named(f"{_POOLER}.norm.{{p}}", "visual.ln_post.{p}"),
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


def _rules(config: Data) -> list[Rule]:
    seen, read, shape = config["vision_cfg"], config["text_cfg"], (1,) if config["nonscalar_logit_scale"] else ()
    number, layers, pairs = read["layers"], f"{_STACK}.layers", config["multimodal_cfg"]["layers"]
    texts = [(f"{layers}.{i}", f"{{base}}transformer.resblocks.{i}") for i in range(number)]
    texts += [(f"{layers}.{number + 2 * i}", f"text_decoder.resblocks.{i}") for i in range(pairs)]
    crossed = [(f"{layers}.{number + 2 * i + 1}", f"text_decoder.cross_attn.{i}") for i in range(pairs)]
    return [
        viewed("encoders.image.special", "visual.class_embedding", (seen["width"],)),
        patches("visual.conv1.weight", seen["width"], seen["patch_size"]),
        named("stacks.image.position.weight", "visual.positional_embedding"),
        named("stacks.image.input_norm.{p}", "visual.ln_pre.{p}"),
        *layer_rules("stacks.image", "visual.transformer"),
        *_pooler_rules(seen["width"], config["embed_dim"]),
        transposed("encoders.image.projection.weight", "visual.proj"),
        viewed("encoders.text.special", "{base}cls_emb", (read["width"],)),
        named("encoders.text.tokenizer.weight", "{base}token_embedding.weight"),
        named(f"{_STACK}.position.weight", "{base}positional_embedding"),
        named("encoders.text.norm.{p}", "{base}ln_final.{p}"),
        text_projection(config),
        *(rule for pair in texts for rule in block_rules(*pair)),
        *(rule for pair in crossed for rule in _cross_rules(*pair)),
        named(f"{_STACK}.norm.{{p}}", "text_decoder.ln_final.{p}"),
        transposed("decoders.caption.output.weight", "text_decoder.text_projection"),
        log_scale("logit_scale", shape, bounded=config["init_logit_bias"] is None),
        viewed("heads.contrastive.bias", "logit_bias", shape),
    ]


_HANDED_ON = ("vision_cfg.output_tokens", "text_cfg.output_tokens")
"""Without which open_clip's CoCa does not run."""

_TEXT: Mapping[str, Any] = {**TEXT_DEFAULTS, "pad_id": 0}
_CUSTOM = [key for key, value in TEXT_DEFAULTS.items() if value is False and key in PICTURE_DEFAULTS]

COCA = Family(
    library="open_clip",
    name="CoCa",
    template="coca.yaml",
    layouts={"CoCa": Layout("text.")},
    fields=(
        same("embed_dim", f"{_POOLER}.width", "encoders.image.embedding", "encoders.text.embedding"),
        activations(("vision_cfg", "stacks.image")),
        *picture_fields(),
        fixed("vision_cfg.attentional_pool", True),
        fixed("vision_cfg.pool_type", "tok"),
        same("vision_cfg.attn_pooler_queries", f"{_POOLER}.queries"),
        same("vision_cfg.attn_pooler_heads", f"{_POOLER}.attention.heads"),
        fixed("vision_cfg.norm_kwargs", None),  # the pooler would not hear of it
        Field(
            _KEYS,
            (*(f"{_STACK}.{name}" for name in ("width", "depth", "pattern")), "encoders.text.layers"),
            _read_layers,
            _write_layers,
        ),
        Field(
            ("text_cfg.context_length",),
            (*(f"{path}.context_length" for path in _WORDS), f"{_STACK}.position.sizes.0"),
            lambda length: [length, length, length + 1],
            lambda length, *_: [length],
        ),
        same("text_cfg.vocab_size", *(f"{path}.rows" for path in _WORDS)),
        same("text_cfg.proj_bias", "encoders.text.projection.bias"),
        *(fixed(f"text_cfg.{key}", False) for key in (*_CUSTOM, "no_causal_mask")),
        *(fixed(f"text_cfg.{key}", None) for key in ("norm_kwargs", "hf_model_name")),
        *(
            fixed(f"text_cfg.{key}", value)
            for key, value in (("embed_cls", True), ("proj_type", "linear"), ("pad_id", 0))
        ),
        Field(_HANDED_ON, (), lambda *_: [], lambda: [True, True]),
        temperature("init_logit_scale"),
        BOUND,
        Field(("nonscalar_logit_scale",), (), lambda _: [], lambda: [False]),
    ),
    rules=_rules,
    defaults={
        **under("vision_cfg", {**PICTURE_DEFAULTS, "attn_pooler_queries": 256, "attn_pooler_heads": 8}),
        **under("text_cfg", _TEXT),
        **under("multimodal_cfg", {"width": 512, "heads": 8, "layers": 12, "ls_init_value": None}),
        **{"quick_gelu": False, "init_logit_scale": 2.6592600369327783, "init_logit_bias": None},
        **{"nonscalar_logit_scale": False, **dict.fromkeys(_HANDED_ON, True)},
    },
    ignored=(*IGNORED, "vision_cfg.final_ln_after_pool", "text_cfg.pool_type", "multimodal_cfg.*"),
    text=_WORDS,
    picture="encoders.image.tokenizer",
)
