"""Beam search: several texts for each input side by side, of which the best goes on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor

from mmformer.generation.decoding import Decoding
from mmformer.generation.generation import GenerationSpec, Written, begin_history, least, log_probabilities, room
from mmformer.spec import require
from mmformer.types import Text

Stop = Literal["certain", "likely", "full"]


@dataclass(frozen=True)
class BeamSpec(GenerationSpec):
    """The text with the highest sum of log-probabilities over its length to a power, among those that beams find.

    A text is found where eos is among the likeliest ways on from all beams, as many of them as there are beams (as in
    fairseq and transformers): what is unlikely does not end a text. The length counts eos.

    Attributes:
        beams: texts for each input side by side.
        length_penalty: the power; 0 prefers short texts, 1 is the mean, more prefers long ones.
        stop: when the search for an input ends: ``certain``, when none of its beams could still become better than the
            best text that was found, whatever it wrote; ``likely``, when as many texts as beams were found and no beam,
            as long as it is now, is better than the worst of them (what transformers does unless it is told); ``full``,
            when as many were found. These are its ``early_stopping`` "never", False and True.
    """

    beams: int = 4
    length_penalty: float = 1.0
    stop: Stop = "certain"

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.beams >= 1, self, "beams", "at least 1")
        require(0 <= self.length_penalty <= 10, self, "length_penalty", "from 0 to 10")
        require(self.stop in get_args(Stop), self, "stop", f"one of {', '.join(get_args(Stop))}")

    @torch.inference_mode()
    def write(self, decoding: Decoding, prompt: Text, numbers: Sequence[int] | None = None) -> list[Written]:
        limit, ends = room(self, decoding, prompt), decoding.decoder.tokenizer.ends
        search = _Search.begin(self, decoding, prompt, limit)
        found: dict[int, Written] = {}
        logits, progress = decoding.begin(prompt)
        each = torch.arange(self.beams, device=decoding.device)
        rows = torch.arange(decoding.rows, device=decoding.device).repeat_interleave(self.beams)
        logits, progress = logits[rows], progress.take(rows)  # beams read their input together
        for written in range(int(limit.max())):
            short = (written < search.least).repeat_interleave(self.beams)
            log_probability = log_probabilities(logits, search.history.flatten(0, 1), short, self, ends)
            search, chosen, source = search.extend(self, log_probability, written, ends)
            over = search.is_over(self, written + 1)
            found |= search.select(over.nonzero()[:, 0]).best(begin=prompt.ids.shape[1])
            going = (~over).nonzero()[:, 0]
            if not len(going):
                break
            left = None
            if len(going) < len(over):  # inputs that have their text cost nothing
                rows, left = (going[:, None] * self.beams + each).flatten(), going
                search, decoding = search.select(going), decoding.select(going)
                chosen, source = chosen[rows], source[rows]
            logits, progress = decoding.step(chosen, progress.take(source, left))
        return [found[row] for row in range(len(limit))]


class _Search(NamedTuple):
    """Beams of the inputs that have no text yet, and the best finished text of each; a score of −∞ where none is."""

    inputs: Tensor  # B: their places among all
    limit: Tensor  # B: ids that may be written
    least: Tensor  # B: ids that are to be written
    score: Tensor  # B K: sums of log-probabilities of the beams, the best first
    found: Tensor  # B K: scores of the best finished texts, the best first
    history: Tensor  # B K T: prompts and what the beams have written
    best_score: Tensor  # B: over the length
    best_ids: Tensor  # B T: −1 past the end

    @staticmethod
    def begin(spec: BeamSpec, decoding: Decoding, prompt: Text, limit: Tensor) -> _Search:
        batch, device = decoding.rows, decoding.device
        found = torch.full((batch, spec.beams), float("-inf"), device=device)
        score = found.clone()
        score[:, 0] = 0.0  # the beams of an input begin alike: one of them counts
        before = begin_history(prompt)
        history = before[:, None].expand(-1, spec.beams, -1)
        inputs, wanted = torch.arange(batch, device=device), least(spec, prompt)
        return _Search(inputs, limit, wanted, score, found, history, found[:, 0], before)

    def select(self, rows: Tensor) -> _Search:
        """The same over some inputs."""
        return _Search(*(value[rows] for value in self))

    def extend(
        self, spec: BeamSpec, log_probability: Tensor, written: int, ends: list[int]
    ) -> tuple[_Search, Tensor, Tensor]:
        """Each beam by one id; the search, the ids (B K), and the rows that they follow (B K)."""
        batch, beams = self.score.shape
        total = self.score[..., None] + log_probability.view(batch, beams, -1)  # B K V
        size, length = total.shape[2], (written + 1) ** spec.length_penalty
        # As many more than there are beams as could be eos: C.
        score, place = total.flatten(1).topk(min(beams * (1 + len(ends)), beams * size), dim=1)  # B C
        parent, chosen = place // size, place % size
        ending = torch.isin(chosen, torch.tensor(ends, dtype=chosen.dtype, device=chosen.device))
        found = (score / length).masked_fill(~ending, float("-inf"))[:, :beams]
        ended = self._keep(found, parent)
        others = ending.long().sort(dim=1, stable=True).indices[:, :beams]  # B K, the likeliest first
        score = score.masked_fill(ending, float("-inf")).gather(1, others)
        parent, chosen = parent.gather(1, others), chosen.gather(1, others)
        history = self.history.gather(1, parent[..., None].expand(-1, -1, self.history.shape[2]))
        history = torch.cat((history, chosen[..., None]), dim=2)
        best_ids = torch.nn.functional.pad(ended.best_ids, (0, 1), value=-1)
        longer = ended._replace(score=score, history=history, best_ids=best_ids)
        # Where an input's texts may grow no longer, its beams count as they are.
        at_end = (self.limit == written + 1)[:, None]  # B 1
        each = torch.arange(beams, device=score.device).expand(batch, -1)
        cut = longer._keep((score / length).masked_fill(~at_end, float("-inf")), each)
        source = torch.arange(batch, device=score.device)[:, None] * beams + parent
        return cut, chosen.flatten(), source.flatten()

    def _keep(self, score: Tensor, beam: Tensor) -> _Search:
        """With texts of these beams that are finished, scored so (B K): the best, where none was better, is kept."""
        best, place = score.max(dim=1)
        better = best > self.best_score
        row = beam.gather(1, place[:, None])
        ids = self.history.gather(1, row[..., None].expand(-1, 1, self.history.shape[2]))[:, 0]
        return self._replace(
            found=torch.cat((self.found, score), dim=1).topk(self.found.shape[1], dim=1).values,
            best_score=torch.where(better, best, self.best_score),
            best_ids=torch.where(better[:, None], ids, self.best_ids),
        )

    def is_over(self, spec: BeamSpec, written: int) -> Tensor:
        """Whether the search for an input ends: B.

        A sum of log-probabilities only falls; over a length to a power, it is highest at the shortest or the longest.
        """
        worst, at_end = self.found[:, -1], self.limit <= written
        if spec.stop == "full":
            return ~worst.isneginf() | at_end
        if spec.stop == "likely":
            now: Tensor = self.score[:, 0] / written**spec.length_penalty
            return (worst >= now) | at_end
        lengths = (torch.full_like(self.limit, written + 1), self.limit)
        bound = torch.stack([self.score[:, 0] / length**spec.length_penalty for length in lengths]).amax(0)
        return (self.best_score >= bound) | at_end

    def best(self, begin: int) -> dict[int, Written]:
        """The best text of each input, by its place; prompts take the first ``begin`` places."""
        texts = zip(self.inputs.tolist(), self.best_ids[:, begin:].tolist(), self.best_score.tolist(), strict=True)
        return {row: Written([index for index in ids if index >= 0], score) for row, ids, score in texts}
