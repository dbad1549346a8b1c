"""What every way of writing shares: how long a text may be, and what it may repeat."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from mmformer.errors import InputError
from mmformer.generation.decoding import Decoding
from mmformer.spec import family, require
from mmformer.types import Text


class Written(NamedTuple):
    """One text."""

    ids: list[int]  # what follows the prompt, without eos
    score: float  # the sum of its ids' log-probabilities, eos with them; by beams, over their length (see there)


@family
@dataclass(frozen=True)
class GenerationSpec(ABC):
    """A way to choose ids. Lengths count what follows the prompt, without eos.

    Attributes:
        min_length: eos is not written before so many ids.
        max_length: a text is cut after so many ids; None: at the decoder's context length, prompt and eos with it.
        repetition_penalty: logits of ids that the text has already, what it begins with among them, are divided by it
            where positive, multiplied where negative (CTRL, Keskar et al. 2019, §4.1); 1 does nothing.
        no_repeat_ngram: no run of so many ids is written twice; 0: they may be.
        total_length: a text is cut where it has so many ids with its prompt and what that begins with; in place of
            max_length, which does not count those.
        total_min_length: eos is not written before a text has so many ids, counted in the same way; in place of
            min_length. Where a text is cut earlier, it stays shorter.
    """

    min_length: int = 0
    max_length: int | None = None
    repetition_penalty: float = 1.0
    no_repeat_ngram: int = 0
    total_length: int | None = field(default=None, kw_only=True)
    total_min_length: int = field(default=0, kw_only=True)

    def __post_init__(self) -> None:
        require(self.min_length >= 0, self, "min_length", "at least 0")
        longer = self.max_length is None or self.max_length >= max(1, self.min_length)
        require(longer, self, "max_length", f"None, or at least 1 and at least min_length ({self.min_length})")
        good = 0 < self.repetition_penalty < math.inf
        require(good, self, "repetition_penalty", "positive and finite")
        require(self.no_repeat_ngram >= 0, self, "no_repeat_ngram", "at least 0")
        one = self.total_length is None or (self.max_length is None and self.total_length >= 1)
        require(one, self, "total_length", "None, or at least 1 and without max_length")
        one = self.total_min_length == 0 or (self.total_min_length > 0 and self.min_length == 0)
        require(one, self, "total_min_length", "0, or more and without min_length")

    @abstractmethod
    def write(self, decoding: Decoding, prompt: Text, numbers: Sequence[int] | None = None) -> list[Written]:
        """A text for each row.

        Args:
            decoding: of B rows.
            prompt: ids that begin with bos where the model's texts do, B rows of any lengths, padded on the right.
            numbers: of the rows among all inputs, of which a batch may be a part: what is random for an input is a
                function of its number; None: 0 and on.

        Raises:
            InputError: the context length leaves no room for so long a text.
        """


def room(spec: GenerationSpec, decoding: Decoding, prompt: Text) -> Tensor:
    """How many ids may be written at most after each prompt: B, int64.

    Raises:
        InputError: the decoder's context length, or the spec's total, does not have so many.
    """
    name, longest = "the decoder's context_length", decoding.context_length
    if spec.total_length is not None and spec.total_length < longest:
        name, longest = "total_length", spec.total_length
    left = longest - prompt.lengths  # B
    wanted, there = spec.max_length or max(1, spec.min_length), int(left.min())
    if there < wanted:
        begins = torch.eq(prompt.ids[:, 0], -1 if decoding.start is None else decoding.start)
        before = int((prompt.lengths - begins.long()).max())
        raise InputError(
            f"{type(spec).__name__} is to write {wanted} ids, but {name} is {longest}, which with eos and a prompt of "
            f"{before} ids leaves {max(there, 0)}: "
            f"{'shorten the prompt' if before else 'lower the length'}."
        )
    return left if spec.max_length is None else torch.full_like(left, spec.max_length)


def least(spec: GenerationSpec, prompt: Text) -> Tensor:
    """How many ids are to be written at least after each prompt: B, int64."""
    return (spec.total_min_length - prompt.lengths).clamp(min=spec.min_length)


def begin_history(prompt: Text) -> Tensor:
    """The prompts' ids, moved to the right: B L, −1 where there is nothing."""
    length = prompt.ids.shape[1]
    place = torch.arange(length, device=prompt.ids.device) - (length - prompt.lengths[:, None])
    return torch.where(place >= 0, prompt.ids.gather(1, place.clamp(min=0)), -1)


def log_probabilities(
    logits: Tensor, history: Tensor, short: Tensor, spec: GenerationSpec, ends: Sequence[int]
) -> Tensor:
    """The log-probabilities of the next id, with what the spec forbids at −∞: B V.

    What is forbidden leaves the others as likely as they were: a text that may not take its likeliest way pays for it,
    and scores of texts that were held back differently can be compared.

    Args:
        logits: B V.
        history: B T, the ids of each text so far, its last in the last column; −1 before its first.
        short: whether each text may not end yet: B, bool.
        ends: the ids that end a text, any of which is an eos.
    """
    if spec.repetition_penalty != 1 and history.shape[1]:
        there = torch.zeros_like(logits, dtype=torch.bool)
        there = there.scatter_add(1, history.clamp(min=0), history >= 0)
        punished = torch.where(logits > 0, logits / spec.repetition_penalty, logits * spec.repetition_penalty)
        logits = torch.where(there, punished, logits)
    allowed = logits.log_softmax(-1)
    size, held_back = spec.no_repeat_ngram, bool(spec.min_length or spec.total_min_length)
    if not size and not held_back:
        return allowed
    ending = allowed[:, list(ends)]  # B E, a copy
    if size and history.shape[1] >= size:
        runs = history.unfold(1, size, 1)  # B runs size
        same = (runs[..., :-1] == history[:, None, history.shape[1] - size + 1 :]).all(-1)
        last = runs[..., -1]
        banned = torch.zeros_like(allowed, dtype=torch.bool).scatter_add(1, last.clamp(min=0), same & (last >= 0))
        allowed = allowed.masked_fill(banned, float("-inf"))
    if held_back:
        allowed[:, list(ends)] = allowed[:, list(ends)].masked_fill(short[:, None], float("-inf"))
    # Where nothing is left to write, the text ends.
    stuck = allowed.amax(1, keepdim=True).isneginf()
    allowed[:, list(ends)] = torch.where(stuck, ending, allowed[:, list(ends)])
    return allowed
