"""Beam search: several texts for each input side by side, of which the best goes on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from mmformer.generation.decoding import Decoding, select
from mmformer.generation.generation import GenerationSpec, Written, begin_history, constrain, room
from mmformer.spec import require
from mmformer.types import Text


@dataclass(frozen=True)
class BeamSpec(GenerationSpec):
    """The text with the highest sum of log-probabilities over its length to a power, among those that beams find.

    The length counts eos. A search ends when no beam could still become better than the worst of the texts that are
    kept, whatever it wrote.

    Attributes:
        beams: texts for each input side by side, and finished ones kept.
        length_penalty: the power; 0 prefers short texts, 1 is the mean, more prefers long ones.
    """

    beams: int = 4
    length_penalty: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.beams >= 1, self, "beams", "at least 1")

    @torch.inference_mode()
    def write(self, decoding: Decoding, prompt: Text, numbers: Sequence[int] | None = None) -> list[Written]:
        limit, eos = room(self, decoding, prompt), decoding.decoder.tokenizer.eos
        search = _Search.begin(self, decoding, prompt)
        logits, progress = decoding.begin(prompt)
        rows = torch.arange(decoding.rows, device=decoding.device).repeat_interleave(self.beams)
        logits, progress, decoding = logits[rows], select(progress, rows), decoding.select(rows)
        for written in range(int(limit.max())):
            logits = constrain(logits, search.history, written, self, eos)
            search, chosen, source = search.extend(self, logits, written, eos)
            search = search.cut(self, written + 1, limit)
            if search.is_over(self, written + 1, limit):
                break
            logits, progress = decoding.step(chosen, select(progress, source))
        return search.best(prompt)


class _Search(NamedTuple):
    """Beams of all inputs, and the finished texts that are kept; scores are −∞ where there is none."""

    score: Tensor  # B K: sums of log-probabilities of the beams
    history: Tensor  # (B K) T: prompts and what the beams have written
    kept_score: Tensor  # B K: over the length, best first
    kept: Tensor  # B K T: their ids, −1 past their end

    @staticmethod
    def begin(spec: BeamSpec, decoding: Decoding, prompt: Text) -> _Search:
        batch, beams, device = decoding.rows, spec.beams, decoding.device
        nothing = torch.full((batch, beams), float("-inf"), device=device)
        score = nothing.clone()
        score[:, 0] = 0.0  # the beams of an input begin alike: one of them counts
        history = begin_history(prompt).repeat_interleave(beams, dim=0)
        kept = torch.full((batch, beams, history.shape[1]), -1, device=device)
        return _Search(score, history, nothing, kept)

    def extend(self, spec: BeamSpec, logits: Tensor, written: int, eos: int) -> tuple[_Search, Tensor, Tensor]:
        """Each beam by one id; the search, the ids (B K), and the rows that they follow (B K)."""
        batch, beams = self.score.shape
        total = self.score[..., None] + logits.log_softmax(-1).view(batch, beams, -1)  # B K V
        size = total.shape[2]
        ended = total[..., eos] / (written + 1) ** spec.length_penalty  # B K
        before = self.history.view(batch, beams, -1)
        kept_score, kept = self._keep(ended, before)
        total[..., eos] = float("-inf")
        score, place = total.flatten(1).topk(beams, dim=1)  # B K
        source = (torch.arange(batch, device=score.device)[:, None] * beams + place // size).flatten()
        chosen = (place % size).flatten()
        history = torch.cat((self.history[source], chosen[:, None]), dim=1)
        kept = torch.nn.functional.pad(kept, (0, 1), value=-1)
        return _Search(score, history, kept_score, kept), chosen, source

    def _keep(self, score: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
        """The best of the texts that are kept and of others."""
        scores, texts = torch.cat((self.kept_score, score), dim=1), torch.cat((self.kept, ids), dim=1)
        best, place = scores.sort(dim=1, descending=True, stable=True)
        place = place[:, : score.shape[1]]
        return best[:, : score.shape[1]], texts.gather(1, place[..., None].expand(-1, -1, texts.shape[2]))

    def cut(self, spec: BeamSpec, written: int, limit: Tensor) -> _Search:
        """Where an input's texts may grow no longer, its beams count as they are, and end."""
        at_end = (limit == written)[:, None]  # B 1
        ids = self.history.view(*self.score.shape, -1)
        as_they_are = (self.score / written**spec.length_penalty).masked_fill(~at_end, float("-inf"))
        kept_score, kept = self._keep(as_they_are, ids)
        return _Search(self.score.masked_fill(at_end, float("-inf")), self.history, kept_score, kept)

    def is_over(self, spec: BeamSpec, written: int, limit: Tensor) -> bool:
        """Whether no beam can become better than the worst text that is kept, for any input.

        A sum of log-probabilities only falls; over a length to a power, it is highest at the shortest or the longest.
        """
        lengths = (torch.full_like(limit, written + 1), limit + 1)
        bound = torch.stack([self.score[:, 0] / length**spec.length_penalty for length in lengths]).amax(0)
        return bool((self.kept_score[:, -1] >= bound).all())

    def best(self, prompt: Text) -> list[Written]:
        """The best text of each input."""
        before = begin_history(prompt).shape[1]
        return [
            Written([index for index in text if index >= 0], score)
            for text, score in zip(self.kept[:, 0, before:].tolist(), self.kept_score[:, 0].tolist(), strict=True)
        ]
