"""Marian, the Transformer of 2017: the way in, the numbers of transformers' own, what is written, the way out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from parity import Case, check_gradients, check_round_trip, close, imported, randomise
from safetensors.torch import load_file, save_file
from torch import Tensor

from mmformer.errors import InputError
from mmformer.generation.beam import BeamSpec
from mmformer.generation.decoding import Decoding
from mmformer.generation.sampling import GreedySpec
from mmformer.interop.exporting import export_model
from mmformer.interop.importing import import_model
from mmformer.models.logits import text_logits, text_of
from mmformer.types import Batch, Text

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
VALID = torch.arange(17) < torch.tensor([[17], [9], [4]])


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


def theirs_of(case: Case, valid: Tensor | None = None, ids: Tensor = IDS, written: Tensor = WRITTEN) -> Any:
    return case.reference(ids, attention_mask=None if valid is None else valid.long(), decoder_input_ids=written)


def test_logits_and_hidden_states(case: Case, tmp_path: Path) -> None:
    model = imported(case, tmp_path / "bundle")
    assert list(model.model.state_dict())[-1] == "decoders.target.logit_bias", "one table serves three"
    with torch.no_grad():
        theirs = theirs_of(case)
        close(model.logits(IDS, decoder_ids=WRITTEN), theirs.logits, measured="logits")
        close(model.model(Batch((), {}, text=text_of(IDS))).tokens["source"].x, theirs.encoder_last_hidden_state)
        close(model.logits(IDS, decoder_ids=WRITTEN, valid=VALID), theirs_of(case, VALID).logits, measured="logits")


def test_two_vocabularies(tmp_path: Path) -> None:
    """Tables of their own for what is read and what is written, as newer translators have; rectifiers, no scale."""
    more = {"share_encoder_decoder_embeddings": False, "decoder_vocab_size": 120, "activation_function": "relu"}
    case = marian(tmp_path / "in", **more, scale_embedding=False)
    model = imported(case, tmp_path / "bundle")
    assert model.model.spec.decoders["target"].shares is None
    written = WRITTEN + 20
    with torch.no_grad():
        theirs = theirs_of(case, written=written).logits
        close(model.logits(IDS, decoder_ids=written), theirs, measured="logits")
    load = transformers.MarianMTModel.from_pretrained
    check_round_trip(case, tmp_path / "bundle", tmp_path / "out", load)


def test_the_loss(case: Case, tmp_path: Path) -> None:
    """Of texts of several lengths, with what a decoder begins with put before them."""
    model, real = imported(case, tmp_path / "bundle").model, torch.arange(15) < torch.tensor([[15], [8], [3]])
    labels = torch.where(real, WRITTEN.roll(-1, 1), -100)
    with torch.no_grad():
        theirs = case.reference(IDS, attention_mask=VALID.long(), labels=labels).loss
        target = Text(labels.clamp(min=0), real.sum(1))
        ours = model(Batch((), {}, text=text_of(IDS, VALID), target=target)).losses["target"]
    close(ours.total / ours.items, theirs, varied=False, measured="loss")


def test_gradients(case: Case, tmp_path: Path) -> None:
    """Of texts without pad, whose embedding theirs leaves as it is, though each text begins with it."""
    model, written = imported(case, tmp_path / "bundle").model.train(), WRITTEN[:, 1:]
    ours = text_logits(model, None, text_of(IDS, VALID), text_of(written), {})
    case.reference.train()
    check_gradients(ours, model, theirs_of(case, VALID, written=written).logits, case)
    case.reference.eval()


@pytest.fixture(scope="module")
def writer(tmp_path_factory: pytest.TempPathFactory) -> Case:
    return marian(tmp_path_factory.mktemp("writer"), table=0.1)


def check_writing(case: Case, bundle: Path, spec: Any, **options: Any) -> None:
    """Token for token, over padded rows. Where room ends, transformers would force an eos; here it does not."""
    model = imported(case, bundle).model
    encoded = model(Batch((), {}, text=text_of(IDS, VALID)), decode=False)
    theirs = case.reference.generate(
        IDS,
        attention_mask=VALID.long(),
        do_sample=False,
        max_new_tokens=spec.max_length,
        forced_eos_token_id=None,
        **options,
    )[:, 1:]
    ours = spec.write(Decoding(model, "target", encoded.tokens, rows=3), text_of(torch.full((3, 1), PAD)))
    for row, written in zip(theirs.tolist(), ours, strict=True):
        assert written.ids == (row[: row.index(EOS)] if EOS in row else row)
    assert any(len(set(written.ids)) > 3 for written in ours), "more than one id over and over"


def test_greedy_writing(writer: Case, tmp_path: Path) -> None:
    check_writing(writer, tmp_path / "bundle", GreedySpec(max_length=12), num_beams=1)


@pytest.mark.parametrize("penalty", [0.5, 1.0, 2.0])
def test_writing_by_beams(writer: Case, penalty: float, tmp_path: Path) -> None:
    """``early_stopping="never"`` is a search that ends when nothing better can come, which is ours."""
    options = {"num_beams": 4, "length_penalty": penalty, "early_stopping": "never"}
    spec = BeamSpec(beams=4, length_penalty=penalty, max_length=10)
    check_writing(writer, tmp_path / "bundle", spec, **options)


def test_pad_is_never_written(case: Case, tmp_path: Path) -> None:
    model = imported(case, tmp_path / "bundle").model
    assert model.spec.decoders["target"].tokenizer.ids is not None
    assert model.spec.decoders["target"].tokenizer.ids.unwritten == (PAD,)
    assert model.spec.decoders["target"].tokenizer.ids.first == PAD


def test_the_way_out(case: Case, tmp_path: Path) -> None:
    imported(case, tmp_path / "bundle")
    load = transformers.MarianMTModel.from_pretrained
    check_round_trip(case, tmp_path / "bundle", tmp_path / "out", load)


def test_older_weights_have_their_waves(case: Case, tmp_path: Path) -> None:
    """The first published ones, as PyTorch keeps them: the table three times more, and what is computed anyway."""
    state = load_file(case.folder / "model.safetensors")
    waves = case.reference.model.encoder.embed_positions.weight.detach()
    more = {f"model.{side}.embed_positions.weight": waves.clone() for side in ("encoder", "decoder")}
    tied = ("lm_head.weight", "model.encoder.embed_tokens.weight", "model.decoder.embed_tokens.weight")
    more |= {name: state["model.shared.weight"].clone() for name in tied}
    (tmp_path / "config.json").write_bytes((case.folder / "config.json").read_bytes())
    save_file(state | more, tmp_path / "model.safetensors", {"format": "pt"})
    import_model(f"hf:{tmp_path}", tmp_path / "bundle")
    export_model(tmp_path / "bundle", "hf", tmp_path / "out")
    written = load_file(tmp_path / "out/model.safetensors")
    assert written.keys() == (state | more).keys()
    assert all(torch.equal(value, written[name]) for name, value in (state | more).items())
    more["model.encoder.embed_positions.weight"][3, 5] += 0.01
    save_file(state | more, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(InputError, match=r"encoder.embed_positions.weight differs from what is computed in its place"):
        import_model(f"hf:{tmp_path}", tmp_path / "other")


@pytest.mark.slow
def test_at_full_depth_and_length(tmp_path: Path) -> None:
    case = marian(tmp_path / "in", encoder_layers=6, decoder_layers=6, max_position_embeddings=512)
    model = imported(case, tmp_path / "bundle")
    ids, written = (torch.randint(1, 98, (2, length), generator=DRAWN) for length in (512, 500))
    with torch.no_grad():
        theirs = theirs_of(case, ids=ids, written=written).logits
        close(model.logits(ids, decoder_ids=written), theirs, 1e-4, measured="logits, full depth")


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
    config = json.loads((case.folder / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | change))
    (tmp_path / "model.safetensors").write_bytes((case.folder / "model.safetensors").read_bytes())
    with pytest.raises(InputError, match=told):
        import_model(f"hf:{tmp_path}", tmp_path / "bundle")
