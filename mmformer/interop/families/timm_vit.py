"""Vision transformers of timm (``vision_transformer.py``): ViT, DINOv2, SigLIP's tower."""

from __future__ import annotations

from mmformer.interop.family import Layout
from mmformer.interop.fields import Field
from mmformer.interop.timm_vits import timm_family
from mmformer.interop.vits import POOLER

_HEADS = ("heads.classes",)
# The classifier reads the embedding: what it says otherwise, the way back does not.
_EMBEDDING = Field((), ("heads.classes.pool",), lambda: [None], lambda _: [])

VIT = timm_family(
    "vit",
    {"VisionTransformer": Layout(without=POOLER), "features": Layout(without=(*POOLER, *_HEADS))},
    _HEADS,
    _EMBEDDING,
)
