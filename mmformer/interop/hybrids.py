"""Layers that take turns, as transformers' hybrids say them: Mamba and attention, with experts and without (Jamba)."""

from __future__ import annotations

from collections.abc import Sequence
from math import lcm
from typing import Any

from mmformer.interop import state_spaces
from mmformer.interop.plain import Data, get

SCAN = {
    **{"mamba_expand": "expand", "mamba_d_state": "states", "mamba_d_conv": "convolution", "mamba_dt_rank": "rank"},
    **{"mamba_proj_bias": "bias", "mamba_conv_bias": "convolution_bias"},
}
ATTENTION = {"num_attention_heads": "heads", "num_key_value_heads": "key_value_heads", "attention_dropout": "dropout"}
TURNS = ("attn_layer_period", "attn_layer_offset", "expert_layer_period", "expert_layer_offset")
EXPERTS = ("intermediate_size", "num_experts", "num_experts_per_tok", "router_aux_loss_coef")
KEYS = ("num_hidden_layers", "rms_norm_eps", *ATTENTION, *SCAN, *EXPERTS, *TURNS)
"""Of a config: what its layers are, and which of them stands where."""


def read_layers(*values: Any) -> Sequence[Any]:
    """The layers that are repeated, as many as both kinds of turns come back after, and how many there are at all."""
    said: Data = dict(zip(KEYS, values, strict=True))
    hidden, top, experts = said["intermediate_size"], said["num_experts_per_tok"], said["num_experts"]
    norm = _part("RMSNormSpec", eps=said["rms_norm_eps"])
    scan = {ours: said[theirs] for theirs, ours in SCAN.items()}
    scan |= {"rank": state_spaces.read_rank(scan["rank"]), "norm": norm}
    attention = {ours: said[theirs] for theirs, ours in ATTENTION.items()}
    mixers = _part("MambaSpec", **scan), _part("AttentionSpec", **attention, bias=False)
    dense = _part("SwiGLUFeedForwardSpec", hidden_width=hidden)
    # Theirs adds up the shares of each of the choices, ours has their mean.
    loss = {"z_loss": 0.0, "balance_loss": said["router_aux_loss_coef"] * top}
    router = _part("TokenChoiceSpec", top=top, renormalise=False, **loss)
    choosing = _part("MixtureOfExpertsSpec", experts=experts, expert=dense, router=router) if experts > 1 else dense
    (attends, first), (chooses, second) = (said[TURNS[0]], said[TURNS[1]]), (said[TURNS[2]], said[TURNS[3]])
    depth = said["num_hidden_layers"]
    layers = [
        {
            "mixer": mixers[place % attends == first],
            "feedforward": choosing if place % chooses == second else dense,
            "norm": norm,
        }
        for place in range(min(depth, lcm(attends, chooses)))
    ]
    return [layers, depth]


def write_layers(layers: list[Data], depth: int) -> Sequence[Any]:
    """What a config says of such layers; where they are no such, reading it back gives others."""
    attends = [_is(layer["mixer"], "AttentionSpec") for layer in layers]
    chooses = [_is(layer["feedforward"], "MixtureOfExpertsSpec") for layer in layers]
    scans = [_is(layer["mixer"], "MambaSpec") for layer in layers]
    if not (any(attends) and any(chooses) and any(scans)):
        raise ValueError("a pattern in which MambaSpec, AttentionSpec and MixtureOfExpertsSpec take turns")
    attention, scan = (layers[marks.index(True)] for marks in (attends, scans))
    experts = layers[chooses.index(True)]["feedforward"]
    own = [get(scan, f"mixer.{name}") for name in SCAN.values()]
    own[3] = own[3] or "auto"
    top = get(experts, "router.top")
    return [
        *(depth, get(attention, "norm.eps")),
        *(get(attention, f"mixer.{name}") for name in ATTENTION.values()),
        *own,
        *(get(experts, "expert.hidden_width"), get(experts, "experts"), top, get(experts, "router.balance_loss") / top),
        *(*_turn(attends), *_turn(chooses)),
    ]


def _part(name: str, **arguments: Any) -> Data:
    return {"class_path": name, "init_args": arguments}


def _is(part: Data | None, name: str) -> bool:
    return part is not None and part["class_path"] == name


def _turn(marks: Sequence[bool]) -> tuple[int, int]:
    """After how many layers those that are marked come back, and which is the first."""
    places = [place for place, mark in enumerate(marks) if mark]
    return (places[1] - places[0] if len(places) > 1 else len(marks)), places[0]
