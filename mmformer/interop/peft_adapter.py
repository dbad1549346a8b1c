"""Adapters as peft keeps them (adapter_config.json, adapter_model.safetensors), merged into the weights they adapt.

What an adapter is called goes by the names of the library: it is merged while a model's weights have those names.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mmformer.errors import InputError, nearest
from mmformer.interop.checkpoint import State, read_json, read_tensors

PREFIX = "base_model.model."
FACTORS = ("lora_A.weight", "lora_B.weight", "lora_magnitude_vector", "ia3_l")
KINDS = ("LORA", "IA3")
BEYOND = (
    *("layer_replication", "trainable_token_indices", "target_parameters", "alora_invocation_tokens", "lora_bias"),
    *("use_qalora", "use_bdlora", "arrow_config", "corda_config", "eva_config", "loftq_config", "lora_ga_config"),
    *("kasa_config", "monteclora_config"),
)
"""Keys of LoRA's config that mean more than two factors, where they say anything."""

TAKEN_OUT = ("pissa", "olora", "corda", "loftq", "lora_ga")
"""First weights that peft takes out of the base's, here and whenever it loads the adapter: what was trained is an
adapter of what is left of those."""

RENAMED = {
    **{"q_proj": "attention.query", "k_proj": "attention.key", "v_proj": "attention.value"},
    "o_proj": "output.dense",
}


def with_adapter(state: Mapping[str, Tensor], folder: Path) -> State:
    """A model's weights with a peft adapter merged into them, as peft's ``merge_and_unload`` does.

    Args:
        state: by the names of the library's model.
        folder: what ``save_pretrained`` of a PeftModel wrote.

    Raises:
        InputError: the folder is none, its adapter is of a kind that is not read, or adapts what is not there.
    """
    config, file = read_json(folder / "adapter_config.json"), folder / "adapter_model.safetensors"
    if not file.is_file():
        raise InputError(f"{folder} has no adapter_model.safetensors: it is no folder of a peft adapter.")
    kind = config.get("peft_type")
    if kind not in KINDS:
        raise InputError(f"{folder} has an adapter of the peft_type {kind!r}, but those that are read are {KINDS}.")
    if beyond := [key for key in BEYOND if config.get(key)]:
        raise InputError(f"{folder} has {beyond[0]} {config[beyond[0]]!r:.80}, which is not read: merge it with peft.")
    first = config.get("init_lora_weights")
    if str(first).lower().startswith(TAKEN_OUT):
        raise InputError(
            f"{folder} has init_lora_weights {first!r}: its adapter is of weights that this was taken out of, and not "
            f"of the model's. Merge it with peft, or save it there with path_initial_model_for_weight_conversion."
        )
    changed = dict(state)
    modules: dict[str, dict[str, Tensor]] = {}
    for name, value in read_tensors(file).items():
        path = name.removeprefix(PREFIX).replace(".base_layer.", ".")
        factor = next((factor for factor in FACTORS if f".{factor}" in path), None)
        if factor is None:  # of modules_to_save, and biases
            changed[_found(path, state, folder)] = value
        else:
            modules.setdefault(path.partition(f".{factor}")[0], {})[factor] = value.float()
    for module, factors in modules.items():
        name = _found(f"{module}.weight", state, folder)
        weight, turned = state[name].float(), _is_turned(state[name], factors, config)
        merged = _merged(weight.T if turned else weight, factors, _scale(module, factors, config))
        changed[name] = (merged.T if turned else merged).contiguous()
        bias = name.removesuffix("weight") + "bias"
        if "ia3_l" in factors and factors["ia3_l"].shape[0] != 1 and bias in state:
            changed[bias] = state[bias].float() * factors["ia3_l"].flatten()
    return changed


def _merged(weight: Tensor, factors: Mapping[str, Tensor], scale: float) -> Tensor:
    """Out in; an IA3 factor is out 1, or 1 in where it is of what a map reads."""
    if "ia3_l" in factors:
        return weight * factors["ia3_l"]
    turned = weight + scale * (factors["lora_B.weight"] @ factors["lora_A.weight"])
    if "lora_magnitude_vector" not in factors:
        return turned
    length: Tensor = torch.linalg.vector_norm(turned, dim=1)
    return turned * (factors["lora_magnitude_vector"].flatten() / length)[:, None]


def _scale(module: str, factors: Mapping[str, Tensor], config: Mapping[str, Any]) -> float:
    if "ia3_l" in factors:
        return 1.0
    own = config.get("alpha_pattern") or {}
    alpha = next((own[pattern] for pattern in own if re.match(rf"(.*\.)?({pattern})$", module)), config["lora_alpha"])
    rank = len(factors["lora_A.weight"])
    return float(alpha) / (math.sqrt(rank) if config.get("use_rslora") else rank)


def _is_turned(weight: Tensor, factors: Mapping[str, Tensor], config: Mapping[str, Any]) -> bool:
    """Whether a matrix is applied from the other side, in out (GPT-2's Conv1D)."""
    if "ia3_l" in factors:
        return bool(config.get("fan_in_fan_out"))
    shape = (len(factors["lora_B.weight"]), factors["lora_A.weight"].shape[1])
    return bool(config.get("fan_in_fan_out")) if shape[0] == shape[1] else weight.shape != shape


def _found(name: str, state: Iterable[str], folder: Path) -> str:
    """The name of the same parameter in a model that may be a trunk, or have one."""
    for said in _said(name):
        fits = [known for known in state if f".{known}".endswith(f".{said}") or f".{said}".endswith(f".{known}")]
        if len(fits) == 1:
            return fits[0]
        if fits:
            raise InputError(f"{folder} adapts {name}, which {fits[0]} and {fits[1]} of the model might be.")
    raise InputError(f"{folder} adapts {name}, but the model has none of this name.{nearest(name, state)}")


def _said(name: str) -> list[str]:
    """What a parameter may be called in a file: transformers 5 has other names for ViT and its kin in memory."""
    attention = name
    for now, kept in RENAMED.items():
        attention = attention.replace(f".attention.{now}.", f".attention.{kept}.")
    whole = re.sub(r"(^|\.)layers\.(\d+)\.", r"\1encoder.layer.\2.", attention)
    return [name, attention, whole.replace(".mlp.fc1.", ".intermediate.dense.").replace(".mlp.fc2.", ".output.dense.")]
