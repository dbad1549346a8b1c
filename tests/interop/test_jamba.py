"""Jamba: the way in, the numbers of transformers' own, the way out; layers that take turns in several ways."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from frames import Continuing
from parity import DEEP, Case, check_refused, check_round_trip, close, imported, saved

from mmformer.errors import InputError
from mmformer.interop import hybrids
from mmformer.interop.families.jamba import FAMILY

transformers = pytest.importorskip("transformers", reason="the reference")

SIZES: dict[str, Any] = {
    **{"hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 4, "num_key_value_heads": 2},
    **{"vocab_size": 99, "intermediate_size": 40, "mamba_d_state": 6, "rms_norm_eps": 1e-3},
    **{"num_experts": 4, "attn_layer_period": 2, "attn_layer_offset": 1, "expert_layer_offset": 0},
    **{"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2, "max_position_embeddings": 64},
}
CASES: dict[str, dict[str, Any]] = {
    "by_turns": {},
    "three_and_two": {
        **{"num_hidden_layers": 7, "attn_layer_period": 3, "attn_layer_offset": 2, "expert_layer_offset": 1},
        **{"num_experts_per_tok": 3, "mamba_expand": 1, "mamba_d_conv": 3, "mamba_dt_rank": 5},
        **{"mamba_proj_bias": True, "mamba_conv_bias": False, "tie_word_embeddings": True},
    },
    "without_experts": {"num_experts": 1, "attn_layer_period": 8, "attn_layer_offset": 3},
}
IDS = torch.randint(3, 99, (3, 11), generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module", params=CASES)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    config = transformers.JambaConfig(**SIZES | CASES[request.param])
    return saved(transformers.JambaForCausalLM(config), tmp_path_factory.mktemp(request.param), size=2.0)


class TestJamba(Continuing):
    ids = IDS

    def test_rows_padded_on_the_left(self, case: Case, tmp_path: Path) -> None:
        if case.reference.config.mamba_proj_bias:
            pytest.skip("theirs lets the convolution see the bias that padding before a text gets")
        self.check_padded(case, tmp_path / "bundle", torch.tensor([[0], [4], [8]]) <= torch.arange(11))


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Case:
    reference = transformers.JambaForCausalLM(transformers.JambaConfig(**SIZES))
    return saved(reference, tmp_path_factory.mktemp("plain"))


@pytest.mark.slow
def test_full_depth(tmp_path: Path) -> None:
    """The published 32 layers, narrow."""
    turns = {"attn_layer_period": 8, "attn_layer_offset": 4, "expert_layer_offset": 1, "num_hidden_layers": 32}
    case = saved(transformers.JambaForCausalLM(transformers.JambaConfig(**SIZES | turns)), tmp_path / "in")
    model = imported(case, tmp_path / "bundle")
    with torch.no_grad():
        close(model.logits(IDS), case.reference(IDS).logits, DEEP, measured="logits, full depth")


def test_the_trunk_alone_goes_both_ways(tmp_path: Path) -> None:
    case = saved(transformers.JambaModel(transformers.JambaConfig(**SIZES)), tmp_path / "in")
    imported(case, tmp_path / "bundle")
    check_round_trip(case, tmp_path / "bundle", tmp_path / "out")


def test_a_config_is_written_of_layers_that_take_turns(case: Case) -> None:
    """What is written of a spec with experts is what it was read of."""
    said = json.loads((case.folder / "config.json").read_text())
    spec = FAMILY.spec(said, "JambaForCausalLM", "it")
    if said["num_experts"] > 1:
        written = FAMILY.config(spec, "JambaForCausalLM", "it")
        assert {key: said[key] for key in hybrids.KEYS} == {key: written[key] for key in hybrids.KEYS}
        return
    with pytest.raises(InputError, match="MambaSpec, AttentionSpec and MixtureOfExpertsSpec take turns"):
        FAMILY.config(spec, "JambaForCausalLM", "it")


def test_layers_that_take_other_turns_are_no_jamba(plain: Case) -> None:
    spec = FAMILY.spec(json.loads((plain.folder / "config.json").read_text()), "JambaForCausalLM", "it")
    first, second = spec.stacks["text"].pattern
    stack = dataclasses.replace(spec.stacks["text"], pattern=(first, second, second, first))
    with pytest.raises(InputError, match="it is no jamba"):
        FAMILY.config(dataclasses.replace(spec, stacks={"text": stack}), "JambaForCausalLM", "it")


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"hidden_act": "gelu"}, "hidden_act 'gelu', but .* is 'silu'"),
        ({"sliding_window": 8}, "sliding_window 8, but .* is None"),
        ({"mamba_inner_layernorms": False}, "mamba_inner_layernorms False, but .* is True"),
        ({"attn_layer_offset": 0}, r"missing: model\.layers\.1\.mamba"),
        ({"num_experts": 3}, r"left over: model\.layers\.0\.feed_forward\.experts\.3"),
        ({"num_key_value_heads": 4}, "the file has .* but the config asks for"),
        ({"mamba_heads": 4}, "has mamba_heads 4, which mmformer does not know"),
    ],
)
def test_what_does_not_fit_is_told(plain: Case, tmp_path: Path, change: dict[str, object], told: str) -> None:
    check_refused(plain, tmp_path, change, told)
