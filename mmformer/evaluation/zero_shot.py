"""Zero-shot classification: by the class whose prompts a sample is most like."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from mmformer.data.classes import read_classes, read_templates
from mmformer.errors import InputError
from mmformer.evaluation.classified import Classifier
from mmformer.evaluation.metric import MetricSpec, check_label, check_pair
from mmformer.evaluation.rows import Column
from mmformer.models.model import Model
from mmformer.spec import Parts, require
from mmformer.tokenizers.text import TextEncoder
from mmformer.types import Batch, Outputs


@dataclass(frozen=True)
class ZeroShotSpec(MetricSpec):
    """Classification by the class whose prompts' mean embedding is nearest (CLIP, Radford et al. 2021, §3.1.4).

    Attributes:
        label: which of the data's labels.
        classes: a standard set, such as ``imagenet``, or a file of class names, one a line, in the label's order;
            "cat | kitten" are two names of one class, whose embeddings are averaged.
        templates: prompts with {} for the name, and names of standard sets for theirs; the embeddings of all of them
            are averaged. None: those of the standard set that ``classes`` names, or else the name alone.
        image: the encoder of what is classified.
        text: the encoder of the prompts.
        head: the contrastive head whose temperature makes probabilities of similarities, for the calibration; None: the
            only one, and where there are several none is taken.
    """

    label: str
    classes: str
    templates: tuple[str, ...] | None = None
    image: str = "image"
    text: str = "text"
    head: str | None = None

    def __post_init__(self) -> None:
        check_templates(read_templates(self.templates, self.classes))
        require(self.image != self.text, self, "text", "another encoder than image")

    def build(self) -> ZeroShot:
        return ZeroShot(self)

    def check(self, parts: Parts) -> None:
        check_label("ZeroShotSpec", self.label, parts.labels)
        check_pair("ZeroShotSpec.image and text", (self.image, self.text), parts.embedding_widths)
        known = [name for name, head in parts.heads.items() if hasattr(head, "temperature")]
        good = self.head is None or self.head in known
        require(good, self, "head", f"one of the model's contrastive heads, {', '.join(known) or 'none'}")


class ZeroShot(Classifier):
    def __init__(self, spec: ZeroShotSpec) -> None:
        super().__init__(spec.label)
        self.spec = spec
        self.names: list[list[str]] = []
        self.prompts: Tensor | None = None
        self.model: Model | None = None

    def start(self, model: Model, encoders: Mapping[str, TextEncoder], device: torch.device) -> None:
        if "text" not in encoders:
            raise InputError("Zero-shot classification needs a text encoder, but the model has none.")
        self.names = [_alternatives(line, self.spec.classes) for line in read_classes(self.spec.classes)]
        self.model, self.encoder, self.device = model, encoders["text"], device

    def keep(self, outputs: Outputs, batch: Batch) -> Mapping[str, Column]:
        kept = {**self.labelled(batch), "embedding": F.normalize(outputs.embedding[self.spec.image].float(), dim=-1)}
        scales = outputs.scale if self.spec.head is None else {self.spec.head: outputs.scale[self.spec.head]}
        if len(scales) == 1:
            (scale,) = scales.values()
            kept["scale"] = scale.float().expand(len(batch.labels[self.label]))
        return kept

    def finish(self) -> None:
        assert self.model is not None, "start() comes first"
        templates = read_templates(self.spec.templates, self.spec.classes)
        made = embed_classes(self.model, self.encoder, self.names, templates, self.spec.text, self.device)
        self.prompts = made.cpu()

    def logits(self) -> Tensor:
        assert self.prompts is not None, "finish() comes first"
        similarity = self.rows.tensor("embedding") @ self.prompts.T
        self.calibrated = "scale" in self.rows
        return similarity * self.rows.tensor("scale")[:, None] if self.calibrated else similarity


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
    parts, cut, model = [], 0, model.for_many()
    for start in range(0, len(prompts), batch_size):
        encoded, own = encoder.encode_counting(prompts[start : start + batch_size])
        outputs = model(Batch((), {}, text=encoded).to(device), decode=False, tokens=False)
        parts.append(F.normalize(outputs.embedding[text].float(), dim=-1))
        cut += own
    encoder.warn_of_cut(len(prompts), cut)
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
