"""BLIP's captioner: the way in, the numbers of transformers' own, the way out."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from frames import Continuing
from parity import Case, check_refused, close, ended, imported, saved, written

from mmformer.bundle import load_bundle, save_bundle
from mmformer.generation.beam import BeamSpec
from mmformer.generation.sampling import GreedySpec
from mmformer.interop.exporting import export_model
from mmformer.interop.importing import import_model
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


class TestBlip(Continuing):
    ids, image = IDS, VALUES

    def test_logits_of_padded_rows(self, case: Case, tmp_path: Path) -> None:
        valid = torch.arange(11) < torch.tensor([[11], [7], [3]])
        theirs = self.check_padded(case, tmp_path / "bundle", valid)
        model = imported(case, tmp_path / "bundle")
        with torch.no_grad():
            ours = model.model(Batch((), {}, VALUES), decode=False).tokens["image"].x
        close(ours, theirs.last_hidden_state, measured="hidden states")

    def test_writing(self, case: Case, tmp_path: Path) -> None:
        """From the first id alone, as ``generate`` does, which begins with bos and ends with sep."""
        model, start = imported(case, tmp_path / "bundle").model, torch.full((3, 1), 98)
        for spec, more in ((GreedySpec(max_length=12), {}), (BeamSpec(beams=3, max_length=12), {"num_beams": 3})):
            theirs = case.reference.generate(pixel_values=VALUES, max_new_tokens=12, do_sample=False, **more)[:, 1:]
            assert written(model, spec, start, Batch((), {}, VALUES)) == ended(theirs, 3)


def test_a_folders_way_to_write_is_not_blips(case: Case, tmp_path: Path) -> None:
    """Its ``generate`` has the decoder write, which has not read the folder's; and there is nowhere to say one."""
    folder, model = tmp_path / "in", imported(case, tmp_path / "plain").model
    shutil.copytree(case.folder, folder)
    said = {"max_length": 5, "num_beams": 2, "eos_token_id": 7, "suppress_tokens": [3]}
    (folder / "generation_config.json").write_text(json.dumps(said))
    notes = import_model(f"hf:{folder}", tmp_path / "bundle").notes
    assert "generation_config.json is not followed: blip of transformers does not read it either" in notes
    found, transforms = load_bundle(tmp_path / "bundle")
    assert found.spec == model.spec and transforms.generation is None
    changed = dataclasses.replace(transforms, generation=GreedySpec(max_length=4))
    save_bundle(tmp_path / "made", found, changed, "")
    told = export_model(tmp_path / "made", "hf", tmp_path / "out")
    assert told.endswith("; how it writes where nobody asks stays behind: blip of transformers reads that nowhere")
    config = json.loads((tmp_path / "out/config.json").read_text())["text_config"]
    assert [config[f"{name}_token_id"] for name in ("bos", "sep", "pad")] == [98, 3, 0], "made here, it says its ids"
    assert not (tmp_path / "out/generation_config.json").exists()


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
    check_refused(case, tmp_path, change, told, group)
