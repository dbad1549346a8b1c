"""Patches of another side: FlexiViT's pseudo-inverse, as timm has it, and what it is for."""

from __future__ import annotations

import pytest
import torch
from timm.layers.patch_embed import resample_patch_embed
from torch.nn import functional as F

from mmformer.surgery.patches import resample_patches

GENERATOR = torch.Generator().manual_seed(0)


@pytest.mark.parametrize(("old", "new"), [(8, 12), (16, 14), (4, 3), (4, 8), (5, 5)])
def test_it_is_timms(old: int, new: int) -> None:
    weight = torch.randn(6, 3, old, old, generator=GENERATOR)
    expected = resample_patch_embed(weight, [new, new]).flatten(1)
    torch.testing.assert_close(resample_patches(weight.flatten(1), old, new), expected, atol=1e-5, rtol=1e-4)


def test_larger_patches_answer_as_those_that_they_were_resized_from() -> None:
    weight = torch.randn(6, 3 * 4 * 4, generator=GENERATOR)
    x = torch.randn(10, 3, 4, 4, generator=GENERATOR)
    larger = F.interpolate(x, (7, 7), mode="bicubic", antialias=True)
    answer = larger.flatten(1) @ resample_patches(weight, 4, 7).T
    torch.testing.assert_close(answer, x.flatten(1) @ weight.T, atol=1e-4, rtol=1e-4)
