"""DINOv2 with registers as transformers keeps it (``models/dinov2_with_registers``)."""

from __future__ import annotations

from mmformer.interop.dinos import dinov2
from mmformer.interop.fields import always, same
from mmformer.interop.vits import IMAGE, STACK

DINOV2_WITH_REGISTERS = dinov2(
    "dinov2_with_registers",
    "Dinov2WithRegisters",
    same("num_register_tokens", f"{IMAGE}.registers"),
    always(f"{STACK}.position.antialias", True),
    num_register_tokens=4,
)
