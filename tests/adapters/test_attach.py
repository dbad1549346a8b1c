"""Adapters are put where patterns and rows say, train alone, change nothing at first, and merge as they compute."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny import COLOURS, tiny_batch, tiny_model
from torch import Tensor

from mmformer.adapters.adapter import AdapterSpec, attach
from mmformer.adapters.dora import DoRASpec
from mmformer.adapters.ia3 import IA3Spec
from mmformer.adapters.lora import LoRASpec
from mmformer.adapters.merge import adapt_alike, adapted, merged
from mmformer.adapters.whole import BitFitSpec, WholeSpec
from mmformer.errors import InputError
from mmformer.models.model import Model
from mmformer.nn.moe import MixtureOfExpertsSpec

WIDTH = 16
BATCH = tiny_batch(["red", "a small blue square", "", "green"])
KINDS: dict[str, dict[str, AdapterSpec]] = {
    "LoRA": {"a": LoRASpec(rank=3)},
    "LoRA of all": {"a": LoRASpec(("stacks.*", "encoders.image.*"), None, rank=3, rank_stabilised=True)},
    "DoRA": {"a": DoRASpec(rank=3)},
    "DoRA of all": {"a": DoRASpec(("stacks.*",), None, rank=2)},
    "IA3": {"a": IA3Spec(), "b": IA3Spec(("stacks.*.down",), None, "inputs")},
    "several": {"a": LoRASpec(("stacks.image.*",), ("query", "inner")), "b": IA3Spec(("stacks.text.*",))},
}


def built(adapters: dict[str, AdapterSpec] | None = None, **changes: Any) -> Model:
    model = tiny_model(classes=len(COLOURS), **changes).build()
    model.initialise(0)
    if adapters:
        attach(model, adapters, seed=1)
    return model.eval()


def moved(model: Model) -> Model:
    """With what trains somewhere else than where it began."""
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    return model


def trains(model: Model) -> set[str]:
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


def embeddings(model: Model) -> dict[str, Tensor]:
    return model(BATCH).embedding


@pytest.mark.parametrize("kind", KINDS)
def test_at_first_nothing_is_changed_but_what_trains(kind: str) -> None:
    plain, other = built(), built(KINDS[kind])
    for name, value in embeddings(plain).items():
        torch.testing.assert_close(embeddings(other)[name], value, atol=1e-6, rtol=1e-5)
    state = other.state_dict()
    assert all(torch.equal(state[name], value) for name, value in plain.state_dict().items()), "their names stay"
    assert trains(other) == state.keys() - plain.state_dict().keys()
    assert trains(other)


@pytest.mark.parametrize("kind", KINDS)
def test_merged_weights_compute_what_adapters_do(kind: str) -> None:
    model = moved(built(KINDS[kind]))
    plain = merged(model)
    assert plain.state_dict().keys() == built().state_dict().keys()
    assert not any(adapted(plain))
    first = embeddings(built())
    for name, value in embeddings(model).items():
        torch.testing.assert_close(embeddings(plain)[name], value, atol=2e-6, rtol=1e-5)
        assert not torch.allclose(value, first[name], atol=1e-2), "the adapters do something"


def test_a_model_without_adapters_is_merged_already() -> None:
    model = built()
    assert merged(model) is model


@pytest.mark.parametrize("kind", KINDS)
def test_every_parameter_of_an_adapter_has_a_gradient(kind: str) -> None:
    model = moved(built(KINDS[kind])).train()
    sum(value.square().sum() for value in embeddings(model).values()).backward()  # type: ignore[union-attr]
    for name, parameter in model.named_parameters():
        assert (parameter.grad is not None and bool(parameter.grad.any())) == parameter.requires_grad, name


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        (LoRASpec(("stacks.text.*",)), {"qkv.adapter.rows.query": 16, "qkv.adapter.rows.value": 16}),
        (LoRASpec(("stacks.text.*",), ("output",)), {"out.adapter.rows.output": 16, "down.adapter.rows.output": 16}),
        (LoRASpec(("stacks.text.*.qkv",), None), {"qkv.adapter.rows.all": 48}),
    ],
)
def test_patterns_and_rows_choose(spec: LoRASpec, expected: dict[str, int]) -> None:
    model = built({"lora": spec})
    found = {name.removesuffix(".up"): len(p) for name, p in model.named_parameters() if name.endswith(".up")}
    prefix = "stacks.text.layers.0."
    parts = {name.removeprefix(prefix).partition(".")[2]: rows for name, rows in found.items()}
    assert parts == expected
    assert all(name.startswith(prefix) for name in found)


def test_only_the_rows_that_were_chosen_change() -> None:
    model = moved(built({"lora": LoRASpec(rows=("value",))}))
    before = built().state_dict()["stacks.image.layers.1.mixer.qkv.weight"]
    after = merged(model).state_dict()["stacks.image.layers.1.mixer.qkv.weight"]
    assert torch.equal(after[: 2 * WIDTH], before[: 2 * WIDTH])
    changed = after[2 * WIDTH :] - before[2 * WIDTH :]
    assert torch.linalg.matrix_rank(changed, atol=1e-5) == 8


def test_first_weights_depend_on_the_seed_and_the_name_alone() -> None:
    few, more = built({"a": LoRASpec(("stacks.image.*",))}), built({"b": LoRASpec(("stacks.*",))})
    shared = trains(few)
    assert shared < trains(more)
    assert all(torch.equal(few.state_dict()[name], more.state_dict()[name]) for name in shared)
    other = built()
    attach(other, {"a": LoRASpec(("stacks.image.*",))}, seed=2)
    down = next(name for name in shared if name.endswith("down"))
    assert not torch.equal(few.state_dict()[down], other.state_dict()[down])


def test_what_trains_whole() -> None:
    assert trains(built({"head": WholeSpec()})) == {name for name in trains(built()) if name.startswith("heads.")}
    biases = {name for name in trains(built()) if name.endswith(".bias")}
    assert trains(built({"bitfit": BitFitSpec()})) == biases
    both = built({"lora": LoRASpec(), "head": WholeSpec(("heads.colour.*",))})
    whole = {name for name in trains(both) if ".adapter." not in name}
    assert whole == {"heads.colour.projection.weight", "heads.colour.projection.bias"}


def test_dropout_is_on_the_adapter_alone_and_in_training_alone() -> None:
    model = moved(built({"lora": LoRASpec(("stacks.image.*",), dropout=0.5)}))
    one, other = embeddings(model), embeddings(model)
    assert all(torch.equal(one[name], other[name]) for name in one)
    model.train()
    one, other = embeddings(model), embeddings(model)
    assert not torch.equal(one["image"], other["image"])
    assert torch.equal(one["text"], other["text"])


def test_a_copy_has_the_same_adapters() -> None:
    model = moved(built(KINDS["several"]))
    with torch.device("meta"):
        copy = model.spec.build()
        adapt_alike(copy, model)
    copy.load_state_dict(model.state_dict(), assign=True)
    for name, value in embeddings(model).items():
        assert torch.equal(embeddings(copy.eval())[name], value)


@pytest.mark.parametrize(
    ("adapters", "message"),
    [
        (
            {"a": LoRASpec(("stack.*",))},
            r"adapters\.a: modules: no linear map .* like 'stack\.\*'\. Did you mean 'stacks",
        ),
        ({"a": LoRASpec(("*.up",))}, r"adapters\.a: what \*\.up fits has no rows that make query or value: set rows"),
        ({"a": LoRASpec(), "b": IA3Spec()}, r"adapters\.b: stacks\.image.*qkv is adapted twice, but can be once"),
        ({"a": WholeSpec(("head.*",))}, r"adapters\.a: parameters: no parameter .* Did you mean 'heads\.\*'"),
    ],
)
def test_what_cannot_be_meant_is_refused(adapters: dict[str, AdapterSpec], message: str) -> None:
    with pytest.raises(InputError, match=message):
        built(adapters)


def test_experts_are_refused_unless_their_rows_are_not_meant() -> None:
    import dataclasses

    spec = tiny_model()
    layer = dataclasses.replace(spec.stacks["image"].layer, feedforward=MixtureOfExpertsSpec(experts=2))
    stack = dataclasses.replace(spec.stacks["image"], layer=layer)
    spec = dataclasses.replace(spec, stacks={**spec.stacks, "image": stack})
    attach(spec.build(), {"lora": LoRASpec()}, 0)
    with pytest.raises(InputError, match=r"experts\.up holds the matrices of several experts, which cannot be adapted"):
        attach(spec.build(), {"lora": LoRASpec(rows=None)}, 0)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: LoRASpec(rank=0), r"LoRASpec\.rank must be at least 1"),
        (lambda: LoRASpec(alpha=0), r"LoRASpec\.alpha must be positive"),
        (lambda: LoRASpec(modules=()), r"LoRASpec\.modules must be at least one pattern"),
        (lambda: LoRASpec(rows=("query", "query")), r"LoRASpec\.rows must be None, or different kinds of rows"),
        (lambda: LoRASpec(dropout=1.0), r"LoRASpec\.dropout must be at least 0 and below 1"),
        (lambda: IA3Spec(scales="inputs"), r"IA3Spec\.rows must be None where inputs are scaled"),
        (lambda: WholeSpec(()), r"WholeSpec\.parameters must be at least one pattern"),
    ],
)
def test_fields_out_of_range_are_refused(make: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        make()
