"""The parameters of timm's plain vision transformers (``vision_transformer.py``): alone, or a tower of open_clip's."""

from __future__ import annotations

from collections.abc import Mapping

from mmformer.interop.rules import Rule, viewed
from mmformer.interop.rules import same as named
from mmformer.interop.towers import patches
from mmformer.interop.vits import IMAGE, STACK, special_rule

_POOL = f"{IMAGE}.pool"
_POOLED = {
    **{"attention.q": "q", "attention.kv": "kv", "attention.out": "proj", "norm": "norm"},
    **{"feedforward.up": "mlp.fc1", "feedforward.down": "mlp.fc2"},
}


def trunk_rules(
    base: str, width: int, patch: int, rows: int, special: Mapping[str, int] | None = None, gated: bool = False
) -> list[Rule]:
    """All but classifiers.

    Args:
        base: what their names begin with.
        rows: of the positions.
        special: the special tokens' names, and how many each is.
        gated: hidden units are SwiGLU's.
    """
    layer, theirs = f"{STACK}.layers.{{i}}", f"{base}blocks.{{i}}"
    up = "gate_up" if gated else "up"
    return [
        special_rule({f"{base}{name}": int(number) for name, number in (special or {}).items() if number}, width),
        patches(f"{base}patch_embed.proj.weight", width, patch),
        named(f"{IMAGE}.tokenizer.projection.bias", f"{base}patch_embed.proj.bias"),
        viewed(f"{STACK}.position.weight", f"{base}pos_embed", (1, rows, width)),
        named(f"{STACK}.input_norm.{{p}}", f"{base}norm_pre.{{p}}"),
        named(f"{layer}.mixer_residual.norm.{{p}}", f"{theirs}.norm1.{{p}}"),
        named(f"{layer}.mixer.qkv.{{p}}", f"{theirs}.attn.qkv.{{p}}"),
        named(f"{layer}.mixer.out.{{p}}", f"{theirs}.attn.proj.{{p}}"),
        named(f"{layer}.mixer_residual.gain", f"{theirs}.ls1.gamma"),
        named(f"{layer}.feedforward_residual.norm.{{p}}", f"{theirs}.norm2.{{p}}"),
        named(f"{layer}.feedforward.{up}.{{p}}", f"{theirs}.mlp.fc1.{{p}}"),
        named(f"{layer}.feedforward.down.{{p}}", f"{theirs}.mlp.fc2.{{p}}"),
        named(f"{layer}.feedforward_residual.gain", f"{theirs}.ls2.gamma"),
        named(f"{STACK}.norm.{{p}}", f"{base}norm.{{p}}"),
        named(f"{IMAGE}.norm.{{p}}", f"{base}fc_norm.{{p}}"),
        viewed(f"{_POOL}.query", f"{base}attn_pool.latent", (1, 1, width)),
        *(named(f"{_POOL}.{ours}.{{p}}", f"{base}attn_pool.{each}.{{p}}") for ours, each in _POOLED.items()),
    ]
