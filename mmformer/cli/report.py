"""What a person is shown at the end of a run."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from mmformer.evaluation.metric import Score
    from mmformer.training.run import RunSpec


def print_scores(scores: Mapping[str, Score], measured_on: str, as_json: bool = False) -> None:
    """Scores as a table, or as one JSON object of name -> {value, chance, unit}."""
    if as_json:
        print(json.dumps({name: score._asdict() for name, score in scores.items()}))
        return
    table = Table(title=f"Scores on {measured_on}", title_justify="left")
    table.add_column("score")
    table.add_column("value", justify="right")
    table.add_column("chance", justify="right", style="dim")
    for name, score in scores.items():
        table.add_row(
            name.replace("/", "  ").replace("_to_", " → ").replace("_", " "),
            show(score.value, score),
            show(score.chance, score),
        )
    Console().print(table)


def print_end(run: RunSpec, output: Path, scores: Mapping[str, Score]) -> None:
    """The scores, the bundle's path, and what to type next."""
    if scores:
        print_scores(scores, f"split {run.data.test}, which training never saw")
    bundle = output / "bundle"
    print(f"\nThe model: {bundle}\n\nTry next:")
    read = {encoder.tokenizer.modality for encoder in run.model.encoders.values()}
    if "image" in read and "text" in read:
        print(f'  mmformer classify {bundle} PICTURE.png --labels "cat,dog,pizza"')
        print(f'  mmformer retrieve {bundle} --images FOLDER "a red heart"')
    elif "image" in read:
        print(f"  mmformer classify {bundle} PICTURE.png")
    print(f"  mmformer test --output {output}")


def show(value: float | None, score: Score) -> str:
    """A number for a person: percent with one digit, or two where it is small."""
    if value is None:
        return ""
    return f"{value:.{2 if value < 1 else 1}f} %" if score.unit == "%" else f"{value:g}"
