"""From a run to a bundle: the trained parameters with what else is needed to use them, and a model card."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from mmformer.adapters.merge import merged
from mmformer.bundle import Transforms, save_bundle
from mmformer.config import to_yaml
from mmformer.data.classes import read_classes
from mmformer.errors import InputError
from mmformer.evaluation.metric import Score
from mmformer.models.head import ClassHeadSpec
from mmformer.models.model import Model
from mmformer.objectives.classification import ClassificationSpec
from mmformer.training.run import RunSpec


def write_bundle(
    folder: Path, run: RunSpec, model: Model, step: int, scores: Mapping[str, Score], measured_on: str
) -> None:
    """Write a run's model as it is now, with its adapters merged into its weights.

    Args:
        step: updates that it was trained for.
        scores: for the model card.
        measured_on: what they were measured on.
    """
    image, audio = (run.data.shared(name) for name in ("image", "audio"))
    transforms = Transforms(
        None if image is None else image.transform,
        None if audio is None else audio.transform,
        class_names(run),
    )
    save_bundle(folder, merged(model), transforms, _card(run, model, step, scores, measured_on))


def class_names(run: RunSpec) -> dict[str, list[str]]:
    """The names of the classes that each classification head learns.

    Raises:
        InputError: the head has another number of classes than the file has names.
    """
    classes = {}
    for objective in run.objectives.values():
        if isinstance(objective, ClassificationSpec):
            file = run.data.all_labels[objective.label or objective.head].classes
            names, head = read_classes(file), run.model.heads[objective.head]
            assert isinstance(head, ClassHeadSpec), "the objective refuses others"
            if len(names) != head.classes:
                raise InputError(
                    f"model.heads.{objective.head} has {head.classes} classes, but {file} names {len(names)}: set its "
                    f"classes to {len(names)}."
                )
            classes[objective.head] = names
    return classes


def _card(run: RunSpec, model: Model, step: int, scores: Mapping[str, Score], measured_on: str) -> str:
    parameters = sum(parameter.numel() for parameter in model.parameters())
    averaged = "" if run.ema is None and not run.optimizer.averages else " Its weights are averages over the updates."
    sources = ", ".join(f"`{source.source}` (split {source.train})" for source in run.data.named.values())
    lines = [
        "# Model card",
        "",
        f"An mmformer model of {parameters:,} parameters, trained for {step:,} updates of {run.data.batch_size} "
        f"samples of {sources}, with seed {run.seed}.{averaged}",
        "",
        *_scores(scores, measured_on),
        "## Use",
        "",
        "```python",
        "import mmformer",
        "",
        "model = mmformer.load('path/to/this/folder')",
        "```",
        "",
        "## The run",
        "",
        "```yaml",
        to_yaml(run).rstrip(),
        "```",
        "",
    ]
    return "\n".join(lines)


def _scores(scores: Mapping[str, Score], measured_on: str) -> list[str]:
    if not scores:
        return []
    rows = [f"| {name} | {s.text} | {s.shown(s.chance)} |" for name, s in scores.items()]
    return [f"## Scores on {measured_on}", "", "| score | value | chance |", "|---|---|---|", *rows, ""]
