"""CLIP as transformers keeps it (``models/clip``): both towers; each alone is in ``clip_towers``."""

from __future__ import annotations

from mmformer.interop import clips
from mmformer.interop.family import Family, Layout
from mmformer.interop.fields import same
from mmformer.interop.plain import Data
from mmformer.interop.rules import Rule
from mmformer.interop.temperature import log_scale, temperature
from mmformer.interop.towers import picture_fields, text_fields, under


def _rules(config: Data) -> list[Rule]:
    both = [*clips.picture_rules(config["vision_config"]), *clips.text_rules(config["text_config"])]
    return [*both, log_scale("logit_scale")]


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
        **under("vision_config", clips.PICTURE),
        **under("text_config", clips.TEXT),
        **{"projection_dim": 512, "logit_scale_init_value": 2.6592},
    },
    ignored=(*clips.IGNORED, "*_config.projection_dim", "*_config_dict"),
    text=("encoders.text.tokenizer",),
    text_end=clips.text_end("text_config."),
    special={"pad": "text_config.pad_token_id", "bos": "text_config.bos_token_id"},
    picture="encoders.image.tokenizer",
)
