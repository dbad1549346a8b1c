"""CLIP as transformers keeps it (``models/clip``): both towers, or one of them with its projection."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mmformer.interop import towers
from mmformer.interop.family import Family, Layout
from mmformer.interop.fields import Field, find, same
from mmformer.interop.plain import Data
from mmformer.interop.rules import Rule, viewed
from mmformer.interop.rules import same as named
from mmformer.interop.temperature import log_scale, temperature
from mmformer.interop.text_end import TextEnd
from mmformer.interop.towers import picture_fields, text_fields, under

_SHARED = {"hidden_act": "quick_gelu", "layer_norm_eps": 1e-5, "attention_dropout": 0.0, "num_hidden_layers": 12}
PICTURE = _SHARED | {
    **{"hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12, "num_channels": 3},
    **{"image_size": 224, "patch_size": 32, "projection_dim": 512},
}
_TEXT = _SHARED | {
    **{"hidden_size": 512, "intermediate_size": 2048, "num_attention_heads": 8, "eos_token_id": 49407},
    **{"vocab_size": 49408, "max_position_embeddings": 77, "projection_dim": 512},
}
_EVERYWHERE = (
    *("dropout", "tie_word_embeddings", "is_decoder", "is_encoder_decoder", "tie_encoder_decoder"),
    *("add_cross_attention", "cross_attention_hidden_size"),
)
_IGNORED = tuple(f"{at}{key}" for key in _EVERYWHERE for at in ("", "text_config.", "vision_config."))
"""What transformers 4 wrote into every config, and no tower reads."""


def picture_rules(config: Data) -> list[Rule]:
    return [
        viewed("encoders.image.special", "vision_model.embeddings.class_embedding", (config["hidden_size"],)),
        named("stacks.image.input_norm.{p}", "vision_model.pre_layrnorm.{p}"),
        *towers.picture_rules(config, special=1),
        named("encoders.image.projection.weight", "visual_projection.weight"),
    ]


def _text_rules(config: Data) -> list[Rule]:
    return [*towers.text_rules(config), named("encoders.text.projection.weight", "text_projection.weight")]


def _rules(config: Data) -> list[Rule]:
    both = [*picture_rules(config["vision_config"]), *_text_rules(config["text_config"])]
    return [*both, log_scale("logit_scale")]


def _end(at: str) -> TextEnd:
    """The first place of an id, but 2 is for the highest that a text has: so configs were written at first."""

    def read(config: Data) -> int | None:
        end, rows = (find(config, f"{at}{key}") for key in ("eos_token_id", "vocab_size"))
        return rows - 1 if end == 2 else end if isinstance(end, int) else None

    def write(end: int, highest: bool) -> Mapping[str, Any]:
        if end == 2 and not highest:
            raise ValueError("an eos_token_id, where 2 means its highest id: export it --to open_clip")
        return {f"{at}eos_token_id": end}

    return TextEnd("encoders.text.tokenizer", read, write)


CLIP = Family(
    library="hf",
    name="clip",
    template="clip.yaml",
    layouts={"CLIPModel": Layout()},
    fields=(
        *picture_fields("vision_config."),
        *text_fields("text_config."),
        same("projection_dim", "encoders.image.embedding", "encoders.text.embedding"),
        temperature("logit_scale_init_value"),
    ),
    rules=_rules,
    defaults={
        **under("vision_config", PICTURE),
        **under("text_config", _TEXT),
        **{"projection_dim": 512, "logit_scale_init_value": 2.6592},
    },
    ignored=(*_IGNORED, "*_config.projection_dim", "*_config_dict"),
    text=("encoders.text.tokenizer",),
    text_end=_end("text_config."),
    special={"pad": "text_config.pad_token_id", "bos": "text_config.bos_token_id"},
    picture="encoders.image.tokenizer",
)


def _tower(kind: str, own: str, other: str, *fields: Field, **more: Any) -> Family:
    """One tower and its projection, ``own`` with us; ``other`` is the one that is not there."""
    return Family(
        library="hf",
        name=f"clip_{kind.lower()}_model",
        template="clip.yaml",
        layouts={f"CLIP{kind}ModelWithProjection": Layout(without=(f"stacks.{other}", f"encoders.{other}", "heads"))},
        fields=(*fields, same("projection_dim", f"encoders.{own}.embedding")),
        ignored=_IGNORED,
        **more,
    )


PICTURES = _tower(
    "Vision", "image", "text", *picture_fields(""), rules=picture_rules, defaults=PICTURE, picture=CLIP.picture
)
TEXTS = _tower(
    "Text",
    "text",
    "image",
    *text_fields(""),
    rules=_text_rules,
    defaults=_TEXT,
    text=CLIP.text,
    text_end=_end(""),
    special={"pad": "pad_token_id", "bos": "bos_token_id"},
)
