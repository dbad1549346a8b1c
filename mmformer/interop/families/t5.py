"""T5 and mT5 as transformers keeps them (``models/t5``, ``models/mt5``): whole, or the encoder alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from mmformer.interop.family import Family, Layout
from mmformer.interop.fields import Field, always, choice, fixed, same
from mmformer.interop.plain import Data, Named
from mmformer.interop.rules import Rule, joined, tied
from mmformer.interop.rules import same as named

STACKS = ("stacks.reader", "stacks.writer")
PARTS = ("encoders.source.tokenizer", "decoders.target.tokenizer")
_MIXERS = ("stacks.reader.layer.mixer", "stacks.writer.layer.mixer", "stacks.writer.layer.cross")
_FEEDFORWARDS = tuple(f"{stack}.layer.feedforward" for stack in STACKS)


def at_each(places: tuple[str, ...], *names: str) -> list[str]:
    """Paths: names in several places."""
    return [f"{place}.{name}" for name in names for place in places]


def _gated(gate: str) -> Named:
    return Named("GLUFeedForwardSpec", {"gate": gate, "ratio": 8 / 3})


_HIDDEN = choice(
    "feed_forward_proj",  # with its dense_act_fn and is_gated_act
    {
        ("relu", "relu", False): Named("ReLUFeedForwardSpec", {"squared": False, "ratio": 4.0}),
        ("gated-gelu", "gelu_new", True): _gated("gelu_tanh"),
        ("gated-relu", "relu", True): _gated("relu"),
        ("gated-silu", "silu", True): Named("SwiGLUFeedForwardSpec", {"ratio": 8 / 3}),
    },
    *_FEEDFORWARDS,
)
_ACTIVATION = Field(
    ("feed_forward_proj", "dense_act_fn", "is_gated_act"),
    _HIDDEN.paths,
    lambda *said: _HIDDEN.read(said),
    lambda *found: _HIDDEN.write(*found)[0],
)


def _scale(factor: float, width: int) -> list[bool]:
    if factor not in (1.0, width**-0.5):
        raise ValueError("1, or the width to the power -½")
    return [factor != 1.0]


def stack_rules(
    stack: str, theirs: str, readers: Mapping[str, str], number: int, dense: str = "DenseReluDense"
) -> list[Rule]:
    """A stack's: ``readers`` is what our mixers are called there; ``number`` and ``dense`` are the feed-forward's."""
    ours, block = f"stacks.{stack}.layers.{{i}}", f"{theirs}.block.{{i}}.layer"
    first = f"{theirs}.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
    rules = [named(f"stacks.{stack}.position.weight", first)]
    for place, (name, mixer) in enumerate(readers.items()):
        fused = [f"{block}.{place}.{mixer}.{letter}.weight" for letter in "qkv"]
        entering = [joined(f"{ours}.{name}.qkv.weight", fused)]
        apart = [named(f"{ours}.{name}.q.weight", fused[0]), joined(f"{ours}.{name}.kv.weight", fused[1:])]
        rules += entering if name == "mixer" else apart
        rules.append(named(f"{ours}.{name}.out.weight", f"{block}.{place}.{mixer}.o.weight"))
        rules.append(named(f"{ours}.{name}_residual.norm.weight", f"{block}.{place}.layer_norm.weight"))
    hidden = f"{block}.{number}.{dense}"
    return [
        *rules,
        named(f"{ours}.feedforward_residual.norm.weight", f"{block}.{number}.layer_norm.weight"),
        named(f"{ours}.feedforward.up.weight", f"{hidden}.wi.weight"),
        joined(f"{ours}.feedforward.gate_up.weight", [f"{hidden}.wi_0.weight", f"{hidden}.wi_1.weight"]),
        named(f"{ours}.feedforward.down.weight", f"{hidden}.wo.weight"),
        named(f"stacks.{stack}.norm.weight", f"{theirs}.final_layer_norm.weight"),
    ]


def whole_rules(config: Data, dense: str = "DenseReluDense") -> list[Rule]:
    """All of a model's; ``dense`` is what its feed-forwards are called."""
    return [
        named("encoders.source.tokenizer.weight", "shared.weight"),
        *stack_rules("reader", "encoder", {"mixer": "SelfAttention"}, 1, dense),
        *stack_rules("writer", "decoder", {"mixer": "SelfAttention", "cross": "EncDecAttention"}, 2, dense),
        named("decoders.target.output.weight", "lm_head.weight"),
        *(tied("encoders.source.tokenizer.weight", f"{each}.embed_tokens.weight") for each in ("encoder", "decoder")),
        tied("encoders.source.tokenizer.weight", "lm_head.weight"),
    ]


def _seen(config: Mapping[str, Any], state: Mapping[str, Tensor]) -> Data:
    """Newer configs say that logits are tied, whether they are or not: the weights show it."""
    logits, table = state.get("lm_head.weight"), state.get("shared.weight")
    apart = logits is not None and table is not None and not torch.equal(logits, table)
    return {**config, "scale_decoder_outputs": _scaled(config), "tie_word_embeddings": not apart}


def _scaled(config: Mapping[str, Any]) -> bool:
    said = config.get("scale_decoder_outputs")
    return config.get("tie_word_embeddings") is not False if said is None else bool(said)


SHARED = (
    same("vocab_size", *at_each(PARTS, "rows")),
    same("n_positions", *at_each(PARTS, "context_length")),
    same("d_model", *at_each(STACKS, "width")),
    same("relative_attention_num_buckets", *at_each(STACKS, "position.buckets")),
    same("relative_attention_max_distance", *at_each(STACKS, "position.max_distance")),
    fixed("is_decoder", False),
)
"""What Switch's configs say, too."""
_FIELDS = (
    *SHARED,
    same("num_layers", "stacks.reader.depth"),
    same("num_decoder_layers", "stacks.writer.depth"),
    same("num_heads", *at_each(_MIXERS, "heads")),
    same("d_kv", *at_each(_MIXERS, "head_width"), *at_each(STACKS, "initialisation.head_width")),
    same("d_ff", *at_each(_FEEDFORWARDS, "hidden_width")),
    _ACTIVATION,
    same("layer_norm_epsilon", *at_each(STACKS, "layer.norm.eps")),
    same(
        "dropout_rate",
        *at_each(STACKS, "input_dropout", "output_dropout", "layer.dropout"),
        *at_each((*_MIXERS, *_FEEDFORWARDS), "dropout"),
    ),
    same("tie_word_embeddings", "decoders.target.tied"),
    fixed("tie_encoder_decoder", False),
)
_SCALED = Field(
    ("scale_decoder_outputs", "d_model"),
    ("decoders.target.logit_scale", "stacks.reader.width"),
    lambda scaled, width: [width**-0.5 if scaled else 1.0, width],
    lambda factor, width: [*_scale(factor, width), width],
)
SHARED_DEFAULTS: Data = {
    "num_decoder_layers": lambda config: config["num_layers"],
    "n_positions": 512,
    "relative_attention_num_buckets": 32,
    "relative_attention_max_distance": 128,
    "dropout_rate": 0.1,
    "layer_norm_epsilon": 1e-6,
    "tie_word_embeddings": True,
    "is_decoder": False,
}
_DEFAULTS = {
    **SHARED_DEFAULTS,
    "dense_act_fn": lambda config: {"gated-gelu": "gelu_new"}.get(
        config["feed_forward_proj"], config["feed_forward_proj"].rpartition("-")[2]
    ),
    "is_gated_act": lambda config: config["feed_forward_proj"].startswith("gated-"),
    "tie_encoder_decoder": False,
}
_IGNORED = ("classifier_dropout",)
ENCODER_ALONE = ("decoders.target", "stacks.writer")
UNREAD = "decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight"
_WHOLE, _ALONE = Layout(unread=(UNREAD,)), Layout(without=ENCODER_ALONE, unread=("decoder.*", "lm_head.*"))

T5 = Family(
    library="hf",
    name="t5",
    template="t5.yaml",
    layouts={"T5ForConditionalGeneration": _WHOLE, "T5EncoderModel": _ALONE},
    fields=(*_FIELDS, _SCALED),
    rules=whole_rules,
    seen=_seen,
    defaults={"feed_forward_proj": "relu", **_DEFAULTS, "scale_decoder_outputs": _scaled},
    ignored=_IGNORED,
    text=PARTS,
)

MT5 = Family(
    library="hf",
    name="mt5",
    template="t5.yaml",
    layouts={"MT5ForConditionalGeneration": _WHOLE, "MT5EncoderModel": _ALONE},
    fields=(*_FIELDS, always("decoders.target.logit_scale", 1.0)),
    rules=whole_rules,
    seen=_seen,
    defaults={"feed_forward_proj": "gated-gelu", **_DEFAULTS},
    ignored=(*_IGNORED, "scale_decoder_outputs"),
    text=PARTS,
)
