"""Encoders and decoders as transformers has named them since BART: what Marian and Whisper share."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mmformer.interop.fields import ACTIVATIONS, Field, at_each, choice, fixed, same
from mmformer.interop.rules import Rule, joined
from mmformer.interop.rules import same as named


def fields(reader: str, writer: str) -> tuple[Field, ...]:
    """What a config says of the layers; ``reader`` and ``writer`` are the paths of our stacks."""
    stacks, layers = (reader, writer), (f"{reader}.layer", f"{writer}.layer")
    mixers = (*at_each(layers, "mixer"), f"{writer}.layer.cross")
    feedforwards = at_each(layers, "feedforward")
    return (
        same("d_model", *at_each(stacks, "width")),
        same("encoder_layers", f"{reader}.depth"),
        same("decoder_layers", f"{writer}.depth"),
        same("encoder_attention_heads", f"{mixers[0]}.heads"),
        same("decoder_attention_heads", *at_each(mixers[1:], "heads")),
        same("encoder_ffn_dim", f"{feedforwards[0]}.hidden_width"),
        same("decoder_ffn_dim", f"{feedforwards[1]}.hidden_width"),
        choice("activation_function", ACTIVATIONS, *feedforwards),
        same("dropout", *at_each(stacks, "layer.dropout", "input_dropout")),
        same("attention_dropout", *at_each(mixers, "dropout")),
        same("activation_dropout", *at_each(feedforwards, "dropout")),
        fixed("encoder_layerdrop", 0.0),
        fixed("decoder_layerdrop", 0.0),
    )


def layer_rules(stack: str, theirs: str, key_bias: bool = True) -> list[Rule]:
    """A stack's layers.

    Args:
        theirs: what their names begin with.
        key_bias: whether keys have a bias there.
    """
    ours, theirs = f"{stack}.layers.{{i}}", f"{theirs}.layers.{{i}}"
    own, read = f"{theirs}.self_attn", f"{theirs}.encoder_attn"
    return [
        *_projections(f"{ours}.mixer.qkv", own, "qkv", key_bias),
        named(f"{ours}.mixer.out.{{p}}", f"{own}.out_proj.{{p}}"),
        named(f"{ours}.mixer_residual.norm.{{p}}", f"{own}_layer_norm.{{p}}"),
        named(f"{ours}.cross.q.{{p}}", f"{read}.q_proj.{{p}}"),
        *_projections(f"{ours}.cross.kv", read, "kv", key_bias),
        named(f"{ours}.cross.out.{{p}}", f"{read}.out_proj.{{p}}"),
        named(f"{ours}.cross_residual.norm.{{p}}", f"{read}_layer_norm.{{p}}"),
        named(f"{ours}.feedforward.up.{{p}}", f"{theirs}.fc1.{{p}}"),
        named(f"{ours}.feedforward.down.{{p}}", f"{theirs}.fc2.{{p}}"),
        named(f"{ours}.feedforward_residual.norm.{{p}}", f"{theirs}.final_layer_norm.{{p}}"),
    ]


def _projections(ours: str, theirs: str, letters: str, key_bias: bool) -> list[Rule]:
    if key_bias:
        return [joined(f"{ours}.{{p}}", [f"{theirs}.{letter}_proj.{{p}}" for letter in letters])]
    return [
        joined(f"{ours}.weight", [f"{theirs}.{letter}_proj.weight" for letter in letters]),
        _biases(f"{ours}.bias", [f"{theirs}.{letter}_proj.bias" for letter in letters if letter != "k"]),
    ]


def _biases(ours: str, theirs: Sequence[str]) -> Rule:
    """Of queries and values, or of values alone: before the last there is our keys', which they have not, for it moves
    all scores of a query alike, and so nothing. What it has learned here, by rounding, stays behind."""

    def to_theirs(made: list[Tensor]) -> list[Tensor]:
        *queries, _, values = made[0].chunk(len(theirs) + 1)
        return [*queries, values]

    return Rule(
        (ours,),
        tuple(theirs),
        lambda found, _: [torch.cat((*found[:-1], torch.zeros_like(found[-1]), found[-1]))],
        to_theirs,
    )
