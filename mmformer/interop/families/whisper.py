"""Whisper as transformers keeps it (``models/whisper``)."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from mmformer.interop.family import Family, Layout
from mmformer.interop.fields import ACTIVATIONS, Field, choice, fixed, same
from mmformer.interop.plain import Data
from mmformer.interop.rules import Rule, joined, tied
from mmformer.interop.rules import same as named

_SOUND, _TEXT, _WRITER = "stacks.sound", "stacks.text", "decoders.text"
_LAYERS = f"{_SOUND}.layer", f"{_TEXT}.layer"


def _biases(ours: str, theirs: Sequence[str]) -> Rule:
    """Of queries and values, or of values alone: before the last there is our keys', which they have not, for it moves
    all scores of a query alike, and so nothing. What it has learned here, by rounding, stays behind."""

    def to_theirs(made: list[torch.Tensor]) -> list[torch.Tensor]:
        *queries, _, values = made[0].chunk(len(theirs) + 1)
        return [*queries, values]

    return Rule(
        (ours,),
        tuple(theirs),
        lambda found, _: [torch.cat((*found[:-1], torch.zeros_like(found[-1]), found[-1]))],
        to_theirs,
    )


def _layer(stack: str, theirs: str) -> list[Rule]:
    ours, attention = f"{stack}.layers.{{i}}", f"{theirs}.self_attn"
    return [
        named(f"{ours}.mixer_residual.norm.{{p}}", f"{attention}_layer_norm.{{p}}"),
        joined(f"{ours}.mixer.qkv.weight", [f"{attention}.{name}_proj.weight" for name in "qkv"]),
        _biases(f"{ours}.mixer.qkv.bias", [f"{attention}.{name}_proj.bias" for name in "qv"]),
        named(f"{ours}.mixer.out.{{p}}", f"{attention}.out_proj.{{p}}"),
        named(f"{ours}.feedforward_residual.norm.{{p}}", f"{theirs}.final_layer_norm.{{p}}"),
        named(f"{ours}.feedforward.up.{{p}}", f"{theirs}.fc1.{{p}}"),
        named(f"{ours}.feedforward.down.{{p}}", f"{theirs}.fc2.{{p}}"),
    ]


def _rules(config: Data) -> list[Rule]:
    cross, theirs = f"{_TEXT}.layers.{{i}}.cross", "{base}decoder.layers.{i}.encoder_attn"
    return [
        named("encoders.sound.tokenizer.first.{p}", "{base}encoder.conv1.{p}"),
        named("encoders.sound.tokenizer.second.{p}", "{base}encoder.conv2.{p}"),
        named(f"{_SOUND}.position.weight", "{base}encoder.embed_positions.weight"),
        *_layer(_SOUND, "{base}encoder.layers.{i}"),
        named(f"{_SOUND}.norm.{{p}}", "{base}encoder.layer_norm.{p}"),
        named(f"{_WRITER}.tokenizer.weight", "{base}decoder.embed_tokens.weight"),
        named(f"{_TEXT}.position.weight", "{base}decoder.embed_positions.weight"),
        *_layer(_TEXT, "{base}decoder.layers.{i}"),
        named(f"{cross}_residual.norm.{{p}}", f"{theirs}_layer_norm.{{p}}"),
        named(f"{cross}.q.{{p}}", f"{theirs}.q_proj.{{p}}"),
        joined(f"{cross}.kv.weight", [f"{theirs}.{name}_proj.weight" for name in "kv"]),
        _biases(f"{cross}.kv.bias", [f"{theirs}.v_proj.bias"]),
        named(f"{cross}.out.{{p}}", f"{theirs}.out_proj.{{p}}"),
        named(f"{_TEXT}.norm.{{p}}", "{base}decoder.layer_norm.{p}"),
        named(f"{_WRITER}.output.weight", "proj_out.weight"),
        tied(f"{_WRITER}.tokenizer.weight", "proj_out.weight"),
    ]


def _both(path: str) -> list[str]:
    return [f"{layer}.{path}" for layer in _LAYERS]


FAMILY = Family(
    library="hf",
    name="whisper",
    template="whisper.yaml",
    layouts={"WhisperForConditionalGeneration": Layout("model."), "WhisperModel": Layout()},
    fields=(
        same("d_model", f"{_SOUND}.width", f"{_TEXT}.width"),
        same("encoder_layers", f"{_SOUND}.depth"),
        same("decoder_layers", f"{_TEXT}.depth"),
        same("encoder_attention_heads", f"{_SOUND}.layer.mixer.heads"),
        same("decoder_attention_heads", f"{_TEXT}.layer.mixer.heads", f"{_TEXT}.layer.cross.heads"),
        same("encoder_ffn_dim", f"{_SOUND}.layer.feedforward.hidden_width"),
        same("decoder_ffn_dim", f"{_TEXT}.layer.feedforward.hidden_width"),
        choice("activation_function", ACTIVATIONS, *_both("feedforward")),
        same("dropout", *_both("dropout"), f"{_SOUND}.input_dropout", f"{_TEXT}.input_dropout"),
        same("attention_dropout", *_both("mixer.dropout"), f"{_TEXT}.layer.cross.dropout"),
        same("activation_dropout", *_both("feedforward.dropout")),
        same("vocab_size", f"{_WRITER}.tokenizer.rows"),
        same("num_mel_bins", "encoders.sound.tokenizer.bands"),
        Field(
            ("max_source_positions",),
            ("encoders.sound.tokenizer.frames", f"{_SOUND}.position.sizes.0"),
            lambda places: [2 * places, places],
            lambda _, places: [places],
        ),
        same("max_target_positions", f"{_WRITER}.tokenizer.context_length", f"{_TEXT}.position.sizes.0"),
        same("tie_word_embeddings", f"{_WRITER}.tied"),
        fixed("scale_embedding", False),
        fixed("encoder_layerdrop", 0.0),
        fixed("decoder_layerdrop", 0.0),
        fixed("apply_spec_augment", False),
    ),
    rules=_rules,
    defaults={
        **{"tie_word_embeddings": True, "apply_spec_augment": False, "activation_dropout": 0.0},
        **{"begin_suppress_tokens": [220, 50256], "suppress_tokens": None},
    },
    ignored=(
        *("mask_*", "median_filter_width", "use_weighted_layer_sum", "classifier_proj_size", "init_std"),
        *("num_hidden_layers", "forced_decoder_ids", "is_encoder_decoder"),
    ),
    text=(f"{_WRITER}.tokenizer",),
    sound="encoders.sound.tokenizer",
)
