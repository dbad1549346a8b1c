"""CLIP as transformers names it: what its family shares with its towers' own, and with LLaVA."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mmformer.interop import towers
from mmformer.interop.fields import find
from mmformer.interop.plain import Data
from mmformer.interop.rules import Rule, viewed
from mmformer.interop.rules import same as named
from mmformer.interop.text_end import TextEnd

_SHARED = {"hidden_act": "quick_gelu", "layer_norm_eps": 1e-5, "attention_dropout": 0.0, "num_hidden_layers": 12}
PICTURE = _SHARED | {
    **{"hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12, "num_channels": 3},
    **{"image_size": 224, "patch_size": 32, "projection_dim": 512},
}
TEXT = _SHARED | {
    **{"hidden_size": 512, "intermediate_size": 2048, "num_attention_heads": 8, "eos_token_id": 49407},
    **{"vocab_size": 49408, "max_position_embeddings": 77, "projection_dim": 512},
}
_EVERYWHERE = (
    *("dropout", "tie_word_embeddings", "is_decoder", "is_encoder_decoder", "tie_encoder_decoder"),
    *("add_cross_attention", "cross_attention_hidden_size"),
)
IGNORED = tuple(f"{at}{key}" for key in _EVERYWHERE for at in ("", "text_config.", "vision_config."))
"""What transformers 4 wrote into every config, and no tower reads."""


def picture_rules(config: Data) -> list[Rule]:
    """Of the tower of pictures and its projection, for a vision config."""
    return [
        viewed("encoders.image.special", "vision_model.embeddings.class_embedding", (config["hidden_size"],)),
        named("stacks.image.input_norm.{p}", "vision_model.pre_layrnorm.{p}"),
        *towers.picture_rules(config, special=1),
        named("encoders.image.projection.weight", "visual_projection.weight"),
    ]


def text_rules(config: Data) -> list[Rule]:
    """Of the tower of texts and its projection, for a text config."""
    return [*towers.text_rules(config), named("encoders.text.projection.weight", "text_projection.weight")]


def text_end(at: str) -> TextEnd:
    """The first place of an id, but 2 is for the highest that a text has: so configs were written at first."""

    def read(config: Data) -> int | None:
        end, rows = (find(config, f"{at}{key}") for key in ("eos_token_id", "vocab_size"))
        return rows - 1 if end == 2 else end if isinstance(end, int) else None

    def write(end: int, highest: bool) -> Mapping[str, Any]:
        if end == 2 and not highest:
            raise ValueError("an eos_token_id, where 2 means its highest id: export it --to open_clip")
        return {f"{at}eos_token_id": end}

    return TextEnd("encoders.text.tokenizer", read, write)
