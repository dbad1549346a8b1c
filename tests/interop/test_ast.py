"""The audio spectrogram transformer: the way in, the numbers of transformers' own, the way out."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import soundfile
import torch
from frames import Frame
from parity import DEEP, Case, check_refused, check_round_trip, close, imported, saved
from torch import Tensor

from mmformer.bundle import load_bundle, save_bundle
from mmformer.data.sound import AudioTransformSpec
from mmformer.errors import InputError
from mmformer.interop.exporting import export_model
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
    config = transformers.ASTConfig(**{**SIZES, **CUT, **change}, num_labels=5)
    transformers.ASTFeatureExtractor(num_mel_bins=40, max_length=47, mean=-6.8, std=5.5).save_pretrained(folder)
    return saved(getattr(transformers, kind)(config), folder)


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Case:
    return made("ASTForAudioClassification", tmp_path_factory.mktemp("ast"), hidden_act="gelu_new")


class TestAST(Frame):
    def ours(self, model: Model) -> Tensor:
        return outputs(model).logits["classes"]

    def theirs(self, case: Case) -> Tensor:
        logits: Tensor = case.reference(features(case.folder)).logits
        return logits


@pytest.mark.slow
def test_full_depth(tmp_path: Path) -> None:
    """The published 12 layers, narrow."""
    case = made("ASTForAudioClassification", tmp_path / "in", num_hidden_layers=12)
    model = imported(case, tmp_path / "bundle").model
    with torch.no_grad():
        theirs = case.reference(features(case.folder)).logits
        close(outputs(model).logits["classes"], theirs, DEEP, measured="logits, full depth")


def test_tokens_and_their_mean(tmp_path: Path) -> None:
    """Our patches come by time, theirs by band."""
    case = made("ASTModel", tmp_path / "in", layer_norm_eps=1e-6)
    model = imported(case, tmp_path / "bundle").model
    with torch.no_grad():
        ours, theirs = outputs(model), case.reference(features(case.folder))
    patches = theirs.last_hidden_state[:, 2:].unflatten(1, (BANDS, TIMES)).transpose(1, 2).flatten(1, 2)
    close(ours.tokens["sound"].x, torch.cat((theirs.last_hidden_state[:, :2], patches), dim=1))
    close(ours.embedding["sound"], theirs.pooler_output, measured="embeddings")
    check_round_trip(case, tmp_path / "bundle", tmp_path / "out")


def test_patches_are_theirs(case: Case, tmp_path: Path) -> None:
    """What enters the stack, without positions."""
    tokenizer: Any = imported(case, tmp_path / "bundle").model.encoders["sound"].tokenizer
    with torch.no_grad():
        theirs = case.reference.audio_spectrogram_transformer.embeddings.patch_embeddings(features(case.folder))
        tokens = tokenizer(sounds())
    time, band = tokens.pos[0, :, 0], tokens.pos[0, :, 1]
    close(tokens.x, theirs[:, band * TIMES + time])


def test_sounds_in_files_are_classified(case: Case, tmp_path: Path) -> None:
    """From samples to the names of classes; theirs are softened here as ours are."""
    model = imported(case, tmp_path / "bundle")
    heard = sounds().samples[0, :3000].numpy()
    soundfile.write(tmp_path / "sound.wav", heard, 16_000, subtype="FLOAT")
    found = model.classify(audio=tmp_path / "sound.wav")
    with torch.no_grad():
        theirs = case.reference(features(case.folder)[:1]).logits.softmax(-1)[0]
    assert list(found) == [f"LABEL_{number}" for number in theirs.argsort(descending=True).tolist()]
    ours = torch.tensor([found[f"LABEL_{number}"] for number in range(5)])
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)


def test_a_model_that_was_made_here_goes_out(case: Case, tmp_path: Path) -> None:
    """With how it prepares sounds and the names of its classes, which no file said before."""
    model = imported(case, tmp_path / "bundle")
    names = ["a", "b", "c", "d", "e"]
    transforms = dataclasses.replace(load_bundle(tmp_path / "bundle")[1], classes={"classes": names})
    save_bundle(tmp_path / "own", model.model, transforms, "# Own\n")
    assert (
        export_model(tmp_path / "own", "hf", tmp_path / "out")
        == "audio-spectrogram-transformer (ASTForAudioClassification)"
    )
    opened = transformers.ASTForAudioClassification.from_pretrained(tmp_path / "out").eval()
    assert opened.config.id2label == dict(enumerate(names))
    with torch.no_grad():
        close(outputs(model.model).logits["classes"], opened(features(tmp_path / "out")).logits, measured="logits")
    shorter = dataclasses.replace(transforms, audio=AudioTransformSpec(16_000, 0.3))
    save_bundle(tmp_path / "shorter", model.model, shorter, "# Own\n")
    with pytest.raises(
        InputError, match=r"AudioTransformSpec.seconds is 0.3, but ASTFeatureExtractor, .* make it 0.49"
    ):
        export_model(tmp_path / "shorter", "hf", tmp_path / "no")
    assert not (tmp_path / "no").exists()


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
    check_refused(case, tmp_path, change, told)
