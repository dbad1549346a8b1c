"""T5 as transformers keeps it (``models/t5``): whole, or the encoder alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from mmformer.interop import t5_stacks
from mmformer.interop.family import Family
from mmformer.interop.fields import at_each, choice, fixed, same, scaled
from mmformer.interop.plain import Data, Named
from mmformer.interop.rules import Rule
from mmformer.interop.t5_stacks import PARTS, STACKS

_LAYERS = at_each(STACKS, "layer")
_FEEDFORWARDS = at_each(_LAYERS, "feedforward")
SCALE = "decoders.target.logit_scale"
"""Where what logits are multiplied by stands with us."""
_ACTIVATIONS = {
    ("relu", "relu", False): Named("ReLUFeedForwardSpec", {"squared": False, "ratio": 4.0}),
    ("gated-gelu", "gelu_new", True): Named("GLUFeedForwardSpec", {"gate": "gelu_tanh", "ratio": 8 / 3}),
    ("gated-relu", "relu", True): Named("GLUFeedForwardSpec", {"gate": "relu", "ratio": 8 / 3}),
    ("gated-silu", "silu", True): Named("SwiGLUFeedForwardSpec", {"ratio": 8 / 3}),
}


def _rules(config: Data) -> list[Rule]:
    return t5_stacks.rules("DenseReluDense")


def _seen(config: Mapping[str, Any], state: Mapping[str, Tensor]) -> Data:
    """Newer configs say that logits are tied, whether they are or not: the weights show it."""
    logits, table = state.get("lm_head.weight"), state.get("shared.weight")
    apart = logits is not None and table is not None and not torch.equal(logits, table)
    return {**config, "scale_decoder_outputs": _scaled(config), "tie_word_embeddings": not apart}


def _scaled(config: Mapping[str, Any]) -> bool:
    said = config.get("scale_decoder_outputs")
    return config.get("tie_word_embeddings") is not False if said is None else bool(said)


def _activation(config: Mapping[str, Any]) -> str:
    kind: str = config["feed_forward_proj"]
    return "gelu_new" if kind == "gated-gelu" else kind.rpartition("-")[2]


FIELDS = (
    *t5_stacks.FIELDS,
    *t5_stacks.layer_fields(_LAYERS, [*at_each(_LAYERS, "mixer"), "stacks.writer.layer.cross"], _FEEDFORWARDS),
    same("num_layers", "stacks.reader.depth"),
    same("num_decoder_layers", "stacks.writer.depth"),
    choice(("feed_forward_proj", "dense_act_fn", "is_gated_act"), _ACTIVATIONS, *_FEEDFORWARDS),
    fixed("tie_encoder_decoder", False),
)
DEFAULTS = {
    **t5_stacks.DEFAULTS,
    "dense_act_fn": _activation,
    "is_gated_act": lambda config: config["feed_forward_proj"].startswith("gated-"),
    "tie_encoder_decoder": False,
}

T5 = Family(
    library="hf",
    name="t5",
    template="t5.yaml",
    layouts=t5_stacks.layouts("T5"),
    fields=(*FIELDS, scaled("scale_decoder_outputs", "d_model", "stacks.reader.width", -0.5, SCALE)),
    rules=_rules,
    seen=_seen,
    defaults={"feed_forward_proj": "relu", **DEFAULTS, "scale_decoder_outputs": _scaled},
    ignored=("classifier_dropout",),
    text=PARTS,
)
