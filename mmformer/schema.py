"""What plain data may say for a spec: keys, classes, types; and what is said to a mistake.

jsonargparse builds the specs, but plain data comes here first. Its own messages name neither the file nor the whole
key, and it imports whatever a class path names, and takes a text for a class path, for YAML, or for a file to read.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections.abc import Iterator
from types import NoneType, UnionType
from typing import Any, Literal, NoReturn, Union, get_args, get_origin, get_type_hints

from jsonargparse import ArgumentError, ArgumentParser

from mmformer.errors import InputError, nearest
from mmformer.spec import FAMILIES

_LONGEST = 1000
"""Characters of a text that stands for a number or a list of them (``--depth 9``): the parser reads it as YAML."""


def check_layout(hint: Any, value: Any, where: str, key: str = "") -> None:
    """Refuse unknown keys and classes, and what is no mapping or list where there has to be one.

    A class is one of mmformer's specs: a file must not be able to run code.

    Args:
        hint: the type that the value should have.
        value: plain data.
        where: the file that the data came from, or "".
        key: the dotted path to the value in it.

    Raises:
        InputError: it names the file and the key, and has the nearest right name.
    """
    if not has_spec(hint):
        if value is None and not accepts_null(hint):
            raise InputError(f"{at(where)}{key} must be {describe(hint)}, but is null.")
        if not _takes_text(hint) and (riddle := next(filter(_is_riddle, _texts(value)), None)) is not None:
            raise InputError(f"{at(where)}{key} must be {describe(hint)}, but is {riddle!r:.80}.")
        return
    if value is None and accepts_null(hint):
        return
    hint = without_null(hint)
    if get_origin(hint) is dict:
        for name, item in _require(value, dict, where, key).items():
            check_layout(get_args(hint)[1], item, where, join(key, name))
    elif not isinstance(hint, type):
        for place, item in enumerate(_require(value, list, where, key)):
            check_layout(get_args(hint)[0], item, where, join(key, place))
    else:
        cls, fields = split_class(hint, value, where, key)
        hints = fields_of(hint, cls)
        for name, item in fields.items():
            if name not in hints:
                unknown_key(join(key, name), name, hints, where)
            check_layout(hints[name], item, where, join(key, name))


def _takes_text(hint: Any) -> bool:
    """Whether a type has a place for a text as it is."""
    if hint in (Any, str) or get_origin(hint) is Literal:
        return True
    return any(map(_takes_text, get_args(hint)[1:] if get_origin(hint) is dict else get_args(hint)))


def _texts(value: Any) -> Iterator[str]:
    """The texts in plain data."""
    if isinstance(value, str):
        yield value
    for item in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from _texts(item)


def _is_riddle(text: str) -> bool:
    """Whether a text, read as YAML, could mean billions of values, or a number of millions of digits."""
    return len(text) > _LONGEST or "&" in text


def split_class(base: type, value: Any, where: str, key: str) -> tuple[type | None, dict[str, Any]]:
    """The class that a spec's plain data names, None where it names none, and its arguments.

    Raises:
        InputError: it names a class that is not mmformer's or not of this family, or is no mapping.
    """
    if not is_family(base):
        if (value.get("class_path") if isinstance(value, dict) else value) == base.__name__:
            raise InputError(f"{at(where)}{key} is always a {base.__name__}: give its options alone, or {{}} for none.")
        return base, _require(value, dict, where, key)
    if isinstance(value, str):
        return class_named(base, value, where, key), {}
    if "class_path" not in _require(value, dict, where, key):
        return None, value
    cls = class_named(base, value["class_path"], where, key)
    for other in set(value) - {"class_path", "init_args"}:
        raise InputError(f"{at(where)}unknown key '{key}.{other}': beside class_path there is init_args alone.")
    return cls, _require(value.get("init_args", {}), dict, where, key)


def class_named(base: type, name: Any, where: str, key: str) -> type:
    """One of a family's specs, by its name, short or whole; nothing is imported.

    Raises:
        InputError: there is none; it has the nearest right name.
    """
    own = members(base)
    names = {known: cls for cls in own for known in (cls.__name__, f"{cls.__module__}.{cls.__name__}")}
    if not isinstance(name, str) or name not in names:
        short = [cls.__name__ for cls in own]
        hint = nearest(str(name), short)
        raise InputError(f"{at(where)}{key}: '{name}' is no {base.__name__}.{hint} They are {', '.join(short)}.")
    return names[name]


def find_mistake(hint: Any, value: Any, key: str = "", has_default: bool = False) -> str | None:
    """What is wrong with plain data of a right layout, with the whole key: a value's type, or one that is missing."""
    optional, hint = accepts_null(hint), without_null(hint)
    if value is None and optional:
        return None
    if not has_spec(hint):
        return _find_wrong_value(hint, value, key, optional)
    if get_origin(hint) is dict or not isinstance(hint, type):
        pairs = value.items() if isinstance(value, dict) else enumerate(value)
        inner = get_args(hint)[1 if get_origin(hint) is dict else 0]
        return next(filter(None, (find_mistake(inner, item, join(key, name)) for name, item in pairs)), None)
    if absent := missing(hint, value, has_default):
        more = f": name one of {', '.join(cls.__name__ for cls in members(hint))}" if absent == ["class_path"] else ""
        return f"{at(key)}{', '.join(absent)} {'is' if len(absent) == 1 else 'are'} required, but not given{more}."
    cls, fields = split_class(hint, value, "", key)
    hints, defaults = fields_of(hint, cls), with_default(hint, cls)
    found = (find_mistake(hints[name], item, join(key, name), name in defaults) for name, item in fields.items())
    return next(filter(None, found), None)


def missing(base: type, value: Any, has_default: bool = False) -> list[str]:
    """The fields without a default that a spec's plain data does not give."""
    cls, fields = split_class(base, value, "", "")
    if has_default and not (is_family(base) and cls is not None):
        return []  # arguments for what the field is by default
    if cls is None and inspect.isabstract(base):
        return ["class_path"]
    return [name for name in fields_of(base, cls or base) if name not in {*fields, *with_default(base, cls or base)}]


def members(base: type) -> list[type]:
    """A spec and those that derive from it, of mmformer's own, without the abstract ones."""
    found: list[type] = []
    queue: list[type] = [base]
    while queue:
        found.append(queue.pop(0))
        queue += found[-1].__subclasses__()
    own = [cls for cls in found if cls is base or cls.__module__.startswith("mmformer.")]
    return [cls for cls in own if not inspect.isabstract(cls)]


def fields_of(base: type, cls: type | None) -> dict[str, Any]:
    """The fields of a spec with their types; of all that derive from it where no class is named."""
    hints = {name: hint for member in _candidates(base, cls) for name, hint in _hints(member).items()}
    names = (field.name for member in _candidates(base, cls) for field in dataclasses.fields(member))
    return {name: hints[name] for name in names}


@functools.cache  # it evaluates what the file says, in the words of the file
def _hints(cls: type) -> dict[str, Any]:
    return get_type_hints(cls)


def with_default(base: type, cls: type | None) -> set[str]:
    """The fields that may be left out."""
    fields = [field for member in _candidates(base, cls) for field in dataclasses.fields(member)]
    none = dataclasses.MISSING
    return {field.name for field in fields if field.default is not none or field.default_factory is not none}


def default_class(cls: Any, name: str) -> type | None:
    """The class of the spec that a field is by default; None: it is none."""
    made = defaults_of(cls).get(name)
    return type(made) if dataclasses.is_dataclass(made) and not isinstance(made, type) else None


def defaults_of(cls: Any) -> dict[str, Any]:
    """What the fields of a spec are where they are left out; without those that may not be."""
    found, none = {}, dataclasses.MISSING
    for field in dataclasses.fields(cls):
        if field.default_factory is not none:
            found[field.name] = field.default_factory()
        elif field.default is not none:
            found[field.name] = field.default
    return found


def _candidates(base: type, cls: type | None) -> list[Any]:
    return [cls] if cls is not None else members(base)


def is_family(base: type) -> bool:
    """Whether plain data may name one of several classes."""
    return issubclass(base, tuple(FAMILIES))


def has_spec(hint: Any) -> bool:
    """Whether a type is, or holds, a spec."""
    return dataclasses.is_dataclass(hint) or any(has_spec(inner) for inner in get_args(hint))


def accepts_null(hint: Any) -> bool:
    return hint in (Any, None, NoneType) or (_is_union(hint) and NoneType in get_args(hint))


def without_null(hint: Any) -> Any:
    """The type itself where it may be null too."""
    rest = [choice for choice in get_args(hint) if choice is not NoneType] if _is_union(hint) else []
    return rest[0] if len(rest) == 1 else hint


def _is_union(hint: Any) -> bool:
    return get_origin(hint) in (Union, UnionType)


def unknown_key(key: str, wrong: str, known: Any, where: str = "") -> NoReturn:
    """Refuse a key, with the nearest right one for that part of it which is wrong."""
    hint = nearest(str(wrong), known)
    raise InputError(f"{at(where)}unknown key '{key}'.{hint} Known here: {', '.join(known) or 'none'}.")


def join(key: str, name: object) -> str:
    return f"{key}.{name}" if key else str(name)


def at(where: str) -> str:
    """The beginning of a message."""
    return f"{where}: " if where else ""


def describe(hint: Any) -> str:
    """A type for a person."""
    if _is_union(hint):
        return " or ".join(map(describe, get_args(hint)))
    inner = get_args(hint)
    if get_origin(hint) is Literal:
        return f"one of {', '.join(map(repr, inner))}"
    if get_origin(hint) is tuple:
        return f"a list of {describe(inner[0])}" if inner[-1] is Ellipsis else f"a tuple with {len(inner)} elements"
    return "null" if hint is NoneType else "a mapping" if has_spec(hint) else getattr(hint, "__name__", str(hint))


def _find_wrong_value(hint: Any, value: Any, key: str, optional: bool = False) -> str | None:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--value", type=hint)
    try:
        parser.parse_object({"value": value})
    except ArgumentError:
        inner = get_args(hint) if get_origin(hint) is tuple and isinstance(value, list) else ()
        if inner and (inner[-1] is Ellipsis or len(inner) == len(value)):
            hints = [inner[0]] * len(value) if inner[-1] is Ellipsis else list(inner)
            parts = (_find_wrong_value(hints[place], item, join(key, place)) for place, item in enumerate(value))
            return next(filter(None, parts), None)
        return f"{at(key)}Expected {describe(hint)}{' or null' if optional else ''}. Got value: {value!r:.80}"
    return None


def _require(value: Any, kind: type, where: str, key: str) -> Any:
    if not isinstance(value, kind):
        must = "a mapping" if kind is dict else "a list"
        raise InputError(f"{at(where)}{key or 'it'} must be {must}, but is {value!r:.80}.")
    return value
