"""A head over a vocabulary: which piece each token of a text is, where some of them are hidden from the encoder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmformer.errors import InputError
from mmformer.models.head import Head, HeadOutput, HeadSpec, Shared, Source
from mmformer.models.transform import TransformSpec
from mmformer.tokenizers.text import TextTokens
from mmformer.types import Batch, Outputs


@dataclass(frozen=True)
class LanguageHeadSpec(HeadSpec):
    """Logits over the vocabulary for each token of a text encoder (BERT, Devlin et al. 2018, §3.1, its published code):
    a linear map, an activation and a norm, then products with the encoder's token embeddings, and a bias.

    Attributes:
        encoder: the text encoder whose tokens it reads.
        tied: the products are with that encoder's token embeddings; False: with a matrix of its own.
        transform: what stands before that.
    """

    writes: ClassVar[bool] = True

    encoder: str
    tied: bool = True
    transform: TransformSpec = field(default_factory=TransformSpec)

    @property
    def reads(self) -> tuple[str, ...]:
        return (self.encoder,)

    def check(self, where: str, sources: Mapping[str, Source], before: Mapping[str, HeadSpec]) -> None:
        if not sources[self.encoder].text:
            raise InputError(
                f"{where}.encoder is '{self.encoder}', whose tokens are not those of a text, one for each id: name a "
                f"text encoder without a resampler."
            )

    def build(self, sources: Mapping[str, Source], shared: Shared) -> LanguageHead:
        return LanguageHead(self, sources[self.encoder], shared.texts[self.encoder])


class LanguageHead(Head):
    undecayed = ("bias",)

    def __init__(self, spec: LanguageHeadSpec, source: Source, owner: TextTokens) -> None:
        super().__init__()
        self.spec, self.special, self.size = spec, source.special, owner.size
        self.transform = spec.transform.build(source.tokens)
        self.output = None if spec.tied else nn.Linear(source.tokens, len(owner.table), bias=False)
        self.bias = nn.Parameter(torch.empty(owner.size))  # V
        self._owner = (owner,)  # in a tuple: its table is registered there, and only there
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.zeros_(self.bias)

    def forward(self, outputs: Outputs, batch: Batch) -> HeadOutput | None:
        if self.spec.encoder not in outputs.tokens:
            return None
        return HeadOutput(logits=self.logits(outputs.tokens[self.spec.encoder].x[:, self.special :]))

    def logits(self, x: Tensor) -> Tensor:
        """B L D -> B L V."""
        weight = self._owner[0].table if self.output is None else self.output.weight
        return F.linear(self.transform(x), weight[: self.size], self.bias)
