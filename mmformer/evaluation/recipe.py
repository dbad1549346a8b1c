"""A recipe: all that determines the numbers of an evaluation, besides the bundle that is measured."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from mmformer.bundle import Transforms
from mmformer.data.caption import FieldCaptionSpec
from mmformer.data.inputs import AudioInputSpec, ImageInputSpec, LabelInputSpec, TextInputSpec
from mmformer.data.opening import open_samples
from mmformer.data.sources import DataSpec
from mmformer.errors import InputError
from mmformer.evaluation.captions import CaptionsSpec
from mmformer.evaluation.classification import AccuracySpec
from mmformer.evaluation.metric import MetricSpec
from mmformer.evaluation.perplexity import PerplexitySpec
from mmformer.evaluation.retrieval import RetrievalSpec
from mmformer.evaluation.translation import TranslationSpec
from mmformer.evaluation.zero_shot import ZeroShotSpec
from mmformer.models.model import ModelSpec
from mmformer.spec import require

PICTURES = ("png", "jpg", "jpeg", "webp", "gif", "bmp")
SOUNDS = ("wav", "flac", "ogg", "mp3")


@dataclass(frozen=True)
class MeasuredSpec:
    """What a bundle is measured on. What pictures and sounds are made into, and the vocabulary, are the bundle's.

    Attributes:
        source: a folder of shards with their manifest, or whatever else ``data.source`` of a run may be.
        split: that is measured.
        training: the split that metrics learn from, where there are such.
        image: extension of the member that holds the picture; "": the one that the first sample has, if any.
        audio: extension of the member that holds the sound; "": the one that the first sample has, if any.
        text: member that holds a sample's text: ``txt``, or ``json:names.en`` with the path of a field; "": none.
        references: member and field of a list of all texts that are right for a sample, such as ``json:captions``; "":
            its text is the only one.
        labels: by name.
        batch_size: samples of one batch.
        workers: processes that read and decode; 0: the one that computes. The numbers do not depend on it.
    """

    source: str
    split: str = "test"
    training: str = "train"
    image: str = ""
    audio: str = ""
    text: str = ""
    references: str = ""
    labels: dict[str, LabelInputSpec] = field(default_factory=dict)
    batch_size: int = 64
    workers: int = 0

    def __post_init__(self) -> None:
        require(self.batch_size >= 1, self, "batch_size", "at least 1")
        require(self.workers >= 0, self, "workers", "at least 0")
        for name in ("text", "references"):
            good = getattr(self, name).partition(":")[0] in ("", "txt", "json")
            require(good, self, name, 'empty, or txt, or json:FIELD such as "json:names.en"')


@dataclass(frozen=True)
class RecipeSpec:
    """One evaluation of a bundle.

    Attributes:
        data: what it is measured on.
        metrics: what is measured, by name; none: all that the bundle and the data allow, as far as no choice is needed.
        dtype: what the model computes in; bfloat16 is autocast's, with parameters in float32.
    """

    data: MeasuredSpec
    metrics: dict[str, MetricSpec] = field(default_factory=dict)
    dtype: Literal["float32", "bfloat16"] = "float32"

    def __post_init__(self) -> None:
        wrong = next((name for name in (*self.metrics, *self.data.labels) if not name.isidentifier()), None)
        if wrong is not None:
            raise InputError(f"metrics or data.labels has the name {wrong!r}; letters, digits and _ alone make a name.")


def data_spec(data: MeasuredSpec, model: ModelSpec, transforms: Transforms) -> DataSpec:
    """How the data is read for a bundle: what the model reads and the samples have.

    Raises:
        InputError: there is nothing that the model reads, or the split is absent.
    """
    samples = open_samples(data.source, data.split)
    if not len(samples):
        raise InputError(f"{data.source}: the split '{data.split}' has no samples.")
    members = list(samples[0].members)
    image = data.image or ";".join(name for name in members if name.rpartition(".")[2] in PICTURES)
    audio = data.audio or next((name for name in members if name.rpartition(".")[2] in SOUNDS), "")
    text = None
    if data.text:
        member, _, path = data.text.partition(":")
        text = TextInputSpec(member, FieldCaptionSpec(path))
    read = model.modalities_of(model.encoders)
    held = {
        "image": ImageInputSpec(image, transforms.image) if image and "image" in read and transforms.image else None,
        "audio": AudioInputSpec((audio,), transforms.audio) if audio and "audio" in read and transforms.audio else None,
        "text": text if "text" in read or model.decoders else None,
    }
    if not any(held.values()):
        raise InputError(
            f"{data.source}: this model reads {' and '.join(sorted(read)) or 'text'}, but the first sample of "
            f"'{data.split}' has only {', '.join(members)}: name what is to be read with data.image, data.audio or "
            f"data.text."
        )
    return DataSpec(
        source=data.source,
        train=data.training,
        test=data.split,
        **held,  # type: ignore[arg-type]
        target=text if model.decoders else None,
        labels=data.labels,
        evaluation_batch_size=data.batch_size,
        workers=data.workers,
        cache_mib=0,  # every sample is read once
    )


def default_metrics(data: MeasuredSpec, read: DataSpec, model: ModelSpec) -> dict[str, MetricSpec]:
    """What can be measured without a choice: retrieval between all that is there, what decoders write, classification
    by heads that have a label's name, and zero-shot by every label's classes.

    Raises:
        InputError: nothing can.
    """
    metrics: dict[str, MetricSpec] = {}
    widths, texts = model.embedding_widths, bool(data.text or data.references)
    modality = {name: encoder.tokenizer.modality for name, encoder in model.encoders.items()}
    there = [n for n, kind in modality.items() if (texts if kind == "text" else getattr(read, kind) is not None)]
    pairs = tuple(
        (first, second)
        for place, first in enumerate(there)
        for second in there[place + 1 :]
        if widths[first] == widths[second] and modality[first] != modality[second]
    )
    if pairs:
        several = bool(data.references) and any("text" in (modality[a], modality[b]) for a, b in pairs)
        metrics["retrieval"] = RetrievalSpec(pairs, (1, 5, 10), several)
    for name, decoder in model.decoders.items():
        kinds = {modality[read] for read in decoder.reads}
        if "text" in kinds and not data.references:  # its text is what it reads, and not what would be right
            continue
        if decoder.reads and texts and set(decoder.reads) <= set(there):
            metrics[name] = TranslationSpec(name) if kinds == {"text"} else CaptionsSpec(name)
        elif not decoder.reads and data.text:
            metrics[name] = PerplexitySpec(name)
    readers = [name for name, kind in modality.items() if kind == "text"]
    for label, spec in data.labels.items():
        if hasattr(model.heads.get(label), "classes"):
            metrics[label] = AccuracySpec(label)
        for name in there:
            if len(readers) == 1 and modality[name] != "text" and widths[name] == widths[readers[0]]:
                metrics[f"zero_shot_{label}_{name}"] = ZeroShotSpec(label, spec.classes, image=name, text=readers[0])
    if not metrics:
        raise InputError(
            "There is nothing to measure: say what texts (data.text) or labels (data.labels) the samples have, and "
            "which texts are right (data.references) where a decoder reads a text; or name metrics."
        )
    return metrics
