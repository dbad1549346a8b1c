"""DistilBERT: the way in, the numbers of transformers' own, the way out; with each of its heads."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from parity import Case, check_gradients, check_round_trip, close, imported, saved

from mmformer.errors import InputError
from mmformer.interop.importing import import_model
from mmformer.models.logits import text_logits, text_of
from mmformer.types import Batch

transformers = pytest.importorskip("transformers", reason="the reference")

SIZES = {
    **{"vocab_size": 99, "dim": 32, "n_layers": 3, "n_heads": 4, "hidden_dim": 48, "max_position_embeddings": 20},
    **{"dropout": 0.0, "attention_dropout": 0.0, "seq_classif_dropout": 0.0},
}
IDS = torch.randint(1, 99, (3, 11), generator=torch.Generator().manual_seed(1))
VALID = torch.arange(11) < torch.tensor([[11], [7], [3]])


def distilbert(name: str, folder: Path, **more: Any) -> Case:
    return saved(getattr(transformers, name)(transformers.DistilBertConfig(**SIZES | more)), folder, size=3.0)


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Case:
    return distilbert("DistilBertForMaskedLM", tmp_path_factory.mktemp("distilbert"))


@pytest.mark.parametrize("sinusoidal", [False, True])
def test_hidden_words(sinusoidal: bool, tmp_path: Path) -> None:
    case = distilbert("DistilBertForMaskedLM", tmp_path / "in", sinusoidal_pos_embds=sinusoidal)
    model = imported(case, tmp_path / "bundle")
    with torch.no_grad():
        theirs = case.reference(IDS, attention_mask=VALID.long()).logits
    close(model.logits(IDS, valid=VALID)[VALID], theirs[VALID], measured="logits")
    load = transformers.DistilBertForMaskedLM.from_pretrained
    check_round_trip(case, tmp_path / "bundle", tmp_path / "out", load)


def test_classes(tmp_path: Path) -> None:
    names = {"no": 0, "yes": 1, "well": 2}
    more = {"id2label": {number: name for name, number in names.items()}, "label2id": names}
    case = distilbert("DistilBertForSequenceClassification", tmp_path / "in", **more)
    model = imported(case, tmp_path / "bundle")
    with torch.no_grad():
        ours = model.model(Batch((), {}, text=text_of(IDS, VALID))).logits["classes"]
        close(ours, case.reference(IDS, attention_mask=VALID.long()).logits, measured="logits")
    assert model.transforms.classes == {"classes": ["no", "yes", "well"]}
    load = transformers.DistilBertForSequenceClassification.from_pretrained
    check_round_trip(case, tmp_path / "bundle", tmp_path / "out", load)


def test_the_trunk_alone(tmp_path: Path) -> None:
    case = distilbert("DistilBertModel", tmp_path / "in", activation="relu")
    model = imported(case, tmp_path / "bundle").model
    with torch.no_grad():
        ours = model(Batch((), {}, text=text_of(IDS, VALID)))
        theirs = case.reference(IDS, attention_mask=VALID.long()).last_hidden_state
    close(ours.tokens["text"].x[VALID], theirs[VALID])
    close(ours.embedding["text"], theirs[:, 0], measured="embeddings")
    check_round_trip(case, tmp_path / "bundle", tmp_path / "out", transformers.DistilBertModel.from_pretrained)


def test_gradients(case: Case, tmp_path: Path) -> None:
    model = imported(case, tmp_path / "bundle").model.train()
    ours = text_logits(model, None, text_of(IDS, VALID), None, {})[VALID]
    check_gradients(ours, model, case.reference.train()(IDS, attention_mask=VALID.long()).logits[VALID], case)
    case.reference.eval()


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"activation": "tanh"}, "has activation 'tanh', but .* one of 'gelu'"),
        ({"tie_word_embeddings": False}, "tie_word_embeddings False, but .* is True"),
        ({"hidden_size": 32}, "has hidden_size 32, which mmformer does not know"),
        ({"n_layers": 4}, "missing: distilbert.transformer.layer.3"),
    ],
)
def test_what_does_not_fit_is_told(case: Case, tmp_path: Path, change: dict[str, object], told: str) -> None:
    config = json.loads((case.folder / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | change))
    (tmp_path / "model.safetensors").write_bytes((case.folder / "model.safetensors").read_bytes())
    with pytest.raises(InputError, match=told):
        import_model(f"hf:{tmp_path}", tmp_path / "bundle")
