"""Models that get their weights in parts: those of one process to the bit, with no more than a module held whole."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import Any

import pytest
import several
import torch
import torch.distributed as dist
from safetensors.torch import save_file
from tiny import tiny_batch, tiny_model
from torch import Tensor, nn
from torch.testing._internal.distributed.fake_pg import FakeStore
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.weak import WeakIdKeyDictionary

from mmformer.adapters.adapter import AdapterSpec, attach
from mmformer.adapters.dora import DoRASpec
from mmformer.adapters.ia3 import IA3Spec
from mmformer.adapters.lora import LoRASpec
from mmformer.adapters.merge import used_adapters
from mmformer.adapters.whole import WholeSpec
from mmformer.models.decoder import DecoderSpec
from mmformer.models.first_weights import drawn
from mmformer.models.model import Model, ModelSpec
from mmformer.nn.attention import AttentionSpec
from mmformer.nn.initialisation import GPT2InitialisationSpec
from mmformer.nn.layer import LayerSpec
from mmformer.nn.mamba import MambaSpec
from mmformer.nn.moe import MixtureOfExpertsSpec
from mmformer.nn.performer import PerformerSpec
from mmformer.nn.position import LearnedPositionSpec
from mmformer.nn.stack import StackSpec
from mmformer.parallel.allocation import allocate, allocate_adapters, folded
from mmformer.parallel.mesh import ParallelSpec, make_mesh
from mmformer.parallel.sharding import local_part, spread, whole_model, whole_state
from mmformer.tokenizers.text import TextTokensSpec
from mmformer.tokenizers.vocabulary import SpecialIds
from mmformer.training.initial import InitialSpec, choose_initial, load_initial

WORLD, SEED, WIDTH, DEPTH = 2, 3, 64, 40
TEXTS = ["a red square", "blue"]
ADAPTERS: dict[str, AdapterSpec] = {  # of weights that a file gives, and of drawn ones
    "given": DoRASpec(("stacks.text.*",), None, rank=2),
    "drawn": DoRASpec(("stacks.caption.*",), rank=2),
    "low": LoRASpec(("encoders.*",), None, rank=3),
    "scaled": IA3Spec(("stacks.image.layers.2.*",), None),
    "whole": WholeSpec(("heads.*",)),
}
CASES: dict[str, tuple[dict[str, int], dict[str, AdapterSpec]]] = {
    "shard": ({"shard": WORLD}, {}),
    "tensor": ({"tensor": WORLD}, {}),
    "adapters": ({"shard": WORLD}, ADAPTERS),
    "adapters of replicas": ({"data": WORLD}, ADAPTERS),
}
SHARDED = ("shard", "adapters")


def spec() -> ModelSpec:
    """Parts that are drawn in every way: by themselves, by a stack's initialisation, and buffers."""
    tiny = tiny_model(width=WIDTH, caption=True)
    pattern = (
        LayerSpec(AttentionSpec(2), MixtureOfExpertsSpec(3)),
        LayerSpec(PerformerSpec(2), layer_scale=0.1),
        LayerSpec(MambaSpec(expand=1, states=4, bidirectional=True)),
    )
    stacks = {
        **tiny.stacks,
        "image": StackSpec(WIDTH, 4, pattern=pattern, initialisation=None),
        "caption": dataclasses.replace(tiny.stacks["caption"], initialisation=GPT2InitialisationSpec()),
        "text": dataclasses.replace(tiny.stacks["text"], depth=DEPTH, position=LearnedPositionSpec(sizes=(16,))),
    }
    return dataclasses.replace(tiny, stacks=stacks)


def built() -> Model:
    model = spec().build()
    model.initialise(SEED)
    return model


def empty() -> Model:
    with torch.device("meta"):
        return spec().build()


class Held(TorchDispatchMode):
    """The most bytes of new tensors that were alive at once, as far as operations made them."""

    def __init__(self) -> None:
        super().__init__()
        self.alive, self.most = WeakIdKeyDictionary(), 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        made = func(*args, **(kwargs or {}))
        if isinstance(made, Tensor) and not made.is_meta and type(made) is Tensor:
            self.alive[made.untyped_storage()] = made.untyped_storage().nbytes()
            self.most = max(self.most, sum(self.alive.values()))
        return made


def sizes(model: nn.Module) -> tuple[int, int]:
    """The bytes that this process has of a model's weights, and of its largest module's where it is whole."""
    own = [*model.parameters(), *model.buffers()]
    modules = [[*module.parameters(recurse=False), *module.buffers(recurse=False)] for module in model.modules()]
    return (
        sum(local_part(value).nbytes for value in own),
        max(sum(value.numel() * value.element_size() for value in held) for held in modules),
    )


def work(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT="0")
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=WORLD)
    found: dict[str, Any] = {}
    for case, (layout, adapters) in CASES.items():
        model = empty()
        loaded = choose_initial(model, initial(folder))
        if adapters:
            attach(model, adapters, SEED)
        spread(model, make_mesh(ParallelSpec(**layout), "cpu"))
        with Held() as held:
            allocate(model, SEED, torch.device("cpu"))
            loaded.give(model)
            allocate_adapters(model, SEED)
        with Held() as gathering:
            gathered = whole_model(model)
        found[case] = (
            {name: value.clone() for name, value in whole_state(model)},
            held.most,
            *sizes(model),
            None if gathered is None else gathered.state_dict(),
            gathering.most,
        )
    torch.save(found, f"{folder}/{rank}.pt")
    dist.barrier()
    os._exit(0)  # gloo's threads may abort a process that leaves in order; all that counts has been written


def initial(folder: Path | str) -> InitialSpec:
    return InitialSpec(f"{folder}/few.safetensors", ("stacks.text.*",))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With a file that has other weights for a stack."""
    folder = tmp_path_factory.mktemp("allocated")
    state = built().state_dict()
    few = {name: value + 1 for name, value in state.items() if name.startswith("stacks.text.")}
    save_file(few, folder / "few.safetensors")
    return folder


@pytest.fixture(scope="module")
def expected(folder: Path) -> dict[str, dict[str, Tensor]]:
    """What one process begins with, case by case."""
    found = {}
    for case, (_, adapters) in CASES.items():
        model = built()
        load_initial(model, initial(folder))
        if adapters:
            attach(model, adapters, SEED)
        found[case] = model.state_dict()
    return found


@pytest.fixture(scope="module")
def told(folder: Path) -> list[Any]:
    several.spawn(work, (str(folder),), nprocs=WORLD)
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(WORLD)]


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_weights_are_those_of_one_process_to_the_bit(
    case: str, told: list[Any], expected: dict[str, dict[str, Tensor]]
) -> None:
    for each in told:
        state, *_ = each[case]
        assert state.keys() == expected[case].keys()
        for name, value in expected[case].items():
            assert torch.equal(state[name], value), name


@pytest.mark.slow
@pytest.mark.parametrize("case", SHARDED)
def test_no_process_holds_the_whole(case: str, told: list[Any], expected: dict[str, dict[str, Tensor]]) -> None:
    total = sum(value.nbytes for value in expected[case].values())
    for each in told:
        _, most, own, largest, *_ = each[case]
        assert own < 0.6 * total
        # A module as it is drawn, and as it is cut.
        assert most < own + 2 * largest < total


@pytest.mark.slow
@pytest.mark.parametrize("case", SHARDED)
def test_one_process_alone_brings_the_whole_together(
    case: str, told: list[Any], expected: dict[str, dict[str, Tensor]]
) -> None:
    """The others hold a tensor at a time, as it is gathered and as it is whole."""
    (*_, state, most), (*_, nothing, least) = (each[case] for each in told)
    assert state.keys() == expected[case].keys()
    assert all(torch.equal(state[name], value) for name, value in expected[case].items())
    assert nothing is None
    total, largest = (how(value.nbytes for value in expected[case].values()) for how in (sum, max))
    assert most >= total and least <= 3 * largest < 0.6 * total


def test_a_stage_holds_its_own_layers_alone() -> None:
    """Of two, the second, which is never given data for the layers of the first."""
    words = TextTokensSpec(None, 16, rows=48, ids=SpecialIds(bos=0, eos=(1,)))
    stack = StackSpec(WIDTH, DEPTH, LayerSpec(AttentionSpec(2)))
    with torch.device("meta"):
        model = ModelSpec({"words": stack}, {}, {"words": DecoderSpec(words, "words")}, {}).build()
    total = sum(value.nbytes for value in model.parameters())
    dist.init_process_group("fake", store=FakeStore(), rank=1, world_size=2)
    try:
        spread(model, make_mesh(ParallelSpec(pipeline=2), "cpu"))
        with Held() as held:
            allocate(model, SEED, torch.device("cpu"))
    finally:
        dist.destroy_process_group()
    assert 0 < sum(value.nbytes for value in model.parameters() if not value.is_meta) < 0.6 * total
    assert held.most < 0.7 * total


def test_a_model_without_data_draws_what_one_with_data_does() -> None:
    model = empty()
    found = {name: value.clone() for name, value in drawn(model, SEED)}
    for name, value in (*built().named_parameters(), *built().named_buffers()):
        assert torch.equal(found.pop(name), value), name
    assert not found and all(value.is_meta for value in (*model.parameters(), *model.buffers()))


def test_adapters_of_a_model_without_data_begin_as_those_of_one_with_data(
    folder: Path, expected: dict[str, dict[str, Tensor]]
) -> None:
    model = empty()
    loaded = choose_initial(model, initial(folder))
    attach(model, ADAPTERS, SEED)
    assert all(value.is_meta for value in model.state_dict().values())
    allocate(model, SEED, torch.device("cpu"))
    loaded.give(model)
    allocate_adapters(model, SEED)
    state = model.state_dict()
    assert state.keys() == expected["adapters"].keys()
    assert all(torch.equal(state[name], value) for name, value in expected["adapters"].items())


def test_layers_that_are_adapted_alike_are_one() -> None:
    """And each adapter is run."""
    model = empty()
    few = LoRASpec(tuple(f"stacks.text.layers.{index}.*" for index in (1, 3)), rank=2)
    attach(model, {"few": few, "other": IA3Spec(("stacks.text.layers.2.*",))}, SEED)
    small = folded(model, SEED)
    text = small.stack_of("text").layers
    assert len(set(text)) == 3 and text[1] is text[3] and text[0] is text[4]
    trains, wanted = (
        {name for name, own in each.named_parameters(remove_duplicate=False) if own.requires_grad}
        for each in (small, model)
    )
    assert trains == wanted
    with used_adapters(small):
        assert small(tiny_batch(TEXTS)).embedding["text"].isfinite().all()


def test_folded_layers_of_a_kind_are_one() -> None:
    """And it runs as the model does: with as many layers, whose first ones it has."""
    model = empty()
    model.requires_grad_(False)
    model.stacks["text"].get_parameter("layers.2.mixer.qkv.weight").requires_grad_(True)
    small = folded(model, SEED)
    text, image = small.stack_of("text").layers, small.stack_of("image").layers
    assert len(text) == DEPTH and len(set(text)) == 1
    assert len(image) == 4 and len(set(image)) == 3 and image[0] is image[3]
    outputs = small(tiny_batch(TEXTS))
    assert outputs.embedding["text"].requires_grad and not outputs.embedding["image"].requires_grad
    assert outputs.losses["caption"].total.isfinite()
