"""Marian, the Transformer of 2017: the way in, the numbers of transformers' own, what is written, the way out."""

from __future__ import annotations

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
    weights_of,
)

from mmformer.errors import InputError
from mmformer.interop.exporting import export_model
from mmformer.interop.importing import import_model

transformers = pytest.importorskip("transformers", reason="the reference")

PAD, EOS = 98, 0
SIZES = {
    **{"vocab_size": 99, "d_model": 32, "max_position_embeddings": 40, "encoder_layers": 3, "decoder_layers": 2},
    **{"encoder_attention_heads": 4, "decoder_attention_heads": 2, "encoder_ffn_dim": 48, "decoder_ffn_dim": 40},
    **{"dropout": 0.0, "activation_function": "swish", "scale_embedding": True},
    **{"pad_token_id": PAD, "eos_token_id": EOS, "decoder_start_token_id": PAD},
}
DRAWN = torch.Generator().manual_seed(1)
IDS = torch.randint(1, 98, (3, 17), generator=DRAWN)
WRITTEN = torch.cat((torch.full((3, 1), PAD), torch.randint(1, 98, (3, 14), generator=DRAWN)), dim=1)


def marian(folder: Path, table: float = 1.0, **more: Any) -> Case:
    """Random weights, but for the waves, and a bias on logits, which is no parameter there.

    Biases that are larger would make logits nearly the same everywhere; with a smaller table what is written varies.
    """
    reference = transformers.MarianMTModel(transformers.MarianConfig(**SIZES | more)).eval()
    randomise(reference)
    with torch.no_grad():
        for side in (reference.model.encoder, reference.model.decoder):
            side.embed_positions.weight.copy_(side.embed_positions.create_weight())
        reference.final_logits_bias.copy_(
            torch.randn(reference.final_logits_bias.shape, generator=torch.Generator().manual_seed(4)) * table**2
        )
        for name, value in reference.named_parameters():
            if name.endswith(".bias"):
                value.mul_(0.2)
            if name.endswith(("shared.weight", "embed_tokens.weight")):
                value.mul_(table)
    reference.generation_config.bad_words_ids = [[PAD]]
    reference.save_pretrained(folder)
    return Case(reference, folder)


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Case:
    return marian(tmp_path_factory.mktemp("marian"))


class TestMarian(Translating):
    """Gradients are of texts without pad, whose embedding theirs leaves as it is, though each text begins with it."""

    ids, written, first = IDS, WRITTEN, 1
    start, eos = PAD, EOS


@pytest.fixture(scope="module")
def writer(tmp_path_factory: pytest.TempPathFactory) -> Case:
    return marian(tmp_path_factory.mktemp("writer"), table=0.1)


def test_one_table_serves_three(case: Case, tmp_path: Path) -> None:
    assert list(imported(case, tmp_path / "bundle").model.state_dict())[-1] == "decoders.target.logit_bias"


def test_two_vocabularies(tmp_path: Path) -> None:
    """Tables of their own for what is read and what is written, as newer translators have; rectifiers, no scale."""
    more = {"share_encoder_decoder_embeddings": False, "decoder_vocab_size": 120, "activation_function": "relu"}
    case = marian(tmp_path / "in", **more, scale_embedding=False)
    model = imported(case, tmp_path / "bundle")
    assert model.model.spec.decoders["target"].shares is None
    written = WRITTEN + 20
    with torch.no_grad():
        theirs = case.reference(IDS, decoder_input_ids=written).logits
        close(model.logits(IDS, decoder_ids=written), theirs, measured="logits")
    check_round_trip(case, tmp_path / "bundle", tmp_path / "out")


def test_pad_is_never_written(case: Case, tmp_path: Path) -> None:
    model = imported(case, tmp_path / "bundle").model
    assert model.spec.decoders["target"].tokenizer.ids is not None
    assert model.spec.decoders["target"].tokenizer.ids.unwritten == (PAD,)
    assert model.spec.decoders["target"].tokenizer.ids.first == PAD


def test_older_weights_have_their_waves(case: Case, tmp_path: Path) -> None:
    """The first published ones, as PyTorch keeps them: the table three times more, and what is computed anyway."""
    state = weights_of(case.folder)
    waves = case.reference.model.encoder.embed_positions.weight.detach()
    more = {f"model.{side}.embed_positions.weight": waves.clone() for side in ("encoder", "decoder")}
    tied = ("lm_head.weight", "model.encoder.embed_tokens.weight", "model.decoder.embed_tokens.weight")
    more |= {name: state["model.shared.weight"].clone() for name in tied}
    import_model(f"hf:{otherwise(case, tmp_path, state | more).folder}", tmp_path / "bundle")
    export_model(tmp_path / "bundle", "hf", tmp_path / "out")
    check_same(weights_of(tmp_path / "out"), state | more)
    more["model.encoder.embed_positions.weight"][3, 5] += 0.01
    otherwise(case, tmp_path, state | more)
    with pytest.raises(InputError, match=r"encoder.embed_positions.weight differs from what is computed in its place"):
        import_model(f"hf:{tmp_path}", tmp_path / "other")


@pytest.mark.slow
def test_at_full_depth_and_length(tmp_path: Path) -> None:
    case = marian(tmp_path / "in", encoder_layers=6, decoder_layers=6, max_position_embeddings=512)
    model = imported(case, tmp_path / "bundle")
    ids, written = (torch.randint(1, 98, (2, length), generator=DRAWN) for length in (512, 500))
    with torch.no_grad():
        theirs = case.reference(ids, decoder_input_ids=written).logits
        close(model.logits(ids, decoder_ids=written), theirs, DEEP, measured="logits, full depth")


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"activation_function": "tanh"}, "has activation_function 'tanh', but .* one of 'gelu'"),
        ({"normalize_before": True}, "normalize_before True, but .* is False"),
        ({"encoder_layerdrop": 0.1}, "encoder_layerdrop 0.1, but .* is 0.0"),
        ({"layers": 4}, "has layers 4, which mmformer does not know"),
        ({"decoder_ffn_dim": 48}, "the file has .*decoder.layers.0.fc1.weight .* but the config asks for"),
        ({"architectures": ["MarianModel"]}, "reads MarianMTModel"),
    ],
)
def test_what_does_not_fit_is_told(case: Case, tmp_path: Path, change: dict[str, object], told: str) -> None:
    check_refused(case, tmp_path, change, told)
