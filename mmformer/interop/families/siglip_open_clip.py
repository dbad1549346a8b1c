"""SigLIP as open_clip keeps it: a tower of timm for pictures, a text transformer of its own."""

from __future__ import annotations

from mmformer.interop.family import Family, Layout
from mmformer.interop.fields import Field, fixed, same
from mmformer.interop.open_clip_towers import IGNORED, TEXT_DEFAULTS, activations, text_fields, text_rules
from mmformer.interop.plain import Data
from mmformer.interop.rules import Rule, viewed
from mmformer.interop.temperature import BOUND, log_scale, temperature
from mmformer.interop.timm_towers import tower_field, tower_of, tower_rules
from mmformer.interop.towers import under


def _rules(config: Data) -> list[Rule]:
    shape = (1,) if config["nonscalar_logit_scale"] else ()
    return [
        *tower_rules("visual.trunk.", tower_of(config["vision_cfg"]["timm_model_name"])),
        *text_rules(config),
        log_scale("logit_scale", shape, bounded=config["init_logit_bias"] is None),
        viewed("heads.contrastive.bias", "logit_bias", shape),
    ]


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
        fixed("text_cfg.embed_cls", False),
        temperature("init_logit_scale"),
        BOUND,
        Field(("nonscalar_logit_scale",), (), lambda _: [], lambda: [False]),
    ),
    rules=_rules,
    defaults={
        **under("vision_cfg", {"image_size": 224, "timm_drop_path": 0.0, "patch_dropout": 0.0, "timm_pool": "avg"}),
        **under("vision_cfg", {"timm_proj": "linear"}),
        **under("text_cfg", TEXT_DEFAULTS),
        **{"quick_gelu": False, "init_logit_scale": 2.6592600369327783, "init_logit_bias": None},
        "nonscalar_logit_scale": False,
    },
    ignored=(*IGNORED, "vision_cfg.timm_drop", "vision_cfg.timm_model_pretrained", "vision_cfg.timm_proj_bias"),
    text=("encoders.text.tokenizer",),
    picture="encoders.image.tokenizer",
)
