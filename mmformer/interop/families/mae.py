"""Masked autoencoders as transformers keeps them (``models/vit_mae``): the encoder with its decoder, or alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mmformer.interop import vits
from mmformer.interop.family import Family, Layout
from mmformer.interop.fields import Field, at_each, same
from mmformer.interop.plain import Data
from mmformer.interop.rules import Rule, viewed
from mmformer.interop.rules import same as named
from mmformer.interop.towers import read_grid, write_grid
from mmformer.interop.vits import IMAGE, STACK

_HEAD, _DEEP = "heads.pixels", "stacks.pixels"
_BOTH = (STACK, _DEEP)
_STACKS = dict(zip(("", "decoder_"), _BOTH, strict=True))


def _read_grid(size: Any, patch: Any) -> Sequence[Any]:
    side, sizes, remainder = read_grid(size, patch)
    if remainder or sizes[0] != sizes[1]:
        raise ValueError("a square image_size that patch_size divides")
    return [side, remainder, sizes, sizes]


def _rules(config: Data) -> list[Rule]:
    width, places = config["decoder_hidden_size"], 1 + vits.places(config)
    return [
        *vits.embedding_rules(config, {"cls_token": 1}, 1),
        *vits.layer_rules(),
        *vits.layer_rules(_DEEP, "{deep}.{i}"),
        named(f"{_HEAD}.enter.{{p}}", "decoder.decoder_embed.{p}"),
        viewed(f"{_HEAD}.unseen", "decoder.mask_token", (1, 1, width)),
        viewed(f"{_DEEP}.position.weight", "decoder.decoder_pos_embed", (1, places, width)),
        named(f"{_DEEP}.norm.{{p}}", "decoder.decoder_norm.{p}"),
        named(f"{_HEAD}.projection.{{p}}", "decoder.decoder_pred.{p}"),
    ]


_NEWER = "decoder.decoder_encoder.layer"  # so transformers 5 writes them, and it reads both

MAE = Family(
    library="hf",
    name="vit_mae",
    template="mae.yaml",
    layouts={
        "ViTMAEForPreTraining": Layout("vit.", words={"deep": "decoder.decoder_layers"}),
        "ViTMAEForPreTraining newer": Layout("vit.", words={"deep": _NEWER}, mark=_NEWER),
        "ViTMAEModel": Layout(without=(_HEAD, _DEEP)),
    },
    fields=(
        *vits.fields(*at_each(_BOTH, "layer.dropout"), stacks=_STACKS),
        *vits.hidden_fields(_STACKS),
        Field(
            ("image_size", "patch_size"),
            (f"{IMAGE}.tokenizer.patch", f"{IMAGE}.tokenizer.remainder", *at_each(_BOTH, "position.sizes")),
            _read_grid,
            lambda patch, remainder, sizes, _: write_grid(patch, sizes, remainder),
        ),
        same("norm_pix_loss", f"{_HEAD}.normalised"),
    ),
    rules=_rules,
    defaults={
        **vits.DEFAULTS,
        **{"intermediate_size": 3072, "layer_norm_eps": 1e-12, "norm_pix_loss": False},
        **{"decoder_hidden_size": 512, "decoder_num_hidden_layers": 8, "decoder_num_attention_heads": 16},
        "decoder_intermediate_size": 2048,
    },
    ignored=("mask_ratio",),  # an objective's, not the model's
    picture=f"{IMAGE}.tokenizer",
)
