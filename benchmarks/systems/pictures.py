"""Systems that read pictures, which are normalised for both."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from benchmarks.systems.case import DEEP, PICTURES, Case, Reference, case, timm_model, transformers_model
from mmformer.types import Batch, Outputs

NOISE = torch.rand(8, 196, generator=torch.Generator().manual_seed(2))


def _pictured(
    reference: Reference,
    theirs: Callable[[Any], Tensor],
    ours: Callable[[Outputs], Tensor],
    seen: Tensor | None = None,
) -> Case:
    batch = Batch((), {}, PICTURES, seen=seen)
    return Case(reference, "8 pictures", lambda m: (theirs(m),), lambda m: (ours(m(batch)),))


def _seen(reference: Reference) -> Case:
    return _pictured(reference, lambda m: m(PICTURES).last_hidden_state, lambda made: made.tokens["image"].x)


def _classified(reference: Reference) -> Case:
    return _pictured(reference, lambda m: m(PICTURES), lambda made: made.logits["classes"])


@case
def vit() -> Case:
    return _seen(transformers_model("ViT", "Model", **DEEP))


@case
def dinov2() -> Case:
    return _seen(transformers_model("Dinov2", "Model", image_size=224, **DEEP))


@case
def mae() -> Case:
    """A quarter of the patches, then four layers over all of them, and the loss."""
    return _pictured(
        transformers_model("ViTMAE", "ForPreTraining", decoder_num_hidden_layers=4, **DEEP),
        lambda m: m(PICTURES, noise=NOISE).logits,
        lambda made: made.logits["pixels"],
        seen=NOISE.argsort(1)[:, :49],
    )


@case
def vit_timm() -> Case:
    return _classified(timm_model("vit_base_patch16_224"))


@case
def deit() -> Case:
    return _classified(timm_model("deit_base_distilled_patch16_224"))


@case
def siglip_timm() -> Case:
    tower = timm_model("vit_base_patch16_siglip_224", num_classes=0)
    return _pictured(tower, lambda m: m(PICTURES), lambda made: made.embedding["image"])
