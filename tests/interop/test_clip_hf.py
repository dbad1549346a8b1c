"""CLIP and its towers alone: the way in, the numbers of transformers' own, the way out."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import vocabulary_folders
from parity import Case, check_gradients, check_refused, check_round_trip, close, imported, saved
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional as F

from mmformer.errors import InputError
from mmformer.interop.importing import import_model
from mmformer.models.model import Model
from mmformer.predictor import Predictor
from mmformer.types import Batch, Outputs, Text

transformers = pytest.importorskip("transformers", reason="the reference")

TEXT = {
    **{"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4},
    **{"vocab_size": 99, "max_position_embeddings": 16, "bos_token_id": 97, "eos_token_id": 98, "pad_token_id": 98},
}
PICTURE = {
    **{"hidden_size": 40, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4},
    **{"image_size": 32, "patch_size": 8, "layer_norm_eps": 1e-3},
}
MEAN, STD = [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]
PICTURES = torch.randint(0, 256, (3, 3, 32, 32), generator=torch.Generator().manual_seed(1)).to(torch.uint8)
LENGTHS = torch.tensor([13, 6, 9])
IDS = torch.randint(0, 97, (3, 13), generator=torch.Generator().manual_seed(1))
IDS[:, 0] = 97
VALID = torch.arange(13) < LENGTHS[:, None]
IDS[torch.arange(3), LENGTHS - 1] = 98
IDS[~VALID] = 98  # transformers pads with eos


def config(**options: Any) -> Any:
    return transformers.CLIPConfig(text_config=TEXT, vision_config=PICTURE, projection_dim=24, **options)


def normalised(pictures: Tensor) -> Tensor:
    """As a processor makes them."""
    mean, std = (torch.tensor(values)[:, None, None] for values in (MEAN, STD))
    return (pictures / 255 - mean) / std


def outputs(model: Model, pictures: Tensor | None = PICTURES, ids: Tensor | None = IDS) -> Outputs:
    text = None if ids is None else Text(ids, torch.full((len(ids),), ids.shape[1]), VALID)
    made: Outputs = model(Batch((), {}, image=pictures, text=text))
    return made


def logits_per_image(made: Outputs) -> Tensor:
    image, text = (F.normalize(made.embedding[name], dim=-1) for name in ("image", "text"))
    return made.scale["contrastive"] * image @ text.T


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Case:
    return saved(transformers.CLIPModel(config()), tmp_path_factory.mktemp("clip"))


@pytest.fixture
def model(case: Case, tmp_path: Path) -> Predictor:
    return imported(case, tmp_path / "bundle")


def reference(case: Case) -> Any:
    """With padding, as a tokenizer of transformers hands it in."""
    return case.reference(IDS, normalised(PICTURES), attention_mask=VALID.long())


def test_embeddings_tokens_and_logits(case: Case, model: Predictor) -> None:
    with torch.no_grad():
        theirs, ours = reference(case), outputs(model.model)
        seen, read = theirs.vision_model_output, theirs.text_model_output
        close(ours.tokens["image"].x, case.reference.vision_model.post_layernorm(seen.last_hidden_state))
        close(ours.tokens["text"].x[VALID], read.last_hidden_state[VALID])
        for name, embedded, kept in (("image", theirs.image_embeds, seen), ("text", theirs.text_embeds, read)):
            close(ours.embedding[name], kept.pooler_output, measured=f"{name} embeddings")
            close(F.normalize(ours.embedding[name], dim=-1), embedded, measured=f"{name} embeddings, of unit length")
        close(logits_per_image(ours), theirs.logits_per_image, measured="logits")


def test_padding_is_not_read(case: Case, model: Predictor) -> None:
    """The end of a text is where the first eos stands, whatever the tokenizer has put after it, and masked or not."""
    with torch.no_grad():
        ours = outputs(model.model).embedding["text"]
        unmasked = case.reference.get_text_features(IDS).pooler_output
        zeros = case.reference.get_text_features(IDS.where(VALID, 0)).pooler_output
        alone = outputs(model.model, None, IDS.where(VALID, 0)).embedding["text"]
    for theirs in (unmasked, zeros):
        close(ours, theirs)
    assert torch.equal(ours, alone)


def test_the_highest_id_ends_a_text_where_an_old_config_says_2(tmp_path: Path) -> None:
    old = transformers.CLIPConfig(text_config=TEXT | {"eos_token_id": 2}, vision_config=PICTURE, projection_dim=24)
    case = saved(transformers.CLIPModel(old), tmp_path / "in")
    with torch.no_grad():
        theirs = case.reference.get_text_features(IDS).pooler_output
        close(outputs(imported(case, tmp_path / "bundle").model, None).embedding["text"], theirs)


@pytest.mark.filterwarnings("ignore::mmformer.errors.CutWarning")
def test_texts_as_people_have_them(tmp_path: Path) -> None:
    """With a small vocabulary of CLIP's kind beside the model: padded with eos in the reference, and cut here."""
    folder = vocabulary_folders.clip(tmp_path / "in")
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    text = TEXT | {"vocab_size": len(tokenizer), "bos_token_id": tokenizer.bos_token_id}
    text |= {"eos_token_id": tokenizer.eos_token_id}
    made = transformers.CLIPConfig(text_config=text, vision_config=PICTURE, projection_dim=24)
    case = saved(transformers.CLIPModel(made), folder)
    texts = ["a dog", "A man in a  red hat is standing on a street."]
    read = tokenizer(texts, padding=True, truncation=True, max_length=16, return_tensors="pt")
    with torch.no_grad():
        theirs = case.reference.get_text_features(**read).pooler_output
        close(imported(case, tmp_path / "bundle").embed(text=texts), F.normalize(theirs, dim=-1))


def test_gradients(case: Case, model: Predictor) -> None:
    theirs = reference(case._replace(reference=case.reference.train())).logits_per_image
    check_gradients(logits_per_image(outputs(model.model.train())), model.model, theirs, case)
    case.reference.eval()


def test_the_way_out(case: Case, model: Predictor, tmp_path: Path) -> None:
    again = check_round_trip(case, tmp_path / "bundle", tmp_path / "out")
    with torch.no_grad():
        assert torch.equal(
            again(IDS, normalised(PICTURES)).logits_per_image,
            case.reference(IDS, normalised(PICTURES)).logits_per_image,
        )


def test_activations_are_the_configs(tmp_path: Path) -> None:
    made = config()
    made.text_config.hidden_act = "gelu"
    case = saved(transformers.CLIPModel(made), tmp_path / "in")
    model = imported(case, tmp_path / "bundle").model
    found = {name: stack.layer.feedforward.approximate for name, stack in model.spec.stacks.items()}
    assert found == {"image": "sigmoid", "text": "none"}
    with torch.no_grad():
        close(logits_per_image(outputs(model)), reference(case).logits_per_image)


@pytest.mark.parametrize(("kind", "tower"), [("Text", "text"), ("Vision", "image")])
def test_a_tower_alone(kind: str, tower: str, tmp_path: Path) -> None:
    build = getattr(transformers, f"CLIP{kind}ModelWithProjection")
    part = getattr(transformers, f"CLIP{kind}Config")(**(TEXT if tower == "text" else PICTURE), projection_dim=24)
    case = saved(build(part), tmp_path / "in")
    model = imported(case, tmp_path / "bundle").model
    assert list(model.spec.encoders) == [tower]
    with torch.no_grad():
        if tower == "text":
            ours, theirs = outputs(model, None), case.reference(IDS, attention_mask=VALID.long()).text_embeds
        else:
            ours, theirs = outputs(model, ids=None), case.reference(normalised(PICTURES)).image_embeds
        close(ours.embedding[tower], theirs)
    check_round_trip(case, tmp_path / "bundle", tmp_path / "out")


def test_what_older_weights_and_configs_have_beside(case: Case, tmp_path: Path) -> None:
    """Counts, and a second copy of a part of the config: they come back as they were."""
    folder, old = tmp_path / "in", json.loads((case.folder / "config.json").read_text())
    folder.mkdir()
    old |= {"text_config_dict": dict(old["text_config"]), "vision_config_dict": None}
    old["text_config"] |= {"top_k": 50, "dropout": 0.0, "_name_or_path": "", "tie_word_embeddings": True}
    (folder / "config.json").write_text(json.dumps(old))
    counts = {"text_model.embeddings.position_ids": 16, "vision_model.embeddings.position_ids": 17}
    state = load_file(case.folder / "model.safetensors")
    save_file(state | {name: torch.arange(n)[None] for name, n in counts.items()}, folder / "model.safetensors")
    imported(Case(case.reference, folder), tmp_path / "bundle")
    check_round_trip(Case(case.reference, folder), tmp_path / "bundle", tmp_path / "out")
    assert len(load_file(tmp_path / "out/model.safetensors")) == len(state) + 2


@pytest.mark.parametrize(
    ("part", "change", "told"),
    [
        ("text_config", {"hidden_act": "tanh"}, "text_config.hidden_act 'tanh', but .* one of 'gelu'"),
        ("vision_config", {"num_channels": 1}, "vision_config.num_channels 1, but .* is 3"),
        (
            "vision_config",
            {"image_size": [32, 40]},
            r"image_size \[32, 40\] and .*patch_size 8, but .* that is one number",
        ),
        ("vision_config", {"use_rope": True}, "vision_config.use_rope True, which mmformer does not know"),
        ("vision_config", {"image_size": 40}, "the file has vision_model.embeddings.position_embedding.weight"),
        ("text_config", {"num_hidden_layers": 2}, "left over: text_model.encoder.layers.2"),
        (None, {"projection_dim": 32}, r"visual_projection.weight \(24, 40\), but the config asks for \(32, 40\)"),
        (None, {"text_config_dict": {"hidden_size": 32}}, "text_config_dict.num_hidden_layers 12, but .* is 3"),
    ],
)
def test_what_does_not_fit_is_told(case: Case, tmp_path: Path, part: str | None, change: Any, told: str) -> None:
    check_refused(case, tmp_path, change, told, part)


def test_a_scale_that_the_head_would_change_is_refused(case: Case, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes((case.folder / "config.json").read_bytes())
    state = load_file(case.folder / "model.safetensors")
    for scale, fits in ((100.0, True), (101.0, False)):
        save_file(state | {"logit_scale": torch.tensor(math.log(scale))}, tmp_path / "model.safetensors")
        if fits:
            import_model(f"hf:{tmp_path}", tmp_path / "bundle")
            continue
        with pytest.raises(InputError, match=r"logit_scale is 4\.6151, a scale above 100"):
            import_model(f"hf:{tmp_path}", tmp_path / "bundle")
