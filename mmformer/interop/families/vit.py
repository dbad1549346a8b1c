"""ViT and DeiT as transformers keeps them (``models/vit``, ``models/deit``)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mmformer.interop import vits
from mmformer.interop.family import Family, Layout
from mmformer.interop.fields import Field, choice
from mmformer.interop.plain import Data
from mmformer.interop.rules import Rule
from mmformer.interop.rules import same as named
from mmformer.interop.vits import IMAGE, STACK

_POOLER = (f"{IMAGE}.embedding", f"{IMAGE}.projection")


def _read_pooler(width: int, pooled: int) -> Sequence[Any]:
    if pooled != width:
        raise ValueError("a pooler_output_size that is hidden_size")
    return [pooled, width]


_FIELDS = (
    Field(  # a classifier has no pooler: what this one's width would be is said by its stack
        ("hidden_size", "pooler_output_size"),
        (f"{IMAGE}.embedding", f"{STACK}.width"),
        _read_pooler,
        lambda _, width: [width, width],
    ),
    *vits.fields(f"{STACK}.layer.dropout", f"{STACK}.input_dropout"),
    vits.grid_field(),
    *vits.hidden_fields(),
    choice("pooler_act", {"tanh": "tanh", "linear": "none"}, f"{IMAGE}.projection.activation"),
)
_DEFAULTS = {
    **vits.DEFAULTS,
    **{"intermediate_size": 3072, "layer_norm_eps": 1e-12, "pooler_act": "tanh"},
    "pooler_output_size": lambda config: config["hidden_size"],
}


def _rules(config: Data, *special: str) -> list[Rule]:
    return [
        *vits.embedding_rules(config, dict.fromkeys(special, 1), len(special)),
        *vits.layer_rules(),
        named(f"{IMAGE}.projection.0.{{p}}", "{base}pooler.dense.{p}"),
    ]


VIT = Family(
    library="hf",
    name="vit",
    template="vit.yaml",
    layouts={
        "ViTForImageClassification": Layout("vit.", without=_POOLER),
        "ViTModel": Layout(without=("heads.classes", *_POOLER)),
        "ViTModel pooled": Layout(without=("heads.classes",), mark="pooler."),
    },
    fields=_FIELDS,
    rules=lambda config: [*_rules(config, "cls_token"), named("heads.classes.projection.{p}", "classifier.{p}")],
    defaults=_DEFAULTS,
    ignored=("encoder_stride",),
    picture=f"{IMAGE}.tokenizer",
    classes=("heads.classes",),
)

DEIT = Family(
    library="hf",
    name="deit",
    template="deit.yaml",
    layouts={
        "DeiTForImageClassificationWithTeacher": Layout("deit.", without=_POOLER, words={"own": "cls_classifier"}),
        "DeiTForImageClassification": Layout(
            "deit.", without=(*_POOLER, "heads.taught", "heads.classes"), words={"own": "classifier"}
        ),
        "DeiTModel": Layout(without=("heads.own", "heads.taught", "heads.classes", *_POOLER)),
        "DeiTModel pooled": Layout(without=("heads.own", "heads.taught", "heads.classes"), mark="pooler."),
    },
    fields=_FIELDS,
    rules=lambda config: [
        *_rules(config, "cls_token", "distillation_token"),
        named("heads.own.projection.{p}", "{own}.{p}"),
        named("heads.taught.projection.{p}", "distillation_classifier.{p}"),
    ],
    defaults=_DEFAULTS,
    ignored=("encoder_stride",),
    picture=f"{IMAGE}.tokenizer",
    classes=("heads.classes", "heads.own", "heads.taught"),
)
