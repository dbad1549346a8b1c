"""BigBird as transformers keeps it (``models/big_bird``), where its attention is full.

What it calls block-sparse has no random blocks in evaluation: each block counts the first one several times over
instead, and the last that all see is where the longest row of a batch ends, so that what a text is worth depends on
those beside it. Rows that are shorter than all of these blocks it attends to in full. The paper's pattern is in
``configs/stacks/bigbird.yaml``.
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
_FIXED = {"use_bias": True, "is_decoder": False, "add_cross_attention": False}


def _rules(config: Data) -> list[Rule]:
    return [
        *trunk_rules("pooler", config["max_position_embeddings"]),
        *prediction_rules(),
        named(f"{_FOLLOWS}.projection.{{p}}", "cls.seq_relationship.{p}"),
    ]


def _full(kind: str, size: int, drawn: int) -> Sequence[str]:
    if kind != "original_full":
        raise ValueError(
            f"attention_type 'original_full', which that is, too, for rows of up to {(5 + 2 * drawn) * size} ids: "
            f"write it into the config to read such rows, or all in full"
        )
    return []


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
        *trunk_fields(),
        *size_fields(),
        scaled("rescale_embeddings", "hidden_size", f"{STACK}.width", 0.5, f"{TEXT}.tokenizer.scale"),
        Field(("attention_type", "block_size", "num_random_blocks"), (), _full, lambda: ["original_full", 64, 3]),
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
