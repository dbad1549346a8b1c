"""``mmformer.load``: a trained model that takes what people have (files, pictures, arrays, strings) and answers.

No Lightning, no network, no code from the bundle.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, TypedDict, Unpack, overload

import torch
from torch import Tensor

from mmformer.bundle import load_bundle
from mmformer.data.picture import Picture, Pictures
from mmformer.data.waveform import Waveform, Waveforms
from mmformer.errors import InputError
from mmformer.evaluation.zero_shot import check_templates, embed_classes
from mmformer.inference import Progress
from mmformer.reader import checked_labels, given
from mmformer.writing import One, Writer

Probabilities = dict[str, float]
"""Label -> its probability, the most probable first."""


class Match(NamedTuple):
    """A candidate that retrieval found."""

    candidate: int  # its place in the list of candidates
    score: float  # cosine similarity


class _ClassifyOptions(TypedDict, total=False):
    templates: Sequence[str]
    head: str | None
    top: int | None
    progress: Progress | None


class _RetrieveOptions(TypedDict, total=False):
    texts: Sequence[str] | None
    images: Pictures | None
    audios: Waveforms | None
    top: int
    progress: Progress | None


class Predictor(Writer):
    """A bundle's model, ready for use."""

    # A string is a sequence of strings too, so the overloads below overlap; the first that fits is meant.
    @overload
    def classify(  # type: ignore[overload-overlap]
        self, image: One, labels: Sequence[str] | None = None, **options: Unpack[_ClassifyOptions]
    ) -> Probabilities: ...
    @overload
    def classify(
        self, image: Sequence[Picture], labels: Sequence[str] | None = None, **options: Unpack[_ClassifyOptions]
    ) -> list[Probabilities]: ...
    @overload
    def classify(  # type: ignore[overload-overlap]
        self, *, audio: Waveform, labels: Sequence[str] | None = None, **options: Unpack[_ClassifyOptions]
    ) -> Probabilities: ...
    @overload
    def classify(
        self, *, audio: Waveforms, labels: Sequence[str] | None = None, **options: Unpack[_ClassifyOptions]
    ) -> list[Probabilities]: ...
    @overload
    def classify(self, *, text: str, **options: Unpack[_ClassifyOptions]) -> Probabilities: ...  # type: ignore[overload-overlap]
    @overload
    def classify(self, *, text: Sequence[str], **options: Unpack[_ClassifyOptions]) -> list[Probabilities]: ...
    @overload
    def classify(
        self, image: Picture | Pictures, labels: Sequence[str] | None = None, **options: Unpack[_ClassifyOptions]
    ) -> Probabilities | list[Probabilities]: ...
    def classify(
        self,
        image: Picture | Pictures | None = None,
        labels: Sequence[str] | None = None,
        *,
        audio: Waveform | Waveforms | None = None,
        text: str | Sequence[str] | None = None,
        templates: Sequence[str] = ("{}",),
        head: str | None = None,
        top: int | None = None,
        progress: Progress | None = None,
    ) -> Probabilities | list[Probabilities]:
        """How probable each label is: among the labels, or, by a model of the sigmoid loss (SigLIP) or a head of whose
        classes several may be true, each by itself.

        Args:
            image: one picture, or a list of them; or
            audio: one sound, or a list of them; or
            text: one text, or a list of them, by a head that was trained on its classes.
            labels: any names, zero-shot, each taken as it is written; None: the classes that a classification head
                was trained on.
            templates: prompts with {} for a label, whose embeddings are averaged.
            head: which head, where there are several: without labels a classification head, with labels a contrastive
                head, whose temperature is used.
            top: how many labels are returned at most; None: all.
            progress: called as values are done.

        Returns:
            {label: probability}, the most probable first; a list of them for a list of values.

        Raises:
            InputError: no labels, a string in place of their list, a label twice, no head to do without them, an
                option that would have no effect, or a picture that cannot be read.
        """
        ((modality, value),) = given("classify", 1, image=image, audio=audio, text=text).items()
        single, values = self.reader.listed(modality, value)
        if top is not None and top < 1:
            raise InputError(f"top must be at least 1, but is {top}.")
        if labels is None:
            if tuple(templates) != ("{}",):
                raise InputError("Prompt templates are for labels, but none are given: a head needs no prompts.")
            asked, logits, names = self.head_logits(modality, values, head, progress)
            probabilities = logits.sigmoid() if asked in self.transforms.several else logits.softmax(-1)
        else:
            if modality == "text":
                raise InputError("Labels are compared with pictures or sounds: leave them out to classify a text.")
            if head in self.transforms.classes:
                raise InputError(f"head='{head}' chooses among its own classes: give either a head or labels.")
            names = checked_labels(labels)
            check_templates(templates)
            text = self.encoder_of("text")
            self.contrastive_head(head)
            self.check_comparable(modality, "text")
            with torch.inference_mode():
                classes, encoder = [[name] for name in names], self.reader.text_encoders["text"]
                prompts = embed_classes(self.model, encoder, classes, templates, text, self.device, self.batch_size)
            similarities = self.embed_values(modality, values, progress) @ prompts.cpu().T
            probabilities = self.label_probabilities(similarities, head)
        answers = []
        for row in probabilities:
            order = row.argsort(descending=True, stable=True)[:top].tolist()
            answers.append({names[i]: float(row[i]) for i in order})
        return answers[0] if single else answers

    def embed(
        self,
        *,
        text: str | Sequence[str] | None = None,
        image: Picture | Pictures | None = None,
        audio: Waveform | Waveforms | None = None,
        progress: Progress | None = None,
    ) -> Tensor:
        """Embeddings of unit length, float32 on the CPU: E for one value, N E for a list.

        Args:
            text: one string, or a list of them; or
            image: one picture, or a list of them; or
            audio: one sound, or a list of them: a path, bytes, or (samples, rate).
            progress: called as values are done.

        Raises:
            InputError: a value cannot be read, or a text is empty.
        """
        ((modality, value),) = given("embed", 1, text=text, image=image, audio=audio).items()
        return self.embed_given(modality, value, progress)

    def similarity(
        self,
        image: Picture | Pictures | None = None,
        text: str | Sequence[str] | None = None,
        *,
        audio: Waveform | Waveforms | None = None,
        progress: Progress | None = None,
    ) -> Tensor:
        """Cosine similarities between two modalities, float32; an axis is left out where one value was given.

        Rows and columns are in the order image, audio, text: images × texts, images × sounds, sounds × texts.

        Args:
            image: one picture, or a list of them.
            text: one string, or a list of them.
            audio: one sound, or a list of them.
            progress: called as values of both are done.
        """
        values = given("similarity", 2, image=image, audio=audio, text=text)
        self.check_comparable(*values)
        rows, columns = (self.embed_given(modality, value, progress) for modality, value in values.items())
        return rows @ (columns if columns.ndim == 1 else columns.T)

    @overload
    def retrieve(self, *, text: str, **options: Unpack[_RetrieveOptions]) -> list[Match]: ...  # type: ignore[overload-overlap]
    @overload
    def retrieve(self, *, image: One, **options: Unpack[_RetrieveOptions]) -> list[Match]: ...  # type: ignore[overload-overlap]
    @overload
    def retrieve(self, *, audio: Waveform, **options: Unpack[_RetrieveOptions]) -> list[Match]: ...  # type: ignore[overload-overlap]
    @overload
    def retrieve(self, *, text: Sequence[str], **options: Unpack[_RetrieveOptions]) -> list[list[Match]]: ...
    @overload
    def retrieve(self, *, image: Sequence[Picture], **options: Unpack[_RetrieveOptions]) -> list[list[Match]]: ...
    @overload
    def retrieve(self, *, audio: Waveforms, **options: Unpack[_RetrieveOptions]) -> list[list[Match]]: ...
    @overload
    def retrieve(
        self,
        *,
        text: str | Sequence[str] | None = None,
        image: Picture | Pictures | None = None,
        audio: Waveform | Waveforms | None = None,
        **options: Unpack[_RetrieveOptions],
    ) -> list[Match] | list[list[Match]]: ...
    def retrieve(
        self,
        *,
        text: str | Sequence[str] | None = None,
        image: Picture | Pictures | None = None,
        audio: Waveform | Waveforms | None = None,
        texts: Sequence[str] | None = None,
        images: Pictures | None = None,
        audios: Waveforms | None = None,
        top: int = 5,
        progress: Progress | None = None,
    ) -> list[Match] | list[list[Match]]:
        """The candidates that are most like a query.

        Args:
            text: the query, one or a list; or
            image: the query, one or a list; or
            audio: the query, one or a list.
            texts: the candidates; or
            images: the candidates; or
            audios: the candidates.
            top: how many are returned at most.
            progress: called as candidates are done.

        Returns:
            Matches (candidate, score), the best first; a list of such lists for a list of queries.
        """
        ((kind, candidates),) = given("retrieve", 1, texts=texts, images=images, audios=audios).items()
        ((modality, value),) = given("retrieve", 1, text=text, image=image, audio=audio).items()
        if top < 1:
            raise InputError(f"top must be at least 1, but is {top}.")
        self.check_comparable(modality, kind.removesuffix("s"))
        query = self.embed_given(modality, value)
        found = self.embed_given(kind.removesuffix("s"), candidates, progress)
        found = found.view(-1, found.shape[-1])  # a candidate that was given alone, not in a list, is a list of one
        similarity = query.view(-1, query.shape[-1]) @ found.T
        best = similarity.argsort(dim=1, descending=True, stable=True)[:, :top]  # of equal ones the first is first
        matches = [
            [Match(i, float(scores[i])) for i in places]
            for scores, places in zip(similarity, best.tolist(), strict=True)
        ]
        return matches[0] if query.ndim == 1 else matches


def load(
    bundle: str | os.PathLike[str],
    device: torch.device | str = "cpu",
    batch_size: int = 64,
    encoders: str | Sequence[str] = (),
) -> Predictor:
    """Open a bundle.

    Args:
        bundle: the folder that a run's output ends with, such as ``runs/emoji_quickstart/bundle``.
        device: to compute on.
        batch_size: values that are computed at once.
        encoders: the one to embed with, by name, of each modality that the model has several for.

    Raises:
        InputError: no such bundle, one that is damaged or newer than this mmformer, no such device, or no such encoder.
    """
    try:
        if torch.empty(0, device=device).is_meta:
            raise RuntimeError("it holds no values")
    except (RuntimeError, AssertionError, ImportError) as error:
        reason = str(error).splitlines()[0].partition(". ")[0].rstrip(".")
        raise InputError(f"The device '{device}' cannot be used here: {reason}.") from error
    model, transforms = load_bundle(Path(bundle), device)
    return Predictor(model, transforms, device, batch_size, encoders)
