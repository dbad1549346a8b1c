"""CLIP as open_clip keeps it (``CLIP`` and ``CustomTextCLIP``, with a vision transformer of its own)."""

from __future__ import annotations

from mmformer.interop.family import Family, Layout
from mmformer.interop.fields import fixed, same
from mmformer.interop.open_clip_towers import (
    IGNORED,
    PAIR_DEFAULTS,
    PICTURE_DEFAULTS,
    TEXT_DEFAULTS,
    activations,
    end_field,
    pair_fields,
    pair_rules,
    picture_fields,
    picture_rules,
    text_end,
    text_fields,
    text_rules,
)
from mmformer.interop.plain import Data
from mmformer.interop.rules import Rule
from mmformer.interop.rules import same as named
from mmformer.interop.towers import under


def _rules(config: Data) -> list[Rule]:
    return [
        *picture_rules(config),
        named("stacks.image.norm.{p}", "visual.ln_post.{p}"),
        named("encoders.image.norm.{p}", "visual.ln_post.{p}"),  # where it comes after the pool
        *text_rules(config),
        *pair_rules(config),
    ]


CLIP = Family(
    library="open_clip",
    name="CLIP",
    template="clip.yaml",
    layouts={"CLIP": Layout(), "CustomTextCLIP": Layout("text.")},
    fields=(
        same("embed_dim", "encoders.image.embedding", "encoders.text.embedding"),
        activations(("vision_cfg", "stacks.image"), ("text_cfg", "stacks.text")),
        *picture_fields(),
        end_field(),
        fixed("vision_cfg.attentional_pool", False),
        *text_fields(),
        *pair_fields(),
    ),
    rules=_rules,
    defaults={**under("vision_cfg", PICTURE_DEFAULTS), **under("text_cfg", TEXT_DEFAULTS), **PAIR_DEFAULTS},
    ignored=IGNORED,
    text=("encoders.text.tokenizer",),
    text_end=text_end(),
    picture="encoders.image.tokenizer",
)
