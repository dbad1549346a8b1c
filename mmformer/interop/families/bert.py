"""BERT as transformers keeps it (``models/bert``): its trunk, and with the heads that it is trained with."""

from __future__ import annotations

from mmformer.interop import berts
from mmformer.interop.berts import POOLER
from mmformer.interop.family import Family, Layout
from mmformer.interop.fields import all_fixed, same
from mmformer.interop.plain import Data
from mmformer.interop.rules import Rule
from mmformer.interop.rules import same as named

_HEADS = ("heads.language", "heads.follows", "heads.classes")
_FIXED = {"is_decoder": False, "add_cross_attention": False}
_WORDS = {"gain": "weight", "shift": "bias"}


def _rules(config: Data) -> list[Rule]:
    rules = [
        *berts.trunk_rules("pooler.dense", config["max_position_embeddings"]),
        *berts.prediction_rules(),
        named("heads.follows.projection.{p}", "cls.seq_relationship.{p}"),
        named("heads.classes.projection.{p}", "classifier.{p}"),
    ]
    return [worded for rule in rules for worded in _worded(rule)]


def _worded(rule: Rule) -> list[Rule]:
    """A norm's parameters by a layout's words for them; other rules as they are."""
    if not rule.theirs[0].endswith("LayerNorm.{p}"):
        return [rule]
    return [
        named(rule.ours[0].replace("{p}", ours), rule.theirs[0].replace("{p}", f"{{{word}}}"))
        for word, ours in _WORDS.items()
    ]


def _layouts(name: str, prefix: str, without: tuple[str, ...], unread: tuple[str, ...] = ()) -> dict[str, Layout]:
    """A class with the names of norms that it has now, and with TensorFlow's, of the first published weights."""
    old, mark = {"gain": "gamma", "shift": "beta"}, f"{prefix}embeddings.LayerNorm.gamma"
    return {
        name: Layout(prefix, without, _WORDS, unread=unread),
        f"{name} gamma": Layout(prefix, without, old, mark, unread),
    }


FAMILY = Family(
    library="hf",
    name="bert",
    template="bert.yaml",
    layouts={
        **_layouts("BertForPreTraining", "bert.", ("heads.classes",)),
        **_layouts("BertForMaskedLM", "bert.", (*_HEADS[1:], *POOLER), ("bert.pooler.*", "cls.seq_relationship.*")),
        **_layouts("BertForNextSentencePrediction", "bert.", _HEADS[::2], ("cls.predictions.*",)),
        **_layouts("BertForSequenceClassification", "bert.", _HEADS[:2], ("cls.*",)),
        "BertModel": Layout("", _HEADS, _WORDS, "pooler.", ("cls.*",)),
        "BertModel unpooled": Layout("", (*_HEADS, *POOLER), _WORDS, "embeddings.", ("cls.*",)),
    },
    fields=(
        *berts.trunk_fields(),
        *berts.size_fields(),
        same("classifier_dropout", "heads.classes.dropout"),
        *all_fixed(_FIXED),
    ),
    rules=_rules,
    defaults={"classifier_dropout": lambda config: config["hidden_dropout_prob"], **berts.DEFAULTS, **_FIXED},
    ignored=("pooler_*", "directionality"),  # of TensorFlow's, which no class here reads
    text=(f"{berts.TEXT}.tokenizer",),
    classes=("heads.classes",),
)
