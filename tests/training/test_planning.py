"""Plans of runs: near to what is measured, and what they say of layouts."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from tiny import tiny_model, tiny_run

from benchmarks.plan import CASES, Case, measured, planned
from mmformer.config import to_yaml
from mmformer.errors import InputError
from mmformer.nn.bias import RelativeBucketPositionSpec
from mmformer.objectives.captioning import CaptioningSpec
from mmformer.objectives.contrastive import ContrastiveSpec
from mmformer.scaling.cost import memory
from mmformer.scaling.devices import Device, Devices, read_devices
from mmformer.training.planned import PlannedRun
from mmformer.training.planning import plan
from mmformer.training.run import RunSpec, TrainerSpec
from mmformer.training.stand_in import Lengths

TEXTS = Lengths(text=(3, 7, 12))


def run_of(caption: bool = False, **changes: object) -> RunSpec:
    """A run whose data is not there."""
    objectives = {"contrastive": ContrastiveSpec()} | ({"caption": CaptioningSpec()} if caption else {})
    return tiny_run(Path("nowhere"), model=tiny_model(width=32, caption=caption), objectives=objectives, **changes)


@pytest.mark.parametrize(
    "caption", [pytest.param(False, id="CLIP"), pytest.param(True, id="CoCa", marks=pytest.mark.slow)]
)
def test_a_plan_is_within_a_tenth_of_what_is_measured(caption: bool, tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text(to_yaml(run_of(caption)))
    case = Case("tiny", {"config": str(file)}, samples=48, lengths=TEXTS)
    plan, real = planned(case), measured(case)
    assert plan.flops == pytest.approx(real.flops, rel=1e-6)
    assert plan.peak == pytest.approx(real.peak, rel=0.1)


@pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
def test_there_are_the_runs_that_plans_are_measured_on(case: Case) -> None:
    assert case.run().objectives


def test_what_is_held_grows_with_the_batch_and_is_shared_out() -> None:
    planned_run = PlannedRun(run_of(), TEXTS)
    small, large = planned_run.cost(8), planned_run.cost(32)
    assert large.flops == pytest.approx(4 * small.flops, rel=0.05)
    alone, of_four = memory(large), memory(large, 4)
    assert of_four.parameters == alone.parameters / 4
    assert of_four.activations == alone.activations > memory(small).activations
    assert alone.optimizer == pytest.approx(2 * alone.parameters, rel=0.01)  # two moments
    assert of_four.most < sum(of_four[:5])
    assert alone.gathered == 0 < of_four.gathered


def test_fewer_heads_and_units_of_each_process() -> None:
    whole, half = PlannedRun(run_of(), TEXTS), PlannedRun(run_of(), TEXTS, tensor=2)
    assert whole.sizes().layer == pytest.approx(2 * half.sizes().layer, rel=0.05)
    assert whole.cost(8).flops > half.cost(8).flops > whole.cost(8).flops / 2


def test_a_bias_of_positions_and_padding_are_of_each_process_alone() -> None:
    model = tiny_model(width=32)
    text = dataclasses.replace(model.stacks["text"], position=RelativeBucketPositionSpec())
    model = dataclasses.replace(model, stacks={**model.stacks, "text": text})
    biased = tiny_run(Path("nowhere"), model=model, objectives={"contrastive": ContrastiveSpec()})
    flops = [PlannedRun(biased, TEXTS, tensor=tensor).cost(8).flops for tensor in (1, 2)]
    assert flops[0] > flops[1] > flops[0] / 2


@pytest.mark.slow
def test_the_largest_batch_fits_and_hardly_more_would() -> None:
    run = run_of()
    few = Devices(1, Device("small", 40e6, 1e12, 1e12))
    (layout,) = plan(run, few, TEXTS).layouts
    room = 0.9 * few.device.memory
    assert layout.fits
    assert memory(PlannedRun(run, TEXTS).cost(layout.largest)).most == pytest.approx(room, rel=0.05)


def test_time_follows_from_flops_and_a_share_of_the_peak() -> None:
    told = plan(run_of(trainer=TrainerSpec(100, precision="bf16-mixed")), read_devices("2xH100"), TEXTS, mfu=0.5)
    assert told.seconds == pytest.approx((told.forward + told.backward) / (2 * 989.4e12 * 0.5))
    assert [each.sizes for each in told.layouts] == [{"data": 2}, {"shard": 2}]
    assert told.lengths == {"image": 4, "text": 16}


def test_a_decoder_has_a_cache() -> None:
    cache = PlannedRun(run_of(caption=True), TEXTS).caches()["caption"]
    width, layers, length, patches = 32, 1, 16, 4
    places = 4 * 8 * length  # of keys: three coordinates and more, in int64
    assert cache.length == length
    assert 0 <= cache.bytes - 4 * 2 * width * layers * (length + patches) <= places
    assert cache.read == 4 * patches * width


@pytest.mark.parametrize(
    ("lengths", "told"), [(Lengths(text=(99,)), "have to be 1 to 16"), (Lengths(target=(0,)), "have to be 1 to 16")]
)
def test_lengths_that_the_model_does_not_read(lengths: Lengths, told: str) -> None:
    run = run_of(caption=True)
    run = dataclasses.replace(run, data=dataclasses.replace(run.data, target=run.data.text))
    with pytest.raises(InputError, match=told):
        PlannedRun(run, lengths).cost(2)


def test_more_devices_than_samples() -> None:
    with pytest.raises(InputError, match="less than a sample for each of 64 devices"):
        plan(run_of(), read_devices("64xH100"))
