"""What beams of one input share, and what they are where there is one."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from writers import KINDS, decoding, prompts

from mmformer.generation.beam import BeamSpec
from mmformer.generation.decoding import Decoding, Progress
from mmformer.generation.sampling import GreedySpec


@pytest.mark.parametrize("kind", KINDS)
def test_one_beam_is_greedy(kind: str) -> None:
    made, prompt = decoding(kind, small=12), prompts(6, ragged=True)
    greedy = GreedySpec(max_length=6).write(made, prompt)
    beam = BeamSpec(max_length=6, beams=1, length_penalty=0.0).write(made, prompt)
    for one, other in zip(greedy, beam, strict=True):
        if one.ids != other.ids:  # a text that ended early was better than what greedy went on with
            assert other.score >= one.score - 1e-4


def test_beams_hold_what_they_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keys and values of an input are not there for each beam, and are not moved when beams change places."""
    held, step = list[Progress](), Decoding.step

    def watched(self: Decoding, ids: torch.Tensor, progress: Progress) -> Any:
        held.append(progress)
        return step(self, ids, progress)

    monkeypatch.setattr(Decoding, "step", watched)
    BeamSpec(6, 6, beams=3).write(decoding("cross", 4), prompts(4, ragged=True))
    assert len(held) == 5
    places = []
    for progress in held:
        for layer in progress.stack.layers:
            assert layer.mixer is not None
            assert layer.cross is not None
            assert len(layer.mixer.key) == len(layer.mixer.value) == 12
            assert len(layer.cross.key) == len(layer.cross.value) == 4
            places.append([layer.cross.key.data_ptr(), layer.cross.value.data_ptr()])
    assert places[:2] * 5 == places
