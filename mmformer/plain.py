"""Specs straight from plain data whose values already have their types, as a bundle's and most configs' have.

jsonargparse can do all of this and more (lists in texts, words for wrong types), but takes half a second for a model of
some depth, and every bundle that is opened would wait for it. So ``config.parse`` comes here first and goes to
jsonargparse with whatever this does not take, wrong types above all. Both make equal specs.
"""

from __future__ import annotations

import dataclasses
import inspect
import math
import re
from typing import Any, Literal, TypeVar, get_args, get_origin

from mmformer.errors import InputError
from mmformer.schema import accepts_null, class_named, defaults_of, fields_of, is_family, join, members, without_null
from mmformer.spec import FAMILIES

S = TypeVar("S")

_NULLS = ("", "~", "none", "null")
_WHOLE = re.compile(r"0|[+-]?[1-9][0-9]{0,17}")
_NUMBER = re.compile(r"(?!-0$)[+-]?(0|[1-9][0-9]{0,17})(\.[0-9]{0,18})?([eE][+-]?[0-9]{1,3})?")
"""Texts that are numbers to everybody: options have them (``--depth 9``), and YAML 1.1 takes 1e-4 for one."""


class _OtherwiseError(Exception):
    """Something that is not as it stands what it has to be."""


class RefusedError(Exception):
    """A spec refuses its values: where it stands, and what it says."""

    def __init__(self, key: str, said: InputError) -> None:
        super().__init__(key, said)
        self.key, self.said = key, said


def straight(spec: type[S], data: dict[str, Any]) -> S | None:
    """The spec of plain data of a right layout (see ``schema.check_layout``); None: it is not for this to say.

    Raises:
        RefusedError: one of the specs in it refuses its values.
    """
    try:
        made: S = _filled(spec, data, None, "")
        return made
    except (_OtherwiseError, TypeError):  # of a wrong type, or without what it needs: jsonargparse has the words
        return None


def _filled(cls: Any, given: dict[str, Any], default: Any, key: str) -> Any:
    """A spec of given fields; the others are those of the default, where it is of this class, or the class's own."""
    hints = fields_of(cls, cls)
    if other := next((name for name in given if name not in hints), None):
        raise RefusedError(join(key, other), _of_another_class(cls, other))
    own = {name: getattr(default, name) for name in hints} if type(default) is cls else defaults_of(cls)
    fields = {name: _value(hints[name], item, own.get(name), join(key, name)) for name, item in given.items()}
    try:
        return dataclasses.replace(default, **fields) if type(default) is cls else cls(**fields)
    except InputError as error:
        raise RefusedError(key, error) from error


def _of_another_class(cls: type, name: str) -> InputError:
    """Data that names no class may have the fields of any of a family, but means those of one."""
    base = next(family for family in FAMILIES if issubclass(cls, family))
    others = ", ".join(member.__name__ for member in members(base) if name in fields_of(member, member))
    return InputError(
        f"no class is named, which means {cls.__name__}, and that has no {name}: name class_path, one of {others}, or "
        f"leave it out."
    )


def _value(hint: Any, value: Any, default: Any, key: str) -> Any:
    """What a value means for a type; ``default``: of the field, where it has one."""
    if value is None and accepts_null(hint):
        return None
    if isinstance(value, str) and accepts_null(hint) and value.lower() in _NULLS:
        if value == "null" and without_null(hint) is not str:
            return None
        raise _OtherwiseError
    hint = without_null(hint)
    kind, inner = get_origin(hint), get_args(hint)
    if dataclasses.is_dataclass(hint):
        assert isinstance(hint, type)
        return _spec(hint, value, default, key)
    if kind is Literal and any(value == choice and type(value) is type(choice) for choice in inner):
        return value
    if kind is tuple and isinstance(value, list):
        hints = [inner[0]] * len(value) if inner[-1] is Ellipsis else list(inner)
        if len(hints) == len(value):
            return tuple(_value(hints[at], item, None, join(key, at)) for at, item in enumerate(value))
    if kind is list and isinstance(value, list):
        return [_value(inner[0], item, None, join(key, at)) for at, item in enumerate(value)]
    if kind is dict and inner[0] is str and isinstance(value, dict) and all(type(name) is str for name in value):
        return {name: _value(inner[1], item, None, join(key, name)) for name, item in value.items()}
    if hint in (bool, int, str) and type(value) is hint:
        return value
    if hint is float and (type(value) in (float, int) or (isinstance(value, str) and _NUMBER.fullmatch(value))):
        try:
            number = float(value)
        except OverflowError as error:
            raise RefusedError(key, InputError("a whole number of more than 308 digits is too large.")) from error
        if not isinstance(value, str) or math.isfinite(number):
            return number
    if hint is int and isinstance(value, str) and _WHOLE.fullmatch(value):
        return int(value)
    if hint is bool and value in ("true", "false"):
        return value == "true"
    raise _OtherwiseError


def _spec(base: type, value: Any, default: Any, key: str) -> Any:
    if not is_family(base):
        return _filled(base, value, default, key)
    if isinstance(value, str):
        return _filled(class_named(base, value, "", ""), {}, None, key)
    if "class_path" in value:
        return _filled(class_named(base, value["class_path"], "", ""), value.get("init_args", {}), None, key)
    # Its arguments alone: of the class that the field is by default, or the one that it is of.
    cls = type(default) if isinstance(default, base) else base
    if inspect.isabstract(cls):
        raise _OtherwiseError
    return _filled(cls, value, default, key)
