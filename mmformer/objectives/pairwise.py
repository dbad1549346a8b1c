"""What the contrastive objectives share: pairs of encoders, the head that owns the temperature, and equal captions."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from mmformer.errors import InputError, nearest
from mmformer.objectives.objective import Objective, ObjectiveSpec
from mmformer.spec import Parts, require
from mmformer.types import Batch, LossTerm, Outputs, Text


@dataclass(frozen=True)
class PairwiseSpec(ObjectiveSpec):
    """An objective over the cosine similarities of every two samples, one in each of two modalities.

    Attributes:
        pairs: encoders that are held against each other.
        head: the model's contrastive head, which owns the temperature (and the bias).
        same_caption_positive: samples whose captions are equal count as each other's positives, instead of being
            pushed apart. Captions are compared as the model reads them, after they are cut to the context length. In a
            batch without text, each sample is its own positive alone.
        chunk: rows of logits held at once.
    """

    pairs: tuple[tuple[str, str], ...] = (("image", "text"),)
    head: str = "contrastive"
    same_caption_positive: bool = True
    chunk: int = 1024

    def __post_init__(self) -> None:
        super().__post_init__()
        require(len(self.pairs) >= 1, self, "pairs", "at least one pair of encoders")
        distinct = all(a != b for a, b in self.pairs) and len({frozenset(p) for p in self.pairs}) == len(self.pairs)
        require(distinct, self, "pairs", "different pairs of two different encoders")
        require(self.chunk >= 1, self, "chunk", "at least 1")

    @abstractmethod
    def check_bias(self, has_bias: bool) -> None:
        """Refuse a head that has a bias where none is read, or has none where one is."""

    def check(self, parts: Parts) -> None:
        if not hasattr(parts.heads.get(self.head), "temperature"):
            raise InputError(
                f"A contrastive objective reads the head '{self.head}', but the model's heads are "
                f"{', '.join(parts.heads) or 'none'}: add a ContrastiveHeadSpec of that name."
                f"{nearest(self.head, parts.heads)}"
            )
        self.check_bias(getattr(parts.heads[self.head], "bias", None) is not None)
        for pair in self.pairs:
            for name in pair:
                if name not in parts.embedding_widths:
                    raise InputError(
                        f"{type(self).__name__}.pairs has '{name}', but the model's encoders are "
                        f"{', '.join(parts.embedding_widths)}.{nearest(name, parts.embedding_widths)}"
                    )
            first, second = (parts.embedding_widths[name] for name in pair)
            if first != second:
                raise InputError(
                    f"{type(self).__name__}.pairs holds '{pair[0]}' against '{pair[1]}', but their embeddings are "
                    f"{first} and {second} wide: give both encoders the same embedding."
                )


class Pairwise(Objective):
    couples_samples = True

    def __init__(self, spec: PairwiseSpec) -> None:
        self.spec = spec

    def items(self, batch: Batch) -> dict[str, Tensor]:
        number = torch.tensor(float(len(batch.keys)))
        return {f"{a}_{b}": number for a, b in self.spec.pairs}  # those of pairs that the batch lacks are not asked for

    def finds(self, outputs: Outputs) -> bool:
        return any({*pair} <= outputs.embedding.keys() for pair in self.spec.pairs)

    def losses(self, outputs: Outputs, batch: Batch) -> dict[str, LossTerm]:
        same = caption_identity(batch.text) if self.spec.same_caption_positive and batch.text is not None else None
        terms: dict[str, LossTerm] = {}
        for a, b in self.spec.pairs:
            if a not in outputs.embedding or b not in outputs.embedding:
                continue  # another source has it
            x, y = (F.normalize(outputs.embedding[name].float(), dim=-1) for name in (a, b))
            total = self.loss(x, y, outputs, same)
            terms[f"{a}_{b}"] = LossTerm(total, total.new_tensor(float(x.shape[0])))
        return terms

    @abstractmethod
    def loss(self, x: Tensor, y: Tensor, outputs: Outputs, same: Tensor | None) -> Tensor:
        """One pair's loss, summed over the samples.

        Args:
            x: N E, of unit length, float32.
            y: N E, of unit length, float32; row i belongs to row i of x.
            outputs: of them, the head's scale and bias.
            same: N, int64; rows of equal value are positives of each other. None: only row i of row i.
        """


def caption_identity(text: Text) -> Tensor:
    """A number for every caption, equal where the captions are equal: B, int64.

    Captions are their ids, as the model reads them: two that differ only past the context length are equal. The number
    is a hash, a sum of ids times fixed odd 64-bit factors that depend on the place, so that comparing N captions needs
    no sorting on the device. Captions that differ in one place never agree; others agree by chance, which is about
    2^-64 a pair if the factors are as good as random. Whoever knows them can make captions that do.
    """
    place = torch.arange(1, text.ids.shape[1] + 1, device=text.ids.device)
    factor = place * -7046029254386353131  # the golden ratio in 64 bits, as in SplitMix64's increment
    factor = (factor ^ (factor >> 30)) * -4658895280553007687
    factor = ((factor ^ (factor >> 27)) * -7723592293110705685) | 1
    return (text.ids * factor * text.real).sum(1)


def chunks(number: int, chunk: int) -> list[slice]:
    """Consecutive rows, so many at once."""
    return [slice(start, min(start + chunk, number)) for start in range(0, number, chunk)]
