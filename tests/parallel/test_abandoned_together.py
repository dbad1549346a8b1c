"""Several processes, one of which is told to end while they measure, leave the evaluation at the same batch."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from pathlib import Path

import pytest
from launched import ROOT, everything, fit, rows
from safetensors.torch import load_file
from tiny import write_shards

from mmformer.config import to_yaml
from mmformer.training.checkpoint import whole_checkpoints
from mmformer.training.run import CheckpointSpec

SIGNALLED = """
import os, signal, sys
from mmformer.cli.main import main
from mmformer.evaluation.metric import Metric
from mmformer.training.evaluate import Evaluation

measure, learn = Evaluation._measure, Metric.learn

def begins(self, trainer, task):
    def tells(*given):
        if trainer.global_rank == 1 and trainer.global_step == STEP:
            os.kill(os.getpid(), signal.SIGTERM)
        learn(*given)
    Metric.learn = tells
    measure(self, trainer, task)

Evaluation._measure = begins
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.slow
@pytest.mark.parametrize("step", [3, 5])
def test_both_leave_it_and_measure_when_they_are_resumed(step: int, tmp_path: Path) -> None:
    """After the third update, at which they do not ask each other otherwise, or the last one, after which there is
    nothing else to do. The second process alone is signalled.
    """
    run = everything(write_shards(tmp_path / "shards"))
    checkpoint = CheckpointSpec(every_steps=100, best="retrieval/image_to_text/R@1")
    trainer = dataclasses.replace(run.trainer, max_steps=5)
    file, script = tmp_path / "run.yaml", tmp_path / "signalled.py"
    file.write_text(to_yaml(dataclasses.replace(run, checkpoint=checkpoint, trainer=trainer)), encoding="utf-8")
    script.write_text(SIGNALLED.replace("STEP", str(step)))
    whole, output = tmp_path / "whole", tmp_path / "run"
    fit(file, whole, "--parallel.shard", "2")

    words = ["fit", "--config", str(file), "--output", str(output), "--parallel.shard", "2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, str(script), *words], env=environment, cwd=ROOT, capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 130, done.stderr
    assert [state.parent.name for state in whole_checkpoints(output)] == [f"step-{step:09d}"]
    assert not (output / "bundle").exists()
    assert (output / "best").exists() == (step == 5), "of the third update"
    assert "validation/retrieval/image_to_text/R@1" not in rows(output)[-1]
    fit(file, output, "--parallel.shard", "2", "--resume")
    assert rows(output) == rows(whole)
    for bundle in ("bundle", "best"):
        one, other = (load_file(folder / bundle / "model.safetensors") for folder in (whole, output))
        assert all((one[name] == other[name]).all() for name in one), bundle
