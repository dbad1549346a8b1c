"""Pictures in their own proportions, as patches up to a budget (NaViT, Dehghani et al. 2023; SigLIP 2's NaFlex,
Tschannen et al. 2025, §2.4.2).
"""

from __future__ import annotations

from collections.abc import Sequence
from math import isqrt, prod

import torch
from torch import Tensor

from mmformer.types import Patches


def native_size(height: int, width: int, budget: int, patch: int, enlarge: bool) -> tuple[int, int]:
    """The size, in whole patches, that a picture of (height, width) is resized to.

    Sides are scaled alike, by the largest factor with which the picture fits the budget, and each is then rounded up
    to whole patches: SigLIP 2's rule, without its search.

    Args:
        height: in pixels.
        width: in pixels.
        budget: patches that it may have.
        patch: side of a patch in pixels.
        enlarge: whether the factor may be above 1.
    """
    rows, columns = -(-height // patch), -(-width // patch)
    if enlarge or rows * columns > budget:
        # With the largest factor, one of the sides is whole without being rounded.
        upright, lying = _most(height, width, budget), _most(width, height, budget)
        rows, columns = max(upright, lying[::-1], key=prod)
    return rows * patch, columns * patch


def _most(side: int, other: int, budget: int) -> tuple[int, int]:
    """The most patches along a side, and along the other one, where the first is whole; (0, 0): one is too many."""
    number = min(budget, isqrt(budget * side // other))
    while number * -(-other * number // side) > budget:
        number -= 1
    return number, -(-other * number // side)


def join_pictures(pictures: Sequence[Tensor], patch: int | None) -> Tensor | Patches:
    """Pictures, uint8 3 H W, as a batch has them.

    Args:
        pictures: of one size, or of whole patches.
        patch: side of a patch in pixels; None: they are of one size, and stay whole.
    """
    if patch is None:
        return torch.stack(list(pictures)).contiguous()
    grids = [(picture.shape[1] // patch, picture.shape[2] // patch) for picture in pictures]
    pixels = torch.zeros(len(pictures), max(map(prod, grids)), 3, patch, patch, dtype=torch.uint8)  # B L 3 P P
    for row, picture in zip(pixels, pictures, strict=True):
        cut = picture.unfold(1, patch, patch).unfold(2, patch, patch)  # 3 rows columns P P
        cut = cut.permute(1, 2, 0, 3, 4).flatten(0, 1)
        row[: len(cut)] = cut
    return Patches(pixels, torch.tensor(grids, dtype=torch.int64))
