"""Every optimizer over parameters that FSDP2 has sharded moves them as whole ones, and goes on from its checkpoint."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import several
import torch
from test_optimizers import BASES
from torch import nn

from mmformer.training.optimizers.optimizer import AveragingOptimizer, OptimizerSpec


def build() -> nn.Module:
    """Matrices, a kernel and vectors, of sizes that two processes do not divide."""
    return nn.Sequential(nn.Conv2d(3, 21, 2), nn.Flatten(), nn.Linear(84, 37), nn.GELU(), nn.Linear(37, 19))


def update(model: nn.Module, optimizer: torch.optim.Optimizer, inputs: torch.Tensor) -> None:
    optimizer.zero_grad()
    model(inputs).square().sum().backward()
    optimizer.step()


def check(spec: OptimizerSpec, inputs: torch.Tensor, folder: Path) -> None:
    """One process's part of it: three updates, a checkpoint, one more from there."""
    from torch.distributed import checkpoint
    from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict, set_optimizer_state_dict
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard
    from torch.distributed.tensor import DTensor

    def sharded(state: dict[str, torch.Tensor]) -> nn.Module:
        model = build()
        model.load_state_dict(state)
        for part in (model[2], model):  # type: ignore[index]
            fully_shard(part, mesh=mesh)
        return model

    mesh = init_device_mesh("cpu", (2,))
    torch.manual_seed(0)
    whole = build()
    model = sharded(whole.state_dict())
    optimizers = spec.build(whole), spec.build(model)
    for _ in range(3):
        for each, optimizer in zip((whole, model), optimizers, strict=True):
            update(each, optimizer, inputs)

    def assert_same(found: nn.Module, error: float) -> None:
        for parameter, other in zip(found.parameters(), whole.parameters(), strict=True):
            assert isinstance(parameter, DTensor)
            assert torch.allclose(parameter.full_tensor(), other, atol=error, rtol=error), type(spec).__name__

    assert_same(model, 1e-5)
    if isinstance(optimizers[0], AveragingOptimizer) and isinstance(optimizers[1], AveragingOptimizer):
        with optimizers[0].averaged(whole), optimizers[1].averaged(model), torch.no_grad():
            assert torch.allclose(whole(inputs), model(inputs), atol=1e-5), "a pass with the averages"
        assert_same(model, 1e-5)

    # As Lightning does it.
    path, options = folder / type(spec).__name__, {"planner": checkpoint.DefaultLoadPlanner()}
    checkpoint.save({"optimizer": get_optimizer_state_dict(model, optimizers[1])}, checkpoint_id=path)
    again = sharded({name: value.full_tensor() for name, value in model.state_dict().items()})
    optimizer = spec.build(again)
    state = {"optimizer": get_optimizer_state_dict(again, optimizer)}
    checkpoint.load(state, checkpoint_id=path, **options)
    set_optimizer_state_dict(again, optimizer, optim_state_dict=state["optimizer"])
    for each, own in ((model, optimizers[1]), (again, optimizer)):
        update(each, own, inputs)
    for one, other in zip(again.parameters(), model.parameters(), strict=True):
        assert torch.equal(one.to_local(), other.to_local()), f"{type(spec).__name__}: to the bit"  # type: ignore[attr-defined]


def work(rank: int, folder: str) -> None:
    torch.distributed.init_process_group("gloo", f"file://{folder}/store", world_size=2, rank=rank)
    torch.manual_seed(1)
    inputs = torch.randn(4, 3, 3, 3)
    for spec in BASES:
        check(spec, inputs, Path(folder))
    Path(folder, str(rank)).touch()
    torch.distributed.barrier()
    os._exit(0)  # gloo's threads may abort a process that leaves in order; all that counts has been checked


@pytest.mark.slow
def test_shards_move_as_the_whole_does(tmp_path: Path) -> None:
    several.spawn(work, (str(tmp_path),), nprocs=2)
    assert (tmp_path / "0").exists()
    assert (tmp_path / "1").exists()
