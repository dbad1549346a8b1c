"""What training read that was not as it should be: samples that were skipped, and texts that were cut."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

import pytorch_lightning as pl

from mmformer import collectives
from mmformer.errors import InputError
from mmformer.training.processes import is_first
from mmformer.training.run import RunSpec
from mmformer.training.tables import add_rows, go_on_from, plain
from mmformer.types import Batch, Skipped

TABLE_NAME = "skipped.tsv"

_COLUMNS = ("update", "source", "key", "cause", "reason")


class Taken(NamedTuple):
    """What a run has read so far."""

    skipped: dict[str, int]  # cause -> samples, each counted once
    texts: dict[str, tuple[int, int]]  # text or target -> how many were read, and how many of them were cut


class Intake(pl.Callback):
    """Counts what batches say of how they were read: in the logs, in ``skipped.tsv``, and for the end of the run.

    Processes tell each other where something is logged or saved, and not at every update. Batches are counted once they
    were trained on, so that a resumed run counts as one that was never interrupted: the table has its own rows up to
    the update that is resumed from, and checkpoints have the rest.
    """

    def __init__(self, run: RunSpec, output: Path) -> None:
        self.run, self.path = run, output / TABLE_NAME
        self._known: set[tuple[str, str]] = set()
        self._causes: Counter[str] = Counter()
        self._texts: dict[str, tuple[int, int]] = {}
        # Of this process alone, since all were told last:
        self._new: list[tuple[int, Skipped]] = []  # with the update
        self._read: dict[str, tuple[int, int]] = {}

    @property
    def taken(self) -> Taken:
        """What all processes had read when they told each other last."""
        return Taken(dict(self._causes.most_common()), dict(self._texts))

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        # The same in all processes, and so is the budget.
        rows = go_on_from(trainer.global_step, self.path, _COLUMNS)
        self._known = {(row["source"], row["key"]) for row in rows}
        self._causes = Counter(row["cause"] for row in rows)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: object, batch: object, batch_idx: int
    ) -> None:
        assert isinstance(batch, Batch)
        step = trainer.global_step
        if batch.notes is not None:
            self._new += [(step, skipped) for skipped in batch.notes.skipped]
            self._read = _added(self._read, batch.notes.texts)
        if step % self.run.trainer.log_every_n_steps and step != trainer.max_steps:
            return
        self._tell()
        self._check_budget()
        values = {f"data/skipped/{cause.replace(' ', '_')}": float(count) for cause, count in self._causes.items()}
        values |= {f"data/cut/{name}": float(cut) for name, (_, cut) in self._texts.items() if cut}
        if values:
            for logger in trainer.loggers:
                logger.log_metrics(values, step)

    def _check_budget(self) -> None:
        """All processes know of the same samples, and so all of them end here."""
        number, most = sum(self._causes.values()), self.run.data.most_skipped
        if number > most:
            causes = ", ".join(f"{count:,} {cause}" for cause, count in self._causes.most_common())
            raise InputError(
                f"{number:,} different training samples could not be used ({causes}), but data.most_skipped is "
                f"{most:,}: {self.path} lists them. Mend the data, or raise data.most_skipped; then resume the run."
            )

    def state_dict(self) -> dict[str, Any]:
        """All processes write a checkpoint at once; the table has what the checkpoint is past."""
        self._tell()
        return {"texts": {name: list(counts) for name, counts in self._texts.items()}}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._texts = {name: (int(read), int(cut)) for name, (read, cut) in state_dict["texts"].items()}

    def _tell(self) -> None:
        """Add up what all processes have met since the last time; the first one writes it down."""
        told = collectives.gather_values((self._new, self._read))
        self._new, self._read = [], {}
        rows = []
        new = [one for others, _ in told for one in others]
        for update, skipped in sorted(new, key=lambda one: (one[0], one[1].position)):
            words = (skipped.source, skipped.key, skipped.cause, skipped.reason)
            source, key, cause, reason = map(plain, words)
            if (source, key) not in self._known:
                self._known.add((source, key))
                self._causes[cause] += 1
                rows.append((update, source, key, cause, reason))
        for _, read in told:
            self._texts = _added(self._texts, read)
        if rows and is_first():
            add_rows(self.path, _COLUMNS, rows)


def _added(one: dict[str, tuple[int, int]], other: dict[str, tuple[int, int]]) -> dict[str, tuple[int, int]]:
    """The sums of both."""
    pairs = ((name, one.get(name, (0, 0)), other.get(name, (0, 0))) for name in sorted({*one, *other}))
    return {name: (a[0] + b[0], a[1] + b[1]) for name, a, b in pairs}
