"""Where the time of updates goes."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny import tiny_run, write_shards

from mmformer.errors import InputError
from mmformer.parallel.mesh import ParallelSpec
from mmformer.training.profiling import OTHER, PHASES, Phase, Profile, Spent, profile


def test_phases_and_modules_of_a_run(tmp_path: Path) -> None:
    shards = write_shards(tmp_path / "data")
    files = sorted(tmp_path.rglob("*"))
    told = profile(tiny_run(shards), steps=2)
    assert sorted(tmp_path.rglob("*")) == files, "nothing is written"
    assert tuple(told.phases) == PHASES
    assert sum(phase.share for phase in told.phases.values()) == pytest.approx(1)
    modules = {module.name: module for module in told.modules}
    mapped = [module for name, module in modules.items() if name.startswith("stacks.")]
    assert any(module.forward > 0 for module in mapped)
    assert any(module.backward > 0 for module in mapped), "what ran backwards is known by module"
    assert OTHER in modules


def test_several_processes_are_refused(tmp_path: Path) -> None:
    run = tiny_run(write_shards(tmp_path), parallel=ParallelSpec(shard=2))
    with pytest.raises(InputError, match="profile trains in one process"):
        profile(run, 1)


def shares(**given: float) -> Profile:
    phases = {name: Phase(0.1, given.get(name.replace(" ", "_"), 0.0)) for name in PHASES}
    return Profile("cpu", "32-true", 8, 0, 2, 0.1, phases, [Spent("stacks.image", 1.0, 2.0, 0.6)])


@pytest.mark.parametrize(
    ("told", "lever"),
    [
        (shares(data_wait=0.43), "the loader: 43 % of an update is waiting for data, and data.workers is 0"),
        (shares(data_wait=0.43)._replace(workers=2), "it has 2 workers: raise data.workers"),
        (shares(host_to_device=0.9), "moving batches to the device"),
        (shares(optimizer=0.5), "the optimizer, with clipping: 50 %"),
        (shares(backward=0.7), "60 % are in stacks.image: set trainer.precision to bf16-mixed"),
        (shares(forward=0.7)._replace(precision="bf16-mixed"), "make it smaller"),
    ],
)
def test_the_largest_lever_is_named(told: Profile, lever: str) -> None:
    assert lever in told.lever
