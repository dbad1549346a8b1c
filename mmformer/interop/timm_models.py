"""What timm builds by the name of an architecture, described: width, depth, pool and what else our parts have to know.

What such a name means is in timm's code alone: timm builds the model, without its memory, and it is described as it
was built. A description counts only where the model that timm builds of it is the same.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

ACTIVATIONS = {"GELU": "gelu", "GELUTanh": "gelu_tanh", "QuickGELU": "quick_gelu", "SiLU": "swiglu"}
"""Of a feed-forward: timm's class -> what the description calls it."""

_DEEPEST = 1000  # layers; timm's own have 48

FLAGS = ("global_pool", "no_embed_class", "num_prefix_tokens", "pool_include_prefix", "dynamic_img_size", "num_classes")
"""What a model computes by and does not show."""


def seen(config: Mapping[str, Any], state: Mapping[str, Tensor]) -> dict[str, Any]:
    """A config, with the description of what timm builds by it."""
    return {**config, "built": described(config)}


def described(config: Mapping[str, Any]) -> dict[str, Any]:
    """What timm builds by a config.

    Raises:
        ValueError: what timm does not know, or of another kind than plain vision transformers; it ends a sentence.
    """
    pretrained = {**config.get("pretrained_cfg", config), "architecture": config.get("architecture")}
    pretrained |= {key: config[key] for key in ("num_classes",) if key in config}
    return _description(_build(pretrained["architecture"], config.get("model_args", {}), pretrained))


def _build(name: Any, args: Mapping[str, Any], pretrained: Mapping[str, Any] | None = None) -> nn.Module:
    import timm

    if not isinstance(name, str) or not timm.is_model(name):
        raise ValueError("no architecture that timm has")
    known = dict(pretrained or {})
    for key in ("label_names", "label_descriptions", "model_args", "num_features"):
        known.pop(key, None)
    try:
        if other := sorted(set(args) - _arguments()):
            raise ValueError(f"no vision transformer has the model_args {', '.join(other)}")
        if args.get("depth", 1) > _DEEPEST:
            raise ValueError(f"none has more than {_DEEPEST} layers")
        with torch.device("meta"):
            model: nn.Module = timm.create_model(name, pretrained=False, pretrained_cfg=known or None, **args)
    except (TypeError, RuntimeError, AssertionError, ValueError) as error:
        raise ValueError(f"one that timm does not build so: {error}") from error
    return model


@cache
def _arguments() -> frozenset[str]:
    """What vision transformers are made by. ``create_model`` takes more, and loads what ``checkpoint_path`` names."""
    from timm.models.vision_transformer import VisionTransformer

    return frozenset(inspect.signature(VisionTransformer).parameters)


def _description(model: Any) -> dict[str, Any]:
    kind = type(model).__name__
    if kind not in ("VisionTransformer", "VisionTransformerDistilled"):
        raise ValueError(f"a {kind}, but of timm mmformer reads plain vision transformers and DeiT's distilled ones")
    parts = [type(part).__name__ for part in (model.patch_embed, model.blocks[0])]
    if parts != ["PatchEmbed", "Block"]:
        raise ValueError(f"a vision transformer of {' and '.join(parts)}, not of plain patches and layers")
    first, distilled = model.blocks[0], kind == "VisionTransformerDistilled"
    pooled, final = isinstance(model.fc_norm, nn.LayerNorm), isinstance(model.norm, nn.LayerNorm)
    activation = type(getattr(first.mlp, "act", None)).__name__
    if activation not in ACTIVATIONS or not isinstance(first.norm1, nn.LayerNorm):
        raise ValueError(
            f"a vision transformer with {activation} and {type(first.norm1).__name__}, which are not known"
        )
    (height, width), (patch, _) = model.patch_embed.img_size, model.patch_embed.patch_size
    places = model.patch_embed.num_patches
    built = {
        **{"width": model.embed_dim, "depth": len(model.blocks), "heads": first.attn.num_heads},
        **{"hidden": first.mlp.fc2.in_features, "activation": ACTIVATIONS[activation], "eps": first.norm1.eps},
        **{"image_size": height if height == width else [height, width], "patch": patch},
        "patch_bias": model.patch_embed.proj.bias is not None,
        **{"class_token": model.has_class_token, "registers": model.num_reg_tokens + distilled},
        "embedded": 0 if model.pos_embed is None else model.pos_embed.shape[1] - places,
        "layer_scale": getattr(first.ls1, "init_values", None),
        "norm_first": isinstance(model.norm_pre, nn.LayerNorm),
        "norm": "pooled" if pooled else "final" if final else "none",
        **{"pool": model.global_pool, "num_classes": model.num_classes, "distilled": distilled},
    }
    again: Any = _build(*_made_of(built))
    different = next((name for name in FLAGS if getattr(model, name) != getattr(again, name)), None)
    for part, name in ((first.mlp, "gate_last"), (model.patch_embed, "dynamic_img_pad")):
        ours = getattr(again.blocks[0].mlp if part is first.mlp else again.patch_embed, name, None)
        different = different or (name if getattr(part, name, None) != ours else None)
    if _shown(model) != _shown(again) or different:
        known, there = ({*_shown(each).splitlines()} for each in (again, model))
        told = different or " ".join(sorted(line.strip() for line in there - known)[:2]) or "another order"
        raise ValueError(f"a vision transformer with options that are not known: {told}")
    return built


def _shown(model: nn.Module) -> str:
    """A model as it shows itself; timm has a GELU of its own beside PyTorch's."""
    return repr(model).replace("GELU(approximate='none')", "GELU()")


def _made_of(built: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """An architecture, and the arguments by which timm makes of it what is described.

    Raises:
        ValueError: there is none with such norms.
    """
    gated = built["activation"] == "swiglu"
    names = {1e-6: "vit_base_patch16_224", 1e-5: "vit_base_patch16_clip_224"}  # the eps is theirs
    if built["eps"] not in names or (gated and built["eps"] != 1e-6) or (built["distilled"] and built["eps"] != 1e-6):
        raise ValueError(f"one with norms of eps {built['eps']}, for which timm has no architecture")
    name = "vit_giant_patch14_dinov2" if gated else names[built["eps"]]
    tokens = built["class_token"] + built["registers"]
    args = {
        **{"img_size": built["image_size"], "patch_size": built["patch"], "embed_dim": built["width"]},
        **{"depth": built["depth"], "num_heads": built["heads"], "num_classes": built["num_classes"]},
        "mlp_ratio": _ratio(built["hidden"] * (2 if gated else 1), built["width"]),  # both halves of gated units
        **{"init_values": built["layer_scale"], "pre_norm": built["norm_first"], "global_pool": built["pool"]},
        **{"class_token": built["class_token"], "reg_tokens": built["registers"] - built["distilled"]},
        "no_embed_class": tokens > 0 and built["embedded"] == 0,
        **{"final_norm": built["norm"] != "none", "fc_norm": built["norm"] == "pooled"},
    }
    if not gated:
        args["act_layer"] = built["activation"]
    return ("deit_base_distilled_patch16_224" if built["distilled"] else name), args


def _ratio(hidden: int, width: int) -> float:
    """What timm multiplies a width by, and rounds down, to have so many."""
    return hidden / width if int(width * (hidden / width)) == hidden else (hidden + 0.5) / width


def written(built: Mapping[str, Any], pretrained: Mapping[str, Any], labels: Mapping[str, str]) -> dict[str, Any]:
    """The config of what is described; what else was said of its weights and pictures stays."""
    size, names, number = built["image_size"], list(labels.values()), len(labels)
    name, args = _made_of({**built, "num_classes": number})
    sides = [size, size] if isinstance(size, int) else list(size)
    known = {} if names == [f"LABEL_{i}" for i in range(len(names))] else {"label_names": names}
    return {
        **{"architecture": name, "num_classes": number, "num_features": built["width"], "global_pool": built["pool"]},
        "model_args": {key: value for key, value in args.items() if key != "num_classes"},
        "pretrained_cfg": {**pretrained, "input_size": [3, *sides], "fixed_input_size": True, "num_classes": number},
        **known,
    }
