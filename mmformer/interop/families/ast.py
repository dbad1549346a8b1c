"""The audio spectrogram transformer as transformers keeps it (``models/audio_spectrogram_transformer``)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mmformer.interop import vits
from mmformer.interop.family import Family, Layout
from mmformer.interop.fields import Field
from mmformer.interop.plain import Data
from mmformer.interop.rules import Rule, joined, turned, turned_grid
from mmformer.interop.rules import same as named

_STACK, _SOUND = "stacks.sound", "encoders.sound"
_TOKENIZER, _STACKS = f"{_SOUND}.tokenizer", {"": _STACK}
_DROPOUT = (f"{_STACK}.layer.dropout", f"{_STACK}.input_dropout")
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
    base, patches = "{base}embeddings", "{base}embeddings.patch_embeddings.projection"
    width, side = config["hidden_size"], config["patch_size"]
    times, bands = _read_cut(*(config[key] for key in _CUT))[-1]
    special = [f"{base}.{name}_token" for name in ("cls", "distillation")]
    kernel = (width, 1, side, side)  # bands before frames
    return [
        joined(f"{_SOUND}.special", special, shape=(1, 1, width)),
        turned(f"{_TOKENIZER}.projection.weight", f"{patches}.weight", kernel, (0, 1, 3, 2)),
        named(f"{_TOKENIZER}.projection.bias", f"{patches}.bias"),
        turned_grid(f"{_STACK}.position.weight", f"{base}.position_embeddings", (bands, times), special=2),
        *vits.layer_rules(_STACK),
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
        *vits.layer_fields(*_DROPOUT, stacks=_STACKS, norms=(f"{_SOUND}.norm",)),
        *vits.hidden_fields(_STACKS),
        Field(
            _CUT,
            (*(f"{_TOKENIZER}.{name}" for name in ("frames", "bands", "patch", "stride")), f"{_STACK}.position.sizes"),
            _read_cut,
            _write_cut,
        ),
    ),
    rules=_rules,
    defaults={"qkv_bias": True},
    sound=_TOKENIZER,
    classes=("heads.classes",),
)
