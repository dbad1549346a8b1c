"""A contrastive temperature, as others keep it."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from mmformer.errors import InputError
from mmformer.interop.rules import Rule, Shape

HIGHEST = math.log(100)
"""What CLIP's training holds the logarithm of the scale at (Radford et al. 2021, §2.5), and so does our head."""


def log_scale(theirs: str, shape: Shape = (), bounded: bool = True) -> Rule:
    """The logarithm of the factor on cosines; ours is (1,), for FSDP2 cannot shard a scalar.

    Args:
        shape: of theirs.
        bounded: refuse what our head's bound would change.
    """

    def to_ours(found: list[Tensor], shapes: list[Shape]) -> list[Tensor]:
        if bounded and bool((found[0].float() > torch.tensor(HIGHEST, dtype=torch.float32)).any()):
            raise InputError(
                f"{theirs} is {float(found[0].max()):.4f}, a scale above 100, which CLIP's training never lets it be "
                f"and our head would take for 100: set it to at most {HIGHEST:.4f}."
            )
        return [found[0].reshape(shapes[0])]

    return Rule(("heads.contrastive.log_scale",), (theirs,), to_ours, lambda made: [made[0].reshape(shape)])
