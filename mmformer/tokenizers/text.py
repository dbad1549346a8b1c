"""Text to tokens: a vocabulary on the host, an embedding on the device."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmformer.errors import CutWarning, InputError
from mmformer.spec import require
from mmformer.tokenizers.any_vocabulary import AnyVocabulary, NoVocabulary
from mmformer.tokenizers.opening import open_vocabulary
from mmformer.tokenizers.special import SpecialIds
from mmformer.tokenizers.tokenizer import TokenizerSpec
from mmformer.types import AXES, SPECIAL, Text, Tokens


@dataclass(frozen=True)
class TextTokensSpec(TokenizerSpec):
    """A vocabulary and one learned row for each of its pieces.

    Attributes:
        vocabulary: the vocabulary's file, one that ``mmformer vocabulary train`` made or that came with a published
            model; a bundle carries it. None: there is none, and the model takes ids in place of texts.
        context_length: tokens at most, with those that ``begin`` and ``end`` add; longer texts are cut.
        begin: put the vocabulary's bos before a text.
        end: put its eos after a text; a text that is cut keeps it.
        prefix_space: put a space before a text, so that its first word has the pieces that it has elsewhere.
        rows: of the table, all of which a decoder's logits are over, as published models have them; None: as many as
            the vocabulary has pieces, padded to a multiple of 64 that logits leave out.
        ids: the special tokens of a vocabulary that does not say them; None for one that ``mmformer vocabulary train``
            made.
        types: rows of a second table, which is added by the ``types`` of a text (the segments of BERT, Devlin et al.
            2018, §3.2); 0: there is none.
        scale: factor on the rows of ids (√D in Vaswani et al. 2017, §3.4), not on those of types.
        counted: places count the real ids alone, wherever padding stands (RoBERTa, Liu et al. 2019, in its published
            code); False: all ids of a row.
        padded: every text is padded to the context length, and the padding is read as if it were text (SigLIP, Zhai et
            al. 2023, in its published code).
    """

    cost: ClassVar[str] = "L·D"
    source: ClassVar[str] = "SentencePiece, Kudo and Richardson 2018; byte-pair encoding, Sennrich et al. 2015"

    modality: ClassVar[str] = "text"
    files: ClassVar[tuple[str, ...]] = ("vocabulary",)

    vocabulary: str | None
    context_length: int = 64
    begin: bool = False
    end: bool = True
    prefix_space: bool = True
    rows: int | None = None
    ids: SpecialIds | None = None
    types: int = 0
    scale: float = 1.0
    padded: bool = False
    counted: bool = False

    def __post_init__(self) -> None:
        least = 1 + self.begin + self.end
        require(self.context_length >= least, self, "context_length", f"at least {least}")
        needed = "the number of ids" + (", for there is no vocabulary" if self.vocabulary is None else ", or None")
        require(self.rows is not None or self.vocabulary is not None, self, "rows", needed)
        require(self.rows is None or self.rows >= 1, self, "rows", f"{needed}: at least 1")
        require(self.types >= 0, self, "types", "at least 0")
        require(0 < self.scale < math.inf, self, "scale", "positive and finite")

    @property
    def places(self) -> tuple[int | None, ...]:
        return (self.context_length, *(1,) * (AXES - 1))

    def build(self, width: int, owner: TextTokens | None = None) -> TextTokens:
        """Args: owner: whose table of ids it reads; None: it has its own."""
        return TextTokens(self, width, owner)

    def encoder(self) -> TextEncoder:
        """The host's half: strings to ids."""
        return TextEncoder(self, self.words())

    def words(self) -> AnyVocabulary:
        """The vocabulary.

        Raises:
            InputError: its file cannot be read, or rows, ids, begin or end do not fit it.
        """
        found = _words(self.vocabulary, self.rows, self.ids)
        if self.rows is not None and self.rows < len(found):
            raise InputError(
                f"TextTokensSpec.rows is {self.rows}, but {self.vocabulary} has {len(found)} pieces: set rows to that "
                f"or more, or to null."
            )
        outside = [index for index in found.ids.all if index >= (self.rows or len(found))]
        if outside:
            most = (self.rows or len(found)) - 1
            raise InputError(f"TextTokensSpec.ids has {outside[0]}, but the ids are 0 to {most}.")
        for adds, name in ((self.begin and found.ids.bos is None, "bos"), (self.end and not found.ids.eos, "eos")):
            if adds and self.vocabulary is not None:
                raise InputError(
                    f"TextTokensSpec.{'begin' if name == 'bos' else 'end'} adds the vocabulary's {name}, but "
                    f"{self.vocabulary} has none: set it to false, or ids.{name} to the id that is meant."
                )
        return found


def _words(file: str | None, rows: int | None, ids: SpecialIds | None) -> AnyVocabulary:
    if file is None:
        assert rows is not None, "the spec requires it"
        return NoVocabulary(rows, ids or SpecialIds())
    return open_vocabulary(file, ids)


class TextEncoder:
    """Strings to ids, padded to the longest of a batch in multiples of 8."""

    def __init__(self, spec: TextTokensSpec, vocabulary: AnyVocabulary) -> None:
        self.spec = spec
        self.vocabulary = vocabulary

    def encode(self, texts: Sequence[str]) -> Text:
        """Ids of some texts; each is cut to the context length, and never empty (an empty text is one eos, or pad).

        Returns:
            Text of ids B L and lengths B, L a multiple of 8 or the context length.
        """
        return self.encode_counting(texts)[0]

    def encode_counting(self, texts: Sequence[str]) -> tuple[Text, int]:
        """What ``encode`` makes of some texts, and how many of them were longer than the context and were cut."""
        special = self.vocabulary.ids
        before = [special.bos] if self.spec.begin and special.bos is not None else []
        after = [*special.eos[:1]] if self.spec.end else []
        spaced = [text and " " + text for text in texts] if self.spec.prefix_space else list(texts)
        nothing = special.eos[0] if special.eos else special.pad or 0
        room = self.spec.context_length - len(before) - len(after)
        encoded = self.vocabulary.encode_many(spaced)
        rows = [before + ids[:room] + after or [nothing] for ids in encoded]
        lengths = torch.tensor([len(row) for row in rows], dtype=torch.int64)
        length = min(-(-max(map(len, rows), default=1) // 8) * 8, self.spec.context_length)
        if self.spec.padded:
            length = self.spec.context_length
        ids = torch.full((len(rows), length), special.pad or 0, dtype=torch.int64)  # B L
        flat = torch.from_numpy(np.array([*chain.from_iterable(rows)], dtype=np.int64))  # half of torch.tensor's time
        ids.masked_scatter_(torch.arange(length) < lengths[:, None], flat)
        read = torch.full_like(lengths, length) if self.spec.padded else lengths
        text = Text(ids, read, begun=bool(before))
        return text, sum(len(row) > room for row in encoded)

    def warn_of_cut(self, number: int, cut: int) -> None:
        """Tell whoever handed in a number of texts that some were cut, if any were."""
        if cut:
            were, them = (f"{cut:,} of {number:,} texts were", "them") if number > 1 else ("The text was", "it")
            most = self.spec.context_length
            told = f"{were} cut: the model reads {most} tokens at most. Shorten {them} to have all read."
            warnings.warn(told, CutWarning, stacklevel=2)


class TextTokens(nn.Module):
    """Attributes:
    size: how many ids there are; the table may have more rows.
    ends: the ids that end a text.
    unwritten: the ids that a decoder never writes.
    """

    undecayed = ("weight", "type_weight")

    def __init__(self, spec: TextTokensSpec, width: int, owner: TextTokens | None = None) -> None:
        super().__init__()
        self.spec = spec
        self._owner = () if owner is None else (owner,)  # in a tuple: its table is registered there, and only there
        vocabulary = spec.words()
        self.special = vocabulary.ids
        self.size, self.ends = spec.rows or len(vocabulary), list(self.special.eos)
        self.unwritten = list(self.special.unwritten)
        # Padded, so that a sharded table splits evenly over any usual number of ranks.
        rows = spec.rows or vocabulary.padded_size(64)
        self.weight = None if owner is not None else nn.Parameter(torch.empty(rows, width))  # V D
        self.type_weight = nn.Parameter(torch.empty(spec.types, width)) if spec.types else None
        self.reset_parameters()

    @property
    def table(self) -> Tensor:
        """V D: a row for each id, its own or another's."""
        for owner in self._owner:
            return owner.table
        assert self.weight is not None, "it has no owner"
        return self.weight

    @property
    def start(self) -> int:
        """The id that a decoder begins with.

        Raises:
            InputError: the vocabulary has none.
        """
        if self.special.first is None:
            raise InputError(
                "A decoder begins with bos, but its vocabulary has none: set its tokenizer's ids.start, or ids.bos."
            )
        return self.special.first

    def reset_parameters(self) -> None:
        for weight in self.parameters(recurse=False):
            nn.init.trunc_normal_(weight, std=0.02)

    def forward(self, text: Text, start: Tensor | None = None) -> Tokens:
        """Args: text; start: B, int64, where in its text each row's first id stands (decoding); None: at 0.

        Raises:
            InputError: the text has types, but there is no table of them.
        """
        x = F.embedding(text.ids, self.table)  # B L D
        if self.spec.scale != 1:
            x = x * self.spec.scale
        if self.type_weight is not None:
            types = torch.zeros_like(text.ids) if text.types is None else text.types
            x = x + F.embedding(types, self.type_weight)
        elif text.types is not None:
            raise InputError("The text has types, but the model has no table of them: leave them out.")
        return self.placed(text, x, start)

    def placed(self, text: Text, x: Tensor, start: Tensor | None = None) -> Tokens:
        """What was made of a text's ids, B L D, where they stand; arguments as of a pass over the text."""
        time = torch.arange(x.shape[1], device=x.device)[None]  # (1 or B) L
        if self.spec.counted:
            time = (text.real.long().cumsum(1) - 1).clamp(min=0)
        place = time if start is None else start[:, None] + time  # (1 or B) L
        pos = F.pad(place[..., None], (0, AXES - 1))  # (1 or B) L A
        if text.everywhere is not None:  # no place on the further axes
            further = torch.arange(AXES, device=x.device) > 0
            pos = pos.masked_fill(text.everywhere[..., None] & further, SPECIAL)
        return Tokens(x, pos.expand(x.shape[0], -1, -1), None if text.whole else text.real)
