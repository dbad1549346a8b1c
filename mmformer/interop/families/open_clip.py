"""CLIP as open_clip keeps it (``CLIP`` and ``CustomTextCLIP``, with a vision transformer of its own)."""

from __future__ import annotations

from mmformer.interop.family import Family, Layout
from mmformer.interop.fields import Field, fixed, same
from mmformer.interop.open_clip_towers import (
    IGNORED,
    PICTURE_DEFAULTS,
    TEXT_DEFAULTS,
    activations,
    end_field,
    layer_rules,
    picture_fields,
    text_fields,
    text_rules,
)
from mmformer.interop.plain import Data
from mmformer.interop.rules import Rule, transposed, viewed
from mmformer.interop.rules import same as named
from mmformer.interop.temperature import BOUND, log_scale, temperature
from mmformer.interop.towers import patches, under


def _rules(config: Data) -> list[Rule]:
    seen, shape = config["vision_cfg"], (1,) if config["nonscalar_logit_scale"] else ()
    return [
        viewed("encoders.image.special", "visual.class_embedding", (seen["width"],)),
        patches("visual.conv1.weight", seen["width"], seen["patch_size"]),
        named("stacks.image.position.weight", "visual.positional_embedding"),
        named("stacks.image.input_norm.{p}", "visual.ln_pre.{p}"),
        *layer_rules("stacks.image", "visual.transformer"),
        named("stacks.image.norm.{p}", "visual.ln_post.{p}"),
        named("encoders.image.norm.{p}", "visual.ln_post.{p}"),  # where it comes after the pool
        transposed("encoders.image.projection.weight", "visual.proj"),
        *text_rules(config),
        log_scale("logit_scale", shape, bounded=config["init_logit_bias"] is None),
        viewed("heads.contrastive.bias", "logit_bias", shape),
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
        fixed("text_cfg.embed_cls", False),
        temperature("init_logit_scale"),
        BOUND,
        Field(("nonscalar_logit_scale",), (), lambda _: [], lambda: [False]),
    ),
    rules=_rules,
    defaults={
        **under("vision_cfg", PICTURE_DEFAULTS),
        **under("text_cfg", TEXT_DEFAULTS),
        **{"quick_gelu": False, "init_logit_scale": 2.6592600369327783, "init_logit_bias": None},
        "nonscalar_logit_scale": False,
    },
    ignored=IGNORED,
    text=("encoders.text.tokenizer",),
    picture="encoders.image.tokenizer",
)
