"""Adapters on the named systems, at their published sizes: which maps they find, and how many numbers train."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import pytest
import torch
from tiny import ROOT

from mmformer.adapters.adapter import attach
from mmformer.adapters.lora import LoRASpec
from mmformer.adapters.merge import adapted
from mmformer.config import parse, read_yaml
from mmformer.models.model import Model, ModelSpec


@cache
def spec_of(name: str) -> ModelSpec:
    file = Path("configs") / "models" / f"{name}.yaml"
    return parse(ModelSpec, read_yaml(ROOT / file), str(file))


def with_lora(name: str, spec: LoRASpec) -> Model:
    """Without memory."""
    with torch.device("meta"):
        model = spec_of(name).build()
    attach(model, {"lora": spec}, 0)
    return model


@pytest.mark.parametrize(
    ("name", "maps", "numbers"),
    [
        ("gpt2", 12, 294_912),  # of each of 12 layers, a pair for queries and one for values: 2 × 8 × (768 + 768)
        ("bert", 12, 294_912),
        ("vit", 12, 294_912),
        ("llama", 32, 3_407_872),  # 32 × 8 × ((4096 + 4096) + (4096 + 1024)), as peft counts Llama 3 8B's
        ("t5", 48, 884_736),  # 12 of an encoder, 12 of a decoder, whose cross attention has two maps
    ],
)
def test_queries_and_values_of_rank_8(name: str, maps: int, numbers: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    model = with_lora(name, LoRASpec())
    assert len(list(adapted(model))) == maps
    assert sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad) == numbers
    assert all(parameter.is_meta for parameter in model.parameters())


def test_a_llama_has_a_pair_for_each_of_its_gated_units(monkeypatch: pytest.MonkeyPatch) -> None:
    """Gates and units are rows of one map: two matrices there, and two here."""
    monkeypatch.chdir(ROOT)
    model = with_lora("llama", LoRASpec(("stacks.*.feedforward.*",), ("inner", "output"), rank=4))
    shapes = {
        name.partition("feedforward.")[2]: tuple(p.shape) for name, p in model.named_parameters() if ".up" in name
    }
    made = {name: shape for name, shape in shapes.items() if "adapter" in name}
    assert made == {
        "gate_up.adapter.rows.inner.up": (14336, 4),
        "gate_up.adapter.rows.inner2.up": (14336, 4),
        "down.adapter.rows.output.up": (4096, 4),
    }
