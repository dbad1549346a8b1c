"""As a new user would: a published folder, files on disk, ``mmformer import``, a command, and the library's answer."""

from __future__ import annotations

import gzip
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import vocabulary_folders
from parity import randomise
from published import (
    ALIKE,
    NAMES,
    SEEN,
    TEXT,
    Command,
    check_answers,
    check_embeddings,
    heard,
    opened,
    published,
    scores,
    succeeding,
    write_pictures,
    write_sounds,
)
from safetensors.torch import save_file

from mmformer.interop import pipelines

transformers = pytest.importorskip("transformers", reason="the reference")

LABELS = ["a dog", "a man in a red hat 🎩", "two people, cooking"]
SHORT = ["dog", "cat", "red hat"]
ID2LABEL = dict(enumerate(NAMES))


@pytest.fixture
def mmf(capsys: pytest.CaptureFixture[str]) -> Command:
    return succeeding(capsys)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    return write_pictures(tmp_path_factory.mktemp("pictures"))


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = vocabulary_folders.clip(tmp_path_factory.mktemp("clip"))
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    small = {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}}
    processor = transformers.CLIPProcessor(transformers.CLIPImageProcessor(**small), tokenizer)
    text = TEXT | {"vocab_size": len(tokenizer), "max_position_embeddings": 77}
    text |= {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    config = transformers.CLIPConfig(text_config=text, vision_config=SEEN, projection_dim=24)
    # The trainer numbers pieces that are as frequent as each other at random: the pictures are to differ for any draw.
    reference = published(folder, transformers.CLIPModel(config), processor, size=2.0, logit_scale=math.log(30))
    return folder, reference, processor


def check_zero_shot(mmf: Command, bundle: Path, pictures: list[str], theirs: Any, labels: Path) -> None:
    """By each command, what a model of pictures and texts says; theirs: probabilities, embeddings of unit length."""
    labels.write_text("\n".join(LABELS), encoding="utf-8")
    probabilities, seen, read = theirs
    answers = mmf("classify", bundle, *pictures, "--labels-file", labels, "--json")
    check_answers(answers, probabilities, LABELS)
    check_embeddings(mmf("embed", bundle, "--images", *pictures, "--json"), seen)
    check_embeddings(mmf("embed", bundle, "--texts-file", labels, "--json"), read)
    found = mmf("retrieve", bundle, "--images", Path(pictures[0]).parent, *LABELS, "--json")
    for query, row in zip(found, read @ seen.T, strict=True):
        best, order = row.sort(descending=True)
        assert [match["image"] for match in query["matches"]] == [pictures[i] for i in order]
        ours = torch.tensor([match["score"] for match in query["matches"]])
        torch.testing.assert_close(ours, best, rtol=0, atol=ALIKE)


def test_clip(clip: Any, pictures: list[str], mmf: Command, tmp_path: Path) -> None:
    folder, model, processor = clip
    mmf("import", f"hf:{folder}", tmp_path / "bundle")
    with torch.no_grad():
        said = model(**processor(text=LABELS, images=opened(pictures), return_tensors="pt", padding=True))
    theirs = said.logits_per_image.softmax(1), said.image_embeds, said.text_embeds
    check_zero_shot(mmf, tmp_path / "bundle", pictures, theirs, tmp_path / "labels.txt")


def test_clip_by_the_pipeline(clip: Any, pictures: list[str], mmf: Command, tmp_path: Path) -> None:
    folder, *_ = clip
    mmf("import", f"hf:{folder}", tmp_path / "bundle")
    pipeline = transformers.pipeline("zero-shot-image-classification", model=str(folder))
    theirs = scores(pipeline(opened(pictures), candidate_labels=SHORT), SHORT)
    words = ["--labels", ",".join(SHORT), "--template", "This is a photo of {}.", "--json"]
    check_answers(mmf("classify", tmp_path / "bundle", *pictures, *words), theirs, SHORT)


def write_clip_lists(merges: Path, folder: Path) -> None:
    """CLIP's vocabulary as transformers' folders have it, which are open_clip's too on the hub, of open_clip's own."""
    tokenizer = json.loads(pipelines.open_clip(gzip.decompress(merges.read_bytes()).decode()).to_str())["model"]
    names = {"<start_of_text>": "<|startoftext|>", "<end_of_text>": "<|endoftext|>"}
    pieces = {names.get(piece, piece): number for piece, number in tokenizer["vocab"].items()}
    lines = ["#version: 0.2", *(pair if isinstance(pair, str) else " ".join(pair) for pair in tokenizer["merges"]), ""]
    settings = {"tokenizer_class": "CLIPTokenizer", "model_max_length": 77}
    files = {"vocab__json": pieces, "merges__txt": "\n".join(lines), "tokenizer_config__json": settings}
    vocabulary_folders.write(folder, **files)


@pytest.mark.parametrize(("loss", "published"), [("softmax", False), ("softmax", True), ("sigmoid", False)])
def test_open_clip(loss: str, published: bool, pictures: list[str], mmf: Command, tmp_path: Path) -> None:
    """With the vocabulary of CLIP that its wheel brings, or the lists that its folders on the hub have instead."""
    open_clip = pytest.importorskip("open_clip", reason="the reference")
    seen = {"image_size": 32, "patch_size": 8, "layers": 2, "width": 32, "head_width": 8}
    read = {"context_length": 77, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 2}
    bias = {"init_logit_bias": -1.0} if loss == "sigmoid" else {}
    config = {"embed_dim": 24, "vision_cfg": seen, "text_cfg": read, **bias}
    colours = {"mean": [0.4, 0.5, 0.6], "std": [0.2, 0.3, 0.25]}
    said = json.dumps({"model_cfg": config, "preprocess_cfg": colours})
    (tmp_path / "in").mkdir()
    (tmp_path / "in/open_clip_config.json").write_text(said)
    name = f"local-dir:{tmp_path / 'in'}"
    model = open_clip.create_model(name, load_weights=False).eval()
    randomise(model)
    model.logit_scale.data.fill_(math.log(30))
    save_file(model.state_dict(), tmp_path / "in/open_clip_model.safetensors")
    _, prepare = open_clip.create_model_from_pretrained(name)
    merges = Path(open_clip.__file__).with_name("bpe_simple_vocab_16e6.txt.gz")
    if published:
        write_clip_lists(merges, tmp_path / "in")
    else:
        assert merges.name in mmf("import", f"open_clip:{tmp_path / 'in'}", tmp_path / "ids")
        (tmp_path / "in" / merges.name).write_bytes(merges.read_bytes())
    mmf("import", f"open_clip:{tmp_path / 'in'}", tmp_path / "bundle")
    pixels, ids = torch.stack([prepare(picture) for picture in opened(pictures)]), open_clip.get_tokenizer(name)(LABELS)
    with torch.no_grad():
        logits = model.get_logits(pixels, ids)[0]
        embeddings = [f(x, normalize=True) for f, x in ((model.encode_image, pixels), (model.encode_text, ids))]
    probabilities = logits.sigmoid() if bias else logits.softmax(1)
    check_zero_shot(mmf, tmp_path / "bundle", pictures, (probabilities, *embeddings), tmp_path / "labels.txt")


def test_siglip(pictures: list[str], mmf: Command, tmp_path: Path) -> None:
    """Each label has a probability of its own."""
    folder, bundle = vocabulary_folders.siglip(tmp_path / "in"), tmp_path / "bundle"
    # Published folders say that no mask is made: SigLIP reads its padding.
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder, model_input_names=["input_ids"])
    size = {"height": 32, "width": 32}
    processor = transformers.SiglipProcessor(transformers.SiglipImageProcessor(size=size), tokenizer)
    text = TEXT | {"vocab_size": len(tokenizer), "max_position_embeddings": 64}
    config = transformers.SiglipConfig(text_config=text, vision_config=SEEN)
    published(folder, transformers.SiglipModel(config), processor, logit_scale=math.log(10), logit_bias=-2.0)
    mmf("import", f"hf:{folder}", bundle)
    pipeline = transformers.pipeline("zero-shot-image-classification", model=str(folder))
    theirs = scores(pipeline(opened(pictures), candidate_labels=SHORT), SHORT)
    words = ["--labels", ",".join(SHORT), "--template", "This is a photo of {}.", "--json"]
    check_answers(mmf("classify", bundle, *pictures, *words), theirs, SHORT)
    assert "| red hat" in mmf("classify", bundle, *pictures, *words[:-1]).replace("│", "|")


@pytest.mark.parametrize(
    ("config", "model", "processor"),
    [
        ("ViT", "ViTForImageClassification", "ViT"),
        ("DeiT", "DeiTForImageClassificationWithTeacher", "DeiT"),
        ("DeiT", "DeiTForImageClassification", "DeiT"),
    ],
)
def test_picture_classes(
    config: str, model: str, processor: str, pictures: list[str], mmf: Command, tmp_path: Path
) -> None:
    folder, bundle = tmp_path / "in", tmp_path / "bundle"
    made = getattr(transformers, f"{config}Config")(**SEEN, id2label=ID2LABEL)
    sides = [{"height": side, "width": side} for side in (32 if processor == "ViT" else 36, 32)]
    before = getattr(transformers, f"{processor}ImageProcessor")(size=sides[0], crop_size=sides[1])
    published(folder, getattr(transformers, model)(made), before, size=2.0)
    mmf("import", f"hf:{folder}", bundle)
    pipeline = transformers.pipeline("image-classification", model=str(folder), function_to_apply="softmax")
    check_answers(
        mmf("classify", bundle, *pictures, "--json"), scores(pipeline(opened(pictures), top_k=4), NAMES), NAMES
    )


def test_classes_of_one_name(pictures: list[str], mmf: Command, tmp_path: Path) -> None:
    """Two of ImageNet's classes are called crane: they are told apart."""
    config = transformers.ViTConfig(**SEEN, id2label=dict(enumerate(["crane", "hen", "crane", "dog"])))
    processor = transformers.ViTImageProcessor(size={"height": 32, "width": 32})
    model = published(tmp_path / "in", transformers.ViTForImageClassification(config), processor, size=2.0)
    mmf("import", f"hf:{tmp_path / 'in'}", tmp_path / "bundle")
    with torch.no_grad():
        theirs = model(**processor(opened(pictures), return_tensors="pt")).logits.softmax(1)
    answers = mmf("classify", tmp_path / "bundle", *pictures, "--json")
    check_answers(answers, theirs, ["crane [0]", "hen", "crane [2]", "dog"])


def test_vit_embeds(pictures: list[str], mmf: Command, tmp_path: Path) -> None:
    folder, bundle = tmp_path / "in", tmp_path / "bundle"
    processor = transformers.ViTImageProcessor(size={"height": 32, "width": 32})
    model = published(folder, transformers.ViTModel(transformers.ViTConfig(**SEEN)), processor, size=2.0)
    mmf("import", f"hf:{folder}", bundle)
    with torch.no_grad():
        theirs = model(**processor(opened(pictures), return_tensors="pt")).pooler_output
    check_embeddings(mmf("embed", bundle, "--images", *pictures, "--json"), theirs)


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "deit_tiny_distilled_patch16_224"])
def test_timm(name: str, pictures: list[str], mmf: Command, tmp_path: Path) -> None:
    timm = pytest.importorskip("timm", reason="the reference")
    small = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 3, "num_classes": 4}
    model = timm.create_model(name, **small)
    randomise(model, size=2.0)
    how = {"input_size": (3, 32, 32), "crop_pct": 0.9, "interpolation": "bicubic"}
    model.pretrained_cfg = {**model.pretrained_cfg, **how}
    named = {"model_config": {"label_names": NAMES}, "model_args": small}
    timm.models.save_for_hf(model.eval(), str(tmp_path / "in"), **named, safe_serialization=True)
    mmf("import", f"timm:{tmp_path / 'in'}", tmp_path / "bundle")
    prepare = timm.data.create_transform(**timm.data.resolve_model_data_config(model))
    with torch.no_grad():
        theirs = model(torch.stack([prepare(picture) for picture in opened(pictures)])).softmax(1)
    check_answers(mmf("classify", tmp_path / "bundle", *pictures, "--json"), theirs, NAMES)


def test_sound_classes(mmf: Command, tmp_path: Path) -> None:
    folder, bundle, sounds = tmp_path / "in", tmp_path / "bundle", write_sounds(tmp_path)
    cut = {"max_length": 128, "num_mel_bins": 32, "patch_size": 8, "time_stride": 6, "frequency_stride": 6}
    config = transformers.ASTConfig(**TEXT, **cut, id2label=ID2LABEL)
    extractor = transformers.ASTFeatureExtractor(num_mel_bins=32, max_length=128)
    published(folder, transformers.ASTForAudioClassification(config), extractor, size=2.0)
    mmf("import", f"hf:{folder}", bundle)
    pipeline = transformers.pipeline("audio-classification", model=str(folder), function_to_apply="softmax")
    answers = mmf("classify", bundle, "--sounds", tmp_path, "--json")
    check_answers(answers, scores(pipeline(heard(sounds), top_k=4), NAMES), NAMES)
