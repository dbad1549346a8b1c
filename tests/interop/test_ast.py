"""The audio spectrogram transformer: the way in, the numbers of transformers' own, the way out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from parity import Case, check_gradients, check_round_trip, close, imported, saved
from torch import Tensor

from mmformer.errors import InputError
from mmformer.interop.importing import import_model
from mmformer.models.model import Model
from mmformer.types import Audio, Batch, Outputs

transformers = pytest.importorskip("transformers", reason="the reference")

SIZES = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 40}
CUT = {"max_length": 47, "num_mel_bins": 40, "patch_size": 8, "time_stride": 5, "frequency_stride": 6}
TIMES, BANDS = 8, 6


def sounds() -> Audio:
    """Shorter than what is read, as long, longer."""
    lengths = torch.tensor([3000, 7760, 9000])
    samples = 0.1 * torch.randn(3, 9000, generator=torch.Generator().manual_seed(1))
    return Audio(samples, lengths, 16_000)


def features(folder: Path) -> Tensor:
    audio = sounds()
    heard = [row[:length].numpy() for row, length in zip(audio.samples, audio.lengths.tolist(), strict=True)]
    extractor = transformers.AutoFeatureExtractor.from_pretrained(folder)
    found: Tensor = extractor(heard, sampling_rate=16_000, return_tensors="pt")["input_values"]
    return found


def outputs(model: Model) -> Outputs:
    found: Outputs = model(Batch((), {}, audio=sounds()))
    return found


def made(kind: str, folder: Path, **change: Any) -> Case:
    config = transformers.ASTConfig(**SIZES, **CUT, num_labels=5, **change)
    transformers.ASTFeatureExtractor(num_mel_bins=40, max_length=47, mean=-6.8, std=5.5).save_pretrained(folder)
    return saved(getattr(transformers, kind)(config), folder)


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Case:
    return made("ASTForAudioClassification", tmp_path_factory.mktemp("ast"), hidden_act="gelu_new")


def test_classes(case: Case, tmp_path: Path) -> None:
    model = imported(case, tmp_path / "bundle").model
    with torch.no_grad():
        theirs = case.reference(features(case.folder)).logits
        close(outputs(model).logits["classes"], theirs, measured="logits")


def test_tokens_and_their_mean(tmp_path: Path) -> None:
    """Our patches come by time, theirs by band."""
    case = made("ASTModel", tmp_path / "in", layer_norm_eps=1e-6)
    model = imported(case, tmp_path / "bundle").model
    with torch.no_grad():
        ours, theirs = outputs(model), case.reference(features(case.folder))
    patches = theirs.last_hidden_state[:, 2:].unflatten(1, (BANDS, TIMES)).transpose(1, 2).flatten(1, 2)
    close(ours.tokens["sound"].x, torch.cat((theirs.last_hidden_state[:, :2], patches), dim=1))
    close(ours.embedding["sound"], theirs.pooler_output, measured="embeddings")
    check_round_trip(case, tmp_path / "bundle", tmp_path / "out", transformers.ASTModel.from_pretrained)


def test_patches_are_theirs(case: Case, tmp_path: Path) -> None:
    """What enters the stack, without positions."""
    tokenizer: Any = imported(case, tmp_path / "bundle").model.encoders["sound"].tokenizer
    with torch.no_grad():
        theirs = case.reference.audio_spectrogram_transformer.embeddings.patch_embeddings(features(case.folder))
        tokens = tokenizer(sounds())
    time, band = tokens.pos[0, :, 0], tokens.pos[0, :, 1]
    close(tokens.x, theirs[:, band * TIMES + time])


def test_gradients(case: Case, tmp_path: Path) -> None:
    model = imported(case, tmp_path / "bundle").model.train()
    ours = outputs(model).logits["classes"]
    check_gradients(ours, model, case.reference.train()(features(case.folder)).logits, case)
    case.reference.eval()


def test_the_way_out(case: Case, tmp_path: Path) -> None:
    imported(case, tmp_path / "bundle")
    load = transformers.ASTForAudioClassification.from_pretrained
    check_round_trip(case, tmp_path / "bundle", tmp_path / "out", load)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"qkv_bias": False}, "has qkv_bias False, but .* is True"),
        ({"patch_size": [8, 8]}, "patch_size .* a patch_size that is one number"),
        ({"head_dim": 16}, "has head_dim 16, which mmformer does not know"),
        ({"max_length": 57}, r"position_embeddings \(1, 50, 32\), but the config asks for \(62, 32\)"),
    ],
)
def test_what_does_not_fit_is_told(case: Case, tmp_path: Path, change: dict[str, object], told: str) -> None:
    config = json.loads((case.folder / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | change))
    (tmp_path / "model.safetensors").write_bytes((case.folder / "model.safetensors").read_bytes())
    with pytest.raises(InputError, match=told):
        import_model(f"hf:{tmp_path}", tmp_path / "bundle")
