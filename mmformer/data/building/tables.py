"""Tables of captions: CSV, TSV, JSON lines, Parquet, and the files that lie beside pictures and sounds."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any, AnyStr, NamedTuple

from mmformer.data.building.draft import KIND, Unusable, extension_of, files_below
from mmformer.data.building.parquet import read_parquet
from mmformer.data.decode import MAX_TEXT, decode_json, decode_text
from mmformer.errors import InputError, nearest

TEXT = "text that is not UTF-8"
ROW = "row that cannot be read"
FILE_COLUMN, CAPTION_COLUMN = "file", "caption"
"""The columns that sidecar files stand for."""


class Row(NamedTuple):
    """One row of a table."""

    place: str  # the table and the row's line, for messages
    values: dict[str, Any]
    problem: Unusable | None = None


class Table(NamedTuple):
    """A table, read whole."""

    path: Path
    columns: tuple[str, ...]
    rows: list[Row]

    def column(self, asked: str | None, usual: Sequence[str], option: str) -> str:
        """The column that was asked for, or the only one with a usual name.

        Raises:
            InputError: there is no such column, or several have a usual name.
        """
        has = f"{self.path} has the columns {', '.join(map(repr, self.columns))}"
        if asked is not None:
            if asked not in self.columns:
                raise InputError(f"{option} {asked}: {has}.{nearest(asked, self.columns)}{self._hint()}")
            return asked
        found = [name for name in self.columns if name.lower() in usual]
        if len(found) != 1:
            which = f"{', '.join(found)} could all be meant" if found else f"none is called {', '.join(usual)}"
            raise InputError(f"{has}: {which}. Name one with {option}.{self._hint()}")
        return found[0]

    def _hint(self) -> str:
        if len(self.columns) > 1 or self.path.suffix not in (".csv", ".tsv"):
            return ""
        mark = next((mark for mark in ("\t", ";", ",") if mark in self.columns[0]), None)
        return "" if mark is None else f" Its separator seems to be {mark!r}: .csv has commas, .tsv has tabs."


def read_table(path: Path) -> Table:
    """A table, by what its name ends with.

    Rows that cannot be read are among the rows, each with its problem.

    Raises:
        InputError: there is no such file, its name ends otherwise, or it has no rows.
    """
    if path.suffix.lower() not in READERS:
        raise InputError(f"{path}: a table's name ends with {', '.join(READERS)}.")
    if not path.is_file():
        known = [other.name for other in path.parent.iterdir()] if path.parent.is_dir() else []
        raise InputError(f"There is no table {path}.{nearest(path.name, known)}")
    try:
        columns, rows = READERS[path.suffix.lower()](path)
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}.") from error
    if not rows:
        raise InputError(f"{path}: there are no rows in this table.")
    return Table(path, columns, rows)


def sidecars(folder: Path, kinds: Sequence[str]) -> Table:
    """Each picture or sound of a folder and what lies beside it: ``NAME.json`` with fields, or else ``NAME.txt`` with a
    caption on each line.

    Raises:
        InputError: there is no picture or sound in the folder.
    """
    rows = []
    for path in files_below(folder):
        if extension_of(path.name, kinds) is None:
            continue
        name = path.relative_to(folder).as_posix()
        try:
            rows.append(Row(name, {FILE_COLUMN: name, **_beside(path)}))
        except Unusable as problem:
            rows.append(Row(name, {FILE_COLUMN: name}, problem))
    if not rows:
        suffixes = ", ".join(f".{extension}" for extension, kind in KIND.items() if kind in kinds)
        raise InputError(f"{folder}: there is no {' or '.join(kinds)} ({suffixes}) in this folder or below it.")
    return Table(folder, tuple(dict.fromkeys(name for row in rows for name in row.values)), rows)


def _beside(path: Path) -> dict[str, Any]:
    fields, text = path.with_suffix(".json"), path.with_suffix(".txt")
    try:
        if fields.is_file():
            value = decode_json(_beginning(fields), fields.name)
            if not isinstance(value, dict):
                raise Unusable("damaged JSON", f"{fields} holds no object but {value!r:.40}")
            return {name: field for name, field in value.items() if name != FILE_COLUMN}
        if text.is_file():
            return {CAPTION_COLUMN: decode_text(_beginning(text), text.name).splitlines()}
    except InputError as error:
        raise Unusable("damaged JSON" if fields.is_file() else TEXT, str(error)) from error
    raise Unusable("no file with captions", f"beside {path} there is no {fields.name} and no {text.name}")


def _beginning(path: Path) -> bytes:
    """As much of a text as is read, and a byte more where it is longer."""
    with path.open("rb") as file:
        return file.read(MAX_TEXT + 1)


def _lines(file: IO[AnyStr], path: Path) -> Iterator[AnyStr]:
    """A table's lines, of which none is read that is longer than texts are."""
    number = 0
    while line := file.readline(MAX_TEXT + 1):
        number += 1
        if len(line) > MAX_TEXT:
            raise InputError(
                f"{path}, line {number}: longer than {MAX_TEXT:,} characters: this is no table of captions."
            )
        yield line


def _read_delimited(path: Path) -> tuple[tuple[str, ...], list[Row]]:
    tabs = path.suffix.lower() == ".tsv"
    # Programs that write tabs leave quotes alone.
    form: dict[str, Any] = {"delimiter": "\t", "quoting": csv.QUOTE_NONE} if tabs else {"strict": True}
    csv.field_size_limit(MAX_TEXT)
    rows = []
    # What is not UTF-8 becomes surrogates, which are found in the cells that have them.
    with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        reader = csv.reader(_lines(file, path), **form)
        try:
            columns = tuple(next(reader, ()))
            if len(set(columns)) < len(columns):
                raise InputError(f"{path}: two columns have one name: {', '.join(columns)}.")
            for cells in reader:
                place = f"{path.name}, line {reader.line_num}"
                if len(cells) == len(columns):
                    rows.append(Row(place, dict(zip(columns, cells, strict=True))))
                elif cells:  # not an empty line
                    problem = Unusable(ROW, f"it has {len(cells)} cells, but the table {len(columns)} columns")
                    rows.append(Row(place, {}, problem))
        except csv.Error as error:
            raise InputError(f"{path}, line {reader.line_num}: not a table with separators: {error}.") from error
    return columns, rows


def _read_lines(path: Path) -> tuple[tuple[str, ...], list[Row]]:
    columns: dict[str, None] = {}
    rows = []
    with path.open("rb") as file:
        for number, line in enumerate(_lines(file, path), start=1):
            if not line.strip():
                continue
            place = f"{path.name}, line {number}"
            try:
                value = decode_json(line, place)
            except InputError as error:
                rows.append(Row(place, {}, Unusable(ROW, str(error))))
                continue
            if not isinstance(value, dict):
                rows.append(Row(place, {}, Unusable(ROW, f"it holds no object but {value!r:.40}")))
                continue
            columns |= dict.fromkeys(value)
            rows.append(Row(place, value))
    return tuple(columns), rows


def _read_parquet(path: Path) -> tuple[tuple[str, ...], list[Row]]:
    columns, values = read_parquet(path)
    return columns, [Row(f"{path.name}, row {number}", value) for number, value in enumerate(values, start=1)]


READERS: dict[str, Callable[[Path], tuple[tuple[str, ...], list[Row]]]] = {
    ".csv": _read_delimited,
    ".tsv": _read_delimited,
    ".jsonl": _read_lines,
    ".ndjson": _read_lines,
    ".parquet": _read_parquet,
}
"""The reader of each kind of table."""


def is_text(value: str) -> bool:
    """Whether what was read as UTF-8 was that."""
    return not any("\ud800" <= letter <= "\udfff" for letter in value)


def texts_of(cell: Any) -> Iterator[str]:
    """The texts in a cell: one, or those of a list; without white space around them, and no empty ones."""
    for text in cell if isinstance(cell, list) else [cell]:
        if isinstance(text, str) and text.strip():
            yield text.strip()
