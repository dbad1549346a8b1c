"""Tensor parallel: two real processes on gloo that share out layers compute what one computes, and its gradient."""

from __future__ import annotations

import dataclasses
import os
from typing import Any

import pytest
import several
import torch
import torch.distributed as dist
from tiny import tiny_model
from torch import Tensor, nn

from mmformer.errors import InputError
from mmformer.nn.attention import AttentionSpec
from mmformer.nn.bias import ALiBiPositionSpec, RelativeBucketPositionSpec, RelativeGridPositionSpec
from mmformer.nn.feedforward import GELUFeedForwardSpec, SwiGLUFeedForwardSpec
from mmformer.nn.layer import LayerSpec
from mmformer.nn.linear_attention import LinearAttentionSpec
from mmformer.nn.moe import MixtureOfExpertsSpec
from mmformer.nn.pattern import WindowSpec
from mmformer.nn.position import PositionSpec
from mmformer.nn.rotary import MixedRotaryPositionSpec, RotaryPositionSpec
from mmformer.nn.stack import Stack, StackSpec
from mmformer.parallel.clipping import clip_gradients
from mmformer.parallel.dividing import check_tensor
from mmformer.parallel.mesh import ParallelSpec, make_mesh
from mmformer.parallel.sharding import mesh_of, whole
from mmformer.parallel.tensor import exchange_of, share_stack
from mmformer.training.optimizers.adafactor import AdafactorSpec
from mmformer.training.optimizers.adamw import AdamWSpec
from mmformer.training.optimizers.lamb import LAMBSpec
from mmformer.training.optimizers.lion import LionSpec
from mmformer.training.optimizers.muon import MuonSpec
from mmformer.training.optimizers.optimizer import OptimizerSpec
from mmformer.training.optimizers.schedule_free import ScheduleFreeAdamWSpec
from mmformer.types import Tokens

WORLD, WIDTH, LENGTH, BATCH = 2, 16, 6, 3
GROUPED = AttentionSpec(heads=4, key_value_heads=2, qk_norm=True)
NARROW = SwiGLUFeedForwardSpec(ratio=1.0)

OPTIMIZERS: tuple[OptimizerSpec, ...] = (
    AdamWSpec(),
    MuonSpec(),
    LionSpec(),
    LAMBSpec(),
    AdafactorSpec(),
    ScheduleFreeAdamWSpec(),
)

STACKS: dict[str, StackSpec] = {
    "grouped_rotated_gated": StackSpec(WIDTH, 2, LayerSpec(GROUPED, NARROW), RotaryPositionSpec()),
    "read": StackSpec(WIDTH, 1, LayerSpec(GROUPED, GELUFeedForwardSpec(1.0), cross=GROUPED), memory_width=12),
    "buckets": StackSpec(WIDTH, 2, LayerSpec(AttentionSpec(4, scale=1.0), None), RelativeBucketPositionSpec()),
    "slopes": StackSpec(WIDTH, 1, LayerSpec(GROUPED, None), ALiBiPositionSpec()),
    "grid": StackSpec(WIDTH, 1, LayerSpec(AttentionSpec(2), None), RelativeGridPositionSpec(sizes=(6, 6))),
    "rates_of_heads": StackSpec(WIDTH, 2, LayerSpec(AttentionSpec(4), None), MixedRotaryPositionSpec()),
    "window": StackSpec(WIDTH, 1, LayerSpec(AttentionSpec(2, pattern=WindowSpec(2, 2)), None)),
    "experts": StackSpec(WIDTH, 1, LayerSpec(AttentionSpec(2), MixtureOfExpertsSpec(3))),
    "linear": StackSpec(WIDTH, 1, LayerSpec(LinearAttentionSpec(2), GELUFeedForwardSpec(1.0))),
}
WHOLE = ("experts.layers.0.feedforward.", "linear.layers.0.mixer.")


def built() -> nn.ModuleDict:
    torch.manual_seed(0)
    return nn.ModuleDict({name: spec.build() for name, spec in STACKS.items()})


def passed(stack: Stack, causal: bool) -> dict[str, Tensor]:
    """What leaves a stack, the gradient of what entered it, and those of its parameters, as in one process."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(BATCH, LENGTH, WIDTH, generator=generator).requires_grad_()
    pos = torch.arange(LENGTH)[None, :, None].expand(BATCH, LENGTH, 3)
    valid = torch.arange(LENGTH) < torch.tensor([[6], [4], [5]])
    memory, read = None, torch.randn(BATCH, 4, 12, generator=generator).requires_grad_()
    if stack.spec.reads_memory:
        memory = Tokens(read, torch.arange(4)[None, :, None].expand(BATCH, 4, 3))
    y = stack(Tokens(x, pos, valid), causal=causal, memory=memory).tokens.x
    (y * torch.randn(y.shape, generator=generator)).masked_fill(~valid[..., None], 0.0).sum().backward()
    assert x.grad is not None
    found = {"y": y.detach().masked_fill(~valid[..., None], 0.0), "x": x.grad}
    if read.grad is not None:
        found["memory"] = read.grad
    gradients = {name: p.grad for name, p in stack.named_parameters() if p.grad is not None}
    return found | {name: whole(gradient).clone() for name, gradient in gradients.items()}


def written(stack: Stack) -> Tensor:
    """What leaves a stack token by token, from a cache."""
    x = torch.randn(BATCH, LENGTH, WIDTH, generator=torch.Generator().manual_seed(2))
    pos, state, parts = torch.arange(LENGTH)[None, :, None].expand(BATCH, LENGTH, 3), stack.empty_state(), []
    with torch.no_grad():
        for place in range(LENGTH):
            part = slice(place, place + 1)
            output = stack(Tokens(x[:, part], pos[:, part]), causal=True, state=state)
            assert output.state is not None
            state = output.state
            parts.append(output.tokens.x)
    return torch.cat(parts, dim=1)


def told(stacks: nn.ModuleDict) -> dict[str, dict[str, Tensor]]:
    made = {}
    for name, stack in stacks.items():
        assert isinstance(stack, Stack)
        made[name] = passed(stack.train(), causal=False)
    first = stacks["grouped_rotated_gated"]
    assert isinstance(first, Stack)
    made["causal"] = passed(first, causal=True)
    made["cached"] = {"y": written(first.eval())}
    before = clip_gradients(stacks.parameters(), 0.5)
    made["clipped"] = {"before": before, "after": clip_gradients(stacks.parameters(), None)}
    return made


def moved(stack: Stack, spec: OptimizerSpec) -> dict[str, Tensor]:
    """A stack's parameters after two updates: some of them are spread, and some are not."""
    optimizer = spec.build(stack.train())
    for group in optimizer.param_groups:
        group["lr"] = group["lr_scale"] * spec.lr
    for _ in range(2):
        optimizer.zero_grad()
        passed(stack, causal=False)
        optimizer.step()
    return {name: whole(parameter.detach()).clone() for name, parameter in stack.named_parameters()}


def work(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT="0")
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=WORLD)
    stacks, mesh = built(), make_mesh(ParallelSpec(tensor=WORLD), "cpu")
    for stack in stacks.values():
        assert isinstance(stack, Stack)
        share_stack(stack, mesh["tensor"])
    spreads = {name: mesh_of(parameter) is not None for name, parameter in stacks.named_parameters()}
    updates = {}
    for spec in OPTIMIZERS:
        stack = built()["read"]
        assert isinstance(stack, Stack)
        share_stack(stack, mesh["tensor"])
        updates[type(spec).__name__] = moved(stack, spec)
    dropping = LayerSpec(AttentionSpec(4, dropout=0.3), GELUFeedForwardSpec(1.0, dropout=0.2), dropout=0.2)
    stack = StackSpec(WIDTH, 2, dropping).build()
    share_stack(stack, mesh["tensor"])
    torch.manual_seed(3)  # as a run does for each update, by the part of the batch
    dropped = [passed(stack.train(), causal=False) for _ in range(2)]
    torch.save((told(stacks), spreads, updates, dropped), f"{folder}/{rank}.pt")
    dist.barrier()
    os._exit(0)  # gloo's threads may abort a process that leaves in order; all that counts has been written


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    folder = tmp_path_factory.mktemp("tensor")
    several.spawn(work, (str(folder),), nprocs=WORLD)
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(WORLD)]


def test_outputs_and_gradients_are_those_of_one_process(both: list[Any]) -> None:
    expected = told(built())
    for found, *_ in both:
        assert found.keys() == expected.keys()
        for name, values in expected.items():
            assert found[name].keys() == values.keys(), name
            for part, value in values.items():
                torch.testing.assert_close(found[name][part], value, atol=2e-6, rtol=2e-5, msg=f"{name}: {part}")
    assert float(expected["clipped"]["before"]) > 0.5, "it was clipped"


def test_parameters_in_whole_are_the_same_everywhere_to_the_bit(both: list[Any]) -> None:
    """They would drift apart from what differs in the last bit."""
    (one, *_), (other, *_) = both
    for name, values in one.items():
        assert all(torch.equal(value, other[name][part]) for part, value in values.items()), name


def test_they_drop_out_together(both: list[Any]) -> None:
    (*_, one), (*_, other) = both
    for mine, theirs in zip(one, other, strict=True):
        assert all(torch.equal(value, theirs[name]) for name, value in mine.items())
    assert not torch.equal(one[0]["y"], one[1]["y"]), "what is dropped is drawn"


def test_what_is_shared_out_and_what_is_not(both: list[Any]) -> None:
    _, spreads, *_ = both[0]
    for name, is_spread in spreads.items():
        linear = any(f".{part}." in name for part in ("qkv", "q", "kv", "out", "up", "gate_up", "down"))
        assert is_spread == (linear and not name.startswith(WHOLE)), name


@pytest.mark.parametrize("spec", OPTIMIZERS, ids=lambda spec: type(spec).__name__)
def test_optimizers_move_it_as_in_one_process(spec: OptimizerSpec, both: list[Any]) -> None:
    stack = built()["read"]
    assert isinstance(stack, Stack)
    first = {name: parameter.detach().clone() for name, parameter in stack.named_parameters()}
    expected = moved(stack, spec)
    for _, _, updates, _ in both:
        found = updates[type(spec).__name__]
        for name, value in expected.items():
            torch.testing.assert_close(found[name], value, atol=2e-5, rtol=1e-5, msg=name)
    assert all(not torch.equal(first[name], value) for name, value in expected.items() if value.ndim > 1)


@pytest.mark.parametrize(("parts", "processes"), [((8, 4, 4), 2), ((6, 3, 3), 3), ((8, 8), 4), ((12, 4, 4), 4)])
def test_every_row_gets_from_who_stores_it_to_who_computes_with_it(parts: tuple[int, ...], processes: int) -> None:
    rows = torch.arange(sum(parts)).chunk(processes)
    exchanges = [exchange_of(parts, processes, rank) for rank in range(processes)]
    posts = [rows[rank][exchange.order].split(exchange.sent) for rank, exchange in enumerate(exchanges)]
    for rank, exchange in enumerate(exchanges):
        received = [post[rank] for post in posts]
        assert [len(each) for each in received] == exchange.received
        wanted = [part.chunk(processes)[rank] for part in torch.arange(sum(parts)).split(parts)]
        assert torch.equal(torch.cat(received), torch.cat(wanted))


@pytest.mark.parametrize(
    ("layer", "position", "message"),
    [
        (LayerSpec(AttentionSpec(2)), PositionSpec(), r"image.layer.mixer.heads is 2, which parallel.tensor, 4, does"),
        (
            LayerSpec(AttentionSpec(4, key_value_heads=2)),
            PositionSpec(),
            r"image.layer.mixer.key_value_heads is 2, which parallel.tensor, 4, does not divide: .* multiple of 4",
        ),
        (
            LayerSpec(AttentionSpec(4), GELUFeedForwardSpec(hidden_width=30)),
            PositionSpec(),
            r"image.layer.feedforward.hidden_width is 30, which parallel.tensor, 4, does not divide",
        ),
        (LayerSpec(LinearAttentionSpec(2), None), PositionSpec(), r"no layer of the model has softmax attention or"),
        (
            LayerSpec(AttentionSpec(4, pattern=WindowSpec(2, 2)), None),
            ALiBiPositionSpec(),
            r"no layer of the model has softmax attention or",
        ),
    ],
)
def test_what_cannot_be_shared_out_is_refused(layer: LayerSpec, position: PositionSpec, message: str) -> None:
    model = tiny_model()
    stack = StackSpec(WIDTH, 2, layer, position)
    with pytest.raises(InputError, match=message):
        check_tensor(dataclasses.replace(model, stacks=dict.fromkeys(model.stacks, stack)), 4)
