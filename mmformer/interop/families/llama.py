"""Llama and Mixtral as transformers keeps them (``models/llama``, ``models/mixtral``)."""

from __future__ import annotations

from mmformer.interop import llamas, rotary
from mmformer.interop.family import Family, Layout
from mmformer.interop.fields import Field, choice, fixed, same
from mmformer.interop.llamas import HIDDEN, STACK, TEXT, THEIRS
from mmformer.interop.plain import Data
from mmformer.interop.rules import Rule

LLAMA = Family(
    library="hf",
    name="llama",
    template="llama.yaml",
    layouts={"LlamaForCausalLM": Layout("model.", unread=llamas.UNREAD)},
    fields=llamas.dense_fields(),
    rules=llamas.dense_rules,
    defaults=llamas.DENSE,
    ignored=llamas.IGNORED,
    text=(f"{TEXT}.tokenizer",),
)


def _mixtral_rules(config: Data) -> list[Rule]:
    experts, names = f"{THEIRS}.block_sparse_moe", ("w1", "w3", "w2")
    return [
        *llamas.trunk_rules(config),
        *llamas.expert_rules(experts, "gate", names, config, config["num_local_experts"]),
    ]


def _window(length: int | None) -> list[Data | None]:
    return [None if length is None else {"class_path": "WindowSpec", "init_args": {"before": length - 1, "after": 0}}]


def _length(pattern: Data | None) -> list[int | None]:
    if pattern is None:
        return [None]
    made = pattern["init_args"] if pattern["class_path"] == "WindowSpec" else {}
    if not made or made.get("dilation", 1) != 1:
        raise ValueError("None or a window")
    return [made["before"] + 1]


_BALANCE = Field(  # theirs adds up the shares of each of the choices, ours has their mean
    ("router_aux_loss_coef", "num_experts_per_tok"),
    (f"{HIDDEN}.router.balance_loss", f"{HIDDEN}.router.top"),
    lambda weight, top: [weight * top, top],
    lambda weight, top: [weight / top, top],
)

MIXTRAL = Family(
    library="hf",
    name="mixtral",
    template="mixtral.yaml",
    layouts={"MixtralForCausalLM": Layout("model.")},
    fields=(
        *llamas.trunk_fields(),
        choice("hidden_act", llamas.GATED, f"{HIDDEN}.expert"),
        same("intermediate_size", f"{HIDDEN}.expert.hidden_width"),
        same("num_local_experts", f"{HIDDEN}.experts"),
        _BALANCE,
        same("router_jitter_noise", f"{HIDDEN}.router.jitter"),
        Field(("sliding_window",), (f"{STACK}.layer.mixer.pattern",), _window, _length),
        fixed("output_router_logits", False),
    ),
    rules=_mixtral_rules,
    defaults={
        **llamas.TRUNK,
        "num_key_value_heads": llamas.eight_or_null,
        "rope_parameters": lambda config: rotary.parameters_of(config, 1e6),
        **{"router_jitter_noise": 0.0, "router_aux_loss_coef": 0.001},
        **{"sliding_window": None, "output_router_logits": False},
    },
    ignored=rotary.OLD,
    text=(f"{TEXT}.tokenizer",),
)
