"""Activation checkpointing: the same gradients to the bit, of less that is held; what is computed again, and when."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import pytest
import torch
from launched import assert_alike, everything
from launched import fit as fit_command
from safetensors.torch import load_file
from tiny import tiny_model, tiny_run, write_shards
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from mmformer.config import to_yaml
from mmformer.errors import InputError
from mmformer.models.model import Model, ModelSpec
from mmformer.nn.attention import AttentionSpec
from mmformer.nn.layer import Layer, LayerSpec
from mmformer.nn.mamba import MambaSpec
from mmformer.nn.moe import MixtureOfExpertsSpec
from mmformer.nn.position import SinusoidalPositionSpec
from mmformer.nn.stack import Stack, StackOutput, StackSpec
from mmformer.parallel.checkpointing import ActivationCheckpointingSpec, CheckpointedLayer, checkpoint_layers
from mmformer.parallel.mesh import ParallelSpec
from mmformer.training.fit import fit
from mmformer.training.run import RunSpec
from mmformer.types import Tokens

KEEP = ("nothing", "attention", "products")
DEPTH, LENGTH, WIDTH = 4, 6, 16


def built(spec: ActivationCheckpointingSpec | None = None, **layer: object) -> tuple[Model, Stack]:
    layers = LayerSpec(AttentionSpec(2, **({"dropout": 0.2} if layer else {})), **layer)  # type: ignore[arg-type]
    stack = StackSpec(WIDTH, DEPTH, layers, SinusoidalPositionSpec(axes=(1, 2)), drop_path=0.5 if layer else 0.0)
    tiny = tiny_model()
    model = dataclasses.replace(tiny, stacks={**tiny.stacks, "image": stack}).build()
    model.initialise(0)
    if spec is not None:
        checkpoint_layers(model, spec)
    found = model.stacks["image"].train()
    assert isinstance(found, Stack)
    return model, found


def passed(stack: Stack, read: Tensor | None = None) -> StackOutput:
    """One pass in training, always with the same draws."""
    x = torch.randn(3, LENGTH, WIDTH, generator=torch.Generator().manual_seed(1))
    torch.manual_seed(2)
    return stack(Tokens(x, torch.arange(LENGTH)[None, :, None].expand(3, LENGTH, 3)), read=read)


def gradients(stack: Stack, read: Tensor | None = None) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    output = passed(stack, read)
    loss = output.tokens.x.square().sum() + sum(term.total for term in output.aux.values())
    names, parameters = zip(*stack.named_parameters(), strict=True)
    asked = {name: torch.stack((term.total, term.items)).detach() for name, term in output.aux.items()}
    return dict(zip(names, torch.autograd.grad(loss, parameters), strict=True)), asked


@pytest.mark.parametrize("keep", KEEP)
@pytest.mark.parametrize("every", [1, 3])
def test_the_gradient_is_the_same_to_the_bit(keep: str, every: int) -> None:
    """With dropout everywhere, and with experts, whose losses count once."""
    layer = {"dropout": 0.3, "feedforward": MixtureOfExpertsSpec(experts=4)}
    expected, asked = gradients(built(**layer)[1])
    assert asked, "a router asks for its balance"
    found, again = gradients(built(ActivationCheckpointingSpec(every, keep), **layer)[1])  # type: ignore[arg-type]
    assert found.keys() == expected.keys(), "parameters keep their names"
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert asked.keys() == again.keys()
    assert all(torch.equal(asked[name], again[name]) for name in asked)


@pytest.mark.parametrize("keep", KEEP)
def test_what_is_read_alone_is_so_when_it_is_computed_again(keep: str) -> None:
    read = torch.tensor([[0], [LENGTH + 2], [2 * LENGTH + 1]])
    expected, _ = gradients(built(dropout=0.3)[1], read)
    found, _ = gradients(built(ActivationCheckpointingSpec(1, keep), dropout=0.3)[1], read)  # type: ignore[arg-type]
    assert all(torch.equal(found[name], expected[name]) for name in expected)


class Counted(TorchDispatchMode):
    """How often an operation ran."""

    def __init__(self) -> None:
        super().__init__()
        self.times: dict[str, int] = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        name = func.overloadpacket.__name__
        self.times[name] = self.times.get(name, 0) + 1
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    ("keep", "every", "products", "attentions"),
    # Of four layers, each with four linear maps, the last of which nothing but the sum needs: it is not computed again.
    [(None, 1, 0, 0), ("nothing", 1, 12, 4), ("nothing", 3, 6, 2), ("attention", 1, 12, 0), ("products", 1, 0, 0)],
)
def test_what_is_not_kept_is_computed_again(keep: str | None, every: int, products: int, attentions: int) -> None:
    spec = None if keep is None else ActivationCheckpointingSpec(every, keep)  # type: ignore[arg-type]
    loss = passed(built(spec)[1]).tokens.x.square().sum()
    with Counted() as counted:
        loss.backward()
    assert counted.times.get("addmm", 0) == products
    assert counted.times.get("_scaled_dot_product_flash_attention_for_cpu", 0) == attentions


def test_without_a_gradient_or_with_a_state_nothing_is_different() -> None:
    _, stack = built(ActivationCheckpointingSpec())
    _, plain = built()
    stack.eval(), plain.eval()
    with torch.no_grad():
        assert torch.equal(passed(stack).tokens.x, passed(plain).tokens.x)
    x, pos = torch.randn(1, LENGTH, WIDTH), torch.zeros(1, LENGTH, 3, dtype=torch.int64)
    state, parts = stack.empty_state(), []
    for part in (slice(0, 2), slice(2, LENGTH)):
        output = stack(Tokens(x[:, part], pos[:, part]), causal=True, state=state)
        assert output.state is not None
        state = output.state
        parts.append(output.tokens.x)
    torch.testing.assert_close(torch.cat(parts, dim=1), plain(Tokens(x, pos), causal=True).tokens.x)


def test_it_is_done_once() -> None:
    model, _ = built(ActivationCheckpointingSpec())
    with pytest.raises(AssertionError, match="it is done once, and first"):
        checkpoint_layers(model, ActivationCheckpointingSpec())


def test_what_is_no_choice_is_refused() -> None:
    with pytest.raises(InputError, match=r"ActivationCheckpointingSpec.every must be at least 1, but is 0"):
        ActivationCheckpointingSpec(every=0)
    with pytest.raises(InputError, match=r"keep must be 'nothing', 'attention' or 'products', but is 'all'"):
        ActivationCheckpointingSpec(keep="all")  # type: ignore[arg-type]


def test_attention_is_kept_of_models_that_have_some() -> None:
    layer = LayerSpec(MambaSpec(expand=1, states=4, bidirectional=True))
    tiny = tiny_model()
    model = dataclasses.replace(tiny, stacks={name: StackSpec(WIDTH, 1, layer) for name in tiny.stacks})
    parallel = ParallelSpec(activation_checkpointing=ActivationCheckpointingSpec(keep="attention"))
    with pytest.raises(InputError, match=r"keep is attention, but no layer .* has softmax attention: set"):
        parallel.check(model, 8, 1, 2)
    mixed = {**model.stacks, "text": dataclasses.replace(tiny.stacks["text"], reversible=True)}
    with pytest.raises(InputError, match=r"keep is attention"):
        parallel.check(dataclasses.replace(tiny, stacks=mixed), 8, 1, 2)
    parallel.check(dataclasses.replace(tiny, stacks={**model.stacks, "text": tiny.stacks["text"]}), 8, 1, 2)


@pytest.mark.parametrize(("keep", "parts"), [("nothing", 2), ("attention", 1)])
def test_a_run_ends_in_the_same_weights(keep: str, parts: int, tmp_path: Path) -> None:
    """Contrastive learning in micro-batches, too, which draws its dropout twice over."""
    run = tiny_run(write_shards(tmp_path / "shards"), dropout=0.2)
    run = dataclasses.replace(run, trainer=dataclasses.replace(run.trainer, accumulate_grad_batches=parts))
    fit(run, tmp_path / "plain")
    spec = ActivationCheckpointingSpec(keep=keep)  # type: ignore[arg-type]
    run = dataclasses.replace(run, parallel=ParallelSpec(activation_checkpointing=spec))
    fit(run, tmp_path / "again")
    one, other = (load_file(tmp_path / name / "bundle" / "model.safetensors") for name in ("plain", "again"))
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


def reversible(run: RunSpec, *names: str) -> ModelSpec:
    stacks = {name: dataclasses.replace(stack, reversible=name in names) for name, stack in run.model.stacks.items()}
    return dataclasses.replace(run.model, stacks=stacks)


def test_reversible_stacks_need_none_and_are_not_shared_out(tmp_path: Path) -> None:
    run = tiny_run(write_shards(tmp_path / "shards"))
    spec = ParallelSpec(activation_checkpointing=ActivationCheckpointingSpec())
    with pytest.raises(InputError, match="all stacks are reversible, which does that already: leave it out"):
        dataclasses.replace(run, model=reversible(run, "image", "text"), parallel=spec)
    with pytest.raises(InputError, match=r"model.stacks.text is reversible, .* = 1 × 1 × 2 × 1 × 1 × 1 = 2\) gather"):
        dataclasses.replace(run, model=reversible(run, "text"), parallel=ParallelSpec(shard=2))
    model = dataclasses.replace(run, model=reversible(run, "text"), parallel=spec).model.build()
    checkpoint_layers(model, ActivationCheckpointingSpec())
    kinds = {name: {type(layer) for layer in stack.layers} for name, stack in model.stacks.items()}
    assert kinds == {"image": {CheckpointedLayer}, "text": {Layer}}


def test_a_reversible_run_goes_on_where_it_was(tmp_path: Path) -> None:
    run = tiny_run(write_shards(tmp_path / "shards"), dropout=0.2)
    run = dataclasses.replace(run, model=reversible(run, "image", "text"))
    fit(run, tmp_path / "whole")
    shutil.copytree(tmp_path / "whole", tmp_path / "resumed")
    shutil.rmtree(tmp_path / "resumed" / "bundle")
    shutil.rmtree(tmp_path / "resumed" / "checkpoints" / "step-000000006")
    fit(run, tmp_path / "resumed", resume=True)
    one, other = (load_file(tmp_path / name / "bundle" / "model.safetensors") for name in ("whole", "resumed"))
    assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.slow
def test_two_processes_train_what_one_trains(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text(to_yaml(everything(write_shards(tmp_path / "shards"))), encoding="utf-8")
    fit_command(file, tmp_path / "one")
    words = ("--parallel.shard", "2", "--parallel.activation_checkpointing.keep", "attention")
    fit_command(file, tmp_path / "two", *words)
    assert_alike(tmp_path / "one", tmp_path / "two")
