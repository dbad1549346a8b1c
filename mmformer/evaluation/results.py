"""What an evaluation leaves in a folder.

scores.json      every score with its chance, its unit and, where it is a mean over draws, its margin
recipe.json      all that the scores depend on: the bundle's hash, the data's, transforms, prompts, precision, metrics
recipe.yaml      what --config takes to measure another bundle in the same way
METRIC/          for each metric that has details; of retrieval a folder for each way, such as image_to_text:
  samples.tsv    every sample with what was right and what was said, the worst first
  per_class.tsv  recall, precision and average precision of each class, and what it is most often taken for
  confusion.csv  how many samples of the row's class were taken for the column's
report.html      all of it to look at, in one file
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from mmformer.config import to_yaml
from mmformer.errors import InputError
from mmformer.evaluation.details import Classified, Details, worst_first
from mmformer.evaluation.measure import Measured
from mmformer.evaluation.report import write_report
from mmformer.files import whole_folder


def check_folder(folder: Path, overwrite: bool) -> None:
    """Refuse a folder that has something in it.

    Raises:
        InputError: it has, and ``overwrite`` is false, or what it has is no evaluation's; or it is a file.
    """
    if folder.is_file():
        raise InputError(f"--output {folder}: this is a file; name a folder.")
    inside = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
    if inside and "scores.json" not in inside:
        raise InputError(f"--output {folder}: this folder holds something else ({inside[0]}): name another.")
    if inside and not overwrite:
        raise InputError(f"--output {folder} has an evaluation already: replace it (--overwrite), or name another.")


def write_results(folder: Path, measured: Measured) -> None:
    """Write a folder, whole or not at all."""
    with whole_folder(folder) as partial:
        scores = {name: score._asdict() for name, score in measured.scores.items()}
        _write_json(partial / "scores.json", scores)
        _write_json(partial / "recipe.json", measured.recipe)
        (partial / "recipe.yaml").write_text(to_yaml(measured.spec), encoding="utf-8")
        for name, details in measured.details.items():
            _write_details(partial / name, details)
        write_report(partial / "report.html", measured)


def _write_details(folder: Path, details: Details) -> None:
    for way, own in details.ways.items():
        _write_details(folder / way, own)
    if details.cases or details.classified is not None or details.notes:
        folder.mkdir(parents=True, exist_ok=True)
    if details.notes:
        _write_json(folder / "notes.json", dict(details.notes))
    if details.cases:
        columns = ("number", "key", details.measure, "right", "said")
        rows = (case[: len(columns)] for case in worst_first(details.cases))
        _write_table(folder / "samples.tsv", columns, rows, "\t")
    if details.classified is not None:
        names = details.classified.classes
        counts = details.classified.confusion.tolist()
        rows_of = ((name, *row) for name, row in zip(names, counts, strict=True))
        _write_table(folder / "confusion.csv", ("right \\ said", *names), rows_of, ",")
        _write_table(folder / "per_class.tsv", PER_CLASS, per_class(details.classified), "\t")


PER_CLASS = ("class", "samples", "recall", "precision", "average_precision", "most_often_taken_for", "times")
"""The columns of ``per_class``."""


def per_class(classified: Classified) -> list[tuple[str, ...]]:
    """A row for each class, in their order; an empty cell where there is nothing to divide by."""
    table, rows = classified.confusion, []
    for place, (name, curve) in enumerate(zip(classified.classes, classified.curves, strict=True)):
        right = int(table[place, place])
        samples, said = int(table[place].sum()), int(table[:, place].sum())
        others = table[place].clone()
        others[place] = 0
        worst = int(others.argmax())
        mistaken = classified.classes[worst] if int(others[worst]) else ""
        shares = [f"{right / number:.4f}" if number else "" for number in (samples, said)]
        average = "" if curve is None else f"{curve.average:.4f}"
        rows.append((name, str(samples), *shares, average, mistaken, str(int(others[worst]))))
    return rows


def _write_json(path: Path, data: Any) -> None:
    path.write_text(json.dumps(data, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def _write_table(path: Path, columns: Sequence[str], rows: Iterable[Sequence[object]], separator: str) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, delimiter=separator, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows(rows)
