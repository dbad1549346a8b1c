"""Checkpoints: what is kept, what tells a whole one from a damaged one, and the thread that writes them."""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tiny import tiny_run, write_shards
from torch import Tensor

from mmformer.errors import InputError
from mmformer.training import checkpoint, sealing
from mmformer.training.background import Background, HostCopy
from mmformer.training.checkpoint import newest_checkpoint, whole_checkpoints
from mmformer.training.fit import fit
from mmformer.training.output import check_resumed
from mmformer.training.run import CheckpointSpec, RunSpec
from mmformer.training.sealing import SEAL, Content, content_of, damage, seal
from mmformer.training.task import TrainingTask
from mmformer.training.writing_state import write_state


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_shards(tmp_path_factory.mktemp("shards"))


@pytest.fixture(scope="module")
def run(shards: Path) -> RunSpec:
    run = tiny_run(shards, dropout=0.2, steps=6, data={"test": None})
    return dataclasses.replace(run, checkpoint=CheckpointSpec(every_steps=2, keep=3))


@pytest.fixture(scope="module")
def finished(run: RunSpec, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("runs") / "done"
    fit(run, output)
    return output


@pytest.fixture
def output(finished: Path, tmp_path: Path) -> Path:
    """A copy that may be damaged."""
    return shutil.copytree(finished, tmp_path / "run")


def names(output: Path) -> list[str]:
    return sorted(path.name for path in (output / "checkpoints").iterdir())


# ------------------------------------------------------------------------------------------------- the seal


def write(folder: Path, **files: bytes) -> Path:
    folder.mkdir()
    for name, data in files.items():
        (folder / name).write_bytes(data)
    seal(folder, {name: content_of(folder / name) for name in files})
    return folder


def test_a_seal_names_sizes_and_hashes(tmp_path: Path) -> None:
    folder = write(tmp_path / "a", state=b"abc")
    assert json.loads((folder / SEAL).read_text()) == {
        "files": {"state": {"size": 3, "sha256": "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"}}
    }
    assert damage(folder) is None


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda folder: (folder / SEAL).unlink(), "whole.json, which is written last, is not there"),
        (lambda folder: (folder / SEAL).write_bytes(b"\xff{"), "whole.json is not what was written"),
        (lambda folder: (folder / SEAL).write_text('{"files": [1]}'), "whole.json is not what was written"),
        (lambda folder: (folder / SEAL).write_text('{"files": {}}'), "whole.json names no file"),
        (lambda folder: (folder / "two").unlink(), "two is not there"),
        (lambda folder: (folder / "two").write_bytes(b"12"), "two has 2 bytes, but 3 were written"),
        (lambda folder: (folder / "two").write_bytes(b"456"), "two is not what was written: its sha256 is another"),
    ],
)
def test_what_is_not_as_it_was_written_is_said(spoil: Callable[[Path], None], said: str, tmp_path: Path) -> None:
    folder = write(tmp_path / "a", one=b"12345", two=b"123")
    spoil(folder)
    assert damage(folder) == said


def test_files_are_read_at_once_and_not_for_their_sizes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of two waits for the other to be read."""
    folder = write(tmp_path / "a", one=b"12345", two=b"123")
    (folder / "two").write_bytes(b"456")
    both = threading.Barrier(2, timeout=60)

    def meets(path: Path) -> Content:
        both.wait()
        return content_of(path)

    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    monkeypatch.setattr(sealing, "content_of", meets)
    assert damage(folder) == "two is not what was written: its sha256 is another"
    assert damage(folder, by_size=True) is None, "or one alone would wait here"
    (folder / "one").write_bytes(b"1")
    assert damage(folder, by_size=True) == "one has 1 bytes, but 5 were written"


@pytest.mark.parametrize("place", [0, 100, 5000, -1])
def test_a_flipped_bit_anywhere_is_found(place: int, output: Path) -> None:
    state = whole_checkpoints(output)[-1]
    data = bytearray(state.read_bytes())
    data[place] ^= 1
    state.write_bytes(data)
    found = newest_checkpoint(output)
    assert found.damaged == {state: "state.ckpt is not what was written: its sha256 is another"}
    assert found.newest == whole_checkpoints(output)[-2]


# ------------------------------------------------------------------------------------------------- resuming


def test_a_damaged_checkpoint_is_named_and_the_newest_whole_one_taken(
    run: RunSpec, finished: Path, output: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It ends as it would have, for the damaged one is trained again."""
    last = whole_checkpoints(output)[-1]
    last.write_bytes(last.read_bytes()[:1000])
    shutil.rmtree(output / "bundle")
    size = (finished / last.relative_to(output)).stat().st_size
    fit(run, output, resume=True)
    assert capsys.readouterr().err == (
        f"mmformer: {last.parent} is damaged: state.ckpt has 1,000 bytes, but {size:,} were written. It is set aside "
        f"as step-000000006.damaged, and the run goes on from step-000000004.\n"
    )
    assert names(output) == ["step-000000002", "step-000000004", "step-000000006", "step-000000006.damaged"]
    one, other = (load_file(folder / "bundle" / "model.safetensors") for folder in (finished, output))
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert damage(last.parent) is None


def test_where_all_are_damaged_all_are_named(run: RunSpec, output: Path) -> None:
    for state in whole_checkpoints(output):
        state.write_bytes(b"")
    before = names(output)
    with pytest.raises(InputError, match=r"no whole checkpoint.*step-000000006 is damaged.*step-000000002 is damaged"):
        fit(run, output, resume=True)
    assert names(output) == before


def test_a_folder_without_a_seal_is_none(output: Path) -> None:
    (whole_checkpoints(output)[-1].parent / SEAL).unlink()
    assert [state.parent.name for state in whole_checkpoints(output)] == ["step-000000002", "step-000000004"]


def failing(
    monkeypatch: pytest.MonkeyPatch, method: str, name: str, number: int, times: int | None = None
) -> list[Path]:
    """Have a method of paths fail for those of a name, so many times (None: always); those it failed for."""
    monkeypatch.setattr(sealing, "_PAUSE", 0.0)
    real, failed = getattr(Path, method), []

    def fails(self: Path, *args: Any, **named: Any) -> Any:
        if self.name == name and (times is None or len(failed) < times):
            failed.append(self)
            raise OSError(number, os.strerror(number))
        return real(self, *args, **named)

    monkeypatch.setattr(Path, method, fails)
    return failed


@pytest.mark.parametrize("number", [errno.ESTALE, errno.EIO, errno.EMFILE, errno.EACCES])
@pytest.mark.parametrize(("method", "name"), [("open", "state.ckpt"), ("read_bytes", SEAL), ("iterdir", "checkpoints")])
def test_what_cannot_be_read_for_a_moment_is_not_damaged(
    method: str, name: str, number: int, output: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    last = whole_checkpoints(output)[-1]
    failed = failing(monkeypatch, method, name, number, times=2)
    assert newest_checkpoint(output) == (last, {})
    assert len(failed) == 2


@pytest.mark.parametrize(("method", "name"), [("open", "state.ckpt"), ("read_bytes", SEAL), ("iterdir", "checkpoints")])
def test_what_cannot_be_read_at_all_is_told_and_stays(
    method: str, name: str, run: RunSpec, output: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = names(output)
    monkeypatch.setattr(sealing, "PATIENCE", 0.0)
    with monkeypatch.context() as patch:
        failing(patch, method, name, errno.EIO)
        with pytest.raises(InputError, match=f"{name}: cannot be read: Input/output error: nothing was changed"):
            check_resumed(run, output)
    assert names(output) == before


def test_what_the_killed_left_is_removed_before_it_goes_on(run: RunSpec, output: Path) -> None:
    """Beside it, the disk may have no room for the next."""
    shutil.rmtree(output / "checkpoints" / "step-000000006")
    for name in ("step-000000005.partial", "step-000000003.old", "step-000000006.partial"):
        (output / "checkpoints" / name).mkdir()
    (output / "checkpoints" / "step-000000002.damaged").mkdir()
    assert check_resumed(run, output) == whole_checkpoints(output)[-1]
    assert names(output) == ["step-000000002", "step-000000002.damaged", "step-000000004"]


def test_a_run_with_no_checkpoint_left_to_write_removes_what_is_not_to_be_kept(run: RunSpec, output: Path) -> None:
    """It was killed when it had written its last one, and had not removed the one before yet."""
    kept = dataclasses.replace(run, checkpoint=CheckpointSpec(every_steps=2, keep=1))
    fit(kept, output, resume=True)
    assert names(output) == ["step-000000006"]


def test_some_stay_for_good(run: RunSpec, tmp_path: Path) -> None:
    run = dataclasses.replace(run, checkpoint=CheckpointSpec(every_steps=1, keep=1, keep_every=2))
    fit(dataclasses.replace(run, trainer=dataclasses.replace(run.trainer, max_steps=5)), tmp_path / "run")
    assert names(tmp_path / "run") == ["step-000000002", "step-000000004", "step-000000005"]


@pytest.mark.parametrize(("every_steps", "keep_every"), [(2, 3), (2, 0), (None, 4)])
def test_those_that_stay_have_to_be_written(every_steps: int | None, keep_every: int) -> None:
    with pytest.raises(InputError, match="keep_every"):
        CheckpointSpec(every_steps, every_minutes=1.0, keep_every=keep_every)


# ------------------------------------------------------------------------------------------------- when


@pytest.mark.parametrize("jump", [0.0, -1e9, 1e9])
def test_every_so_many_minutes_by_a_clock_that_nobody_sets(
    jump: float, run: RunSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An update takes 40 seconds; a checkpoint a minute, and one at the end. The time of day is set in between."""
    now = [100.0]
    step, day = TrainingTask.training_step, time.time

    def slow(self: TrainingTask, *args: Any) -> None:
        now[0] += 40.0
        if self.global_step == 2:
            monkeypatch.setattr(time, "time", lambda: day() + jump)
        step(self, *args)

    monkeypatch.setattr(checkpoint, "monotonic", lambda: now[0])
    monkeypatch.setattr(TrainingTask, "training_step", slow)
    run = dataclasses.replace(run, checkpoint=CheckpointSpec(every_minutes=1.0, keep=9))
    run = dataclasses.replace(run, trainer=dataclasses.replace(run.trainer, max_steps=7))
    fit(run, tmp_path / "run")
    assert [checkpoint.step_of(state) for state in whole_checkpoints(tmp_path / "run")] == [2, 4, 6, 7]


def test_minutes_count_from_the_last_checkpoint_of_any_kind(
    run: RunSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now, step = [0.0], TrainingTask.training_step

    def slow(self: TrainingTask, *args: Any) -> None:
        now[0] += 25.0
        step(self, *args)

    monkeypatch.setattr(checkpoint, "monotonic", lambda: now[0])
    monkeypatch.setattr(TrainingTask, "training_step", slow)
    fit(dataclasses.replace(run, checkpoint=CheckpointSpec(4, every_minutes=1.0, keep=9)), tmp_path / "run")
    assert [checkpoint.step_of(state) for state in whole_checkpoints(tmp_path / "run")] == [3, 4, 6]


# ------------------------------------------------------------------------------------------------- the thread


def test_training_goes_on_while_a_checkpoint_is_written(
    run: RunSpec, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first cannot be written to its end before another update is done; what it holds is of its own update."""
    moved = threading.Event()
    step = TrainingTask.training_step

    def tells(self: TrainingTask, *args: Any) -> None:
        step(self, *args)
        if self.global_step == 3:
            moved.set()

    def waits(state: dict[str, Any], path: Path) -> None:
        assert moved.wait(60)
        write_state(state, path)

    monkeypatch.setattr(TrainingTask, "training_step", tells)
    monkeypatch.setattr(checkpoint, "write_state", waits)
    fit(run, tmp_path / "run")
    one, other = (whole_checkpoints(folder)[0] for folder in (finished, tmp_path / "run"))
    assert_equal(torch.load(one, weights_only=True), torch.load(other, weights_only=True))


def assert_equal(one: Any, other: Any) -> None:
    if isinstance(one, Tensor):
        assert torch.equal(one, other)
    elif isinstance(one, dict):
        assert one.keys() == other.keys()
        for key in one:
            assert_equal(one[key], other[key])
    elif isinstance(one, list | tuple):
        for a, b in zip(one, other, strict=True):
            assert_equal(a, b)
    else:
        assert one == other


def test_what_the_thread_fails_with_ends_the_run_at_the_next_update(
    run: RunSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried: list[int] = []

    def full(state: dict[str, Any], path: Path) -> None:
        tried.append(state["global_step"])
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(checkpoint, "write_state", full)
    with pytest.raises(OSError, match="No space left on device"):
        fit(run, tmp_path / "run")
    assert tried == [2]
    assert names(tmp_path / "run") == []
    assert not (tmp_path / "run" / "bundle").exists()


def test_the_last_checkpoint_counts_too(run: RunSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """There is no update after it."""

    def full(state: dict[str, Any], path: Path) -> None:
        if state["global_step"] == 6:
            raise OSError(errno.EDQUOT, "Disk quota exceeded")
        write_state(state, path)

    monkeypatch.setattr(checkpoint, "write_state", full)
    with pytest.raises(OSError, match="Disk quota exceeded"):
        fit(run, tmp_path / "run")
    assert names(tmp_path / "run") == ["step-000000002", "step-000000004"]


def test_a_folder_that_has_vanished_is_not_made_anew(
    run: RunSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = TrainingTask.training_step

    def vanishes(self: TrainingTask, *args: Any) -> None:
        if self.global_step == 1:
            (tmp_path / "run").rename(tmp_path / "elsewhere")
        step(self, *args)

    monkeypatch.setattr(TrainingTask, "training_step", vanishes)
    run = dataclasses.replace(run, trainer=dataclasses.replace(run.trainer, log_every_n_steps=100))
    with pytest.raises(FileNotFoundError, match="the run's folder is not there any more"):
        fit(run, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_the_disks_own_words_are_kept() -> None:
    """torch alone would say something of a position that it did not expect."""
    with pytest.raises(OSError, match="No space left on device"):
        write_state({"a": torch.zeros(10_000)}, Path("/dev/full"))


def test_the_background_does_one_thing_at_a_time() -> None:
    order: list[str] = []
    background, first = Background(), threading.Event()

    def slow() -> None:
        assert first.wait(60)
        order.append("first")

    background.start(slow)
    background.look()
    assert order == []
    first.set()
    background.start(lambda: order.append("second"))
    background.wait()
    assert order == ["first", "second"]


def test_an_error_in_the_background_is_raised_once() -> None:
    background = Background()
    background.start(lambda: Path("/not/there").unlink())
    with pytest.raises(FileNotFoundError):
        background.wait()
    background.look()
    background.start(lambda: None)
    background.wait()


def test_a_copy_holds_while_what_was_copied_moves() -> None:
    weight = torch.arange(6.0).view(2, 3)
    state = {"a": weight, "tied": weight, "part": weight[:, :1], "deep": [{"b": torch.ones(())}, (1, "x")], "n": 3}
    host = HostCopy()
    taken = host.take(state)
    weight += 1
    assert torch.equal(taken["a"], torch.arange(6.0).view(2, 3))
    assert taken["tied"] is taken["a"]
    assert torch.equal(taken["part"], torch.tensor([[0.0], [3.0]]))
    assert taken["deep"][1:] == [(1, "x")]
    again = host.take(state)
    assert again["a"].data_ptr() == taken["a"].data_ptr(), "the memory is found once"
    assert torch.equal(again["a"], weight)
    assert torch.equal(host.take({"a": torch.zeros(4)})["a"], torch.zeros(4)), "another shape"
