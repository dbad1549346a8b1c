"""SigLIP of transformers: the way in, the numbers of transformers' own, the way out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import vocabulary_folders
from parity import Case, check_gradients, check_refused, check_round_trip, close, imported, saved
from torch import Tensor
from torch.nn import functional as F

from mmformer.models.model import Model
from mmformer.types import Batch, Outputs, Text

transformers = pytest.importorskip("transformers", reason="the reference")

TEXT = {
    **{"hidden_size": 40, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4},
    **{"vocab_size": 99, "max_position_embeddings": 12, "layer_norm_eps": 1e-3},
}
PICTURE = {
    **{"hidden_size": 40, "intermediate_size": 52, "num_hidden_layers": 3, "num_attention_heads": 5},
    **{"image_size": 35, "patch_size": 8, "layer_norm_eps": 1e-2},  # 3 pixels of each side are not read
}
PICTURES = torch.randint(0, 256, (3, 3, 35, 35), generator=torch.Generator().manual_seed(1)).to(torch.uint8)
LENGTHS = torch.tensor([12, 6, 9])
IDS = torch.randint(2, 97, (3, 12), generator=torch.Generator().manual_seed(1))
IDS[torch.arange(12) >= LENGTHS[:, None] - 1] = 1  # eos, and padding, which is the same


def outputs(model: Model) -> Outputs:
    made: Outputs = model(Batch((), {}, image=PICTURES, text=Text(IDS, torch.full((3,), 12))))
    return made


def scores(made: Outputs) -> Tensor:
    image, text = (F.normalize(made.embedding[name], dim=-1) for name in ("image", "text"))
    return made.scale["contrastive"] * image @ text.T + made.bias["contrastive"]


def reference(case: Case) -> Any:
    return case.reference(IDS, (PICTURES / 255 - 0.5) / 0.5)


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Case:
    config = transformers.SiglipConfig(text_config=TEXT, vision_config=PICTURE)
    return saved(transformers.SiglipModel(config), tmp_path_factory.mktemp("siglip"))


def test_embeddings_tokens_and_scores(case: Case, tmp_path: Path) -> None:
    with torch.no_grad():
        theirs, ours = reference(case), outputs(imported(case, tmp_path / "bundle").model)
        close(ours.tokens["image"].x, theirs.vision_model_output.last_hidden_state)
        close(ours.tokens["text"].x, theirs.text_model_output.last_hidden_state)
        close(ours.embedding["image"], theirs.vision_model_output.pooler_output, measured="image embeddings")
        close(ours.embedding["text"], theirs.text_model_output.pooler_output, measured="text embeddings")
        close(scores(ours), theirs.logits_per_image, measured="logits")


@pytest.mark.filterwarnings("ignore::mmformer.errors.CutWarning")
def test_texts_as_people_have_them(tmp_path: Path) -> None:
    """With a small vocabulary of SigLIP's kind beside the model: padded to the context, and all of that is read."""
    folder = vocabulary_folders.siglip(tmp_path / "in")
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    made = transformers.SiglipConfig(text_config=TEXT | {"vocab_size": len(tokenizer)}, vision_config=PICTURE)
    case = saved(transformers.SiglipModel(made), folder)
    texts = ["a dog", 'A man in a red hat, standing: "hello!"']
    read = tokenizer(texts, padding="max_length", truncation=True, max_length=12, return_tensors="pt")
    with torch.no_grad():
        theirs = case.reference.get_text_features(read.input_ids).pooler_output
        close(imported(case, tmp_path / "bundle").embed(text=texts), F.normalize(theirs, dim=-1))


def test_gradients(case: Case, tmp_path: Path) -> None:
    model = imported(case, tmp_path / "bundle").model.train()
    theirs = reference(case._replace(reference=case.reference.train())).logits_per_image
    check_gradients(scores(outputs(model)), model, theirs, case)
    case.reference.eval()


def test_the_way_out(case: Case, tmp_path: Path) -> None:
    imported(case, tmp_path / "bundle")
    check_round_trip(case, tmp_path / "bundle", tmp_path / "out")


def test_towers_of_other_widths(tmp_path: Path) -> None:
    """The text's projection may lead to the pictures' width, and the activation is the config's."""
    text = TEXT | {"hidden_size": 32, "projection_size": 40, "hidden_act": "gelu"}
    config = transformers.SiglipConfig(text_config=text, vision_config=PICTURE)
    case = saved(transformers.SiglipModel(config), tmp_path / "in")
    with torch.no_grad():
        close(scores(outputs(imported(case, tmp_path / "bundle").model)), reference(case).logits_per_image)
    check_round_trip(case, tmp_path / "bundle", tmp_path / "out")


@pytest.mark.parametrize(
    ("part", "change", "told"),
    [
        ("vision_config", {"vision_use_head": False}, "vision_use_head False, but .* is True"),
        ("vision_config", {"hidden_act": "mish"}, "vision_config.hidden_act 'mish', but .* one of"),
        ("text_config", {"num_hidden_layers": 2}, "left over: text_model.encoder.layers.2"),
        ("text_config", {"causal": True}, "text_config.causal True, which mmformer does not know"),
    ],
)
def test_what_does_not_fit_is_told(case: Case, tmp_path: Path, part: str, change: Any, told: str) -> None:
    check_refused(case, tmp_path, change, told, part)
