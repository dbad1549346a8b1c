"""Adapters are peft's: the same outputs and gradients from the same weights, where queries, keys and values are three
matrices there and rows of one here.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mmformer.adapters.adapter import Adapted, Block, LinearAdapterSpec, adapt
from mmformer.adapters.dora import DoRASpec
from mmformer.adapters.ia3 import IA3Spec
from mmformer.adapters.lora import LoRASpec

peft = pytest.importorskip("peft", reason="peft is the reference, and is not installed")

INPUTS, OUTPUTS, RANK = 10, 6, 3
NAMES = ("query", "key", "value")
X = torch.randn(4, 7, INPUTS, generator=torch.Generator().manual_seed(0))
UPSTREAM = torch.randn(4, 7, 3 * OUTPUTS, generator=torch.Generator().manual_seed(1))


class Apart(nn.Module):
    """Three maps, whose results stand beside each other."""

    def __init__(self, fused: nn.Linear) -> None:
        super().__init__()
        for name, weight, bias in zip(NAMES, fused.weight.split(OUTPUTS), fused.bias.split(OUTPUTS), strict=True):
            linear = nn.Linear(INPUTS, OUTPUTS)
            linear.weight.data.copy_(weight)
            linear.bias.data.copy_(bias)
            self.add_module(name, linear)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.get_submodule(name)(x) for name in NAMES], dim=-1)


def lora(rows: tuple[str, ...], **options: Any) -> Any:
    return peft.LoraConfig(r=RANK, lora_alpha=5, target_modules=list(rows), **options)


CASES: dict[str, tuple[LinearAdapterSpec, Any]] = {
    "LoRA": (LoRASpec(rank=RANK, alpha=5), lora(("query", "value"))),
    "rsLoRA": (LoRASpec(rank=RANK, alpha=5, rank_stabilised=True), lora(("query", "value"), use_rslora=True)),
    "DoRA": (DoRASpec(rank=RANK, alpha=5), lora(("query", "value"), use_dora=True)),
    "IA3": (IA3Spec(), peft.IA3Config(target_modules=["key", "value"], feedforward_modules=[])),
    "IA3 of inputs": (
        IA3Spec(rows=None, scales="inputs"),
        peft.IA3Config(target_modules=list(NAMES), feedforward_modules=list(NAMES)),
    ),
}
"""Ours, and peft's."""

TWINS = {
    "down": "lora_A.default.weight",
    "up": "lora_B.default.weight",
    "magnitude": "lora_magnitude_vector.default.weight",
    "factor": "ia3_l.default",
}


@pytest.mark.parametrize("case", CASES)
def test_outputs_gradients_and_merged_weights_are_those_of_peft(case: str) -> None:
    torch.manual_seed(3)
    spec, config = CASES[case]
    fused = nn.Linear(INPUTS, 3 * OUTPUTS)
    theirs = peft.inject_adapter_in_model(config, Apart(fused))
    blocks = [Block(name, n * OUTPUTS, (n + 1) * OUTPUTS) for n, name in enumerate(NAMES) if name in (spec.rows or ())]
    adapt(fused, spec.build(fused, blocks or [Block("all", 0, 3 * OUTPUTS)]))
    assert isinstance(fused, Adapted)
    pairs = twins(fused, theirs)
    assert pairs
    with torch.no_grad():
        for own, others in pairs:
            value = own + 0.5 * torch.randn_like(own) if own.ndim == 1 else torch.randn_like(own)
            own.copy_(value)
            for other in others:
                other.copy_(value.view_as(other))
    ours, expected = fused(X), theirs(X)
    torch.testing.assert_close(ours, expected, atol=1e-5, rtol=1e-5)
    ours.backward(UPSTREAM)
    expected.backward(UPSTREAM)
    for own, others in pairs:
        gradient = sum(other.grad.view_as(own) for other in others if other.grad is not None)
        assert own.grad is not None
        torch.testing.assert_close(own.grad, gradient, atol=1e-5, rtol=1e-4)

    weight, bias = fused.adapter.merged(fused.weight, fused.bias)
    kept = [theirs.get_submodule(name) for name in NAMES]
    for each in kept:
        if hasattr(each, "merge"):
            each.merge()
    plain = [getattr(each, "base_layer", each) for each in kept]
    torch.testing.assert_close(weight, torch.cat([each.weight for each in plain]), atol=1e-5, rtol=1e-5)
    assert bias is not None
    torch.testing.assert_close(bias, torch.cat([each.bias for each in plain]), atol=1e-5, rtol=1e-5)


def twins(fused: Adapted, theirs: nn.Module) -> list[tuple[nn.Parameter, list[nn.Parameter]]]:
    """Each parameter of ours, and those of peft that stand for it: three where all rows read one factor."""
    found = []
    for name, own in fused.adapter.named_parameters():
        parts = name.split(".")
        kind = next(part for part in parts if part in TWINS)
        rows = next((part for part in parts if part in NAMES), None)
        others = [
            parameter
            for path, parameter in theirs.named_parameters()
            if path.endswith(TWINS[kind]) and (rows is None or path.startswith(f"{rows}."))
        ]
        assert len(others) == (3 if rows is None else 1), name
        found.append((own, others))
    return found
