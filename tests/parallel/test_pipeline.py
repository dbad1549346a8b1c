"""Pipeline parallel: two real processes on gloo that have a language model's layers in turn train what one trains."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import Any

import pytest
import several
import torch
import torch.distributed as dist
from staged import HEADS, STACKS, TABLE, WORDS, Training, assert_same, copied, language_model
from tiny import tiny_model
from torch.testing._internal.distributed.fake_pg import FakeStore

from mmformer import collectives
from mmformer.errors import InputError
from mmformer.models.decoder import DecoderSpec
from mmformer.models.model import Model, ModelSpec
from mmformer.nn.halting import HaltingSpec
from mmformer.nn.layer import LayerSpec
from mmformer.nn.moe import MixtureOfExpertsSpec
from mmformer.nn.sharing import SharingSpec
from mmformer.parallel.mesh import ParallelSpec, holders_of, make_mesh, readers_of, stages_of
from mmformer.parallel.sharding import pipeline_of
from mmformer.parallel.stages import check_pipeline, spans
from mmformer.training.layouts import held, load_parts, load_whole, read_parts
from mmformer.training.writing_state import write_part
from mmformer.types import Text

WORLD, STEPS, HALF = 2, 20, 10


def work(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT="0")
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=WORLD)
    mesh = make_mesh(ParallelSpec(pipeline=WORLD), "cpu")
    collectives.divide_batches(readers := readers_of(mesh), holders_of(mesh, readers))
    collectives.divide_model(stages_of(mesh))
    found: dict[str, Any] = {}
    for name in STACKS:
        training = Training(name, mesh)
        updates = [training.update(step) for step in range(STEPS)]
        found[name] = {"updates": updates, "known": training.known(), "held": copied(held(training.model))}
        if name == "tied":
            write_part(training.state(), Path(folder, "state"), dist.group.WORLD)  # type: ignore[arg-type]
            resumed, again = Training(name, mesh), Training(name, mesh)
            load_whole(resumed, [resumed.optimizer], Path(folder, "one.ckpt"))
            found["resumed"] = {"updates": [resumed.update(step) for step in range(HALF, STEPS)]}
            found["resumed"]["known"] = resumed.known()
            load_parts(again, [again.optimizer], Path(folder, "state"))
            found["again"] = [again.update(STEPS), training.update(STEPS)]
    torch.save(found, f"{folder}/{rank}.pt")
    dist.barrier()
    os._exit(0)  # gloo's threads may abort a process that leaves in order; all that counts has been written


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What one process trains; half way it writes what the others go on from."""
    found: dict[str, Any] = {"folder": tmp_path_factory.mktemp("pipeline")}
    for name in STACKS:
        training = Training(name)
        updates = [training.update(step) for step in range(HALF)]
        if name == "tied":
            state = {"state_dict": held(training), "optimizer_states": [training.optimizer.state_dict()]}
            torch.save(state, found["folder"] / "one.ckpt")
        updates += [training.update(step) for step in range(HALF, STEPS)]
        found[name] = {"updates": updates, "known": training.known(), "names": list(training.model.state_dict())}
    return found


@pytest.fixture(scope="module")
def told(expected: dict[str, Any]) -> list[Any]:
    several.spawn(work, (str(expected["folder"]),), nprocs=WORLD)
    return [torch.load(expected["folder"] / f"{rank}.pt", weights_only=True) for rank in range(WORLD)]


@pytest.mark.parametrize("name", STACKS)
def test_twenty_updates_are_those_of_one_process(name: str, expected: dict[str, Any], told: list[Any]) -> None:
    updates = expected[name]["updates"]
    assert {f"gradient_norm/stacks.{name}", "gradient_norm/decoders.words", "write/cross_entropy"} <= updates[0].keys()
    assert all(float(update["norm"]) > 0.1 for update in updates), "they are clipped"
    for stage in told:
        for one, two in zip(updates, stage[name]["updates"], strict=True):
            assert_same(two, one, rtol=2e-6 if one is updates[0] else 1e-4, atol=1e-6)
        assert_same(stage[name]["known"], expected[name]["known"], rtol=1e-5, atol=2e-5)


def test_each_stage_has_its_share(expected: dict[str, Any], told: list[Any]) -> None:
    first, last = (set(stage["tied"]["held"]) for stage in told)
    assert first | last == set(expected["tied"]["names"])
    assert first & last == {TABLE}, "logits are tied to it"
    assert {name.split(".")[3] for name in first if ".layers." in name} == {"0", "1"}
    kept = {TABLE, "stacks.tied.norm.weight", "stacks.tied.norm.bias"}
    assert {name for name in last if ".layers." not in name} == kept
    assert set(told[0]["untied"]["held"]).isdisjoint(told[1]["untied"]["held"])


def test_what_several_stages_have_stays_the_same_to_the_bit(told: list[Any]) -> None:
    one, other = (stage["tied"]["held"] for stage in told)
    assert torch.equal(one[TABLE], other[TABLE])


def test_they_go_on_from_what_one_process_wrote(expected: dict[str, Any], told: list[Any]) -> None:
    for stage in told:
        for one, two in zip(expected["tied"]["updates"][HALF:], stage["resumed"]["updates"], strict=True):
            assert_same(two, one, rtol=1e-4, atol=1e-6)
        assert_same(stage["resumed"]["known"], expected["tied"]["known"], rtol=1e-5, atol=2e-5)


def test_they_go_on_from_what_they_wrote(told: list[Any]) -> None:
    for stage in told:
        again, uninterrupted = stage["again"]
        assert all(torch.equal(value, again[name]) for name, value in uninterrupted.items())


def test_one_process_reads_what_they_wrote(expected: dict[str, Any], told: list[Any]) -> None:
    torch.save({}, expected["folder"] / "state" / "meta.pt")
    state, training = read_parts(expected["folder"] / "state"), Training("tied")
    training.load_state_dict(state["state_dict"])
    training.optimizer.load_state_dict(state["optimizer_states"][0])
    assert_same(training.known(), told[0]["tied"]["known"], rtol=1e-6, atol=1e-6)
    assert_same(training.update(STEPS), told[0]["again"][0], rtol=2e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("depth", "stages", "layers"), [(12, 4, [3, 3, 3, 3]), (7, 3, [3, 2, 2]), (3, 3, [1, 1, 1]), (5, 2, [3, 2])]
)
def test_layers_are_shared_out_evenly(depth: int, stages: int, layers: list[int]) -> None:
    found = spans(depth, stages)
    assert [len(span) for span in found] == layers
    assert [layer for span in found for layer in span] == list(range(depth))


def changed(**changes: Any) -> ModelSpec:
    spec = language_model("tied")
    return dataclasses.replace(spec, stacks={"tied": dataclasses.replace(STACKS["tied"], **changes)})


PACKED = {"words": DecoderSpec(WORDS, "tied", packed=True)}


@pytest.mark.parametrize(
    ("model", "stages", "parts", "message"),
    [
        (tiny_model(), 2, 2, r"the model has model.encoders.image: stages are cut of a language model.*parallel.shard"),
        (dataclasses.replace(language_model("tied"), decoders=PACKED), 2, 2, r"decoders.words.packed has texts share"),
        (changed(sharing=SharingSpec(2)), 2, 2, r"stacks.tied.sharing has layers applied in several places"),
        (changed(halting=HaltingSpec()), 2, 2, r"stacks.tied.halting ends where all tokens have halted"),
        (changed(reversible=True), 2, 2, r"stacks.tied.reversible has layers over two streams"),
        (changed(layer=LayerSpec(HEADS, MixtureOfExpertsSpec(2))), 2, 2, r"stacks.tied has layers with experts"),
        (language_model("tied"), 4, 4, r"pipeline is 4, but model.stacks.tied.depth is 3.* to 3 at most"),
        (language_model("tied"), 2, 1, r"accumulate_grad_batches is 1: .* 2 stages need 2 at least .* 8 are better"),
    ],
)
def test_what_cannot_be_cut_is_refused(model: ModelSpec, stages: int, parts: int, message: str) -> None:
    with pytest.raises(InputError, match=message):
        check_pipeline(model, stages, parts)


def test_what_a_stage_refuses_is_told_as_it_is() -> None:
    """In training and in evaluation: PyTorch would say that a stage has failed, and its arguments."""
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=WORLD)
    try:
        stages = pipeline_of(Training("tied", make_mesh(ParallelSpec(pipeline=WORLD), "cpu")).model)
        assert stages is not None
        long = Text(torch.full((2, 4096), 3), torch.tensor([4096, 4096]))
        with pytest.raises(InputError, match="places on axis 0, but a token stands at"):
            stages.train([long, long], lambda number, x: x.sum())
        with pytest.raises(InputError, match="places on axis 0, but a token stands at"):
            stages.measure(long, lambda x: x.sum((1, 2)))
    finally:
        dist.destroy_process_group()


def test_what_does_not_go_with_stages_is_refused() -> None:
    with pytest.raises(InputError, match=r"= 2 × .* = 4, but stages .*parallel.tensor to 1 \(and parallel.shard to 2"):
        ParallelSpec(pipeline=2, tensor=2).check(language_model("tied"), 8, 2, 2)
    ParallelSpec(pipeline=2, data=2, shard=2).check(language_model("tied"), 8, 2, 4)
    assert pipeline_of(Model(language_model("tied"))) is None, "one process has all of it"
