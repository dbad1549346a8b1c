"""DeiT as transformers keeps it, with its teacher and without (``models/deit``)."""

from __future__ import annotations

from mmformer.interop.family import Family, Layout
from mmformer.interop.rules import same as named
from mmformer.interop.vits import IMAGE, POOLED_DEFAULTS, POOLED_FIELDS, POOLER, pooled_rules

DEIT = Family(
    library="hf",
    name="deit",
    template="deit.yaml",
    layouts={
        "DeiTForImageClassificationWithTeacher": Layout("deit.", without=POOLER, words={"own": "cls_classifier"}),
        "DeiTForImageClassification": Layout(
            "deit.", without=(*POOLER, "heads.taught", "heads.classes"), words={"own": "classifier"}
        ),
        "DeiTModel": Layout(without=("heads.own", "heads.taught", "heads.classes", *POOLER)),
        "DeiTModel pooled": Layout(without=("heads.own", "heads.taught", "heads.classes"), mark="pooler."),
    },
    fields=POOLED_FIELDS,
    rules=lambda config: [
        *pooled_rules(config, "cls_token", "distillation_token"),
        named("heads.own.projection.{p}", "{own}.{p}"),
        named("heads.taught.projection.{p}", "distillation_classifier.{p}"),
    ],
    defaults=POOLED_DEFAULTS,
    ignored=("encoder_stride",),
    picture=f"{IMAGE}.tokenizer",
    classes=("heads.classes", "heads.own", "heads.taught"),
)
