"""``mmformer.load``: a trained model that takes what people have (files, pictures, arrays, strings) and answers.

No Lightning, no network, no code from the bundle.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, TypedDict, Unpack, overload

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from mmformer.bundle import Transforms, load_bundle
from mmformer.data.picture import Picture, Pictures, listed, read_picture
from mmformer.errors import InputError, nearest
from mmformer.evaluation.classification import check_templates, embed_classes
from mmformer.models.head import ClassificationHeadSpec, ContrastiveHead
from mmformer.models.model import Model
from mmformer.tokenizers.text import TextEncoder, TextTokensSpec
from mmformer.types import Batch

Progress = Callable[[int], object]
"""Called with the number of items that were just done."""

One = str | os.PathLike[str] | bytes | Image.Image
"""One picture for certain; an array may be several."""

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
    top: int
    progress: Progress | None


class Predictor:
    """A bundle's model, ready for use.

    Attributes:
        model: ``model(batch)`` returns Outputs, for those who make their own batches.
        transforms: what is done to pictures, and the classes that the heads know.
    """

    def __init__(self, model: Model, transforms: Transforms, device: torch.device | str, batch_size: int) -> None:
        if batch_size < 1:
            raise InputError(f"batch_size must be at least 1, but is {batch_size}.")
        self.model, self.transforms, self.batch_size = model, transforms, batch_size
        self.device = torch.device(device)
        self._encoder: TextEncoder | None = None

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
    def classify(
        self, image: Picture | Pictures, labels: Sequence[str] | None = None, **options: Unpack[_ClassifyOptions]
    ) -> Probabilities | list[Probabilities]: ...
    def classify(
        self,
        image: Picture | Pictures,
        labels: Sequence[str] | None = None,
        *,
        templates: Sequence[str] = ("{}",),
        head: str | None = None,
        top: int | None = None,
        progress: Progress | None = None,
    ) -> Probabilities | list[Probabilities]:
        """How probable each label is.

        Args:
            image: one picture, or a list of them.
            labels: any names, zero-shot, each taken as it is written; None: the classes that a classification head
                was trained on.
            templates: prompts with {} for a label, whose embeddings are averaged.
            head: which classification head, where there are several; only without labels.
            top: how many labels are returned at most; None: all.
            progress: called as pictures are done.

        Returns:
            {label: probability}, the most probable first; a list of them for a list of pictures.

        Raises:
            InputError: no labels, a string in place of their list, a label twice, no head to do without them, an
                option that would have no effect, or a picture that cannot be read.
        """
        single, pictures = listed(image)
        if top is not None and top < 1:
            raise InputError(f"top must be at least 1, but is {top}.")
        if labels is None:
            if tuple(templates) != ("{}",):
                raise InputError("Prompt templates are for labels, but none are given: a head needs no prompts.")
            logits, names = self._head_logits(pictures, head, progress)
        else:
            if head is not None:
                raise InputError(f"head='{head}' chooses among its own classes: give either a head or labels.")
            names = _checked_labels(labels)
            check_templates(templates)
            encoder, text = self._text_encoder(), self._encoder_of("text")
            with torch.inference_mode():
                classes = [[name] for name in names]
                prompts = embed_classes(self.model, encoder, classes, templates, text, self.device, self.batch_size)
            logits = self._scale() * self._embed_images(pictures, progress) @ prompts.cpu().T
        answers = []
        for row in logits.softmax(-1):
            order = row.argsort(descending=True, stable=True)[:top].tolist()
            answers.append({names[i]: float(row[i]) for i in order})
        return answers[0] if single else answers

    def embed(
        self,
        *,
        text: str | Sequence[str] | None = None,
        image: Picture | Pictures | None = None,
        progress: Progress | None = None,
    ) -> Tensor:
        """Embeddings of unit length, float32 on the CPU: E for one value, N E for a list.

        Args:
            text: one string, or a list of them. Exactly one of text and image is given.
            image: one picture, or a list of them.
            progress: called as values are done.
        """
        if (text is None) == (image is None):
            raise InputError("embed takes either text=... or image=..., and exactly one of them.")
        if text is not None:
            single, texts = (True, [text]) if isinstance(text, str) else (False, list(text))
            embedded = self._embed_texts(texts, progress)
        else:
            assert image is not None
            single, pictures = listed(image)
            embedded = self._embed_images(pictures, progress)
        return embedded[0] if single else embedded

    def similarity(self, image: Picture | Pictures, text: str | Sequence[str]) -> Tensor:
        """Cosine similarities, float32: images × texts; an axis is left out where one value was given, not a list.

        Name both, ``similarity(image=..., text=...)``: that is how further modalities will be handed in.
        """
        words = self.embed(text=text)
        return self.embed(image=image) @ (words if words.ndim == 1 else words.T)

    @overload
    def retrieve(self, *, text: str, **options: Unpack[_RetrieveOptions]) -> list[Match]: ...  # type: ignore[overload-overlap]
    @overload
    def retrieve(self, *, image: One, **options: Unpack[_RetrieveOptions]) -> list[Match]: ...  # type: ignore[overload-overlap]
    @overload
    def retrieve(self, *, text: Sequence[str], **options: Unpack[_RetrieveOptions]) -> list[list[Match]]: ...
    @overload
    def retrieve(self, *, image: Sequence[Picture], **options: Unpack[_RetrieveOptions]) -> list[list[Match]]: ...
    @overload
    def retrieve(
        self,
        *,
        text: str | Sequence[str] | None = None,
        image: Picture | Pictures | None = None,
        **options: Unpack[_RetrieveOptions],
    ) -> list[Match] | list[list[Match]]: ...
    def retrieve(
        self,
        *,
        text: str | Sequence[str] | None = None,
        image: Picture | Pictures | None = None,
        texts: Sequence[str] | None = None,
        images: Pictures | None = None,
        top: int = 5,
        progress: Progress | None = None,
    ) -> list[Match] | list[list[Match]]:
        """The candidates that are most like a query.

        Args:
            text: the query, one or a list; or
            image: the query, one or a list.
            texts: the candidates; or
            images: the candidates.
            top: how many are returned at most.
            progress: called as candidates are done.

        Returns:
            Matches (candidate, score), the best first; a list of such lists for a list of queries.
        """
        if (texts is None) == (images is None):
            raise InputError("retrieve searches either texts=[...] or images=[...], and exactly one of them.")
        if (text is None) == (image is None):
            raise InputError("retrieve asks with either text=... or image=..., and exactly one of them.")
        if top < 1:
            raise InputError(f"top must be at least 1, but is {top}.")
        query = self.embed(text=text, image=image)
        found = self.embed(text=texts, image=images, progress=progress)
        found = found.view(-1, found.shape[-1])  # a candidate that was given alone, not in a list, is a list of one
        similarity = query.view(-1, query.shape[-1]) @ found.T
        best = similarity.argsort(dim=1, descending=True, stable=True)[:, :top]  # of equal ones the first is first
        matches = [
            [Match(i, float(scores[i])) for i in places]
            for scores, places in zip(similarity, best.tolist(), strict=True)
        ]
        return matches[0] if query.ndim == 1 else matches

    def _embed_texts(self, texts: Sequence[str], progress: Progress | None) -> Tensor:
        wrong = next((text for text in texts if not isinstance(text, str)), None)
        if wrong is not None:
            raise InputError(f"A text must be a string, but is {type(wrong).__name__}.")
        encoder, name = self._text_encoder(), self._encoder_of("text")
        # The longest first, so that a batch holds texts of about one length: less work on padding.
        order = sorted(range(len(texts)), key=lambda i: len(texts[i]), reverse=True)
        parts = []
        for first in range(0, len(order), self.batch_size):
            chosen = order[first : first + self.batch_size]
            batch = Batch((), {}, text=encoder.encode([texts[i] for i in chosen]))
            parts.append(self._embed(batch, name))
            if progress is not None:
                progress(len(chosen))
        if not parts:
            raise InputError("There are no texts to embed: the list is empty.")
        embedded = torch.cat(parts)
        return embedded[torch.tensor(order).argsort()]

    def _embed_images(self, pictures: Pictures, progress: Progress | None) -> Tensor:
        name = self._encoder_of("image")
        return torch.cat([self._embed(batch, name) for batch in self._image_batches(pictures, progress)])

    @torch.inference_mode()
    def _embed(self, batch: Batch, name: str) -> Tensor:
        outputs = self.model(batch.to(self.device))
        return F.normalize(outputs.embedding[name].float(), dim=-1).cpu()

    def _image_batches(self, pictures: Pictures, progress: Progress | None) -> Iterator[Batch]:
        transform = self.transforms.image
        if transform is None:
            raise InputError("This model reads no images.")
        if not pictures:
            raise InputError("There are no pictures: the list is empty.")
        for first in range(0, len(pictures), self.batch_size):
            chosen = range(first, min(first + self.batch_size, len(pictures)))
            images = np.stack([transform(read_picture(pictures[i], f"picture {i}")) for i in chosen])
            yield Batch((), {}, image=torch.from_numpy(images).permute(0, 3, 1, 2).contiguous())
            if progress is not None:
                progress(len(chosen))

    @torch.inference_mode()
    def _head_logits(self, pictures: Pictures, head: str | None, progress: Progress | None) -> tuple[Tensor, list[str]]:
        known = [
            name
            for name, spec in self.model.spec.heads.items()
            if isinstance(spec, ClassificationHeadSpec)
            and self.model.spec.encoders[spec.encoder].tokenizer.modality == "image"
            and name in self.transforms.classes
        ]
        if head is None and len(known) == 1:
            head = known[0]
        if head not in known:
            raise InputError(
                f"Without labels, a classification head is asked ({head or 'none was named'}), but the model's are "
                f"{', '.join(known)}: name one of them.{nearest(head or '', known)}"
                if known
                else "The model has no classification head of its own: say which labels to choose from."
            )
        batches = self._image_batches(pictures, progress)
        logits = [self.model(batch.to(self.device)).logits[head].float().cpu() for batch in batches]
        return torch.cat(logits), self.transforms.classes[head]

    def _scale(self) -> float:
        for head in self.model.heads.values():
            if isinstance(head, ContrastiveHead):
                return float(head.scale.detach())
        raise InputError("Zero-shot classification needs a contrastive head, but the model has none.")

    def _text_encoder(self) -> TextEncoder:
        if self._encoder is None:
            tokenizer = self.model.spec.encoders[self._encoder_of("text")].tokenizer
            assert isinstance(tokenizer, TextTokensSpec)
            self._encoder = tokenizer.encoder()
        return self._encoder

    def _encoder_of(self, modality: str) -> str:
        """The name of the first encoder that reads a modality."""
        for name, spec in self.model.spec.encoders.items():
            if spec.tokenizer.modality == modality:
                return name
        reads = ", ".join(spec.tokenizer.modality for spec in self.model.spec.encoders.values())
        raise InputError(f"This model reads no {modality}, only {reads}.")


def load(bundle: str | os.PathLike[str], device: torch.device | str = "cpu", batch_size: int = 64) -> Predictor:
    """Open a bundle.

    Args:
        bundle: the folder that a run's output ends with, such as ``runs/emoji_quickstart/bundle``.
        device: to compute on.
        batch_size: values that are computed at once.

    Raises:
        InputError: no such bundle, one that is damaged or newer than this mmformer, or no such device.
    """
    try:
        if torch.empty(0, device=device).is_meta:
            raise RuntimeError("it holds no values")
    except (RuntimeError, AssertionError, ImportError) as error:
        reason = str(error).splitlines()[0].partition(". ")[0].rstrip(".")
        raise InputError(f"The device '{device}' cannot be used here: {reason}.") from error
    model, transforms = load_bundle(Path(bundle), device)
    return Predictor(model, transforms, device, batch_size)


def _checked_labels(labels: Sequence[str]) -> list[str]:
    if isinstance(labels, str):
        split = [part.strip() for part in labels.split(",") if part.strip()]
        raise InputError(
            f"Labels are a list of strings, but are the string {labels!r}: write {split or ['cat', 'dog']}."
        )
    names = list(labels)
    if not names or not all(isinstance(name, str) and name.strip() for name in names):
        raise InputError("The list of labels is empty, or a label in it is: name at least one to choose from.")
    twice = [name for name, times in Counter(names).items() if times > 1]
    if twice:
        raise InputError(f"The label '{twice[0]}' is there more than once.")
    return names
