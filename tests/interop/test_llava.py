"""LLaVA: the way in, the numbers of transformers' own, the way out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from frames import Continuing
from parity import (
    Case,
    check_refused,
    check_round_trip,
    check_same,
    close,
    imported,
    otherwise,
    saved,
    weights_of,
)

from mmformer.errors import InputError
from mmformer.interop.exporting import export_model
from mmformer.interop.importing import import_model
from mmformer.surgery.edit import EditSpec, edit_bundle

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


class TestLlava(Continuing):
    ids, image, lengths, prompt = IDS, VALUES, (11, 7, 9), 8


def test_all_tokens_of_another_layer(tmp_path: Path) -> None:
    chosen = config(vision_feature_layer=1, vision_feature_select_strategy="full", image_seq_length=5)
    case = saved(transformers.LlavaForConditionalGeneration(chosen), tmp_path / "in")
    model = imported(case, tmp_path / "bundle")
    assert model.model.spec.encoders["image"].layers == 1
    ids = IDS.clone()
    ids[:, 6] = PLACEHOLDER  # with the class token
    with torch.no_grad():
        close(model.logits(ids, image=VALUES), case.reference(input_ids=ids, pixel_values=VALUES).logits)
    check_round_trip(case, tmp_path / "bundle", tmp_path / "out")


def test_names_of_before(case: Case, tmp_path: Path) -> None:
    """As transformers 4 kept it, with the tower's own name in between: it comes out with it, too."""
    state = weights_of(case.folder)
    old = {name.replace("vision_tower.", "vision_tower.vision_model."): value for name, value in state.items()}
    assert old.keys() != state.keys()
    model = imported(otherwise(case, tmp_path / "in", old), tmp_path / "bundle")
    with torch.no_grad():
        close(model.logits(IDS, image=VALUES), case.reference(input_ids=IDS, pixel_values=VALUES).logits)
    export_model(tmp_path / "bundle", "hf", tmp_path / "out")
    check_same(weights_of(tmp_path / "out"), old)


def test_as_many_placeholders_as_patches(case: Case, tmp_path: Path) -> None:
    model = imported(case, tmp_path / "bundle")
    ids = IDS.clone()
    ids[1, 5] = 7
    with pytest.raises(InputError, match="Row 1 has 3 placeholders, but 4 tokens are to be put"):
        model.logits(ids, image=VALUES)


@pytest.mark.parametrize("inside", [False, True], ids=["version 4", "version 5"])
def test_what_puts_pictures_into_texts_goes_along_with_an_edit(inside: bool, case: Case, tmp_path: Path) -> None:
    """Beside how pictures are prepared, or around it: no spec says it, so that no export could."""
    folder = otherwise(case, tmp_path / "in", weights_of(case.folder)).folder
    size = {"size": {"shortest_edge": 16}, "crop_size": {"height": 16, "width": 16}}
    transformers.CLIPImageProcessor(**size).save_pretrained(folder)
    said: dict[str, Any] = {"image_token": "<picture>", "patch_size": 8, "processor_class": "LlavaProcessor"}
    if inside:
        said["image_processor"] = json.loads((folder / "preprocessor_config.json").read_text())
        (folder / "preprocessor_config.json").unlink()
    (folder / "processor_config.json").write_text(json.dumps(said))
    import_model(f"hf:{folder}", tmp_path / "bundle")
    longer = edit_bundle(tmp_path / "bundle", tmp_path / "longer", EditSpec(context_length=80))
    finer = edit_bundle(tmp_path / "longer", tmp_path / "finer", EditSpec(image_size=(24, 24), patch=4))
    assert longer.beside == finer.beside == []
    export_model(tmp_path / "finer", "hf", tmp_path / "out")
    found = json.loads((tmp_path / "out/processor_config.json").read_text())
    assert {**found, "image_processor": None} == {**said, "image_processor": None, "patch_size": 4}
    assert ("image_processor" in found) == inside == (not (tmp_path / "out/preprocessor_config.json").exists())
    processor = transformers.AutoImageProcessor.from_pretrained(tmp_path / "out")
    assert (processor.crop_size["height"], processor.size["shortest_edge"]) == (24, 24)


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
    check_refused(case, tmp_path, change, told)
