"""Patches of another side: the projection that answers to resized patches as it did to those that it was learned on."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor
from torch.nn import functional as F

from mmformer.errors import InputError
from mmformer.models.encoder import EncoderSpec
from mmformer.models.model import Model
from mmformer.surgery.remade import Remade
from mmformer.tokenizers.image import ImagePatchesSpec


def with_patch(encoders: Mapping[str, EncoderSpec], side: int) -> dict[str, EncoderSpec]:
    """Encoders, of which those of pictures read patches of a side.

    Raises:
        InputError: none of them reads patches.
    """
    changed = dict(encoders)
    reading = {name: part for name, part in encoders.items() if part.tokenizer.modality == "image"}
    for name, encoder in reading.items():
        if not isinstance(encoder.tokenizer, ImagePatchesSpec):
            raise InputError(
                f"--patch changes the side of an ImagePatchesSpec, but model.encoders.{name} reads pictures by "
                f"{type(encoder.tokenizer).__name__}."
            )
        changed[name] = dataclasses.replace(encoder, tokenizer=dataclasses.replace(encoder.tokenizer, patch=side))
    if not reading:
        raise InputError("--patch is of pictures, but no encoder of the model reads them.")
    return changed


def remade_patches(old: Model, new: Model) -> Iterator[tuple[str, Remade]]:
    """The projections of patches that have another side now."""
    for name, encoder in new.spec.encoders.items():
        before, after = old.spec.encoders[name].tokenizer, encoder.tokenizer
        if isinstance(before, ImagePatchesSpec) and isinstance(after, ImagePatchesSpec) and before != after:
            key = f"encoders.{name}.tokenizer.projection.weight"
            weight = resample_patches(old.state_dict()[key], before.patch, after.patch)
            yield key, Remade(weight, f"patches from {before.patch}×{before.patch} to {after.patch}×{after.patch}")


def resample_patches(weight: Tensor, old: int, new: int) -> Tensor:
    """A projection of patches, for patches of another side (FlexiViT, Beyer et al. 2022, §3.4).

    Where B resizes a patch (bicubic, antialiased), it is the ŵ with ⟨B x, ŵ⟩ = ⟨x, w⟩ for all patches x, if they are
    made larger, and the nearest to that on average if smaller: the pseudo-inverse of Bᵀ, times w.

    Args:
        weight: D (3 old old).
        old: side of the patches that it was learned on.
        new: side of those that it is to read.
    """
    units = torch.eye(old * old, dtype=torch.float64).view(-1, 1, old, old)
    resized = F.interpolate(units, (new, new), mode="bicubic", antialias=True).flatten(1)  # (old old) (new new): Bᵀ
    channels = weight.double().view(len(weight), 3, old * old)
    turned: Tensor = channels @ torch.linalg.pinv(resized).T
    return turned.flatten(1).to(weight.dtype)
