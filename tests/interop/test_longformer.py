"""Longformer: the way in, the numbers of transformers' own, the way out; with tokens that are chosen to see all."""

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
from mmformer.models.logits import text_logits, text_of
from mmformer.nn import blocked
from mmformer.types import Batch

tokenizers = pytest.importorskip("tokenizers")
transformers = pytest.importorskip("transformers", reason="the reference")

PAD = 1
SIZES: dict[str, Any] = {
    **{"vocab_size": 99, "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 48},
    **{"max_position_embeddings": 34, "type_vocab_size": 2, "layer_norm_eps": 1e-3, "attention_window": 6},
    **{"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, "pad_token_id": PAD},
}
DRAWN = torch.Generator().manual_seed(1)
IDS = torch.randint(3, 99, (3, 23), generator=DRAWN)
TYPES = torch.randint(0, 2, (3, 23), generator=DRAWN)
PLACE = torch.arange(23)
VALID = {
    "whole": torch.ones(3, 23, dtype=torch.bool),
    "right": torch.tensor([[23], [17], [6]]) > PLACE,
    "left": torch.tensor([[0], [5], [12]]) <= PLACE,
}
GLOBAL = {
    "none": None,
    "first": (PLACE == 0).expand(3, -1),
    "some": torch.rand(3, 23, generator=DRAWN) < torch.tensor([[0.3], [0.1], [0.0]]),
}


def longformer(name: str, folder: Path, **more: Any) -> Case:
    return saved(getattr(transformers, name)(transformers.LongformerConfig(**SIZES | more)), folder, size=3.0)


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Case:
    return longformer("LongformerForMaskedLM", tmp_path_factory.mktemp("longformer"))


def padded(valid: Tensor) -> Tensor:
    """Their positions count the ids that are not padding."""
    return IDS.masked_fill(~valid, PAD)


def theirs_of(case: Case, valid: Tensor, chosen: Tensor | None) -> Any:
    mask = None if chosen is None else chosen.long()
    more = {"attention_mask": valid.long(), "global_attention_mask": mask, "token_type_ids": TYPES}
    return case.reference(padded(valid), **more)


@pytest.mark.parametrize("padding", VALID)
@pytest.mark.parametrize("chosen", GLOBAL)
def test_logits(case: Case, tmp_path: Path, padding: str, chosen: str) -> None:
    model, valid, mask = imported(case, tmp_path / "bundle"), VALID[padding], GLOBAL[chosen]
    with torch.no_grad():
        theirs = theirs_of(case, valid, mask).logits
    ours = model.logits(padded(valid), valid=valid, type_ids=TYPES, global_mask=mask)
    close(ours[valid], theirs[valid], measured="logits")


def test_a_row_that_is_computed_in_blocks(case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = imported(case, tmp_path / "bundle")
    monkeypatch.setattr(blocked, "BLOCK", 4)
    monkeypatch.setattr(blocked, "LEAST", 8)
    with torch.no_grad():
        theirs = theirs_of(case, VALID["whole"], GLOBAL["first"]).logits
    close(model.logits(IDS, type_ids=TYPES, global_mask=GLOBAL["first"]), theirs, measured="logits")


@pytest.mark.parametrize("pooled", [True, False])
def test_the_trunk_alone(pooled: bool, tmp_path: Path) -> None:
    config = transformers.LongformerConfig(**SIZES | {"hidden_act": "relu", "pad_token_id": 0})
    made = transformers.LongformerModel(config, add_pooling_layer=pooled)
    case = saved(made, tmp_path / "in", size=3.0)
    model = imported(case, tmp_path / "bundle").model
    with torch.no_grad():
        ours = model(Batch((), {}, text=text_of(IDS, None, TYPES, GLOBAL["first"])))
        theirs = case.reference(IDS, token_type_ids=TYPES, global_attention_mask=GLOBAL["first"].long())
    close(ours.tokens["text"].x, theirs.last_hidden_state)
    pooler = theirs.pooler_output if pooled else theirs.last_hidden_state[:, 0]
    close(ours.embedding["text"], pooler, measured="embeddings")

    def load(folder: Path) -> Any:
        return transformers.LongformerModel.from_pretrained(folder, add_pooling_layer=pooled)

    check_round_trip(case, tmp_path / "bundle", tmp_path / "out", load)


def test_gradients(case: Case, tmp_path: Path) -> None:
    model, valid = imported(case, tmp_path / "bundle").model.train(), VALID["right"]
    text = text_of(padded(valid), valid, TYPES, GLOBAL["some"])
    case.reference.train()
    ours = text_logits(model, None, text, None, {})[valid]
    check_gradients(ours, model, theirs_of(case, valid, GLOBAL["some"]).logits[valid], case)
    case.reference.eval()


def test_the_way_out(case: Case, tmp_path: Path) -> None:
    imported(case, tmp_path / "bundle")
    check_round_trip(case, tmp_path / "bundle", tmp_path / "out", transformers.LongformerForMaskedLM.from_pretrained)


def test_a_folder_with_its_vocabulary(tmp_path: Path) -> None:
    """Texts are read as transformers reads them, and the words that are likeliest in a gap are its own."""
    bpe = tokenizers.ByteLevelBPETokenizer()
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    bpe.train_from_iterator(["a dog and two men in hats", "cats on a mat"], vocab_size=300, special_tokens=special)
    (tmp_path / "in").mkdir()
    bpe.save_model(str(tmp_path / "in"))
    texts = ["two dogs", "a man and a cat on a long mat in hats", "Ünïcode 🦊"]
    case = longformer("LongformerModel", tmp_path / "in", vocab_size=300, max_position_embeddings=66)
    reader = transformers.AutoTokenizer.from_pretrained(case.folder)
    batch = reader(texts, return_tensors="pt", padding=True)
    model = imported(case, tmp_path / "bundle")
    with torch.no_grad():
        theirs = case.reference(**batch).pooler_output
    close(model.embed(text=texts), torch.nn.functional.normalize(theirs, dim=-1), measured="embeddings")


@pytest.mark.slow
def test_full_depth(tmp_path: Path) -> None:
    """The large one's 24 layers, narrow."""
    case = longformer("LongformerForMaskedLM", tmp_path / "in", num_hidden_layers=24)
    model = imported(case, tmp_path / "bundle")
    with torch.no_grad():
        theirs = theirs_of(case, VALID["whole"], GLOBAL["first"]).logits
    ours = model.logits(IDS, type_ids=TYPES, global_mask=GLOBAL["first"])
    close(ours, theirs, 1e-4, measured="logits, full depth")


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"attention_window": [6, 6, 8]}, "attention_window .* one even number, or the same for each"),
        ({"attention_window": 5}, "attention_window 5 .* one even number"),
        ({"attention_window": [6, 6]}, "attention_window .* the same for each of the layers"),
        ({"hidden_act": "tanh"}, "hidden_act 'tanh', but .* one of 'gelu'"),
        ({"pad_token_id": 3, "vocab_size": 98}, "the file has .* but the config asks for"),
        ({"tie_word_embeddings": False}, "tie_word_embeddings False, but .* is True"),
        ({"attention_dilatation": [1]}, "has attention_dilatation .* does not know"),
    ],
)
def test_what_does_not_fit_is_told(case: Case, tmp_path: Path, change: dict[str, object], told: str) -> None:
    config = json.loads((case.folder / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | change))
    (tmp_path / "model.safetensors").write_bytes((case.folder / "model.safetensors").read_bytes())
    with pytest.raises(InputError, match=told):
        import_model(f"hf:{tmp_path}", tmp_path / "bundle")


def test_a_model_without_such_tokens_refuses_them(tmp_path: Path) -> None:
    sizes = {name: value for name, value in SIZES.items() if name != "attention_window"}
    case = saved(transformers.BertForMaskedLM(transformers.BertConfig(**sizes)), tmp_path / "in")
    with pytest.raises(InputError, match=r"global_mask.* know no such tokens"):
        imported(case, tmp_path / "bundle").logits(IDS, global_mask=GLOBAL["first"])
