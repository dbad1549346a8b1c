"""Towers of timm with an attention pool (SigLIP's): what they are is said by their names alone, and timm knows it."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any, NamedTuple

import torch

from mmformer.errors import nearest
from mmformer.interop.fields import Field
from mmformer.interop.plain import Named
from mmformer.interop.rules import Rule
from mmformer.interop.timm_layers import trunk_rules
from mmformer.interop.towers import read_grid

_STACK, _IMAGE = "stacks.image", "encoders.image"
_LAYER, _POOL = f"{_STACK}.layer", f"{_IMAGE}.pool"
_PATHS = (
    *(f"{_STACK}.width", f"{_STACK}.depth", f"{_LAYER}.mixer.heads", f"{_POOL}.attention.heads"),
    *(f"{_LAYER}.feedforward", f"{_POOL}.feedforward"),
    *(f"{_LAYER}.norm.eps", f"{_POOL}.norm.eps", f"{_IMAGE}.tokenizer.patch", f"{_STACK}.position.sizes"),
    f"{_IMAGE}.tokenizer.remainder",
)


class Tower(NamedTuple):
    """What timm builds by a name."""

    width: int
    depth: int
    heads: int
    pool_heads: int
    hidden: int
    pool_hidden: int
    activation: str  # GELUFeedForwardSpec.approximate
    pool_activation: str
    eps: float
    pool_eps: float
    image_size: int
    patch: int


def tower_field(name: str, size: str) -> Field:
    """A tower by its name, and the size of pictures, which has to be its own.

    Args:
        name: the key of its name.
        size: the key of the size.
    """

    def read(model: str, wanted: Any) -> Sequence[Any]:
        tower = tower_of(model)
        if wanted not in (tower.image_size, [tower.image_size] * 2):
            raise ValueError(f"pictures of {tower.image_size}, as that tower reads")
        return _values(tower)

    def write(*found: Any) -> Sequence[Any]:
        for model in _names():
            tower = tower_of(model)
            alike = (_same(value, ours) for value, ours in zip(_values(tower), found, strict=True))
            if all(alike):
                return [model, tower.image_size]
        raise ValueError("as one of timm's towers of SigLIP is")

    return Field((name, size), _PATHS, read, write)


@cache
def tower_of(name: str) -> Tower:
    """What timm builds by a name, found without its memory.

    Raises:
        ValueError: timm has no such tower, or one of another kind.
    """
    import timm

    if name not in _names():
        raise ValueError(f"the name of one of timm's towers of SigLIP.{nearest(name, _names())}")
    with torch.device("meta"):
        trunk: Any = timm.create_model(name, pretrained=False, num_classes=0, global_pool="map")
    first, pool, (height, width), (patch, _) = (
        *(trunk.blocks[0], trunk.attn_pool),
        *(trunk.patch_embed.img_size, trunk.patch_embed.patch_size),
    )
    assert height == width, "timm's towers of SigLIP are for square pictures"
    return Tower(
        *(trunk.embed_dim, len(trunk.blocks), first.attn.num_heads, pool.num_heads),
        *(first.mlp.fc1.out_features, pool.mlp.fc1.out_features),
        *(_activation(first.mlp.act), _activation(pool.mlp.act)),
        *(first.norm1.eps, pool.norm.eps, height, patch),
    )


def tower_rules(base: str, tower: Tower) -> list[Rule]:
    """The parameters of a tower; ``base`` is what their names begin with."""
    return trunk_rules(base, tower.width, tower.patch, (tower.image_size // tower.patch) ** 2)


def _names() -> list[str]:
    """Those with an attention pool: ``gap`` are without."""
    import timm

    return [name for name in timm.list_models("vit_*siglip*") if "_gap_" not in name]


def _values(tower: Tower) -> list[Any]:
    """What stands at the paths."""
    kinds = (tower.activation, tower.hidden), (tower.pool_activation, tower.pool_hidden)
    return [
        *(tower.width, tower.depth, tower.heads, tower.pool_heads),
        *(Named("GELUFeedForwardSpec", {"approximate": kind, "hidden_width": hidden}) for kind, hidden in kinds),
        *(tower.eps, tower.pool_eps, *read_grid(tower.image_size, tower.patch)),
    ]


def _same(theirs: Any, ours: Any) -> bool:
    return theirs.describes(ours) if isinstance(theirs, Named) else bool(theirs == ours)


def _activation(module: torch.nn.Module) -> str:
    kind = type(module).__name__
    if kind not in ("GELU", "GELUTanh"):
        raise ValueError(f"of a tower with GELUs, and none with {kind}")
    return "tanh" if kind == "GELUTanh" else str(getattr(module, "approximate", "none"))
