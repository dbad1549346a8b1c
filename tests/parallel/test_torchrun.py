"""A run that torchrun starts, and starts again where a process is lost."""

from __future__ import annotations

import dataclasses
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from launched import ROOT, fit, rows
from safetensors.torch import load_file
from tiny import tiny_run, write_shards

from mmformer.config import to_yaml
from mmformer.training.run import CheckpointSpec

SCRIPT = Path(__file__).with_name("faulty.py")


@pytest.mark.slow
def test_two_machines_of_which_one_loses_its_process_go_on(tmp_path: Path) -> None:
    """Each has an agent of torchrun, which starts a process. One is killed, and leaves a checkpoint that is damaged,
    which its size does not show. Started again, all go on from the one before, and come to the same bits.
    """
    run = tiny_run(write_shards(tmp_path / "shards"), dropout=0.1, steps=8, data={"test": None})
    run = dataclasses.replace(run, checkpoint=CheckpointSpec(2, keep=9))
    file = tmp_path / "run.yaml"
    file.write_text(to_yaml(run), encoding="utf-8")
    fit(file, tmp_path / "whole", "--parallel.shard", "2")

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        meeting = f"127.0.0.1:{free.getsockname()[1]}"
    where = ["--nnodes", "2", "--nproc-per-node", "1", "--max-restarts", "1", "--local-addr", "127.0.0.1"]
    where += ["--rdzv-backend", "c10d", "--rdzv-endpoint", meeting, "--rdzv-id", "tried", str(SCRIPT)]
    words = ["fit", "--config", str(file), "--output", str(tmp_path / "run"), "--parallel.shard", "2", "--continue"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    environment |= {"FAULT": "damage:1:6", "FAULT_FILE": str(tmp_path / "fault")}
    agents = [
        subprocess.Popen(
            [sys.executable, "-m", "torch.distributed.run", *where, *words],
            env=environment,
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for _ in range(2)
    ]
    said = [agent.communicate(timeout=300)[0] for agent in agents]
    assert [agent.returncode for agent in agents] == [0, 0], said
    assert (tmp_path / "fault").exists(), "one was killed"
    told = "".join(said)
    assert told.count("step-000000004 is damaged: state.ckpt/__0_0.distcp is not what was written") == 1, told
    assert rows(tmp_path / "run") == rows(tmp_path / "whole")
    one, other = (load_file(tmp_path / name / "bundle" / "model.safetensors") for name in ("run", "whole"))
    assert all(torch.equal(one[name], other[name]) for name in one), "to the bit"
