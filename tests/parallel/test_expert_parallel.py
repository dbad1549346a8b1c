"""Expert parallel: real processes on gloo that share out experts train what one process trains."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable
from typing import Any

import pytest
import several
import torch
import torch.distributed as dist
from tiny import COLOURS, tiny_batch, tiny_model
from torch import Tensor

from mmformer import collectives
from mmformer.errors import InputError
from mmformer.models.model import Model, ModelSpec
from mmformer.nn.attention import AttentionSpec
from mmformer.nn.feedforward import GELUFeedForwardSpec, SwiGLUFeedForwardSpec
from mmformer.nn.moe import MixtureOfExpertsSpec
from mmformer.nn.router import ExpertChoiceSpec, TokenChoiceSpec, rebalance, take_excess
from mmformer.objectives.captioning import CaptioningSpec
from mmformer.objectives.contrastive import ContrastiveSpec
from mmformer.parallel.checkpointing import ActivationCheckpointingSpec, checkpoint_layers
from mmformer.parallel.clipping import clip_gradients
from mmformer.parallel.dividing import check_experts
from mmformer.parallel.mesh import ParallelSpec, make_mesh, readers_of
from mmformer.parallel.sharding import local_part, spread, whole_state
from mmformer.training.accumulate import accumulate
from mmformer.training.average import EMASpec
from mmformer.training.norms import gradient_norms
from mmformer.training.optimizers.adamw import AdamWSpec
from mmformer.types import Batch

STEPS, SIZE = 20, 8
OBJECTIVES = {"contrastive": ContrastiveSpec().build(), "caption": CaptioningSpec().build()}
EXPERTS = ".experts."

MESHES: dict[int, dict[str, ParallelSpec]] = {
    2: {"expert": ParallelSpec(expert=2)},
    4: {
        "shard": ParallelSpec(shard=2, expert=2),
        "data": ParallelSpec(data=2, expert=2),
        "tensor": ParallelSpec(expert=2, tensor=2),
        "four": ParallelSpec(expert=4),
    },
}


def mixed() -> ModelSpec:
    """Experts that choose in one layer of the pictures' stack, in the other dropped tokens; balances for captions."""
    model = tiny_model(caption=True)
    # The gradient of keys' biases is zero but for rounding, which Adam makes steps of.
    attention = AttentionSpec(2, bias=False)
    layer = dataclasses.replace(model.stacks["image"].layer, mixer=attention)
    # Of four experts, two processes that shard one's two have one each; of the other's eight, rows of all four.
    image = tuple(
        dataclasses.replace(layer, feedforward=MixtureOfExpertsSpec(4, GELUFeedForwardSpec(ratio=1.0), router))
        for router in (ExpertChoiceSpec(capacity=1.0), TokenChoiceSpec(top=1, renormalise=False, capacity=1.0))
    )
    balanced = TokenChoiceSpec(scores="sigmoid", balance_loss=0.0, balance_rate=0.125)
    written = MixtureOfExpertsSpec(12, SwiGLUFeedForwardSpec(hidden_width=6), balanced, shared=GELUFeedForwardSpec(1.0))
    stacks = {
        "image": dataclasses.replace(model.stacks["image"], layer=type(layer)(), pattern=image),
        "text": dataclasses.replace(model.stacks["text"], layer=layer),
        "caption": dataclasses.replace(
            model.stacks["caption"], layer=dataclasses.replace(layer, cross=attention, feedforward=written)
        ),
    }
    return dataclasses.replace(model, stacks=stacks)


def built() -> Model:
    model = mixed().build()
    model.initialise(0)
    return model.train()


def batch_of(step: int) -> Batch:
    """A part of it for this process: no two of a batch are alike."""
    colours = list(COLOURS)
    texts = [f"{('a', 'one large')[step % 2]} {colours[(step + place) % SIZE]} square" for place in range(SIZE)]
    size = SIZE // collectives.data_world_size()
    return tiny_batch(texts, seed=step).rows(
        slice(collectives.data_rank() * size, (collectives.data_rank() + 1) * size)
    )


def trained(model: Model, parts: int = 1) -> dict[str, Tensor]:
    """Losses and norms of every update, and the weights and their averages after the first and the last one."""
    average, spec, found = EMASpec(0.5, warmup=False).build(model), AdamWSpec(lr=1e-2, eps=1e-3), {}
    optimizer = spec.build(model)
    for group in optimizer.param_groups:
        group["lr"] = group["lr_scale"] * spec.lr
    for step in range(1, STEPS + 1):
        optimizer.zero_grad()
        weights = dict.fromkeys(OBJECTIVES, 1.0)
        losses = accumulate(model, OBJECTIVES, weights, batch_of(step), parts, lambda loss: loss.backward())
        excess = take_excess(model)
        told = losses | gradient_norms(model) | {"norm": clip_gradients(model.parameters(), 0.5)}
        found |= {f"{step}/{name}": value for name, value in told.items()}
        optimizer.step()
        rebalance(excess, collectives.data_world_size())
        average.update(model, step)
        if step in (1, STEPS):
            found |= {f"{step}/weight/{name}": value.clone() for name, value in whole_state(model)}
            with average.applied(model):
                own = dict(whole_state(model))
                found |= {f"{step}/average/{name}": value.clone() for name, value in own.items()}
    return found


def halved(model: Model) -> dict[str, Tensor]:
    """The losses and the norm of the gradient of one batch whose products are rounded to 8 bits."""
    with torch.autocast("cpu", torch.bfloat16, cache_enabled=False):  # as Lightning has it
        weights = dict.fromkeys(OBJECTIVES, 1.0)
        losses = accumulate(model, OBJECTIVES, weights, batch_of(1), 1, lambda loss: loss.backward())
    take_excess(model)
    return losses | {"norm": clip_gradients(model.parameters(), None)}


def work(rank: int, world: int, folder: str) -> None:
    torch.set_num_threads(1)
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT="0")
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=world)
    found = {}
    for name, parallel in MESHES[world].items():
        model, mesh = built(), make_mesh(parallel, "cpu")
        if name == "shard":
            checkpoint_layers(model, ActivationCheckpointingSpec(keep="products"))
        collectives.divide_batches(readers_of(mesh))
        spread(model, mesh)
        held = {each: local_part(parameter) for each, parameter in model.named_parameters()}
        sizes = {each: (part.numel(), part.untyped_storage().nbytes() // 4) for each, part in held.items()}
        made = trained(model, parts=2 if name == "data" else 1)
        model = built()
        spread(model, mesh, torch.bfloat16)
        found[name] = (made, sizes, halved(model))
    torch.save(found, f"{folder}/{rank}.pt")
    dist.barrier()
    os._exit(0)  # gloo's threads may abort a process that leaves in order; all that counts has been written


Told = Callable[[int], list[Any]]


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> Told:
    """What each of so many processes told; they are started once."""
    known: dict[int, list[Any]] = {}

    def ask(world: int) -> list[Any]:
        if world not in known:
            folder = tmp_path_factory.mktemp(f"experts{world}")
            several.spawn(work, (world, str(folder)), nprocs=world)
            known[world] = [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(world)]
        return known[world]

    return ask


@pytest.fixture(scope="module")
def expected() -> dict[str, Tensor]:
    return trained(built())


EACH = [
    pytest.param(world, name, id=f"{world}-{name}", marks=pytest.mark.slow)
    for world, meshes in MESHES.items()
    for name in meshes
]


@pytest.mark.parametrize(("world", "name"), EACH)
def test_they_train_what_one_process_trains(world: int, name: str, told: Told, expected: dict[str, Tensor]) -> None:
    assert float(expected["1/norm"]) > 0.5, "it is clipped"
    assert 0 < float(expected["1/aux/image/dropped"]) < 1
    for everything in told(world):
        found, *_ = everything[name]
        assert found.keys() == expected.keys()
        for each, value in expected.items():
            first = each.startswith("1/")
            close = {"atol": 1e-5, "rtol": 2e-6} if first else {"atol": 2e-4, "rtol": 1e-4}
            torch.testing.assert_close(found[each], value, **close, msg=f"{name}: {each}")


@pytest.mark.parametrize(("world", "name"), EACH)
def test_half_the_precision_is_half_the_precision_of_one_process(world: int, name: str, told: Told) -> None:
    expected = halved(built())
    for everything in told(world):
        *_, found = everything[name]
        assert found.keys() == expected.keys()
        for each, value in expected.items():
            close = 2**-5 if each == "norm" else 2**-8
            torch.testing.assert_close(found[each], value, atol=1e-6, rtol=close, msg=f"{name}: {each}")


@pytest.mark.parametrize(("world", "name"), EACH)
def test_each_has_a_part_of_the_experts(world: int, name: str, told: Told) -> None:
    whole = {each: parameter.numel() for each, parameter in built().named_parameters()}
    parallel = MESHES[world][name]
    for everything in told(world):
        _, sizes, _ = everything[name]
        for each, (numbers, stored) in sizes.items():
            if EXPERTS in each:
                assert numbers * parallel.expert * parallel.shard == whole[each], each
                assert stored == numbers, "and not the others' besides"


@pytest.mark.parametrize(
    ("experts", "message"),
    [
        (6, r"model.stacks.image.layer.feedforward.experts is 6, which parallel.expert, 4, does not divide: .* of 4"),
        (0, r"parallel.expert is 4, but no layer of the model is a mixture of experts: set it to 1, and"),
    ],
)
def test_what_cannot_be_shared_out_is_refused(experts: int, message: str) -> None:
    model = tiny_model()
    if experts:
        layer = dataclasses.replace(model.stacks["image"].layer, feedforward=MixtureOfExpertsSpec(experts))
        model = dataclasses.replace(
            model, stacks=model.stacks | {"image": dataclasses.replace(model.stacks["image"], layer=layer)}
        )
    with pytest.raises(InputError, match=message):
        check_experts(model, 4)
