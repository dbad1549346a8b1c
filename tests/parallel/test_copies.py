"""What several processes hold alike is compared: real ones on gloo, one of which has a number that is another."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import several
import torch
import torch.distributed as dist
from launched import ROOT
from test_two_dimensions import built
from tiny import tiny_run, write_shards

from mmformer.config import to_yaml
from mmformer.models.model import Model
from mmformer.parallel.copies import BLOCK, Drift, _differing, _number, find_drift
from mmformer.parallel.mesh import ParallelSpec, make_mesh
from mmformer.parallel.sharding import local_part, spread

WORLD = 4
NORM, OUT, EXPERT = (
    "stacks.image.layers.0.mixer_residual.norm.weight",
    "stacks.image.layers.0.mixer.out.weight",
    "stacks.caption.layers.1.feedforward.experts.up.weight",
)
"""Whole along ``tensor``; shared out; an expert's."""


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("shape", [(), (7,), (3, BLOCK // 2 + 1)])
def test_every_bit_counts_and_where_it_stands(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    value = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(dtype)
    other = value.clone()
    assert _number(other) == _number(value)
    last = other.view(-1)[-1:]
    last.copy_(torch.nextafter(last, last + 1))
    assert _number(other) != _number(value)
    if shape:
        assert _number(value.flip(0)) != _number(value)
    assert _number(value.new_zeros(0, 3)) == 0, "a part may have nothing"


def test_those_that_say_the_same_stand_together() -> None:
    """Of one place; what others have of a parameter is another part of it."""
    here, there = ("shard", 0), ("shard", 1)
    told = [{here: {"a": 1, "b": 2}}, {there: {"a": 5, "b": 2}}, {here: {"a": 1, "b": 3}}, {there: {"a": 5, "b": 2}}]
    assert _differing(told) == {"b": [[0], [2]]}
    assert _differing(told[:2]) == {}


def perturb(model: Model, name: str) -> None:
    """Move the first number that this process has of a parameter to the next that there is."""
    part = local_part(dict(model.named_parameters())[name].detach()).view(-1)
    part[0] = torch.nextafter(part[0], part[0] + 1)


def work(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT="0")
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=WORLD)
    found: dict[str, Any] = {}
    for sizes in ({"tensor": 4}, {"data": 2, "tensor": 2}, {"data": 2, "expert": 2}, {"shard": 2, "expert": 2}):
        for name in (None, NORM, OUT, EXPERT):
            model = built()
            spread(model, make_mesh(ParallelSpec(**sizes), "cpu"))
            if rank == 2 and name is not None:
                perturb(model, name)
            found[f"{sizes} {name}"] = find_drift(model)
    torch.save(found, f"{folder}/{rank}.pt")
    dist.barrier()
    os._exit(0)  # gloo's threads may abort a process that leaves in order; all that counts has been written


@pytest.mark.slow
def test_copies_that_differ_are_named_by_all(tmp_path: Path) -> None:
    """Of what is shared out, nobody else has a copy."""
    several.spawn(work, (str(tmp_path),), nprocs=WORLD)
    with torch.serialization.safe_globals([Drift]):
        first, *others = (torch.load(tmp_path / f"{rank}.pt", weights_only=False) for rank in range(WORLD))
    assert all(other == first for other in others)
    alone, with_others = [[0, 1, 3], [2]], [[0], [2]]
    names = {"none": None, "norm": NORM, "out": OUT, "expert": EXPERT}
    expected: dict[str, dict[str, list[list[int]] | None]] = {
        str({"tensor": 4}): {"none": None, "norm": alone, "out": None, "expert": alone},
        str({"data": 2, "tensor": 2}): {"none": None, "norm": alone, "out": with_others, "expert": alone},
        str({"data": 2, "expert": 2}): {"none": None, "norm": with_others, "out": with_others, "expert": with_others},
        str({"shard": 2, "expert": 2}): dict.fromkeys(names),
    }
    for sizes, each in expected.items():
        for key, groups in each.items():
            drift = first[f"{sizes} {names[key]}"]
            assert drift == (None if groups is None else Drift(str(names[key]), groups, 1)), (sizes, key)


PERTURBED = """
import sys
import torch
from mmformer.cli.main import main
from mmformer.parallel.sharding import local_part
from mmformer.training.task import TrainingTask

train = TrainingTask.training_step

def perturbed(self, batch, batch_idx):
    train(self, batch, batch_idx)
    if self.global_step == 3 and self.trainer.global_rank == 1:
        part = local_part(dict(self.built.named_parameters())["NAME"].detach()).view(-1)
        part[0] = torch.nextafter(part[0], part[0] + 1)

TrainingTask.training_step = perturbed
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.slow
@pytest.mark.parametrize("dimension", ["tensor", "data"])
def test_no_checkpoint_is_made_of_copies_that_differ(dimension: str, tmp_path: Path) -> None:
    """The one before stays."""
    run = tiny_run(write_shards(tmp_path / "shards"), data={"test": None})
    file, script = tmp_path / "run.yaml", tmp_path / "perturbed.py"
    file.write_text(to_yaml(run), encoding="utf-8")
    script.write_text(PERTURBED.replace("NAME", NORM))
    words = ["fit", "--config", str(file), "--output", str(tmp_path / "run"), f"--parallel.{dimension}", "2"]
    done = subprocess.run(
        [sys.executable, str(script), *words, "--checkpoint.every_steps", "2"],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 2, done.stderr
    assert done.stderr.count("mmformer: ") == 1
    assert f"after update 4 the copies of {NORM} that processes hold are not the same any more" in done.stderr
    assert "those of process 0 and of process 1 differ" in done.stderr
    assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()] == ["step-000000002"]
