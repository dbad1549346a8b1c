"""What a resumed run reads is what it would have read: where the files were changed beneath it, it does not go on."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import pytest
from tiny import sample, tiny_run, write_shards

from mmformer.data.folders import FolderSamples
from mmformer.data.manifest import Manifest
from mmformer.data.samples import JoinedSamples
from mmformer.data.shards import RawSample, ShardReader, ShardWriter
from mmformer.errors import InputError
from mmformer.tokenizers.vocabulary import Vocabulary
from mmformer.training.checkpoint import whole_checkpoints
from mmformer.training.fit import fit
from mmformer.training.run import CheckpointSpec, RunSpec


def reader(folder: Path) -> ShardReader:
    return ShardReader(Manifest.load(folder), "train")


def rewrite(folder: Path, per_shard: int = 8, mended: bool = False) -> None:
    """The same samples; in shards of another size, or with another picture in one of them."""
    readers = {split: ShardReader(Manifest.load(folder), split) for split in ("train", "val", "test")}
    raws = {split: [samples[place] for place in range(len(samples))] for split, samples in readers.items()}
    if mended:
        first = raws["train"][0]
        raws["train"][0] = RawSample(first.key, first.members | {"png": sample("", "red", 0, 0).members["png"]})
    with ShardWriter(folder, "tiny", samples_per_shard=per_shard, overwrite=True) as writer:
        for split, several in raws.items():
            for raw in several:
                writer.write(raw, split)


def test_a_digest_is_of_names_and_counts(tmp_path: Path) -> None:
    shards = write_shards(tmp_path / "shards")
    before = reader(shards).digest
    assert reader(shutil.copytree(shards, tmp_path / "copy")).digest == before
    rewrite(shards, mended=True)
    assert reader(shards).digest == before, "damaged samples may be mended"
    rewrite(shards, per_shard=4)
    assert reader(shards).digest != before
    one, two = reader(shards), reader(tmp_path / "copy")
    assert JoinedSamples([one, two]).digest != JoinedSamples([two, one]).digest


def test_of_a_tree_each_file_counts(tmp_path: Path) -> None:
    for name in ("a/1.png", "a/2.png", "b/1.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    before = FolderSamples(tmp_path, "train").digest
    assert FolderSamples(tmp_path, "train").digest == before
    (tmp_path / "a/2.png").rename(tmp_path / "b/2.png")
    assert FolderSamples(tmp_path, "train").digest != before


def test_a_run_goes_on_with_mended_samples_and_not_with_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shards, output = write_shards(tmp_path / "shards"), tmp_path / "run"
    run = tiny_run(shards, steps=1, data={"test": None}, checkpoint=CheckpointSpec(every_steps=1, keep=9))
    fit(run, output)
    rewrite(shards, mended=True)
    fit(longer(run, 2), output, resume=True)
    rewrite(shards, per_shard=4)
    with pytest.raises(InputError, match=r"data\.source: .*shards has other samples, or has them in another order"):
        fit(longer(run, 3), output, resume=True)
    rewrite(shards)
    monkeypatch.setattr(Vocabulary, "fingerprint", property(lambda self: "another"))
    with pytest.raises(InputError, match=r"data\.text is cut into ids by another vocabulary .*emoji-12\.model"):
        fit(longer(run, 3), output, resume=True)
    assert [state.parent.name for state in whole_checkpoints(output)] == ["step-000000001", "step-000000002"]


def longer(run: RunSpec, steps: int) -> RunSpec:
    return dataclasses.replace(run, trainer=dataclasses.replace(run.trainer, max_steps=steps))
