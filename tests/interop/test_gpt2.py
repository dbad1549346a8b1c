"""GPT-2: the way in, the numbers of transformers' own, the way out."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from frames import Continuing
from parity import Case, check_refused, check_round_trip, close, imported, saved

from mmformer.bundle import Transforms, save_bundle
from mmformer.config import parse, read_yaml, to_data
from mmformer.errors import InputError
from mmformer.generation.sampling import GreedySpec
from mmformer.interop import plain
from mmformer.interop.exporting import export_model
from mmformer.models.logits import text_logits, text_of
from mmformer.models.model import ModelSpec

tokenizers = pytest.importorskip("tokenizers")
transformers = pytest.importorskip("transformers", reason="the reference")

SIZES = {"n_embd": 32, "n_layer": 3, "n_head": 4, "vocab_size": 99, "n_positions": 20}
DROPLESS = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
ENDS = {"bos_token_id": 98, "eos_token_id": 98}
IDS = torch.randint(0, 98, (3, 11), generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Case:
    config = transformers.GPT2Config(**SIZES, **DROPLESS, **ENDS, n_inner=48, layer_norm_epsilon=1e-3)
    return saved(transformers.GPT2LMHeadModel(config), tmp_path_factory.mktemp("gpt2"))


class TestGPT2(Continuing):
    ids, eos = IDS, 98


def test_the_trunk_alone_goes_both_ways(tmp_path: Path) -> None:
    config = transformers.GPT2Config(**SIZES, **ENDS, activation_function="quick_gelu")
    case = saved(transformers.GPT2Model(config).half(), tmp_path / "in")
    model = imported(case, tmp_path / "bundle")
    assert model.model.spec.stacks["text"].layer.feedforward.approximate == "sigmoid"
    check_round_trip(
        case, tmp_path / "bundle", tmp_path / "out", lambda f: transformers.GPT2Model.from_pretrained(f, dtype="auto")
    )


@pytest.mark.parametrize("prompt", ["a dog", "two men in \n\n hats", "Ünïcode 🦊"])
def test_a_folder_with_its_vocabulary(tmp_path: Path, prompt: str) -> None:
    """Text in, text out, as transformers' pipeline has it; and every file of the folder comes back."""
    bpe = tokenizers.ByteLevelBPETokenizer()
    bpe.train_from_iterator(
        ["a dog and two men in hats", "some cats on a mat"], vocab_size=300, special_tokens=["<|endoftext|>"]
    )
    (tmp_path / "in").mkdir()
    bpe.save_model(str(tmp_path / "in"))
    config = transformers.GPT2Config(**SIZES | {"vocab_size": 300, "n_positions": 64}, bos_token_id=0, eos_token_id=0)
    case = saved(transformers.GPT2LMHeadModel(config), tmp_path / "in")
    model = imported(case, tmp_path / "bundle")
    reader = transformers.AutoTokenizer.from_pretrained(case.folder)
    ids = reader([prompt], return_tensors="pt")
    written = case.reference.generate(**ids, max_new_tokens=12, do_sample=False, pad_token_id=0)[0]
    assert model.generate(prompt, spec=GreedySpec(max_length=12)) == reader.decode(written, skip_special_tokens=True)
    export_model(tmp_path / "bundle", "hf", tmp_path / "out")
    first, second = ({file.name: file.read_bytes() for file in (tmp_path / name).iterdir()} for name in ("in", "out"))
    assert first == second


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"activation_function": "tanh"}, "has activation_function 'tanh', but .* one of 'gelu'"),
        ({"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx True, but .* is False"),
        ({"rope_theta": 5}, "has rope_theta 5, which mmformer does not know"),
        ({"n_embd": 64}, "the file has .* but the config asks for"),
        ({"n_layer": 4}, "missing: transformer.h.3"),
        ({"n_layer": 2}, "left over: transformer.h.2"),
        ({"model_type": "gpt3"}, "has model_type 'gpt3', .* Did you mean 'gpt2'"),
        ({"architectures": ["GPT2ForTokens"]}, "architectures .* reads GPT2LMHeadModel, GPT2Model"),
    ],
)
def test_what_does_not_fit_is_told(case: Case, tmp_path: Path, change: dict[str, object], told: str) -> None:
    check_refused(case, tmp_path, change, told)


def test_a_model_that_was_trained_here_goes_out(tmp_path: Path) -> None:
    """Made from a spec, with options of training that no config says."""
    data = to_data(parse(ModelSpec, read_yaml("configs/models/gpt2.yaml"), "gpt2"))
    for path, value in {
        **{"stacks.text.width": 32, "stacks.text.depth": 2, "stacks.text.layer.mixer.heads": 4},
        **{"stacks.text.layer.feedforward.hidden_width": 48, "stacks.text.layer.feedforward.dropout": 0.2},
        **{"stacks.text.drop_path": 0.1, "decoders.text.smoothing": 0.1, "decoders.text.tokenizer.rows": 99},
        "decoders.text.tokenizer.ids": {"bos": 98, "eos": [98]},
    }.items():
        plain.put(data, path, value)
    model = parse(ModelSpec, data, "").build().eval()
    model.initialise(1)
    save_bundle(tmp_path / "bundle", model, Transforms(), "")
    export_model(tmp_path / "bundle", "hf", tmp_path / "out")
    reference = transformers.GPT2LMHeadModel.from_pretrained(tmp_path / "out").eval()
    with torch.no_grad():
        close(text_logits(model, None, text_of(IDS), None, {}), reference(IDS).logits)
    assert reference.config.eos_token_id == 98
    wide = dataclasses.replace(model.spec.stacks["text"], final_norm=False)
    other = dataclasses.replace(model.spec, stacks={"text": wide}).build()
    other.initialise(1)
    save_bundle(tmp_path / "other", other, Transforms(), "")
    with pytest.raises(InputError, match=r"no gpt2 \(GPT2LMHeadModel\): its stacks.text.final_norm is False"):
        export_model(tmp_path / "other", "hf", tmp_path / "refused")
