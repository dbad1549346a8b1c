"""Four real processes on gloo, on each mesh of two dimensions: one update is that of one process."""

from __future__ import annotations

import dataclasses
import os
from itertools import combinations, product
from typing import Any

import pytest
import several
import torch
import torch.distributed as dist
from tiny import tiny_batch, tiny_model
from torch import Tensor

from mmformer.models.model import Model
from mmformer.nn.feedforward import GELUFeedForwardSpec
from mmformer.nn.layer import LayerSpec
from mmformer.nn.moe import MixtureOfExpertsSpec
from mmformer.parallel.clipping import clip_gradients
from mmformer.parallel.mesh import DIMENSIONS, ParallelSpec, make_mesh
from mmformer.parallel.sharding import spread, synchronise_gradients, whole_state
from mmformer.training.average import EMASpec
from mmformer.training.norms import gradient_norms
from mmformer.training.optimizers.adamw import AdamWSpec
from mmformer.training.optimizers.muon import MuonSpec
from mmformer.training.optimizers.optimizer import OptimizerSpec

WORLD = 4
TESTED = [name for name in DIMENSIONS if name not in ("pipeline", "context")]  # those are of language models alone
PAIRS = list(combinations(TESTED, 2))
# The gradient of keys' biases is zero but for rounding, which a small eps would make steps of.
OPTIMIZERS: tuple[OptimizerSpec, ...] = (AdamWSpec(lr=1e-2, eps=1e-3), MuonSpec(lr=1e-2, eps=1e-3))
TEXTS = ["a red square", "blue", "a large green square, left", "pink"]


def built() -> Model:
    """Of six experts, two processes that share them out have three each; two that shard those have rows of them."""
    spec = tiny_model(caption=True)
    caption = spec.stacks["caption"]
    mixed = dataclasses.replace(caption.layer, feedforward=MixtureOfExpertsSpec(6, GELUFeedForwardSpec(ratio=1.0)))
    caption = dataclasses.replace(caption, depth=2, layer=LayerSpec(), pattern=(caption.layer, mixed))
    model = dataclasses.replace(spec, stacks=spec.stacks | {"caption": caption}).build()
    model.initialise(0)
    return model


def updated(model: Model, spec: OptimizerSpec) -> dict[str, Tensor]:
    """The norms of a gradient, and the weights and their averages after an update by it, clipped."""
    average = EMASpec(0.5, warmup=False).build(model)
    # All parts of a batch are the same here: their mean is what one process has. The gradient is sent with the second.
    for last in (False, True):
        synchronise_gradients(model, last)
        (model(tiny_batch(TEXTS)).losses["caption"].total / 2).backward()
    found = {**gradient_norms(model), "norm": clip_gradients(model.parameters(), 0.5)}
    optimizer = spec.build(model)
    optimizer.step()
    average.update(model, 1)
    found |= {f"weight of {name}": value.clone() for name, value in whole_state(model)}
    with average.applied(model):
        found |= {f"average of {name}": value.clone() for name, value in whole_state(model)}
    return found


def work(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT="0")
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=WORLD)
    found = {}
    for pair, spec in product(PAIRS, OPTIMIZERS):
        model = built()
        spread(model, make_mesh(ParallelSpec(**dict.fromkeys(pair, 2)), "cpu"))
        found[pair, type(spec).__name__] = updated(model, spec)
    torch.save(found, f"{folder}/{rank}.pt")
    dist.barrier()
    os._exit(0)  # gloo's threads may abort a process that leaves in order; all that counts has been written


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    folder = tmp_path_factory.mktemp("four")
    several.spawn(work, (str(folder),), nprocs=WORLD)
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(WORLD)]


@pytest.mark.slow
@pytest.mark.parametrize("spec", OPTIMIZERS, ids=lambda spec: type(spec).__name__)
@pytest.mark.parametrize("pair", PAIRS, ids=" and ".join)
def test_an_update_is_that_of_one_process(pair: tuple[str, str], spec: OptimizerSpec, told: list[Any]) -> None:
    expected = updated(built(), spec)
    assert float(expected["norm"]) > 0.5, "it is clipped"
    for everything in told:
        found = everything[pair, type(spec).__name__]
        assert found.keys() == expected.keys()
        for name, value in expected.items():
            torch.testing.assert_close(found[name], value, atol=1e-5, rtol=2e-6, msg=name)
