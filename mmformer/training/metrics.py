"""``metrics.csv``: a row for each step at which something was logged, a column for each thing.

Lightning's own CSV logger starts the file anew when a run resumes; this one keeps the rows up to the step that the run
resumes from, so that the file of an interrupted run is that of an uninterrupted one.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning_fabric.loggers.logger import rank_zero_experiment
from pytorch_lightning.loggers.logger import Logger
from pytorch_lightning.utilities import rank_zero_only

from mmformer.files import write_whole


class MetricsTable(Logger):
    """A Lightning logger over one CSV file."""

    def __init__(self, path: Path, first_step: int) -> None:
        """Args: path of the file; first_step: rows up to it are kept (0: none are)."""
        super().__init__()
        self.path = path
        self.rows: dict[int, dict[str, str]] = {}
        if first_step and path.exists():
            with path.open(encoding="utf-8", newline="") as file:
                for row in csv.DictReader(file):
                    step = int(row.pop("step"))
                    if step <= first_step:
                        self.rows[step] = {name: value for name, value in row.items() if value}

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
        row = self.rows.setdefault(step or 0, {})
        row.update({name: f"{value:.6g}" for name, value in metrics.items() if name != "epoch"})

    @rank_zero_only
    def save(self) -> None:
        names = sorted({name for row in self.rows.values() for name in row})
        lines = [",".join(["step", *names])]
        for step, row in sorted(self.rows.items()):
            lines.append(",".join([str(step), *(row.get(name, "") for name in names)]))
        write_whole(self.path, "\n".join(lines) + "\n")

    @rank_zero_only
    def finalize(self, status: str) -> None:
        self.save()
