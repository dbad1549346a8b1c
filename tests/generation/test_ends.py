"""A text may end in several ways (Llama 3's vocabulary has three): any of them ends it, and none is written."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from writers import EOS, decoding, prompts

from mmformer.generation.beam import BeamSpec
from mmformer.generation.decoding import Decoding
from mmformer.generation.sampling import GreedySpec, SamplingSpec
from mmformer.types import Text


def with_ends(made: Decoding, *ends: int) -> Decoding:
    tokenizer: Any = made.decoder.tokenizer
    tokenizer.ends = list(ends)
    return made


@pytest.mark.parametrize("spec", [GreedySpec(max_length=8), SamplingSpec(max_length=8)], ids=["greedy", "sampled"])
def test_a_text_ends_at_the_first_of_them(spec: Any) -> None:
    prompt = prompts(4, ragged=False)
    free = spec.write(with_ends(decoding("cross", 4)), prompt)
    assert all(len(text.ids) == 8 for text in free), "without an end, texts are as long as they may be"
    other = free[0].ids[3]
    ended = spec.write(with_ends(decoding("cross", 4), EOS, other), prompt)
    for text, whole in zip(ended, free, strict=True):
        stops = [place for place, index in enumerate(whole.ids) if index in (EOS, other)]
        assert text.ids == whole.ids[: min(stops, default=8)]
    assert len(ended[0].ids) <= 3


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_enough_beams_find_the_best_of_all_texts_whatever_ends_them(seed: int) -> None:
    """Three ids and two ends, three places: every text is tried one by one."""
    longest, made = 3, with_ends(decoding("cross", 2, seed, small=4), EOS, 7)
    found = BeamSpec(max_length=longest, beams=5**longest).write(made, prompts(2, ragged=False))
    for row in range(2):
        single, best = made.select(torch.tensor([row])), (-math.inf, [0])
        for length in range(longest + 1):
            for ids in itertools.product([4, 5, 6], repeat=length):
                for end in [[EOS], [7]] if length < longest else [[]]:
                    whole = [*ids, *end]
                    best = max(best, (log_probability(single, whole) / len(whole), list(ids)))
        assert math.isclose(found[row].score, best[0], rel_tol=1e-4)
        assert found[row].ids == best[1]


def log_probability(made: Decoding, ids: list[int]) -> float:
    """Of these ids after bos."""
    whole = torch.tensor([[2, *ids]])
    decoded = made.decoder(Text(whole, torch.tensor([whole.shape[1]])), made.memory, made.stack)
    logits = made.decoder.logits(decoded.x[0, :-1]).float()
    logits[:, made.decoder.tokenizer.unwritten] = -math.inf
    return float(logits.log_softmax(-1).gather(1, whole[0, 1:, None]).sum().detach())
