"""Classification: by a head, or zero-shot, by the class whose prompts an image is most like."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from mmformer.data.dataset import read_classes
from mmformer.errors import InputError, nearest
from mmformer.evaluation.metric import Metric, MetricSpec, Score, check_pair
from mmformer.models.model import Model
from mmformer.spec import Parts, require
from mmformer.tokenizers.text import TextEncoder
from mmformer.types import Batch, Outputs


class Accuracy(Metric):
    """Counts right answers; samples without a label (-1) are left out, and logits with a NaN are no answer."""

    def __init__(self, label: str) -> None:
        self.label = label
        self.right = self.seen = self.classes = 0

    def count(self, logits: Tensor, batch: Batch) -> None:
        target = batch.labels[self.label]
        known = target >= 0
        if known.any() and int(target.max()) >= logits.shape[1]:
            raise InputError(
                f"The label '{self.label}' has class {int(target.max())}, but there are only {logits.shape[1]} classes "
                f"(0 to {logits.shape[1] - 1}) to choose from: the list of classes does not belong to the label."
            )
        answered = ~logits.isnan().any(1)  # argmax would take the NaN for the highest
        self.right += int(((logits.argmax(1) == target) & known & answered).sum())
        self.seen += int(known.sum())
        self.classes = logits.shape[1]

    def compute(self) -> dict[str, Score]:
        if not self.seen:
            raise InputError(f"Accuracy over the label '{self.label}' was asked for, but no sample has it.")
        return {"accuracy": Score(self.right / self.seen * 100, 100 / self.classes, "%")}


@dataclass(frozen=True)
class AccuracySpec(MetricSpec):
    """The share of samples, in percent, whose highest logit is their label's.

    Attributes:
        head: a classification head.
        label: which of the data's labels; None: the one that has the head's name.
    """

    head: str
    label: str | None = None

    def build(self) -> Accuracy:
        return HeadAccuracy(self.head, self.label or self.head)

    def check(self, parts: Parts) -> None:
        _require_label("AccuracySpec", self.label or self.head, parts.labels)
        if not hasattr(parts.heads.get(self.head), "classes"):
            known = [name for name, head in parts.heads.items() if hasattr(head, "classes")]
            raise InputError(
                f"AccuracySpec.head is '{self.head}', but the model's classification heads are "
                f"{', '.join(known) or 'none'}.{nearest(self.head, known)}"
            )


class HeadAccuracy(Accuracy):
    def __init__(self, head: str, label: str) -> None:
        super().__init__(label)
        self.head = head

    def update(self, outputs: Outputs, batch: Batch) -> None:
        self.count(outputs.logits[self.head], batch)


@dataclass(frozen=True)
class ZeroShotSpec(MetricSpec):
    """Accuracy, in percent, of the class whose prompts' mean embedding is nearest (CLIP, Radford et al. 2021, §3.1.4).

    Attributes:
        label: which of the data's labels.
        classes: a file of class names, one a line, in the label's order; "cat | kitten" are two names of one class,
            whose embeddings are averaged.
        templates: prompts with {} for the name; the embeddings of all of them are averaged.
        image: the encoder of what is classified.
        text: the encoder of the prompts.
    """

    label: str
    classes: str
    templates: tuple[str, ...] = ("{}",)
    image: str = "image"
    text: str = "text"

    def __post_init__(self) -> None:
        check_templates(self.templates)
        require(self.image != self.text, self, "text", "another encoder than image")

    def build(self) -> ZeroShot:
        return ZeroShot(self)

    def check(self, parts: Parts) -> None:
        _require_label("ZeroShotSpec", self.label, parts.labels)
        check_pair("ZeroShotSpec.image and text", (self.image, self.text), parts.embedding_widths)


class ZeroShot(Accuracy):
    def __init__(self, spec: ZeroShotSpec) -> None:
        super().__init__(spec.label)
        self.spec = spec
        self.prompts: Tensor | None = None

    def start(self, model: Model, encoders: Mapping[str, TextEncoder], device: torch.device) -> None:
        if "text" not in encoders:
            raise InputError("Zero-shot classification needs a text encoder, but the model has none.")
        names = [_alternatives(line, self.spec.classes) for line in read_classes(self.spec.classes)]
        self.prompts = embed_classes(model, encoders["text"], names, self.spec.templates, self.spec.text, device)

    def update(self, outputs: Outputs, batch: Batch) -> None:
        assert self.prompts is not None, "start() comes first"
        self.count(F.normalize(outputs.embedding[self.spec.image].float(), dim=-1) @ self.prompts.T, batch)


def embed_classes(
    model: Model,
    encoder: TextEncoder,
    classes: Sequence[Sequence[str]],
    templates: Sequence[str],
    text: str,
    device: torch.device,
    batch_size: int = 256,
) -> Tensor:
    """One embedding a class, of unit length: the mean over its prompts, each of unit length. C E, float32.

    Args:
        classes: the names of each class, one or several. Its prompts are all templates with all its names.
        templates: with {} for a name.
        text: the encoder of the prompts.
        batch_size: prompts at once.
    """
    prompts, owner = [], []
    for place, names in enumerate(classes):
        for name in names:
            prompts += [template.format(name) for template in templates]
            owner += [place] * len(templates)
    parts = []
    for start in range(0, len(prompts), batch_size):
        batch = Batch((), {}, text=encoder.encode(prompts[start : start + batch_size]))
        parts.append(F.normalize(model(batch.to(device)).embedding[text].float(), dim=-1))
    embeddings = torch.cat(parts)
    sums = embeddings.new_zeros(len(classes), embeddings.shape[1])
    return F.normalize(sums.index_add_(0, torch.tensor(owner, device=device), embeddings), dim=-1)


def check_templates(templates: Sequence[str]) -> None:
    """Refuse templates that do not hold exactly one {}.

    Raises:
        InputError: none at all, a string in place of a list, or one that has no place for the name.
    """
    if isinstance(templates, str):
        raise InputError(f"Prompt templates are a list of strings, but are the string {templates!r}: write it in [].")
    if not templates:
        raise InputError("There are no prompt templates; {} alone is the plain name.")
    for template in templates:
        try:
            good = template.format("\0").count("\0") == 1
        except (AttributeError, IndexError, KeyError, TypeError, ValueError):
            good = False
        if not good:
            raise InputError(f"A prompt template must hold {{}} once, for the class name, but is {template!r}.")


def _alternatives(line: str, path: str) -> list[str]:
    """The names on one line of a file of classes."""
    names = [name.strip() for name in line.split("|")]
    if not all(names):
        raise InputError(f"{path}: the class '{line}' has an empty name beside a '|': name it, or remove the '|'.")
    return names


def _require_label(spec: str, label: str, labels: Iterable[str]) -> None:
    known = list(labels)
    if label not in known:
        raise InputError(
            f"{spec} reads the label '{label}', but data.labels has {', '.join(known) or 'none'}."
            f"{nearest(label, known)}"
        )
