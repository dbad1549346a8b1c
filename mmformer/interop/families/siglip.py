"""SigLIP as transformers keeps it (``models/siglip``)."""

from __future__ import annotations

from mmformer.interop.family import Family, Layout
from mmformer.interop.fields import fixed, same
from mmformer.interop.plain import Data
from mmformer.interop.rules import Rule, counted, split
from mmformer.interop.rules import same as named
from mmformer.interop.temperature import log_scale
from mmformer.interop.towers import layer_rules, patches, picture_fields, places, text_fields, under

_POOL = "encoders.image.pool"
_SHARED = {"hidden_act": "gelu_pytorch_tanh", "layer_norm_eps": 1e-6, "attention_dropout": 0.0, "hidden_size": 768}
_SHARED |= {"intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12}
_PICTURE = _SHARED | {"num_channels": 3, "image_size": 224, "patch_size": 16, "vision_use_head": True}
_TEXT = _SHARED | {
    **{"vocab_size": 32000, "max_position_embeddings": 64},
    "projection_size": lambda config: config["text_config"]["hidden_size"],
}


def _rules(config: Data) -> list[Rule]:
    seen, read, base = config["vision_config"], config["text_config"], "vision_model"
    embeddings, words = f"{base}.embeddings", "text_model.embeddings"
    return [
        patches(f"{embeddings}.patch_embedding.weight", seen["hidden_size"], seen["patch_size"]),
        named("encoders.image.tokenizer.projection.bias", f"{embeddings}.patch_embedding.bias"),
        named("stacks.image.position.weight", f"{embeddings}.position_embedding.weight"),
        counted(f"{embeddings}.position_ids", places(seen)),
        *layer_rules("stacks.image", f"{base}.encoder"),
        named("stacks.image.norm.{p}", f"{base}.post_layernorm.{{p}}"),
        named(f"{_POOL}.query", f"{base}.head.probe"),
        split([f"{_POOL}.attention.{x}.{{p}}" for x in ("q", "kv")], f"{base}.head.attention.in_proj_{{p}}"),
        named(f"{_POOL}.attention.out.{{p}}", f"{base}.head.attention.out_proj.{{p}}"),
        named(f"{_POOL}.norm.{{p}}", f"{base}.head.layernorm.{{p}}"),
        named(f"{_POOL}.feedforward.up.{{p}}", f"{base}.head.mlp.fc1.{{p}}"),
        named(f"{_POOL}.feedforward.down.{{p}}", f"{base}.head.mlp.fc2.{{p}}"),
        named("encoders.text.tokenizer.weight", f"{words}.token_embedding.weight"),
        named("stacks.text.position.weight", f"{words}.position_embedding.weight"),
        counted(f"{words}.position_ids", read["max_position_embeddings"]),
        *layer_rules("stacks.text", "text_model.encoder"),
        named("stacks.text.norm.{p}", "text_model.final_layer_norm.{p}"),
        named("encoders.text.projection.{p}", "text_model.head.{p}"),
        log_scale("logit_scale", (1,), bounded=False),
        named("heads.contrastive.bias", "logit_bias"),
    ]


SIGLIP = Family(
    library="hf",
    name="siglip",
    template="siglip.yaml",
    layouts={"SiglipModel": Layout()},
    fields=(
        *picture_fields("vision_config.", _POOL),
        fixed("vision_config.vision_use_head", True),
        *text_fields("text_config."),
        same("text_config.projection_size", "encoders.text.embedding"),
    ),
    rules=_rules,
    defaults={**under("vision_config", _PICTURE), **under("text_config", _TEXT)},
    ignored=("*tie_word_embeddings", "*_config_dict"),
    text=("encoders.text.tokenizer",),
    picture="encoders.image.tokenizer",
)
