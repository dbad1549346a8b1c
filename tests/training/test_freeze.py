"""Frozen parameters stay as they are, bit for bit, and cost nothing; patterns that cannot be meant are refused."""

from __future__ import annotations

import csv
import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tiny import COLOURS, labels, tiny_batch, tiny_model, tiny_run, write_shards
from torch import Tensor, nn

from mmformer.errors import InputError
from mmformer.models.model import Model
from mmformer.objectives.classification import ClassificationSpec
from mmformer.objectives.contrastive import ContrastiveSpec
from mmformer.objectives.sigmoid import SigmoidContrastiveSpec
from mmformer.training.accumulate import accumulate
from mmformer.training.fit import fit
from mmformer.training.freeze import freeze
from mmformer.training.run import RunSpec

TEXTS = ["red", "blue", "red", "green", "black", "blue", "", "a small blue square, on the left"]


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_shards(tmp_path_factory.mktemp("shards"))


def model() -> Model:
    built = tiny_model(classes=len(COLOURS)).build()
    built.initialise(0)
    return built


def frozen(built: nn.Module) -> set[str]:
    return {name for name, parameter in built.named_parameters() if not parameter.requires_grad}


@pytest.mark.parametrize(
    ("patterns", "expected"),
    [
        ((), lambda name: False),
        (("encoders.image.*",), lambda name: name.startswith("encoders.image.")),
        (("stacks.image.layers.0.*",), lambda name: name.startswith("stacks.image.layers.0.")),
        (("*.bias", "heads.contrastive.log_scale"), lambda name: name.endswith((".bias", "log_scale"))),
        (("stacks.*.layers.[1-9].*",), lambda name: name.startswith("stacks.image.layers.1.")),
    ],
    ids=lambda value: str(value) if isinstance(value, tuple) else "",
)
def test_patterns_choose_by_name(patterns: tuple[str, ...], expected: Any) -> None:
    built = model()
    freeze(built, patterns)
    assert frozen(built) == {name for name, _ in built.named_parameters() if expected(name)}


def test_a_shared_parameter_is_frozen_under_either_name() -> None:
    for pattern in ("0.weight", "1.weight"):
        tied = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
        tied[1].weight = tied[0].weight
        freeze(tied, (pattern,))
        assert frozen(tied) == {"0.weight"}


@pytest.mark.parametrize(
    ("patterns", "message"),
    [
        (("encoders.imge.*",), r"name like 'encoders\.imge\.\*'\. Did you mean 'encoders\.image\.\*'\?"),
        (("*.bias", "encoders.image"), r"name like 'encoders\.image'\. Did you mean 'encoders\.image\.\*'\?"),
        (("heads.contrastive.logscale",), r"Did you mean 'heads\.contrastive\.log_scale'\?"),
        (("Heads.*",), r"name like 'Heads\.\*'\. Did you mean 'heads\.\*'\?"),
        (("zzz",), r"name like 'zzz'\. The first is called stacks\.image\..*; parameters\.tsv .* has them all"),
        (("*",), r"freeze: \* leaves nothing of the model to train"),
        (("stacks.*", "encoders.*", "heads.*"), r"leaves nothing of the model to train: freeze less"),
    ],
)
def test_what_cannot_be_meant_is_refused(patterns: tuple[str, ...], message: str) -> None:
    with pytest.raises(InputError, match=message):
        freeze(model(), patterns)


# ------------------------------------------------------------------------------------------------- a run


def two_objectives(shards: Path, **changes: Any) -> RunSpec:
    return tiny_run(
        shards,
        data={"labels": labels(shards)},
        model=tiny_model(dropout=0.1, classes=len(COLOURS)),
        objectives={"contrastive": ContrastiveSpec(), "colour": ClassificationSpec(head="colour")},
        **changes,
    )


def test_frozen_parameters_stay_to_the_bit_and_the_others_move(shards: Path, tmp_path: Path) -> None:
    run = two_objectives(shards, freeze=("encoders.image.*", "stacks.image.layers.0.*"))
    fit(run, tmp_path / "run")
    first = model().state_dict()
    trained = load_file(tmp_path / "run" / "bundle" / "model.safetensors")
    still = {name for name, value in trained.items() if torch.equal(value, first[name])}
    assert still == {name for name in first if name.startswith(("encoders.image.", "stacks.image.layers.0."))}

    with (tmp_path / "run" / "parameters.tsv").open() as file:
        rows = {row["parameter"]: row for row in csv.DictReader(file, delimiter="\t")}
    assert rows.keys() == first.keys(), "frozen ones too"
    assert {name for name, row in rows.items() if row["trains"] == "no"} == still
    assert all(float(rows[name]["weight_decay"]) == 0 for name in still)
    assert float(rows["stacks.image.layers.1.mixer.qkv.weight"]["weight_decay"]) == run.optimizer.weight_decay

    (state,) = (tmp_path / "run" / "checkpoints").glob("step-*6/state.ckpt")
    optimizer = torch.load(state, weights_only=True)["optimizer_states"][0]
    assert len(optimizer["state"]) == len(first) - len(still), "no optimizer state"


def test_an_objective_that_can_train_nothing_is_refused(shards: Path, tmp_path: Path) -> None:
    run = two_objectives(shards, freeze=("encoders.*", "stacks.*", "heads.contrastive.*"))
    with pytest.raises(InputError, match=r"freeze: objectives\.contrastive reaches no parameter that trains"):
        fit(run, tmp_path / "run")
    assert not (tmp_path / "run").exists()
    alone = dataclasses.replace(run, objectives={"colour": ClassificationSpec(head="colour")})
    fit(alone, tmp_path / "run")  # a linear probe


def test_a_wrong_pattern_is_refused_before_a_folder_is_made(shards: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="freeze: no parameter of the model"):
        fit(tiny_run(shards, freeze=("encoder.*",)), tmp_path / "run")
    assert not (tmp_path / "run").exists()


SETS = {
    "one tower": (("stacks.image.*", "encoders.image.*"), {"contrastive": ContrastiveSpec()}),
    "all but the temperature": (("stacks.*", "encoders.*", "heads.colour.*"), {"contrastive": ContrastiveSpec()}),
    "a probe beside it": (
        ("stacks.*", "encoders.*"),
        {"contrastive": ContrastiveSpec(), "colour": ClassificationSpec(head="colour")},
    ),
}


@pytest.mark.parametrize("parts", [1, 4])
@pytest.mark.parametrize("name", SETS)
def test_what_trains_has_the_gradient_that_it_has_without_freezing(name: str, parts: int) -> None:
    """Also in micro-batches, where some parts may have nothing to carry on."""
    patterns, specs = SETS[name]

    def gradients(patterns: tuple[str, ...]) -> dict[str, Tensor]:
        built = model()
        freeze(built, patterns)
        objectives: dict[str, Any] = {key: spec.build() for key, spec in specs.items()}
        weights = dict.fromkeys(specs, 1.0)
        accumulate(built, objectives, weights, tiny_batch(TEXTS), parts, lambda loss: loss.backward())
        assert all(built.get_parameter(key).grad is None for key in frozen(built))
        return {key: p.grad for key, p in built.named_parameters() if p.grad is not None}

    found, expected = gradients(patterns), gradients(())
    chosen = model()
    freeze(chosen, patterns)
    assert found.keys() == expected.keys() - frozen(chosen)
    assert found
    assert all(torch.allclose(value, expected[key], atol=1e-6) for key, value in found.items())


def test_a_bias_alone_may_train_in_micro_batches() -> None:
    """A head hands out its bias as it is; the second passes carry its gradient all the same."""
    spec = tiny_model()
    head = dataclasses.replace(spec.heads["contrastive"], bias=-2.0)  # type: ignore[call-arg]
    found = []
    for parts in (1, 4):
        built = dataclasses.replace(spec, heads={"contrastive": head}).build()
        built.initialise(0)
        freeze(built, ("stacks.*", "encoders.*", "*.log_scale"))
        objectives: dict[str, Any] = {"sigmoid": SigmoidContrastiveSpec().build()}
        accumulate(built, objectives, {"sigmoid": 1.0}, tiny_batch(TEXTS), parts, lambda loss: loss.backward())
        found.append(built.get_parameter("heads.contrastive.bias").grad)
    assert found[0] is not None
    assert torch.allclose(found[0], found[1], rtol=1e-5)
    assert found[0].abs() > 0.1
