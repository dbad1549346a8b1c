"""What families that are made like BERT have in common with it: embeddings and layers."""

from __future__ import annotations

from collections.abc import Sequence

from mmformer.interop.fields import ACTIVATIONS, Field, choice, fixed, same
from mmformer.interop.rules import Rule, counted, joined
from mmformer.interop.rules import same as named

STACK, TEXT, HEAD = "stacks.text", "encoders.text", "heads.language"
LAYER, THEIRS = "stacks.text.layers.{i}", "{base}encoder.layer.{i}"
POOLER = (f"{TEXT}.embedding", f"{TEXT}.projection")

TRANSFORMS = {"gelu": "gelu", "gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh", "relu": "relu"}
"""What a language head does before its products, by the name of the activation that all of a model has."""


def heads(*names: str) -> Sequence[str]:
    """Projections of an attention, by the names that theirs have."""
    return [f"{THEIRS}.attention.self.{name}.{{p}}" for name in names]


def trunk_rules(pooler: str, rows: int) -> list[Rule]:
    """Args: pooler: the name of theirs; rows: of the table of positions."""
    return [
        counted("{base}embeddings.position_ids", rows),
        named(f"{TEXT}.tokenizer.weight", "{base}embeddings.word_embeddings.weight"),
        named(f"{TEXT}.tokenizer.type_weight", "{base}embeddings.token_type_embeddings.weight"),
        named(f"{STACK}.position.weight", "{base}embeddings.position_embeddings.weight"),
        named(f"{STACK}.input_norm.{{p}}", "{base}embeddings.LayerNorm.{p}"),
        joined(f"{LAYER}.mixer.qkv.{{p}}", heads("query", "key", "value")),
        named(f"{LAYER}.mixer.out.{{p}}", f"{THEIRS}.attention.output.dense.{{p}}"),
        named(f"{LAYER}.mixer_residual.norm.{{p}}", f"{THEIRS}.attention.output.LayerNorm.{{p}}"),
        named(f"{LAYER}.feedforward.up.{{p}}", f"{THEIRS}.intermediate.dense.{{p}}"),
        named(f"{LAYER}.feedforward.down.{{p}}", f"{THEIRS}.output.dense.{{p}}"),
        named(f"{LAYER}.feedforward_residual.norm.{{p}}", f"{THEIRS}.output.LayerNorm.{{p}}"),
        named(f"{TEXT}.projection.0.{{p}}", f"{{base}}{pooler}.{{p}}"),
    ]


DEFAULTS = {"position_embedding_type": "absolute", "tie_word_embeddings": True}
"""What a config means that does not say of them."""


def trunk_fields() -> tuple[Field, ...]:
    return (
        same("vocab_size", f"{TEXT}.tokenizer.rows"),
        same("type_vocab_size", f"{TEXT}.tokenizer.types"),
        same("hidden_size", f"{STACK}.width", f"{TEXT}.embedding"),
        same("num_attention_heads", f"{STACK}.layer.mixer.heads"),
        same("intermediate_size", f"{STACK}.layer.feedforward.hidden_width"),
        choice("hidden_act", TRANSFORMS, f"{HEAD}.transform.activation"),
        choice("hidden_act", ACTIVATIONS, f"{STACK}.layer.feedforward"),
        same("hidden_dropout_prob", f"{STACK}.layer.dropout", f"{STACK}.input_dropout"),
        same("attention_probs_dropout_prob", f"{STACK}.layer.mixer.dropout"),
        fixed("position_embedding_type", "absolute"),
        fixed("tie_word_embeddings", True),
        same("layer_norm_eps", f"{STACK}.layer.norm.eps", f"{HEAD}.transform.norm.eps"),
    )
