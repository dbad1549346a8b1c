"""The tables in a run's folder that a resumed run goes on with: a row a line, with the number of the row's update.

Rows are added as a run goes on, and the last of them may be half a line where it was killed: that is left out. Whatever
else is not as it was written is somebody's who changed it, and is not taken for what the run said.
"""

from __future__ import annotations

import csv
import io
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from mmformer.data.decode import MAX_TEXT
from mmformer.errors import InputError
from mmformer.files import write_whole
from mmformer.training.processes import is_first


def rows_until(
    last: int, path: Path, columns: Sequence[str] | None = None, number: str = "update", delimiter: str = "\t"
) -> list[dict[str, str]]:
    """The rows of a table up to an update: column -> cell. None where there is no such file.

    Half a line at its end is left out, and the first process says so.

    Args:
        last: the number of the update.
        path: of the table.
        columns: that it has; None: any.
        number: the column with the number of the update.
        delimiter: between cells.

    Raises:
        InputError: something else is in it, with the line.
    """
    header: list[str] = []
    rows = []
    for line, cells in _lines(path, delimiter):
        if not header:
            header = cells
            if header != list(columns or header) or number not in header or len(set(header)) < len(header):
                must = f"{', '.join(columns)}" if columns else f"'{number}' and others, each once"
                raise _damaged(path, line, f"the columns are {', '.join(header):.200}, but must be {must}")
            continue
        row = dict(zip(header, cells, strict=False))
        update = row.get(number, "")
        if not (update.isascii() and update.isdecimal() and len(update) < 19):
            raise _damaged(path, line, f"{number} must be a whole number, but is {update!r:.60}")
        if len(cells) != len(header):
            raise _damaged(path, line, f"there are {len(cells)} cells, but {len(header)} columns")
        if int(update) <= last:
            rows.append(row)
    return rows


def go_on_from(last: int, path: Path, columns: Sequence[str]) -> list[dict[str, str]]:
    """The rows of a table up to an update, which are all that it has from here on; see ``rows_until``."""
    rows = rows_until(last, path, columns)
    if is_first() and path.exists():
        write_whole(path, as_text([columns, *(tuple(row.values()) for row in rows)]))
    return rows


def add_rows(path: Path, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Write rows behind those that a table has; it begins with its columns. Texts among them are ``plain``."""
    begun = path.exists()
    with path.open("a", encoding="utf-8", newline="") as file:
        file.write(as_text(rows if begun else [columns, *rows]))


def as_text(rows: Iterable[Sequence[object]]) -> str:
    """Rows as a table between tabs."""
    text = io.StringIO()
    csv.writer(text, delimiter="\t", lineterminator="\n").writerows(rows)
    return text.getvalue()


def plain(text: str) -> str:
    """A text as a table can have it: in one line, and in UTF-8 whatever it is."""
    return text.encode("utf-8", "backslashreplace").decode().replace("\r", r"\r").replace("\n", r"\n")


def _lines(path: Path, delimiter: str) -> Iterator[tuple[int, list[str]]]:
    """The numbers of lines that were written to their end, from 1, and their cells."""
    try:
        *whole, rest = path.read_bytes().split(b"\n")
    except FileNotFoundError:
        return
    if rest and is_first():
        print(f"mmformer: {path}: line {len(whole) + 1}, the last, is cut: it is left out.", file=sys.stderr)
    csv.field_size_limit(MAX_TEXT)  # the keys of a large batch are one cell
    for number, line in enumerate(whole, start=1):
        try:
            cells = next(csv.reader([line.decode("utf-8")], delimiter=delimiter, strict=True), [])
        except (csv.Error, UnicodeDecodeError) as error:
            raise _damaged(path, number, f"it cannot be read: {error}") from error
        if cells:
            yield number, cells


def _damaged(path: Path, line: int, found: str) -> InputError:
    return InputError(f"{path}: line {line}: {found}. Mend it, or move the file away: the run goes on with a new one.")
