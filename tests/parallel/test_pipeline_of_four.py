"""Pipeline parallel in four processes on gloo: stages of two replicas, or of two shards, train what one trains."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import several
import torch
import torch.distributed as dist
from staged import Training, assert_same

from mmformer import collectives
from mmformer.parallel.mesh import ParallelSpec, holders_of, make_mesh, readers_of, stages_of

WORLD, STEPS = 4, 10


def work(rank: int, folder: str) -> None:
    """Two stages, of two replicas or shards each: as they are, in half the precision, and compiled."""
    torch.set_num_threads(1)
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT="0")
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=WORLD)
    found: dict[str, Any] = {}
    for layout in ("data", "shard"):
        mesh = make_mesh(ParallelSpec(pipeline=2, **{layout: 2}), "cpu")
        collectives.divide_batches(readers := readers_of(mesh), holders_of(mesh, readers))
        collectives.divide_model(stages_of(mesh))
        training = Training("tied", mesh)
        found[layout] = {"updates": [training.update(step, 2) for step in range(STEPS)], "known": training.known()}
        with torch.autocast("cpu", torch.bfloat16, cache_enabled=False):  # as Lightning has it
            found[layout]["halved"] = Training("untied", mesh, dtype=torch.bfloat16).update(0, 2)
        with patch("torch.compile", partial(torch.compile, backend="aot_eager")):
            found[layout]["compiled"] = Training("tied", mesh, compiled=True).update(0, 2)
    torch.save(found, f"{folder}/{rank}.pt")
    dist.barrier()
    os._exit(0)  # gloo's threads may abort a process that leaves in order; all that counts has been written


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated:DeprecationWarning")
def test_stages_of_replicas_and_of_shards_train_what_one_process_trains(tmp_path: Path) -> None:
    several.spawn(work, (str(tmp_path),), nprocs=WORLD)
    training = Training("tied")
    updates = [training.update(step) for step in range(STEPS)]
    with torch.autocast("cpu", torch.bfloat16, cache_enabled=False):
        halved = Training("untied").update(0)
    assert not torch.equal(halved["loss"], Training("untied").update(0)["loss"])
    for rank in range(WORLD):
        told = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        for found in told.values():
            for one, four in zip(updates, found["updates"], strict=True):
                assert_same(four, one, rtol=2e-6 if one is updates[0] else 1e-4, atol=1e-6)
            assert_same(found["known"], training.known(), rtol=1e-5, atol=2e-5)
            assert_same(found["compiled"], updates[0], rtol=1e-5, atol=1e-6)
            assert_same(found["halved"], halved, rtol=0.02, atol=1e-3)
