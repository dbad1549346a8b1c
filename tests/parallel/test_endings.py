"""How a run ends that does not reach its end: with a checkpoint, the right exit code, and the reason, said once."""

from __future__ import annotations

import dataclasses
import signal
import time
from pathlib import Path

import pytest
from launched import everything, fit, rows, start
from tiny import write_shards

from mmformer.config import to_yaml
from mmformer.data.dataset import SampleDataset
from mmformer.data.manifest import Manifest
from mmformer.data.shards import RawSample, ShardReader, ShardWriter
from mmformer.training.run import RunSpec


def written(run: RunSpec, file: Path) -> Path:
    file.write_text(to_yaml(run), encoding="utf-8")
    return file


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_all_processes_with_a_checkpoint(number: signal.Signals, processes: int, tmp_path: Path) -> None:
    """Of two processes the first alone is signalled: both end, after the same update."""
    shards = write_shards(tmp_path / "shards")
    run = everything(shards)
    long = dataclasses.replace(
        run,
        trainer=dataclasses.replace(run.trainer, max_steps=100_000),
        checkpoint=dataclasses.replace(run.checkpoint, every_steps=None),
        evaluation=dataclasses.replace(run.evaluation, every_steps=None),
    )
    output, file = tmp_path / "run", written(long, tmp_path / "run.yaml")
    process = start(file, output, "--parallel.shard", str(processes))
    deadline = time.monotonic() + 120
    while not (output / "metrics.csv").exists() or not rows(output):
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.05)
    process.send_signal(number)
    said, _ = process.communicate(timeout=60)
    assert process.returncode == 130, said
    assert said.count("Interrupted. ") == 1
    assert "--resume goes on from the last checkpoint" in said
    assert "defect" not in said
    (checkpoint,) = (output / "checkpoints").iterdir()
    step = int(checkpoint.name.removeprefix("step-"))
    assert not (output / "bundle").exists()
    fit(file, output, "--parallel.shard", str(processes), "--trainer.max_steps", str(step + 2), "--resume")
    assert rows(output)[-1]["step"] == step + 2


@pytest.mark.slow
def test_an_error_in_the_second_process_is_the_runs(tmp_path: Path) -> None:
    """A picture that is damaged lies in the second process's lanes alone, past what is read before a run begins."""
    shards, run = tmp_path / "shards", everything(write_shards(tmp_path / "whole"))
    data = SampleDataset(run.data, "train", run.data.order, run.seed, training=True)
    broken = data[27].key  # an odd position
    with ShardWriter(shards, "tiny", samples_per_shard=8) as writer:
        for split in ("train", "val", "test"):
            reader = ShardReader(Manifest.load(run.data.source), split)
            for place in range(len(reader)):
                raw = reader[place]
                damaged = {"png": raw.members["png"][:60]} if raw.key == broken else {}
                writer.write(RawSample(raw.key, raw.members | damaged), split)
    damaged_run = dataclasses.replace(run, data=dataclasses.replace(run.data, source=str(shards)))
    file = written(damaged_run, tmp_path / "run.yaml")
    process = start(file, tmp_path / "run", "--parallel.shard", "2")
    said, _ = process.communicate(timeout=120)
    assert process.returncode == 2, said
    assert said.count("mmformer: ") == 1, said
    assert f"mmformer: {broken}.png: not a whole PNG" in said
