"""Longformer as transformers keeps it (``models/longformer``)."""

from __future__ import annotations

from collections.abc import Sequence

from mmformer.interop.berts import DEFAULTS, HEAD, LAYER, POOLER, STACK, TEXT, heads, trunk_fields, trunk_rules
from mmformer.interop.family import Family, Layout
from mmformer.interop.fields import Field
from mmformer.interop.plain import Data
from mmformer.interop.rules import Rule, joined, tied
from mmformer.interop.rules import same as named

_WINDOW = f"{STACK}.layer.mixer.pattern.patterns.0"


def _rules(config: Data) -> list[Rule]:
    return [
        *trunk_rules("pooler.dense", config["max_position_embeddings"]),
        named(f"{LAYER}.mixer.global_q.{{p}}", *heads("query_global")),
        joined(f"{LAYER}.mixer.global_kv.{{p}}", heads("key_global", "value_global")),
        named(f"{HEAD}.transform.dense.{{p}}", "lm_head.dense.{p}"),
        named(f"{HEAD}.transform.norm.{{p}}", "lm_head.layer_norm.{p}"),
        named(f"{HEAD}.bias", "lm_head.bias"),
        tied(f"{HEAD}.bias", "lm_head.decoder.bias"),
        tied(f"{TEXT}.tokenizer.weight", "lm_head.decoder.weight"),
    ]


def _windows(windows: int | Sequence[int], depth: int) -> Sequence[int]:
    each = [windows] * depth if isinstance(windows, int) else list(windows)
    if len(each) != depth or len(set(each)) != 1 or each[0] % 2 or each[0] < 2:
        raise ValueError("one even number, or the same for each of the layers")
    return [each[0] // 2, each[0] // 2, depth]


def _window(before: int, after: int, depth: int) -> Sequence[list[int] | int]:
    if before != after:
        raise ValueError("a window that reaches as far to both sides")
    return [2 * before] * depth, depth


FAMILY = Family(
    library="hf",
    name="longformer",
    template="longformer.yaml",
    layouts={
        "LongformerForMaskedLM": Layout("longformer.", POOLER, unread=("longformer.pooler.*",)),
        "LongformerModel": Layout("", (HEAD,), mark="pooler.", unread=("lm_head.*",)),
        "LongformerModel unpooled": Layout("", (HEAD, *POOLER), mark="embeddings."),
    },
    fields=(
        *trunk_fields(),
        Field(
            ("attention_window", "num_hidden_layers"),
            (f"{_WINDOW}.before", f"{_WINDOW}.after", f"{STACK}.depth"),
            _windows,
            lambda *found: list(_window(*found)),
        ),
        Field(  # rows of padding and of what is before it stand first, as those of special tokens do: texts have none
            ("max_position_embeddings", "pad_token_id"),
            (f"{TEXT}.tokenizer.context_length", f"{STACK}.position.sizes.0", f"{STACK}.position.special"),
            lambda rows, pad: [rows - pad - 1, rows - pad - 1, pad + 1],
            lambda _, places, special: [places + special, special - 1],
        ),
    ),
    rules=_rules,
    defaults={"attention_window": 512, "pad_token_id": 1, "type_vocab_size": 2, **DEFAULTS},
    ignored=("onnx_export", "ignore_attention_mask", "attention_mode", "attention_dilation", "autoregressive"),
    text=(f"{TEXT}.tokenizer",),
)
