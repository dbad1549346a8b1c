"""Specs from and to plain data: one YAML file says everything about a run or a model.

The schema is the specs' own dataclasses, read by jsonargparse: a field whose type is a family (``MixerSpec``) takes
``{class_path: AttentionSpec, init_args: {heads: 4}}``, or its arguments alone where the default class is meant.
"""

from __future__ import annotations

import copy
import dataclasses
import re
from pathlib import Path
from typing import Any, TypeVar, get_args, get_origin

import yaml
from jsonargparse import ArgumentError, ArgumentParser, Namespace, set_parsing_settings

from mmformer.errors import InputError
from mmformer.plain import RefusedError, straight
from mmformer.schema import (
    at,
    check_layout,
    default_class,
    defaults_of,
    fields_of,
    find_mistake,
    has_spec,
    is_family,
    join,
    split_class,
    without_null,
)
from mmformer.spec import FAMILIES

S = TypeVar("S")

MAX_YAML = 2**20
"""Longer files are not read; the names of ImageNet-21k's classes are half as long."""

MAX_VALUES = 200_000
"""YAML that comes to more values, its aliases written out, is refused: ten lines can mean billions."""

_DEEPEST = 64  # brackets in brackets; PyYAML takes a time that grows with the square of their number
_LONGEST_NUMBER = 100  # characters; numbers to base 60 take a time that grows with the square of their length
_MISTAGGED = (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError)
"""What PyYAML raises for values that are not what their tags say: an empty !!int, a month 13; or nested too deeply."""


def make_parser(spec: type, **options: Any) -> ArgumentParser:
    """A parser whose arguments are a spec's fields, dotted, with ``--config FILE``.

    For help, and for data that ``check_layout`` has seen: by itself the parser imports whatever a class path names.
    """
    set_parsing_settings(subclasses_enabled=list(FAMILIES))
    # No abbreviations: an option added later would change what a script means.
    parser = ArgumentParser(exit_on_error=False, allow_abbrev=False, **options)
    parser.add_argument("--config", action="config", help="a YAML file; later options override what it says")
    parser.add_class_arguments(spec, nested_key=None, fail_untyped=True, sub_configs=True)
    return parser


def parse(spec: type[S], data: dict[str, Any], where: str) -> S:
    """A spec from plain data.

    Args:
        where: the file that the data came from, for messages; or "".

    Raises:
        InputError: an unknown key (with the nearest right one), a wrong type, a refused value, a foreign class; it has
            the file and the key.
    """
    check_layout(spec, data, where)
    try:
        if (found := straight(spec, data)) is not None:
            return found
    except RefusedError as error:
        raise InputError(_told(where, error.key, str(error.said))) from error.said
    parser = make_parser(spec)
    try:
        return build(parser, parser.parse_object(copy.deepcopy(_whole(spec, data))), spec)
    except ArgumentError as error:
        raise InputError(f"{at(where)}{find_mistake(spec, data) or explain(error)}") from error
    except ValueError as error:
        # Of a spec that may be null, jsonargparse tells what both types said, after what the spec itself said.
        refused = error.__cause__ if isinstance(error.__cause__, InputError) else error
        if not isinstance(refused, InputError):
            raise
        key = _key_of(spec, _whole(spec, data), str(refused)) or ""
        raise InputError(_told(where, key, str(refused))) from error


def _told(where: str, key: str, refused: str) -> str:
    """What a spec refuses, and where it stands; one that holds others by name says the key itself."""
    return f"{at(where)}{'' if refused.startswith(f'{key}.') else at(key)}{refused}"


def _whole(hint: Any, value: Any) -> Any:
    """Plain data in which every class that is named has its own defaults: the parser would fill in what the spec has
    that is the field's default, where both have an argument of that name.
    """
    hint = without_null(hint)
    if value is None or not has_spec(hint):
        return value
    if get_origin(hint) is dict:
        return {name: _whole(get_args(hint)[1], item) for name, item in value.items()}
    if not isinstance(hint, type):
        return [_whole(get_args(hint)[0], item) for item in value]
    cls, fields = split_class(hint, value, "", "")
    hints = fields_of(hint, cls)
    given = {name: _whole(hints[name], item) for name, item in fields.items()}
    if cls is None or not is_family(hint):
        return given
    defaults = {name: to_data(default) for name, default in defaults_of(cls).items()}
    return {"class_path": cls.__name__, "init_args": defaults | given}


def build(parser: ArgumentParser, namespace: Namespace, spec: type[S]) -> S:
    """The spec of parsed arguments."""
    values = vars(parser.instantiate(namespace))
    return spec(**{field.name: values[field.name] for field in dataclasses.fields(spec)})  # type: ignore[arg-type]


def _key_of(hint: Any, value: Any, refusal: str, key: str = "", default: type | None = None) -> str | None:
    """Where in plain data the innermost spec stands that says this; None: it is not one inside.

    Args:
        default: the class that is meant where the data names none.
    """
    hint = without_null(hint)
    if value is None or not has_spec(hint):
        return None
    if get_origin(hint) is dict or not isinstance(hint, type):
        inner = get_args(hint)[1 if get_origin(hint) is dict else 0]
        items = value.items() if isinstance(value, dict) else enumerate(value)
        return next(filter(None, (_key_of(inner, item, refusal, join(key, name)) for name, item in items)), None)
    named, fields = split_class(hint, value, "", key)
    cls = named or default
    if cls is None:
        return None
    hints = fields_of(hint, cls)
    inside = (_key_of(hints[n], item, refusal, join(key, n), default_class(cls, n)) for n, item in fields.items())
    if (found := next(filter(None, inside), None)) or not key:
        return found
    parser = make_parser(cls)
    try:
        build(parser, parser.parse_object(copy.deepcopy(fields)), cls)
    except (ArgumentError, ValueError) as error:
        return key if refusal in (str(error), str(error.__cause__)) else None
    return None


def read_yaml(path: str | Path) -> dict[str, Any]:
    """A YAML file that holds a mapping.

    Raises:
        InputError: no such file, one that is too long, no YAML, a key that is there twice, no mapping.
    """
    path = Path(path)
    try:
        with path.open(encoding="utf-8") as file:
            text = file.read(MAX_YAML + 1)
    except (OSError, ValueError) as error:  # no UTF-8; or no name that a file may have
        raise InputError(
            f"{path} cannot be read: {error.strerror if isinstance(error, OSError) else error}."
        ) from error
    if len(text) > MAX_YAML:
        raise InputError(f"{path} is too long for YAML of mmformer's: more than {MAX_YAML:,} characters.")
    data = from_yaml(text, str(path))
    if not isinstance(data, dict):
        raise InputError(f"{path} must hold a mapping (key: value lines), but holds {type(data).__name__}.")
    return data


def from_yaml(text: str, where: str) -> Any:
    """Plain data from YAML text.

    Raises:
        InputError: it is no YAML, means too much, or a mapping has a key twice.
    """
    try:
        return yaml.load(text, Loader=_Loader)  # a SafeLoader
    except (yaml.YAMLError, *_MISTAGGED) as error:
        message = " ".join(str(error).split()).replace('in "<unicode string>", ', "at ")
        message = "it is nested too deeply." if isinstance(error, RecursionError) else message
        raise InputError(f"{where} is not valid YAML: {message}") from error


class _Loader(yaml.SafeLoader):
    """Refuses a key that a mapping has twice: YAML would keep the last one and say nothing. And what would take for
    ever to read, or to go through.
    """

    def get_single_node(self) -> yaml.Node | None:
        node: yaml.Node | None = super().get_single_node()
        if node is not None and _values(node, {}) > MAX_VALUES:
            raise yaml.MarkedYAMLError(
                problem=f"it comes to more than {MAX_VALUES:,} values, its aliases written out: write it out, shorter."
            )
        return node

    def fetch_flow_collection_start(self, token: Any) -> None:
        if self.flow_level == _DEEPEST:
            raise yaml.MarkedYAMLError(problem="it is nested too deeply", problem_mark=self.get_mark())
        super().fetch_flow_collection_start(token)

    def compose_scalar_node(self, anchor: Any) -> yaml.ScalarNode:
        node: yaml.ScalarNode = super().compose_scalar_node(anchor)
        if node.tag.endswith((":int", ":float")) and len(node.value) > _LONGEST_NUMBER:
            raise yaml.MarkedYAMLError(problem="a number of so many digits", problem_mark=node.start_mark)
        return node

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node: yaml.MappingNode = super().compose_mapping_node(anchor)
        lines: dict[tuple[str, str], int] = {}
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                line, same = key.start_mark.line + 1, (key.tag, key.value)
                if same in lines:
                    message = f"the key '{key.value}' is there twice, on lines {lines[same]} and {line}: remove one."
                    raise yaml.MarkedYAMLError(problem=message)
                lines[same] = line
        return node


def _values(node: yaml.Node, known: dict[int, int]) -> int:
    """How many values a node means, each alias counted with all that it stands for; no more than the limit and one.

    Args:
        known: of nodes that were counted, by their identity.
    """
    if id(node) not in known:
        known[id(node)] = MAX_VALUES + 1  # meanwhile: one that holds itself has no end
        parts = [part for pair in node.value for part in pair] if isinstance(node, yaml.MappingNode) else node.value
        inside = 0 if isinstance(node, yaml.ScalarNode) else sum(_values(part, known) for part in parts)
        known[id(node)] = min(1 + inside, MAX_VALUES + 1)
    return known[id(node)]


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


def explain(error: Exception) -> str:
    """jsonargparse's message without its scaffolding: the key path, and what was found."""
    path: list[str] = []
    rest: list[str] = []
    for line in filter(None, map(str.strip, str(error).splitlines())):
        if match := re.match(r"Parser key \"([^\"]+)\":", line):
            path.append(match[1])
            rest += [line[match.end() :].strip()] if match.end() < len(line) else []
        elif not re.fullmatch(r"Problem with given class_path '.*':", line):
            rest.append(line.removeprefix("error: "))
    return at(".".join(path)) + " ".join(rest)
