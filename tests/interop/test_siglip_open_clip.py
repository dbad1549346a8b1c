"""SigLIP of open_clip, whose pictures are read by a tower of timm: the way in, the numbers, the way out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from parity import Case, check_gradients, close, imported, randomise
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional as F

from mmformer.errors import InputError
from mmformer.interop.exporting import export_model
from mmformer.interop.importing import import_model
from mmformer.interop.timm_towers import tower_of
from mmformer.models.model import Model
from mmformer.types import Batch, Outputs, Text

open_clip = pytest.importorskip("open_clip", reason="the reference")
timm = pytest.importorskip("timm", reason="its towers")

TEXT = {
    **{"context_length": 12, "vocab_size": 99, "width": 32, "heads": 4, "layers": 3, "no_causal_mask": True},
    **{
        "proj_bias": True,
        "pool_type": "last",
        "norm_kwargs": {"eps": 1e-3},
        "hf_tokenizer_name": "timm/ViT-B-16-SigLIP",
    },
    "tokenizer_kwargs": {"clean": "canonicalize"},
}
PICTURE = {"timm_model_name": "vit_mite_patch8_siglip_35", "timm_pool": "map", "timm_proj": "none", "image_size": 35}
MODEL = {"embed_dim": 40, "init_logit_bias": -10, "custom_text": True, "vision_cfg": PICTURE, "text_cfg": TEXT}
COLOURS = {"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5], "interpolation": "bicubic", "resize_mode": "squash"}
PICTURES = torch.randint(0, 256, (3, 3, 35, 35), generator=torch.Generator().manual_seed(1)).to(torch.uint8)
IDS = torch.randint(2, 97, (3, 12), generator=torch.Generator().manual_seed(1))
IDS[torch.arange(12) >= torch.tensor([[11], [5], [8]])] = 1


def vit_mite_patch8_siglip_35(pretrained: bool = False, **options: Any) -> Any:
    """timm's towers are large; 3 pixels of each side of a picture are not read."""
    from timm.models.vision_transformer import VisionTransformer

    sizes: dict[str, Any] = {
        "img_size": 35,
        "patch_size": 8,
        "embed_dim": 40,
        "depth": 3,
        "num_heads": 5,
        "mlp_ratio": 1.7,
    }
    made = sizes | {"class_token": False, "global_pool": "map", "act_layer": "gelu_tanh"} | options
    return VisionTransformer(**{key: made[key] for key in made if key != "cache_dir" and "cfg" not in key})


@pytest.fixture(scope="module", autouse=True)
def a_small_tower() -> Any:
    from timm.models import _registry

    _registry.register_model(vit_mite_patch8_siglip_35)
    tower_of.cache_clear()
    yield
    name = "vit_mite_patch8_siglip_35"
    del _registry._model_entrypoints[name], _registry._model_to_module[name]
    tower_of.cache_clear()


def opened(folder: Path, **options: Any) -> Any:
    return open_clip.create_model(f"local-dir:{folder}", **options).eval()


def saved(config: dict[str, Any], folder: Path) -> Case:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": config, "preprocess_cfg": COLOURS}))
    reference = opened(folder, load_weights=False)
    randomise(reference)
    save_file(reference.state_dict(), folder / "open_clip_model.safetensors")
    return Case(reference, folder)


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Case:
    return saved(MODEL, tmp_path_factory.mktemp("siglip"))


def outputs(model: Model) -> Outputs:
    made: Outputs = model(Batch((), {}, image=PICTURES, text=Text(IDS, torch.full((3,), 12))))
    return made


def scores(made: Outputs) -> Tensor:
    image, text = (F.normalize(made.embedding[name], dim=-1) for name in ("image", "text"))
    return made.scale["contrastive"] * image @ text.T + made.bias["contrastive"]


PIXELS = (PICTURES / 255 - 0.5) / 0.5


def test_embeddings_tokens_and_scores(case: Case, tmp_path: Path) -> None:
    with torch.no_grad():
        made, reference = outputs(imported(case, tmp_path / "bundle", "open_clip").model), case.reference
        close(made.tokens["image"].x, reference.visual.trunk.forward_features(PIXELS))
        close(made.embedding["image"], reference.encode_image(PIXELS), measured="image embeddings")
        close(made.embedding["text"], reference.encode_text(IDS), measured="text embeddings")
        close(scores(made), reference.get_logits(PIXELS, IDS)[0], measured="logits")


def test_gradients(case: Case, tmp_path: Path) -> None:
    model = imported(case, tmp_path / "bundle", "open_clip").model.train()
    theirs = case.reference.train().get_logits(PIXELS, IDS)[0]
    check_gradients(scores(outputs(model)), model, theirs, case, "open_clip")
    case.reference.eval()


def test_the_way_out(case: Case, tmp_path: Path) -> None:
    imported(case, tmp_path / "bundle", "open_clip")
    for folder, own in ((tmp_path / "out", True), (tmp_path / "made", False)):
        if not own:  # as a model that was made here goes out: timm's name is found by what the tower is
            (tmp_path / "bundle/origin/origin.json").unlink()
        export_model(tmp_path / "bundle", "open_clip", folder)
        first, second = (load_file(where / "open_clip_model.safetensors") for where in (case.folder, folder))
        assert first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)
        with torch.no_grad():
            again, theirs = opened(folder), case.reference
            assert torch.equal(again.get_logits(PIXELS, IDS)[0], theirs.get_logits(PIXELS, IDS)[0])
    configs = [json.loads((where / "open_clip_config.json").read_text()) for where in (case.folder, tmp_path / "out")]
    assert configs[0] == configs[1]


def test_published_towers_are_read_off_timm() -> None:
    found = tower_of("vit_so400m_patch14_siglip_384")
    assert (found.width, found.depth, found.hidden, found.image_size, found.patch) == (1152, 27, 4304, 384, 14)
    assert (found.activation, tower_of("vit_giantopt_patch16_siglip_256").activation) == ("none", "tanh")


@pytest.mark.parametrize(
    ("part", "change", "told"),
    [
        ("vision_cfg", {"timm_model_name": "vit_mite_patch8_siglip_36"}, "of SigLIP. Did you mean .*siglip_35"),
        (
            "vision_cfg",
            {"timm_model_name": "vit_base_patch16_siglip_gap_224"},
            "name of one of timm's towers of SigLIP",
        ),
        ("vision_cfg", {"image_size": 40}, "image_size 40, but .* pictures of 35, as that tower reads"),
        ("vision_cfg", {"timm_pool": "avg"}, "timm_pool 'avg', but .* is 'map'"),
        ("vision_cfg", {"timm_proj": "linear"}, "timm_proj 'linear', but .* is 'none'"),
        ("text_cfg", {"embed_cls": True}, "embed_cls True, but .* is False"),
        ("text_cfg", {"pool_type": "argmax"}, "pool_type 'argmax', but .* 'last'"),
    ],
)
def test_what_does_not_fit_is_told(case: Case, tmp_path: Path, part: str, change: Any, told: str) -> None:
    found = json.loads((case.folder / "open_clip_config.json").read_text())
    found["model_cfg"][part].update(change)
    (tmp_path / "open_clip_config.json").write_text(json.dumps(found))
    state = (case.folder / "open_clip_model.safetensors").read_bytes()
    (tmp_path / "open_clip_model.safetensors").write_bytes(state)
    with pytest.raises(InputError, match=told):
        import_model(f"open_clip:{tmp_path}", tmp_path / "bundle")
