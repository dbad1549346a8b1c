"""A contrastive temperature, as others keep it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from mmformer.errors import InputError
from mmformer.interop.fields import Field
from mmformer.interop.rules import Rule, Shape

HIGHEST = math.log(100)
"""What CLIP's training holds the logarithm of the scale at (Radford et al. 2021, §2.5), and so does our head."""


def log_scale(theirs: str, shape: Shape = (), bounded: bool = True) -> Rule:
    """The logarithm of the factor on cosines; ours is (1,), for FSDP2 cannot shard a scalar.

    Args:
        shape: of theirs.
        bounded: refuse what our head's bound would change, by more than the precision that it is kept in.
    """

    def to_ours(found: list[Tensor], shapes: list[Shape]) -> list[Tensor]:
        if bounded and bool((found[0] > torch.tensor(HIGHEST).to(found[0].dtype)).any()):
            raise InputError(
                f"{theirs} is {float(found[0].max()):.4f}, a scale above 100, which CLIP's training never lets it be "
                f"and our head would take for 100: set it to at most {HIGHEST:.4f}."
            )
        return [found[0].reshape(shapes[0])]

    return Rule(("heads.contrastive.log_scale",), (theirs,), to_ours, lambda made: [made[0].reshape(shape)])


def temperature(key: str) -> Field:
    """Where training begins; ``key`` is the logarithm of its inverse."""
    where = ("heads.contrastive.temperature",)
    return Field((key,), where, lambda scale: [round(math.exp(-scale), 6)], lambda found: [-math.log(found)])


def _read_bias(bias: float | None) -> Sequence[Any]:
    return [bias, 0.01 if bias is None else None]


def _write_bias(bias: float | None, lowest: float | None) -> Sequence[Any]:
    if lowest != _read_bias(bias)[1]:
        raise ValueError("no bias with a lowest_temperature of 0.01 (CLIP), or a bias without one (SigLIP)")
    return [bias]


BOUND = Field(
    ("init_logit_bias",), ("heads.contrastive.bias", "heads.contrastive.lowest_temperature"), _read_bias, _write_bias
)
"""What a sigmoid's scores are shifted by at first, in open_clip's words; its training bounds CLIP's scale alone."""
