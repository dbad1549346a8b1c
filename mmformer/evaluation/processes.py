"""Several processes that share the batches of an evaluation, and put their rows together."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import torch
from torch.multiprocessing import get_context
from torch.multiprocessing.spawn import ProcessExitedException, spawn

from mmformer.errors import InputError
from mmformer.evaluation.measure import Measurement, Progress
from mmformer.evaluation.recipe import RecipeSpec
from mmformer.evaluation.rows import Rows, interleave


def see_in_processes(measurement: Measurement, processes: int, progress: Progress | None = None) -> None:
    """Fill a measurement's metrics with the rows that one process would have, by several that share the batches.

    The batches are those of one process, and the rows come back in their order: the scores are the same, bit for bit
    where what is computed of a batch does not depend on the number of threads.

    Args:
        progress: told of samples as they are done, by whichever process.

    Raises:
        InputError: of whichever process failed first, or there are not as many GPUs.
    """
    device, there = measurement.device, torch.cuda.device_count()
    if device.startswith("cuda:"):
        raise InputError(f"{processes} processes cannot share {device}: name cuda, and each takes a GPU of its own.")
    if device == "cuda" and there < processes:
        raise InputError(f"{processes} processes need a GPU each, but there are {there}: ask for fewer.")
    with tempfile.TemporaryDirectory(prefix="mmformer-evaluation-") as name:
        folder, threads = Path(name), max(1, torch.get_num_threads() // processes)
        seen = get_context("spawn").Value("q", 0)
        arguments = (processes, threads, measurement.bundle, measurement.recipe, device, folder, seen)
        try:
            context = spawn(_see_part, arguments, processes, join=False)  # type: ignore[no-untyped-call]
            told, ended = 0, False
            while not ended:
                ended, now = context.join(timeout=0.2), seen.value
                if progress is not None and now > told:
                    progress(now - told)
                    told = now
        except ProcessExitedException as error:
            reasons = sorted(folder.glob("*.error"))
            if reasons:
                raise InputError(reasons[0].read_text(encoding="utf-8")) from error
            raise
        found = [torch.load(folder / f"{part}.pt", weights_only=True) for part in range(processes)]
    for each, metric in measurement.metrics.items():
        metric.rows = interleave([Rows(own["rows"][each]["rows"]) for own in found])
        metric.learned = interleave([Rows(own["rows"][each]["learned"]) for own in found])
    for own in found:
        measurement.read.update(own["texts"]["read"])
        measurement.cut.update(own["texts"]["cut"])


def _see_part(
    part: int, parts: int, threads: int, bundle: Path, recipe: RecipeSpec, device: str, folder: Path, seen: Any
) -> None:
    """One process: its batches' rows, in a file of its own; ``seen`` counts the samples of all processes."""
    torch.set_num_threads(threads)

    def add(number: int) -> None:
        with seen.get_lock():
            seen.value += number

    try:
        measurement = Measurement(bundle, recipe, f"cuda:{part}" if device == "cuda" else device)
        measurement.see(part, parts, add)
    except InputError as error:
        (folder / f"{part}.error").write_text(str(error), encoding="utf-8")
        raise SystemExit(2) from None
    rows = {
        name: {"rows": metric.rows.parts, "learned": metric.learned.parts}
        for name, metric in measurement.metrics.items()
    }
    texts = {"read": dict(measurement.read), "cut": dict(measurement.cut)}
    torch.save({"rows": rows, "texts": texts}, folder / f"{part}.pt")
