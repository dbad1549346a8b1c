"""Runs with adapters: what moves, what is kept, and all that a run may do besides."""

from __future__ import annotations

import csv
import dataclasses
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from bundles import TRANSFORMS, save_dual
from safetensors.torch import load_file
from tiny import COLOURS, labels, tiny_model, tiny_run, write_shards
from torch import Tensor

import mmformer
from mmformer.adapters.dora import DoRASpec
from mmformer.adapters.ia3 import IA3Spec
from mmformer.adapters.lora import LoRASpec
from mmformer.adapters.whole import WholeSpec
from mmformer.bundle import save_bundle
from mmformer.config import parse, to_data
from mmformer.errors import InputError
from mmformer.objectives.captioning import CaptioningSpec
from mmformer.objectives.classification import ClassificationSpec
from mmformer.objectives.contrastive import ContrastiveSpec
from mmformer.parallel.allocation import folded
from mmformer.parallel.checkpointing import ActivationCheckpointingSpec
from mmformer.parallel.mesh import ParallelSpec
from mmformer.training.average import EMASpec
from mmformer.training.fit import fit
from mmformer.training.initial import InitialSpec
from mmformer.training.optimizers.adamw import AdamWSpec
from mmformer.training.rehearsal import rehearse
from mmformer.training.run import RunSpec
from mmformer.training.task import TrainingTask

ADAPTERS = {"lora": LoRASpec(rank=2, dropout=0.1), "head": WholeSpec(("heads.colour.*",))}
OBJECTIVES = {"contrastive": ContrastiveSpec(), "colour": ClassificationSpec(head="colour")}


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_shards(tmp_path_factory.mktemp("shards"))


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_dual(tmp_path_factory.mktemp("base") / "bundle", seed=5)


def adapted(shards: Path, base: Path, **changes: Any) -> RunSpec:
    defaults = {
        "data": {"labels": labels(shards)},
        "model": tiny_model(dropout=0.1, classes=len(COLOURS)),
        "objectives": OBJECTIVES,
        "initial": InitialSpec(str(base)),
        "adapters": ADAPTERS,
    }
    return tiny_run(shards, **{**defaults, **changes})


def weights(output: Path) -> dict[str, Tensor]:
    return load_file(output / "bundle" / "model.safetensors")


def test_a_run_moves_adapters_and_keeps_them_merged(shards: Path, base: Path, tmp_path: Path) -> None:
    fit(adapted(shards, base), tmp_path / "run")
    ended, given = weights(tmp_path / "run"), load_file(base / "model.safetensors")
    assert ended.keys() == given.keys(), "nothing of adapters is left"
    moved = {name for name in ended if not torch.equal(ended[name], given[name])}
    qkv = {name for name in ended if name.endswith("qkv.weight")}
    assert moved == qkv | {"heads.colour.projection.weight", "heads.colour.projection.bias"}
    for name in qkv:
        changed = (ended[name] - given[name]).split(16)
        assert [int(torch.linalg.matrix_rank(part, atol=1e-6)) for part in changed] == [2, 0, 2], name
    assert mmformer.load(tmp_path / "run" / "bundle").embed(text=["red"]).shape == (1, 12)

    with (tmp_path / "run" / "parameters.tsv").open() as file:
        rows = {row["parameter"]: (row["trains"], row["loaded"]) for row in csv.DictReader(file, delimiter="\t")}
    assert {name for name, row in rows.items() if row == ("yes", "no")} == {name for name in rows if "adapter" in name}
    assert len([name for name in rows if "adapter" in name]) == 3 * 2 * 2
    assert rows["stacks.image.layers.0.mixer.qkv.weight"] == ("no", "yes")
    assert rows["heads.colour.projection.weight"] == ("yes", "yes")
    (state,) = (tmp_path / "run" / "checkpoints").glob("step-*6/state.ckpt")
    optimizer = torch.load(state, weights_only=True)["optimizer_states"][0]
    assert len(optimizer["state"]) == 3 * 2 * 2 + 2, "of nothing else"


@pytest.mark.parametrize("kind", ["plain", "averaged", "DoRA"])
def test_a_resumed_run_ends_as_the_whole_one(kind: str, shards: Path, base: Path, tmp_path: Path) -> None:
    run = adapted(shards, base, ema=EMASpec(0.5) if kind == "averaged" else None)
    if kind == "DoRA":
        run = dataclasses.replace(run, adapters={"dora": DoRASpec(rank=2), "temperature": WholeSpec(("heads.*",))})
    fit(run, tmp_path / "whole")
    shutil.copytree(tmp_path / "whole", tmp_path / "resumed")
    shutil.rmtree(tmp_path / "resumed" / "bundle")
    shutil.rmtree(tmp_path / "resumed" / "checkpoints" / "step-000000006")
    fit(run, tmp_path / "resumed", resume=True)
    one, other = weights(tmp_path / "whole"), weights(tmp_path / "resumed")
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_activations_may_be_computed_again(shards: Path, base: Path, tmp_path: Path) -> None:
    run = adapted(shards, base)
    fit(run, tmp_path / "kept")
    for keep in ("nothing", "products"):
        spec = ParallelSpec(activation_checkpointing=ActivationCheckpointingSpec(keep=keep))  # type: ignore[arg-type]
        fit(dataclasses.replace(run, parallel=spec), tmp_path / keep)
        one, other = weights(tmp_path / "kept"), weights(tmp_path / keep)
        assert all(torch.equal(one[name], other[name]) for name in one), keep


def test_freezing_and_layers_rates_count_for_adapters_too(shards: Path, base: Path, tmp_path: Path) -> None:
    optimizer = AdamWSpec(lr=3e-3, layer_decay=0.5)
    run = adapted(shards, base, optimizer=optimizer, freeze=("stacks.text.*",))
    fit(run, tmp_path / "run")
    ended, given = weights(tmp_path / "run"), load_file(base / "model.safetensors")
    text = [name for name in ended if name.startswith("stacks.text.")]
    assert all(torch.equal(ended[name], given[name]) for name in text)
    with (tmp_path / "run" / "parameters.tsv").open() as file:
        rates = {row["parameter"]: float(row["lr"]) for row in csv.DictReader(file, delimiter="\t")}
    assert rates["stacks.image.layers.0.mixer.qkv.adapter.rows.query.up"] == pytest.approx(3e-3 / 4)
    assert rates["stacks.image.layers.1.mixer.qkv.adapter.rows.query.up"] == pytest.approx(3e-3 / 2)
    assert rates["heads.colour.projection.weight"] == pytest.approx(3e-3)


def test_micro_batches_have_the_gradient_of_the_batch(shards: Path, base: Path, tmp_path: Path) -> None:
    run = adapted(shards, base, model=tiny_model(classes=len(COLOURS)), adapters={"ia3": IA3Spec()})
    fit(run, tmp_path / "one")
    trainer = dataclasses.replace(run.trainer, accumulate_grad_batches=4)
    fit(dataclasses.replace(run, trainer=trainer), tmp_path / "four")
    one, four = weights(tmp_path / "one"), weights(tmp_path / "four")
    assert all(torch.allclose(one[name], four[name], atol=1e-5) for name in one)


@pytest.mark.parametrize("kind", ["LoRA", "DoRA"])
def test_several_processes_begin_without_data(kind: str, shards: Path, base: Path) -> None:
    """And rehearse the run all the same, with a small model of the same shape."""
    run = adapted(shards, base, parallel=ParallelSpec(shard=2))
    if kind == "DoRA":
        run = dataclasses.replace(run, adapters={"dora": DoRASpec(rank=2), "temperature": WholeSpec(("heads.*",))})
    task = TrainingTask(run)
    task.configure_model()
    assert all(value.is_meta for value in task.built.state_dict().values())
    assert any("adapter" in name for name in task.built.state_dict())
    rehearse(run, folded(task.built, run.seed))


def test_what_cannot_train_is_refused(shards: Path, base: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"adapters change weights that were learned before, but initial is absent"):
        adapted(shards, base, initial=None)
    with pytest.raises(InputError, match=r"adapters has the name 'a b'; letters, digits and _"):
        adapted(shards, base, adapters={"a b": LoRASpec()})
    lone = {"head": WholeSpec(("heads.colour.*",))}
    with pytest.raises(InputError, match=r"adapters: objectives\.contrastive reaches no parameter that trains: name m"):
        fit(adapted(shards, base, adapters=lone), tmp_path / "run")


def test_an_adapter_that_nothing_runs_is_refused(shards: Path, base: Path, tmp_path: Path) -> None:
    run = adapted(shards, base, objectives={"colour": ClassificationSpec(head="colour")})
    run = dataclasses.replace(run, adapters={"lora": LoRASpec(("stacks.*", "heads.colour.projection"), None)})
    fit(run, tmp_path / "all")  # pictures and texts are both read, and run
    model = tiny_model(caption=True)
    decoder = dataclasses.replace(model.decoders["caption"], tied=False)
    model = dataclasses.replace(model, decoders={"caption": decoder})
    built = model.build()
    built.initialise(0)
    save_bundle(tmp_path / "bundle", built, TRANSFORMS, "# A tiny model\n")
    lora = {"lora": LoRASpec(("decoders.caption.output", "stacks.caption.*"), None)}
    run = adapted(shards, tmp_path / "bundle", model=model, objectives={"caption": CaptioningSpec()}, adapters=lora)
    with pytest.raises(InputError, match=r"adapters: decoders\.caption\.output is adapted, but nothing that the"):
        fit(run, tmp_path / "run")


def test_adapters_are_read_from_yaml(shards: Path, base: Path) -> None:
    run = adapted(shards, base)
    data = to_data(run)
    assert data["adapters"]["lora"]["class_path"] == "LoRASpec"
    assert parse(RunSpec, data, "here") == run
