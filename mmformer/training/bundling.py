"""From a run to a bundle: the trained parameters with what else is needed to use them, and a model card."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from mmformer import resources
from mmformer.adapters.file import AdaptersSpec, write_adapters
from mmformer.adapters.merge import merged
from mmformer.bundle import Transforms, read_spec, read_transforms, save_bundle
from mmformer.config import to_yaml
from mmformer.data.classes import read_classes
from mmformer.data.tar import file_sha256
from mmformer.errors import InputError
from mmformer.evaluation.metric import Score
from mmformer.generation.generation import GenerationSpec
from mmformer.interop.origin import files_of_changed, read_origin
from mmformer.models.decoder import DecoderSpec
from mmformer.models.encoder import EncoderSpec
from mmformer.models.head import ClassHeadSpec
from mmformer.models.model import Model, ModelSpec
from mmformer.objectives.classification import ClassificationSpec
from mmformer.tokenizers.tokenizer import TokenizerSpec
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
        *_classes(run),
        _generation(run),
    )
    save_bundle(
        folder, merged(model), transforms, _card(run, model, step, scores, measured_on), _origin(run, transforms)
    )


def _classes(run: RunSpec) -> tuple[dict[str, list[str]], tuple[str, ...]]:
    """The names of the classes of heads, and those of whose classes several may be true at once.

    The run says it of those that it trains, and the bundle that it began with of others that it has as they were.
    """
    learned, bundle = class_names(run), Path() if run.initial is None else Path(run.initial.path)
    if run.initial is None or not (bundle / "transforms.yaml").is_file():
        return learned, ()
    before, theirs = read_transforms(bundle), read_spec(bundle).heads
    begun = [name for name in theirs if any(fnmatchcase(f"heads.{name}.", each) for each in run.initial.parameters)]
    same = [name for name in begun if name not in learned and run.model.heads.get(name) == theirs[name]]
    kept = {name: names for name, names in before.classes.items() if name in same}
    return learned | kept, tuple(name for name in before.several if name in kept)


def other_answers(run: RunSpec) -> list[str]:
    """What to say of heads that told each class by itself in the bundle that a run begins with, and learn another."""
    bundle = Path() if run.initial is None else Path(run.initial.path)
    before = read_transforms(bundle).several if (bundle / "transforms.yaml").is_file() else ()
    told = "learned classes of which several may be true; by ClassificationSpec, one of them is, and shares add up to 1"
    return [f"  note: heads.{name} {told}" for name in class_names(run) if name in before]


def _generation(run: RunSpec) -> GenerationSpec | None:
    """How the bundle that a run began with writes, where the run's model still writes."""
    bundle = Path() if run.initial is None else Path(run.initial.path)
    return read_transforms(bundle).generation if run.model.decoders and (bundle / "transforms.yaml").is_file() else None


def _origin(run: RunSpec, transforms: Transforms) -> dict[str, bytes]:
    """What says where the model came from that a run began with, as long as it is true of what the run made of it.

    Files that came with that model tell how pictures, sounds and texts are prepared: all of it has to be as it was.
    """
    bundle = Path() if run.initial is None else Path(run.initial.path)
    origin = None if run.initial is None or not bundle.is_dir() else read_origin(bundle)
    if origin is None:
        return {}
    before, theirs = read_transforms(bundle), read_spec(bundle)
    known, own = _tokenizers(theirs), _tokenizers(run.model)
    alike = all(known.get(name) == tokenizer for name, tokenizer in own.items())
    if not alike or (before.image, before.audio) != (transforms.image, transforms.audio):
        return {}
    return files_of_changed(bundle)


def write_own_adapters(folder: Path, run: RunSpec, model: Model, trained: Collection[str]) -> None:
    """Write a run's adapters by themselves, where its model is the bundle's that it began with, and has nothing else.

    Args:
        trained: the parameters that the run trained.
    """
    bundle = Path() if run.initial is None else Path(run.initial.path)
    if run.adapters and (bundle / "model.yaml").is_file() and _same_model(read_spec(bundle), run.model):
        state = model.state_dict()
        spec = AdaptersSpec(file_sha256(bundle / "model.safetensors"), run.adapters)
        write_adapters(folder, spec, {name: state[name] for name in trained})


def _same_model(one: ModelSpec, other: ModelSpec) -> bool:
    """Whether two specs are alike, wherever their files are."""
    sides = [(spec.stacks, spec.heads, _parts(spec), _tokenizers(spec)) for spec in (one, other)]
    return sides[0] == sides[1]


def _parts(spec: ModelSpec) -> dict[str, dict[str, Any]]:
    """The fields of each encoder and decoder but its tokenizer."""
    parts: dict[str, EncoderSpec | DecoderSpec] = {**spec.encoders, **spec.decoders}
    return {
        name: {field.name: getattr(part, field.name) for field in dataclasses.fields(part) if field.name != "tokenizer"}
        for name, part in parts.items()
    }


def _tokenizers(spec: ModelSpec) -> dict[str, TokenizerSpec]:
    """The tokenizer of each part, its files named by their hashes."""
    parts: dict[str, EncoderSpec | DecoderSpec] = {**spec.encoders, **spec.decoders}
    return {name: _by_content(part.tokenizer) for name, part in parts.items()}


def _by_content(tokenizer: TokenizerSpec) -> TokenizerSpec:
    named = {field: getattr(tokenizer, field) for field in tokenizer.files}
    hashes = {field: file_sha256(resources.find(file)) for field, file in named.items() if file is not None}
    changes: dict[str, Any] = {**hashes}
    return dataclasses.replace(tokenizer, **changes)


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
