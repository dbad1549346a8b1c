"""What gradient accumulation sends: the bytes of one update, however many micro-batches it is cut into."""

from __future__ import annotations

import os
from contextlib import nullcontext
from typing import Any
from unittest.mock import patch

import pytest
import several
import torch
import torch.distributed as dist
from tiny import tiny_batch, tiny_model
from torch.utils._python_dispatch import TorchDispatchMode

from mmformer import collectives
from mmformer.models.model import Model
from mmformer.objectives.captioning import CaptioningSpec
from mmformer.parallel.mesh import ParallelSpec, make_mesh, readers_of
from mmformer.parallel.sharding import spread
from mmformer.training import accumulate as accumulating

TEXTS = ["a red square", "blue", "a large green square, left", "pink"]
WORLD = 2


class Sent(TorchDispatchMode):
    """The bytes of gradients that a process handed to sums over all processes: those that are more than a few."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        name = func.overloadpacket.__name__
        if func.namespace == "c10d" and ("reduce_scatter" in name or "allreduce" in name):
            flat = [value for each in args for value in (each if isinstance(each, (list, tuple)) else [each])]
            tensors = [value for value in flat if isinstance(value, torch.Tensor)]
            self.bytes += max(value.numel() * value.element_size() for value in tensors if value.is_floating_point())
        return func(*args, **(kwargs or {}))


def sent(spec: ParallelSpec, parts: int, always: bool) -> int:
    """Bytes that an update sends of its gradients; ``always``: with every micro-batch, which is what must not be."""
    model = built()
    spread(model, make_mesh(spec, "cpu"))
    left = patch.object(accumulating, "synchronise_gradients", lambda *_: None) if always else nullcontext()
    with left, Sent() as counted:
        update(model, parts)
    return counted.bytes


def built() -> Model:
    model = tiny_model(caption=True).build()
    model.initialise(0)
    return model


def update(model: Model, parts: int) -> None:
    objectives = {"caption": CaptioningSpec().build()}
    backward = torch.Tensor.backward
    accumulating.accumulate(model, objectives, {"caption": 1.0}, tiny_batch(TEXTS), parts, backward)


def work(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT="0")
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=WORLD)
    found: dict[str, list[int]] = {}
    for name in ("shard", "data"):
        spec = ParallelSpec(**{name: WORLD})
        collectives.divide_batches(readers_of(make_mesh(spec, "cpu")))
        found[name] = [sent(spec, 1, False), sent(spec, 2, False), sent(spec, 4, False), sent(spec, 2, True)]
    torch.save(found, f"{folder}/{rank}.pt")
    dist.barrier()
    os._exit(0)  # gloo's threads may abort a process that leaves in order; all that counts has been written


@pytest.fixture(scope="module")
def counted(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("sent")
    several.spawn(work, (str(folder),), nprocs=WORLD)
    return torch.load(folder / "0.pt", weights_only=True)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["shard", "data"])
def test_gradients_are_sent_once_an_update(name: str, counted: dict[str, list[int]]) -> None:
    one, two, four, always = counted[name]
    model = built()
    update(model, 1)
    own = sum(4 * parameter.numel() for parameter in model.parameters() if parameter.grad is not None)
    assert own <= one < 1.1 * own, "each gradient once, in float32; shards are filled up"
    few = 64  # losses and items, which are numbers
    assert abs(two - one) <= few * 4 and abs(four - one) <= few * 4
    assert always > 1.9 * one, "with every micro-batch it is twice as much"
