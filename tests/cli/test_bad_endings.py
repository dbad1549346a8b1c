"""What is told and goes on: captions that are too long, more workers than shards; and runs that end before their end:
on a disk without room, or by Ctrl-C.
"""

from __future__ import annotations

import builtins
import errno
import io
import os
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from typed import change

from mmformer.cli.main import main
from mmformer.training import checkpoint as checkpoints
from mmformer.training import fit as fitting
from mmformer.training.checkpoint import newest_checkpoint, step_of, whole_checkpoints
from mmformer.training.task import TrainingTask

FIT = ("fit", "--config", "run.yaml", "--data.test", "null")
STEPS = 6


@pytest.fixture(scope="module")
def whole(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, torch.Tensor]:
    """The weights of the run of run.yaml, uninterrupted."""
    from tiny import tiny_run

    output = tmp_path_factory.mktemp("whole") / "run"
    fitting.fit(tiny_run(shards, steps=STEPS, data={"test": None}), output)
    return load_file(output / "bundle" / "model.safetensors")


def assert_goes_on(whole: dict[str, torch.Tensor]) -> None:
    """The run in runs/run is resumed, and ends as the uninterrupted one."""
    assert main([*FIT, "--resume"]) == 0
    found = load_file("runs/run/bundle/model.safetensors")
    assert all(torch.equal(found[name], whole[name]) for name in whole)


def test_captions_that_are_too_long_are_cut_counted_and_told(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    short = ("--model.encoders.text.tokenizer.context_length", "3", "--trainer.max_steps", "2")
    assert main([*FIT, *short]) == 0
    out, err = capsys.readouterr()
    assert "Of 16 texts that were read as text, 16 (100.0 %) were longer than the model's context of 3 tokens" in out
    assert err == ""
    assert Path("runs/run/metrics.csv").read_text().splitlines()[-1].split(",")[1] == "16"
    assert "data/cut/text" in Path("runs/run/metrics.csv").read_text()


def test_more_workers_than_shards_are_no_mistake(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Workers read any position: they need no shards of their own."""
    for output, workers in (("one", "0"), ("many", "5")):
        words = ("--output", output, "--data.workers", workers, "--trainer.max_steps", "2")
        assert main([*FIT, *words]) == 0
    assert Path("one/metrics.csv").read_text() == Path("many/metrics.csv").read_text()


# ------------------------------------------------------------------------------------------------- no room


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """Inside, writing fails where a file would become larger."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_checkpoint_that_cannot_be_written_leaves_the_one_before(
    file: Path, whole: dict[str, torch.Tensor], capfd: pytest.CaptureFixture[str]
) -> None:
    change(file, "checkpoint.every_steps", 2)
    change(file, "trainer.max_steps", STEPS)
    write = checkpoints.write_state

    def crowded(state: dict[str, Any], path: Path) -> None:
        with largest_file(20_000 if state["global_step"] == 4 else resource.RLIM_INFINITY):
            write(state, path)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoints, "write_state", crowded)
        assert main(FIT) == 2
    err = capfd.readouterr().err
    assert err.startswith("mmformer: runs/run: File too large. Raise the limit")
    assert err.count("\n") == 1
    assert [path.name for path in Path("runs/run/checkpoints").iterdir()] == ["step-000000002"]
    assert not Path("runs/run/bundle").exists()
    assert_goes_on(whole)


@contextmanager
def read_only(folder: Path) -> Iterator[None]:
    """Inside, nothing in a folder can be made, written or removed, as where its disk turned out to be broken."""
    root = os.path.realpath(folder)

    def guard(owner: Any, name: str, writes: Callable[..., bool]) -> None:
        does = getattr(owner, name)

        def guarded(path: Any, *words: Any, dir_fd: int | None = None, **named: Any) -> Any:
            if not isinstance(path, int) and writes(*words, **named):
                place = Path("." if dir_fd is None else f"/proc/self/fd/{dir_fd}", os.fsdecode(path))
                if os.path.realpath(place).startswith(root):
                    raise OSError(errno.EROFS, os.strerror(errno.EROFS), os.fspath(path))
            return does(path, *words, **({} if dir_fd is None else {"dir_fd": dir_fd}), **named)

        patch.setattr(owner, name, guarded)

    with pytest.MonkeyPatch.context() as patch:
        for name in ("mkdir", "rename", "replace", "unlink", "remove", "rmdir", "utime", "chmod", "truncate"):
            guard(os, name, lambda *_, **__: True)
        guard(os, "open", lambda flags, *_, **__: bool(flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)))
        for owner in (io, builtins):
            guard(owner, "open", lambda mode="r", *_, **__: not set("wax+").isdisjoint(mode))
        yield


def test_a_disk_that_becomes_read_only_ends_a_run_which_goes_on_later(
    file: Path, whole: dict[str, torch.Tensor], capfd: pytest.CaptureFixture[str]
) -> None:
    """In the middle of a checkpoint, nothing of which can be removed any more."""
    change(file, "checkpoint.every_steps", 2)
    change(file, "trainer.max_steps", STEPS)
    write = checkpoints.write_state
    with ExitStack() as broken:

        def breaks(state: dict[str, Any], path: Path) -> None:
            if state["global_step"] == 4:
                broken.enter_context(read_only(Path("runs")))
            write(state, path)

        broken.enter_context(pytest.MonkeyPatch.context()).setattr(checkpoints, "write_state", breaks)
        assert main(FIT) == 2
        assert main([*FIT, "--resume"]) == 2
        assert main([*FIT, "--output", "runs/other"]) == 2
        newest = newest_checkpoint(Path("runs/run")).newest
        assert newest is not None and step_of(newest) == 2, "what is there is read"
    errors = capfd.readouterr().err.splitlines(keepends=True)
    assert len(errors) == 3, errors
    for line in errors:
        assert line.startswith("mmformer: runs/") and "Read-only file system" in line and "ame another" in line, errors
    assert not Path("runs/run/bundle").exists() and not Path("runs/other").exists()
    assert_goes_on(whole)
    assert not list(Path("runs").rglob("*.partial"))


@pytest.mark.parametrize(
    "words",
    [
        "vocabulary train SHARDS --fields names.en --size 300 --output v.model",
        "embed BUNDLE --images shots --output e.npz",
        "evaluate BUNDLE --data SHARDS --data.text json:names.en --output e",
        "shards preview SHARDS --output p.png",
        "curate captions SHARDS out --text json:names.en --words 1:",
    ],
    ids=lambda words: " ".join(words.split()[:2]),
)
def test_no_command_leaves_half_of_what_it_writes(
    words: str, shards: Path, dual: Path, shots: list[str], loaded_once: None, capsys: pytest.CaptureFixture[str]
) -> None:
    places = {"SHARDS": str(shards), "BUNDLE": str(dual)}
    before = sorted(Path().rglob("*"))
    with largest_file(100):
        assert main([places.get(word, word) for word in words.split()]) == 2
    err = capsys.readouterr().err
    assert err.startswith("mmformer: ")
    assert "File too large" in err
    assert err.count("\n") == 1
    assert sorted(Path().rglob("*")) == before


def test_a_build_that_had_no_room_goes_on(shots: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    Path("captions.csv").write_text("image,caption\na.png,one\nc.bmp,two\n")
    build = ("shards", "build", "--images", "shots", "--captions", "captions.csv", "out", "--workers", "1")
    with largest_file(100):
        assert main(build) == 2
    how, why = capsys.readouterr().err.splitlines()
    assert how == "mmformer: out is not built. The same command with --resume goes on."
    assert why.startswith("mmformer: File too large. Raise the limit")
    assert not Path("out").exists()
    assert main([*build, "--resume"]) == 0
    assert main(["shards", "check", "out", "--workers", "1"]) == 0
    assert not list(Path().glob("*.partial"))


def has_room_of_its_own() -> bool:
    """Whether this user may mount a small disk, in a namespace of its own."""
    if shutil.which("unshare") is None:
        return False
    with_disk = ["unshare", "-rm", "sh", "-c", "mount -t tmpfs -o size=64k tmpfs /mnt"]
    return subprocess.run(with_disk, capture_output=True, check=False).returncode == 0


@pytest.mark.skipif(not has_room_of_its_own(), reason="a disk can be mounted by root alone here")
@pytest.mark.parametrize(
    ("size", "named", "kept"),
    [
        pytest.param("900k", "disk/run", 0, marks=pytest.mark.slow, id="no room for a checkpoint"),
        pytest.param("2000k", "disk/run/bundle.partial/model.safetensors", 1, id="no room for the bundle"),
    ],
)
def test_a_full_disk_is_told_and_nothing_half_written_is_left(size: str, named: str, kept: int, file: Path) -> None:
    """A real one."""
    Path("disk").mkdir()
    Path("spare").mkdir()
    command = [sys.executable, "-m", "mmformer", *FIT, "--output", "disk/run", "--trainer.max_steps", "2"]
    mounted = (
        f'mount -t tmpfs -o size={size} tmpfs disk && "$@"; echo "code $?"; find disk -name "step-*" -o -name "*undle*"'
    )
    done = subprocess.run(
        ["unshare", "-rm", "sh", "-c", mounted, "sh", *command],
        env={**os.environ, "OMP_NUM_THREADS": "1", "TMPDIR": str(Path("spare").absolute())},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.stderr == f"mmformer: {named}: No space left on device. Make room there, or write elsewhere.\n"
    code, *left = done.stdout.split("\n")[:-1]
    assert code == "code 2"
    assert left == ["disk/run/checkpoints/step-000000002"] * kept
    assert not [path for path in Path("spare").rglob("*") if path.is_file()]


# ------------------------------------------------------------------------------------------------- Ctrl-C


def test_ctrl_c_ends_with_a_checkpoint_to_go_on_from(
    file: Path, whole: dict[str, torch.Tensor], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    change(file, "checkpoint.every_steps", None)
    step = TrainingTask.training_step

    def interrupted(self: TrainingTask, batch: Any, batch_idx: int) -> None:
        if self.global_step == 3:
            os.kill(os.getpid(), signal.SIGINT)
        step(self, batch, batch_idx)

    with monkeypatch.context() as patch:
        patch.setattr(TrainingTask, "training_step", interrupted)
        assert main(FIT) == 130
    out, err = capsys.readouterr()
    assert err == ("\nStopping after this update, with a checkpoint. Once more: at once.\nmmformer: interrupted.\n")
    assert "fit --output runs/run --resume goes on from the last checkpoint" in out
    assert [path.parent.name for path in whole_checkpoints(Path("runs/run"))] == ["step-000000004"]
    assert not Path("runs/run/bundle").exists()
    assert_goes_on(whole)


def test_ctrl_c_before_training_leaves_nothing(
    file: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fitting, "rehearse", lambda *_: os.kill(os.getpid(), signal.SIGINT))
    # Where the tests run in the background of a shell, they inherit that it is ignored.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        assert main(FIT) == 130
    finally:
        signal.signal(signal.SIGINT, before)
    assert capsys.readouterr().err == "mmformer: interrupted.\n"
    assert not Path("runs").exists()
