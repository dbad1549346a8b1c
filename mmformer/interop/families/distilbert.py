"""DistilBERT as transformers keeps it (``models/distilbert``)."""

from __future__ import annotations

from mmformer.interop.berts import TRANSFORMS
from mmformer.interop.family import Family, Layout
from mmformer.interop.fields import ACTIVATIONS, choice, fixed, same
from mmformer.interop.plain import Data
from mmformer.interop.rules import Rule, counted, joined, tied
from mmformer.interop.rules import same as named

_STACK, _TEXT, _HEAD = "stacks.text", "encoders.text", "heads.language"


def _rules(config: Data) -> list[Rule]:
    ours, theirs = f"{_STACK}.layers.{{i}}", "{base}transformer.layer.{i}"
    return [
        named(f"{_TEXT}.tokenizer.weight", "{base}embeddings.word_embeddings.weight"),
        named(f"{_STACK}.position.weight", "{base}embeddings.position_embeddings.weight"),
        counted("{base}embeddings.position_ids", config["max_position_embeddings"]),
        named(f"{_STACK}.input_norm.{{p}}", "{base}embeddings.LayerNorm.{p}"),
        joined(f"{ours}.mixer.qkv.{{p}}", [f"{theirs}.attention.{letter}_lin.{{p}}" for letter in "qkv"]),
        named(f"{ours}.mixer.out.{{p}}", f"{theirs}.attention.out_lin.{{p}}"),
        named(f"{ours}.mixer_residual.norm.{{p}}", f"{theirs}.sa_layer_norm.{{p}}"),
        named(f"{ours}.feedforward.up.{{p}}", f"{theirs}.ffn.lin1.{{p}}"),
        named(f"{ours}.feedforward.down.{{p}}", f"{theirs}.ffn.lin2.{{p}}"),
        named(f"{ours}.feedforward_residual.norm.{{p}}", f"{theirs}.output_layer_norm.{{p}}"),
        named(f"{_HEAD}.transform.dense.{{p}}", "vocab_transform.{p}"),
        named(f"{_HEAD}.transform.norm.{{p}}", "vocab_layer_norm.{p}"),
        named(f"{_HEAD}.bias", "vocab_projector.bias"),
        tied(f"{_TEXT}.tokenizer.weight", "vocab_projector.weight"),
        named("heads.classes.hidden.{p}", "pre_classifier.{p}"),
        named("heads.classes.projection.{p}", "classifier.{p}"),
    ]


FAMILY = Family(
    library="hf",
    name="distilbert",
    template="distilbert.yaml",
    layouts={
        "DistilBertForMaskedLM": Layout("distilbert.", ("heads.classes",)),
        "DistilBertForSequenceClassification": Layout("distilbert.", (_HEAD,), unread=("vocab_*",)),
        "DistilBertModel": Layout("", (_HEAD, "heads.classes"), unread=("vocab_*",)),
    },
    fields=(
        same("vocab_size", f"{_TEXT}.tokenizer.rows"),
        same("max_position_embeddings", f"{_TEXT}.tokenizer.context_length", f"{_STACK}.position.sizes.0"),
        same("dim", f"{_STACK}.width", "heads.classes.hidden"),
        same("n_layers", f"{_STACK}.depth"),
        same("n_heads", f"{_STACK}.layer.mixer.heads"),
        same("hidden_dim", f"{_STACK}.layer.feedforward.hidden_width"),
        choice("activation", TRANSFORMS, f"{_HEAD}.transform.activation"),
        choice("activation", ACTIVATIONS, f"{_STACK}.layer.feedforward"),
        same("dropout", f"{_STACK}.layer.dropout", f"{_STACK}.input_dropout"),
        same("attention_dropout", f"{_STACK}.layer.mixer.dropout"),
        same("seq_classif_dropout", "heads.classes.dropout"),
        fixed("tie_word_embeddings", True),
    ),
    rules=_rules,
    defaults={"seq_classif_dropout": 0.2, "tie_word_embeddings": True},
    # Its positions are in a table either way; the dropout is another class's.
    ignored=("sinusoidal_pos_embds", "qa_dropout", "tie_weights_"),
    text=(f"{_TEXT}.tokenizer",),
    classes=("heads.classes",),
)
