"""Samples as a model sees them: their embeddings, and likeness by the angle between them."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from mmformer.curation.candidates import Candidates, Place
from mmformer.curation.likeness import Likeness, Match
from mmformer.data.sound import Sound
from mmformer.errors import CutWarning
from mmformer.spec import require

if TYPE_CHECKING:
    from mmformer.predictor import Predictor

_BLOCK = 1024
"""Embeddings that are compared with as many others at once: 4 MB of cosines."""

Vector = NDArray[np.float32]
"""E, of unit length."""


@dataclass(frozen=True)
class Embedder:
    """The model to judge by.

    Attributes:
        bundle: its folder.
        encoders: which to embed with, where it has several of one modality.
        device: to compute on.
        batch_size: values that are computed at once.
    """

    bundle: str
    encoders: tuple[str, ...] = ()
    device: str = "cpu"
    batch_size: int = 64

    def embed(self, samples: Candidates, *places: Place) -> Iterator[tuple[Vector | None, ...]]:
        """The embeddings of every sample's values, None for what it lacks; of several texts their mean's direction.

        Raises:
            InputError: the bundle cannot be opened, or does not embed one of the kinds; they cannot be compared.
        """
        from mmformer.predictor import load

        model = load(self.bundle, self.device, self.batch_size, self.encoders)
        for place in places:
            model.check_comparable(places[0].kind, place.kind)
        rows = samples.values(*places)
        while window := list(islice(rows, 4 * self.batch_size)):  # so many are held decoded
            columns = (
                _embedded(model, place.kind, values)
                for place, values in zip(places, zip(*window, strict=True), strict=True)
            )
            yield from zip(*columns, strict=True)


def _embedded(model: Predictor, kind: str, values: Sequence[Any]) -> list[Vector | None]:
    """The embedding of each value that is there; texts in which there is nothing are not."""
    if kind == "text":
        values = [tuple(text for text in texts or () if text.strip()) or None for texts in values]
    there = [value for value in values if value is not None]
    if not there:
        return [None] * len(values)
    if kind == "text":
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", CutWarning)  # a caption is judged by what the model reads of it
            vectors = model.embed_values("text", [text for texts in there for text in texts], None).numpy()
        first = np.cumsum([0, *(len(texts) for texts in there[:-1])])
        vectors = np.add.reduceat(vectors, first, axis=0)
        vectors /= np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    else:
        handed = [(value.samples, value.rate) if isinstance(value, Sound) else value for value in there]
        vectors = model.embed_values(kind, handed, None).numpy()
    made = iter(vectors)
    return [None if value is None else next(made) for value in values]


@dataclass(frozen=True)
class EmbeddingLikeness(Likeness):
    """A model embeds both in nearly the same direction.

    All are compared with all that are left, in blocks: a matrix product a block, and no approximation.

    Attributes:
        embedder: the model.
        place: what is embedded.
        cosine: the least similarity.
    """

    reason: ClassVar[str] = "like embedding"

    embedder: Embedder
    place: Place
    cosine: float = 0.95

    def __post_init__(self) -> None:
        require(-1 < self.cosine <= 1, self, "cosine", "more than -1 and at most 1")

    def prints(self, samples: Candidates) -> list[Vector | None]:
        return [vector for (vector,) in self.embedder.embed(samples, self.place)]

    def within(self, prints: Sequence[Vector | None], order: Sequence[int]) -> dict[int, Match]:
        rows, vectors = _stacked(prints, order)
        kept: list[int] = []  # places in `rows`
        found: dict[int, Match] = {}
        for first in range(0, len(rows), _BLOCK):
            block = vectors[first : first + _BLOCK]
            best, nearest = _nearest(block, vectors[kept])
            other = np.array([0, *kept])[nearest + 1]
            among = block @ block.T
            for place in range(len(block)):
                if best[place] >= self.cosine:
                    found[rows[first + place]] = Match(rows[other[place]], f"cosine {best[place]:.4f}")
                else:
                    kept.append(first + place)
                    better = among[place] > best
                    best[better], other[better] = among[place, better], first + place
        return found

    def between(self, prints: Sequence[Vector | None], others: Sequence[Vector | None]) -> dict[int, Match]:
        rows, vectors = _stacked(prints, range(len(prints)))
        references, compared = _stacked(others, range(len(others)))
        best, nearest = _nearest(vectors, compared)
        found = zip(rows, best.tolist(), nearest.tolist(), strict=True)
        return {
            row: Match(references[at], f"cosine {cosine:.4f}") for row, cosine, at in found if cosine >= self.cosine
        }


def _stacked(prints: Sequence[Vector | None], order: Sequence[int]) -> tuple[list[int], NDArray[np.float32]]:
    """The rows that have an embedding, and their embeddings, N E, in an order."""
    there = [(row, made) for row in order if (made := prints[row]) is not None]
    vectors = np.stack([made for _, made in there]) if there else np.zeros((0, 1), np.float32)
    return [row for row, _ in there], vectors


def _nearest(vectors: NDArray[np.float32], others: NDArray[np.float32]) -> tuple[Vector, NDArray[np.int64]]:
    """For each vector, N E, its cosine with the nearest of the others, K E, and the place of that; -2 and -1: none."""
    best, nearest = np.full(len(vectors), -2, np.float32), np.full(len(vectors), -1, np.int64)
    for start in range(0, len(vectors), _BLOCK):
        rows = slice(start, start + _BLOCK)
        for first in range(0, len(others), _BLOCK):
            cosines = vectors[rows] @ others[first : first + _BLOCK].T
            places = cosines.argmax(axis=1)
            highest = np.take_along_axis(cosines, places[:, None], axis=1)[:, 0]
            nearest[rows] = np.where(highest > best[rows], first + places, nearest[rows])
            best[rows] = np.maximum(highest, best[rows])
    return best, nearest
