"""LLaVA as transformers keeps it (``models/llava``): CLIP's pictures in the places of placeholders in Llama's texts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mmformer.interop import clips, llamas
from mmformer.interop.family import TEXT_SPECIAL, Family, Layout
from mmformer.interop.fields import Field, all_fixed, choice, fixed, same
from mmformer.interop.llamas import TEXT
from mmformer.interop.plain import Data
from mmformer.interop.rules import Rule, rooted
from mmformer.interop.rules import same as named
from mmformer.interop.towers import picture_fields, under

_BEFORE = "vision_tower.vision_model."  # so transformers 4 wrote them
_CHOSEN = ("vision_feature_layer", "vision_config.num_hidden_layers")


def _rules(config: Data) -> list[Rule]:
    texts = rooted(llamas.dense_rules(config["text_config"]), "{base}", "language_model.model.")
    return [
        *rooted(clips.picture_rules(config["vision_config"]), "vision_model.", "{base}"),
        *rooted(texts, "lm_head.", "language_model.lm_head."),
        named(f"{TEXT}.bridges.image.0.{{p}}", "multi_modal_projector.linear_1.{p}"),
        named(f"{TEXT}.bridges.image.2.{{p}}", "multi_modal_projector.linear_2.{p}"),
    ]


def _run(layer: Any, depth: int) -> Sequence[Any]:
    """How many layers are run, of the number of one, from the first, 1, or from the last, -1."""
    if not isinstance(layer, int) or not -depth <= layer <= depth or layer == 0:
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
        "LlavaForConditionalGeneration": Layout("vision_tower.", unread=llamas.UNREAD),
        "LlavaForConditionalGeneration (before version 5)": Layout(_BEFORE, mark=_BEFORE, unread=llamas.UNREAD),
    },
    fields=(
        *picture_fields("vision_config."),
        *llamas.dense_fields("text_config."),
        *all_fixed({"vision_config.model_type": "clip_vision_model", "text_config.model_type": "llama"}),
        same("image_token_index", f"{TEXT}.placeholder"),
        choice("vision_feature_select_strategy", {"default": True, "full": False}, f"{TEXT}.content"),
        same("multimodal_projector_bias", f"{TEXT}.bridge.bias", f"{TEXT}.bridge.hidden_bias"),
        same("text_config.hidden_size", f"{TEXT}.bridge.hidden"),
        fixed("projector_hidden_act", "gelu"),
        Field(_CHOSEN, ("encoders.image.layers", "stacks.image.depth"), _run, _layer),
    ),
    rules=_rules,
    defaults={
        **under("vision_config", clips.PICTURE | {"model_type": "clip_vision_model"}),
        **under("text_config", llamas.DENSE | {"model_type": "llama"}),
        **{"image_token_index": 32000, "vision_feature_layer": -2, "vision_feature_select_strategy": "default"},
        **{"multimodal_projector_bias": True, "projector_hidden_act": "gelu"},
    },
    ignored=(
        *("image_seq_length", "ignore_index", "vocab_size"),  # of pictures' size, of the loss, what text_config says
        *("tie_word_embeddings", "vision_config.projection_dim", "vision_config.vocab_size"),
        *(f"text_config.{name}" for name in llamas.IGNORED),
    ),
    text=(f"{TEXT}.tokenizer",),
    special=TEXT_SPECIAL,
    picture="encoders.image.tokenizer",
)
