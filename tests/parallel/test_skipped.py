"""Damaged samples are skipped and counted alike on one process and on two."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from launched import assert_alike, fit, rows, start
from tiny import sample, tiny_run, write_shards

from mmformer.config import to_yaml
from mmformer.data.manifest import Manifest
from mmformer.data.shards import RawSample, ShardReader, ShardWriter
from mmformer.training.fit import fit as fit_here


@pytest.mark.slow
def test_two_processes_tell_what_one_does(tmp_path: Path) -> None:
    """They tell each other at updates 3 (a checkpoint), 4 and 6."""
    whole, shards = write_shards(tmp_path / "whole"), tmp_path / "shards"
    with ShardWriter(shards, "tiny", samples_per_shard=8) as writer:
        for split in ("train", "val", "test"):
            reader = ShardReader(Manifest.load(whole), split)
            for place, raw in enumerate(reader[place] for place in range(len(reader))):
                damaged = {"png": sample("x", "red", 0, 0).members["png"][:60]} if place % 5 == 1 else {}
                writer.write(RawSample(raw.key, raw.members | (damaged if split == "train" else {})), split)
    run = tiny_run(shards, data={"on_damage": "skip", "validation": None, "test": None})
    run = dataclasses.replace(
        run,
        trainer=dataclasses.replace(run.trainer, log_every_n_steps=4),
        checkpoint=dataclasses.replace(run.checkpoint, every_steps=3),
    )
    fit_here(run, tmp_path / "one")
    file = tmp_path / "run.yaml"
    file.write_text(to_yaml(run), encoding="utf-8")
    said = fit(file, tmp_path / "two", "--parallel.shard", "2")
    assert said.count("7 training samples were skipped, and others read instead") == 1
    table = (tmp_path / "one" / "skipped.tsv").read_text()
    assert (tmp_path / "two" / "skipped.tsv").read_text() == table
    assert len(table.splitlines()) == 1 + 7
    assert rows(tmp_path / "two")[-1]["data/skipped/damaged_picture"] == 7
    assert_alike(tmp_path / "one", tmp_path / "two")


@pytest.mark.slow
def test_a_missing_shard_is_one_process_s_and_ends_both(tmp_path: Path) -> None:
    """Each lane, and so each process, has two of four shards. Both skip its samples, or both end after one update."""
    shards = write_shards(tmp_path / "shards")
    (shards / "tiny-train-000001.tar").unlink()
    run = tiny_run(shards, data={"on_damage": "skip", "validation": None, "test": None})
    run = dataclasses.replace(run, trainer=dataclasses.replace(run.trainer, log_every_n_steps=2))
    fit_here(run, tmp_path / "one")
    file = tmp_path / "run.yaml"
    file.write_text(to_yaml(run), encoding="utf-8")
    said = fit(file, tmp_path / "two", "--parallel.shard", "2")
    assert said.count("8 training samples were skipped, and others read instead") == 1
    table = (tmp_path / "one" / "skipped.tsv").read_text()
    assert (tmp_path / "two" / "skipped.tsv").read_text() == table
    assert table.count("missing shard") == 8
    for one, two in zip(rows(tmp_path / "one"), rows(tmp_path / "two"), strict=True):
        assert two["train/loss"] == pytest.approx(one["train/loss"], rel=1e-4)
    process = start(file, tmp_path / "few", "--parallel.shard", "2", "--data.most_skipped", "3")
    said, _ = process.communicate(timeout=180)
    assert process.returncode == 2, said
    assert said.count("data.most_skipped is 3") == 1
    assert "Traceback" not in said
