"""As a new user would: a folder as it is published, files on disk, ``mmformer import``, a command, and the answer."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
import vocabulary_folders
from parity import randomise
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from mmformer.cli.main import main

transformers = pytest.importorskip("transformers", reason="the reference")

ALIKE = 1e-4
"""How far probabilities and embeddings of unit length may be from the reference's."""

LABELS = ["a dog", "a man in a red hat 🎩", "two people, cooking"]
Command = Callable[..., Any]


@pytest.fixture
def mmf(capsys: pytest.CaptureFixture[str]) -> Command:
    """Runs a command that is to succeed, and reads the JSON that it prints."""

    def run(*words: object) -> Any:
        capsys.readouterr()
        code = main([str(word) for word in words])
        told = capsys.readouterr()
        assert code == 0, told.err
        return json.loads(told.out) if "--json" in words else told.out

    return run


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Runs a command that is to be refused, and gives what it says."""

    def run(*words: object) -> str:
        capsys.readouterr()
        assert main([str(word) for word in words]) == 2
        return capsys.readouterr().err

    return run


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Of odd sizes, with a gradient and a shape each; one is grey, one a palette's."""
    folder = tmp_path_factory.mktemp("pictures")
    paths = []
    for number, (width, height) in enumerate([(37, 61), (120, 45), (32, 32), (201, 199)]):
        random = np.random.default_rng(number)
        x, y = np.meshgrid(np.linspace(0, 255, width), np.linspace(0, 255, height))
        pixels = np.stack([x, y, 255 - x], 2) * random.uniform(0.2, 1, 3)
        pixels[height // 4 : height // 2, width // 3 :] = random.integers(0, 256, 3)
        picture = Image.fromarray(pixels.astype(np.uint8))
        picture = picture.convert("L") if number == 1 else picture.convert("P") if number == 3 else picture
        paths.append(str(folder / f"{number}.png"))
        picture.save(paths[-1])
    return paths


@pytest.fixture(scope="module")
def sounds(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("sounds")
    paths = []
    for number, length in enumerate([9_000, 16_000, 30_001]):
        random = np.random.default_rng(number)
        wave = 0.3 * np.sin(np.arange(length) * random.uniform(0.05, 0.5)) + 0.05 * random.standard_normal(length)
        paths.append(str(folder / f"{number}.wav"))
        soundfile.write(paths[-1], wave.astype(np.float32), 16_000, subtype="PCM_16")
    return paths


def opened(paths: Sequence[str]) -> list[Image.Image]:
    return [Image.open(path).convert("RGB") for path in paths]


def published(folder: Path, reference: Any, *beside: Any, size: float = 1.0, **values: float) -> Any:
    """A model with random weights and what goes beside it, as the library saves them; some parameters by name."""
    randomise(reference, size=size)
    for name, value in values.items():
        reference.get_parameter(name).data.fill_(value)
    for each in (reference.eval(), *beside):
        each.save_pretrained(folder)
    return reference


def check_answers(answers: Any, theirs: Tensor, names: Sequence[str]) -> None:
    """What classify says of each value against probabilities of the reference, N names."""
    assert len(answers) == len(theirs)
    for answer, row in zip(answers, theirs, strict=True):
        assert set(answer["probabilities"]) == set(names)
        ours = torch.tensor([answer["probabilities"][name] for name in names])
        torch.testing.assert_close(ours, row, rtol=0, atol=ALIKE)
        assert answer["label"] == names[int(row.argmax())]
    assert float(theirs.std(0).max()) > 20 * ALIKE, "the reference tells nothing apart"


def check_embeddings(rows: Any, theirs: Tensor) -> None:
    ours = torch.tensor([row["embedding"] for row in rows])
    torch.testing.assert_close(ours, F.normalize(theirs, dim=-1), rtol=0, atol=ALIKE)


# CLIP and SigLIP

TEXT = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
SEEN = TEXT | {"image_size": 32, "patch_size": 8}


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = vocabulary_folders.clip(tmp_path_factory.mktemp("clip"))
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    small = {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}}
    processor = transformers.CLIPProcessor(transformers.CLIPImageProcessor(**small), tokenizer)
    text = TEXT | {"vocab_size": len(tokenizer), "max_position_embeddings": 77}
    text |= {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    config = transformers.CLIPConfig(text_config=text, vision_config=SEEN, projection_dim=24)
    model = published(folder, transformers.CLIPModel(config), processor, logit_scale=math.log(30))
    return folder, model, transformers.CLIPProcessor.from_pretrained(folder)


def test_clip(clip: Any, pictures: list[str], mmf: Command, tmp_path: Path) -> None:
    folder, model, processor = clip
    bundle = tmp_path / "bundle"
    mmf("import", f"hf:{folder}", bundle)
    inputs = processor(text=LABELS, images=opened(pictures), return_tensors="pt", padding=True)
    with torch.no_grad():
        theirs = model(**inputs)
    (tmp_path / "labels.txt").write_text("\n".join(LABELS), encoding="utf-8")
    answers = mmf("classify", bundle, *pictures, "--labels-file", tmp_path / "labels.txt", "--json")
    check_answers(answers, theirs.logits_per_image.softmax(1), LABELS)
    check_embeddings(mmf("embed", bundle, "--images", *pictures, "--json"), theirs.image_embeds)
    check_embeddings(mmf("embed", bundle, "--texts-file", tmp_path / "labels.txt", "--json"), theirs.text_embeds)
    found = mmf("retrieve", bundle, "--images", Path(pictures[0]).parent, *LABELS, "--json")
    similar = theirs.text_embeds @ theirs.image_embeds.T
    for query, row in zip(found, similar, strict=True):
        assert [match["image"] for match in query["matches"]] == [pictures[i] for i in row.argsort(descending=True)]
        torch.testing.assert_close(
            torch.tensor([match["score"] for match in query["matches"]]),
            row.sort(descending=True)[0],
            rtol=0,
            atol=ALIKE,
        )


def test_clip_by_the_pipeline(clip: Any, pictures: list[str], mmf: Command, tmp_path: Path) -> None:
    folder, *_ = clip
    mmf("import", f"hf:{folder}", tmp_path / "bundle")
    pipeline = transformers.pipeline("zero-shot-image-classification", model=str(folder))
    labels = ["dog", "cat", "red hat"]
    said = pipeline([Image.open(path) for path in pictures], candidate_labels=labels)
    theirs = torch.tensor([[{each["label"]: each["score"] for each in one}[name] for name in labels] for one in said])
    words = ["--labels", ",".join(labels), "--template", "This is a photo of {}.", "--json"]
    check_answers(mmf("classify", tmp_path / "bundle", *pictures, *words), theirs, labels)


def test_siglip(pictures: list[str], mmf: Command, tmp_path: Path) -> None:
    folder, bundle = vocabulary_folders.siglip(tmp_path / "in"), tmp_path / "bundle"
    # Published folders say that no mask is made: SigLIP reads its padding.
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder, model_input_names=["input_ids"])
    processor = transformers.SiglipProcessor(
        transformers.SiglipImageProcessor(size={"height": 32, "width": 32}), tokenizer
    )
    text = TEXT | {"vocab_size": len(tokenizer), "max_position_embeddings": 64}
    config = transformers.SiglipConfig(text_config=text, vision_config=SEEN)
    published(folder, transformers.SiglipModel(config), processor, logit_scale=math.log(10), logit_bias=-2.0)
    mmf("import", f"hf:{folder}", bundle)
    pipeline = transformers.pipeline("zero-shot-image-classification", model=str(folder))
    labels = ["dog", "cat", "red hat"]
    said = pipeline(opened(pictures), candidate_labels=labels)
    theirs = torch.tensor([[{each["label"]: each["score"] for each in one}[name] for name in labels] for one in said])
    words = ["--labels", ",".join(labels), "--template", "This is a photo of {}.", "--json"]
    check_answers(mmf("classify", bundle, *pictures, *words), theirs, labels)


# Classifiers

NAMES = ["tench", "goldfish", "great white shark", "hen"]
ID2LABEL = dict(enumerate(NAMES))


@pytest.mark.parametrize("kind", ["ViT", "DeiT"])
def test_vit(kind: str, pictures: list[str], mmf: Command, tmp_path: Path) -> None:
    folder, bundle = tmp_path / "in", tmp_path / "bundle"
    config = getattr(transformers, f"{kind}Config")(**SEEN, id2label=ID2LABEL)
    made = {"ViT": "ViTForImageClassification", "DeiT": "DeiTForImageClassificationWithTeacher"}[kind]
    processor = getattr(transformers, f"{kind}ImageProcessor")(size={"height": 32, "width": 32}, crop_size=32)
    published(folder, getattr(transformers, made)(config), processor, size=2.0)
    mmf("import", f"hf:{folder}", bundle)
    pipeline = transformers.pipeline("image-classification", model=str(folder), function_to_apply="softmax")
    said = pipeline(opened(pictures), top_k=4)
    theirs = torch.tensor([[{each["label"]: each["score"] for each in one}[name] for name in NAMES] for one in said])
    check_answers(mmf("classify", bundle, *pictures, "--json"), theirs, NAMES)
