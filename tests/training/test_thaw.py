"""Gradual unfreezing: parameters stay to the bit until their update, then train; resumed, it is the same."""

from __future__ import annotations

import csv
import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from killed import fit_killed_and_resumed
from safetensors.torch import load_file
from tiny import VOCABULARY, tiny_data, tiny_model, tiny_run, write_shards
from torch import Tensor

from mmformer.errors import InputError
from mmformer.models.decoder import DecoderSpec
from mmformer.models.model import ModelSpec
from mmformer.nn.attention import AttentionSpec
from mmformer.nn.layer import LayerSpec
from mmformer.nn.rotary import RotaryPositionSpec
from mmformer.nn.stack import StackSpec
from mmformer.objectives.captioning import CaptioningSpec
from mmformer.parallel.mesh import ParallelSpec
from mmformer.tokenizers.text import TextTokensSpec
from mmformer.training.average import EMASpec
from mmformer.training.fit import fit
from mmformer.training.freeze import Thaw, freeze
from mmformer.training.optimizers.lamb import LAMBSpec
from mmformer.training.run import EvaluationSpec, RunSpec
from mmformer.training.task import TrainingTask

THAW = {"stacks.image.*": 2, "encoders.image.*": 4}


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_shards(tmp_path_factory.mktemp("shards"))


def gradual(shards: Path, **changes: Any) -> RunSpec:
    return tiny_run(shards, dropout=0.1, data={"test": None}, **{"thaw": THAW, "ema": EMASpec(0.5), **changes})


def first_moves(run: RunSpec, output: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """The update, 0 the first, in which each parameter moves for the first time."""
    found: dict[str, int] = {}
    train = TrainingTask.training_step

    def watched(self: TrainingTask, *args: Any) -> None:
        step = self.global_step
        before = {name: p.detach().clone() for name, p in self.built.named_parameters()}
        train(self, *args)
        for name, parameter in self.built.named_parameters():
            if not torch.equal(parameter, before[name]):
                found.setdefault(name, step)

    with monkeypatch.context() as patch:
        patch.setattr(TrainingTask, "training_step", watched)
        fit(run, output)
    return found


def test_each_trains_from_its_update_on(shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = gradual(shards, freeze=("*.norm.bias",))
    found = first_moves(run, tmp_path / "run", monkeypatch)
    for name, _ in tiny_model().build().named_parameters():
        start = 2 if name.startswith("stacks.image.") else 4 if name.startswith("encoders.image.") else 0
        assert found.get(name) == (None if name.endswith(".norm.bias") else start), name
    with (tmp_path / "run" / "parameters.tsv").open() as file:
        rows = {row["parameter"]: row["trains"] for row in csv.DictReader(file, delimiter="\t")}
    told = {None: "no", 0: "yes", 2: "after 2", 4: "after 4"}
    assert rows == {name: told[found.get(name)] for name in rows}


@pytest.mark.parametrize("optimizer", [None, LAMBSpec(0.01)], ids=["AdamW", "LAMB"])
def test_resumed_it_is_the_same(optimizer: Any, shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed where some have no state of the optimizer yet."""
    run = gradual(shards, **({} if optimizer is None else {"optimizer": optimizer}))
    fit(run, tmp_path / "whole")

    fit_killed_and_resumed(run, tmp_path / "run", 3, monkeypatch)
    one, other = (load_file(tmp_path / name / "bundle" / "model.safetensors") for name in ("run", "whole"))
    assert all(torch.equal(value, other[name]) for name, value in one.items())


def test_the_gradients_of_the_others_are_clipped_alone() -> None:
    model = tiny_model().build()
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    thaw = Thaw(model, {"stacks.*": 3, "stacks.text.*": 1, "heads.*": 2})

    def left() -> dict[str, Tensor]:
        return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}

    thaw.drop_gradients(model, 3)
    assert left().keys() == dict(model.named_parameters()).keys()
    thaw.drop_gradients(model, 2)
    assert {name.partition(".")[0] for name in left()} == {"encoders", "heads"}, "the latest that fits counts"
    thaw.drop_gradients(model, 1)
    assert {name.partition(".")[0] for name in left()} == {"encoders"}


def test_what_cannot_be_meant_is_refused(shards: Path) -> None:
    run, model = gradual(shards), tiny_model().build()
    for steps in (0, 6):
        with pytest.raises(InputError, match=rf"thaw is {steps} for '\*\.bias', but must be at least 1 and below .*6"):
            dataclasses.replace(run, thaw={"*.bias": steps})
    with pytest.raises(InputError, match=r"thaw: no parameter .* 'encoders\.imge\.\*'\. Did you mean 'encoders\.image"):
        Thaw(model, {"encoders.imge.*": 1})
    with pytest.raises(InputError, match=r"thaw: \* leaves nothing to train in the first 3 updates"):
        Thaw(model, {"*": 3})
    freeze(model, ("stacks.*",))
    with pytest.raises(InputError, match=r"thaw: no parameter of the model has a name like 'stacks\.text\.\*'"):
        Thaw(model, {"stacks.text.*": 1})


def test_no_stage_of_a_pipeline_is_left_with_nothing_to_train(shards: Path) -> None:
    words = TextTokensSpec(VOCABULARY, context_length=16)
    stack = StackSpec(16, 2, LayerSpec(AttentionSpec(2)), RotaryPositionSpec())
    model = ModelSpec({"words": stack}, {}, {"words": DecoderSpec(words, "words")}, {})
    run = tiny_run(shards)
    staged = dataclasses.replace(
        run,
        model=model,
        objectives={"write": CaptioningSpec(decoder="words")},
        data=tiny_data(shards, image=None),
        evaluation=EvaluationSpec(),
        parallel=ParallelSpec(pipeline=2),
        trainer=dataclasses.replace(run.trainer, accumulate_grad_batches=2),
    )
    for taken in ({"thaw": {"stacks.words.layers.0.*": 3}}, {"freeze": ("stacks.words.layers.0.*",)}):
        with pytest.raises(
            InputError, match=f"{next(iter(taken))} takes parameters out of .*leave a stage of .* 2, with"
        ):
            dataclasses.replace(staged, **taken)
