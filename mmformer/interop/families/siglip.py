"""SigLIP as transformers keeps it (``models/siglip``)."""

from __future__ import annotations

from mmformer.interop.family import TEXT_SPECIAL, Family, Layout
from mmformer.interop.fields import fixed, same
from mmformer.interop.plain import Data
from mmformer.interop.rules import Rule, split
from mmformer.interop.rules import same as named
from mmformer.interop.temperature import log_scale
from mmformer.interop.towers import picture_fields, picture_rules, text_fields, text_rules, under

_POOL = "encoders.image.pool"
_SHARED = {"hidden_act": "gelu_pytorch_tanh", "layer_norm_eps": 1e-6, "attention_dropout": 0.0, "hidden_size": 768}
_SHARED |= {"intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12}
_PICTURE = _SHARED | {"num_channels": 3, "image_size": 224, "patch_size": 16, "vision_use_head": True}
_TEXT = _SHARED | {
    **{"vocab_size": 32000, "max_position_embeddings": 64},
    "projection_size": lambda config: config["hidden_size"],
}


def _rules(config: Data) -> list[Rule]:
    head = "vision_model.head"
    return [
        *picture_rules(config["vision_config"]),
        named(f"{_POOL}.query", f"{head}.probe"),
        split([f"{_POOL}.attention.{x}.{{p}}" for x in ("q", "kv")], f"{head}.attention.in_proj_{{p}}"),
        named(f"{_POOL}.attention.out.{{p}}", f"{head}.attention.out_proj.{{p}}"),
        named(f"{_POOL}.norm.{{p}}", f"{head}.layernorm.{{p}}"),
        named(f"{_POOL}.feedforward.up.{{p}}", f"{head}.mlp.fc1.{{p}}"),
        named(f"{_POOL}.feedforward.down.{{p}}", f"{head}.mlp.fc2.{{p}}"),
        *text_rules(config["text_config"]),
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
    special=TEXT_SPECIAL,
    picture="encoders.image.tokenizer",
)
