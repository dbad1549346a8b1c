"""What families that are made like BERT have in common with it: embeddings, layers, and what predicts words."""

from __future__ import annotations

from collections.abc import Sequence

from mmformer.interop.fields import ACTIVATIONS, Field, at_each, choice, fixed, same
from mmformer.interop.rules import Rule, counted, joined, tied
from mmformer.interop.rules import same as named

STACK, TEXT, HEAD = "stacks.text", "encoders.text", "heads.language"
LAYER, THEIRS = "stacks.text.layers.{i}", "{base}encoder.layer.{i}"
POOLER = (f"{TEXT}.embedding", f"{TEXT}.projection")

TRANSFORMS = {"gelu": "gelu", "gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh", "relu": "relu"}
"""What a language head does before its products, by the name of the activation that all of a model has."""


def heads(*names: str, attention: str = "attention") -> Sequence[str]:
    """Projections of an attention, by the names that theirs have."""
    return [f"{THEIRS}.{attention}.self.{name}.{{p}}" for name in names]


def trunk_rules(pooler: str, rows: int) -> list[Rule]:
    """Args: pooler: the name of theirs; rows: of the table of positions."""
    return [
        counted("{base}embeddings.position_ids", rows),
        *embedding_rules(TEXT),
        *layer_rules(),
        named(f"{TEXT}.projection.0.{{p}}", f"{{base}}{pooler}.{{p}}"),
    ]


def embedding_rules(text: str) -> list[Rule]:
    """Of ids, types and positions; ``text`` is what has our tokenizer."""
    return [
        named(f"{text}.tokenizer.weight", "{base}embeddings.word_embeddings.weight"),
        named(f"{text}.tokenizer.type_weight", "{base}embeddings.token_type_embeddings.weight"),
        named(f"{STACK}.position.weight", "{base}embeddings.position_embeddings.weight"),
        named(f"{STACK}.input_norm.{{p}}", "{base}embeddings.LayerNorm.{p}"),
    ]


def layer_rules() -> list[Rule]:
    """An encoder's, or those of a decoder that BERT was made, which has cross attention besides."""
    return [
        joined(f"{LAYER}.mixer.qkv.{{p}}", heads("query", "key", "value")),
        *_leaving("mixer", f"{THEIRS}.attention.output"),
        named(f"{LAYER}.cross.q.{{p}}", *heads("query", attention="crossattention")),
        joined(f"{LAYER}.cross.kv.{{p}}", heads("key", "value", attention="crossattention")),
        *_leaving("cross", f"{THEIRS}.crossattention.output"),
        named(f"{LAYER}.feedforward.up.{{p}}", f"{THEIRS}.intermediate.dense.{{p}}"),
        named(f"{LAYER}.feedforward.down.{{p}}", f"{THEIRS}.output.dense.{{p}}"),
        named(f"{LAYER}.feedforward_residual.norm.{{p}}", f"{THEIRS}.output.LayerNorm.{{p}}"),
    ]


def _leaving(mixer: str, theirs: str) -> list[Rule]:
    return [
        named(f"{LAYER}.{mixer}.out.{{p}}", f"{theirs}.dense.{{p}}"),
        named(f"{LAYER}.{mixer}_residual.norm.{{p}}", f"{theirs}.LayerNorm.{{p}}"),
    ]


def prediction_rules(text: str = TEXT, head: str = HEAD, bias: str = "bias") -> list[Rule]:
    """Of words: a transform, and products with the table of ``text``. ``bias`` is the name of ours under ``head``."""
    theirs = "cls.predictions"
    return [
        named(f"{head}.transform.dense.{{p}}", f"{theirs}.transform.dense.{{p}}"),
        named(f"{head}.transform.norm.{{p}}", f"{theirs}.transform.LayerNorm.{{p}}"),
        named(f"{head}.{bias}", f"{theirs}.bias"),
        tied(f"{head}.{bias}", f"{theirs}.decoder.bias"),
        tied(f"{text}.tokenizer.weight", f"{theirs}.decoder.weight"),
    ]


DEFAULTS = {"position_embedding_type": "absolute", "tie_word_embeddings": True}
"""What a config means that does not say of them."""


def trunk_fields(dropout: str = "input_dropout") -> tuple[Field, ...]:
    """Args: dropout: the stack's, on embeddings; see ``layer_fields``."""
    return (
        same("vocab_size", f"{TEXT}.tokenizer.rows"),
        same("type_vocab_size", f"{TEXT}.tokenizer.types"),
        same("hidden_size", f"{STACK}.width", f"{TEXT}.embedding"),
        *layer_fields(HEAD, dropout=dropout),
        fixed("position_embedding_type", "absolute"),
        fixed("tie_word_embeddings", True),
    )


def size_fields(text: str = TEXT, at: str = "") -> tuple[Field, ...]:
    """How many layers, and positions, each with a row; ``at`` stands before a config's keys."""
    return (
        same(f"{at}num_hidden_layers", f"{STACK}.depth"),
        same(f"{at}max_position_embeddings", f"{text}.tokenizer.context_length", f"{STACK}.position.sizes.0"),
    )


def layer_fields(
    head: str, at: str = "", mixers: Sequence[str] = ("mixer",), dropout: str = "input_dropout"
) -> tuple[Field, ...]:
    """What a config says of the layers, and thereby of the transform of ``head``.

    Args:
        at: what stands before its keys.
        mixers: what ours has of them in a layer.
        dropout: the stack's, on embeddings: after their norm, or before it.
    """
    layer = f"{STACK}.layer"
    attentions = [f"{layer}.{mixer}" for mixer in mixers]
    return (
        same(f"{at}num_attention_heads", *at_each(attentions, "heads")),
        same(f"{at}intermediate_size", f"{layer}.feedforward.hidden_width"),
        choice(f"{at}hidden_act", TRANSFORMS, f"{head}.transform.activation"),
        choice(f"{at}hidden_act", ACTIVATIONS, f"{layer}.feedforward"),
        same(f"{at}hidden_dropout_prob", f"{layer}.dropout", f"{STACK}.{dropout}"),
        same(f"{at}attention_probs_dropout_prob", *at_each(attentions, "dropout")),
        same(f"{at}layer_norm_eps", f"{layer}.norm.eps", f"{head}.transform.norm.eps"),
    )
