"""Text to tokens: a vocabulary on the host, an embedding on the device."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmformer.errors import CutWarning
from mmformer.spec import require
from mmformer.tokenizers.tokenizer import TokenizerSpec
from mmformer.tokenizers.vocabulary import Vocabulary
from mmformer.types import AXES, Text, Tokens


@dataclass(frozen=True)
class TextTokensSpec(TokenizerSpec):
    """A SentencePiece vocabulary and one learned row for each of its pieces.

    Attributes:
        vocabulary: the vocabulary's file; a bundle carries it.
        context_length: tokens at most, with those that ``begin`` and ``end`` add; longer texts are cut.
        begin: put the vocabulary's bos before a text.
        end: put its eos after a text; a text that is cut keeps it.
        prefix_space: put a space before a text, so that its first word has the pieces that it has elsewhere.
    """

    cost: ClassVar[str] = "L·D"
    source: ClassVar[str] = "SentencePiece, Kudo and Richardson 2018"

    modality: ClassVar[str] = "text"
    files: ClassVar[tuple[str, ...]] = ("vocabulary",)

    vocabulary: str
    context_length: int = 64
    begin: bool = False
    end: bool = True
    prefix_space: bool = True

    def __post_init__(self) -> None:
        least = 1 + self.begin + self.end
        require(self.context_length >= least, self, "context_length", f"at least {least}")

    @property
    def places(self) -> tuple[int | None, ...]:
        return (self.context_length, *(1,) * (AXES - 1))

    def build(self, width: int) -> TextTokens:
        return TextTokens(self, width)

    def encoder(self) -> TextEncoder:
        """The host's half: strings to ids."""
        return TextEncoder(self, Vocabulary.load(self.vocabulary))


class TextEncoder:
    """Strings to ids, padded to the longest of a batch in multiples of 8."""

    def __init__(self, spec: TextTokensSpec, vocabulary: Vocabulary) -> None:
        self.spec = spec
        self.vocabulary = vocabulary

    def encode(self, texts: Sequence[str]) -> Text:
        """Ids of some texts; each is cut to the context length, and never empty (an empty text is one eos).

        Returns:
            Text of ids B L and lengths B, L a multiple of 8 or the context length.
        """
        return self.encode_counting(texts)[0]

    def encode_counting(self, texts: Sequence[str]) -> tuple[Text, int]:
        """What ``encode`` makes of some texts, and how many of them were longer than the context and were cut."""
        before = [self.vocabulary.bos] if self.spec.begin else []
        after = [self.vocabulary.eos] if self.spec.end else []
        spaced = [text and " " + text for text in texts] if self.spec.prefix_space else list(texts)
        room = self.spec.context_length - len(before) - len(after)
        encoded = self.vocabulary.encode_many(spaced)
        rows = [before + ids[:room] + after for ids in encoded]
        rows = [row or [self.vocabulary.eos] for row in rows]
        lengths = [len(row) for row in rows]
        length = min(-(-max(lengths, default=1) // 8) * 8, self.spec.context_length)
        ids = torch.full((len(rows), length), self.vocabulary.pad, dtype=torch.int64)  # B L
        for row, target in zip(rows, ids, strict=True):
            target[: len(row)] = torch.tensor(row)
        return Text(ids, torch.tensor(lengths, dtype=torch.int64)), sum(len(row) > room for row in encoded)

    def warn_of_cut(self, number: int, cut: int) -> None:
        """Tell whoever handed in a number of texts that some were cut, if any were."""
        if cut:
            were, them = (f"{cut:,} of {number:,} texts were", "them") if number > 1 else ("The text was", "it")
            most = self.spec.context_length
            told = f"{were} cut: the model reads {most} tokens at most. Shorten {them} to have all read."
            warnings.warn(told, CutWarning, stacklevel=2)


class TextTokens(nn.Module):
    undecayed = ("weight",)

    def __init__(self, spec: TextTokensSpec, width: int) -> None:
        super().__init__()
        self.spec = spec
        vocabulary = Vocabulary.load(spec.vocabulary)
        self.size, self.bos, self.eos = len(vocabulary), vocabulary.bos, vocabulary.eos
        self.unwritten = [index for index in vocabulary.specials.values() if index != vocabulary.eos]
        # Padded, so that a sharded table splits evenly over any usual number of ranks.
        self.weight = nn.Parameter(torch.empty(vocabulary.padded_size(64), width))  # V D
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.trunc_normal_(self.weight, std=0.02)

    def forward(self, text: Text, start: Tensor | None = None) -> Tokens:
        """Args: text; start: B, int64, where in its text each row's first id stands (decoding); None: at 0."""
        x = F.embedding(text.ids, self.weight)  # B L D
        time = torch.arange(x.shape[1], device=x.device)
        place = time[None] if start is None else start[:, None] + time  # (1 or B) L
        pos = F.pad(place[..., None], (0, AXES - 1))  # (1 or B) L A
        return Tokens(x, pos.expand(x.shape[0], -1, -1), time < text.lengths[:, None])
