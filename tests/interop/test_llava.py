"""LLaVA: the way in, the numbers of transformers' own, the way out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from parity import Case, check_gradients, check_round_trip, close, imported, saved
from safetensors.torch import load_file, save_file

from mmformer.errors import InputError
from mmformer.generation.beam import BeamSpec
from mmformer.generation.decoding import Decoding
from mmformer.generation.sampling import GreedySpec
from mmformer.interop.exporting import export_model
from mmformer.interop.importing import import_model
from mmformer.models.logits import text_logits, text_of
from mmformer.models.model import Model
from mmformer.types import Batch

transformers = pytest.importorskip("transformers", reason="the reference")

PICTURE: dict[str, Any] = {
    **{"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4},
    **{"image_size": 16, "patch_size": 8},
}
TEXT: dict[str, Any] = {
    **{"hidden_size": 40, "intermediate_size": 24, "num_hidden_layers": 3, "num_attention_heads": 4},
    **{"num_key_value_heads": 2, "vocab_size": 99, "max_position_embeddings": 64},
}
PLACEHOLDER = 98
RANDOM = torch.Generator().manual_seed(1)
IDS = torch.randint(3, 98, (3, 11), generator=RANDOM)
IDS[:, 2:6] = PLACEHOLDER  # a picture of 2 × 2 patches
VALUES = torch.randn(3, 3, 16, 16, generator=RANDOM)


def config(**changes: Any) -> Any:
    return transformers.LlavaConfig(
        vision_config=transformers.CLIPVisionConfig(**PICTURE),
        text_config=transformers.LlamaConfig(**TEXT),
        **{"image_token_id": PLACEHOLDER, "image_seq_length": 4} | changes,
    )


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Case:
    return saved(transformers.LlavaForConditionalGeneration(config()), tmp_path_factory.mktemp("llava"))


def test_logits_of_padded_rows(case: Case, tmp_path: Path) -> None:
    model = imported(case, tmp_path / "bundle")
    valid = torch.arange(11) < torch.tensor([[11], [7], [9]])
    with torch.no_grad():
        theirs = case.reference(input_ids=IDS, pixel_values=VALUES, attention_mask=valid.long()).logits
    close(model.logits(IDS, image=VALUES, valid=valid)[valid], theirs[valid], measured="logits")


def test_gradients(case: Case, tmp_path: Path) -> None:
    model = imported(case, tmp_path / "bundle").model.train()
    theirs = case.reference.train()(input_ids=IDS, pixel_values=VALUES).logits
    check_gradients(text_logits(model, None, text_of(IDS), None, {"image": VALUES}), model, theirs, case)
    case.reference.eval()


def test_the_way_out(case: Case, tmp_path: Path) -> None:
    imported(case, tmp_path / "bundle")
    load = transformers.LlavaForConditionalGeneration.from_pretrained
    check_round_trip(case, tmp_path / "bundle", tmp_path / "out", load)


def test_all_tokens_of_another_layer(tmp_path: Path) -> None:
    chosen = config(vision_feature_layer=1, vision_feature_select_strategy="full", image_seq_length=5)
    case = saved(transformers.LlavaForConditionalGeneration(chosen), tmp_path / "in")
    model = imported(case, tmp_path / "bundle")
    assert model.model.spec.encoders["image"].layers == 1
    ids = IDS.clone()
    ids[:, 6] = PLACEHOLDER  # with the class token
    with torch.no_grad():
        close(model.logits(ids, image=VALUES), case.reference(input_ids=ids, pixel_values=VALUES).logits)
    load = transformers.LlavaForConditionalGeneration.from_pretrained
    check_round_trip(case, tmp_path / "bundle", tmp_path / "out", load)


def test_names_of_before(case: Case, tmp_path: Path) -> None:
    """As transformers 4 kept it, with the tower's own name in between: it comes out with it, too."""
    state = load_file(case.folder / "model.safetensors")
    old = {name.replace("vision_tower.", "vision_tower.vision_model."): value for name, value in state.items()}
    (tmp_path / "in").mkdir()
    save_file(old, tmp_path / "in/model.safetensors", {"format": "pt"})
    (tmp_path / "in/config.json").write_bytes((case.folder / "config.json").read_bytes())
    model = imported(Case(case.reference, tmp_path / "in"), tmp_path / "bundle")
    with torch.no_grad():
        close(model.logits(IDS, image=VALUES), case.reference(input_ids=IDS, pixel_values=VALUES).logits)
    export_model(tmp_path / "bundle", "hf", tmp_path / "out")
    back = load_file(tmp_path / "out/model.safetensors")
    assert back.keys() == old.keys() and all(torch.equal(back[name], old[name]) for name in old)


def test_writing(case: Case, tmp_path: Path) -> None:
    model = imported(case, tmp_path / "bundle").model
    assert isinstance(model, Model)
    prompt = IDS[:, :8]
    with torch.no_grad():
        memory = model(Batch((), {}, VALUES), decode=False).tokens
    options = {"max_new_tokens": 9, "do_sample": False, "pad_token_id": 0, "eos_token_id": 2}
    for spec, more in ((GreedySpec(max_length=9), {}), (BeamSpec(beams=3, max_length=9), {"num_beams": 3})):
        mask = torch.ones_like(prompt)
        written = case.reference.generate(
            input_ids=prompt, pixel_values=VALUES, attention_mask=mask, **options, **more
        )[:, 8:]
        ours = spec.write(Decoding(model, "text", memory, rows=3), text_of(prompt))
        assert [each.ids for each in ours] == [row[: row.index(2)] if 2 in row else row for row in written.tolist()]


def test_as_many_placeholders_as_patches(case: Case, tmp_path: Path) -> None:
    model = imported(case, tmp_path / "bundle")
    ids = IDS.clone()
    ids[1, 5] = 7
    with pytest.raises(InputError, match="Row 1 has 3 placeholders, but 4 tokens are to be put"):
        model.logits(ids, image=VALUES)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"vision_feature_layer": [-2, -5]}, r"vision_feature_layer \[-2, -5\] .* one layer"),
        ({"vision_feature_layer": -1}, "layers is 3, but .* fewer can be run alone"),
        ({"vision_feature_select_strategy": "cls"}, "select_strategy 'cls', .* one of 'default', 'full'"),
        ({"projector_hidden_act": "relu"}, "projector_hidden_act 'relu', .* is 'gelu'"),
    ],
)
def test_what_does_not_fit_is_told(case: Case, tmp_path: Path, change: dict[str, object], told: str) -> None:
    found = json.loads((case.folder / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(found | change))
    (tmp_path / "model.safetensors").write_bytes((case.folder / "model.safetensors").read_bytes())
    with pytest.raises(InputError, match=told):
        import_model(f"hf:{tmp_path}", tmp_path / "bundle")
