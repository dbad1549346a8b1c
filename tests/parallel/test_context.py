"""Context parallel: two real processes on gloo that share out the places of rows compute what one computes."""

from __future__ import annotations

import dataclasses
import os
import shutil
from pathlib import Path
from typing import Any, get_args

import pytest
import several
import torch
import torch.distributed as dist
from launched import assert_alike, fit
from test_spread import language_model as language_run
from test_spread import written
from tiny import VOCABULARY, tiny_batch, tiny_model, write_shards
from torch import Tensor, nn
from torch.testing._internal.distributed.fake_pg import FakeStore

from mmformer import collectives
from mmformer.errors import InputError
from mmformer.evaluation.metric import evaluate
from mmformer.evaluation.perplexity import PerplexitySpec
from mmformer.models.decoder import DecoderSpec
from mmformer.models.model import Model, ModelSpec
from mmformer.nn.attention import AttentionSpec
from mmformer.nn.bias import ALiBiPositionSpec, RelativeBucketPositionSpec
from mmformer.nn.feedforward import GELUFeedForwardSpec
from mmformer.nn.halting import HaltingSpec
from mmformer.nn.layer import LayerSpec
from mmformer.nn.linear_attention import LinearAttentionSpec
from mmformer.nn.mamba import MambaSpec
from mmformer.nn.moe import MixtureOfExpertsSpec
from mmformer.nn.pattern import WindowSpec
from mmformer.nn.position import LearnedPositionSpec
from mmformer.nn.rotary import RotaryPositionSpec
from mmformer.nn.stack import Stack, StackSpec
from mmformer.objectives.captioning import CaptioningSpec
from mmformer.parallel.checkpointing import ActivationCheckpointingSpec, checkpoint_layers
from mmformer.parallel.clipping import clip_gradients
from mmformer.parallel.context import cut_stack
from mmformer.parallel.dividing import ContextMethod, check_context
from mmformer.parallel.mesh import ParallelSpec, holders_of, make_mesh, parameters_mesh, readers_of
from mmformer.parallel.sharding import spread, whole_state
from mmformer.tokenizers.text import TextTokensSpec
from mmformer.training.accumulate import accumulate
from mmformer.training.average import EMASpec
from mmformer.training.norms import ActivationNorms
from mmformer.training.optimizers.adamw import AdamWSpec
from mmformer.types import Tokens

WORLD, WIDTH, LENGTH, BATCH = 2, 16, 9, 3
METHODS: tuple[ContextMethod, ...] = get_args(ContextMethod)
GROUPED = AttentionSpec(heads=4, key_value_heads=2, qk_norm=True)
WINDOW = AttentionSpec(2, pattern=WindowSpec(2, 0))
LONG = 600
"""A row that patterns are computed of in blocks."""

STACKS: dict[str, StackSpec] = {
    "grouped_rotated": StackSpec(WIDTH, 2, LayerSpec(GROUPED, GELUFeedForwardSpec(1.0)), RotaryPositionSpec()),
    "learned": StackSpec(WIDTH, 1, LayerSpec(AttentionSpec(4), None), LearnedPositionSpec(sizes=(LONG,))),
    "slopes": StackSpec(WIDTH, 1, LayerSpec(GROUPED, None), ALiBiPositionSpec()),
    "buckets": StackSpec(WIDTH, 2, LayerSpec(AttentionSpec(4), None), RelativeBucketPositionSpec(bidirectional=False)),
    "window": StackSpec(WIDTH, 1, LayerSpec(WINDOW, None), RotaryPositionSpec()),
    "window_and_slopes": StackSpec(
        WIDTH, 2, pattern=(LayerSpec(WINDOW, None), LayerSpec(AttentionSpec(2), None)), position=ALiBiPositionSpec()
    ),
}
TEXTS = ["a red square", "blue", "a large green square, left", "pink"]
ROWS = ("plain", "padded", "holes", "packed", "one_place")


def built() -> nn.ModuleDict:
    torch.manual_seed(0)
    return nn.ModuleDict({name: spec.build() for name, spec in STACKS.items()}).double()


def rows(kind: str) -> Tokens:
    """Tokens as batches have them; what is random is the same whenever it is asked for."""
    length = {"one_place": 1, "plain": LONG}.get(kind, LENGTH)
    number = 1 if kind == "plain" else BATCH
    x = torch.randn(number, length, WIDTH, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    place = torch.arange(length)[None, :, None]
    tokens = Tokens(x, (place * torch.tensor([1, 0, 0])).expand(number, -1, -1))
    if kind == "padded":
        return tokens._replace(valid=place[..., 0] < torch.tensor([[9], [4], [1]]))
    if kind == "holes":
        valid = torch.rand(number, length, generator=torch.Generator().manual_seed(2)) < 0.6
        return tokens._replace(valid=valid)
    if kind == "packed":  # each row has three documents, whose places begin anew
        segment = (place[..., 0] >= torch.tensor([[2], [5], [8]])).long() + (
            place[..., 0] >= torch.tensor([[7], [6], [9]])
        )
        begins = torch.stack([(segment == each).long().argmax(1) for each in range(3)], dim=1)
        pos = (place[..., 0] - begins.gather(1, segment))[..., None] * torch.tensor([1, 0, 0])
        return tokens._replace(segment=segment, pos=pos, valid=place[..., 0] < torch.tensor([[9], [8], [9]]))
    return tokens


def passed(stack: Stack, tokens: Tokens) -> dict[str, Tensor]:
    """What leaves a stack, the gradient of what entered it, and those of its parameters, over the context group."""
    stack.zero_grad()
    x = tokens.x.clone().requires_grad_()
    y = stack(tokens._replace(x=x), causal=True).tokens.x
    real = torch.ones(y.shape[:2], dtype=torch.bool) if tokens.valid is None else tokens.valid
    y = y.masked_fill(~real[..., None], 0.0)
    weighed = y * torch.randn(y.shape, generator=torch.Generator().manual_seed(3))
    if dist.is_initialized():  # each measures some of the rows
        weighed = weighed[dist.get_rank() :: WORLD]
    weighed.sum().backward()
    assert x.grad is not None
    found = {"x": x.grad, **{name: p.grad for name, p in stack.named_parameters() if p.grad is not None}}
    if dist.is_initialized():
        for gradient in found.values():
            dist.all_reduce(gradient)
    return {"y": y.detach(), **{name: gradient.clone() for name, gradient in found.items()}}


def told(stacks: nn.ModuleDict, method: ContextMethod | None, mesh: Any = None) -> dict[str, dict[str, Tensor]]:
    made = {}
    for name, stack in stacks.items():
        assert isinstance(stack, Stack)
        if method == "ulysses" and name == "window_and_slopes":  # which is refused
            continue
        if method is not None:
            cut_stack(stack, mesh, method)
        made |= {f"{name}, {kind}": passed(stack, rows(kind)) for kind in ROWS}
    return made


def language_model(packed: bool) -> Model:
    """As Llama's: grouped queries, normalised, rotated, without biases."""
    layer = LayerSpec(AttentionSpec(4, key_value_heads=2, bias=False), GELUFeedForwardSpec(1.0))
    decoder = DecoderSpec(TextTokensSpec(VOCABULARY, context_length=32), "words", chunk=7, packed=packed)
    spec = ModelSpec({"words": StackSpec(WIDTH, 2, layer, RotaryPositionSpec())}, {}, {"words": decoder}, {})
    model = spec.build()
    model.initialise(0)
    return model


def trained(model: Model, parts: int, updates: int) -> dict[str, Any]:
    """Losses, norms and scores of some updates, and the weights and their averages after them."""
    optimizer, average = AdamWSpec().build(model), EMASpec(0.9).build(model)
    objectives, batch = {"write": CaptioningSpec(decoder="words").build()}, tiny_batch(TEXTS)._replace(image=None)
    found: dict[str, Any] = {"loss": [], "norm": [], "perplexity": []}
    for step in range(updates):
        for group in optimizer.param_groups:
            group["lr"] = 3e-3 * group["lr_scale"]
        optimizer.zero_grad()
        with ActivationNorms(model) as activations:
            losses = accumulate(model, objectives, {"write": 1.0}, batch, parts, torch.Tensor.backward)
        if not step:
            found |= {name: float(value) for name, value in activations.read().items()}
        found["loss"].append(float(losses["loss"]))
        found["norm"].append(float(clip_gradients(model.parameters(), 0.5)))
        optimizer.step()
        average.update(model, step + 1)
        if step % 10 == 1:
            scores = evaluate(model, [batch], {"p": PerplexitySpec("words")}, model.spec.text_encoders())
            found["perplexity"].append(scores["p/perplexity"].value)
    found |= {f"weight of {name}": value.clone() for name, value in whole_state(model)}
    with average.applied(model):
        found |= {f"average of {name}": value.clone() for name, value in whole_state(model)}
    return found


def models(method: ContextMethod | None, mesh: Any = None) -> dict[str, dict[str, Any]]:
    """What training comes to: at once, in micro-batches that compute their activations again, with texts in one row."""
    made = {}
    for name, parts, packed in (("whole", 1, False), ("parts", 2, False), ("packed", 1, True)):
        model = language_model(packed)
        if parts > 1:
            checkpoint_layers(model, ActivationCheckpointingSpec(keep="attention"))
        if method is not None:
            spread(model, mesh, context_method=method)
        made[name] = trained(model, parts, 20 if name == "whole" else 3)
    return made


def work(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT="0")
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=WORLD)
    mesh = make_mesh(ParallelSpec(context=WORLD), "cpu")
    collectives.divide_batches(readers := readers_of(mesh), holders_of(mesh, readers))
    found: dict[str, Any] = {"numbers": (collectives.data_rank(), collectives.token_rank())}
    for method in METHODS:
        found[method] = told(built(), method, mesh), models(method, mesh)
    torch.save(found, f"{folder}/{rank}.pt")
    dist.barrier()
    os._exit(0)  # gloo's threads may abort a process that ends in order; all that counts has been written


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    folder = tmp_path_factory.mktemp("context")
    several.spawn(work, (str(folder),), nprocs=WORLD)
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(WORLD)]


@pytest.fixture(scope="module")
def expected() -> Any:
    """What one process makes."""
    return told(built(), None), models(None)


@pytest.mark.slow
def test_they_read_the_same_and_have_tokens_of_their_own(both: list[Any]) -> None:
    """Dropout is drawn by the second number."""
    assert [found["numbers"] for found in both] == [(0, 0), (0, 1)]


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_outputs_and_gradients_are_those_of_one_process(method: ContextMethod, both: list[Any], expected: Any) -> None:
    for found in both:
        outputs, right = found[method][0], expected[0]
        assert len(outputs) >= len(ROWS) * (len(STACKS) - 1)
        for name, made in outputs.items():
            assert made.keys() == right[name].keys(), name
            for part, value in right[name].items():
                torch.testing.assert_close(made[part], value, atol=1e-10, rtol=1e-8, msg=f"{name}: {part}")


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_training_is_that_of_one_process(method: ContextMethod, both: list[Any], expected: Any) -> None:
    for name, right in expected[1].items():
        assert right["norm"][0] > 0.5, "it is clipped"
        assert right["loss"][-1] < right["loss"][0], "it learns"
        for _, made in (found[method] for found in both):
            assert_trained_alike(made[name], right, name)


def assert_trained_alike(found: dict[str, Any], expected: dict[str, Any], name: str) -> None:
    assert found.keys() == expected.keys()
    for part, value in expected.items():
        if isinstance(value, Tensor):
            torch.testing.assert_close(found[part], value, atol=2e-4, rtol=0.0, msg=f"{name}: {part}")
        else:
            assert found[part] == pytest.approx(value, rel=1e-4), f"{name}: {part}"
    for part in ("loss", "norm"):
        assert found[part][0] == pytest.approx(expected[part][0], rel=2e-6), f"{name}: the first {part}"


@pytest.mark.parametrize(
    ("layer", "changes", "message"),
    [
        (LayerSpec(LinearAttentionSpec(2)), {}, r"layer.mixer is LinearAttentionSpec, which reaches no places of"),
        (LayerSpec(MambaSpec()), {}, r"layer.mixer is MambaSpec, which reaches no places of"),
        (
            LayerSpec(AttentionSpec(4), MixtureOfExpertsSpec(2)),
            {},
            r"feedforward is MixtureOfExpertsSpec, which counts",
        ),
        (LayerSpec(AttentionSpec(4)), {"drop_path": 0.1}, r"drop_path is 0.1, and a row skips a branch in whole"),
        (
            LayerSpec(AttentionSpec(4)),
            {"halting": HaltingSpec()},
            r"halting counts the tokens of rows: set it to null, or",
        ),
        (LayerSpec(WINDOW), {"position": ALiBiPositionSpec()}, r"words.position biases .*context_method to gather"),
        (LayerSpec(AttentionSpec(6)), {}, r"layer.mixer.heads is 6, which .*, 2 × 2, does not divide.* multiple of 4"),
        (
            LayerSpec(AttentionSpec(4, key_value_heads=2)),
            {},
            r"layer.mixer.key_value_heads is 2, which .*, 2 × 2, does not divide, .* set it to gather, or",
        ),
    ],
)
def test_what_needs_whole_rows_is_refused(layer: LayerSpec, changes: dict[str, Any], message: str) -> None:
    spec = language_model(False).spec
    stack = dataclasses.replace(StackSpec(24, 2, layer), **changes)
    with pytest.raises(InputError, match=message):
        check_context(dataclasses.replace(spec, stacks={"words": stack}), 2, "ulysses", 2)


def test_models_with_encoders_are_refused() -> None:
    with pytest.raises(InputError, match=r"parallel.context is 2, .* But the model has the encoder 'image': set"):
        check_context(tiny_model(caption=True), 2, "gather", 1)


def test_replicas_share_parameters_along_two_dimensions() -> None:
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=16)
    try:
        mesh = make_mesh(ParallelSpec(data=2, shard=2, context=2, tensor=2), "cpu")
        held = parameters_mesh(mesh)
        assert held is not None
        assert held.mesh.tolist() == [[0, 2, 4, 6], [8, 10, 12, 14]]
        readers, whole = readers_of(mesh), make_mesh(ParallelSpec(shard=8, tensor=2), "cpu")
        assert holders_of(mesh, readers) is not readers
        assert holders_of(whole, (alike := readers_of(whole))) is alike
    finally:
        dist.destroy_process_group()


def test_a_method_without_context_is_refused() -> None:
    with pytest.raises(InputError, match=r"ParallelSpec.context_method must be left alone where context is 1"):
        ParallelSpec(context_method="ulysses")


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("context_runs")
    run = language_run(write_shards(folder / "shards"))
    return written(dataclasses.replace(run, logging=dataclasses.replace(run.logging, norms=True)), folder)


@pytest.fixture(scope="module")
def one(file: Path) -> Path:
    """The run in one process."""
    fit(file, file.parent / "one")
    return file.parent / "one"


@pytest.mark.slow
@pytest.mark.parametrize(
    "words",
    [
        (),
        ("--parallel.context_method", "ulysses", "--trainer.accumulate_grad_batches", "2"),
        ("--parallel.context_method", "ulysses", "--parallel.shard", "2"),
        ("--parallel.tensor", "2", "--parallel.activation_checkpointing.keep", "products"),
    ],
)
def test_runs_are_those_of_one_process(words: tuple[str, ...], file: Path, one: Path, tmp_path: Path) -> None:
    fit(file, tmp_path / "several", "--parallel.context", "2", *words)
    assert_alike(one, tmp_path / "several")


@pytest.mark.slow
def test_a_run_goes_on_in_other_layouts(file: Path, one: Path, tmp_path: Path) -> None:
    """Two that share out rows, four that share out layers too, two that shard, and one, an update each."""
    often = ("--checkpoint.every_steps", "1", "--checkpoint.keep", "9")
    layouts = [{"context": 2}, {"context": 2, "tensor": 2}, {"shard": 2}, {}]
    for step, layout in enumerate(layouts):
        now, words = (
            tmp_path / str(step),
            [word for name in layout for word in (f"--parallel.{name}", str(layout[name]))],
        )
        if step:
            shutil.copytree(tmp_path / str(step - 1), now)
            shutil.rmtree(now / "bundle")
            for folder in (now / "checkpoints").iterdir():
                if int(folder.name.removeprefix("step-")) > step:
                    shutil.rmtree(folder)
        fit(file, now, *often, *words, *["--resume"] * bool(step))
        assert_alike(one, now)
