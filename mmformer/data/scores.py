"""Tables of scores: a number for samples by key and split, as filters write them."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from mmformer.errors import InputError, nearest

SCORES_NAME = "scores.tsv"
SCORES_COLUMNS = ("key", "split", "score")


def write_table(path: Path, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """A table of texts, tabs between them; what holds a tab, a quote or a line's end stands in quotes."""
    with path.open("w", encoding="utf-8", errors="backslashreplace", newline="") as file:
        table = csv.writer(file, delimiter="\t", lineterminator="\n")
        table.writerow(columns)
        table.writerows(rows)


def read_table(path: Path, columns: Sequence[str]) -> Iterator[list[str]]:
    """These columns of every row of a table, and the row's line for messages last.

    Raises:
        InputError: there is no such table, or it lacks a column.
    """
    try:
        with path.open(encoding="utf-8", newline="") as file:
            table = csv.reader(file, delimiter="\t")
            head = next(table, [])
            for name in columns:
                if name not in head:
                    raise InputError(
                        f"{path} has no column '{name}'; its first line is {', '.join(head) or 'empty'}."
                        f"{nearest(name, head)} It must be a table with tabs between {', '.join(columns)}."
                    )
            places = [head.index(name) for name in columns]
            for row in table:
                if len(row) != len(head):
                    raise InputError(
                        f"{path}, line {table.line_num}: {len(row)} columns, but the first line has {len(head)}."
                    )
                yield [*(row[place] for place in places), str(table.line_num)]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"The table {path} cannot be read: {error}.") from error


def read_scores(path: Path, split: str, keys: Sequence[str]) -> list[float]:
    """The scores of these samples of a split, by their keys.

    Raises:
        InputError: a sample has none, one that is no number, or two that differ.
    """
    path = path / SCORES_NAME if path.is_dir() else path
    found: dict[str, float] = {}
    for key, own, word, line in read_table(path, SCORES_COLUMNS):
        if own != split:
            continue
        try:
            score = float(word)
        except ValueError:
            score = math.nan
        if math.isnan(score):
            raise InputError(f"{path}, line {line}: the score of '{key}' must be a number, but is '{word}'.")
        if found.setdefault(key, score) != score:
            raise InputError(f"{path}, line {line}: '{key}' has a second score, {word}, besides {found[key]}.")
    for key in keys:
        if key not in found:
            raise InputError(
                f"{path} has no score of '{key}' in the split '{split}': it was made of another set, or of a smaller "
                f"one. Score this set, or one that it was filtered from."
            )
    return [found[key] for key in keys]
