"""T5 and mT5: the way in, the numbers of transformers' own, what is written, the way out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from frames import Translating
from parity import (
    DEEP,
    Case,
    check_refused,
    check_round_trip,
    check_same,
    close,
    imported,
    otherwise,
    randomise,
    saved,
    weights_of,
)
from safetensors.torch import save_file
from torch import Tensor

from mmformer.interop.exporting import export_model
from mmformer.interop.importing import import_model
from mmformer.models.logits import text_of
from mmformer.types import Batch

transformers = pytest.importorskip("transformers", reason="the reference")

SIZES = {
    **{"vocab_size": 99, "d_model": 32, "d_kv": 6, "d_ff": 48, "num_layers": 3, "num_decoder_layers": 2},
    **{"num_heads": 4, "relative_attention_num_buckets": 8, "relative_attention_max_distance": 12},
    **{"dropout_rate": 0.0, "layer_norm_epsilon": 1e-4, "decoder_start_token_id": 0},
}
"""Rows longer than the largest distance, buckets of several distances, heads that are no share of the width."""
DRAWN = torch.Generator().manual_seed(1)
IDS = torch.randint(2, 99, (3, 17), generator=DRAWN)
WRITTEN = torch.cat((torch.zeros(3, 1, dtype=torch.int64), torch.randint(2, 99, (3, 14), generator=DRAWN)), dim=1)
VALID = torch.arange(17) < torch.tensor([[17], [9], [4]])


def t5(folder: Path, **more: Any) -> Case:
    return saved(transformers.T5ForConditionalGeneration(transformers.T5Config(**SIZES, **more)), folder)


def untied(folder: Path) -> Case:
    """T5 1.1: logits of a matrix of their own, which transformers opens as such where the weights have it."""
    config = transformers.T5Config(**SIZES, feed_forward_proj="gated-gelu", tie_word_embeddings=False)
    reference = transformers.T5ForConditionalGeneration(config)
    reference.lm_head.weight = torch.nn.Parameter(torch.zeros(99, 32))
    randomise(reference)
    reference.save_pretrained(folder)
    state = {name: value.contiguous() for name, value in reference.state_dict().items()}
    save_file(
        {name: value for name, value in state.items() if "embed_tokens" not in name},
        folder / "model.safetensors",
        {"format": "pt"},
    )
    return Case(transformers.T5ForConditionalGeneration.from_pretrained(folder).eval(), folder)


@pytest.fixture(scope="module")
def old(tmp_path_factory: pytest.TempPathFactory) -> Case:
    return t5(tmp_path_factory.mktemp("t5"))


@pytest.fixture(scope="module")
def newer(tmp_path_factory: pytest.TempPathFactory) -> Case:
    return untied(tmp_path_factory.mktemp("t5_1_1"))


@pytest.fixture(scope="module", params=["old", "newer"])
def case(request: pytest.FixtureRequest) -> Case:
    found: Case = request.getfixturevalue(request.param)
    return found


@pytest.fixture(scope="module")
def writer(tmp_path_factory: pytest.TempPathFactory) -> Case:
    config = transformers.T5Config(**SIZES)
    return saved(transformers.T5ForConditionalGeneration(config), tmp_path_factory.mktemp("writer"), size=2.5)


class TestT5(Translating):
    ids, written = IDS, WRITTEN


def theirs_of(case: Case) -> Tensor:
    logits: Tensor = case.reference(IDS, decoder_input_ids=WRITTEN).logits
    return logits


def test_one_table_serves_three_or_two(old: Case, newer: Case, tmp_path: Path) -> None:
    models = [imported(case, tmp_path / case.folder.name).model for case in (old, newer)]
    names = [[name for name in model.state_dict() if name.split(".")[0] != "stacks"] for model in models]
    assert names == [["encoders.source.tokenizer.weight"], [*names[0], "decoders.target.output.weight"]]
    assert [model.spec.decoders["target"].logit_scale for model in models] == [32**-0.5, 1.0]


def test_the_config_that_says_so_itself(newer: Case, tmp_path: Path) -> None:
    """Published configs of T5 1.1 have no scale_decoder_outputs, and say that nothing is tied."""
    config = json.loads((newer.folder / "config.json").read_text())
    del config["scale_decoder_outputs"]
    (tmp_path / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": False}))
    (tmp_path / "model.safetensors").write_bytes((newer.folder / "model.safetensors").read_bytes())
    model = imported(Case(newer.reference, tmp_path), tmp_path / "bundle")
    with torch.no_grad():
        close(model.logits(IDS, decoder_ids=WRITTEN), theirs_of(newer), measured="logits")
    export_model(tmp_path / "bundle", "hf", tmp_path / "out")
    assert json.loads((tmp_path / "out/config.json").read_text()) == config | {"tie_word_embeddings": False}


def test_older_weights_have_more_than_is_read(old: Case, tmp_path: Path) -> None:
    """Published T5 1.0 has its table under all its names, and a bias for the cross attention, which reads none."""
    state = weights_of(old.folder)
    more = {f"{name}.weight": state["shared.weight"].clone() for name in ("encoder.embed_tokens", "lm_head")}
    more["decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight"] = torch.randn(8, 4)
    found = import_model(f"hf:{otherwise(old, tmp_path, state | more).folder}", tmp_path / "bundle")
    assert any("EncDecAttention.relative_attention_bias.weight, which go along unread" in told for told in found.notes)
    export_model(tmp_path / "bundle", "hf", tmp_path / "out")
    check_same(weights_of(tmp_path / "out"), state | more)


def test_the_encoder_alone(tmp_path: Path) -> None:
    config = transformers.T5Config(**SIZES, feed_forward_proj="gated-silu")
    alone = saved(transformers.T5EncoderModel(config), tmp_path / "in")
    model = imported(alone, tmp_path / "bundle").model
    assert not model.decoders
    with torch.no_grad():
        theirs = alone.reference(IDS, attention_mask=VALID.long()).last_hidden_state
        close(model(Batch((), {}, text=text_of(IDS, VALID))).tokens["source"].x[VALID], theirs[VALID])
    check_round_trip(alone, tmp_path / "bundle", tmp_path / "out")


def test_mt5(tmp_path: Path) -> None:
    case = saved(transformers.MT5ForConditionalGeneration(transformers.MT5Config(**SIZES)), tmp_path / "in")
    model = imported(case, tmp_path / "bundle")
    with torch.no_grad():
        close(model.logits(IDS, decoder_ids=WRITTEN), theirs_of(case), measured="logits")
    check_round_trip(case, tmp_path / "bundle", tmp_path / "out")


@pytest.mark.slow
def test_at_full_depth(tmp_path: Path) -> None:
    """As many layers as T5 base has, and rows that are longer than the largest distance."""
    config = transformers.T5Config(**{**SIZES, "num_layers": 12, "num_decoder_layers": 12})
    case = saved(transformers.T5ForConditionalGeneration(config), tmp_path / "in")
    model = imported(case, tmp_path / "bundle")
    ids, written = (torch.randint(2, 99, (2, length), generator=DRAWN) for length in (200, 150))
    with torch.no_grad():
        theirs = case.reference(ids, decoder_input_ids=written).logits
        close(model.logits(ids, decoder_ids=written), theirs, DEEP, measured="logits, full depth")


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"feed_forward_proj": "gated-tanh"}, "has feed_forward_proj 'gated-tanh' and .* one of "),
        ({"dense_act_fn": "gelu"}, "dense_act_fn 'gelu' and is_gated_act False, but what"),
        ({"is_decoder": True}, "is_decoder True, but .* is False"),
        ({"relative_attention_bins": 4}, "has relative_attention_bins 4, which mmformer does not know"),
        ({"d_kv": 8}, "the file has .*SelfAttention.q.weight .* but the config asks for"),
        ({"num_decoder_layers": 3}, "missing: decoder.block.2"),
        ({"architectures": ["T5ForQuestionAnswering"]}, "reads T5ForConditionalGeneration, T5EncoderModel"),
    ],
)
def test_what_does_not_fit_is_told(old: Case, tmp_path: Path, change: dict[str, object], told: str) -> None:
    check_refused(old, tmp_path, change, told)
