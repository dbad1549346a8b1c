"""Parameters in main memory: on CPUs, where all is, two processes train what one trains, by FSDP2's policy for it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from launched import assert_alike, everything, fit
from tiny import tiny_model, write_shards
from torch.distributed.fsdp import CPUOffloadPolicy, FSDPModule
from torch.testing._internal.distributed.fake_pg import FakeStore

from mmformer.config import to_yaml
from mmformer.errors import InputError
from mmformer.parallel.allocation import allocate
from mmformer.parallel.mesh import ParallelSpec, make_mesh
from mmformer.parallel.sharding import spread


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_all_that_is_sharded_is_kept_in_main_memory(dtype: torch.dtype) -> None:
    with torch.device("meta"):
        model = tiny_model().build()
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=4)
    try:
        spread(model, make_mesh(ParallelSpec(data=2, shard=2), "cpu"), dtype, offloaded=True)
        allocate(model, 0, torch.device("cpu"), offloaded=True)
    finally:
        dist.destroy_process_group()
    groups = [each._get_fsdp_state()._fsdp_param_group for each in model.modules() if isinstance(each, FSDPModule)]
    assert len(groups) > 3
    assert all(isinstance(group.offload_policy, CPUOffloadPolicy) for group in groups if group is not None)


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"data": 2}, r"cpu_offload must be false where shard is 1, but is True"),
        ({"shard": 2, "pipeline": 2}, r"cpu_offload must be false beside pipeline and expert, but is True"),
        ({"shard": 2, "expert": 2}, r"cpu_offload must be false beside pipeline and expert, but is True"),
    ],
)
def test_what_it_does_not_go_with_is_refused(sizes: dict[str, int], message: str) -> None:
    with pytest.raises(InputError, match=message):
        ParallelSpec(cpu_offload=True, **sizes)  # type: ignore[arg-type]


@pytest.mark.slow
def test_two_processes_train_what_one_trains(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text(to_yaml(everything(write_shards(tmp_path / "shards"))), encoding="utf-8")
    fit(file, tmp_path / "one")
    fit(file, tmp_path / "two", "--parallel.shard", "2", "--parallel.cpu_offload", "true")
    assert_alike(tmp_path / "one", tmp_path / "two")
