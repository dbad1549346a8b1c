"""Mamba: the way in, the numbers of transformers' own, the way out."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from frames import Continuing
from parity import DEEP, Case, check_refused, check_round_trip, close, imported, randomise, saved

import mmformer
from mmformer.bundle import Transforms, save_bundle
from mmformer.generation.sampling import GreedySpec
from mmformer.interop.exporting import export_model
from mmformer.interop.families.mamba import FAMILY

tokenizers = pytest.importorskip("tokenizers")
transformers = pytest.importorskip("transformers", reason="the reference")

SIZES: dict[str, Any] = {
    **{"hidden_size": 32, "num_hidden_layers": 3, "state_size": 6, "vocab_size": 99},
    **{"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2},
}
CASES: dict[str, dict[str, Any]] = {
    "mamba": {},
    "other_sizes": {
        **{"expand": 3, "conv_kernel": 3, "time_step_rank": 5, "use_bias": True, "use_conv_bias": False},
        **{"layer_norm_epsilon": 1e-3, "tie_word_embeddings": False, "time_step_min": 0.01},
    },
}
CLASS = "MambaForCausalLM"
IDS = torch.randint(3, 99, (3, 11), generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module", params=CASES)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    config = transformers.MambaConfig(**SIZES | CASES[request.param])
    return saved(transformers.MambaForCausalLM(config), tmp_path_factory.mktemp(request.param))


class TestMamba(Continuing):
    ids = IDS


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Case:
    reference = transformers.MambaForCausalLM(transformers.MambaConfig(**SIZES))
    return saved(reference, tmp_path_factory.mktemp("plain"))


def test_rows_padded_on_the_left(plain: Case, tmp_path: Path) -> None:
    TestMamba().check_padded(plain, tmp_path / "bundle", torch.arange(11) >= torch.tensor([[0], [4], [8]]))


@pytest.mark.parametrize("tied", [True, False])
def test_the_trunk_alone_goes_both_ways(tied: bool, tmp_path: Path) -> None:
    config = transformers.MambaConfig(**SIZES, tie_word_embeddings=tied)
    case = saved(transformers.MambaModel(config), tmp_path / "in")
    imported(case, tmp_path / "bundle")
    check_round_trip(case, tmp_path / "bundle", tmp_path / "out")


def test_a_folder_with_its_vocabulary(tmp_path: Path) -> None:
    bpe = tokenizers.ByteLevelBPETokenizer()
    bpe.train_from_iterator(["a dog and two men in hats"], vocab_size=300, special_tokens=["<|endoftext|>"])
    (tmp_path / "in").mkdir()
    bpe.save(str(tmp_path / "in/tokenizer.json"))
    ends = {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}
    config = transformers.MambaConfig(**SIZES | ends | {"vocab_size": 300})
    case = saved(transformers.MambaForCausalLM(config), tmp_path / "in")
    reader = transformers.AutoTokenizer.from_pretrained(case.folder)
    model, prompt = imported(case, tmp_path / "bundle"), "two men"
    written = case.reference.generate(**reader([prompt], return_tensors="pt"), max_new_tokens=12, do_sample=False)[0]
    assert model.generate(prompt, spec=GreedySpec(max_length=12)) == reader.decode(written, skip_special_tokens=True)


def test_a_model_that_was_made_here_goes_out(tmp_path: Path) -> None:
    """Whatever the length of its texts, of which their config says nothing."""
    spec = FAMILY.spec(transformers.MambaConfig(**SIZES).to_diff_dict() | {"time_step_rank": "auto"}, CLASS, "it")
    decoder = spec.decoders["text"]
    tokenizer = dataclasses.replace(decoder.tokenizer, context_length=24)
    model = dataclasses.replace(spec, decoders={"text": dataclasses.replace(decoder, tokenizer=tokenizer)}).build()
    randomise(model)
    save_bundle(tmp_path / "bundle", model.eval(), Transforms(None, None, {}), "# It\n")
    assert export_model(tmp_path / "bundle", "hf", tmp_path / "out") == f"mamba ({CLASS})"
    opened = transformers.MambaForCausalLM.from_pretrained(tmp_path / "out").eval()
    assert opened.config.time_step_rank == 2
    with torch.no_grad():
        close(mmformer.load(tmp_path / "bundle").logits(IDS), opened(IDS).logits, measured="logits")


@pytest.mark.slow
def test_full_depth(tmp_path: Path) -> None:
    """The largest's 64 layers, narrow."""
    config = transformers.MambaConfig(**SIZES | {"num_hidden_layers": 64})
    case = saved(transformers.MambaForCausalLM(config), tmp_path / "in")
    model = imported(case, tmp_path / "bundle")
    with torch.no_grad():
        close(model.logits(IDS), case.reference(IDS).logits, DEEP, measured="logits, full depth")


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"hidden_act": "gelu"}, "has hidden_act 'gelu', but .* is 'silu'"),
        ({"intermediate_size": 60}, "intermediate_size 60, but .* a whole multiple of hidden_size"),
        ({"expand": 1.5}, "expand 1.5 .* a whole multiple"),
        ({"expand": 3, "intermediate_size": 96}, "the file has .* but the config asks for"),
        ({"num_heads": 4}, "has num_heads 4, which mmformer does not know"),
        ({"use_bias": True}, "missing: backbone.layers.0.mixer.in_proj.bias"),
    ],
)
def test_what_does_not_fit_is_told(plain: Case, tmp_path: Path, change: dict[str, object], told: str) -> None:
    check_refused(plain, tmp_path, change, told)
