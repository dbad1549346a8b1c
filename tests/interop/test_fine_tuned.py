"""A model from elsewhere is tuned by a run file, with LoRA, and goes out again: the way of users of transformers."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import yaml
from tiny import COLOURS, write_shards

import mmformer
from mmformer.bundle import load_bundle
from mmformer.cli.main import main
from mmformer.types import Batch

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
