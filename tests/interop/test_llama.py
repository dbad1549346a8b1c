"""Llama and Mixtral: the way in, the numbers of transformers' own, the way out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from frames import Continuing
from parity import Case, check_refused, close, imported, saved

from mmformer.config import parse, to_data
from mmformer.errors import InputError
from mmformer.interop.families.llama import LLAMA
from mmformer.interop.plain import put
from mmformer.models.model import ModelSpec

transformers = pytest.importorskip("transformers", reason="the reference")

SIZES: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 99,
    "intermediate_size": 40,
    "max_position_embeddings": 64,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 1000.0,
    "factor": 4.0,
    "original_max_position_embeddings": 16,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
}
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", {}),
    "llama3": ("Llama", {"head_dim": 12, "rope_parameters": LLAMA3, "rms_norm_eps": 1e-3}),
    "llama_tied": ("Llama", {"tie_word_embeddings": True, "attention_bias": True, "mlp_bias": True}),
    "mixtral": ("Mixtral", {"num_local_experts": 4}),
    "mixtral_window": ("Mixtral", {"num_local_experts": 3, "sliding_window": 4}),
}
IDS = torch.randint(3, 99, (3, 11), generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module", params=CASES)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    name, changes = CASES[request.param]
    config = getattr(transformers, f"{name}Config")(**SIZES | changes)
    return saved(getattr(transformers, f"{name}ForCausalLM")(config), tmp_path_factory.mktemp(request.param))


class TestLlama(Continuing):
    ids = IDS


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Case:
    reference = transformers.LlamaForCausalLM(transformers.LlamaConfig(**SIZES))
    return saved(reference, tmp_path_factory.mktemp("plain"))


def test_configs_of_before(tmp_path: Path) -> None:
    """``rope_theta`` and ``rope_scaling`` at the top, and no head_dim: Llama 2's and 3's as they were published."""
    case = saved(transformers.LlamaForCausalLM(transformers.LlamaConfig(**SIZES, rope_parameters=LLAMA3)), tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    rope = config.pop("rope_parameters")
    del config["head_dim"]
    config |= {"rope_theta": rope.pop("rope_theta"), "rope_scaling": rope, "pretraining_tp": 1}
    (tmp_path / "config.json").write_text(json.dumps(config))
    model = imported(case, tmp_path / "bundle")
    with torch.no_grad():
        close(model.logits(IDS), case.reference(IDS).logits)


def test_configs_of_before_and_after(tmp_path: Path) -> None:
    """Both ways of saying a rotation, which agree."""
    case = saved(transformers.LlamaForCausalLM(transformers.LlamaConfig(**SIZES, rope_parameters=LLAMA3)), tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    rope = dict(config["rope_parameters"])
    config |= {"rope_theta": rope.pop("rope_theta"), "rope_scaling": rope}
    (tmp_path / "config.json").write_text(json.dumps(config))
    model = imported(case, tmp_path / "bundle")
    with torch.no_grad():
        close(model.logits(IDS), case.reference(IDS).logits)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"hidden_act": "tanh"}, "hidden_act 'tanh', .* one of 'silu'"),
        ({"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1.0}}, "rope_parameters .* linear, llama3, yarn"),
        ({"rope_parameters": {"rope_type": "default", "rope_theta": 9.0, "mscale": 2}}, "without mscale"),
        (
            {"rope_parameters": {"rope_theta": 9.0, "partial_rotary_factor": 0.5}},
            "whole heads, without partial_",
        ),
        ({"rope_scaling": {"type": "linear", "factor": 2.0}}, "rope_scaling .* but rope_parameters .* agree"),
        ({"rope_theta": 7.0}, "rope_theta 7.0, but rope_parameters is .*, or leave rope_theta out"),
        ({"num_key_value_heads": 3}, "key_value_heads must be a divisor of heads"),
        ({"num_key_value_heads": 4}, "the config asks for"),
    ],
)
def test_what_does_not_fit_is_told(plain: Case, tmp_path: Path, change: dict[str, object], told: str) -> None:
    check_refused(plain, tmp_path, change, told)


def test_a_rotation_of_a_part_of_each_head_stays_behind() -> None:
    """Its rotation by default leaves out what a config could say of that, and turns whole heads."""
    said = {"rope_parameters": {"rope_theta": 9.0, "partial_rotary_factor": 1.0}, **SIZES, "rms_norm_eps": 1e-6}
    spec = LLAMA.spec(said, "LlamaForCausalLM", "llama")
    data = to_data(spec)
    put(data, "stacks.text.position.fraction", 0.5)
    with pytest.raises(InputError, match=r"cannot say .*: it has to be a rotation of whole heads, whose fraction is 1"):
        LLAMA.config(parse(ModelSpec, data, "llama"), "LlamaForCausalLM", "llama")
