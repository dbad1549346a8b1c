"""CoCa as open_clip keeps it (``CoCa``): its text tower and its decoder are one stack with us."""

from __future__ import annotations

from mmformer.interop.coca_layers import POOLER, STACK, layers_field, layers_rules, pooler_rules
from mmformer.interop.family import Family, Layout
from mmformer.interop.fields import Field, fixed, same
from mmformer.interop.open_clip_towers import (
    CUSTOM,
    IGNORED,
    PAIR_DEFAULTS,
    PICTURE_DEFAULTS,
    TEXT_DEFAULTS,
    activations,
    pair_fields,
    pair_rules,
    picture_fields,
    picture_rules,
    text_projection,
)
from mmformer.interop.plain import Data
from mmformer.interop.rules import Rule, transposed, viewed
from mmformer.interop.rules import same as named
from mmformer.interop.towers import under

_WORDS = ("encoders.text.tokenizer", "decoders.caption.tokenizer")


def _rules(config: Data) -> list[Rule]:
    read = config["text_cfg"]
    return [
        *picture_rules(config),
        *pooler_rules(config["vision_cfg"]["width"], config["embed_dim"]),
        viewed("encoders.text.special", "{base}cls_emb", (read["width"],)),
        named("encoders.text.tokenizer.weight", "{base}token_embedding.weight"),
        named(f"{STACK}.position.weight", "{base}positional_embedding"),
        named("encoders.text.norm.{p}", "{base}ln_final.{p}"),
        text_projection(config),
        *layers_rules(read["layers"], config["multimodal_cfg"]["layers"]),
        named(f"{STACK}.norm.{{p}}", "text_decoder.ln_final.{p}"),
        transposed("decoders.caption.output.weight", "text_decoder.text_projection"),
        *pair_rules(config),
    ]


_HANDED_ON = ("vision_cfg.output_tokens", "text_cfg.output_tokens")
"""Without which open_clip's CoCa does not run."""

_FIXED = {
    **{**dict.fromkeys(CUSTOM, False), "no_causal_mask": False, "norm_kwargs": None, "hf_model_name": None},
    **{"embed_cls": True, "proj_type": "linear", "pad_id": 0},
}
_CAPTIONER = {"width": 512, "heads": 8, "layers": 12, "ls_init_value": None}

COCA = Family(
    library="open_clip",
    name="CoCa",
    template="coca.yaml",
    layouts={"CoCa": Layout("text.")},
    fields=(
        same("embed_dim", f"{POOLER}.width", "encoders.image.embedding", "encoders.text.embedding"),
        activations(("vision_cfg", "stacks.image")),
        *picture_fields(),
        fixed("vision_cfg.attentional_pool", True),
        fixed("vision_cfg.pool_type", "tok"),
        same("vision_cfg.attn_pooler_queries", f"{POOLER}.queries"),
        same("vision_cfg.attn_pooler_heads", f"{POOLER}.attention.heads"),
        fixed("vision_cfg.norm_kwargs", None),  # the pooler would not hear of it
        layers_field(),
        Field(
            ("text_cfg.context_length",),
            (*(f"{path}.context_length" for path in _WORDS), f"{STACK}.position.sizes.0"),
            lambda length: [length, length, length + 1],
            lambda length, *_: [length],
        ),
        same("text_cfg.vocab_size", *(f"{path}.rows" for path in _WORDS)),
        same("text_cfg.proj_bias", "encoders.text.projection.bias"),
        *(fixed(f"text_cfg.{key}", value) for key, value in _FIXED.items()),
        Field(_HANDED_ON, (), lambda *_: [], lambda: [True, True]),
        *pair_fields(),
    ),
    rules=_rules,
    defaults={
        **under("vision_cfg", {**PICTURE_DEFAULTS, "attn_pooler_queries": 256, "attn_pooler_heads": 8}),
        **under("text_cfg", {**TEXT_DEFAULTS, "pad_id": 0}),
        **under("multimodal_cfg", _CAPTIONER),
        **PAIR_DEFAULTS,
        **dict.fromkeys(_HANDED_ON, True),
    },
    ignored=(*IGNORED, "vision_cfg.final_ln_after_pool", "text_cfg.pool_type", "multimodal_cfg.*"),
    text=_WORDS,
    picture="encoders.image.tokenizer",
)
