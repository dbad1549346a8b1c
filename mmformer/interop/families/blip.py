"""BLIP's captioner as transformers keeps it (``models/blip``)."""

from __future__ import annotations

from mmformer.interop import berts
from mmformer.interop.family import Family, Layout
from mmformer.interop.fields import fixed, same
from mmformer.interop.plain import Data
from mmformer.interop.rules import Rule, counted, rooted, viewed
from mmformer.interop.rules import same as named
from mmformer.interop.towers import patches, picture_fields, places, under

_TEXT = "decoders.text"
_PICTURE = {
    **{"hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12, "num_hidden_layers": 12},
    **{"image_size": 384, "patch_size": 16, "num_channels": 3, "hidden_act": "gelu", "layer_norm_eps": 1e-5},
    "attention_dropout": 0.0,
}
_WORDS = {
    **{"hidden_size": 768, "encoder_hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 8},
    **{"num_hidden_layers": 12, "vocab_size": 30524, "max_position_embeddings": 512, "hidden_act": "gelu"},
    **{"layer_norm_eps": 1e-12, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0},
    **{"bos_token_id": 30522, "sep_token_id": 102, "pad_token_id": 0, "label_smoothing": 0.0, "is_decoder": True},
}


def _picture_rules(config: Data) -> list[Rule]:
    layer, theirs, width = "stacks.image.layers.{i}", "vision_model.encoder.layers.{i}", config["hidden_size"]
    embeddings = "vision_model.embeddings"
    return [
        viewed("encoders.image.special", f"{embeddings}.class_embedding", (1, 1, width)),
        patches(f"{embeddings}.patch_embedding.weight", width, config["patch_size"]),
        named("encoders.image.tokenizer.projection.bias", f"{embeddings}.patch_embedding.bias"),
        viewed("stacks.image.position.weight", f"{embeddings}.position_embedding", (1, places(config) + 1, width)),
        named(f"{layer}.mixer_residual.norm.{{p}}", f"{theirs}.layer_norm1.{{p}}"),
        named(f"{layer}.mixer.qkv.{{p}}", f"{theirs}.self_attn.qkv.{{p}}"),
        named(f"{layer}.mixer.out.{{p}}", f"{theirs}.self_attn.projection.{{p}}"),
        named(f"{layer}.feedforward_residual.norm.{{p}}", f"{theirs}.layer_norm2.{{p}}"),
        named(f"{layer}.feedforward.up.{{p}}", f"{theirs}.mlp.fc1.{{p}}"),
        named(f"{layer}.feedforward.down.{{p}}", f"{theirs}.mlp.fc2.{{p}}"),
        named("stacks.image.norm.{p}", "vision_model.post_layernorm.{p}"),
    ]


def _rules(config: Data) -> list[Rule]:
    texts = [*berts.embedding_rules(_TEXT), *berts.layer_rules(), *berts.prediction_rules(_TEXT, _TEXT, "logit_bias")]
    return [
        *_picture_rules(config["vision_config"]),
        counted("text_decoder.bert.embeddings.position_ids", config["text_config"]["max_position_embeddings"]),
        *rooted(rooted(texts, "{base}", "text_decoder.bert."), "cls.", "text_decoder.cls."),
    ]


BLIP = Family(
    library="hf",
    name="blip",
    template="blip.yaml",
    layouts={"BlipForConditionalGeneration": Layout()},
    fields=(
        *picture_fields("vision_config."),
        *berts.size_fields(_TEXT, "text_config."),
        *berts.layer_fields(_TEXT, "text_config.", ("mixer", "cross")),
        same("text_config.vocab_size", f"{_TEXT}.tokenizer.rows"),
        same("text_config.hidden_size", f"{berts.STACK}.width"),
        same("text_config.encoder_hidden_size", f"{berts.STACK}.memory_width"),
        same("text_config.label_smoothing", f"{_TEXT}.smoothing"),
        fixed("text_config.is_decoder", True),
    ),
    rules=_rules,
    defaults={**under("vision_config", _PICTURE), **under("text_config", _WORDS)},
    ignored=(
        *("image_text_hidden_size", "projection_dim", "logit_scale_init_value", "tie_word_embeddings"),
        *("label_smoothing", "*_config.projection_dim", "text_config.tie_word_embeddings", "*_config_dict"),
    ),
    text=(f"{_TEXT}.tokenizer",),
    special={"start": "text_config.bos_token_id", "eos": "text_config.sep_token_id", "pad": "text_config.pad_token_id"},
    unasked=False,
    picture="encoders.image.tokenizer",
)
