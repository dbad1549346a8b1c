"""Layers that are compiled: the losses and gradients of those that are not, by the same names."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as multiprocessing
from tiny import tiny_batch, tiny_model, tiny_run
from torch import Tensor

from mmformer.errors import InputError
from mmformer.models.model import Model
from mmformer.parallel.checkpointing import ActivationCheckpointingSpec
from mmformer.parallel.compiling import compile_layers
from mmformer.parallel.mesh import ParallelSpec, make_mesh
from mmformer.parallel.sharding import spread, whole

# Of PyTorch's own: what its compiler imports, and its look at what enters a layer.
pytestmark = pytest.mark.filterwarnings(
    "ignore:`torch.jit.script_method` is deprecated:DeprecationWarning",
    "ignore:The .grad attribute of a Tensor that is not a leaf",
)

TEXTS = ["a red square", "blue", "a large green square, left", "pink"]
WORLD = 2


def built() -> Model:
    model = tiny_model(caption=True).build()
    model.initialise(0)
    return model


def updated(model: Model) -> dict[str, Tensor]:
    loss = model(tiny_batch(TEXTS)).losses["caption"].total
    loss.backward()
    found = {name: whole(p.grad) for name, p in model.named_parameters() if p.grad is not None}
    return {**found, "loss": loss.detach()}


def assert_close(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys(), "the same names"
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-5, atol=1e-5, msg=name)


@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_compiled_layers_make_the_same(backend: str) -> None:
    """The graphs are those of the backend that fuses nothing, which is quick, and of the one that training has."""
    expected, model = updated(built()), built()
    compile_layers(model, backend=backend)
    assert_close(updated(model), expected)


def work(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT="0")
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=WORLD)
    found: list[Any] = []
    for name in ("shard", "tensor"):
        model = built()
        spread(model, make_mesh(ParallelSpec(**{name: WORLD}), "cpu"), compiled=True)
        found.append(updated(model))
    torch.save(found, f"{folder}/{rank}.pt")
    dist.barrier()
    os._exit(0)  # gloo's threads may abort a process that leaves in order; all that counts has been written


@pytest.mark.slow
def test_they_do_where_they_are_spread(tmp_path: Path) -> None:
    multiprocessing.spawn(work, (str(tmp_path),), nprocs=WORLD)
    for rank in range(WORLD):
        for found in torch.load(tmp_path / f"{rank}.pt", weights_only=True):
            assert_close(found, updated(built()))


def test_layers_that_are_computed_again_are_refused() -> None:
    with pytest.raises(InputError, match=r"compile must be false beside activation_checkpointing"):
        ParallelSpec(compile=True, activation_checkpointing=ActivationCheckpointingSpec())


def test_nothing_to_compile_is_refused(tmp_path: Path) -> None:
    model = tiny_model()
    stacks = {name: dataclasses.replace(stack, reversible=True) for name, stack in model.stacks.items()}
    with pytest.raises(InputError, match=r"parallel.compile makes a program of each layer, but all stacks are"):
        tiny_run(tmp_path, model=dataclasses.replace(model, stacks=stacks), parallel=ParallelSpec(compile=True))
