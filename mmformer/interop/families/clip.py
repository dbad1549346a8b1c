"""CLIP as transformers keeps it (``models/clip``): both towers, or one of them with its projection."""

from __future__ import annotations

from mmformer.interop.family import Family, Layout
from mmformer.interop.fields import Field, same
from mmformer.interop.plain import Data
from mmformer.interop.rules import Rule, counted, viewed
from mmformer.interop.rules import same as named
from mmformer.interop.temperature import log_scale, temperature
from mmformer.interop.towers import layer_rules, patches, picture_fields, places, text_fields, under

_SHARED = {"hidden_act": "quick_gelu", "layer_norm_eps": 1e-5, "attention_dropout": 0.0, "num_hidden_layers": 12}
_PICTURE = _SHARED | {
    **{"hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12, "num_channels": 3},
    **{"image_size": 224, "patch_size": 32, "projection_dim": 512},
}
_TEXT = _SHARED | {
    **{"hidden_size": 512, "intermediate_size": 2048, "num_attention_heads": 8},
    **{"vocab_size": 49408, "max_position_embeddings": 77, "projection_dim": 512},
}
_JOINT = {"projection_dim": 512, "logit_scale_init_value": 2.6592}
_EVERYWHERE = (
    *("dropout", "tie_word_embeddings", "is_decoder", "is_encoder_decoder", "tie_encoder_decoder"),
    *("add_cross_attention", "cross_attention_hidden_size"),
)
_IGNORED = tuple(f"{at}{key}" for key in _EVERYWHERE for at in ("", "text_config.", "vision_config."))
"""What transformers 4 wrote into every config, and no tower reads."""


def picture_rules(config: Data) -> list[Rule]:
    embeddings, width = "vision_model.embeddings", config["hidden_size"]
    return [
        viewed("encoders.image.special", f"{embeddings}.class_embedding", (width,)),
        patches(f"{embeddings}.patch_embedding.weight", width, config["patch_size"]),
        named("stacks.image.position.weight", f"{embeddings}.position_embedding.weight"),
        counted(f"{embeddings}.position_ids", places(config) + 1),
        named("stacks.image.input_norm.{p}", "vision_model.pre_layrnorm.{p}"),
        *layer_rules("stacks.image", "vision_model.encoder"),
        named("stacks.image.norm.{p}", "vision_model.post_layernorm.{p}"),
        named("encoders.image.projection.weight", "visual_projection.weight"),
    ]


def _text_rules(config: Data) -> list[Rule]:
    embeddings = "text_model.embeddings"
    return [
        named("encoders.text.tokenizer.weight", f"{embeddings}.token_embedding.weight"),
        named("stacks.text.position.weight", f"{embeddings}.position_embedding.weight"),
        counted(f"{embeddings}.position_ids", config["max_position_embeddings"]),
        *layer_rules("stacks.text", "text_model.encoder"),
        named("stacks.text.norm.{p}", "text_model.final_layer_norm.{p}"),
        named("encoders.text.projection.weight", "text_projection.weight"),
    ]


def _rules(config: Data) -> list[Rule]:
    towers = [*picture_rules(config["vision_config"]), *_text_rules(config["text_config"])]
    return [*towers, log_scale("logit_scale")]


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
        Field(("text_config.eos_token_id",), (), lambda _: [], lambda: [2]),  # whose meaning is the highest id
    ),
    rules=_rules,
    defaults={**under("vision_config", _PICTURE), **under("text_config", _TEXT | {"eos_token_id": 49407}), **_JOINT},
    ignored=(*_IGNORED, "*_config.projection_dim", "*_config_dict"),
    text=("encoders.text.tokenizer",),
    picture="encoders.image.tokenizer",
)

PICTURES = Family(
    library="hf",
    name="clip_vision_model",
    template="clip.yaml",
    layouts={"CLIPVisionModelWithProjection": Layout(without=("stacks.text", "encoders.text", "heads"))},
    fields=(*picture_fields(""), same("projection_dim", "encoders.image.embedding")),
    rules=picture_rules,
    defaults=_PICTURE,
    ignored=_IGNORED,
    picture="encoders.image.tokenizer",
)

TEXTS = Family(
    library="hf",
    name="clip_text_model",
    template="clip.yaml",
    layouts={"CLIPTextModelWithProjection": Layout(without=("stacks.image", "encoders.image", "heads"))},
    fields=(*text_fields(""), same("projection_dim", "encoders.text.embedding")),
    rules=_text_rules,
    defaults=_TEXT,
    ignored=_IGNORED,
    text=("encoders.text.tokenizer",),
)
