"""States of several processes, here of one that has a group of its own: what is saved, and what is loaded of it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from killed import assert_equal
from torch import nn
from torch._C._distributed_c10d import HashStore
from torch.distributed.tensor import Replicate, Shard, distribute_tensor, init_device_mesh

from mmformer.errors import InputError
from mmformer.parallel.mesh import ParallelSpec
from mmformer.training import writing_state
from mmformer.training.background import HostCopy
from mmformer.training.layouts import by_number, load_parts, load_whole, read_parts
from mmformer.training.processes import MeshStrategy
from mmformer.training.sealing import Content
from mmformer.training.writing_state import write_part


@pytest.fixture(scope="module")
def group() -> Iterator[Any]:
    dist.init_process_group("gloo", store=HashStore(), rank=0, world_size=1)
    yield dist.group.WORLD
    dist.destroy_process_group()


class Training:
    """Two maps, of which the second has no gradient yet; and its weight none in the optimizer's first group."""

    def __init__(self, updates: int) -> None:
        torch.manual_seed(updates)
        self.model = nn.Sequential(nn.Linear(3, 2), nn.Linear(3, 2))
        (first, second) = self.model
        groups = [{"params": [second.weight, first.bias]}, {"params": [first.weight, second.bias], "lr": 0.5}]
        self.optimizer = torch.optim.AdamW(groups, lr=0.1)
        for _ in range(updates):
            first(torch.ones(1, 3)).sum().backward()
            self.optimizer.step()
            self.optimizer.zero_grad()

    def state(self) -> dict[str, Any]:
        """As Lightning hands it over."""
        strategy = MeshStrategy(ParallelSpec(shard=2))
        strategy.model = self.model
        states = [strategy.optimizer_state(self.optimizer)]
        return {"state_dict": strategy.lightning_module_state_dict(), "optimizer_states": states, "global_step": 7}

    def known(self) -> dict[str, Any]:
        return {"weights": self.model.state_dict(), "optimizer": self.optimizer.state_dict()}


@pytest.mark.parametrize("updates", [0, 3])
def test_what_had_no_gradient_yet_has_no_state_when_it_is_loaded_either(
    updates: int, group: Any, tmp_path: Path
) -> None:
    """From what several processes wrote, and from what one did; into one that is new, and one that is further."""
    written = Training(updates)
    write_part(written.state(), tmp_path / "parts", group)
    whole = {"state_dict": written.model.state_dict(), "optimizer_states": [written.optimizer.state_dict()]}
    torch.save(whole, tmp_path / "one.ckpt")
    assert_equal(read_parts(tmp_path / "parts"), whole | {"global_step": 7})
    for begun in (0, 5):
        several, one = Training(begun), Training(begun)
        assert load_parts(several.model, [several.optimizer], tmp_path / "parts") == {"global_step": 7}
        assert_equal(several.known(), written.known())
        load_whole(one.model, [one.optimizer], tmp_path / "one.ckpt")
        assert_equal(one.known(), written.known())


def test_to_save_a_state_changes_nothing() -> None:
    """Nor is an update made for it, of an optimizer whose first was not applied."""
    saved, other = Training(0), Training(0)
    state = saved.state()["optimizer_states"][0]
    assert state["state"] == {}
    assert by_number(state) == other.optimizer.state_dict()
    assert_equal(saved.known(), other.known())
    assert len(saved.optimizer.state) == 0


def test_of_sharded_tensors_the_parts_are_copied_into_the_same_memory(group: Any) -> None:
    """So that a copy takes as much again as the parts have, not twice that while it is replaced."""
    mesh = init_device_mesh("cpu", (1, 1), mesh_dim_names=("data", "shard"))
    value = distribute_tensor(torch.arange(6.0).view(2, 3), mesh, [Replicate(), Shard(0)])
    host = HostCopy()
    taken = host.take({"a": value, "tied": value})
    value += 1
    assert torch.equal(taken["a"].full_tensor(), torch.arange(6.0).view(2, 3))
    assert taken["tied"] is taken["a"]
    assert (taken["a"].placements, taken["a"].device_mesh) == (value.placements, mesh)
    again = host.take({"a": value})
    assert again["a"] is taken["a"]
    assert torch.equal(again["a"].full_tensor(), value.full_tensor())


@pytest.mark.parametrize(("told", "found"), [("__1_0.distcp", "is not here"), (".metadata", "has [\\d,]+ bytes here")])
def test_parts_that_are_on_another_machine_make_no_checkpoint(
    told: str, found: str, group: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def of_two(parts: list[Any], own: Any, group: Any) -> None:
        parts[:] = [own, {told: Content(5_000, "0")}]

    monkeypatch.setattr(writing_state.dist, "all_gather_object", of_two)
    with pytest.raises(
        InputError, match=rf"wrote 5,000 bytes to state\.ckpt/{told}, which {found}: all machines .*--output"
    ):
        write_part(Training(1).state(), tmp_path / "state.ckpt", group)
