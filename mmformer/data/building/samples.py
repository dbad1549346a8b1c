"""Samples to be, from pictures and sounds with a table, from a folder for each class, and from text files."""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mmformer.data.building.draft import (
    KIND,
    Draft,
    Found,
    LeftOut,
    Span,
    Unusable,
    extension_of,
    file_span,
    files_below,
    unique_keys,
)
from mmformer.data.building.tables import TEXT, Row, Table, is_text, texts_of
from mmformer.errors import InputError, nearest

FILE_COLUMNS = ("file", "file_name", "filename", "filepath", "path")
USUAL = {
    "image": ("image", "image_path", *FILE_COLUMNS),
    "sound": ("sound", "audio", "wav", *FILE_COLUMNS),
    "caption": ("caption", "captions", "text", "title", "sentence", "transcript"),
}
"""What columns are usually called."""


@dataclass(frozen=True)
class Columns:
    """Which columns of a table are read.

    Attributes:
        image: with the names of pictures; None: the one that has a usual name.
        sound: with those of sounds.
        caption: with captions.
        split: with the name of the split; None: there is none.
        kept: those that go into the sample's json besides its captions; None: all others.
    """

    image: str | None = None
    sound: str | None = None
    caption: str | None = None
    split: str | None = None
    kept: tuple[str, ...] | None = None


@dataclass
class _Entry:
    """What the rows of one picture or sound say together."""

    place: str
    fields: dict[str, Any]
    split: str
    captions: dict[str, None] = field(default_factory=dict)


def from_table(table: Table, folders: Mapping[str, Path], columns: Columns) -> Found:
    """A sample for each picture or sound that a table names, or for each row where there are none of them.

    Rows that name the same file are one sample with several captions: ``caption`` in its json is the first; where some
    sample has more, ``captions`` are all. Other columns keep their names; the first row of a file says them.

    Args:
        table: with a column of file names for each folder, and one of captions.
        folders: image, sound or both, and where their files are.
        columns: which of them are read.

    Raises:
        InputError: a column is not there, or has the name of what is made of the captions.
    """
    named = {kind: table.column(getattr(columns, kind), USUAL[kind], f"--{kind}-column") for kind in folders}
    caption = table.column(columns.caption, USUAL["caption"], "--caption-column")
    split = None if columns.split is None else table.column(columns.split, (), "--split-column")
    others = _others(table, columns.kept, {*named.values(), caption, split})
    entries: dict[tuple[str, ...], _Entry] = {}
    left_out = []
    for number, row in enumerate(table.rows):
        try:
            names = _names(row, named) or (str(number),)
            captions = _captions(row, caption)
            own = "" if split is None else _split(row, split)
        except Unusable as problem:
            left_out.append(problem.of(row.place))
            continue
        entry = entries.setdefault(names, _Entry(row.place, {name: row.values.get(name) for name in others}, own))
        if entry.split == own:
            entry.captions |= dict.fromkeys(captions)
        else:
            left_out.append(LeftOut(row.place, "file in two splits", f"{names[0]}: {entry.split}, then {own}"))
    several = any(len(entry.captions) > 1 for entry in entries.values())
    drafts = []
    for key, (names, entry) in zip(unique_keys([names[0] for names in entries]), entries.items(), strict=True):
        try:
            members: dict[str, Span | bytes] = {}
            for (kind, folder), name in zip(folders.items(), names, strict=False):
                members[_extension(name, kind)] = file_span(folder, name)
            captions = list(entry.captions)
            members["json"] = _json({"caption": captions[0]} | ({"captions": captions} if several else {}), entry)
            drafts.append(Draft(key, entry.split, members))
        except Unusable as problem:
            left_out.append(problem.of(names[0] if folders else entry.place))
    return Found(drafts, left_out)


def not_named(table: Table, folders: Mapping[str, Path], columns: Columns) -> list[LeftOut]:
    """The pictures and sounds in the folders that no row of the table names."""
    left_out = []
    for kind, folder in folders.items():
        column = table.column(getattr(columns, kind), USUAL[kind], f"--{kind}-column")
        names = (row.values.get(column) for row in table.rows)
        known = {os.path.normpath(folder / name) for name in names if isinstance(name, str)}
        for path in files_below(folder):
            if extension_of(path.name, (kind,)) is not None and os.path.normpath(path) not in known:
                detail = f"no row of {table.path.name} names it in the column {column!r}"
                left_out.append(LeftOut(_within(folder, path), "file that the table does not name", detail))
    return left_out


def from_classes(folder: Path, split_folders: bool = False) -> Found:
    """A sample for each picture or sound in a folder for each class; its json has its class as ``label``.

    Args:
        folder: CLASS/…/FILE, or SPLIT/CLASS/…/FILE.
        split_folders: which of the two.

    Raises:
        InputError: there are no folders in it, or one's name cannot be a class.
    """
    splits = _folders(folder, "split") if split_folders else [folder]
    labelled: list[tuple[str, Path, str]] = []  # split, file, class
    left_out = []
    for split in splits:
        for group in _folders(split, "class"):
            label = group.name
            if not is_text(label) or label != label.strip() or not label.isprintable():
                raise InputError(f"{group}: a class is called as its folder, which cannot be {label!r}. Rename it.")
            files = list(files_below(group))
            if not files:
                left_out.append(LeftOut(_within(folder, group), "class without files", "the folder is empty"))
            for path in files:
                if extension_of(path.name) is None:
                    known = ", ".join(f".{extension}" for extension in KIND)
                    detail = f"its name ends with none of {known}"
                    left_out.append(LeftOut(_within(folder, path), "neither image nor sound", detail))
                else:
                    labelled.append((split.name if split_folders else "", path, label))
    drafts = []
    keys = unique_keys([_within(folder, path) for _, path, _ in labelled])
    for key, (split_name, path, label) in zip(keys, labelled, strict=True):
        name = _within(folder, path)
        try:
            members: dict[str, Span | bytes] = {extension_of(path.name) or "": file_span(folder, name)}
            members["json"] = _encoded({"label": label})
            drafts.append(Draft(key, split_name, members))
        except Unusable as problem:
            left_out.append(problem.of(name))
    return Found(drafts, left_out, tuple(sorted({label for _, _, label in labelled})))


def from_texts(paths: Sequence[Path], unit: str = "line") -> Found:
    """A sample with a ``txt`` for each line that is not empty, or for each file.

    Args:
        paths: UTF-8 files.
        unit: line or file.
    """
    drafts: list[Draft] = []
    left_out = []
    for path, name in zip(paths, unique_keys([path.name for path in paths]), strict=True):
        try:
            whole = file_span(path.parent, path.name)
        except Unusable as problem:
            left_out.append(problem.of(str(path)))
            continue
        spans = {name: whole} if unit == "file" else _lines(path, name)
        drafts += [Draft(key, "", {"txt": span}) for key, span in spans.items()]
    return Found(drafts, left_out)


def _lines(path: Path, name: str) -> dict[str, Span]:
    spans, offset = {}, 0
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            mark = 3 if number == 1 and line.startswith(b"\xef\xbb\xbf") else 0
            text = line[mark:].rstrip(b"\r\n")
            if text.strip():
                spans[f"{name}/{number:08d}"] = Span(str(path), offset + mark, len(text))
            offset += len(line)
    return spans


def _others(table: Table, asked: Sequence[str] | None, used: set[str | None]) -> list[str]:
    """The columns that a sample keeps as they are."""
    if asked is None:
        chosen = [name for name in table.columns if name not in used]
    else:
        for name in asked:
            if name not in table.columns:
                raise InputError(
                    f"--keep-columns {name}: {table.path} has the columns {', '.join(table.columns)}."
                    f"{nearest(name, table.columns)}"
                )
        chosen = list(asked)
    for name in ("caption", "captions"):
        if name in chosen:
            raise InputError(
                f"{table.path} has a column '{name}', which is not the one that captions are read from, and a sample's "
                f"json would have two fields of that name: say which others to keep (--keep-columns)."
            )
    return chosen


def _names(row: Row, named: Mapping[str, str]) -> tuple[str, ...]:
    if row.problem is not None:
        raise row.problem
    names = [row.values.get(column) for column in named.values()]
    for name, column in zip(names, named.values(), strict=True):
        if not isinstance(name, str) or not name:
            raise Unusable("row without a file", f"the column {column!r} holds {name!r:.40}")
    return tuple(map(str, names))


def _captions(row: Row, column: str) -> list[str]:
    captions = list(texts_of(row.values.get(column)))
    if not captions:
        raise Unusable("empty caption", f"the column {column!r} holds {row.values.get(column)!r:.40}")
    if not all(map(is_text, captions)):
        raise Unusable(TEXT, f"the column {column!r} holds {captions[0][:40]!r}")
    return captions


def _split(row: Row, column: str) -> str:
    value = row.values.get(column)
    if not isinstance(value, str) or not re.fullmatch(r"[A-Za-z0-9_-]+", value):
        raise Unusable("row without a split", f"the column {column!r} holds {value!r:.40}")
    return value


def _extension(name: str, kind: str) -> str:
    extension = extension_of(name, (kind,))
    if extension is None:
        known = ", ".join(f".{other}" for other, own in KIND.items() if own == kind)
        raise Unusable(f"no {kind} by its name", f"{name} ends with none of {known}")
    return extension


def _json(captions: dict[str, Any], entry: _Entry) -> bytes:
    for name, value in entry.fields.items():
        if isinstance(value, str) and not is_text(value):
            raise Unusable(TEXT, f"the column {name!r} holds {value[:40]!r}")
    try:
        return _encoded(captions | entry.fields)
    except UnicodeEncodeError as error:  # a text within a value, which escapes its half of a pair of surrogates
        raise Unusable(TEXT, f"a field holds {error.object[error.start : error.end]!r}") from error
    except (TypeError, ValueError) as error:
        raise InputError(
            f"{entry.place}: a value cannot be written as JSON: {error}. Say which others to keep (--keep-columns)."
        ) from error


def _encoded(fields: dict[str, Any]) -> bytes:
    cleaned = {name: None if isinstance(v, float) and not math.isfinite(v) else v for name, v in fields.items()}
    return json.dumps(cleaned, ensure_ascii=False, separators=(",", ":")).encode()


def _folders(folder: Path, what: str) -> list[Path]:
    found = [path for path in sorted(folder.iterdir()) if path.is_dir() and not path.name.startswith(".")]
    if not found:
        raise InputError(f"{folder}: there is no folder in it, but each {what} is a folder here.")
    return found


def _within(folder: Path, path: Path) -> str:
    return path.relative_to(folder).as_posix()


def counted(left_out: Iterable[LeftOut]) -> dict[str, int]:
    """How many were left out for each cause, the commonest first."""
    causes: dict[str, int] = {}
    for one in left_out:
        causes[one.cause] = causes.get(one.cause, 0) + 1
    return dict(sorted(causes.items(), key=lambda item: (-item[1], item[0])))
