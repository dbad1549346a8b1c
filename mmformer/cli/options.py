"""The words of a command that reads run files: its own options, and the spec's plain data, files and options merged.

All of it is put together as plain data, and refused where it has a wrong key or class.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, get_args, get_origin

from mmformer import resources
from mmformer.config import from_yaml, read_yaml
from mmformer.errors import InputError, nearest
from mmformer.schema import (
    accepts_null,
    at,
    check_layout,
    class_named,
    fields_of,
    has_spec,
    is_family,
    join,
    missing,
    split_class,
    unknown_key,
    without_null,
)


class Words(NamedTuple):
    """A command's words.

    Attributes:
        own: the command's own options that were given; a flag's value is "".
        settings: what says something about the spec, in order: ("config", FILE) and (dotted key, text).
    """

    own: dict[str, str]
    settings: list[tuple[str, str]]

    @property
    def files(self) -> list[str]:
        return [text for name, text in self.settings if name == "config"]


def split(words: Sequence[str], spec: type, own: Mapping[str, bool]) -> Words:
    """Tell a command's own options from files and dotted options; nothing is read.

    Args:
        own: the command's options, and whether each has a value.

    Raises:
        InputError: there is no such option, or its value is absent.
    """
    known, found = [*own, "config", *fields_of(spec, spec)], Words({}, [])
    left = list(words)
    while left:
        word = left.pop(0)
        name, equals, value = word.removeprefix("--").partition("=")
        first = name.partition(".")[0]
        if first not in known or not word.startswith("--"):
            raise InputError(_unknown(word, known))
        if name in own and not own[name]:
            if equals:
                raise InputError(f"--{name} takes no value, but was given '{value}'.")
        elif not equals:
            if not left or left[0].startswith("--"):
                raise InputError(f"--{name} needs a value after it.")
            value = left.pop(0)
        if name in own:
            found.own[name] = value
        elif first in own or (first == "config" and name != "config"):
            raise InputError(f"unknown option '--{name}'. Did you mean '--{first}'?")
        else:
            found.settings.append((name, value))
    return found


def _unknown(word: str, known: Sequence[str]) -> str:
    name = word.lstrip("-").partition("=")[0]
    first, dot, _ = name.partition(".")
    if not word.startswith("-"):
        return f"what is '{word}'? An option begins with -- and has one value; quote a value that has spaces in it."
    if dot:
        return f"unknown key '{name}'.{nearest(first, known)} Known here: {', '.join(known)}."
    return f"unknown option '{word.partition('=')[0]}'.{nearest('--' + name, [f'--{other}' for other in known])}"


def merged(spec: type, settings: Sequence[tuple[str, str]]) -> dict[str, Any]:
    """A spec's plain data, as files and dotted options say it; later ones override earlier ones.

    A run file overrides what it names; a file that stands for an option's spec is all of that spec.

    Raises:
        InputError: a file cannot be read, or something has a wrong key or class; nothing is imported for those.
    """
    data: Any = {}
    added: list[_Added] = []
    for name, text in settings:
        if name == "config":
            data = _merge(spec, data, _read(spec, Path(text)))
        else:
            data = _put(spec, data, name.split("."), text, "", added)
    for new in added:
        new.check(data)
    assert isinstance(data, dict)
    return data


class _Added(NamedTuple):
    """An entry that a dotted option made in a mapping of named specs."""

    base: type
    group: str
    name: str
    others: list[str]

    def check(self, data: Any) -> None:
        """A new entry has to be a whole one: otherwise the name was a mistake."""
        for part in self.group.split("."):
            data = (data.get("init_args", data) if isinstance(data, dict) else {}).get(part) or {}
        absent = missing(self.base, data[self.name]) if data.get(self.name) is not None else []
        if absent:
            plural = self.group.rpartition(".")[2]
            noun, others = plural.removesuffix("s"), ", ".join(self.others)
            there = f"the {plural} are {others}" if len(self.others) != 1 else f"the only one is {others}"
            needs = ", ".join(f"--{self.group}.{self.name}.{field}" for field in absent)
            raise InputError(
                f"{self.group}: there is no {noun} '{self.name}'; {there if others else 'there is none yet'}."
                f"{nearest(self.name, self.others)} A new one needs {needs} too."
            )


def _put(hint: Any, old: Any, path: Sequence[str], text: str, key: str, added: list[_Added]) -> Any:
    """Plain data with a dotted option's value in its place."""
    inner = without_null(hint)
    if not path:
        value, named = _value(hint, text, key)
        return value if named else _merge(hint, old, value, key)
    whole, (part, *rest) = ".".join([key, *path] if key else path), path
    if get_origin(inner) is dict:
        entries = dict(old or {})
        if part not in entries and rest and isinstance(get_args(inner)[1], type):
            added.append(_Added(get_args(inner)[1], key, part, list(entries)))
        return entries | {part: _put(get_args(inner)[1], entries.get(part), rest, text, join(key, part), added)}
    if not isinstance(inner, type) or not has_spec(inner):
        many = f"{key} is a list: give it whole, as --{key} '[...]'" if has_spec(inner) else f"{key} is one value"
        raise InputError(f"unknown key '{whole}': {many}.")
    cls, fields = split_class(inner, {} if old is None else old, "", key)
    if is_family(inner) and part == "class_path":
        if rest:
            unknown_key(whole, rest[0], [])
        class_named(inner, text, "", key)
        return _merge(hint, old, {"class_path": text}, key)
    if is_family(inner) and part == "init_args":
        if not rest:
            arguments = from_yaml(text, f"--{whole}")
            new = {"class_path": cls.__name__, "init_args": arguments} if cls is not None else arguments
            check_layout(hint, new, "", key)
            return _merge(hint, old, new, key)
        part, *rest = rest
    hints = fields_of(inner, cls)
    if part not in hints:
        unknown_key(whole, part, hints)
    fields = fields | {part: _put(hints[part], fields.get(part), rest, text, join(key, part), added)}
    return {"class_path": cls.__name__, "init_args": fields} if is_family(inner) and cls is not None else fields


def _value(hint: Any, text: str, key: str) -> tuple[Any, bool]:
    """An option's value: YAML, or a file's path, where a spec is expected; otherwise for the parser to convert.

    Returns:
        The value, and whether it is a file's: all of a spec, of which nothing stays as it was.
    """
    if text == "null" and accepts_null(hint):
        return None, False
    if not has_spec(hint):
        if text == "null" and without_null(hint) is not str:
            check_layout(hint, None, "", key)
        return from_yaml(text, f"--{key}") if get_origin(without_null(hint)) in (tuple, dict) else text, False
    read = from_yaml(text, f"--{key}")
    value = _with_files(hint, read, Path(), key)
    check_layout(hint, value, "", key)
    return value, isinstance(read, str) and value is not read


def _merge(hint: Any, old: Any, new: Any, key: str = "") -> Any:
    """Plain data, overridden: field by field in specs; the entries of a mapping are those that the new one has."""
    hint = without_null(hint)
    if old is None or new is None or not has_spec(hint):
        return new
    if get_origin(hint) is dict:
        return {name: _merge(get_args(hint)[1], old.get(name), item, join(key, name)) for name, item in new.items()}
    if not isinstance(hint, type):
        return new
    (before, below), (after, above) = split_class(hint, old, "", ""), split_class(hint, new, "", "")
    cls = after or before
    hints = fields_of(hint, cls)
    # Of another class's arguments, those stay that this one has too.
    fields = {name: value for name, value in below.items() if name in hints}
    for name, value in above.items():
        if name not in hints:
            unknown_key(join(key, name), name, hints)
        fields[name] = _merge(hints[name], fields.get(name), value, join(key, name))
    return {"class_path": cls.__name__, "init_args": fields} if is_family(hint) and cls is not None else fields


def _read(hint: Any, path: Path, inside: tuple[Path, ...] = ()) -> Any:
    """A spec's file, with the files that it names in place of their names; checked."""
    path = resources.find(path)
    if path.resolve() in inside:
        raise InputError(f"{path}: this file names itself, or one that names it.")
    try:
        read = read_yaml(path)
    except InputError as error:
        near = "" if os.path.exists(path) else _nearest_file(path)  # noqa: PTH110  # whatever the name: no error
        raise InputError(f"{error}{near}") from error
    data = _with_files(hint, read, path.parent, "", str(path), (*inside, path.resolve()))
    check_layout(hint, data, str(path))
    return data


def _first(hint: type, path: Any, folder: Path, key: str, inside: tuple[Path, ...]) -> Any:
    """What a file or, of a model, a bundle says, for the rest to be said over it."""
    if not isinstance(path, str):
        raise InputError(f"{key} must be the path of a file or of a bundle, but is {path!r:.80}.")
    if not (Path(path) / "model.yaml").is_file():
        try:
            return _read(hint, folder / path, inside)
        except InputError as error:
            raise InputError(f"{key}: {error}") from error
    from mmformer.bundle import read_spec
    from mmformer.config import to_data

    spec = read_spec(Path(path))
    if not isinstance(spec, hint):
        raise InputError(f"{key}: {path} is the bundle of a model, which is not what stands here.")
    return to_data(spec)


def _nearest_file(path: Path) -> str:
    """The file that may have been meant, beside it or of those that mmformer brings, whatever its folder is."""
    brought = [file.relative_to(resources.FOLDER) for file in resources.FOLDER.glob("configs/*/*.yaml")]
    beside = [file for suffix in ("yaml", "yml") for file in path.parent.glob(f"*.{suffix}")]
    files = {file.stem: str(file) for file in (*brought, *beside)}
    close = difflib.get_close_matches(path.stem, files, n=1)
    return f" Did you mean '{files[close[0]]}'?" if close else ""


def _with_files(hint: Any, value: Any, folder: Path, key: str, where: str = "", inside: tuple[Path, ...] = ()) -> Any:
    """Plain data with what is in the files that stand in place of specs; their paths are relative to a folder."""
    hint = without_null(hint)
    if not has_spec(hint):
        return value
    if isinstance(value, str) and isinstance(hint, type) and ("/" in value or Path(value).suffix in (".yaml", ".yml")):
        try:
            return _read(hint, folder / value, inside)
        except InputError as error:
            raise InputError(f"{at(where)}{key}: {error}") from error
    if isinstance(value, list):
        inner = get_args(hint)[:1] or (None,)
        return [_with_files(inner[0], item, folder, join(key, n), where, inside) for n, item in enumerate(value)]
    if not isinstance(value, dict):
        return value
    if "from" in value and isinstance(hint, type) and not is_family(hint):
        rest = _with_files(hint, {n: item for n, item in value.items() if n != "from"}, folder, key, where, inside)
        check_layout(hint, rest, where, key)
        return _merge(hint, _first(hint, value["from"], folder, f"{at(where)}{join(key, 'from')}", inside), rest)
    if get_origin(hint) is dict:
        hints = dict.fromkeys(value, get_args(hint)[1])
    elif not isinstance(hint, type):
        return value
    elif is_family(hint) and "class_path" in value:
        cls, fields = split_class(hint, value, where, key)
        hints = fields_of(hint, cls)
        arguments = {n: _with_files(hints.get(n), v, folder, join(key, n), where, inside) for n, v in fields.items()}
        return {**value, "init_args": arguments}
    else:
        hints = fields_of(hint, None if is_family(hint) else hint)
    return {n: _with_files(hints.get(n), v, folder, join(key, n), where, inside) for n, v in value.items()}
