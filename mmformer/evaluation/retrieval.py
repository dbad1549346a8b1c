"""Retrieval: each sample's embedding in one modality looks for its own in another, among all of the split."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from mmformer.errors import InputError
from mmformer.evaluation.details import Case, Details
from mmformer.evaluation.metric import Metric, MetricSpec, Score, check_pair
from mmformer.evaluation.rows import Column
from mmformer.evaluation.words import decoded
from mmformer.models.model import Model
from mmformer.spec import Parts, require
from mmformer.tokenizers.text import TextEncoder
from mmformer.types import Batch, Outputs


@dataclass(frozen=True)
class RetrievalSpec(MetricSpec):
    """Recall at k, in percent, and the median rank, both ways.

    A candidate that scores as high as the right one counts as found before it, so that embeddings that do not tell
    samples apart score nothing.

    Attributes:
        pairs: encoders that are held against each other.
        recall: the ks.
        references: texts are all references of each sample, not its one text (five captions of each picture, in COCO
            and Flickr30k: Karpathy and Fei-Fei 2015, §4.2). What looks for texts has found its own when it has found
            any of them; each text looks for what it belongs to.
    """

    pairs: tuple[tuple[str, str], ...] = (("image", "text"),)
    recall: tuple[int, ...] = (1, 10)
    references: bool = False

    def __post_init__(self) -> None:
        require(len(self.pairs) >= 1, self, "pairs", "at least one pair of encoders")
        distinct = all(a != b for a, b in self.pairs) and len({frozenset(p) for p in self.pairs}) == len(self.pairs)
        require(distinct, self, "pairs", "different pairs of two different encoders")
        require(len(self.recall) >= 1 and min(self.recall) >= 1, self, "recall", "at least one k, each at least 1")

    def build(self) -> Retrieval:
        return Retrieval(self)

    def check(self, parts: Parts) -> None:
        for pair in self.pairs:
            check_pair("RetrievalSpec.pairs", pair, parts.embedding_widths)


class Retrieval(Metric):
    def __init__(self, spec: RetrievalSpec) -> None:
        super().__init__()
        self.spec = spec
        self.names = tuple(dict.fromkeys(name for pair in spec.pairs for name in pair))
        self.model: Model | None = None
        self.encoder: TextEncoder | None = None
        self.texts: set[str] = set()  # the encoders that read texts, where those are references
        self.pictures: set[str] = set()  # the encoders that read pictures

    def start(self, model: Model, encoders: Mapping[str, TextEncoder], device: torch.device) -> None:
        self.model, self.encoder = model, encoders.get("text")
        read = {name: spec.tokenizer.modality for name, spec in model.spec.encoders.items()}
        self.texts = {name for name in self.names if self.spec.references and read[name] == "text"}
        self.pictures = {name for name in self.names if read[name] == "image"}
        if self.spec.references and not self.texts:
            raise InputError(
                f"RetrievalSpec.references is true, but none of its encoders, {', '.join(self.names)}, reads texts."
            )
        both = next((pair for pair in self.spec.pairs if set(pair) <= self.texts), None)
        if both is not None:
            raise InputError(
                f"RetrievalSpec.references is true, but {' and '.join(both)} both read texts: set it to false."
            )

    def keep(self, outputs: Outputs, batch: Batch) -> Mapping[str, Column]:
        kept: dict[str, Column] = {}
        for name in self.names:
            if name in self.texts:
                kept[f"{name}/embedding"], kept["counts"] = self._embed_references(name, batch, outputs)
            elif name in outputs.embedding:
                kept[f"{name}/embedding"] = F.normalize(outputs.embedding[name].float(), dim=-1)
            else:
                raise InputError(
                    f"Retrieval holds '{name}' against others, but the data has nothing that this encoder reads: say "
                    f"in data how it is read."
                )
        if batch.references is not None and self.texts:
            kept["reference"] = [text for texts in batch.references for text in texts]
            kept["caption"] = [texts[0] for texts in batch.references]
        elif batch.text is not None and self.encoder is not None:
            kept["caption"] = decoded(batch.text, self.encoder.vocabulary)
        return kept

    def _embed_references(self, name: str, batch: Batch, outputs: Outputs) -> tuple[Tensor, list[int]]:
        """M E, of all references of a batch, and how many each of its samples has."""
        if batch.references is None or not all(batch.references):
            raise InputError(
                "RetrievalSpec.references is true, but the data has none, or none of some sample: set data.references."
            )
        assert self.model is not None and self.encoder is not None, "start() comes first"
        texts = self.encoder.encode([text for texts in batch.references for text in texts])
        device = next(iter(outputs.embedding.values())).device if outputs.embedding else "cpu"
        embedding = self.model(Batch((), {}, text=texts).to(device), decode=False, tokens=False).embedding[name]
        return F.normalize(embedding.float(), dim=-1), [len(texts) for texts in batch.references]

    def compute(self) -> dict[str, Score]:
        if not self.rows:
            raise InputError("Retrieval was asked for, but there was no sample.")
        scores: dict[str, Score] = {}
        for first, second in self._ways:
            (query, asks), (candidate, owner) = self._side(first), self._side(second)
            several = bool({first, second} & self.texts)
            rank = ranks(query, candidate, owners=(asks, owner) if several else None)
            owned = torch.bincount(owner)
            for k in self.spec.recall:
                recall = (rank <= k).double().mean().item() * 100
                scores[f"{first}_to_{second}/R@{k}"] = Score(recall, _chance(owned[asks], len(owner), k), "%")
            middle = None if bool((owned > 1).any()) else (len(owner) + 1) / 2
            scores[f"{first}_to_{second}/median_rank"] = Score(rank.double().quantile(0.5).item(), middle)
        return scores

    @property
    def _ways(self) -> list[tuple[str, str]]:
        """Every pair, both ways: what looks, and what it looks for."""
        return [way for pair in self.spec.pairs for way in (pair, pair[::-1])]

    def _side(self, name: str) -> tuple[Tensor, Tensor]:
        """An encoder's embeddings, and the number of the sample that each belongs to."""
        embeddings = self.rows.tensor(f"{name}/embedding")
        if name not in self.texts:
            return embeddings, torch.arange(len(embeddings))
        counts = torch.tensor(self.rows.values("counts"))
        return embeddings, torch.arange(len(counts)).repeat_interleave(counts)

    def details(self) -> Details:
        """What each query found, every pair both ways, and at which rank its own."""
        return Details(ways={f"{first}_to_{second}": self._found(first, second) for first, second in self._ways})

    def _found(self, first: str, second: str) -> Details:
        (query, asks), (candidate, owner) = self._side(first), self._side(second)
        rank = ranks(query, candidate, owners=(asks, owner)).tolist()
        best = torch.cat([(part @ candidate.T).argmax(1) for part in torch.split(query, 1024)])
        asked, said, keys = self._words(first), self._words(second), self.rows.values("key")
        cases = [
            Case(
                number,
                keys[number],
                -float(place),
                f"{asked[row]} (rank {place})",
                said[found],
                int(owner[found]) if second in self.pictures else None,
            )
            for row, (number, place, found) in enumerate(zip(asks.tolist(), rank, best.tolist(), strict=True))
        ]
        return Details(cases, "minus the rank of its own")

    def _words(self, name: str) -> list[str]:
        """What is said of each of an encoder's embeddings: its text, its sample's, or its sample's key."""
        if name in self.texts:
            return self.rows.values("reference")
        return self.rows.values("caption" if "caption" in self.rows else "key")


def ranks(query: Tensor, candidate: Tensor, chunk: int = 1024, owners: tuple[Tensor, Tensor] | None = None) -> Tensor:
    """The rank, from 1, of the right candidate for each query: how many wrong ones do not score lower, and one.

    A score that is not a number is not lower than any: a model whose embeddings are NaN finds nothing.

    Args:
        query: N E.
        candidate: M E.
        chunk: queries at once, which bounds the memory.
        owners: N and M, int64: the candidates that have a query's number are right for it, and the first of them that
            is found counts. Every query has one. None: candidate i is right for query i.

    Returns:
        N, int64.
    """
    parts = []
    for start in range(0, len(query), chunk):
        score = query[start : start + chunk] @ candidate.T  # c M
        if owners is None:
            right = score.diagonal(start)[:, None]  # c 1
            parts.append((~(score < right)).sum(1))  # what is not a number is not below: it counts as found before
            continue
        own = owners[0][start : start + chunk, None] == owners[1]  # c M
        right = score.masked_fill(~own, -torch.inf).amax(1, keepdim=True)
        parts.append((~(score < right) & ~own).sum(1) + 1)
    return torch.cat(parts)


def _chance(right: Tensor, number: int, k: int) -> float:
    """The percentage of queries that find one of so many right ones among k drawn of a number: hypergeometric."""
    shares = {}
    for own in set(right.tolist()):
        missed = math.comb(number - own, k) / math.comb(number, k) if k <= number else 0.0
        shares[own] = 1 - missed
    return 100 * sum(shares[own] for own in right.tolist()) / len(right)
