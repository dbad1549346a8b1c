"""What the commands on a bundle print: tables for a person, JSON for a program, a bar while it takes time."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console


@contextmanager
def progress(what: str, total: int, batch_size: int) -> Iterator[Callable[[int], object]]:
    """A bar where someone watches and there is more than one batch to watch."""
    from tqdm import tqdm

    off = None if total > batch_size else True
    with tqdm(total=total, desc=what, disable=off, leave=False, file=sys.stderr) as bar:
        yield bar.update


def short(value: float) -> float:
    """A float32 with the digits that it has."""
    return float(f"{value:.9g}")


def print_json(rows: Iterable[dict[str, Any]]) -> None:
    """One document, a list, with a line for each of its objects."""
    print("[" + ",\n ".join(map(json.dumps, rows)) + "]")


def print_table(columns: tuple[str, str, str], groups: Sequence[tuple[str, Sequence[tuple[str, str]]]]) -> None:
    """Rows in groups; the name of a group stands at its first row, or above the table where there is only one."""
    from rich.table import Table
    from rich.text import Text

    # Text, not strings: brackets in a name would be read as markup.
    alone = len(groups) == 1
    table = Table()
    for column in columns[alone:]:
        table.add_column(column, justify="right" if column == columns[-1] else "left", overflow="fold")
    for name, rows in groups:
        for place, row in enumerate(rows):
            first = () if alone else (name if place == 0 else "",)
            table.add_row(*(Text(visible(cell)) for cell in (*first, *row)))
        if any(len(rows) > 1 for _, rows in groups):
            table.add_section()
    console = _console()
    if alone:
        console.print(Text(visible(groups[0][0])))
    console.print(table)


def print_pairs(columns: tuple[str, str], rows: Sequence[tuple[str, str]]) -> None:
    """Two columns of text."""
    from rich.table import Table
    from rich.text import Text

    table = Table()
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*(Text(visible(cell)) for cell in row))
    _console().print(table)


def print_cells(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """A table whose first column is a name, and whose others are numbers."""
    from rich.table import Table
    from rich.text import Text

    table = Table()
    for place, column in enumerate(columns):
        table.add_column(column, justify="right" if place else "left", overflow="fold")
    for row in rows:
        table.add_row(*(Text(visible(cell)) for cell in row))
    _console().print(table)


def print_matrix(rows: Sequence[str], columns: Sequence[str], cells: Sequence[Sequence[str]]) -> None:
    """A table with a name at every row and column; of more columns than fit side by side, several tables."""
    from rich.table import Table
    from rich.text import Text

    console = _console()
    widest = console.width // 3
    first = min(max(len(visible(row)) for row in rows), widest) + 4
    widths = [min(max(len(visible(column)), 6), widest) + 3 for column in columns]
    begin = 0
    while begin < len(columns):
        end = begin + 1
        while end < len(columns) and first + sum(widths[begin : end + 1]) <= console.width:
            end += 1
        table = Table()
        table.add_column(max_width=widest, overflow="fold")
        for column in columns[begin:end]:
            table.add_column(Text(visible(column)), justify="right", max_width=widest, overflow="fold")
        for row, values in zip(rows, cells, strict=True):
            table.add_row(Text(visible(row)), *values[begin:end])
        console.print(table)
        begin = end


def _console() -> Console:
    """What tables are printed on; where it is not a terminal that reads, lines need not be folded."""
    from rich.console import Console

    return Console(width=None if sys.stdout.isatty() else 1000)


def visible(text: str) -> str:
    """One line, without what a terminal would obey or could not show: that is written out."""
    joiners = "\u200c\u200d"
    return "".join(c if c.isprintable() or c in joiners else c.encode("unicode_escape").decode() for c in text)
