"""DeiT with its distillation token, of timm (``deit.py``)."""

from __future__ import annotations

from mmformer.interop.family import Layout
from mmformer.interop.timm_vits import timm_family
from mmformer.interop.vits import POOLER

DEIT = timm_family(
    "deit",
    {"VisionTransformerDistilled": Layout(without=POOLER)},
    ("heads.classes", "heads.own", "heads.taught"),
)
