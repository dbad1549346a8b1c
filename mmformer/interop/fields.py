"""What a reference's config says, as places in our spec: a table, read both ways.

A field goes from values of the config to values in the spec and back. What is not in a family's table is refused: a
key that nobody has looked at may change what a model computes.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from mmformer.errors import InputError, nearest
from mmformer.interop import plain
from mmformer.interop.plain import Data, Named


@dataclass(frozen=True)
class Field:
    """Keys of a config ↔ paths in a spec.

    Attributes:
        keys: dotted.
        paths: dotted; none: the values are only looked at.
        read: the keys' values -> the paths' values; it raises ValueError, with what would do, for values that cannot be
            expressed.
        write: the paths' values -> the keys' values.
    """

    keys: tuple[str, ...]
    paths: tuple[str, ...]
    read: Callable[..., Sequence[Any]]
    write: Callable[..., Sequence[Any]]


def same(key: str, *paths: str) -> Field:
    """A value that both have, at one place or several."""
    return Field((key,), paths, lambda value: [value] * len(paths), lambda *values: values[:1])


def listed(key: str, *paths: str) -> Field:
    """A number that our spec has as a list of one."""
    return Field((key,), paths, lambda value: [[value]] * len(paths), lambda *values: values[0][:1])


def scaled(key: str, width_key: str, width: str, power: float, *paths: str) -> Field:
    """Whether there is a factor, a power of the width; a spec that has another is refused when it is read back."""

    def read(has_factor: bool, wide: int) -> Sequence[Any]:
        return [wide, *[wide**power if has_factor else 1.0] * len(paths)]

    return Field((key, width_key), (width, *paths), read, lambda wide, factor, *_: [factor != 1.0, wide])


def at_each(places: Sequence[str], *names: str) -> list[str]:
    """Paths: names in several places."""
    return [f"{place}.{name}" for name in names for place in places]


def choice(key: str | tuple[str, ...], known: Mapping[Any, Any], *paths: str) -> Field:
    """One of several values, and what each of them is with us: a value, or a class with arguments.

    Of several keys, a tuple, ``known`` has what they say together.
    """
    keys = (key,) if isinstance(key, str) else key

    def read(*found: Any) -> Sequence[Any]:
        value = found[0] if isinstance(key, str) else found
        if value not in known:
            raise ValueError(f"one of {', '.join(map(repr, known))}")
        return [known[value]] * len(paths)

    def write(*found: Any) -> Sequence[Any]:
        for theirs, ours in known.items():
            if ours.describes(found[0]) if isinstance(ours, Named) else ours == found[0]:
                return [theirs] if isinstance(key, str) else list(theirs)
        raise ValueError(f"one of {', '.join(map(str, known.values()))}")

    return Field(keys, paths, read, write)


def fixed(key: str, value: Any) -> Field:
    """What has to be so, for our parts compute it in no other way here."""

    def read(found: Any) -> Sequence[Any]:
        if found != value:
            raise ValueError(f"{value!r}")
        return []

    return Field((key,), (), read, lambda: [value])


def all_fixed(values: Mapping[str, Any]) -> tuple[Field, ...]:
    """Several of these: a family's defaults have them from the same table."""
    return tuple(fixed(key, value) for key, value in values.items())


def always(path: str, value: Any) -> Field:
    """What our spec has to say, for theirs computes it in no other way, and no key says it."""

    def write(found: Any) -> Sequence[Any]:
        if found != value:
            raise ValueError(f"{value!r}")
        return []

    return Field((), (path,), lambda: [value], write)


ACTIVATIONS: Mapping[str, Named] = {
    "gelu": Named("GELUFeedForwardSpec", {"approximate": "none"}),
    "gelu_new": Named("GELUFeedForwardSpec", {"approximate": "tanh"}),
    "gelu_pytorch_tanh": Named("GELUFeedForwardSpec", {"approximate": "tanh"}),
    "quick_gelu": Named("GELUFeedForwardSpec", {"approximate": "sigmoid"}),
    "relu": Named("ReLUFeedForwardSpec", {"squared": False}),
    "silu": Named("SiLUFeedForwardSpec"),
    "swish": Named("SiLUFeedForwardSpec"),
}
"""A plain feed-forward's, by the names that transformers has for them; of two that are alike, the first is written."""


def read_config(config: Mapping[str, Any], template: Data, fields: Sequence[Field], where: str) -> Data:
    """A template with a config's values in their places.

    Raises:
        InputError: a key that is missing, or a value that cannot be expressed; both sides are told.
    """
    data = copy.deepcopy(template)
    for field in fields:
        values = [_value(config, key, where) for key in field.keys]
        try:
            made = field.read(*values)
        except ValueError as error:
            found = " and ".join(f"{key} {value!r}" for key, value in zip(field.keys, values, strict=True))
            raise InputError(f"{where} has {found}, but what mmformer's parts can express here is {error}.") from error
        for path, value in zip(field.paths, made, strict=True):
            plain.put(data, path, value)
    return data


def write_config(data: Data, fields: Sequence[Field], where: str) -> Data:
    """The config that says what a spec's plain data says.

    Raises:
        InputError: a value that the reference cannot express.
    """
    config: Data = {}
    for field in fields:
        values = [plain.get(data, path) for path in field.paths]
        try:
            made = field.write(*values)
        except ValueError as error:
            found = " and ".join(f"{path} {value!r:.200}" for path, value in zip(field.paths, values, strict=True))
            raise InputError(f"{where} cannot say {found}: it has to be {error}.") from error
        for key, value in zip(field.keys, made, strict=True):
            put(config, key, value)
    return config


def complete(config: Mapping[str, Any], defaults: Mapping[str, Any]) -> Data:
    """A config with the reference's own defaults where it says nothing, or null.

    Callables come last, and get the config so far. What one of them lacks is told when the config is read.
    """
    whole = copy.deepcopy(dict(config))
    for key, default in sorted(defaults.items(), key=lambda pair: callable(pair[1])):
        if find(whole, key) is None:
            with suppress(KeyError):
                put(whole, key, default(whole) if callable(default) else default)
    return whole


def require_known(config: Mapping[str, Any], known: Sequence[str], ignored: Sequence[str], where: str) -> None:
    """Refuse keys that are neither in a family's table nor known to change nothing.

    Raises:
        InputError: it has the nearest known key.
    """
    for key in _keys(config, {known_key.rpartition(".")[0] for known_key in known}):
        if key not in known and not any(fnmatchcase(key, pattern) for pattern in ignored):
            raise InputError(
                f"{where} has {key} {find(config, key)!r:.80}, which mmformer does not know of such models; it may "
                f"change what they compute.{nearest(key, known)} Take it out of the config if it does not."
            )


def _keys(config: Mapping[str, Any], groups: set[str], prefix: str = "") -> list[str]:
    """Dotted keys; those inside a mapping only where the table looks into it."""
    found: list[str] = []
    for key, value in config.items():
        whole = f"{prefix}{key}"
        inside = any(group == whole or group.startswith(f"{whole}.") for group in groups)
        found += _keys(value, groups, f"{whole}.") if inside and isinstance(value, Mapping) else [whole]
    return found


def find(config: Mapping[str, Any], key: str) -> Any:
    """What a config has at a dotted key; None: nothing."""
    node: Any = config
    for part in key.split("."):
        node = node.get(part) if isinstance(node, Mapping) else None
    return node


def put(config: Data, key: str, value: Any) -> None:
    """Have a config say a value at a dotted key."""
    *before, last = key.split(".")
    node = config
    for part in before:
        node = node.setdefault(part, {})
    node[last] = value


def _value(config: Mapping[str, Any], key: str, where: str) -> Any:
    node: Any = config
    for part in key.split("."):
        if not isinstance(node, Mapping) or part not in node:
            near = nearest(part, node) if isinstance(node, Mapping) else ""
            raise InputError(f"{where} has no {key}, which says what the model is.{near}")
        node = node[part]
    return node
