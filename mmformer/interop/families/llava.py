"""LLaVA as transformers keeps it (``models/llava``): CLIP's pictures in the places of placeholders in Llama's texts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mmformer.interop.families.clip import picture_rules
from mmformer.interop.families.llama import DENSE, IGNORED, dense_fields, dense_rules
from mmformer.interop.family import Family, Layout
from mmformer.interop.fields import Field, choice, fixed, same
from mmformer.interop.plain import Data
from mmformer.interop.rules import Rule, rooted
from mmformer.interop.rules import same as named
from mmformer.interop.towers import picture_fields, under

_TEXT = "decoders.text"
_BRIDGE, _THEIRS = "decoders.text.bridges.image", "multi_modal_projector.linear"
_PICTURE = {
    **{"hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12, "num_hidden_layers": 12},
    **{"image_size": 224, "patch_size": 32, "num_channels": 3, "hidden_act": "quick_gelu", "layer_norm_eps": 1e-5},
    **{"attention_dropout": 0.0, "model_type": "clip_vision_model"},
}


def _rules(config: Data) -> list[Rule]:
    texts = rooted(dense_rules(config["text_config"]), "{base}", "language_model.model.")
    return [
        *rooted(picture_rules(config["vision_config"]), "vision_model.", "{base}"),
        *rooted(texts, "lm_head.", "language_model.lm_head."),
        named(f"{_BRIDGE}.0.{{p}}", f"{_THEIRS}_1.{{p}}"),
        named(f"{_BRIDGE}.2.{{p}}", f"{_THEIRS}_2.{{p}}"),
    ]


def _run(layer: Any, depth: int) -> Sequence[Any]:
    """How many layers are run, of the number of one, from the first, 1, or from the last, -1."""
    if not isinstance(layer, int) or not -depth <= layer <= depth or layer in (0, -depth - 1):
        raise ValueError("one layer, of those that there are")
    return [layer % (depth + 1), depth]


def _layer(run: int | None, depth: int) -> Sequence[Any]:
    if run is None or run >= depth:
        raise ValueError("a number of layers below the depth: transformers reads them without the final norm")
    return [run - depth - 1, depth]


LLAVA = Family(
    library="hf",
    name="llava",
    template="llava.yaml",
    layouts={
        "LlavaForConditionalGeneration": Layout("vision_tower."),
        "LlavaForConditionalGeneration (before version 5)": Layout(
            "vision_tower.vision_model.", mark="vision_tower.vision_model."
        ),
    },
    fields=(
        *picture_fields("vision_config."),
        *dense_fields("text_config."),
        fixed("vision_config.model_type", "clip_vision_model"),
        fixed("text_config.model_type", "llama"),
        same("image_token_index", f"{_TEXT}.placeholder"),
        choice("vision_feature_select_strategy", {"default": True, "full": False}, f"{_TEXT}.content"),
        same("multimodal_projector_bias", f"{_TEXT}.bridge.bias", f"{_TEXT}.bridge.hidden_bias"),
        Field(
            ("text_config.hidden_size",), (f"{_TEXT}.bridge.hidden",), lambda width: [width], lambda hidden: [hidden]
        ),
        fixed("projector_hidden_act", "gelu"),
        Field(
            ("vision_feature_layer", "vision_config.num_hidden_layers"),
            ("encoders.image.layers", "stacks.image.depth"),
            _run,
            _layer,
        ),
    ),
    rules=_rules,
    defaults={
        **under("vision_config", _PICTURE),
        **under("text_config", DENSE),
        "text_config.model_type": "llama",
        "image_token_index": 32000,
        "vision_feature_layer": -2,
        "vision_feature_select_strategy": "default",
        "multimodal_projector_bias": True,
        "projector_hidden_act": "gelu",
    },
    ignored=(
        "image_seq_length",  # it follows from the size of pictures
        *("tie_word_embeddings", "vision_config.projection_dim", "vision_config.vocab_size"),
        *(f"text_config.{name}" for name in IGNORED),
    ),
    text=(f"{_TEXT}.tokenizer",),
    picture="encoders.image.tokenizer",
)
