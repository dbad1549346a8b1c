"""One id after the other: the likeliest, or one that is drawn."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from mmformer.generation.decoding import Decoding
from mmformer.generation.generation import GenerationSpec, Written, begin_history, least, log_probabilities, room
from mmformer.spec import require
from mmformer.types import Text


@dataclass(frozen=True)
class _OneByOneSpec(GenerationSpec):
    @abstractmethod
    def choose(self, log_probability: Tensor, uniform: Tensor) -> Tensor:
        """The next id of each row: B.

        Args:
            log_probability: B V; of what may not be written −∞, so that the rest may add up to less than 1.
            uniform: B, float64, drawn from [0, 1) for each row and step.
        """

    @torch.inference_mode()
    def write(self, decoding: Decoding, prompt: Text, numbers: Sequence[int] | None = None) -> list[Written]:
        limits, ends = room(self, decoding, prompt).tolist(), decoding.decoder.tokenizer.ends
        uniform = self._uniform(numbers or range(decoding.rows), max(limits)).to(decoding.device)
        ids: list[list[int]] = [[] for _ in range(decoding.rows)]
        scores = [0.0] * decoding.rows
        rows, history = list(range(decoding.rows)), begin_history(prompt)
        wanted = least(self, prompt)
        logits, progress = decoding.begin(prompt)
        for written in range(max(limits)):
            log_probability = log_probabilities(logits, history, written < wanted, self, ends)
            chosen = self.choose(log_probability, uniform[:, written])
            taken = log_probability.gather(1, chosen[:, None])[:, 0]
            told = torch.stack((chosen.double(), taken.double())).tolist()  # a device is waited for once an id
            going: list[int] = []
            for place, (row, index, value) in enumerate(zip(rows, *told, strict=True)):
                scores[row] += value
                if index in ends:
                    continue
                ids[row].append(int(index))
                if written + 1 < limits[row]:
                    going.append(place)
            if not going:
                break
            history = torch.cat((history, chosen[:, None]), dim=1)
            if len(going) < len(rows):  # texts that have ended cost nothing
                left = torch.tensor(going, device=decoding.device)
                rows = [rows[place] for place in going]
                uniform, wanted, history, chosen = uniform[left], wanted[left], history[left], chosen[left]
                decoding, progress = decoding.select(left), progress.take(left, left)
            logits, progress = decoding.step(chosen, progress)
        return [Written(*pair) for pair in zip(ids, scores, strict=True)]

    def _uniform(self, numbers: Sequence[int], steps: int) -> Tensor:
        return torch.zeros(len(numbers), steps, dtype=torch.float64)


@dataclass(frozen=True)
class GreedySpec(_OneByOneSpec):
    """The likeliest id, each time; of equal ones the first."""

    def choose(self, log_probability: Tensor, uniform: Tensor) -> Tensor:
        return log_probability.max(-1).indices  # half of the time of argmax


@dataclass(frozen=True)
class SamplingSpec(_OneByOneSpec):
    """An id drawn from those that are likely enough. What is drawn for an input does not depend on its batch.

    Attributes:
        temperature: log-probabilities are divided by it; low ones are bold.
        top_k: only so many of the likeliest (Fan et al. 2018, §5.1); None: all.
        top_p: of those, only the likeliest whose probabilities add up to so much, and the one that reaches it (nucleus
            sampling, Holtzman et al. 2019, §3.1); 1: all.
        seed: of what is drawn.
    """

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        good = 0 < self.temperature < math.inf
        require(good, self, "temperature", "positive and finite (GreedySpec takes the likeliest)")
        require(self.top_k is None or self.top_k >= 1, self, "top_k", "None or at least 1")
        require(0 < self.top_p <= 1, self, "top_p", "above 0 and at most 1")
        require(0 <= self.seed < 2**31, self, "seed", "from 0 to below 2^31")

    def choose(self, log_probability: Tensor, uniform: Tensor) -> Tensor:
        probability = (log_probability / self.temperature).softmax(-1)
        likeliest, order = torch.sort(probability, dim=-1, descending=True, stable=True)
        if self.top_k is not None:
            likeliest[:, self.top_k :] = 0.0
            likeliest = likeliest / likeliest.sum(-1, keepdim=True)
        before = likeliest.cumsum(-1) - likeliest  # what the likelier ones add up to
        keep = (before < self.top_p) | (self.top_p == 1)  # sums of many may round to 1 before the last
        if self.top_k is not None:
            keep[:, self.top_k :] = False
        mass = likeliest.where(keep, 0.0).double().cumsum(-1)
        # The first whose cumulative mass passes the draw: inverse transform sampling.
        place = (mass <= uniform[:, None] * mass[:, -1:]).sum(-1, keepdim=True)
        last = keep.sum(-1, keepdim=True) - 1
        chosen: Tensor = order.gather(1, torch.minimum(place, last))[:, 0]
        return chosen

    def _uniform(self, numbers: Sequence[int], steps: int) -> Tensor:
        # Philox: a stream for each (seed, number). PyTorch's generator would keep 32 bits of a seed that holds both.
        streams = (np.random.Philox(key=[self.seed, number]) for number in numbers)
        return torch.from_numpy(np.stack([np.random.Generator(stream).random(steps) for stream in streams]))
