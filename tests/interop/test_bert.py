"""BERT: the way in, the numbers of transformers' own, the way out; with each of its heads."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from parity import Case, check_gradients, check_round_trip, close, imported, saved
from safetensors.torch import load_file, save_file
from torch import Tensor

from mmformer.errors import InputError
from mmformer.interop.exporting import export_model
from mmformer.interop.importing import import_model
from mmformer.models.logits import text_logits, text_of
from mmformer.models.model import Model
from mmformer.types import Batch, Outputs

transformers = pytest.importorskip("transformers", reason="the reference")

SIZES = {
    **{"vocab_size": 99, "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 48},
    **{"max_position_embeddings": 20, "type_vocab_size": 3, "layer_norm_eps": 1e-3},
    **{"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0},
}
DRAWN = torch.Generator().manual_seed(1)
IDS = torch.randint(1, 99, (3, 11), generator=DRAWN)
TYPES = torch.randint(0, 3, (3, 11), generator=DRAWN)
VALID = torch.arange(11) < torch.tensor([[11], [7], [3]])
HEADS = {
    "BertForPreTraining": ("language", "follows"),
    "BertForMaskedLM": ("language",),
    "BertForNextSentencePrediction": ("follows",),
    "BertForSequenceClassification": ("classes",),
}


def bert(name: str, folder: Path, **more: Any) -> Case:
    return saved(getattr(transformers, name)(transformers.BertConfig(**SIZES | more)), folder, size=3.0)


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Case:
    return bert("BertForPreTraining", tmp_path_factory.mktemp("bert"))


def theirs_of(case: Case, valid: Tensor | None = None) -> Any:
    return case.reference(IDS, token_type_ids=TYPES, attention_mask=None if valid is None else valid.long())


def ours_of(model: Model, valid: Tensor | None = None) -> Outputs:
    return model(Batch((), {}, text=text_of(IDS, valid, TYPES)))


@pytest.mark.parametrize("name", HEADS)
def test_logits(name: str, tmp_path: Path) -> None:
    more = {"num_labels": 5} if name == "BertForSequenceClassification" else {}
    case = bert(name, tmp_path / "in", **more)
    model = imported(case, tmp_path / "bundle").model
    assert tuple(model.spec.heads) == HEADS[name]
    with torch.no_grad():
        ours, theirs = ours_of(model, VALID).logits, theirs_of(case, VALID)
        found = {"language": "prediction_logits", "follows": "seq_relationship_logits"} if len(ours) == 2 else {}
        for head, logits in ours.items():
            wanted = theirs[found.get(head, "logits")]
            close(*((x[VALID] if head == "language" else x) for x in (logits, wanted)), measured="logits")
    check_round_trip(case, tmp_path / "bundle", tmp_path / "out", getattr(transformers, name).from_pretrained)


@pytest.mark.parametrize("pooled", [True, False])
def test_the_trunk_alone(pooled: bool, tmp_path: Path) -> None:
    made = transformers.BertModel(transformers.BertConfig(**SIZES, hidden_act="relu"), add_pooling_layer=pooled)
    case = saved(made, tmp_path / "in", size=3.0)
    model = imported(case, tmp_path / "bundle").model
    with torch.no_grad():
        ours, theirs = ours_of(model, VALID), theirs_of(case, VALID)
    close(ours.tokens["text"].x[VALID], theirs.last_hidden_state[VALID])
    pooler = theirs.pooler_output if pooled else theirs.last_hidden_state[:, 0]
    close(ours.embedding["text"], pooler, measured="embeddings")

    def load(folder: Path) -> Any:
        return transformers.BertModel.from_pretrained(folder, add_pooling_layer=pooled)

    check_round_trip(case, tmp_path / "bundle", tmp_path / "out", load)


def test_ids_have_logits_of_their_own(case: Case, tmp_path: Path) -> None:
    model = imported(case, tmp_path / "bundle")
    with torch.no_grad():
        close(model.logits(IDS, type_ids=TYPES), theirs_of(case).prediction_logits, measured="logits")
        without = case.reference(IDS).prediction_logits
    close(model.logits(IDS), without, measured="logits")
    assert (without - theirs_of(case).prediction_logits).abs().max() > 0.1, "types count"


def test_gradients(case: Case, tmp_path: Path) -> None:
    model = imported(case, tmp_path / "bundle").model.train()
    case.reference.train()
    check_gradients(ours_of(model, VALID).logits["follows"], model, theirs_of(case, VALID)[1], case)
    ours = text_logits(model, None, text_of(IDS, VALID, TYPES), None, {})[VALID]
    check_gradients(ours, model, theirs_of(case, VALID)[0][VALID], case)
    case.reference.eval()


def renamed(case: Case, folder: Path, name: Callable[[str], str], more: dict[str, Tensor], **config: Any) -> None:
    state = {name(key): value for key, value in load_file(case.folder / "model.safetensors").items()}
    folder.mkdir()
    save_file(state | more, folder / "model.safetensors", {"format": "pt"})
    said = json.loads((case.folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(said | config))


def test_the_first_published_weights(case: Case, tmp_path: Path) -> None:
    """bert-base-uncased: gamma and beta, all heads' weights though the class reads one, copies, positions counted."""

    def old(name: str) -> str:
        norm = "LayerNorm" in name
        return (
            name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta")
            if (norm)
            else name
        )

    state = load_file(case.folder / "model.safetensors")
    more = {
        "cls.predictions.decoder.weight": state["bert.embeddings.word_embeddings.weight"].clone(),
        "bert.embeddings.position_ids": torch.arange(20)[None],
    }
    renamed(case, tmp_path / "in", old, more, architectures=["BertForMaskedLM"])
    found = import_model(f"hf:{tmp_path / 'in'}", tmp_path / "bundle")
    assert found.family == "hf bert (BertForMaskedLM gamma)"
    assert any("cls.seq_relationship.weight" in told and "go along unread" in told for told in found.notes)
    model = imported(Case(case.reference, tmp_path / "in"), tmp_path / "bundle")
    assert model.model.spec.encoders["text"].embedding is None, "the class has no pooler"
    with torch.no_grad():
        close(model.logits(IDS, type_ids=TYPES), theirs_of(case).prediction_logits, measured="logits")
    export_model(tmp_path / "bundle", "hf", tmp_path / "out")
    first, second = (load_file(tmp_path / where / "model.safetensors") for where in ("in", "out"))
    assert first.keys() == second.keys()
    assert all(torch.equal(value, second[name]) for name, value in first.items())
    assert json.loads((tmp_path / "out/config.json").read_text())["architectures"] == ["BertForMaskedLM"]


@pytest.mark.slow
def test_at_full_depth(tmp_path: Path) -> None:
    case = bert("BertForMaskedLM", tmp_path / "in", num_hidden_layers=12)
    model = imported(case, tmp_path / "bundle")
    with torch.no_grad():
        close(model.logits(IDS, type_ids=TYPES), theirs_of(case).logits, 1e-4, measured="logits, full depth")


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"hidden_act": "tanh"}, "has hidden_act 'tanh', but .* one of 'gelu'"),
        ({"position_embedding_type": "relative_key"}, "position_embedding_type 'relative_key', but .* is 'absolute'"),
        ({"is_decoder": True}, "is_decoder True, but .* is False"),
        ({"tie_word_embeddings": False}, "tie_word_embeddings False, but .* is True"),
        ({"embedding_size": 128}, "has embedding_size 128, which mmformer does not know"),
        ({"type_vocab_size": 2}, "the file has .*token_type_embeddings.weight .* but the config asks for"),
        ({"num_hidden_layers": 2}, "left over: bert.encoder.layer.2"),
        ({"architectures": ["BertForMasked"]}, "Did you mean 'BertForMaskedLM'"),
    ],
)
def test_what_does_not_fit_is_told(case: Case, tmp_path: Path, change: dict[str, object], told: str) -> None:
    renamed(case, tmp_path / "in", str, {}, **change)
    with pytest.raises(InputError, match=told):
        import_model(f"hf:{tmp_path / 'in'}", tmp_path / "bundle")


def test_positions_that_do_not_count_are_told(case: Case, tmp_path: Path) -> None:
    renamed(case, tmp_path / "in", str, {"bert.embeddings.position_ids": torch.arange(20).flip(0)[None]})
    with pytest.raises(InputError, match=r"position_ids differs from what is computed"):
        import_model(f"hf:{tmp_path / 'in'}", tmp_path / "bundle")
