"""A model from elsewhere is tuned by a run file, with LoRA, and goes out again: the way of users of transformers."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
import torch
import yaml
from tiny import COLOURS, write_shards

import mmformer
from mmformer.bundle import load_bundle
from mmformer.cli.main import main
from mmformer.types import Batch, Text

transformers = pytest.importorskip("transformers", reason="the reference")

MEAN, STD = [0.48, 0.46, 0.4], [0.27, 0.26, 0.28]


def made(folder: Path, labels: int) -> None:
    """A small ViT of transformers' and what prepares its pictures."""
    torch.manual_seed(0)
    config = transformers.ViTConfig(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=40,
        image_size=16,
        patch_size=8,
        num_labels=labels,
    )
    transformers.ViTForImageClassification(config).save_pretrained(folder)
    size = {"height": 16, "width": 16}
    transformers.ViTImageProcessor(size=size, image_mean=MEAN, image_std=STD).save_pretrained(folder)


def run_file(folder: Path, classes: int) -> Path:
    shards = write_shards(folder / "shards")
    image = yaml.safe_load((folder / "bundle" / "transforms.yaml").read_text())["image"]
    head = {"class_path": "ClassificationHeadSpec", "init_args": {"encoder": "image", "classes": len(COLOURS)}}
    model = {"from": str(folder / "bundle"), **({} if classes == len(COLOURS) else {"heads": {"classes": head}})}
    data = {
        "model": model,
        "objectives": {
            "colour": {"class_path": "ClassificationSpec", "init_args": {"head": "classes", "label": "colour"}}
        },
        "data": {
            "source": str(shards),
            "test": "test",
            "batch_size": 8,
            "order": {"lanes": 2, "block": 8},
            "image": {"transform": image},
            "labels": {"colour": {"field": "colour", "classes": str(shards / "colours.txt")}},
        },
        "initial": {"path": str(folder / "bundle"), "partial": True},
        "adapters": {
            "lora": {"class_path": "LoRASpec", "init_args": {"rank": 2, "modules": ["stacks.*"], "rows": None}},
            "head": {"class_path": "WholeSpec"},
        },
        "optimizer": {"class_path": "AdamWSpec", "init_args": {"lr": 0.01}},
        "trainer": {"max_steps": 3, "accelerator": "cpu", "enable_progress_bar": False},
        "logging": {"tensorboard": False},
    }
    (folder / "run.yaml").write_text(yaml.safe_dump(data))
    return folder / "run.yaml"


@pytest.mark.parametrize("classes", [len(COLOURS), 3])
def test_import_tune_merge_export(classes: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With its own head, and with one for other classes."""
    made(tmp_path / "theirs", classes)
    assert main(["import", f"hf:{tmp_path / 'theirs'}", str(tmp_path / "bundle")]) == 0
    file = run_file(tmp_path, classes)
    assert main(["fit", "--config", str(file), "--output", str(tmp_path / "run")]) == 0
    said = capsys.readouterr().out
    assert ("  drawn    heads.classes.*" in said) == (classes != len(COLOURS))
    assert "note:" not in said, "pictures are prepared as they were"
    assert main(["export", str(tmp_path / "run" / "bundle"), str(tmp_path / "out"), "--to", "hf"]) == 0

    before, after = (load_bundle(tmp_path / name)[0] for name in ("bundle", "run/bundle"))
    pixels = torch.randint(0, 256, (3, 3, 16, 16), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)
    batch = Batch((), {}, pixels)
    reference = transformers.ViTForImageClassification.from_pretrained(tmp_path / "out").eval()
    processor = transformers.ViTImageProcessor.from_pretrained(tmp_path / "out")
    assert list(processor.image_mean) == MEAN, "what prepares pictures goes along"
    values = (pixels / 255 - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None]
    with torch.no_grad():
        ours, theirs = after(batch).logits["classes"], reference(values).logits
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)
        assert not torch.allclose(after(batch).embedding["image"], before(batch).embedding["image"], atol=1e-3)
    assert [reference.config.id2label[number] for number in range(len(COLOURS))] == list(COLOURS)
    picture = pixels[0].permute(1, 2, 0).numpy()
    assert mmformer.load(tmp_path / "run" / "bundle").classify(picture).keys() <= set(COLOURS)


def test_a_language_model_learns_captions_with_lora(tmp_path: Path) -> None:
    """Its matrix of queries, keys and values is one in both, and applied from the other side there."""
    import tokenizers

    bpe = tokenizers.ByteLevelBPETokenizer()
    bpe.train_from_iterator(list(COLOURS), vocab_size=300, special_tokens=["<|endoftext|>"])
    torch.manual_seed(0)
    sizes = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 48, "vocab_size": bpe.get_vocab_size()}
    reference = transformers.GPT2LMHeadModel(transformers.GPT2Config(**sizes, bos_token_id=0, eos_token_id=0))
    reference.half().save_pretrained(tmp_path / "theirs")
    reference.float()
    bpe.save(str(tmp_path / "theirs" / "tokenizer.json"))
    assert main(["import", f"hf:{tmp_path / 'theirs'}", str(tmp_path / "bundle")]) == 0
    data = {
        "model": {"from": str(tmp_path / "bundle")},
        "objectives": {"words": {"class_path": "CaptioningSpec", "init_args": {"decoder": "text"}}},
        "data": {
            "source": str(write_shards(tmp_path / "shards")),
            "batch_size": 8,
            "order": {"lanes": 2, "block": 8},
            "text": {"caption": {"class_path": "FieldCaptionSpec", "init_args": {"field": "names.en"}}},
        },
        "initial": {"path": str(tmp_path / "bundle")},
        "adapters": {"lora": {"class_path": "LoRASpec", "init_args": {"rank": 4}}},
        "optimizer": {"class_path": "AdamWSpec", "init_args": {"lr": 0.01}},
        "trainer": {"max_steps": 20, "accelerator": "cpu", "enable_progress_bar": False, "log_every_n_steps": 1},
        "logging": {"tensorboard": False},
    }
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(data))
    assert main(["fit", "--config", str(tmp_path / "run.yaml"), "--output", str(tmp_path / "run")]) == 0
    with (tmp_path / "run" / "metrics.csv").open() as file:
        losses = [float(row["train/loss"]) for row in csv.DictReader(file)]
    assert losses[-1] < losses[0] - 0.05, "it learns, of queries and values of a model that was drawn"
    assert main(["export", str(tmp_path / "run" / "bundle"), str(tmp_path / "out"), "--to", "hf"]) == 0
    tuned = transformers.GPT2LMHeadModel.from_pretrained(tmp_path / "out").eval()
    ids = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")(["a red square"], return_tensors="pt").input_ids
    ours = mmformer.load(tmp_path / "run" / "bundle").logits(ids)
    with torch.no_grad():
        torch.testing.assert_close(ours, tuned(ids).logits, atol=1e-5, rtol=1e-5)
    before, after = reference.state_dict(), tuned.state_dict()
    moved = {name.split(".", 3)[-1] for name in before if not torch.equal(before[name], after[name])}
    assert moved == {"attn.c_attn.weight"}
    changed = (after["transformer.h.0.attn.c_attn.weight"] - before["transformer.h.0.attn.c_attn.weight"]).split(32, 1)
    assert [int(torch.linalg.matrix_rank(part, atol=1e-5)) for part in changed] == [4, 0, 4], "queries and values"
    assert main(["merge", *(str(tmp_path / name) for name in ("bundle", "run/adapters", "merged"))]) == 0
    assert main(["export", str(tmp_path / "merged"), str(tmp_path / "merged_out"), "--to", "hf"]) == 0
    again = transformers.GPT2LMHeadModel.from_pretrained(tmp_path / "merged_out").state_dict()
    for name, value in after.items():
        assert again[name].dtype == value.dtype == torch.float32, "though they came in float16"
        assert torch.equal(again[name], value), name


def test_an_edited_model_goes_out_in_its_new_size(tmp_path: Path) -> None:
    made(tmp_path / "theirs", 3)
    assert main(["import", f"hf:{tmp_path / 'theirs'}", str(tmp_path / "bundle")]) == 0
    assert main(["edit", str(tmp_path / "bundle"), str(tmp_path / "large"), "--image-size", "32", "--patch", "4"]) == 0
    assert main(["export", str(tmp_path / "large"), str(tmp_path / "out"), "--to", "hf"]) == 0
    reference = transformers.ViTForImageClassification.from_pretrained(tmp_path / "out").eval()
    assert (reference.config.image_size, reference.config.patch_size) == (32, 4)
    pixels = torch.randint(0, 256, (2, 3, 32, 32), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)
    values = (pixels / 255 - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None]
    with torch.no_grad():
        ours = load_bundle(tmp_path / "large")[0](Batch((), {}, pixels)).logits["classes"]
        torch.testing.assert_close(ours, reference(values).logits, atol=1e-5, rtol=1e-5)


def test_an_edited_clip_reads_larger_pictures_and_longer_texts_there_too(tmp_path: Path) -> None:
    text = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    text |= {"vocab_size": 99, "max_position_embeddings": 16, "bos_token_id": 97, "eos_token_id": 98}
    seen = {"hidden_size": 40, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    seen |= {"image_size": 16, "patch_size": 8}
    torch.manual_seed(0)
    config = transformers.CLIPConfig(text_config=text, vision_config=seen, projection_dim=24)
    transformers.CLIPModel(config).save_pretrained(tmp_path / "theirs")
    how = {"size": {"shortest_edge": 16}, "crop_size": {"height": 16, "width": 16}}
    transformers.CLIPImageProcessor(**how, image_mean=MEAN, image_std=STD).save_pretrained(tmp_path / "theirs")
    assert main(["import", f"hf:{tmp_path / 'theirs'}", str(tmp_path / "bundle")]) == 0
    words = ["--image-size", "40", "--context-length", "24"]
    assert main(["edit", str(tmp_path / "bundle"), str(tmp_path / "large"), *words]) == 0
    assert main(["export", str(tmp_path / "large"), str(tmp_path / "out"), "--to", "hf"]) == 0
    reference = transformers.CLIPModel.from_pretrained(tmp_path / "out").eval()
    model, transforms = load_bundle(tmp_path / "large")
    assert transforms.image is not None
    assert (transforms.image.size, transforms.image.resize) == ((40, 40), (40, 40))
    pixels = torch.randint(0, 256, (2, 3, 40, 40), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)
    values = (pixels / 255 - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None]
    ids = torch.randint(0, 97, (2, 23), generator=torch.Generator().manual_seed(2))
    ids = torch.cat((ids, torch.full((2, 1), 98)), dim=1)
    with torch.no_grad():
        ours = model(Batch((), {}, pixels, Text(ids, torch.tensor([24, 24]))))
        theirs = reference(input_ids=ids, pixel_values=values)
    for name, embedding in (("image", theirs.image_embeds), ("text", theirs.text_embeds)):
        made = torch.nn.functional.normalize(ours.embedding[name], dim=-1)
        torch.testing.assert_close(made, embedding, atol=1e-5, rtol=1e-5)


def test_a_language_model_with_more_words_goes_out_with_them(tmp_path: Path) -> None:
    import tokenizers

    bpe = tokenizers.ByteLevelBPETokenizer()
    bpe.train_from_iterator(list(COLOURS), vocab_size=300, special_tokens=["<|endoftext|>"])
    torch.manual_seed(0)
    sizes = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 48, "vocab_size": bpe.get_vocab_size()}
    reference = transformers.GPT2LMHeadModel(transformers.GPT2Config(**sizes, bos_token_id=0, eos_token_id=0)).eval()
    reference.save_pretrained(tmp_path / "theirs")
    bpe.save(str(tmp_path / "theirs" / "tokenizer.json"))
    bpe.add_tokens(["turquoise", "magenta"])
    bpe.save(str(tmp_path / "more.json"))
    assert main(["import", f"hf:{tmp_path / 'theirs'}", str(tmp_path / "bundle")]) == 0
    words = ["--vocabulary", str(tmp_path / "more.json")]
    assert main(["edit", str(tmp_path / "bundle"), str(tmp_path / "more"), *words]) == 0
    assert main(["export", str(tmp_path / "more"), str(tmp_path / "out"), "--to", "hf"]) == 0
    longer = transformers.GPT2LMHeadModel.from_pretrained(tmp_path / "out").eval()
    cut = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    assert longer.config.vocab_size == len(cut) == sizes["vocab_size"] + 2
    ids = cut(["a red turquoise square"], return_tensors="pt").input_ids
    ours = mmformer.load(tmp_path / "more").logits(ids)
    with torch.no_grad():
        torch.testing.assert_close(ours, longer(ids).logits, atol=1e-5, rtol=1e-5)
        old = cut(["a red square"], return_tensors="pt").input_ids
        before = reference(old).logits
        torch.testing.assert_close(longer(old).logits[..., :-2], before, atol=1e-5, rtol=1e-5)


def test_special_ids_of_other_words_go_out(tmp_path: Path) -> None:
    """A text ends there where it ends here, though its end has another id than it had when the model came."""
    import tokenizers

    for name, special in (("theirs", ["<|endoftext|>"]), ("other", ["<pad>", "<mask>", "<|endoftext|>"])):
        bpe = tokenizers.ByteLevelBPETokenizer()
        bpe.train_from_iterator(list(COLOURS), vocab_size=300, special_tokens=special)
        bpe.save(str(tmp_path / f"{name}.json"))
    torch.manual_seed(0)
    sizes = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 48, "vocab_size": 300}
    config = transformers.GPT2Config(**sizes, bos_token_id=0, eos_token_id=0, pad_token_id=0)
    transformers.GPT2LMHeadModel(config).save_pretrained(tmp_path / "theirs")
    (tmp_path / "theirs.json").rename(tmp_path / "theirs" / "tokenizer.json")
    assert main(["import", f"hf:{tmp_path / 'theirs'}", str(tmp_path / "bundle")]) == 0
    words = ["--vocabulary", str(tmp_path / "other.json")]
    assert main(["edit", str(tmp_path / "bundle"), str(tmp_path / "other"), *words]) == 0
    assert main(["export", str(tmp_path / "other"), str(tmp_path / "out"), "--to", "hf"]) == 0
    ids = mmformer.load(tmp_path / "other").model.decoders["text"].tokenizer.special
    found = transformers.AutoConfig.from_pretrained(tmp_path / "out")
    assert (found.bos_token_id, found.eos_token_id) == (ids.bos, ids.eos[0]) == (2, 2)
