"""Whisper: the way in, the numbers of transformers' own, the way out, and what it writes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from frames import Frame
from parity import DEEP, Case, check_refused, check_round_trip, close, ended, imported, saved, written
from torch import Tensor

from mmformer.bundle import load_bundle, save_bundle
from mmformer.generation.beam import BeamSpec
from mmformer.generation.sampling import GreedySpec
from mmformer.interop.exporting import export_model
from mmformer.models.logits import text_logits, text_of
from mmformer.models.model import Model
from mmformer.types import Audio, Batch

transformers = pytest.importorskip("transformers", reason="the reference")

SIZES = {
    "d_model": 32,
    "encoder_layers": 2,
    "decoder_layers": 3,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 48,
    "decoder_ffn_dim": 40,
    "vocab_size": 99,
    "num_mel_bins": 20,
    "max_source_positions": 50,
    "max_target_positions": 24,
}
ENDS = {
    "pad_token_id": 98,
    "bos_token_id": 98,
    "eos_token_id": 98,
    "decoder_start_token_id": 97,
    "suppress_tokens": None,
    "begin_suppress_tokens": None,
}
IDS = torch.randint(0, 97, (3, 11), generator=torch.Generator().manual_seed(1))


def sounds() -> Audio:
    """Shorter than the second that is read, as long, longer; past their ends there is something that is not heard."""
    samples = 0.1 * torch.randn(3, 18_000, generator=torch.Generator().manual_seed(1))
    return Audio(samples, torch.tensor([5000, 16_000, 18_000]), 16_000)


def features(folder: Path) -> Tensor:
    audio = sounds()
    heard = [row[:length].numpy() for row, length in zip(audio.samples, audio.lengths.tolist(), strict=True)]
    extractor = transformers.AutoFeatureExtractor.from_pretrained(folder)
    found: Tensor = extractor(heard, sampling_rate=16_000, return_tensors="pt")["input_features"]
    return found


def logits(model: Model) -> Tensor:
    return text_logits(model, None, text_of(IDS), None, {"audio": sounds()})


def theirs_of(case: Case) -> Tensor:
    found: Tensor = case.reference(input_features=features(case.folder), decoder_input_ids=IDS).logits
    return found


def made(kind: str, folder: Path, **change: Any) -> Case:
    transformers.WhisperFeatureExtractor(feature_size=20, chunk_length=1).save_pretrained(folder)
    return saved(getattr(transformers, kind)(transformers.WhisperConfig(**{**SIZES, **ENDS, **change})), folder)


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Case:
    return made("WhisperForConditionalGeneration", tmp_path_factory.mktemp("whisper"))


class TestWhisper(Frame):
    def ours(self, model: Model) -> Tensor:
        return logits(model)

    def theirs(self, case: Case) -> Tensor:
        return theirs_of(case)


@pytest.mark.slow
def test_full_depth(tmp_path: Path) -> None:
    """The largest's 32 layers on either side, narrow."""
    layers = {"encoder_layers": 32, "decoder_layers": 32}
    case = made("WhisperForConditionalGeneration", tmp_path / "in", **layers)
    model = imported(case, tmp_path / "bundle").model
    with torch.no_grad():
        close(logits(model), theirs_of(case), DEEP, measured="logits, full depth")


def test_what_the_stem_and_the_encoder_make(tmp_path: Path) -> None:
    case = made("WhisperModel", tmp_path / "in", activation_function="relu")
    model = imported(case, tmp_path / "bundle").model
    tokenizer: Any = model.encoders["sound"].tokenizer
    with torch.no_grad():
        encoder = case.reference.encoder
        heard = features(case.folder)
        stem = torch.nn.functional.gelu(encoder.conv2(torch.nn.functional.gelu(encoder.conv1(heard)))).mT
        close(tokenizer(sounds()).x, stem)
        ours = model(Batch((), {}, audio=sounds()), decode=False).tokens["sound"].x
        close(ours, encoder(heard).last_hidden_state)
    check_round_trip(case, tmp_path / "bundle", tmp_path / "out")


def test_an_untied_output_goes_both_ways(tmp_path: Path) -> None:
    case = made("WhisperForConditionalGeneration", tmp_path / "in", tie_word_embeddings=False)
    model = imported(case, tmp_path / "bundle").model
    with torch.no_grad():
        close(logits(model), theirs_of(case), measured="logits")
    check_round_trip(case, tmp_path / "bundle", tmp_path / "out")


BEGUN = torch.tensor([[97, 5, 6], [97, 5, 8], [97, 7, 6]])
"""As the start, a language and a task."""


def theirs_written(case: Case, **options: Any) -> list[list[int]]:
    """What transformers writes, without the prompt and what follows the end."""
    heard = features(case.folder)
    rows = case.reference.generate(heard, decoder_input_ids=BEGUN, max_new_tokens=12, do_sample=False, **options)
    return ended(rows, 98)


def ours_written(model: Model, spec: GreedySpec | BeamSpec) -> list[list[int]]:
    return written(model, spec, BEGUN, Batch((), {}, audio=sounds()))


@pytest.mark.parametrize(
    ("spec", "options"), [(GreedySpec(max_length=12), {}), (BeamSpec(beams=3, max_length=12), {"num_beams": 3})]
)
def test_writing(case: Case, tmp_path: Path, spec: GreedySpec | BeamSpec, options: dict[str, Any]) -> None:
    model = imported(case, tmp_path / "bundle").model
    theirs = theirs_written(case, **options)
    assert ours_written(model, spec) == theirs
    assert len(set(map(tuple, theirs))) > 1, "they hear different things"


def test_what_is_never_written_or_not_first(case: Case, tmp_path: Path) -> None:
    free = theirs_written(case)
    banned = {"suppress_tokens": [free[0][1]], "begin_suppress_tokens": [98, *{row[0] for row in free}]}
    other = made("WhisperForConditionalGeneration", tmp_path / "in", **banned)
    model = imported(other, tmp_path / "bundle").model
    theirs = theirs_written(other)
    assert ours_written(model, GreedySpec(max_length=12)) == theirs
    assert theirs != free


def test_biases_that_keys_have_learned_stay_behind(case: Case, tmp_path: Path) -> None:
    """They move all scores of a query alike: what goes out says the same without them."""
    model = imported(case, tmp_path / "bundle").model
    _, transforms = load_bundle(tmp_path / "bundle")
    with torch.no_grad():
        for name, value in model.named_parameters():
            if name.endswith(("qkv.bias", "kv.bias")):
                value[-64:-32] += 1.0
    save_bundle(tmp_path / "trained", model, transforms, "# Trained\n")
    assert export_model(tmp_path / "trained", "hf", tmp_path / "out") == "whisper (WhisperForConditionalGeneration)"
    opened = transformers.WhisperForConditionalGeneration.from_pretrained(tmp_path / "out").eval()
    assert theirs_written(Case(opened, tmp_path / "out")) == theirs_written(case), "special ids go along"
    with torch.no_grad():
        theirs = theirs_of(Case(opened, tmp_path / "out"))
        close(logits(model), theirs, measured="logits")
        close(theirs, theirs_of(case))


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"scale_embedding": True}, "has scale_embedding True, but .* is False"),
        ({"encoder_layerdrop": 0.1}, "has encoder_layerdrop 0.1, but .* is 0.0"),
        ({"max_source_positions": 60}, r"makes spectrograms of 100 frames, but the model reads 120"),
        ({"num_mel_bins": 30}, r"makes spectrograms of 20 bands, but the model reads 30"),
        ({"encoder_layers": 3}, "missing: model.encoder.layers.2"),
    ],
)
def test_what_does_not_fit_is_told(case: Case, tmp_path: Path, change: dict[str, object], told: str) -> None:
    check_refused(case, tmp_path, change, told, beside=("preprocessor_config.json",))
