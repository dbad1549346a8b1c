"""CoCa as open_clip keeps it (``CoCa``): its text tower and its decoder are one stack with us."""

from __future__ import annotations

from mmformer.interop import open_clip_towers
from mmformer.interop.coca_layers import STACK, layers_field, layers_rules, pooler_fields, pooler_rules
from mmformer.interop.family import Family, Layout
from mmformer.interop.fields import Field, all_fixed, same
from mmformer.interop.plain import Data
from mmformer.interop.rules import Rule, transposed, viewed
from mmformer.interop.rules import same as named
from mmformer.interop.towers import under

_WORDS = ("encoders.text.tokenizer", "decoders.caption.tokenizer")


def _rules(config: Data) -> list[Rule]:
    read = config["text_cfg"]
    return [
        *open_clip_towers.picture_rules(config),
        *pooler_rules(config["vision_cfg"]["width"], config["embed_dim"]),
        viewed("encoders.text.special", "{base}cls_emb", (read["width"],)),
        named("encoders.text.tokenizer.weight", "{base}token_embedding.weight"),
        named(f"{STACK}.position.weight", "{base}positional_embedding"),
        named("encoders.text.norm.{p}", "{base}ln_final.{p}"),
        open_clip_towers.text_projection(config),
        *layers_rules(read["layers"], config["multimodal_cfg"]["layers"]),
        named(f"{STACK}.norm.{{p}}", "text_decoder.ln_final.{p}"),
        transposed("decoders.caption.output.weight", "text_decoder.text_projection"),
        *open_clip_towers.pair_rules(config),
    ]


_HANDED_ON = ("vision_cfg.output_tokens", "text_cfg.output_tokens")
"""Without which open_clip's CoCa does not run."""

_FIXED = {"embed_cls": True, "no_causal_mask": False, "norm_kwargs": None, "pad_id": 0}
_PICTURE = {**open_clip_towers.PICTURE_DEFAULTS, "attn_pooler_queries": 256, "attn_pooler_heads": 8}
_CAPTIONER = {"width": 512, "heads": 8, "layers": 12, "ls_init_value": None}

COCA = Family(
    library="open_clip",
    name="CoCa",
    template="coca.yaml",
    layouts={"CoCa": Layout("text.")},
    fields=(
        same("embed_dim", "encoders.image.embedding", "encoders.text.embedding"),
        open_clip_towers.activations(("vision_cfg", "stacks.image")),
        *open_clip_towers.picture_fields(),
        *pooler_fields(),
        layers_field(),
        Field(
            ("text_cfg.context_length",),
            (*(f"{path}.context_length" for path in _WORDS), f"{STACK}.position.sizes.0"),
            lambda length: [length, length, length + 1],
            lambda length, *_: [length],
        ),
        same("text_cfg.vocab_size", *(f"{path}.rows" for path in _WORDS)),
        *open_clip_towers.text_projection_fields(),
        *open_clip_towers.plain_fields("text_cfg"),
        *all_fixed(under("text_cfg", _FIXED)),
        Field(_HANDED_ON, (), lambda *_: [], lambda: [True, True]),
        *open_clip_towers.pair_fields(),
    ),
    rules=_rules,
    defaults={
        **under("vision_cfg", _PICTURE),
        **under("text_cfg", {**open_clip_towers.TEXT_DEFAULTS, "pad_id": 0}),
        **under("multimodal_cfg", _CAPTIONER),
        **open_clip_towers.PAIR_DEFAULTS,
        **dict.fromkeys(_HANDED_ON, True),
    },
    ignored=(*open_clip_towers.IGNORED, "vision_cfg.final_ln_after_pool", "text_cfg.pool_type", "multimodal_cfg.*"),
    text=_WORDS,
    picture="encoders.image.tokenizer",
)
