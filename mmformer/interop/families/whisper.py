"""Whisper as transformers keeps it (``models/whisper``)."""

from __future__ import annotations

from mmformer.interop import barts
from mmformer.interop.family import Family, Layout
from mmformer.interop.fields import Field, fixed, same
from mmformer.interop.plain import Data
from mmformer.interop.rules import Rule, tied
from mmformer.interop.rules import same as named

_SOUND, _TEXT, _WRITER = "stacks.sound", "stacks.text", "decoders.text"
_TOKENIZER = "encoders.sound.tokenizer"


def _rules(config: Data) -> list[Rule]:
    return [
        named(f"{_TOKENIZER}.first.{{p}}", "{base}encoder.conv1.{p}"),
        named(f"{_TOKENIZER}.second.{{p}}", "{base}encoder.conv2.{p}"),
        named(f"{_SOUND}.position.weight", "{base}encoder.embed_positions.weight"),
        *barts.layer_rules(_SOUND, "{base}encoder", key_bias=False),
        named(f"{_SOUND}.norm.{{p}}", "{base}encoder.layer_norm.{p}"),
        named(f"{_WRITER}.tokenizer.weight", "{base}decoder.embed_tokens.weight"),
        named(f"{_TEXT}.position.weight", "{base}decoder.embed_positions.weight"),
        *barts.layer_rules(_TEXT, "{base}decoder", key_bias=False),
        named(f"{_TEXT}.norm.{{p}}", "{base}decoder.layer_norm.{p}"),
        named(f"{_WRITER}.output.weight", "proj_out.weight"),
        tied(f"{_WRITER}.tokenizer.weight", "proj_out.weight"),
    ]


FAMILY = Family(
    library="hf",
    name="whisper",
    template="whisper.yaml",
    layouts={"WhisperForConditionalGeneration": Layout("model."), "WhisperModel": Layout()},
    fields=(
        *barts.fields(_SOUND, _TEXT),
        same("vocab_size", f"{_WRITER}.tokenizer.rows"),
        same("num_mel_bins", f"{_TOKENIZER}.bands"),
        Field(
            ("max_source_positions",),
            (f"{_TOKENIZER}.frames", f"{_SOUND}.position.sizes.0"),
            lambda places: [2 * places, places],
            lambda _, places: [places],
        ),
        same("max_target_positions", f"{_WRITER}.tokenizer.context_length", f"{_TEXT}.position.sizes.0"),
        same("tie_word_embeddings", f"{_WRITER}.tied"),
        fixed("scale_embedding", False),
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
    sound=_TOKENIZER,
)
