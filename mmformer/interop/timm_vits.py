"""What timm's vision transformers say of themselves (``vision_transformer.py``, ``deit.py``), as it builds them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mmformer.interop.family import Family, Layout
from mmformer.interop.fields import Field, same
from mmformer.interop.plain import Data, Named
from mmformer.interop.rules import Rule
from mmformer.interop.rules import same as named
from mmformer.interop.timm_layers import trunk_rules
from mmformer.interop.timm_models import seen
from mmformer.interop.towers import read_grid, write_grid
from mmformer.interop.vits import IMAGE, STACK

_HIDDEN, _POOL = f"{STACK}.layer.feedforward", f"{IMAGE}.pool"
_HEADS, _EPS = f"{STACK}.layer.mixer.heads", f"{STACK}.layer.norm.eps"
_KINDS = {
    "gelu": Named("GELUFeedForwardSpec", {"approximate": "none"}),
    "gelu_tanh": Named("GELUFeedForwardSpec", {"approximate": "tanh"}),
    "quick_gelu": Named("GELUFeedForwardSpec", {"approximate": "sigmoid"}),
    "swiglu": Named("SwiGLUFeedForwardSpec", {"bias": True, "ratio": 8 / 3}),
}
_POOLS = {"token": "ClassTokenPoolSpec", "avg": "MeanPoolSpec", "map": "AttentionPoolSpec"}
_IGNORED = ("architecture", "num_*", "global_pool", "model_args", "pretrained_cfg", "label*", "id2label", "built.num_*")
_NORMS = {"final": (True, False), "pooled": (False, True), "none": (False, False)}


def _norm(eps: float) -> Data:
    return {"class_path": "LayerNormSpec", "init_args": {"eps": eps, "bias": True}}


def _read(pool: str, heads: int, kind: str, hidden: int, eps: float, norm: str) -> Sequence[Any]:
    if pool not in _POOLS or (pool == "map" and kind == "swiglu"):
        raise ValueError(f"a pool of {', '.join(_POOLS)}, the latter with plain hidden units")
    made: Data = {"class_path": _POOLS[pool], "init_args": {}}
    if pool == "map":  # timm makes it as the layers are
        units = {"class_path": _KINDS[kind].name, "init_args": {**_KINDS[kind].arguments, "hidden_width": hidden}}
        made["init_args"] = {"attention": {"heads": heads}, "feedforward": units, "norm": _norm(eps)}
    final, pooled = _NORMS[norm]
    return [made, heads, _KINDS[kind], hidden, eps, final, _norm(eps) if pooled else None]


def _write(pool: Data, heads: int, units: Data, hidden: int, eps: float, final: bool, norm: Any) -> Sequence[Any]:
    pools = [name for name, kind in _POOLS.items() if kind == pool["class_path"]]
    kinds = [name for name, kind in _KINDS.items() if kind.describes(units)]
    norms = [name for name, kind in _NORMS.items() if kind == (final, norm is not None)]
    if not (pools and kinds and norms):
        raise ValueError("what timm's vision transformers are made of")
    return [pools[0], heads, kinds[0], hidden, eps, norms[0]]


def _rules(config: Data) -> list[Rule]:
    built = config["built"]
    grid = read_grid(built["image_size"], built["patch"])[1]
    special = {"cls_token": built["class_token"], "dist_token": built["distilled"]}
    special["reg_token"] = built["registers"] - built["distilled"]
    rows = built["embedded"] + grid[0] * grid[1]
    return [
        *trunk_rules("", built["width"], built["patch"], rows, special, built["activation"] == "swiglu"),
        named("heads.classes.projection.{p}", "head.{p}"),
        named("heads.own.projection.{p}", "head.{p}"),
        named("heads.taught.projection.{p}", "head_dist.{p}"),
    ]


def _fields(distilled: bool) -> tuple[Field, ...]:
    cut = (f"{IMAGE}.tokenizer.patch", f"{STACK}.position.sizes", f"{IMAGE}.tokenizer.remainder")
    return (
        same("built.width", f"{STACK}.width"),
        same("built.depth", f"{STACK}.depth"),
        Field(
            tuple(f"built.{key}" for key in ("pool", "heads", "activation", "hidden", "eps", "norm")),
            (_POOL, _HEADS, _HIDDEN, f"{_HIDDEN}.hidden_width", _EPS, f"{STACK}.final_norm", f"{IMAGE}.norm"),
            _read,
            _write,
        ),
        Field(("built.image_size", "built.patch"), cut, read_grid, write_grid),
        same("built.patch_bias", f"{IMAGE}.tokenizer.bias"),
        same("built.class_token", f"{IMAGE}.class_token"),
        same("built.registers", f"{IMAGE}.registers"),
        same("built.embedded", f"{STACK}.position.special"),
        same("built.norm_first", f"{STACK}.input_norm"),
        same("built.layer_scale", f"{STACK}.layer.layer_scale"),
        Field(("built.distilled",), (), lambda _: [], lambda: [distilled]),
    )


def timm_family(name: str, layouts: Mapping[str, Layout], heads: tuple[str, ...], *more: Field) -> Family:
    """A family by its name, its template's, too; a ``deit`` is distilled. ``more`` is what its fields are besides."""
    return Family(
        library="timm",
        name=name,
        template=f"{name}.yaml",
        layouts=layouts,
        fields=(*_fields(name == "deit"), *more),
        rules=_rules,
        seen=seen,
        ignored=_IGNORED,
        picture=f"{IMAGE}.tokenizer",
        classes=heads,
    )
