"""An encoder and a decoder as T5 has them, by transformers' names: what T5, mT5 and Switch share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from mmformer.interop.family import Layout
from mmformer.interop.fields import Field, at_each, fixed, same
from mmformer.interop.plain import Data
from mmformer.interop.rules import Rule, joined, tied
from mmformer.interop.rules import same as named

STACKS = ("stacks.reader", "stacks.writer")
PARTS = ("encoders.source.tokenizer", "decoders.target.tokenizer")
_TABLE = "encoders.source.tokenizer.weight"


def layouts(name: str) -> dict[str, Layout]:
    """The whole, and the encoder alone; ``name`` is what the names of their classes begin with."""
    unread = "decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight"
    return {
        f"{name}ForConditionalGeneration": Layout(unread=(unread,)),
        f"{name}EncoderModel": Layout(without=("decoders.target", "stacks.writer"), unread=("decoder.*", "lm_head.*")),
    }


FIELDS = (
    same("vocab_size", *at_each(PARTS, "rows")),
    same("n_positions", *at_each(PARTS, "context_length")),
    same("d_model", *at_each(STACKS, "width")),
    same("d_kv", *at_each(STACKS, "initialisation.head_width")),
    same("relative_attention_num_buckets", *at_each(STACKS, "position.buckets")),
    same("relative_attention_max_distance", *at_each(STACKS, "position.max_distance")),
    same("dropout_rate", *at_each(STACKS, "input_dropout", "output_dropout")),
    same("tie_word_embeddings", "decoders.target.tied"),
    fixed("is_decoder", False),
)
"""What all configs say, but for the layers, and for what logits are multiplied by."""


def layer_fields(layers: Sequence[str], mixers: Sequence[str], feedforwards: Sequence[str]) -> tuple[Field, ...]:
    """What all configs say of layers: the paths of ours, of their mixers, and of their feed-forwards."""
    return (
        same("num_heads", *at_each(mixers, "heads")),
        same("d_kv", *at_each(mixers, "head_width")),
        same("d_ff", *at_each(feedforwards, "hidden_width")),
        same("layer_norm_epsilon", *at_each(layers, "norm.eps")),
        same("dropout_rate", *at_each((*layers, *mixers, *feedforwards), "dropout")),
    )


DEFAULTS: Data = {
    "num_decoder_layers": lambda config: config["num_layers"],
    **{"n_positions": 512, "relative_attention_num_buckets": 32, "relative_attention_max_distance": 128},
    **{"dropout_rate": 0.1, "layer_norm_epsilon": 1e-6, "tie_word_embeddings": True, "is_decoder": False},
}


def rules(dense: str) -> list[Rule]:
    """All of a model's; ``dense`` is what its feed-forwards are called."""
    return [
        named(_TABLE, "shared.weight"),
        *_stack_rules("stacks.reader", "encoder", {"mixer": "SelfAttention"}, dense),
        *_stack_rules("stacks.writer", "decoder", {"mixer": "SelfAttention", "cross": "EncDecAttention"}, dense),
        named("decoders.target.output.weight", "lm_head.weight"),
        *(tied(_TABLE, f"{name}.weight") for name in ("encoder.embed_tokens", "decoder.embed_tokens", "lm_head")),
    ]


def _stack_rules(stack: str, theirs: str, mixers: Mapping[str, str], dense: str) -> list[Rule]:
    """A stack's; ``mixers`` is what ours are called there, in their order."""
    ours, block = f"{stack}.layers.{{i}}", f"{theirs}.block.{{i}}.layer"
    first, last = f"{theirs}.block.0.layer.0.SelfAttention", f"{block}.{len(mixers)}"
    return [
        named(f"{stack}.position.weight", f"{first}.relative_attention_bias.weight"),
        *(
            rule
            for place, (name, mixer) in enumerate(mixers.items())
            for rule in _mixer_rules(f"{ours}.{name}", f"{block}.{place}", mixer)
        ),
        named(f"{ours}.feedforward_residual.norm.weight", f"{last}.layer_norm.weight"),
        named(f"{ours}.feedforward.up.weight", f"{last}.{dense}.wi.weight"),
        joined(f"{ours}.feedforward.gate_up.weight", [f"{last}.{dense}.{name}.weight" for name in ("wi_0", "wi_1")]),
        named(f"{ours}.feedforward.down.weight", f"{last}.{dense}.wo.weight"),
        named(f"{stack}.norm.weight", f"{theirs}.final_layer_norm.weight"),
    ]


def _mixer_rules(ours: str, theirs: str, name: str) -> list[Rule]:
    """Ours has what enters as one matrix, or, of cross attention, as two."""
    entering = [f"{theirs}.{name}.{letter}.weight" for letter in "qkv"]
    return [
        joined(f"{ours}.qkv.weight", entering),
        named(f"{ours}.q.weight", entering[0]),
        joined(f"{ours}.kv.weight", entering[1:]),
        named(f"{ours}.out.weight", f"{theirs}.{name}.o.weight"),
        named(f"{ours}_residual.norm.weight", f"{theirs}.layer_norm.weight"),
    ]
