"""DINOv2 as transformers names it, without registers and with: all but what they differ in."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mmformer.interop import vits
from mmformer.interop.family import Family, Layout
from mmformer.interop.fields import ACTIVATIONS, Field, fixed, same
from mmformer.interop.plain import Data, Named
from mmformer.interop.rules import Rule
from mmformer.interop.rules import same as named
from mmformer.interop.towers import read_grid, write_grid
from mmformer.interop.vits import IMAGE, STACK

_HIDDEN = f"{STACK}.layer.feedforward"
_GATED = Named("SwiGLUFeedForwardSpec", {"bias": True, "ratio": 8 / 3})


def _units(width: int, ratio: float, gated: bool) -> int:
    units = int(width * ratio)
    return (int(units * 2 / 3) + 7) // 8 * 8 if gated else units


def _read_hidden(width: int, ratio: float, gated: bool, activation: str) -> Sequence[Any]:
    if activation not in ACTIVATIONS:
        raise ValueError(f"a hidden_act of {', '.join(ACTIVATIONS)}")
    return [width, _GATED if gated else ACTIVATIONS[activation], _units(width, ratio, gated)]


def _write_hidden(width: int, made: Any, units: int) -> Sequence[Any]:
    gated = _GATED.describes(made)
    ratios = [ratio for ratio in range(1, 17) if _units(width, ratio, gated) == units]
    kinds = ["gelu"] if gated else [name for name, kind in ACTIVATIONS.items() if kind.describes(made)]
    if not ratios or not kinds:
        raise ValueError(f"whole multiples of the width, activated by one of {', '.join(ACTIVATIONS)}, or SwiGLU's")
    return [width, ratios[0], gated, kinds[0]]


def _rules(config: Data) -> list[Rule]:
    layer, theirs = f"{STACK}.layers.{{i}}", "{base}encoder.layer.{i}"
    special = {"cls_token": 1, "register_tokens": config.get("num_register_tokens", 0)}
    up, hidden, down = ("gate_up", "weights_in", "weights_out") if config["use_swiglu_ffn"] else ("up", "fc1", "fc2")
    return [
        *vits.embedding_rules(config, {name: number for name, number in special.items() if number}, 1),
        named(f"{layer}.mixer_residual.norm.{{p}}", f"{theirs}.norm1.{{p}}"),
        *vits.attention_rules(layer, theirs),
        named(f"{layer}.mixer_residual.gain", f"{theirs}.layer_scale1.lambda1"),
        named(f"{layer}.feedforward_residual.norm.{{p}}", f"{theirs}.norm2.{{p}}"),
        named(f"{layer}.feedforward.{up}.{{p}}", f"{theirs}.mlp.{hidden}.{{p}}"),
        named(f"{layer}.feedforward.down.{{p}}", f"{theirs}.mlp.{down}.{{p}}"),
        named(f"{layer}.feedforward_residual.gain", f"{theirs}.layer_scale2.lambda1"),
        named("heads.classes.projection.{p}", "classifier.{p}"),
    ]


def dinov2(name: str, kind: str, *more: Field, **defaults: Any) -> Family:
    """A family of its own, by the name and the classes that transformers has for it.

    Args:
        more: what it says besides.
        defaults: of that.
    """
    cut = ("tokenizer.patch", "tokenizer.remainder")
    unread = ("*embeddings.mask_token",)  # for masks in training
    return Family(
        library="hf",
        name=name,
        template="dinov2.yaml",
        layouts={
            f"{kind}ForImageClassification": Layout(f"{name}.", unread=unread),
            f"{kind}Model": Layout(without=("heads.classes",), unread=unread),
        },
        fields=(
            *vits.fields(f"{STACK}.input_dropout"),
            Field(
                ("image_size", "patch_size"),
                (f"{IMAGE}.{cut[0]}", f"{STACK}.position.learned", f"{IMAGE}.{cut[1]}", f"{STACK}.position.sizes"),
                lambda size, patch: [*(found := read_grid(size, patch)), found[1]],
                lambda patch, learned, _, sizes: write_grid(patch, learned or sizes, 0),
            ),
            Field(
                ("hidden_size", "mlp_ratio", "use_swiglu_ffn", "hidden_act"),
                (f"{STACK}.width", _HIDDEN, f"{_HIDDEN}.hidden_width"),
                _read_hidden,
                _write_hidden,
            ),
            same("layerscale_value", f"{STACK}.layer.layer_scale"),
            fixed("drop_path_rate", 0.0),  # theirs is the same in all layers
            *more,
        ),
        rules=_rules,
        defaults={
            **vits.DEFAULTS,
            **{"mlp_ratio": 4, "layer_norm_eps": 1e-6, "use_swiglu_ffn": False},
            **{"layerscale_value": 1.0, "drop_path_rate": 0.0},
            **defaults,
        },
        ignored=("out_*", "stage_names", "apply_layernorm", "reshape_hidden_states", "use_mask_token"),
        resizes=f"{STACK}.position",
        picture=f"{IMAGE}.tokenizer",
        classes=("heads.classes",),
    )
