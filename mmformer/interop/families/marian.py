"""Marian's translators, the Transformer of 2017, as transformers keeps them (``models/marian``)."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from mmformer.interop.family import Family, Layout
from mmformer.interop.fields import ACTIVATIONS, Field, choice, fixed, same
from mmformer.interop.plain import Data
from mmformer.interop.rules import Rule, constant, joined, tied, viewed
from mmformer.interop.rules import same as named

_READER, _WRITER = "stacks.reader", "stacks.writer"
_SOURCE, _TARGET = "encoders.source.tokenizer", "decoders.target.tokenizer"
_MIXERS = (f"{_READER}.layer.mixer", f"{_WRITER}.layer.mixer", f"{_WRITER}.layer.cross")


def _layers(stack: str, theirs: str) -> list[Rule]:
    ours, layer = f"{stack}.layers.{{i}}", f"model.{theirs}.layers.{{i}}"
    first = [f"{layer}.self_attn.{letter}_proj.{{p}}" for letter in "qkv"]
    read = [f"{layer}.encoder_attn.{letter}_proj.{{p}}" for letter in "qkv"]
    return [
        joined(f"{ours}.mixer.qkv.{{p}}", first),
        named(f"{ours}.mixer.out.{{p}}", f"{layer}.self_attn.out_proj.{{p}}"),
        named(f"{ours}.mixer_residual.norm.{{p}}", f"{layer}.self_attn_layer_norm.{{p}}"),
        named(f"{ours}.cross.q.{{p}}", read[0]),
        joined(f"{ours}.cross.kv.{{p}}", read[1:]),
        named(f"{ours}.cross.out.{{p}}", f"{layer}.encoder_attn.out_proj.{{p}}"),
        named(f"{ours}.cross_residual.norm.{{p}}", f"{layer}.encoder_attn_layer_norm.{{p}}"),
        named(f"{ours}.feedforward.up.{{p}}", f"{layer}.fc1.{{p}}"),
        named(f"{ours}.feedforward.down.{{p}}", f"{layer}.fc2.{{p}}"),
        named(f"{ours}.feedforward_residual.norm.{{p}}", f"{layer}.final_layer_norm.{{p}}"),
    ]


def _waves(places: int, width: int) -> Tensor:
    """Their table of positions, which older weights hold: all sines, then all cosines."""
    turning = [np.power(10000, 2 * (feature // 2) / width) for feature in range(width)]
    angle = np.arange(places)[:, None] / np.array(turning)
    return torch.from_numpy(np.concatenate((np.sin(angle[:, 0::2]), np.cos(angle[:, 1::2])), axis=1)).float()


def _rules(config: Data) -> list[Rule]:
    places, width = config["max_position_embeddings"], config["d_model"]
    shared = bool(config["share_encoder_decoder_embeddings"])
    tables = [f"model.{side}.embed_tokens.weight" for side in ("encoder", "decoder")]
    apart = [named(f"{_SOURCE}.weight", tables[0]), named(f"{_TARGET}.weight", tables[1])]
    one = [named(f"{_SOURCE}.weight", "model.shared.weight"), *(tied(f"{_SOURCE}.weight", name) for name in tables)]
    return [
        *(one if shared else apart),
        *_layers(_READER, "encoder"),
        *_layers(_WRITER, "decoder"),
        *(
            constant(f"model.{side}.embed_positions.weight", lambda: _waves(places, width))
            for side in ("encoder", "decoder")
        ),
        named("decoders.target.output.weight", "lm_head.weight"),
        tied(f"{_SOURCE if shared else _TARGET}.weight", "lm_head.weight"),
        viewed("decoders.target.logit_bias", "final_logits_bias", (1, config["decoder_vocab_size"])),
    ]


def _root(scale: float, other: float, width: int) -> list[bool | int]:
    if scale != other or scale not in (1.0, width**0.5):
        raise ValueError("1, or the root of the width, and the same in both")
    return [scale != 1.0, width]


_SCALE = Field(
    ("scale_embedding", "d_model"),
    (f"{_SOURCE}.scale", f"{_TARGET}.scale", f"{_READER}.width"),
    lambda scaled, width: [*[width**0.5 if scaled else 1.0] * 2, width],
    _root,
)

FAMILY = Family(
    library="hf",
    name="marian",
    template="marian.yaml",
    layouts={"MarianMTModel": Layout()},
    fields=(
        same("vocab_size", f"{_SOURCE}.rows"),
        same("decoder_vocab_size", f"{_TARGET}.rows"),
        same("max_position_embeddings", f"{_SOURCE}.context_length", f"{_TARGET}.context_length"),
        same("d_model", f"{_READER}.width", f"{_WRITER}.width"),
        _SCALE,
        same("encoder_layers", f"{_READER}.depth"),
        same("decoder_layers", f"{_WRITER}.depth"),
        same("encoder_attention_heads", _MIXERS[0] + ".heads"),
        same("decoder_attention_heads", *(f"{mixer}.heads" for mixer in _MIXERS[1:])),
        same("encoder_ffn_dim", f"{_READER}.layer.feedforward.hidden_width"),
        same("decoder_ffn_dim", f"{_WRITER}.layer.feedforward.hidden_width"),
        choice("activation_function", ACTIVATIONS, *(f"{s}.layer.feedforward" for s in (_READER, _WRITER))),
        same("dropout", *(f"{s}.{p}" for s in (_READER, _WRITER) for p in ("layer.dropout", "input_dropout"))),
        same("attention_dropout", *(f"{mixer}.dropout" for mixer in _MIXERS)),
        same("activation_dropout", *(f"{s}.layer.feedforward.dropout" for s in (_READER, _WRITER))),
        choice("share_encoder_decoder_embeddings", {True: "source", False: None}, "decoders.target.shares"),
        same("tie_word_embeddings", "decoders.target.tied"),
        fixed("encoder_layerdrop", 0.0),
        fixed("decoder_layerdrop", 0.0),
        fixed("is_decoder", False),
        fixed("add_bias_logits", False),
        fixed("add_final_layer_norm", False),
        fixed("normalize_before", False),
        fixed("normalize_embedding", False),
        fixed("static_position_embeddings", True),
    ),
    rules=_rules,
    defaults={
        "decoder_vocab_size": lambda config: config["vocab_size"],
        "scale_embedding": False,
        "share_encoder_decoder_embeddings": True,
        "tie_word_embeddings": True,
        **dict.fromkeys(("encoder_layerdrop", "decoder_layerdrop", "attention_dropout", "activation_dropout"), 0.0),
        **dict.fromkeys(("add_bias_logits", "add_final_layer_norm", "normalize_before", "normalize_embedding"), False),
        "is_decoder": False,
        "static_position_embeddings": True,
    },
    ignored=(
        *("num_hidden_layers", "init_std", "classif_dropout", "classifier_dropout"),
        *("extra_pos_embeddings", "force_bos_token_to_be_generated"),
    ),
    text=(_SOURCE, _TARGET),
)
