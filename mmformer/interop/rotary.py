"""Rotations as transformers' configs say them: ``rope_parameters``, or ``rope_theta`` and ``rope_scaling`` before."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mmformer.errors import InputError
from mmformer.interop.fields import Field

_SCALINGS: Mapping[str, tuple[str, Mapping[str, str]]] = {
    "linear": ("LinearScalingSpec", {"factor": "factor"}),
    "llama3": (
        "Llama3ScalingSpec",
        {
            "factor": "factor",
            "original_max_position_embeddings": "length",
            "high_freq_factor": "fast",
            "low_freq_factor": "slow",
        },
    ),
    "yarn": (
        "YaRNScalingSpec",
        {
            "factor": "factor",
            "original_max_position_embeddings": "length",
            "beta_fast": "fast",
            "beta_slow": "slow",
            "attention_factor": "attention_factor",
        },
    ),
}
"""Their kind -> our spec, and their argument -> ours."""

_DEFAULTS: Mapping[str, Mapping[str, Any]] = {
    "yarn": {"beta_fast": 32.0, "beta_slow": 1.0, "attention_factor": None},
}

OLD = ("rope_theta", "rope_scaling")
"""Keys of configs before version 5; ``parameters_of`` reads them."""


def parameters_of(config: Mapping[str, Any], base: float = 10_000.0) -> dict[str, Any]:
    """``rope_parameters`` of a config that has none; ``base`` is its library's where it does not say one."""
    scaling = dict(config.get("rope_scaling") or {})
    kind = scaling.pop("type", None)
    return {"rope_type": kind or "default", "rope_theta": config.get("rope_theta", base), **scaling}


def require_agreed(config: Mapping[str, Any], where: str) -> None:
    """Refuse a config, or one inside it, whose old keys say another rotation than ``rope_parameters``.

    Transformers' versions differ in which of the two they take.

    Raises:
        InputError: with both.
    """
    for group in [config, *(inside for inside in config.values() if isinstance(inside, Mapping))]:
        new, old = group.get("rope_parameters"), {key: group[key] for key in OLD if group.get(key) is not None}
        if not new or not old:
            continue
        said = parameters_of({"rope_theta": new.get("rope_theta"), **old})
        differ = [
            key for key, value in said.items() if new.get(key, "default" if key == "rope_type" else None) != value
        ]
        if differ:
            raise InputError(
                f"{where} has {' and '.join(f'{key} {value!r}' for key, value in old.items())}, but rope_parameters is "
                f"{new!r}: make them agree, or leave {' and '.join(old)} out."
            )


def rotary(path: str, key: str = "rope_parameters") -> Field:
    """The field for a stack's position, a RotaryPositionSpec."""
    return Field((key,), (path,), lambda found: [_read(found)], lambda made: [_write(made)])


def _read(found: Mapping[str, Any]) -> dict[str, Any]:
    given = dict(found)
    kind, base = given.pop("rope_type", "default"), given.pop("rope_theta", None)
    if given.pop("partial_rotary_factor", 1.0) != 1:  # which is left out there, or does not run, as the rotation is
        raise ValueError("a rotation of whole heads, without partial_rotary_factor")
    if kind not in ("default", *_SCALINGS) or base is None:
        raise ValueError(f"a rope_theta and a rope_type of default, {', '.join(_SCALINGS)}")
    scaling = None
    if kind != "default":
        name, arguments = _SCALINGS[kind]
        given = {**_DEFAULTS.get(kind, {}), **given}
        scaling = {
            "class_path": name,
            "init_args": {ours: given.pop(theirs, None) for theirs, ours in arguments.items()},
        }
    if given:
        raise ValueError(f"a {kind} rotation without {', '.join(given)}")
    own = {"axes": [0], "base": float(base), "fraction": 1.0, "scaling": scaling}
    return {"class_path": "RotaryPositionSpec", "init_args": own}


def _write(made: Mapping[str, Any]) -> dict[str, Any]:
    if made.get("class_path") != "RotaryPositionSpec":
        raise ValueError("a RotaryPositionSpec")
    own = made["init_args"]
    if own["fraction"] != 1:
        raise ValueError("a rotation of whole heads, whose fraction is 1")
    written: dict[str, Any] = {"rope_theta": own["base"], "rope_type": "default"}
    if own["scaling"] is None:
        return written
    for kind, (name, arguments) in _SCALINGS.items():
        if own["scaling"]["class_path"] == name:
            values = own["scaling"]["init_args"]
            said = {theirs: values[ours] for theirs, ours in arguments.items() if values[ours] is not None}
            return {**written, "rope_type": kind, **said}
    raise ValueError(f"scaled by one of {', '.join(name for name, _ in _SCALINGS.values())}")
