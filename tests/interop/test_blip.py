"""BLIP's captioner: the way in, the numbers of transformers' own, the way out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from parity import Case, check_gradients, check_round_trip, close, imported, saved

from mmformer.errors import InputError
from mmformer.generation.beam import BeamSpec
from mmformer.generation.decoding import Decoding
from mmformer.generation.sampling import GreedySpec
from mmformer.interop.importing import import_model
from mmformer.models.logits import text_logits, text_of
from mmformer.types import Batch

transformers = pytest.importorskip("transformers", reason="the reference")

PICTURE: dict[str, Any] = {
    **{"hidden_size": 24, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4},
    **{"image_size": 16, "patch_size": 8, "layer_norm_eps": 1e-3},
}
TEXT: dict[str, Any] = {
    **{"hidden_size": 32, "encoder_hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 3},
    **{"num_attention_heads": 4, "vocab_size": 99, "max_position_embeddings": 40, "hidden_act": "gelu_new"},
    **{"bos_token_id": 98, "sep_token_id": 3, "eos_token_id": 2, "pad_token_id": 0},
}
RANDOM = torch.Generator().manual_seed(1)
IDS = torch.randint(4, 98, (3, 11), generator=RANDOM)
VALUES = torch.randn(3, 3, 16, 16, generator=RANDOM)


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Case:
    config = transformers.BlipConfig(text_config=TEXT, vision_config=PICTURE)
    return saved(transformers.BlipForConditionalGeneration(config), tmp_path_factory.mktemp("blip"))


def test_logits_of_padded_rows(case: Case, tmp_path: Path) -> None:
    model = imported(case, tmp_path / "bundle")
    valid = torch.arange(11) < torch.tensor([[11], [7], [3]])
    with torch.no_grad():
        theirs = case.reference(input_ids=IDS, pixel_values=VALUES, attention_mask=valid.long())
    close(model.logits(IDS, image=VALUES, valid=valid)[valid], theirs.logits[valid], measured="logits")
    with torch.no_grad():
        ours = model.model(Batch((), {}, VALUES), decode=False).tokens["image"].x
    close(ours, theirs.last_hidden_state, measured="hidden states")


def test_gradients(case: Case, tmp_path: Path) -> None:
    model = imported(case, tmp_path / "bundle").model.train()
    theirs = case.reference.train()(input_ids=IDS, pixel_values=VALUES).logits
    check_gradients(text_logits(model, None, text_of(IDS), None, {"image": VALUES}), model, theirs, case)
    case.reference.eval()


def test_the_way_out(case: Case, tmp_path: Path) -> None:
    imported(case, tmp_path / "bundle")
    load = transformers.BlipForConditionalGeneration.from_pretrained
    check_round_trip(case, tmp_path / "bundle", tmp_path / "out", load)


def test_writing(case: Case, tmp_path: Path) -> None:
    """From the first id alone, as ``generate`` does, which begins with bos and ends with sep."""
    model = imported(case, tmp_path / "bundle").model
    with torch.no_grad():
        memory = model(Batch((), {}, VALUES), decode=False).tokens
    start = torch.full((3, 1), 98)
    for spec, more in ((GreedySpec(max_length=12), {}), (BeamSpec(beams=3, max_length=12), {"num_beams": 3})):
        written = case.reference.generate(pixel_values=VALUES, max_new_tokens=12, do_sample=False, **more)[:, 1:]
        ours = spec.write(Decoding(model, "text", memory, rows=3), text_of(start))
        assert [each.ids for each in ours] == [row[: row.index(3)] if 3 in row else row for row in written.tolist()]


@pytest.mark.parametrize(
    ("group", "change", "told"),
    [
        ("text_config", {"hidden_act": "silu"}, "text_config.hidden_act 'silu', .* one of 'gelu'"),
        ("text_config", {"is_decoder": False}, "text_config.is_decoder False, .* is True"),
        ("vision_config", {"image_size": 32}, "but the config asks for"),
        ("text_config", {"encoder_hidden_size": 32}, "memory of width 32: set its memory_width to 24"),
    ],
)
def test_what_does_not_fit_is_told(
    case: Case, tmp_path: Path, group: str, change: dict[str, object], told: str
) -> None:
    found = json.loads((case.folder / "config.json").read_text())
    found[group] |= change
    (tmp_path / "config.json").write_text(json.dumps(found))
    (tmp_path / "model.safetensors").write_bytes((case.folder / "model.safetensors").read_bytes())
    with pytest.raises(InputError, match=told):
        import_model(f"hf:{tmp_path}", tmp_path / "bundle")
