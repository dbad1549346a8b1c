"""Models that get their weights in parts: those of one process to the bit, with no more than a module held whole."""

from __future__ import annotations

import dataclasses
import os
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
from mmformer.parallel.allocation import allocate, folded
from mmformer.parallel.mesh import ParallelSpec, make_mesh
from mmformer.parallel.sharding import local_part, spread, whole_model, whole_state
from mmformer.tokenizers.text import TextTokensSpec
from mmformer.tokenizers.vocabulary import SpecialIds
from mmformer.training.initial import InitialSpec, choose_initial

WORLD, SEED, WIDTH, DEPTH = 2, 3, 64, 40
TEXTS = ["a red square", "blue"]
LAYOUTS = ({"shard": WORLD}, {"tensor": WORLD})


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
    found: list[Any] = []
    for layout in LAYOUTS:
        model = empty()
        loaded = choose_initial(model, InitialSpec(f"{folder}/few.safetensors", ("stacks.text.*",)))
        spread(model, make_mesh(ParallelSpec(**layout), "cpu"))
        with Held() as held:
            allocate(model, SEED, torch.device("cpu"))
            loaded.give(model)
        with Held() as gathering:
            gathered = whole_model(model)
        found.append(
            (
                {name: value.clone() for name, value in whole_state(model)},
                held.most,
                *sizes(model),
                None if gathered is None else gathered.state_dict(),
                gathering.most,
            )
        )
    torch.save(found, f"{folder}/{rank}.pt")
    dist.barrier()
    os._exit(0)  # gloo's threads may abort a process that leaves in order; all that counts has been written


def expected() -> dict[str, Tensor]:
    """One process's first weights, with others for a stack."""
    state = built().state_dict()
    return {name: value + 1 if name.startswith("stacks.text.") else value for name, value in state.items()}


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    folder = tmp_path_factory.mktemp("allocated")
    few = {name: value for name, value in expected().items() if name.startswith("stacks.text.")}
    save_file(few, folder / "few.safetensors")
    several.spawn(work, (str(folder),), nprocs=WORLD)
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(WORLD)]


@pytest.mark.slow
@pytest.mark.parametrize("index", range(len(LAYOUTS)), ids=lambda index: next(iter(LAYOUTS[index])))
def test_weights_are_those_of_one_process_to_the_bit(index: int, told: list[Any]) -> None:
    for each in told:
        state, *_ = each[index]
        assert state.keys() == expected().keys()
        for name, value in expected().items():
            assert torch.equal(state[name], value), name


@pytest.mark.slow
def test_no_process_holds_the_whole(told: list[Any]) -> None:
    total = sum(value.nbytes for value in built().state_dict().values())
    for each in told:
        _, most, own, largest, *_ = each[0]
        assert own < 0.6 * total
        # A module as it is drawn, and as it is cut.
        assert most < own + 2 * largest < total


@pytest.mark.slow
def test_one_process_alone_brings_the_whole_together(told: list[Any]) -> None:
    """The others hold a tensor at a time, as it is gathered and as it is whole."""
    (*_, state, most), (*_, nothing, least) = (each[0] for each in told)
    assert state.keys() == expected().keys() and all(torch.equal(state[name], v) for name, v in expected().items())
    assert nothing is None
    total, largest = (how(value.nbytes for value in expected().values()) for how in (sum, max))
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
