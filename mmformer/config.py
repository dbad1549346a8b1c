"""Specs from and to plain data: one YAML file says everything about a run or a model.

The schema is the specs' own dataclasses, read by jsonargparse: a field whose type is a family (``MixerSpec``) takes
``{class_path: AttentionSpec, init_args: {heads: 4}}``, or its arguments alone where the default class is meant.
"""

from __future__ import annotations

import copy
import dataclasses
import re
from pathlib import Path
from typing import Any, TypeVar

import yaml
from jsonargparse import ArgumentError, ArgumentParser, Namespace, set_parsing_settings

from mmformer.errors import InputError, nearest
from mmformer.spec import FAMILIES

S = TypeVar("S")


def make_parser(spec: type, **options: Any) -> ArgumentParser:
    """A parser whose arguments are a spec's fields, dotted, with ``--config FILE``."""
    set_parsing_settings(subclasses_enabled=list(FAMILIES))
    parser = ArgumentParser(exit_on_error=False, **options)
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
    _refuse_foreign_classes(data, where)
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
        raise InputError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from error
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
        if match := re.fullmatch(r"Parser key \"([^\"]+)\":", line):
            path.append(match[1])
        elif not re.fullmatch(r"Problem with given class_path '.*':", line):
            rest.append(line.removeprefix("error: "))
    message = " ".join(rest)
    if match := re.search(r"Option '([^']+)' is not accepted", message):
        owner = re.findall(r"Problem with given class_path '([^']+)'", str(error))
        known = _fields_of(owner[-1].rpartition(".")[2] if owner else spec.__name__, spec)
        key = ".".join([*path, match[1]])
        return f"unknown key '{key}'.{nearest(match[1], known)} Known here: {', '.join(known)}."
    if match := re.search(r"(?:[Uu]nrecognized arguments: |Unexpected keys?: |Key ')(?:--)?([\w.]+)", message):
        key = match[1]
        known = _fields_of(spec.__name__, spec)
        first = key.split(".")[0]
        return f"unknown key '{key}'.{nearest(first, known)} Known here: {', '.join(known)}."
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


def _refuse_foreign_classes(data: Any, where: str) -> None:
    """Plain data may name mmformer's own specs and nothing else: a file must not be able to run code."""
    if isinstance(data, dict):
        name = data.get("class_path")
        own = {cls.__name__ for cls in _dataclasses_in(object)}
        if isinstance(name, str) and name.removeprefix("mmformer.").rpartition(".")[2] not in own:
            raise InputError(f"{where}: class_path '{name}' is none of mmformer's specs.{nearest(name, own)}")
        for value in data.values():
            _refuse_foreign_classes(value, where)
    elif isinstance(data, list):
        for value in data:
            _refuse_foreign_classes(value, where)
