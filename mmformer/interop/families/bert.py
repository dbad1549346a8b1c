"""BERT as transformers keeps it (``models/bert``): its trunk, and with the heads that it is trained with."""

from __future__ import annotations

from mmformer.interop.family import Family, Layout
from mmformer.interop.fields import ACTIVATIONS, choice, fixed, same
from mmformer.interop.plain import Data
from mmformer.interop.rules import Rule, counted, joined, tied
from mmformer.interop.rules import same as named

_STACK, _TEXT, _HEAD = "stacks.text", "encoders.text", "heads.language"
_LAYER, _THEIRS = "stacks.text.layers.{i}", "{base}encoder.layer.{i}"
_POOLER = ("encoders.text.embedding", "encoders.text.projection")

TRANSFORMS = {"gelu": "gelu", "gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh", "relu": "relu"}
"""What a language head does before its products, by the name of the activation that all of a model has."""


def _norm(ours: str, theirs: str) -> list[Rule]:
    """The oldest weights have TensorFlow's names, gamma and beta."""
    return [named(f"{ours}.weight", f"{theirs}.{{gain}}"), named(f"{ours}.bias", f"{theirs}.{{shift}}")]


def _rules(config: Data) -> list[Rule]:
    predictions = "cls.predictions"
    heads = [f"{_THEIRS}.attention.self.{name}.{{p}}" for name in ("query", "key", "value")]
    return [
        named(f"{_TEXT}.tokenizer.weight", "{base}embeddings.word_embeddings.weight"),
        named(f"{_TEXT}.tokenizer.type_weight", "{base}embeddings.token_type_embeddings.weight"),
        named(f"{_STACK}.position.weight", "{base}embeddings.position_embeddings.weight"),
        counted("{base}embeddings.position_ids", config["max_position_embeddings"]),
        *_norm(f"{_STACK}.input_norm", "{base}embeddings.LayerNorm"),
        joined(f"{_LAYER}.mixer.qkv.{{p}}", heads),
        named(f"{_LAYER}.mixer.out.{{p}}", f"{_THEIRS}.attention.output.dense.{{p}}"),
        *_norm(f"{_LAYER}.mixer_residual.norm", f"{_THEIRS}.attention.output.LayerNorm"),
        named(f"{_LAYER}.feedforward.up.{{p}}", f"{_THEIRS}.intermediate.dense.{{p}}"),
        named(f"{_LAYER}.feedforward.down.{{p}}", f"{_THEIRS}.output.dense.{{p}}"),
        *_norm(f"{_LAYER}.feedforward_residual.norm", f"{_THEIRS}.output.LayerNorm"),
        named(f"{_TEXT}.projection.0.{{p}}", "{base}pooler.dense.{p}"),
        named(f"{_HEAD}.transform.dense.{{p}}", f"{predictions}.transform.dense.{{p}}"),
        *_norm(f"{_HEAD}.transform.norm", f"{predictions}.transform.LayerNorm"),
        named(f"{_HEAD}.bias", f"{predictions}.bias"),
        tied(f"{_HEAD}.bias", f"{predictions}.decoder.bias"),
        tied(f"{_TEXT}.tokenizer.weight", f"{predictions}.decoder.weight"),
        named("heads.follows.projection.{p}", "cls.seq_relationship.{p}"),
        named("heads.classes.projection.{p}", "classifier.{p}"),
    ]


def _layouts(name: str, prefix: str, without: tuple[str, ...], unread: tuple[str, ...] = ()) -> dict[str, Layout]:
    """A class with the names of norms that it has now, and with those of the first published weights."""
    old, mark = {"gain": "gamma", "shift": "beta"}, f"{prefix}embeddings.LayerNorm.gamma"
    return {
        name: Layout(prefix, without, _WORDS, unread=unread),
        f"{name} gamma": Layout(prefix, without, old, mark, unread),
    }


_WORDS = {"gain": "weight", "shift": "bias"}
_HEADS = ("heads.language", "heads.follows", "heads.classes")

FAMILY = Family(
    library="hf",
    name="bert",
    template="bert.yaml",
    layouts={
        **_layouts("BertForPreTraining", "bert.", ("heads.classes",)),
        **_layouts("BertForMaskedLM", "bert.", (*_HEADS[1:], *_POOLER), ("bert.pooler.*", "cls.seq_relationship.*")),
        **_layouts("BertForNextSentencePrediction", "bert.", _HEADS[::2], ("cls.predictions.*",)),
        **_layouts("BertForSequenceClassification", "bert.", _HEADS[:2], ("cls.*",)),
        "BertModel": Layout("", _HEADS, _WORDS, "pooler.", ("cls.*",)),
        "BertModel unpooled": Layout("", (*_HEADS, *_POOLER), _WORDS, "embeddings.", ("cls.*",)),
    },
    fields=(
        same("vocab_size", f"{_TEXT}.tokenizer.rows"),
        same("type_vocab_size", f"{_TEXT}.tokenizer.types"),
        same("max_position_embeddings", f"{_TEXT}.tokenizer.context_length", f"{_STACK}.position.sizes.0"),
        same("hidden_size", f"{_STACK}.width", _POOLER[0]),
        same("num_hidden_layers", f"{_STACK}.depth"),
        same("num_attention_heads", f"{_STACK}.layer.mixer.heads"),
        same("intermediate_size", f"{_STACK}.layer.feedforward.hidden_width"),
        choice("hidden_act", TRANSFORMS, f"{_HEAD}.transform.activation"),
        choice("hidden_act", ACTIVATIONS, f"{_STACK}.layer.feedforward"),
        same("hidden_dropout_prob", f"{_STACK}.layer.dropout", f"{_STACK}.input_dropout"),
        same("attention_probs_dropout_prob", f"{_STACK}.layer.mixer.dropout"),
        same("classifier_dropout", "heads.classes.dropout"),
        same("layer_norm_eps", f"{_STACK}.layer.norm.eps", f"{_HEAD}.transform.norm.eps"),
        fixed("tie_word_embeddings", True),
        fixed("position_embedding_type", "absolute"),
        fixed("is_decoder", False),
        fixed("add_cross_attention", False),
    ),
    rules=_rules,
    defaults={
        "classifier_dropout": lambda config: config["hidden_dropout_prob"],
        "tie_word_embeddings": True,
        "position_embedding_type": "absolute",
        "is_decoder": False,
        "add_cross_attention": False,
    },
    ignored=("pooler_*", "directionality"),  # of TensorFlow's, which no class here reads
    text=(f"{_TEXT}.tokenizer",),
    classes=("heads.classes",),
)
