"""What FSDP2 gathers where products are made in bfloat16: half the bytes of linear maps, one process's gradients."""

from __future__ import annotations

import os
from itertools import product
from typing import Any

import pytest
import several
import torch
import torch.distributed as dist
from tiny import tiny_batch, tiny_model
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from mmformer.models.model import Model, ModelSpec
from mmformer.nn.attention import AttentionSpec
from mmformer.nn.feedforward import SwiGLUFeedForwardSpec
from mmformer.nn.layer import LayerSpec
from mmformer.nn.mamba import MambaSpec
from mmformer.nn.moe import MixtureOfExpertsSpec
from mmformer.nn.stack import StackSpec
from mmformer.parallel.checkpointing import ActivationCheckpointingSpec, checkpoint_layers
from mmformer.parallel.mesh import ParallelSpec, make_mesh
from mmformer.parallel.sharding import drop_gathered, spread, synchronise_gradients, whole

TEXTS = ["a red square", "blue", "a large green square, left", "pink"]
WORLD = 2
CASES = list(product(("tiny", "hybrid"), (False, True)))
"""A model, and whether its layers compute their activations again."""


class Gathered(TorchDispatchMode):
    """The bytes of parameters that a process gathered."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        if func.namespace == "c10d" and "allgather" in func.overloadpacket.__name__:
            self.bytes += max(value.numel() * value.element_size() for value in args if isinstance(value, Tensor))
        return func(*args, **(kwargs or {}))


def built(name: str, again: bool) -> Model:
    spec = tiny_model(caption=True)
    if name == "hybrid":  # parts that autocast rounds beside others that it does not, and maps that tokens choose
        layers = (
            LayerSpec(MambaSpec(expand=1, states=4, bidirectional=True)),
            LayerSpec(AttentionSpec(2, qk_norm=True), MixtureOfExpertsSpec(3), layer_scale=0.5),
            LayerSpec(AttentionSpec(2), SwiGLUFeedForwardSpec(), parallel=True),
        )
        spec = ModelSpec({"text": StackSpec(16, 3, pattern=layers)}, {"text": spec.encoders["text"]}, {}, {})
    model = spec.build()
    model.initialise(0)
    if again:
        checkpoint_layers(model, ActivationCheckpointingSpec())
    return model


def updated(model: Model) -> dict[str, Tensor]:
    """A loss without a gradient, and that of two micro-batches with theirs; all parts of a batch are the same here."""
    batch = tiny_batch(TEXTS)
    with torch.autocast("cpu", torch.bfloat16, cache_enabled=False):  # as Lightning has it
        with torch.no_grad():
            found = {"before": _loss(model, batch)}
        for last in (False, True):
            synchronise_gradients(model, last)
            loss = _loss(model, batch) / 2
            loss.backward()
    found["loss"] = loss.detach()
    drop_gathered(model)
    found |= {name: whole(p.grad) for name, p in model.named_parameters() if p.grad is not None}
    return found


def _loss(model: Model, batch: Any) -> Tensor:
    outputs = model(batch)
    total = torch.stack([embedding.float().sum() for embedding in outputs.embedding.values()]).sum()
    for term in (*outputs.losses.values(), *outputs.aux.values()):
        total = total + term.total
    return total


def maps(model: Model) -> int:
    """The numbers in the linear maps of attention and feed-forwards, and in experts."""
    kinds = (".mixer.qkv.", ".mixer.out.", ".cross.", ".feedforward.")
    named = [(name, p.numel()) for name, p in model.named_parameters() if any(kind in name for kind in kinds)]
    return sum(n for name, n in named if "norm" not in name and "router" not in name)


def work(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT="0")
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=WORLD)
    found: dict[Any, Any] = {}
    for case in CASES:
        model = built(*case)
        spread(model, make_mesh(ParallelSpec(shard=WORLD), "cpu"), torch.bfloat16)
        found[case] = updated(model)
        assert {p.dtype for p in model.parameters()} == {torch.float32}, "what is kept"
    for dtype in (torch.float32, torch.bfloat16):
        model = built("tiny", False)
        spread(model, make_mesh(ParallelSpec(shard=WORLD), "cpu"), dtype)
        with Gathered() as gathered, torch.autocast("cpu", torch.bfloat16):
            _loss(model, tiny_batch(TEXTS)).backward()
        found[str(dtype)] = gathered.bytes
    torch.save(found, f"{folder}/{rank}.pt")
    dist.barrier()
    os._exit(0)  # gloo's threads may abort a process that leaves in order; all that counts has been written


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    folder = tmp_path_factory.mktemp("gathered")
    several.spawn(work, (str(folder),), nprocs=WORLD)
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(WORLD)]


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case[0]}-{'again' if case[1] else 'kept'}")
def test_gradients_are_those_of_one_process_to_the_bit(case: tuple[str, bool], told: list[Any]) -> None:
    torch.set_num_threads(1)
    expected = updated(built(*case))
    for found in told:
        assert found[case].keys() == expected.keys()
        for name, value in expected.items():
            assert torch.equal(found[case][name], value), name


def test_linear_maps_are_gathered_in_half_the_bytes(told: list[Any]) -> None:
    number = maps(built("tiny", False))
    saved = told[0]["torch.float32"] - told[0]["torch.bfloat16"]
    assert 2 * 2 * number <= saved < 1.1 * 2 * 2 * number, "two bytes of each, in both passes; shards are filled up"
