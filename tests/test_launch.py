"""The launch scripts: what they would start, what they refuse."""

from __future__ import annotations

import os
import shlex
import subprocess
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
RUN = ("--config", "configs/runs/emoji_quickstart.yaml", "--output", "runs/a b")
CLUSTER = {"IMAGE": "mmformer:1", "CLAIM": "runs", "NODES": "3", "GPUS": "8"}
SHARED = ("--config", 'configs/a "b".yaml', "--output", "/runs/a b")


def call(script: str, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("SLURM")}
    command = [str(ROOT / "launch" / script), *words]
    return subprocess.run(command, cwd=ROOT, env={**clean, **environment}, capture_output=True, text=True, timeout=60)


def test_torchrun_on_one_machine() -> None:
    done = call("torchrun.sh", "--dry-run", *RUN, GPUS="2")
    assert done.returncode == 0, done.stderr
    words = shlex.split(done.stdout)
    assert words[:5] == [".venv/bin/python", "-m", "mmformer.parallel.torchrun", "--grace", "600"]
    assert words[-4:] == ["--output", "runs/a b", "--parallel.shard", "2"], "the run's words stay whole"
    assert "--standalone" in words


def test_a_dry_run_may_be_asked_for_anywhere() -> None:
    first = call("torchrun.sh", "--dry-run", *RUN, GPUS="2").stdout
    assert call("torchrun.sh", *RUN, "--dry-run", GPUS="2").stdout == first
    assert call("slurm.sh", *RUN, "--dry-run").stdout == call("slurm.sh", "--dry-run", *RUN).stdout


def test_torchrun_on_several_machines() -> None:
    done = call("torchrun.sh", "--dry-run", *RUN, GPUS="8", NODES="4", NODE_RANK="3", HEAD="node0:29500")
    words = shlex.split(done.stdout)
    for option, value in (("--nnodes", "4"), ("--node-rank", "3"), ("--rdzv-endpoint", "node0:29500")):
        assert words[words.index(option) + 1] == value
    assert words[-1] == "32"


def test_torchrun_starts_again() -> None:
    words = shlex.split(call("torchrun.sh", "--dry-run", *RUN, GPUS="2", RESTARTS="3").stdout)
    assert words[words.index("--max-restarts") + 1] == "3"
    assert "--continue" in words, "from its last checkpoint"
    assert "--continue" not in shlex.split(call("torchrun.sh", "--dry-run", *RUN, GPUS="2").stdout)


def test_torchrun_takes_the_machines_that_are_there(tmp_path: Path) -> None:
    """How many processes there are is told by torchrun, in the environment, when it starts them."""
    python = tmp_path / "python"
    python.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    python.chmod(0o755)
    environment = {"GPUS": "8", "NODES": "2:4", "HEAD": "node0:29500", "PYTHON": str(python)}
    words = shlex.split(call("torchrun.sh", "--dry-run", *RUN, **environment).stdout)
    assert words[words.index("--nnodes") + 1] == "2:4"
    assert "--node-rank" not in words
    started = words[words.index("--no-python") + 1 :]
    done = subprocess.run(started, env={**os.environ, "WORLD_SIZE": "24"}, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["-m", "mmformer", "fit", *RUN, "--continue", "--parallel.shard", "24"]


def test_slurm_goes_on_where_there_is_a_checkpoint() -> None:
    words = shlex.split(call("slurm.sh", "--dry-run", *RUN, NODES="2", GPUS="4").stdout)
    assert words[0] == "srun"
    assert words[-3:] == ["--continue", "--parallel.shard", "8"]


@pytest.mark.parametrize("said", [("--parallel.shard", "4"), ("--parallel.shard=4",)])
@pytest.mark.parametrize("script", ["torchrun.sh", "slurm.sh", "kubernetes.sh"])
def test_where_shard_is_said_it_is_that(script: str, said: tuple[str, ...]) -> None:
    """Two processes to a group of tensor parallel leave four."""
    words = (*SHARED, "--parallel.tensor", "2", *said)
    done = call(script, "--dry-run", *words, **CLUSTER | {"GPUS": "8", "NODES": "1"})
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("--parallel.shard") == 1


@pytest.mark.parametrize("script", ["torchrun.sh", "slurm.sh"])
def test_the_doctor_goes_where_a_run_would(script: str) -> None:
    words = shlex.split(call(script, "--dry-run", "--doctor", *RUN, GPUS="2").stdout)
    place = words.index("doctor")
    assert words[place - 1] == "mmformer"
    assert tuple(words[place + 1 :]) == RUN


def test_a_pytorch_job() -> None:
    done = call("kubernetes.sh", "--dry-run", *SHARED, **CLUSTER)
    assert done.returncode == 0, done.stderr
    job = yaml.safe_load(done.stdout)
    assert (job["apiVersion"], job["kind"], job["spec"]["nprocPerNode"]) == ("kubeflow.org/v1", "PyTorchJob", "8")
    replicas = job["spec"]["pytorchReplicaSpecs"]
    assert {name: replica["replicas"] for name, replica in replicas.items()} == {"Master": 1, "Worker": 2}
    for replica in replicas.values():
        assert replica["restartPolicy"] == "OnFailure"
        (container,) = replica["template"]["spec"]["containers"]
        assert container["name"] == "pytorch", "the one that the operator looks for"
        assert container["command"][-9:] == ["mmformer", "fit", *SHARED, "--continue", "--parallel.shard", "24"]
        assert container["resources"] == {"limits": {"nvidia.com/gpu": 8}}
        volumes = {volume["name"]: volume for volume in replica["template"]["spec"]["volumes"]}
        mounted = {volumes[mount["name"]]["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
        assert mounted == {"runs": "/runs", "shared-memory": "/dev/shm"}
        assert volumes["runs"]["persistentVolumeClaim"]["claimName"] == "runs"


def test_a_train_job() -> None:
    job = yaml.safe_load(call("kubernetes.sh", "--dry-run", *SHARED, **CLUSTER, KIND="TrainJob", NAME="n").stdout)
    assert (job["apiVersion"], job["kind"]) == ("trainer.kubeflow.org/v1alpha1", "TrainJob")
    assert job["metadata"]["name"] == "n"
    trainer = job["spec"]["trainer"]
    assert (trainer["numNodes"], trainer["numProcPerNode"]) == (3, 8)
    assert trainer["command"][:5] == ["python", "-m", "mmformer.parallel.torchrun", "--grace", "600"]
    assert trainer["command"][-3:] == ["--continue", "--parallel.shard", "24"]


def test_processes_have_time_to_write_a_checkpoint() -> None:
    """Pods have a while more than their processes."""
    words = shlex.split(call("torchrun.sh", "--dry-run", *RUN, GPUS="2", GRACE="900").stdout)
    assert words[words.index("--grace") + 1] == "900"
    job = yaml.safe_load(call("kubernetes.sh", "--dry-run", *SHARED, **CLUSTER, GRACE="900").stdout)
    for replica in job["spec"]["pytorchReplicaSpecs"].values():
        spec = replica["template"]["spec"]
        (container,) = spec["containers"]
        assert container["command"][3:5] == ["--grace", "900"]
        assert spec["terminationGracePeriodSeconds"] == 930


def test_kubernetes_is_told_once(tmp_path: Path) -> None:
    """A manifest that kubectl gets is the one that a dry run prints."""
    kubectl = tmp_path / "kubectl"
    kubectl.write_text('#!/bin/sh\necho "$@"\ncat\n')
    kubectl.chmod(0o755)
    path = f"{tmp_path}{os.pathsep}{os.environ['PATH']}"
    said = call("kubernetes.sh", *SHARED, **CLUSTER, PATH=path, NAMESPACE="team").stdout
    first, _, manifest = said.partition("\n")
    assert first == "--namespace team apply --filename -"
    assert manifest == call("kubernetes.sh", "--dry-run", *SHARED, **CLUSTER).stdout


@pytest.mark.parametrize(
    ("code", "requeued"), [(0, False), (1, False), (2, False), (130, True), (138, True), (143, True)]
)
def test_a_job_that_a_signal_stopped_is_put_back(code: int, requeued: bool, tmp_path: Path) -> None:
    """130 is what fit leaves with then, after its checkpoint; before it trains, signals end it as they end others."""
    for name, line in (("srun", f"echo started; exit {code}"), ("scontrol", 'echo "scontrol $*"')):
        (tmp_path / name).write_text(f"#!/bin/sh\n{line}\n")
        (tmp_path / name).chmod(0o755)
    path = f"{tmp_path}{os.pathsep}{os.environ['PATH']}"
    done = call("slurm.sh", *RUN, PATH=path, SLURM_JOB_ID="77", SLURM_NTASKS="2")
    assert done.returncode == code
    assert done.stdout.splitlines() == ["started"] + ["scontrol requeue 77"] * requeued


@pytest.mark.parametrize(
    ("script", "environment", "words", "message"),
    [
        ("torchrun.sh", {"GPUS": "0"}, RUN, "no GPU was found here: set GPUS"),
        ("torchrun.sh", {"GPUS": "2", "NODES": "2"}, RUN, "NODES is 2: set HEAD"),
        ("torchrun.sh", {"GPUS": "2", "NODES": "many"}, RUN, "NODES is 'many': set it to a number"),
        ("torchrun.sh", {"GPUS": "2", "NODES": "2:4"}, RUN, "NODES is 2:4: set HEAD"),
        ("torchrun.sh", {"GPUS": "2", "GRACE": "1m"}, RUN, "GRACE is '1m': set it to a number of seconds"),
        ("kubernetes.sh", {**CLUSTER, "GRACE": "0"}, SHARED, "GRACE is '0': set it to a number of seconds"),
        ("kubernetes.sh", {**CLUSTER, "IMAGE": ""}, SHARED, "set IMAGE to"),
        ("kubernetes.sh", {**CLUSTER, "CLAIM": ""}, SHARED, "set CLAIM to"),
        ("kubernetes.sh", {**CLUSTER, "KIND": "Job"}, SHARED, "KIND is 'Job': set it to PyTorchJob or TrainJob"),
        ("kubernetes.sh", {**CLUSTER, "GPUS": "x"}, SHARED, "NODES is '3' and GPUS 'x': set numbers"),
        ("kubernetes.sh", CLUSTER, RUN, "--output is 'runs/a b': it must be a folder under /runs"),
        ("slurm.sh", {}, RUN[:2], "--output DIR is required"),
        ("slurm.sh", {}, RUN, "this is for sbatch; --dry-run prints"),
    ],
)
def test_what_is_missing_is_said(
    script: str, environment: dict[str, str], words: tuple[str, ...], message: str
) -> None:
    done = call(script, *words, **environment)
    assert done.returncode == 2
    assert message in done.stderr


@pytest.mark.parametrize("script", ["torchrun.sh", "slurm.sh", "kubernetes.sh"])
def test_help_is_the_head_of_the_script(script: str) -> None:
    done = call(script, "--help")
    assert done.returncode == 0
    assert f"launch/{script} --dry-run" in done.stdout


@pytest.mark.parametrize("script", ["torchrun.sh", "slurm.sh", "kubernetes.sh"])
def test_a_script_that_is_copied_alone_does_the_same(script: str, tmp_path: Path) -> None:
    """As SLURM copies the one that sbatch is given."""
    copied = tmp_path / script
    copied.write_bytes((ROOT / "launch" / script).read_bytes())
    copied.chmod(0o755)
    here = call(script, "--dry-run", *SHARED, **CLUSTER, NODE_RANK="0", HEAD="node0:29500")
    there = call(str(copied), "--dry-run", *SHARED, **CLUSTER, NODE_RANK="0", HEAD="node0:29500")
    assert here.returncode == there.returncode == 0, there.stderr
    assert there.stdout == here.stdout
