"""ViT as transformers keeps it (``models/vit``)."""

from __future__ import annotations

from mmformer.interop.family import Family, Layout
from mmformer.interop.rules import same as named
from mmformer.interop.vits import IMAGE, POOLED_DEFAULTS, POOLED_FIELDS, POOLER, pooled_rules

VIT = Family(
    library="hf",
    name="vit",
    template="vit.yaml",
    layouts={
        "ViTForImageClassification": Layout("vit.", without=POOLER),
        "ViTModel": Layout(without=("heads.classes", *POOLER)),
        "ViTModel pooled": Layout(without=("heads.classes",), mark="pooler."),
    },
    fields=POOLED_FIELDS,
    rules=lambda config: [*pooled_rules(config, "cls_token"), named("heads.classes.projection.{p}", "classifier.{p}")],
    defaults=POOLED_DEFAULTS,
    ignored=("encoder_stride",),
    picture=f"{IMAGE}.tokenizer",
    classes=("heads.classes",),
)
