"""Measure a bundle after a recipe: in one process, or in several that read the batches by turns."""

from __future__ import annotations

import dataclasses
import hashlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import torch

from mmformer.bundle import load_bundle
from mmformer.config import to_data
from mmformer.data.classes import read_classes, read_templates
from mmformer.data.manifest import MANIFEST_NAME
from mmformer.data.sources import DataSpec
from mmformer.evaluation.details import Details
from mmformer.evaluation.metric import Metric, MetricSpec, Score, evaluating, observe, scores_of, start
from mmformer.evaluation.reading import batches, open_split
from mmformer.evaluation.recipe import RecipeSpec, data_spec, default_metrics
from mmformer.evaluation.zero_shot import ZeroShotSpec
from mmformer.spec import Parts
from mmformer.types import Batch

Progress = Callable[[int], object]
"""Called with the number of samples that are done."""


class Measured(NamedTuple):
    """What an evaluation found."""

    scores: dict[str, Score]  # by "metric/score"
    details: dict[str, Details]  # by metric
    spec: RecipeSpec  # with the metrics that were chosen, where it named none
    recipe: dict[str, Any]  # all that the numbers depend on, as plain data
    data: DataSpec  # how the samples were read


class Measurement:
    """An opened bundle with a recipe's metrics, ready to be measured; all that can be refused is, before the work.

    Args:
        bundle: its folder.
        recipe: what is measured, and on what.
        device: that the model computes on.

    Raises:
        InputError: the bundle, the data and the metrics do not fit together.
    """

    def __init__(self, bundle: str | Path, recipe: RecipeSpec, device: str = "cpu") -> None:
        self.bundle, self.recipe, self.device = Path(bundle), recipe, device
        self.model, self.transforms = load_bundle(bundle, device)
        spec = self.model.spec
        self.data = data_spec(recipe.data, spec, self.transforms)
        self.specs: Mapping[str, MetricSpec] = recipe.metrics or default_metrics(recipe.data, self.data, spec)
        parts = Parts(spec.embedding_widths, spec.heads, spec.decoders, tuple(recipe.data.labels))
        for each in self.specs.values():
            each.check(parts)
        self.metrics: dict[str, Metric] = {name: each.build() for name, each in self.specs.items()}
        self.encoders = spec.text_encoders()
        self.read, self.cut = Counter[str](), Counter[str]()  # texts: how many there were, and how many were cut
        start(self.metrics, self.model, self.encoders, device)

    @property
    def dtype(self) -> torch.dtype:
        return torch.bfloat16 if self.recipe.dtype == "bfloat16" else torch.float32

    @property
    def learning(self) -> dict[str, Metric]:
        """The metrics that learn from the training split."""
        return {name: metric for name, metric in self.metrics.items() if self.specs[name].learns}

    def __len__(self) -> int:
        """How many samples are gone through, those of the training split among them."""
        splits = [self.recipe.data.split] + [self.recipe.data.training] * bool(self.learning)
        return sum(len(open_split(self.data, split)) for split in splits)

    def run(self, processes: int = 1, progress: Progress | None = None) -> Measured:
        """Take all metrics.

        Args:
            processes: that share the batches; on GPUs each has one. The scores are those of one process.
            progress: told of samples as they are done.

        Raises:
            InputError: a sample cannot be read, or a metric lacks what it needs.

        Warns:
            CutWarning: texts were longer than the model reads, and are measured as far as it does.
        """
        if processes > 1:
            from mmformer.evaluation.processes import see_in_processes

            see_in_processes(self, processes, progress)
        else:
            self.see(progress=progress)
        for name, cut in self.cut.items():
            self.encoders[name].warn_of_cut(self.read[name], cut)
        with evaluating(self.model, self.dtype):
            for metric in self.metrics.values():
                metric.finish()
            scores = scores_of(self.metrics, self.specs)
            details = {name: self._named(metric.details()) for name, metric in self.metrics.items()}
        spec = dataclasses.replace(self.recipe, metrics=dict(self.specs))
        return Measured(scores, details, spec, self.described(), self.data)

    def see(self, part: int = 0, parts: int = 1, progress: Progress | None = None) -> None:
        """Show the metrics the batches, or every ``parts``'th of them from the number ``part`` on."""

        def read(split: str) -> Iterator[Batch]:
            for batch in batches(self.data, split, self.encoders, self.recipe.data.references, part, parts):
                yield batch
                assert batch.notes is not None, "loaders say how they read"
                for name, (number, cut) in batch.notes.texts.items():
                    self.read[name] += number
                    self.cut[name] += cut
                if progress is not None:
                    progress(len(batch.keys))

        with evaluating(self.model, self.dtype):
            if self.learning:
                observe(self.model, read(self.recipe.data.training), self.learning, self.device, learn=True)
            observe(self.model, read(self.recipe.data.split), self.metrics, self.device)

    def described(self) -> dict[str, Any]:
        """All that the scores depend on, as plain data: to take them again, and to know whether others compare."""
        data = self.recipe.data
        samples, manifest = open_split(self.data, data.split), Path(data.source) / MANIFEST_NAME
        zero_shot = {name: spec for name, spec in self.specs.items() if isinstance(spec, ZeroShotSpec)}
        return {
            "bundle": {"path": str(self.bundle), "sha256": folder_sha256(self.bundle)},
            "data": to_data(data)
            | {
                "image": "" if self.data.image is None else self.data.image.member,
                "audio": "" if self.data.audio is None else self.data.audio.members[0],
            }
            | {"samples": len(samples), "keys_sha256": _sha256("\n".join(samples.reader.keys).encode())}
            | ({"manifest_sha256": _sha256(manifest.read_bytes())} if manifest.is_file() else {}),
            "transforms": {"image": to_data(self.transforms.image), "audio": to_data(self.transforms.audio)},
            "metrics": {name: to_data(spec) for name, spec in self.specs.items()},
            "classes": {name: read_classes(spec.classes) for name, spec in zero_shot.items()},
            "templates": {name: list(read_templates(spec.templates, spec.classes)) for name, spec in zero_shot.items()},
            "dtype": self.recipe.dtype,
            "device": self.device,
            "versions": {name: version(name) for name in ("mmformer", "torch")},
        }

    def _named(self, details: Details) -> Details:
        """Details with the names of the classes in place of their numbers."""
        found = details.classified
        if found is None:
            return details
        names = read_classes(self.data.labels[found.label].classes)[: len(found.classes)]
        numbers = {str(number): name for number, name in enumerate(names)}
        cases = [
            case._replace(right=numbers.get(case.right, case.right), said=numbers.get(case.said, case.said))
            for case in details.cases
        ]
        classes = tuple(numbers.get(number, number) for number in found.classes)
        return details._replace(cases=cases, classified=found._replace(classes=classes))


def folder_sha256(folder: Path) -> str:
    """Of the names and the bytes of all files in a folder."""
    digest = hashlib.sha256()
    for path in sorted(path for path in folder.iterdir() if path.is_file()):
        digest.update(f"{path.name}\n{_sha256(path.read_bytes())}\n".encode())
    return digest.hexdigest()


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
