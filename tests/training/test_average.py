"""Averaged weights: by hand, exchanged and put back, in place of the weights in all that a run keeps, and sharded."""

from __future__ import annotations

import dataclasses
import math
import os
from pathlib import Path
from typing import Any

import pytest
import several
import torch
from safetensors.torch import load_file
from tiny import tiny_model, tiny_run, write_shards
from torch import Tensor, nn

from mmformer.errors import InputError
from mmformer.evaluation.metric import evaluate
from mmformer.training import evaluate as evaluation
from mmformer.training.average import EMASpec
from mmformer.training.fit import fit
from mmformer.training.run import CheckpointSpec, EvaluationSpec
from mmformer.training.task import TrainingTask


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_shards(tmp_path_factory.mktemp("shards"))


# ------------------------------------------------------------------------------------------------- the averages


def moved(model: nn.Module, step: int) -> dict[str, Tensor]:
    """The weights after a made-up update."""
    with torch.no_grad():
        for index, parameter in enumerate(model.parameters()):
            parameter.add_(0.1 * math.sin(step + index))
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


@pytest.mark.parametrize("spec", [EMASpec(0.5), EMASpec(0.9), EMASpec(0.9, warmup=False)], ids=str)
def test_averages_are_those_by_hand(spec: EMASpec) -> None:
    model = nn.Linear(3, 2)
    average = spec.build(model)
    expected = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    for update in range(1, 6):
        weights = moved(model, update)
        share = min(spec.decay, (1 + update) / (10 + update)) if spec.warmup else spec.decay
        expected = {name: share * expected[name] + (1 - share) * weights[name] for name in weights}
        average.update(model, update)
    for name, value in expected.items():
        assert torch.allclose(average.get_buffer(name), value, atol=1e-6)


def test_the_share_that_stays() -> None:
    warm = [2 / 11, 3 / 12, 80 / 89, 0.9, 0.9, 0.9]
    assert [EMASpec(0.9).decay_at(n) for n in (1, 2, 79, 80, 81, 1000)] == pytest.approx(warm)
    assert [EMASpec(0.9, warmup=False).decay_at(n) for n in (1, 1000)] == [0.9, 0.9]
    assert {field.name for field in dataclasses.fields(EMASpec)} == {"decay", "warmup"}


@pytest.mark.parametrize("decay", [0.0, 1.0, -0.5, math.nan])
def test_a_decay_out_of_range_is_refused(decay: float) -> None:
    with pytest.raises(InputError, match=r"EMASpec\.decay must be above 0 and below 1"):
        EMASpec(decay)


def test_only_what_trains_is_averaged_and_shared_weights_once() -> None:
    model = tiny_model().build()
    model.initialise(0)
    for parameter in model.encoders["image"].parameters():
        parameter.requires_grad_(False)
    average = EMASpec().build(model)
    trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    assert [name.replace("/", ".") for name, _ in average.named_buffers()] == trained
    assert list(average.parameters()) == []
    tied = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    tied[1].weight = tied[0].weight
    assert [name for name, _ in EMASpec().build(tied).named_buffers()] == ["0/weight", "0/bias", "1/bias"]


def test_averages_are_exchanged_for_the_weights_and_back() -> None:
    model = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 2))
    average = EMASpec(0.5).build(model)
    weights = moved(model, 1)
    average.update(model, 1)
    averages = {name.replace("/", "."): value.clone() for name, value in average.named_buffers()}
    places = [parameter.data_ptr() for parameter in model.parameters()]
    with pytest.raises(KeyboardInterrupt), average.applied(model):
        assert all(torch.equal(parameter, averages[name]) for name, parameter in model.named_parameters())
        raise KeyboardInterrupt
    assert all(torch.equal(parameter, weights[name]) for name, parameter in model.named_parameters())
    assert all(torch.equal(value, averages[name.replace("/", ".")]) for name, value in average.named_buffers())
    assert [parameter.data_ptr() for parameter in model.parameters()] == places, "the optimizer's stay the model's"


# ------------------------------------------------------------------------------------------------- a run


def copied(model: nn.Module) -> dict[str, Tensor]:
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def bundle(output: Path, name: str = "bundle") -> dict[str, Tensor]:
    return load_file(output / name / "model.safetensors")


def equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_all_that_is_kept_and_measured_is_averaged(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The weights that train are those of a run without averages; the averages of them are what is kept."""
    run = tiny_run(shards)
    run = dataclasses.replace(
        run,
        evaluation=EvaluationSpec(run.evaluation.metrics, every_steps=3),
        checkpoint=CheckpointSpec(best="retrieval/image_to_text/median_rank", mode="min"),
    )
    history: list[dict[str, Tensor]] = []
    measured: list[dict[str, Tensor]] = []
    train = TrainingTask.training_step

    def watched(self: TrainingTask, *args: Any) -> None:
        train(self, *args)
        history.append(copied(self.built))

    def seen(model: Any, *args: Any) -> Any:
        measured.append(copied(model))
        return evaluate(model, *args)

    monkeypatch.setattr(TrainingTask, "training_step", watched)
    monkeypatch.setattr(evaluation, "evaluate", seen)
    fit(run, tmp_path / "plain")
    plain, plain_measured = history.copy(), measured.copy()
    history.clear()
    measured.clear()
    spec = EMASpec(0.8)
    fit(dataclasses.replace(run, ema=spec), tmp_path / "averaged")
    assert all(equal(a, b) for a, b in zip(history, plain, strict=True)), "training does not see the averages"
    task = TrainingTask(run)
    task.configure_model()
    averages = [copied(task.built)]
    for update, weights in enumerate(plain, 1):
        last, share = averages[-1], 1 - spec.decay_at(update)
        averages.append({name: last[name].lerp(weights[name], share) for name in weights})
    assert equal(bundle(tmp_path / "plain"), plain[-1])
    assert equal(bundle(tmp_path / "averaged"), averages[-1])
    # Measured while training, after updates 3 and 6, and, as a bundle, at the end.
    assert all(equal(a, b) for a, b in zip(plain_measured, [plain[2], plain[5], plain[5]], strict=True))
    assert all(equal(a, b) for a, b in zip(measured, [averages[3], averages[6], averages[6]], strict=True))
    best = bundle(tmp_path / "averaged", "best")
    assert equal(best, averages[3]) or equal(best, averages[6])
    card = (tmp_path / "averaged" / "bundle" / "README.md").read_text()
    assert "Its weights are averages over the updates." in card


CHANGES: list[tuple[dict[str, Any], dict[str, Any], str]] = [
    ({"ema": EMASpec(0.9)}, {"ema": EMASpec(0.8)}, r"ema\.decay: 0\.9 before, 0\.8 now"),
    ({"ema": EMASpec(0.9)}, {"ema": EMASpec(0.9, warmup=False)}, r"ema\.warmup: True before, False now"),
    ({}, {"ema": EMASpec(0.9)}, r"ema\.decay: absent before, 0\.9 now"),
    ({}, {"freeze": ("*.bias",)}, r"freeze\.0: absent before, \*\.bias now"),
]


@pytest.mark.parametrize(("before", "now", "message"), CHANGES, ids=lambda value: str(value)[:40])
def test_a_resumed_run_may_not_change_what_is_averaged_or_frozen(
    before: dict[str, Any], now: dict[str, Any], message: str, shards: Path, tmp_path: Path
) -> None:
    run = tiny_run(shards, steps=2, data={"test": None}, **before)
    fit(run, tmp_path / "run")
    with pytest.raises(InputError, match=message):
        fit(dataclasses.replace(run, **now), tmp_path / "run", resume=True)


# ------------------------------------------------------------------------------------------------- sharded


def sharded(rank: int, folder: str) -> None:
    """One of two processes: averages of a model that FSDP2 has sharded, against those of the whole model."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard
    from torch.distributed.tensor import DTensor

    torch.distributed.init_process_group("gloo", f"file://{folder}/store", world_size=2, rank=rank)
    torch.manual_seed(0)
    whole, model = (nn.Sequential(nn.Linear(5, 3), nn.Linear(3, 3)) for _ in range(2))
    model.load_state_dict(whole.state_dict())
    mesh = init_device_mesh("cpu", (2,))
    fully_shard(model[0], mesh=mesh)
    fully_shard(model, mesh=mesh)
    models = (whole, model)
    averages = [EMASpec(0.7).build(one) for one in models]
    optimizers = [torch.optim.SGD(one.parameters(), lr=0.1) for one in models]
    inputs = torch.randn(4, 5)
    for update in (1, 2, 3):
        found = []
        for one, optimizer, average in zip(models, optimizers, averages, strict=True):
            optimizer.zero_grad()
            one(inputs).square().sum().backward()
            optimizer.step()
            average.update(one, update)
            with average.applied(one), torch.inference_mode():
                found.append(one(inputs))
        assert torch.allclose(*found, atol=1e-6), "a pass with the averages"
    for name, buffer in averages[1].named_buffers():
        assert isinstance(buffer, DTensor), "as sharded as the parameter"
        assert torch.allclose(buffer.full_tensor(), averages[0].get_buffer(name), atol=1e-6)
    for name, parameter in model.named_parameters():
        assert isinstance(parameter, DTensor)
        assert torch.allclose(parameter.full_tensor(), whole.get_parameter(name), atol=1e-6), "and trained on"
    Path(folder, str(rank)).touch()
    torch.distributed.barrier()
    os._exit(0)  # gloo's threads may abort a process that leaves in order; all that counts has been checked


@pytest.mark.slow
def test_shards_are_averaged_as_the_whole_is(tmp_path: Path) -> None:
    several.spawn(sharded, (str(tmp_path),), nprocs=2)
    assert (tmp_path / "0").exists()
    assert (tmp_path / "1").exists()
