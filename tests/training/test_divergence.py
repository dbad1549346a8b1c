"""Updates that would ruin the weights are not applied, by any optimizer; what follows is what was asked for."""

from __future__ import annotations

import csv
import dataclasses
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from killed import fit_killed_and_resumed
from tiny import tiny_run, write_shards
from torch import Tensor

from mmformer.errors import InputError
from mmformer.nn.feedforward import GELUFeedForwardSpec
from mmformer.nn.moe import MixtureOfExpertsSpec
from mmformer.nn.router import TokenChoiceSpec
from mmformer.training import accumulate as accumulating
from mmformer.training import sealing
from mmformer.training import update as updating
from mmformer.training.average import EMASpec, WeightAverage
from mmformer.training.checkpoint import whole_checkpoints
from mmformer.training.divergence import DivergenceSpec, Guard, finite
from mmformer.training.fit import fit
from mmformer.training.optimizers.adafactor import AdafactorSpec
from mmformer.training.optimizers.adamw import AdamWSpec
from mmformer.training.optimizers.lamb import LAMBSpec
from mmformer.training.optimizers.lion import LionSpec
from mmformer.training.optimizers.muon import MuonSpec
from mmformer.training.optimizers.optimizer import OptimizerSpec
from mmformer.training.optimizers.schedule_free import ScheduleFreeAdamWSpec
from mmformer.training.run import CheckpointSpec, RunSpec
from mmformer.training.schedule import ConstantScheduleSpec
from mmformer.training.task import TrainingTask
from mmformer.types import Batch

NAN, INFINITE = float("nan"), float("inf")


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_shards(tmp_path_factory.mktemp("shards"))


def make_run(shards: Path, steps: int = 6, every: int = 1, **divergence: Any) -> RunSpec:
    run = tiny_run(shards, dropout=0.2, steps=steps, data={"test": None}, ema=EMASpec(decay=0.5))
    return dataclasses.replace(
        run,
        schedule=ConstantScheduleSpec(),
        trainer=dataclasses.replace(run.trainer, log_every_n_steps=1),
        checkpoint=CheckpointSpec(every, keep=99),
        divergence=DivergenceSpec(**divergence),
    )


Where = Literal["loss", "gradient"]
Read = dict[int, tuple[str, ...]]


@contextmanager
def spoilt(updates: dict[int, float], where: Where = "gradient") -> Iterator[Read]:
    """Inside, some updates (1 the first) have their loss or one element of the gradient multiplied; what they read."""
    step, real, now, read = TrainingTask.training_step, accumulating.accumulate, [0], dict[int, tuple[str, ...]]()

    def counts(self: TrainingTask, batch: Batch, batch_idx: int) -> None:
        now[0] = self.global_step + 1
        read[now[0]] = batch.keys
        step(self, batch, batch_idx)

    def accumulate(model: Any, *arguments: Any) -> dict[str, Tensor]:
        losses = real(model, *arguments)
        factor = updates.get(now[0], 1.0)
        if where == "loss":
            return {**losses, "loss": losses["loss"] * factor}
        next(p.grad for p in model.parameters() if p.grad is not None).view(-1)[0] *= factor
        return losses

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TrainingTask, "training_step", counts)
        patch.setattr(updating, "accumulate", accumulate)
        yield read


def states(output: Path) -> dict[int, dict[str, Any]]:
    """Every checkpoint's state, by its update."""
    return {int(path.parent.name[5:]): torch.load(path, weights_only=True) for path in whole_checkpoints(output)}


def same(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list):
        return len(one) == len(other) and all(map(same, one, other))
    return bool(one == other)


def same_training(one: dict[str, Any], other: dict[str, Any]) -> bool:
    """Weights, averages and the optimizer's state."""
    return all(same(one[part], other[part]) for part in ("state_dict", "optimizer_states"))


def table(output: Path) -> list[dict[str, str]]:
    with (output / "refused.tsv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file, delimiter="\t"))


# ------------------------------------------------------------------------------------------------- skipping


OPTIMIZERS = (AdamWSpec, LAMBSpec, LionSpec, AdafactorSpec, MuonSpec, ScheduleFreeAdamWSpec)


@pytest.mark.parametrize("optimizer", OPTIMIZERS, ids=lambda spec: spec.__name__)
def test_a_skipped_update_moves_nothing_but_the_position(
    optimizer: type[OptimizerSpec], shards: Path, tmp_path: Path
) -> None:
    averages = None if optimizer.averages else EMASpec(decay=0.5)
    run = dataclasses.replace(make_run(shards, 5, policy="skip"), optimizer=optimizer(lr=1e-2), ema=averages)
    with spoilt({}) as undisturbed:
        fit(run, tmp_path / "whole")
    with spoilt({3: NAN}) as read:
        fit(run, tmp_path / "run")
    assert read == undisturbed
    found, whole = states(tmp_path / "run"), states(tmp_path / "whole")
    assert same_training(found[2], whole[2])
    assert same_training(found[3], found[2])
    assert found[3]["global_step"] == 3
    assert not same_training(found[4], found[3])
    assert not same_training(found[4], whole[4])


def test_the_first_update_may_be_skipped(shards: Path, tmp_path: Path) -> None:
    """Before the optimizer has any state."""
    with spoilt({1: INFINITE}):
        fit(make_run(shards, 3, policy="skip"), tmp_path / "run")
    found = states(tmp_path / "run")
    assert found[1]["optimizer_states"][0]["state"] == {}
    assert found[2]["optimizer_states"][0]["state"] != {}


def test_balances_of_experts_stay_too(shards: Path, tmp_path: Path) -> None:
    """No optimizer has them: they move by how many tokens chose an expert."""
    run = make_run(shards, 4, policy="skip")
    stack, router = run.model.stacks["image"], TokenChoiceSpec(top=1, renormalise=False, balance_rate=0.125)
    experts = MixtureOfExpertsSpec(4, GELUFeedForwardSpec(ratio=1.0), router)
    stack = dataclasses.replace(stack, layer=dataclasses.replace(stack.layer, feedforward=experts))
    model = dataclasses.replace(run.model, stacks={**run.model.stacks, "image": stack})
    with spoilt({3: NAN}, "loss"):
        fit(dataclasses.replace(run, model=model), tmp_path / "run")
    found = states(tmp_path / "run")
    name = "model.stacks.image.layers.0.feedforward.router.balance"
    assert bool(found[2]["state_dict"][name].any())
    assert same_training(found[3], found[2])
    assert not torch.equal(found[4]["state_dict"][name], found[3]["state_dict"][name])


@pytest.mark.parametrize("where", ["loss", "gradient"])
def test_what_was_skipped_is_told(
    where: Where, shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "run"
    with spoilt({3: NAN, 5: INFINITE}, where) as read:
        fit(make_run(shards, policy="skip"), output)
    assert [(row["update"], row["cause"], row["then"]) for row in table(output)] == [
        ("3", "not finite", "skip"),
        ("5", "not finite", "skip"),
    ]
    assert [tuple(json.loads(row["keys"])) for row in table(output)] == [read[3], read[5]]
    column = "loss" if where == "loss" else "gradient_norm"
    assert table(output)[0][column] == "nan"
    err = capsys.readouterr().err
    assert f"Its samples: {', '.join(read[3])}. Here it was not applied." in err
    with (output / "metrics.csv").open(encoding="utf-8") as file:
        assert [row["train/refused"] for row in csv.DictReader(file)] == ["", "", "1", "1", "2", "2"]


@pytest.mark.parametrize("killed", [3, 4])
def test_a_skipping_run_resumes_exactly(
    killed: int, shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed right after the refused update, and one later; the spike is judged by losses from before."""
    run = make_run(shards, every=2, policy="skip", spike=3.0, window=2)
    with spoilt({3: 100.0}, "loss"):
        fit(run, tmp_path / "whole")
        fit_killed_and_resumed(run, tmp_path / "run", killed, monkeypatch)
    one, other = (states(tmp_path / name) for name in ("whole", "run"))
    assert same(one[6], other[6])
    for name in ("metrics.csv", "refused.tsv"):
        assert (tmp_path / "run" / name).read_text() == (tmp_path / "whole" / name).read_text()
    assert len(table(tmp_path / "run")) == 1


# ------------------------------------------------------------------------------------------------- stopping


@pytest.mark.parametrize("where", ["loss", "gradient"])
def test_a_run_stops_at_the_update_and_names_its_samples(where: Where, shards: Path, tmp_path: Path) -> None:
    """Not where something is logged next."""
    run = make_run(shards)
    run = dataclasses.replace(run, trainer=dataclasses.replace(run.trainer, log_every_n_steps=100))
    with spoilt({4: NAN}, where) as read, pytest.raises(InputError) as told:
        fit(run, tmp_path / "run")
    assert "Training diverged: at update 4 the loss is " in str(told.value)
    assert f"Its samples: {', '.join(read[4])}." in str(told.value)
    assert max(states(tmp_path / "run")) == 3
    assert max(read) == 4


def test_a_run_that_stopped_goes_on_past_the_update(shards: Path, tmp_path: Path) -> None:
    """As the message says, and as one ends that skipped it in the first place."""
    skipping = make_run(shards, policy="skip")
    with spoilt({4: NAN}):
        fit(skipping, tmp_path / "whole")
        with pytest.raises(InputError, match=r"with --divergence\.policy skip"):
            fit(make_run(shards), tmp_path / "run")
        fit(skipping, tmp_path / "run", resume=True)
    assert same(states(tmp_path / "run")[6], states(tmp_path / "whole")[6])


@pytest.mark.parametrize(
    ("limits", "spoils", "ends", "said"),
    [
        ({"in_a_row": 2}, (2, 3, 4), 4, r"It is the 3\. in a row, and divergence\.in_a_row allows 2"),
        ({"total": 2}, (1, 3, 5), 5, r"It is the 3\. of the run, and divergence\.total allows 2"),
    ],
)
def test_no_more_may_be_skipped_than_was_allowed(
    limits: dict[str, int], spoils: tuple[int, ...], ends: int, said: str, shards: Path, tmp_path: Path
) -> None:
    run = make_run(shards, policy="skip", **limits)
    with spoilt(dict.fromkeys(spoils, NAN)) as read, pytest.raises(InputError, match=said):
        fit(run, tmp_path / "run")
    assert max(read) == ends
    with spoilt(dict.fromkeys(spoils[:-1], NAN)):
        fit(run, tmp_path / "fewer")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("place", [0, 500, 999])
def test_one_value_that_is_no_number_is_found(dtype: torch.dtype, value: float, place: int) -> None:
    held = [torch.randn(10, 10, dtype=dtype), torch.empty(0, dtype=dtype), torch.randn(1000, dtype=dtype)]
    assert finite(held)
    held[2][place] = value
    assert not finite(held)


def test_without_values_all_are_numbers() -> None:
    assert finite([])
    assert finite([torch.empty(0, 3)])


def test_weights_that_a_finite_gradient_ruined_are_not_kept(shards: Path, tmp_path: Path) -> None:
    run = make_run(shards)
    with pytest.MonkeyPatch.context() as patch, pytest.raises(InputError, match="after update 2 some weights are no"):
        average = WeightAverage.update

        def ruins(self: Any, model: Any, update: int) -> None:
            average(self, model, update)
            if update == 2:
                with torch.no_grad():
                    next(model.parameters()).view(-1)[0] = INFINITE

        patch.setattr(WeightAverage, "update", ruins)
        fit(run, tmp_path / "run")
    assert list(states(tmp_path / "run")) == [1]


# ------------------------------------------------------------------------------------------------- rolling back


def test_rolled_back_a_run_has_the_checkpoints_weights_and_the_next_batch(
    shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = make_run(shards, 8, every=3, policy="roll_back")
    with spoilt({}) as undisturbed:
        fit(run, tmp_path / "whole")
    with spoilt({6: NAN}) as read, pytest.MonkeyPatch.context() as patch:
        patch.setattr(sealing, "content_of", None)  # all would wait for what it reads, which the run itself has written
        fit(run, tmp_path / "run")
    assert read == undisturbed
    found = states(tmp_path / "run")
    assert same_training(found[3], states(tmp_path / "whole")[3])
    assert same_training(found[6], found[3]), "what updates 4 and 5 did is undone"
    assert found[6]["global_step"] == 6
    assert not same_training(found[8], found[6])
    assert "Here the run went back to the weights after update 3." in capsys.readouterr().err
    assert [row["then"] for row in table(tmp_path / "run")] == ["roll_back"]


def test_a_run_that_rolled_back_resumes_exactly(shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed before there is a checkpoint of what it came to, it comes to the same again."""
    run = make_run(shards, 7, every=3, policy="roll_back")
    with spoilt({5: NAN}):
        fit(run, tmp_path / "whole")
        fit_killed_and_resumed(run, tmp_path / "run", 6, monkeypatch)
    one, other = (states(tmp_path / name) for name in ("whole", "run"))
    assert same(one[7], other[7])
    assert (tmp_path / "run" / "refused.tsv").read_text() == (tmp_path / "whole" / "refused.tsv").read_text()


def test_without_a_checkpoint_there_is_nothing_to_roll_back_to(shards: Path, tmp_path: Path) -> None:
    with spoilt({2: NAN}), pytest.raises(InputError, match="There is no checkpoint to roll back to yet: set checkp"):
        fit(make_run(shards, every=3, policy="roll_back"), tmp_path / "run")


# ------------------------------------------------------------------------------------------------- spikes


def judged(spec: DivergenceSpec, losses: list[float], kinds: list[int] | None = None) -> list[int]:
    """The updates, 1 the first, that a guard refuses."""
    guard, refused = Guard(spec), []
    for update, (loss, kind) in enumerate(zip(losses, kinds or [0] * len(losses), strict=True), start=1):
        if guard.judge(update, kind, torch.tensor(loss), torch.tensor(1.0)) is not None:
            refused.append(update)
    return refused


SPIKES = DivergenceSpec("skip", spike=2.0, window=3)


@pytest.mark.parametrize(
    ("losses", "refused"),
    [
        ([1.0, 9.0, 1.0, 1.0], []),  # there are too few to compare the second with
        ([1.0, 1.0, 1.0, 2.0, 2.01], [5]),  # above, not at
        ([1.0, 1.0, 9.0, 1.9], []),  # the median is not moved by one
        ([1.0, 1.0, 1.0, 9.0, 9.0, 9.0, 9.0], [4, 5, 6, 7]),  # what was refused counts for nothing
        ([1.0, 1.0, 1.0, NAN, 1.0, 2.5], [4, 6]),
        ([-1.0, -1.0, -1.0, -0.1, 5.0], []),
    ],
)
def test_a_spike_is_far_above_the_median_before_it(losses: list[float], refused: list[int]) -> None:
    assert judged(SPIKES, losses) == refused


def test_without_a_limit_nothing_is_a_spike() -> None:
    assert judged(DivergenceSpec("skip"), [1.0] * 100 + [1e6]) == []


def test_losses_of_one_kind_are_compared_with_their_own() -> None:
    losses, kinds = [1.0, 10.0] * 4 + [10.0, 10.0], [0, 1] * 5
    assert judged(SPIKES, losses, kinds) == [9]


def test_a_guard_goes_on_as_it_was() -> None:
    guard, again = Guard(SPIKES), Guard(SPIKES)
    for update, loss in enumerate([1.0, 1.0, 1.0, 5.0], start=1):
        guard.judge(update, 0, torch.tensor(loss), torch.tensor(1.0))
    again.load(guard.state())
    assert again.state() == guard.state() == {"in_a_row": 1, "total": 1, "losses": {0: [1.0, 1.0, 1.0]}}


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: DivergenceSpec(in_a_row=0), "DivergenceSpec.in_a_row must be at least 1"),
        (lambda: DivergenceSpec("skip", total=0), "DivergenceSpec.total must be at least 1"),
        (lambda: DivergenceSpec(spike=1.0), "DivergenceSpec.spike must be None or above 1"),
        (lambda: DivergenceSpec(spike=2.0, window=0), "DivergenceSpec.window must be at least 1"),
        (lambda: DivergenceSpec(total=5), "DivergenceSpec.policy must be skip or roll_back for limits"),
        (lambda: DivergenceSpec(window=5), "DivergenceSpec.window must be left as it is where spike is None"),
    ],
)
def test_what_would_be_ignored_is_refused(make: Callable[[], object], said: str) -> None:
    with pytest.raises(InputError, match=said):
        make()
