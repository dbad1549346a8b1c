"""``metrics.csv``: a row for each step at which something was logged, a column for each thing.

Lightning's own CSV logger starts the file anew when a run resumes; this one keeps the rows up to the step that the run
resumes from, so that the file of an interrupted run is that of an uninterrupted one.
"""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning_fabric.loggers.logger import rank_zero_experiment
from pytorch_lightning.loggers.logger import Logger
from pytorch_lightning.utilities import rank_zero_only

from mmformer.files import write_whole
from mmformer.training.tables import rows_until


class MetricsTable(Logger):
    """A Lightning logger over one CSV file, which grows by a line: it is written anew only for a new column."""

    def __init__(self, path: Path, first_step: int) -> None:
        """Nothing is written yet.

        Args:
            path: of the file.
            first_step: rows up to it are kept; 0: none are.

        Raises:
            InputError: what is in the file, and is to be kept, is no such table.
        """
        super().__init__()
        self.path = path
        self.columns: list[str] = []
        self.rows: list[dict[str, str]] = []  # until the first row is written
        self.last: dict[str, str] = {}
        self.offset = 0  # of the last row in the file
        if first_step:
            self.rows = rows_until(first_step, path, number="step", delimiter=",")
            self.last = self.rows[-1] if self.rows else {}

    @property
    def name(self) -> str:
        return "metrics"

    @property
    def version(self) -> str:
        return ""

    @property
    @rank_zero_experiment
    def experiment(self) -> MetricsTable:
        return self

    @rank_zero_only
    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """Nothing: ``config.yaml`` has them."""

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        values = {"step": str(step or 0)}
        values |= {name: f"{value:.9g}" for name, value in metrics.items() if name != "epoch"}
        again = self.last.get("step") == values["step"]
        self.last = {**self.last, **values} if again else values
        if self.rows or not set(self.last) <= set(self.columns):
            self._rewrite(again)
            return
        with self.path.open("r+", encoding="utf-8", newline="") as file:
            self.offset = self.offset if again else file.seek(0, os.SEEK_END)
            file.seek(self.offset)
            file.truncate()
            csv.DictWriter(file, self.columns, lineterminator="\n").writerow(self.last)

    def _rewrite(self, again: bool) -> None:
        """The whole file, with the columns of all its rows; the last is written again or added."""
        if not self.rows and self.columns:
            with self.path.open(encoding="utf-8", newline="") as file:
                self.rows = list(csv.DictReader(file))
        rows = [*(self.rows[:-1] if again and self.rows else self.rows), self.last]
        names = {name for row in rows for name, value in row.items() if value}
        self.columns, self.rows = ["step", *sorted(names - {"step"})], []
        text = io.StringIO()
        table = csv.DictWriter(text, self.columns, lineterminator="\n", extrasaction="ignore")
        table.writeheader()
        table.writerows(rows[:-1])
        self.offset = len(text.getvalue().encode())
        table.writerow(rows[-1])
        write_whole(self.path, text.getvalue())
