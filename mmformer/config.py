"""Specs from and to plain data: one YAML file says everything about a run or a model.

The schema is the specs' own dataclasses, read by jsonargparse: a field whose type is a family (``MixerSpec``) takes
``{class_path: AttentionSpec, init_args: {heads: 4}}``, or its arguments alone where the default class is meant.
"""

from __future__ import annotations

import copy
import dataclasses
import inspect
import re
from pathlib import Path
from types import UnionType
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

import yaml
from jsonargparse import ArgumentError, ArgumentParser, Namespace, set_parsing_settings

from mmformer.errors import InputError, nearest
from mmformer.spec import FAMILIES

S = TypeVar("S")


def make_parser(spec: type, **options: Any) -> ArgumentParser:
    """A parser whose arguments are a spec's fields, dotted, with ``--config FILE``."""
    set_parsing_settings(subclasses_enabled=list(FAMILIES))
    # No abbreviations: an option added later would change what a script means.
    parser = ArgumentParser(exit_on_error=False, allow_abbrev=False, **options)
    parser.add_argument("--config", action="config", help="a YAML file; later options override what it says")
    parser.add_class_arguments(spec, nested_key=None, fail_untyped=True, sub_configs=True)
    return parser


def parse(spec: type[S], data: dict[str, Any], where: str) -> S:
    """A spec from plain data.

    Args:
        where: the file that the data came from, for messages.

    Raises:
        InputError: an unknown key (with the nearest right one), a wrong type, a refused value, a foreign class.
    """
    check_layout(spec, data, where)
    parser = make_parser(spec)
    try:
        return build(parser, parser.parse_object(copy.deepcopy(data)), spec)
    except ArgumentError as error:
        raise InputError(f"{where}: {explain(error, spec)}") from error


def build(parser: ArgumentParser, namespace: Namespace, spec: type[S]) -> S:
    """The spec of parsed arguments."""
    values = vars(parser.instantiate(namespace))
    return spec(**{field.name: values[field.name] for field in dataclasses.fields(spec)})  # type: ignore[arg-type]


def read_yaml(path: str | Path) -> dict[str, Any]:
    """A YAML file that holds a mapping.

    Raises:
        InputError: no such file, no YAML, no mapping.
    """
    path = Path(path)
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(
            f"{path} cannot be read: {error.strerror if isinstance(error, OSError) else error}."
        ) from error
    except yaml.YAMLError as error:
        raise InputError(
            f"{path} is not valid YAML: {' '.join(str(error).split())}".replace('in "<unicode string>", ', "at ")
        ) from error
    if not isinstance(data, dict):
        raise InputError(f"{path} must hold a mapping (key: value lines), but holds {type(data).__name__}.")
    return data


def to_data(spec: Any) -> Any:
    """Plain data that ``parse`` turns into an equal spec; classes go by their short names."""
    if dataclasses.is_dataclass(spec) and not isinstance(spec, type):
        fields = {field.name: to_data(getattr(spec, field.name)) for field in dataclasses.fields(spec)}
        if isinstance(spec, tuple(FAMILIES)):
            return {"class_path": type(spec).__name__, "init_args": fields}
        return fields
    if isinstance(spec, dict):
        return {key: to_data(value) for key, value in spec.items()}
    if isinstance(spec, list | tuple):
        return [to_data(value) for value in spec]
    return spec


def to_yaml(spec: Any) -> str:
    """``to_data`` as YAML text, in the order of the fields."""
    return str(yaml.safe_dump(to_data(spec), sort_keys=False, allow_unicode=True, width=120))


def explain(error: Exception, spec: type) -> str:
    """jsonargparse's message without its scaffolding: the key path, what was found, and the nearest right name."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    path: list[str] = []
    rest: list[str] = []
    for line in lines:
        if match := re.match(r"Parser key \"([^\"]+)\":", line):
            path.append(match[1])
            rest += [line[match.end() :].strip()] if match.end() < len(line) else []
        elif not re.fullmatch(r"Problem with given class_path '.*':", line):
            rest.append(line.removeprefix("error: "))
    message = " ".join(rest)
    # Of an optional spec it is told twice what is wrong: inside the spec, and that it is not None.
    if match := re.search(
        r"Errors: - (?:Problem with given class_path '[^']*': )*(.+?) - Expected a <class 'None", message
    ):
        message = match[1]
    if match := re.search(r"Option '([^']+)' is not accepted", message):
        owner = re.findall(r"Problem with given class_path '([^']+)'", str(error))
        known = _fields_of(owner[-1].rpartition(".")[2] if owner else spec.__name__, spec)
        key = ".".join([*path, match[1]])
        return f"unknown key '{key}'.{nearest(match[1], known)} Known here: {', '.join(known)}."
    if match := re.search(r"(?:[Uu]nrecognized arguments: |Unexpected keys?: |Key ')(?:--)?([\w.]+)", message):
        wrong, known = _first_unknown(spec, match[1])
        return f"unknown key '{match[1]}'.{nearest(wrong, known)} Known here: {', '.join(known)}."
    if match := re.search(r"Expected a dot import path string: (\w+)", message):
        own = {cls.__name__ for base in FAMILIES for cls in _members(base)}
        return f"{'.'.join(path)}: there is no spec '{match[1]}' here.{nearest(match[1], own)}"
    return f"{'.'.join(path)}: {message}" if path else message


def _fields_of(name: str, root: type) -> list[str]:
    for candidate in (root, *_dataclasses_in(root)):
        if candidate.__name__ == name:
            return [field.name for field in dataclasses.fields(candidate)]
    return []


def _dataclasses_in(root: type) -> list[type]:
    """Every dataclass that mmformer defines and that a run may name."""
    found: list[type] = []
    queue: list[type] = [*FAMILIES]
    while queue:
        base = queue.pop()
        found.append(base)
        queue += base.__subclasses__()
    import sys

    for module in list(sys.modules.values()):
        if getattr(module, "__name__", "").startswith("mmformer."):
            found += [v for v in vars(module).values() if isinstance(v, type) and dataclasses.is_dataclass(v)]
    return found


def check_layout(hint: Any, value: Any, where: str, key: str = "", own: bool = True) -> None:
    """Refuse unknown keys and classes, and what is no mapping or list where there has to be one.

    The parser's own messages for these name neither the file nor the whole key, and it lets some pass. It also imports
    whatever a class path names, and takes a text for a class path, for YAML, or for a file to read.

    Args:
        hint: the type that the value should have; where it holds no spec, nothing is refused here.
        value: plain data.
        where: the file that the data came from.
        key: the dotted path to the value in it.
        own: a spec is one of mmformer's, and written out: a file must not be able to run code. Otherwise a dotted class
            path may be anybody's, and a path may stand for the file that holds a spec.

    Raises:
        InputError: it names the file and the key, and has the nearest right name.
    """
    if not _has_spec(hint):
        return
    outside = isinstance(value, str) and not own and re.search(r"[./]", value)
    if get_origin(hint) in (Union, UnionType):
        if value is not None:
            check_layout(next(filter(_has_spec, get_args(hint))), value, where, key, own)
    elif get_origin(hint) is dict:
        for name, item in _require(value, dict, where, key).items():
            check_layout(get_args(hint)[1], item, where, f"{key}.{name}", own)
    elif not isinstance(hint, type):
        for place, item in enumerate(_require(value, list, where, key)):
            check_layout(get_args(hint)[0], item, where, f"{key}.{place}", own)
    elif not outside:
        _check_spec(hint, value, where, key, own)


def _check_spec(base: type, value: Any, where: str, key: str, own: bool) -> None:
    members, fields = _members(base), value
    if issubclass(base, tuple(FAMILIES)):
        value = {"class_path": value} if isinstance(value, str) else value
        if "class_path" in _require(value, dict, where, key):
            names = {name: cls for cls in members for name in (cls.__name__, f"{cls.__module__}.{cls.__name__}")}
            name, fields = value["class_path"], value.get("init_args", {})
            if not own and isinstance(name, str) and "." in name and name not in names:
                return
            if not isinstance(name, str) or name not in names:
                short = [cls.__name__ for cls in members]
                hint = nearest(str(name), short)
                raise InputError(f"{where}: {key}: '{name}' is no {base.__name__}.{hint} They are {', '.join(short)}.")
            members = [names[name]]
            for other in set(value) - {"class_path", "init_args"}:
                raise InputError(f"{where}: unknown key '{key}.{other}': beside class_path there is init_args alone.")
    hints = {name: hint for member in members for name, hint in get_type_hints(member).items()}
    known = list(dict.fromkeys(field.name for member in members for field in dataclasses.fields(member)))
    for name, item in _require(fields, dict, where, key).items():
        path = f"{key}.{name}" if key else str(name)
        if name not in known:
            hint = nearest(str(name), known)
            raise InputError(f"{where}: unknown key '{path}'.{hint} Known here: {', '.join(known) or 'none'}.")
        check_layout(hints[name], item, where, path, own)


def _require(value: Any, kind: type, where: str, key: str) -> Any:
    if not isinstance(value, kind):
        must = "a mapping" if kind is dict else "a list"
        raise InputError(f"{where}: {key or 'it'} must be {must}, but is {value!r:.80}.")
    return value


def _has_spec(hint: Any) -> bool:
    return dataclasses.is_dataclass(hint) or any(_has_spec(inner) for inner in get_args(hint))


def _members(base: type) -> list[type]:
    """A spec and those that derive from it, of mmformer's own, without the abstract ones."""
    found: list[type] = []
    queue: list[type] = [base]
    while queue:
        found.append(queue.pop(0))
        queue += found[-1].__subclasses__()
    own = [cls for cls in found if cls is base or cls.__module__.startswith("mmformer.")]
    return [cls for cls in own if not inspect.isabstract(cls)]


def _first_unknown(spec: type, key: str) -> tuple[str, list[str]]:
    """The first part of a dotted key that names no field, and the fields that there are in its place."""
    hint: Any = spec
    for part in key.split("."):
        if get_origin(hint) in (Union, UnionType):
            hint = next((choice for choice in get_args(hint) if _has_spec(choice)), hint)
        if get_origin(hint) is dict:
            hint = get_args(hint)[1]
        elif part not in ("class_path", "init_args"):
            classes = _members(hint) if dataclasses.is_dataclass(hint) and isinstance(hint, type) else []
            fields = {field.name: cls for cls in classes for field in dataclasses.fields(cls)}
            if part not in fields:
                return part, list(fields)
            hint = get_type_hints(fields[part])[part]
    return key, []
