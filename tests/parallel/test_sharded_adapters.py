"""Adapters over two processes: what they train, keep and go on from is what one process does."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import pytest
import torch
from bundles import TRANSFORMS
from launched import assert_alike, everything, fit
from safetensors.torch import load_file
from tiny import write_shards

from mmformer.adapters.dora import DoRASpec
from mmformer.adapters.ia3 import IA3Spec
from mmformer.adapters.lora import LoRASpec
from mmformer.adapters.whole import WholeSpec
from mmformer.bundle import save_bundle
from mmformer.config import to_yaml
from mmformer.surgery.merging import merge_own
from mmformer.training.initial import InitialSpec


@pytest.mark.slow
def test_two_processes_train_the_adapters_that_one_trains(tmp_path: Path) -> None:
    run = everything(write_shards(tmp_path / "shards"))
    model = run.model.build()
    model.initialise(3)
    save_bundle(tmp_path / "base", model, TRANSFORMS, "# A tiny model\n")
    run = dataclasses.replace(
        run,
        initial=InitialSpec(str(tmp_path / "base")),
        adapters={
            "lora": LoRASpec(("stacks.image.*",), rank=3),
            "dora": DoRASpec(("stacks.text.*", "encoders.text.*"), None, rank=3),
            "ia3": IA3Spec(("stacks.writer.*",)),
            "heads": WholeSpec(("heads.*", "stacks.*.norm*")),
        },
    )
    file = tmp_path / "run.yaml"
    file.write_text(to_yaml(run), encoding="utf-8")
    fit(file, tmp_path / "one")
    fit(file, tmp_path / "two", "--parallel.shard", "2")
    assert_alike(tmp_path / "one", tmp_path / "two")
    before, after = load_file(tmp_path / "base/model.safetensors"), load_file(tmp_path / "two/bundle/model.safetensors")
    assert before.keys() == after.keys()
    moved = {name for name in after if not torch.equal(after[name], before[name])}
    assert {name for name in moved if name.endswith("mixer.qkv.weight")} == {
        name for name in after if name.endswith("mixer.qkv.weight")
    }
    assert not any("tokenizer" in name for name in moved)
    merge_own(tmp_path / "base", tmp_path / "two" / "adapters", tmp_path / "merged")
    merged = load_file(tmp_path / "merged" / "model.safetensors")
    assert all(torch.equal(merged[name], after[name]) for name in after)

    shutil.copytree(tmp_path / "two", tmp_path / "resumed")
    shutil.rmtree(tmp_path / "resumed" / "bundle")
    shutil.rmtree(tmp_path / "resumed" / "checkpoints" / "step-000000006")
    fit(file, tmp_path / "resumed", "--parallel.shard", "2", "--resume")
    again = load_file(tmp_path / "resumed/bundle/model.safetensors")
    assert all(torch.equal(again[name], after[name]) for name in after)
