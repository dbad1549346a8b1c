"""DINOv2 as transformers keeps it (``models/dinov2``)."""

from __future__ import annotations

from mmformer.interop.dinos import dinov2
from mmformer.interop.fields import always
from mmformer.interop.vits import IMAGE, STACK

DINOV2 = dinov2(
    "dinov2",
    "Dinov2",
    always(f"{IMAGE}.registers", 0),
    always(f"{STACK}.position.antialias", False),
    patch_size=14,
)
