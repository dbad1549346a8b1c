"""Folders as transformers keeps models: config.json, weights, and what goes with them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmformer.errors import InputError, nearest
from mmformer.interop import rotary
from mmformer.interop.checkpoint import State, read_json, read_weights, write_json, write_weights
from mmformer.interop.family import Family
from mmformer.interop.source import Found, families_of, hub_folder

WEIGHTS = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)


def open_folder(name: str) -> Found:
    """A model in a folder, or of the hub.

    Raises:
        InputError: no such folder, or one that is not whole; a family or a class that mmformer does not read.
    """
    folder = hub_folder(name)
    file = folder / "config.json"
    if not file.is_file():
        raise InputError(f"{folder} has no config.json: it is no folder of a transformers model.")
    config = read_json(file)
    family = _family(config, file)
    _require_agreed(config, family, file)
    rotary.require_agreed(config, str(file))
    state = read_weights(folder, WEIGHTS)
    return Found(family, _layout(config, family, state, file), config, state, folder, str(file))


def write_folder(folder: Path, family: Family, layout: str, config: Mapping[str, Any], state: State) -> None:
    """What transformers' ``from_pretrained`` opens."""
    write_json(
        folder / "config.json", {"architectures": [layout.partition(" ")[0]], "model_type": family.name, **config}
    )
    write_weights(state, folder / "model.safetensors")


def _require_agreed(config: Mapping[str, Any], family: Family, file: Path) -> None:
    """Refuse a config whose ``text_config_dict``, say, which older ones have too, says other than ``text_config``.

    The former overrules the latter, with the class's defaults where it says nothing.
    """
    for key in [key for key in config if key.endswith("_config_dict") and config[key]]:
        group = key.removesuffix("_dict")
        defaults = {
            name.rpartition(".")[2]: family.defaults[name] for name in family.defaults if name.startswith(f"{group}.")
        }
        said, whole = defaults | config[key], defaults | (config.get(group) or {})
        for name, value in said.items():
            if whole.get(name) != value:
                raise InputError(
                    f"{file} has {key}.{name} {value!r}, but {name} is {whole.get(name)!r} in {group}: make them "
                    f"agree, or leave {key} out."
                )


def _family(config: Mapping[str, Any], file: Path) -> Family:
    kind, known = config.get("model_type"), {family.name: family for family in families_of("hf")}
    if kind not in known:
        raise InputError(
            f"{file} has model_type {kind!r}, but the families that mmformer reads are {', '.join(sorted(known))}."
            f"{nearest(str(kind), known)}"
        )
    return known[kind]


def _layout(config: Mapping[str, Any], family: Family, state: State, file: Path) -> str:
    known = list(dict.fromkeys(name.partition(" ")[0] for name in family.layouts))
    named = config.get("architectures") or known[:1]
    if named[0] not in known:
        raise InputError(
            f"{file} has architectures {named!r}, but of {family.name} mmformer reads {', '.join(known)}."
            f"{nearest(str(named[0]), known)}"
        )
    own = [name for name in family.layouts if name.partition(" ")[0] == named[0]]
    marked = (name for name in own if (mark := family.layouts[name].mark) and any(k.startswith(mark) for k in state))
    return next(marked, own[0])
