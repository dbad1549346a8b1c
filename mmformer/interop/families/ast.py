"""The audio spectrogram transformer as transformers keeps it (``models/audio_spectrogram_transformer``)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mmformer.interop.family import Family, Layout
from mmformer.interop.fields import ACTIVATIONS, Field, choice, fixed, same
from mmformer.interop.plain import Data
from mmformer.interop.rules import Rule, joined, turned, turned_grid
from mmformer.interop.rules import same as named

_STACK, _SOUND = "stacks.sound", "encoders.sound"
_TOKENIZER, _LAYER = f"{_SOUND}.tokenizer", f"{_STACK}.layer"
_CUT = ("max_length", "num_mel_bins", "patch_size", "time_stride", "frequency_stride")


def _read_cut(frames: int, bands: int, side: Any, across: int, up: int) -> Sequence[Any]:
    if not isinstance(side, int):
        raise ValueError("a patch_size that is one number")
    grid = [(frames - side) // across + 1, (bands - side) // up + 1]  # patches over time, and over the bands
    return [frames, bands, [side, side], [across, up], grid]


def _write_cut(frames: int, bands: int, patch: list[int], stride: list[int] | None, _: list[int]) -> Sequence[Any]:
    if patch[0] != patch[1]:
        raise ValueError("square patches")
    return [frames, bands, patch[0], *(stride or patch)]


def _rules(config: Data) -> list[Rule]:
    layer, theirs, base = f"{_STACK}.layers.{{i}}", "{base}encoder.layer.{i}", "{base}embeddings"
    side, (times, bands) = config["patch_size"], _read_cut(*(config[key] for key in _CUT))[-1]
    special = [f"{base}.{name}_token" for name in ("cls", "distillation")]
    attention = [f"{theirs}.attention.attention.{name}.{{p}}" for name in ("query", "key", "value")]
    kernel = (config["hidden_size"], 1, side, side)  # bands before frames
    patches = f"{base}.patch_embeddings.projection"
    return [
        joined(f"{_SOUND}.special", special, shape=(1, 1, config["hidden_size"])),
        turned(f"{_TOKENIZER}.projection.weight", f"{patches}.weight", kernel, (0, 1, 3, 2)),
        named(f"{_TOKENIZER}.projection.bias", f"{patches}.bias"),
        turned_grid(f"{_STACK}.position.weight", f"{base}.position_embeddings", (bands, times), special=2),
        named(f"{layer}.mixer_residual.norm.{{p}}", f"{theirs}.layernorm_before.{{p}}"),
        joined(f"{layer}.mixer.qkv.{{p}}", attention),
        named(f"{layer}.mixer.out.{{p}}", f"{theirs}.attention.output.dense.{{p}}"),
        named(f"{layer}.feedforward_residual.norm.{{p}}", f"{theirs}.layernorm_after.{{p}}"),
        named(f"{layer}.feedforward.up.{{p}}", f"{theirs}.intermediate.dense.{{p}}"),
        named(f"{layer}.feedforward.down.{{p}}", f"{theirs}.output.dense.{{p}}"),
        named(f"{_STACK}.norm.{{p}}", "{base}layernorm.{p}"),
        named(f"{_SOUND}.norm.{{p}}", "classifier.layernorm.{p}"),
        named("heads.classes.projection.{p}", "classifier.dense.{p}"),
    ]


FAMILY = Family(
    library="hf",
    name="audio-spectrogram-transformer",
    template="ast.yaml",
    layouts={
        "ASTForAudioClassification": Layout("audio_spectrogram_transformer."),
        "ASTModel": Layout(without=("heads.classes", f"{_SOUND}.norm")),
    },
    fields=(
        same("hidden_size", f"{_STACK}.width"),
        same("num_hidden_layers", f"{_STACK}.depth"),
        same("num_attention_heads", f"{_LAYER}.mixer.heads"),
        same("intermediate_size", f"{_LAYER}.feedforward.hidden_width"),
        choice("hidden_act", ACTIVATIONS, f"{_LAYER}.feedforward"),
        same("hidden_dropout_prob", f"{_LAYER}.dropout", f"{_STACK}.input_dropout"),
        same("attention_probs_dropout_prob", f"{_LAYER}.mixer.dropout"),
        same("layer_norm_eps", f"{_LAYER}.norm.eps", f"{_SOUND}.norm.eps"),
        Field(
            _CUT,
            (*(f"{_TOKENIZER}.{name}" for name in ("frames", "bands", "patch", "stride")), f"{_STACK}.position.sizes"),
            _read_cut,
            _write_cut,
        ),
        fixed("qkv_bias", True),
    ),
    rules=_rules,
    defaults={"qkv_bias": True},
    sound=_TOKENIZER,
    classes=("heads.classes",),
)
