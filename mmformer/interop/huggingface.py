"""Folders as transformers keeps models: config.json, weights, and what goes with them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmformer.errors import InputError, nearest
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
    layout = _layout(config, family, file)
    return Found(family, layout, config, read_weights(folder, WEIGHTS), folder, str(file))


def write_folder(folder: Path, family: Family, layout: str, config: Mapping[str, Any], state: State) -> None:
    """What transformers' ``from_pretrained`` opens."""
    write_json(folder / "config.json", {"architectures": [layout], "model_type": family.name, **config})
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


def _layout(config: Mapping[str, Any], family: Family, file: Path) -> str:
    named = config.get("architectures") or list(family.layouts)[:1]
    if named[0] not in family.layouts:
        raise InputError(
            f"{file} has architectures {named!r}, but of {family.name} mmformer reads {', '.join(family.layouts)}."
            f"{nearest(str(named[0]), family.layouts)}"
        )
    layout: str = named[0]
    return layout
