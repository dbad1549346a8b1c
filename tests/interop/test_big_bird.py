"""BigBird, full and sparse: the way in, the numbers of transformers' own, the way out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from parity import Case, check_gradients, check_round_trip, close, imported, saved
from safetensors.torch import load_file, save_file

from mmformer.errors import InputError
from mmformer.interop.exporting import export_model
from mmformer.interop.importing import import_model
from mmformer.models.logits import text_logits, text_of
from mmformer.types import Batch

transformers = pytest.importorskip("transformers", reason="the reference")

SIZES: dict[str, Any] = {
    **{"vocab_size": 99, "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 48},
    **{"max_position_embeddings": 64, "type_vocab_size": 3, "layer_norm_eps": 1e-3, "attention_type": "original_full"},
    **{"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, "sep_token_id": 66},
}
DRAWN = torch.Generator().manual_seed(1)
IDS = torch.randint(1, 99, (3, 23), generator=DRAWN)
TYPES = torch.randint(0, 3, (3, 23), generator=DRAWN)
VALID = torch.tensor([[23], [17], [6]]) > torch.arange(23)


def big_bird(name: str, folder: Path, size: float = 3.0, **more: Any) -> Case:
    return saved(getattr(transformers, name)(transformers.BigBirdConfig(**SIZES | more)), folder, size)


@pytest.fixture(scope="module", params=[False, True], ids=["plain", "rescaled"])
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    return big_bird("BigBirdForMaskedLM", tmp_path_factory.mktemp("big_bird"), rescale_embeddings=request.param)


def theirs_of(case: Case) -> Any:
    return case.reference(IDS, token_type_ids=TYPES, attention_mask=VALID.long())


def test_logits_of_padded_rows(case: Case, tmp_path: Path) -> None:
    model = imported(case, tmp_path / "bundle")
    with torch.no_grad():
        theirs = theirs_of(case).logits
    close(model.logits(IDS, valid=VALID, type_ids=TYPES)[VALID], theirs[VALID], measured="logits")


def test_gradients(tmp_path: Path) -> None:
    case = big_bird("BigBirdForMaskedLM", tmp_path / "in", size=1.0)  # larger ones leave attention little to change
    model = imported(case, tmp_path / "bundle").model.train()
    case.reference.train()
    ours = text_logits(model, None, text_of(IDS, VALID, TYPES), None, {})[VALID]
    check_gradients(ours, model, theirs_of(case).logits[VALID], case)
    case.reference.eval()


def test_the_way_out(case: Case, tmp_path: Path) -> None:
    imported(case, tmp_path / "bundle")
    check_round_trip(case, tmp_path / "bundle", tmp_path / "out", transformers.BigBirdForMaskedLM.from_pretrained)


def test_the_trunk_alone(tmp_path: Path) -> None:
    case = big_bird("BigBirdModel", tmp_path / "in", hidden_act="relu")
    model = imported(case, tmp_path / "bundle").model
    with torch.no_grad():
        ours, theirs = model(Batch((), {}, text=text_of(IDS, VALID, TYPES))), theirs_of(case)
    close(ours.tokens["text"].x[VALID], theirs.last_hidden_state[VALID])
    close(ours.embedding["text"], theirs.pooler_output, measured="embeddings")
    check_round_trip(case, tmp_path / "bundle", tmp_path / "out", transformers.BigBirdModel.from_pretrained)


def test_what_it_was_trained_with(tmp_path: Path) -> None:
    """The published weights' class, with positions counted, as older ones have them; another reads them in part."""
    case = big_bird("BigBirdForPreTraining", tmp_path / "in")
    model = imported(case, tmp_path / "bundle").model
    with torch.no_grad():
        ours, theirs = model(Batch((), {}, text=text_of(IDS, VALID, TYPES))).logits, theirs_of(case)
    close(ours["language"][VALID], theirs.prediction_logits[VALID], measured="logits")
    close(ours["follows"], theirs.seq_relationship_logits, measured="logits")
    check_round_trip(case, tmp_path / "bundle", tmp_path / "out", transformers.BigBirdForPreTraining.from_pretrained)
    config, file = json.loads((case.folder / "config.json").read_text()), case.folder / "model.safetensors"
    said = config | {"architectures": ["BigBirdForMaskedLM"], "position_embedding_type": "absolute"}
    (case.folder / "config.json").write_text(json.dumps(said))
    save_file(load_file(file) | {"bert.embeddings.position_ids": torch.arange(64)[None]}, file, {"format": "pt"})
    assert tuple(imported(case, tmp_path / "other").model.spec.heads) == ("language",)
    export_model(tmp_path / "other", "hf", tmp_path / "again")
    first, second = (load_file(folder / "model.safetensors") for folder in (case.folder, tmp_path / "again"))
    assert first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


SPARSE: dict[str, Any] = {
    **{"attention_type": "block_sparse", "block_size": 4, "num_random_blocks": 2, "max_position_embeddings": 96},
}
"""Rows of up to 36 ids are seen whole."""


@pytest.fixture(scope="module")
def sparse(tmp_path_factory: pytest.TempPathFactory) -> Case:
    return big_bird("BigBirdForMaskedLM", tmp_path_factory.mktemp("sparse"), **SPARSE)


def alone(case: Case, ids: torch.Tensor) -> torch.Tensor:
    """Theirs, whose attention is full for good after a short row."""
    case.reference.bert.set_attention_type("block_sparse")
    return case.reference(ids).logits


@pytest.mark.parametrize("length", [9, 36, 37, 40, 41, 64, 95])
def test_sparse_rows_short_and_long(sparse: Case, tmp_path: Path, length: int) -> None:
    model, ids = imported(sparse, tmp_path / "bundle"), torch.randint(1, 99, (2, length), generator=DRAWN)
    with torch.no_grad():
        ours = model.logits(ids)
        close(ours, alone(sparse, ids), measured="logits")
        sparse.reference.bert.set_attention_type("original_full")
        full = sparse.reference(ids).logits
    assert bool((ours - full).abs().max() > 0.1) == (length > 36)


def test_each_sparse_row_of_a_batch_is_what_it_is_alone(sparse: Case, tmp_path: Path) -> None:
    """In a batch, theirs hang on the longest; where all end in one block, they are the same."""
    model, ids = imported(sparse, tmp_path / "bundle"), torch.randint(1, 99, (4, 62), generator=DRAWN)
    lengths = (62, 61, 45, 20)
    valid = torch.tensor(lengths)[:, None] > torch.arange(62)
    with torch.no_grad():
        ours = model.logits(ids, valid=valid)
        for row, length in enumerate(lengths):
            close(ours[row, :length], alone(sparse, ids[row : row + 1, :length])[0], measured="logits")
        sparse.reference.bert.set_attention_type("block_sparse")
        theirs = sparse.reference(ids[:2], attention_mask=valid[:2].long()).logits
    close(ours[:2][valid[:2]], theirs[valid[:2]], measured="logits")


def test_sparse_rows_that_are_computed_in_blocks(tmp_path: Path) -> None:
    """Of more than ours are cut into, so that what no block needs is never computed."""
    case = big_bird("BigBirdModel", tmp_path / "in", **SPARSE | {"max_position_embeddings": 1600, "block_size": 16})
    model, ids = imported(case, tmp_path / "bundle").model, torch.randint(1, 99, (1, 1570), generator=DRAWN)
    with torch.no_grad():
        ours = model(Batch((), {}, text=text_of(ids, torch.ones_like(ids).bool(), torch.zeros_like(ids))))
        theirs = case.reference(ids)
    close(ours.tokens["text"].x, theirs.last_hidden_state)
    close(ours.embedding["text"], theirs.pooler_output, measured="embeddings")


def test_sparse_gradients(tmp_path: Path) -> None:
    case = big_bird("BigBirdForMaskedLM", tmp_path / "in", size=1.0, **SPARSE)
    model, ids = imported(case, tmp_path / "bundle").model.eval(), torch.randint(1, 99, (2, 50), generator=DRAWN)
    ours = text_logits(model, None, text_of(ids, torch.ones_like(ids).bool(), torch.zeros_like(ids)), None, {})
    check_gradients(ours, model, case.reference(ids).logits, case)


def test_the_way_out_of_sparse_ones(sparse: Case, tmp_path: Path) -> None:
    imported(sparse, tmp_path / "bundle")
    again = check_round_trip(
        sparse, tmp_path / "bundle", tmp_path / "out", transformers.BigBirdForMaskedLM.from_pretrained
    )
    assert again.bert.attention_type == "block_sparse"


def test_embeddings_are_dropped_before_their_norm(tmp_path: Path) -> None:
    case = big_bird("BigBirdForMaskedLM", tmp_path / "in", hidden_dropout_prob=0.25)
    stack = imported(case, tmp_path / "bundle").model.spec.stacks["text"]
    assert (stack.embedding_dropout, stack.input_dropout, stack.layer.dropout) == (0.25, 0.0, 0.25)


@pytest.mark.slow
def test_full_depth(tmp_path: Path) -> None:
    """The large one's 24 layers, narrow."""
    case = big_bird("BigBirdForMaskedLM", tmp_path / "in", num_hidden_layers=24)
    model = imported(case, tmp_path / "bundle")
    with torch.no_grad():
        ours, theirs = model.logits(IDS, valid=VALID, type_ids=TYPES), theirs_of(case).logits
    close(ours[VALID], theirs[VALID], 1e-4, measured="logits, full depth")


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"attention_type": "full"}, "attention_type 'full' .*'block_sparse' or 'original_full'"),
        ({"use_bias": False}, "use_bias False, but .* is True"),
        ({"hidden_act": "tanh"}, "hidden_act 'tanh', but .* one of 'gelu'"),
        ({"is_decoder": True}, "is_decoder True, but .* is False"),
        ({"attention_types": []}, "has attention_types .* Did you mean 'attention_type'"),
        ({"max_position_embeddings": 32}, "the file has .* but the config asks for"),
    ],
)
def test_what_does_not_fit_is_told(case: Case, tmp_path: Path, change: dict[str, object], told: str) -> None:
    config = json.loads((case.folder / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | change))
    (tmp_path / "model.safetensors").write_bytes((case.folder / "model.safetensors").read_bytes())
    with pytest.raises(InputError, match=told):
        import_model(f"hf:{tmp_path}", tmp_path / "bundle")
