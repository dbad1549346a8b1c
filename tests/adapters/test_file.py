"""Adapters by themselves: a small folder that makes of its base what the run's bundle is, and of nothing else."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from bundles import save_dual
from safetensors.torch import load_file, save_file
from tiny import COLOURS, labels, tiny_model, tiny_run, write_shards

from mmformer.adapters.dora import DoRASpec
from mmformer.adapters.lora import LoRASpec
from mmformer.adapters.whole import WholeSpec
from mmformer.cli.main import main
from mmformer.errors import InputError
from mmformer.objectives.classification import ClassificationSpec
from mmformer.objectives.contrastive import ContrastiveSpec
from mmformer.surgery.merging import merge_own
from mmformer.training.average import EMASpec
from mmformer.training.fit import fit
from mmformer.training.initial import InitialSpec
from mmformer.training.run import RunSpec


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_dual(tmp_path_factory.mktemp("base") / "bundle", seed=5)


def adapted(base: Path, folder: Path) -> RunSpec:
    """A run on the base's own model, whose vocabulary lies elsewhere."""
    shards = write_shards(folder / "shards")
    return tiny_run(
        shards,
        model=tiny_model(classes=len(COLOURS)),
        data={"labels": labels(shards)},
        objectives={"contrastive": ContrastiveSpec(), "colour": ClassificationSpec(head="colour")},
        initial=InitialSpec(str(base)),
        ema=EMASpec(0.5),
        adapters={
            "lora": LoRASpec(("stacks.image.*",), rank=2),
            "dora": DoRASpec(("stacks.text.*",), None, rank=2),
            "head": WholeSpec(("heads.colour.*",)),
        },
    )


def test_base_and_adapters_are_the_bundle(base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fit(adapted(base, tmp_path), tmp_path / "run")
    folder = tmp_path / "run" / "adapters"
    assert sorted(path.name for path in folder.iterdir()) == ["adapters.safetensors", "adapters.yaml"]
    trained = load_file(folder / "adapters.safetensors")
    assert all(".adapter." in name or name.startswith("heads.colour.") for name in trained)
    capsys.readouterr()
    assert main(["merge", str(base), str(folder), str(tmp_path / "merged")]) == 0
    assert "merged: adapters is merged into" in capsys.readouterr().out
    one, other = (load_file(tmp_path / name / "model.safetensors") for name in ("run/bundle", "merged"))
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one), "to the bit"


def test_they_belong_to_their_base(base: Path, tmp_path: Path) -> None:
    fit(adapted(base, tmp_path), tmp_path / "run")
    folder, other = tmp_path / "run" / "adapters", save_dual(tmp_path / "other", seed=6)
    with pytest.raises(InputError, match=r"adapters were trained on weights with the SHA-256 .*…, but .*other has"):
        merge_own(other, folder, tmp_path / "merged")
    few = load_file(folder / "adapters.safetensors")
    lost = few.pop("heads.colour.projection.bias")
    save_file(few, folder / "adapters.safetensors")
    message = rf"heads\.colour\.projection\.bias is \({len(lost)},\) in the adapted model, and none among the adapters"
    with pytest.raises(InputError, match=message):
        merge_own(base, folder, tmp_path / "merged")


def test_a_model_of_another_kind_is_its_bundle_alone(base: Path, tmp_path: Path) -> None:
    """What the base knows nothing of would have nowhere to go."""
    run = adapted(base, tmp_path)
    image = dataclasses.replace(run.model.encoders["image"], registers=1)
    model = dataclasses.replace(run.model, encoders={**run.model.encoders, "image": image})
    fit(dataclasses.replace(run, model=model, initial=InitialSpec(str(base), partial=True)), tmp_path / "run")
    assert (tmp_path / "run" / "bundle").is_dir()
    assert not (tmp_path / "run" / "adapters").exists()
