"""BigBird as transformers keeps it (``models/big_bird``), with full or with sparse attention.

Of rows of different lengths, its sparse attention lets all see the block in which the longest ends, and cuts up even
those that are short enough to be seen whole; and after one short batch it is full for good. Here each row is worth what
it is worth there alone, in a model that has seen nothing yet. In training, it draws blocks at random besides.
"""

from __future__ import annotations

from collections.abc import Sequence

from mmformer.interop.berts import DEFAULTS, HEAD, STACK, TEXT, prediction_rules, size_fields, trunk_fields, trunk_rules
from mmformer.interop.family import Family, Layout
from mmformer.interop.fields import Field, all_fixed, scaled
from mmformer.interop.plain import Data
from mmformer.interop.rules import Rule
from mmformer.interop.rules import same as named

_FOLLOWS = "heads.follows"
_PATTERN = f"{STACK}.layer.mixer.pattern"
_FIXED = {"use_bias": True, "is_decoder": False, "add_cross_attention": False}


def _rules(config: Data) -> list[Rule]:
    return [
        *trunk_rules("pooler", config["max_position_embeddings"]),
        *prediction_rules(),
        named(f"{_FOLLOWS}.projection.{{p}}", "cls.seq_relationship.{p}"),
    ]


def _pattern(kind: str, size: int, drawn: int) -> Sequence[Data | None]:
    if kind not in ("block_sparse", "original_full"):
        raise ValueError("attention_type 'block_sparse' or 'original_full'")
    said = {"size": size, "whole": (5 + 2 * drawn) * size, "first": 1 + drawn}
    return [{"class_path": "BlockSparseSpec", "init_args": said} if kind == "block_sparse" else None]


def _kind(pattern: Data | None) -> Sequence[str | int]:
    if pattern is None:
        return ["original_full", 64, 3]
    if pattern["class_path"] != "BlockSparseSpec":
        raise ValueError("None or a BlockSparseSpec")
    return ["block_sparse", pattern["init_args"]["size"], pattern["init_args"]["first"] - 1]


FAMILY = Family(
    library="hf",
    name="big_bird",
    template="big_bird.yaml",
    layouts={
        "BigBirdForPreTraining": Layout("bert."),
        "BigBirdForMaskedLM": Layout("bert.", (_FOLLOWS,), unread=("cls.seq_relationship.*",)),
        "BigBirdModel": Layout("", (HEAD, _FOLLOWS)),
    },
    fields=(
        *trunk_fields("embedding_dropout"),
        *size_fields(),
        scaled("rescale_embeddings", "hidden_size", f"{STACK}.width", 0.5, f"{TEXT}.tokenizer.scale"),
        Field(("attention_type", "block_size", "num_random_blocks"), (_PATTERN,), _pattern, _kind),
        *all_fixed(_FIXED),
    ),
    rules=_rules,
    defaults={
        **{"attention_type": "block_sparse", "block_size": 64, "num_random_blocks": 3, "rescale_embeddings": False},
        **DEFAULTS,
        **_FIXED,
    },
    ignored=("classifier_dropout", "pad_token_id", "gradient_checkpointing"),
    text=(f"{TEXT}.tokenizer",),
)
