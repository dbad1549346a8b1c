"""Layers that are compiled: the losses and gradients of those that are not, by the same names."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import several
import torch
import torch._dynamo.config
import torch.distributed as dist
from safetensors.torch import load_file
from tiny import tiny_batch, tiny_model, tiny_run, write_shards
from torch import Tensor

from mmformer.errors import InputError
from mmformer.models.decoder import DecoderSpec
from mmformer.models.model import Model, ModelSpec
from mmformer.nn.attention import AttentionSpec
from mmformer.nn.layer import LayerSpec
from mmformer.nn.pool import LastPoolSpec
from mmformer.nn.stack import StackSpec
from mmformer.parallel.checkpointing import ActivationCheckpointingSpec, checkpoint_layers
from mmformer.parallel.compiling import compile_layers
from mmformer.parallel.mesh import ParallelSpec, make_mesh
from mmformer.parallel.sharding import spread, whole
from mmformer.tokenizers.text import TextTokensSpec
from mmformer.tokenizers.vocabulary import SpecialIds
from mmformer.training.fit import fit
from mmformer.types import Tokens

# Of PyTorch's own: what its compiler imports, and its look at what enters a layer.
pytestmark = pytest.mark.filterwarnings(
    "ignore:`torch.jit.script_method` is deprecated:DeprecationWarning",
    "ignore:The .grad attribute of a Tensor that is not a leaf",
)

TEXTS = ["a red square", "blue", "a large green square, left", "pink"]
WORLD, LAYERS = 2, 4


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


class Counted:
    """A backend that counts programs, and how often they run, as they are."""

    def __init__(self) -> None:
        self.programs = self.runs = 0

    def __call__(self, program: torch.fx.GraphModule, _: list[Any]) -> Callable[..., Any]:
        self.programs += 1

        def run(*given: Any) -> Any:
            self.runs += 1
            return program.forward(*given)

        return run


@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_compiled_layers_make_the_same(backend: str) -> None:
    """The graphs are those of the backend that fuses nothing, which is quick, and of the one that training has."""
    expected, model = updated(built()), built()
    compile_layers(model, backend=backend)
    assert_close(updated(model), expected)


def test_a_compiled_layer_makes_what_is_read_alone() -> None:
    def embedded(compiled: bool) -> Tensor:
        spec = tiny_model()
        text = dataclasses.replace(spec.encoders["text"], pool=LastPoolSpec())
        model = dataclasses.replace(spec, encoders={**spec.encoders, "text": text}).build()
        model.initialise(0)
        if compiled:
            compile_layers(model, backend="aot_eager")
        outputs = model(tiny_batch(TEXTS), tokens=False)
        assert list(outputs.tokens) == ["image"]
        embedding: Tensor = outputs.embedding["text"]
        return embedding

    torch.testing.assert_close(embedded(True), embedded(False), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("again", [False, True])
def test_each_layer_runs_as_one_program(again: bool) -> None:
    """And as it once more where its activations are not kept."""
    expected, model, counted = updated(built()), built(), Counted()
    if again:
        checkpoint_layers(model, ActivationCheckpointingSpec())
    compile_layers(model, backend=counted)
    assert_close(updated(model), expected)
    assert counted.programs == len(model.stacks), "layers of a kind share one"
    assert counted.runs == LAYERS + again * 3, "the loss reads no encoder of texts"


def test_layers_of_more_kinds_than_pytorch_allows_are_programs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch._dynamo.config, "recompile_limit", 1)
    attention = AttentionSpec(1)
    pattern = (LayerSpec(attention, None), LayerSpec(attention, None, placement="post"))
    stack = StackSpec(8, 2, pattern=pattern)
    words = DecoderSpec(TextTokensSpec(None, 16, rows=8, ids=SpecialIds(bos=0, eos=(1,))), "words")
    model = ModelSpec({"words": stack}, {}, {"words": words}, {}).build()
    compile_layers(model, backend=(counted := Counted()))
    x = torch.zeros(1, 2, 8)
    model.stack_of("words")(Tokens(x, torch.zeros(1, 2, 3, dtype=torch.int64)))
    assert counted.programs == counted.runs == 2


def test_a_run_trains_in_programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = tiny_run(write_shards(tmp_path / "shards"), steps=2)
    fit(run, tmp_path / "plain")
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=(counted := Counted())))
    fit(dataclasses.replace(run, parallel=ParallelSpec(compile=True)), tmp_path / "run")
    assert counted.runs >= 2 * sum(stack.depth for stack in run.model.stacks.values())
    one, other = (load_file(tmp_path / name / "bundle" / "model.safetensors") for name in ("plain", "run"))
    assert_close(other, one)


def work(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT="0")
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=WORLD)
    found: list[Any] = []
    for name in ("shard", "tensor"):
        model, counted = built(), Counted()
        with patch("torch.compile", partial(torch.compile, backend=counted)):
            spread(model, make_mesh(ParallelSpec(**{name: WORLD}), "cpu"), compiled=True)
        found.append((updated(model), counted.runs))
    torch.save(found, f"{folder}/{rank}.pt")
    dist.barrier()
    os._exit(0)  # gloo's threads may abort a process that leaves in order; all that counts has been written


@pytest.mark.slow
def test_they_do_where_they_are_spread(tmp_path: Path) -> None:
    several.spawn(work, (str(tmp_path),), nprocs=WORLD)
    for rank in range(WORLD):
        for found, runs in torch.load(tmp_path / f"{rank}.pt", weights_only=True):
            assert_close(found, updated(built()))
            assert runs >= LAYERS


def test_programs_of_which_something_is_kept_are_refused() -> None:
    with pytest.raises(InputError, match=r"compile must be false where activation_checkpointing.keep is not 'nothing'"):
        ParallelSpec(compile=True, activation_checkpointing=ActivationCheckpointingSpec(keep="attention"))


def test_nothing_to_compile_is_refused(tmp_path: Path) -> None:
    model = tiny_model()
    stacks = {name: dataclasses.replace(stack, reversible=True) for name, stack in model.stacks.items()}
    with pytest.raises(InputError, match=r"parallel.compile makes a program of each layer, but all stacks are"):
        tiny_run(tmp_path, model=dataclasses.replace(model, stacks=stacks), parallel=ParallelSpec(compile=True))
