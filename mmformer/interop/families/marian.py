"""Marian's translators, the Transformer of 2017, as transformers keeps them (``models/marian``)."""

from __future__ import annotations

from functools import partial

import numpy as np
import torch
from torch import Tensor

from mmformer.interop import barts
from mmformer.interop.family import Family, Layout
from mmformer.interop.fields import all_fixed, at_each, choice, same, scaled
from mmformer.interop.plain import Data
from mmformer.interop.rules import Rule, constant, tied, viewed
from mmformer.interop.rules import same as named

_READER, _WRITER = "stacks.reader", "stacks.writer"
_SOURCE, _TARGET = "encoders.source.tokenizer", "decoders.target.tokenizer"
_FIXED = {
    **{"is_decoder": False, "add_bias_logits": False, "add_final_layer_norm": False, "normalize_before": False},
    **{"normalize_embedding": False, "static_position_embeddings": True},
}


def _waves(places: int, width: int) -> Tensor:
    """Their table of positions, which older weights hold: all sines, then all cosines."""
    turning = [np.power(10000, 2 * (feature // 2) / width) for feature in range(width)]
    angle = np.arange(places)[:, None] / np.array(turning)
    return torch.from_numpy(np.concatenate((np.sin(angle[:, 0::2]), np.cos(angle[:, 1::2])), axis=1)).float()


def _rules(config: Data) -> list[Rule]:
    waves = partial(_waves, config["max_position_embeddings"], config["d_model"])
    read, written = (f"model.{side}.embed_tokens.weight" for side in ("encoder", "decoder"))
    shared = config["share_encoder_decoder_embeddings"]
    return [
        named(f"{_SOURCE}.weight", "model.shared.weight" if shared else read),
        *(tied(f"{_SOURCE}.weight", name) for name in (read, written, "lm_head.weight") if shared),
        named(f"{_TARGET}.weight", written),  # ours has none where it is shared
        tied(f"{_TARGET}.weight", "lm_head.weight"),
        *barts.layer_rules(_READER, "model.encoder"),
        *barts.layer_rules(_WRITER, "model.decoder"),
        *(constant(f"model.{side}.embed_positions.weight", waves) for side in ("encoder", "decoder")),
        named("decoders.target.output.weight", "lm_head.weight"),
        viewed("decoders.target.logit_bias", "final_logits_bias", (1, config["decoder_vocab_size"])),
    ]


FAMILY = Family(
    library="hf",
    name="marian",
    template="marian.yaml",
    layouts={"MarianMTModel": Layout()},
    fields=(
        *barts.fields(_READER, _WRITER),
        same("vocab_size", f"{_SOURCE}.rows"),
        same("decoder_vocab_size", f"{_TARGET}.rows"),
        same("max_position_embeddings", *at_each((_SOURCE, _TARGET), "context_length")),
        scaled("scale_embedding", "d_model", f"{_READER}.width", 0.5, f"{_SOURCE}.scale", f"{_TARGET}.scale"),
        choice("share_encoder_decoder_embeddings", {True: "source", False: None}, "decoders.target.shares"),
        same("tie_word_embeddings", "decoders.target.tied"),
        *all_fixed(_FIXED),
    ),
    rules=_rules,
    defaults={
        "decoder_vocab_size": lambda config: config["vocab_size"],
        **{"scale_embedding": False, "share_encoder_decoder_embeddings": True, "tie_word_embeddings": True},
        **dict.fromkeys(("encoder_layerdrop", "decoder_layerdrop", "attention_dropout", "activation_dropout"), 0.0),
        **_FIXED,
    },
    ignored=(
        *("num_hidden_layers", "init_std", "classif_dropout", "classifier_dropout"),
        *("extra_pos_embeddings", "force_bos_token_to_be_generated"),
    ),
    text=(_SOURCE, _TARGET),
)
