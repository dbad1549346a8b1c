"""SigLIP as open_clip keeps it: a tower of timm for pictures, a text transformer of its own."""

from __future__ import annotations

from mmformer.interop.family import Family, Layout
from mmformer.interop.fields import fixed, same
from mmformer.interop.open_clip_towers import (
    IGNORED,
    PAIR_DEFAULTS,
    TEXT_DEFAULTS,
    activations,
    pair_fields,
    pair_rules,
    text_fields,
    text_rules,
)
from mmformer.interop.plain import Data
from mmformer.interop.rules import Rule
from mmformer.interop.timm_towers import tower_field, tower_of, tower_rules
from mmformer.interop.towers import under

_PICTURE = {"image_size": 224, "timm_drop_path": 0.0, "patch_dropout": 0.0, "timm_pool": "avg", "timm_proj": "linear"}


def _rules(config: Data) -> list[Rule]:
    tower = tower_of(config["vision_cfg"]["timm_model_name"])
    return [*tower_rules("visual.trunk.", tower), *text_rules(config), *pair_rules(config)]


SIGLIP = Family(
    library="open_clip",
    name="SigLIP",
    template="siglip.yaml",
    layouts={"CustomTextCLIP": Layout("text."), "CLIP": Layout()},
    fields=(
        tower_field("vision_cfg.timm_model_name", "vision_cfg.image_size"),
        fixed("vision_cfg.timm_pool", "map"),
        fixed("vision_cfg.timm_proj", "none"),
        same("vision_cfg.timm_drop_path", "stacks.image.drop_path"),
        same("vision_cfg.patch_dropout", "encoders.image.patch_dropout"),
        same("embed_dim", "encoders.text.embedding"),
        activations(("text_cfg", "stacks.text")),
        *text_fields(),
        *pair_fields(),
    ),
    rules=_rules,
    defaults={**under("vision_cfg", _PICTURE), **under("text_cfg", TEXT_DEFAULTS), **PAIR_DEFAULTS},
    ignored=(*IGNORED, "vision_cfg.timm_drop", "vision_cfg.timm_model_pretrained", "vision_cfg.timm_proj_bias"),
    text=("encoders.text.tokenizer",),
    picture="encoders.image.tokenizer",
)
