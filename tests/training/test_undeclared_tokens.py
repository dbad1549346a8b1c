"""An objective that reads tokens and does not say so is told in the rehearsal, with the fix."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from tiny import tiny_run, write_shards
from torch import Tensor

from mmformer.errors import InputError
from mmformer.nn.pool import LastPoolSpec
from mmformer.objectives.contrastive import ContrastiveSpec
from mmformer.objectives.objective import Objective
from mmformer.training.rehearsal import rehearse
from mmformer.training.run import RunSpec
from mmformer.types import Batch, LossTerm, Outputs


class Norms(Objective):
    """For this test: it makes tokens short."""

    def __init__(self, says_so: bool, name: str) -> None:
        self.reads_tokens, self.name = says_so, name

    def items(self, batch: Batch) -> dict[str, Tensor]:
        return {"norm": torch.tensor(1.0)}

    def losses(self, outputs: Outputs, batch: Batch) -> dict[str, LossTerm]:
        return {"norm": LossTerm(outputs.tokens[self.name].x.square().sum(), torch.tensor(1.0))}


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_shards(tmp_path_factory.mktemp("shards"))


@pytest.fixture
def run(shards: Path) -> RunSpec:
    """Its text's embedding is of the last token alone, so that nobody else reads the others."""
    made = tiny_run(shards)
    text = dataclasses.replace(made.model.encoders["text"], pool=LastPoolSpec())
    model = dataclasses.replace(made.model, encoders={**made.model.encoders, "text": text})
    return dataclasses.replace(made, model=model)


def test_it_is_told(run: RunSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ContrastiveSpec, "build", lambda self: Norms(False, "text"))
    message = r"objectives\.contrastive asks for the tokens of 'text'.* set reads_tokens = True in Norms\."
    with pytest.raises(InputError, match=message):
        rehearse(run, run.model.build())
    monkeypatch.setattr(ContrastiveSpec, "build", lambda self: Norms(True, "text"))
    rehearse(run, run.model.build())


def test_another_key_stays_what_it_is(run: RunSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ContrastiveSpec, "build", lambda self: Norms(False, "txet"))
    with pytest.raises(KeyError, match="txet"):
        rehearse(run, run.model.build())
