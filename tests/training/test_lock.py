"""A run's folder is one run's at a time."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from tiny import tiny_run, write_shards

from mmformer.config import to_yaml
from mmformer.errors import InputError
from mmformer.training import fit as fitting
from mmformer.training.lock import LOCK, FolderLock
from mmformer.training.run import CheckpointSpec

HOLDER = """
import sys
from pathlib import Path
from mmformer.training.lock import FolderLock
with FolderLock(Path(sys.argv[1])) as lock:
    lock.take()
    print("held", flush=True)
    sys.stdin.read()
"""


@contextmanager
def held(folder: Path) -> Iterator[subprocess.Popen[str]]:
    """Inside, another process has a folder."""
    command = [sys.executable, "-c", HOLDER, str(folder)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


def test_a_folder_is_one_processs_until_it_ends(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with held(tmp_path) as process, FolderLock(tmp_path) as lock:
        with pytest.raises(InputError, match=rf"another run writes to this folder \(process {process.pid} on "):
            lock.take(patience=0.01)
        assert capsys.readouterr().err == f"mmformer: {tmp_path}: waiting for the run that writes to it to end.\n"
        process.kill()
        process.wait()
        lock.take()
        assert [path.name for path in tmp_path.iterdir()] == [LOCK]
    assert not list(tmp_path.iterdir())


def test_who_had_opened_the_file_that_the_last_one_removed_takes_the_new_one(tmp_path: Path) -> None:
    with FolderLock(tmp_path) as first:
        first.take()
        old = (tmp_path / LOCK).stat().st_ino
        with (tmp_path / LOCK).open():  # so that its number is not given again
            (tmp_path / LOCK).unlink()
            with FolderLock(tmp_path) as second:
                second.take()
                assert (tmp_path / LOCK).stat().st_ino != old


def test_a_run_leaves_the_folder_of_another_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It has no checkpoint yet, and would have been taken for one that failed at the start."""
    run = tiny_run(write_shards(tmp_path / "shards"), steps=2, data={"test": None})
    run = dataclasses.replace(run, checkpoint=CheckpointSpec(every_steps=1))
    output = tmp_path / "run"
    output.mkdir()
    (output / "config.yaml").write_text(to_yaml(run))
    (output / "metrics.csv").write_text("step\n")
    with held(output):
        for overwrite in (False, True):
            with pytest.raises(InputError, match="another run writes to this folder"):
                fitting.fit(run, output, overwrite=overwrite)
        monkeypatch.setattr(fitting, "PATIENCE", 0.0)
        with pytest.raises(InputError, match="another run writes to this folder"):
            fitting.fit(run, output, resume=True)
        assert sorted(path.name for path in output.iterdir()) == [LOCK, "config.yaml", "metrics.csv"]
    fitting.fit(run, output)
    assert not (output / LOCK).exists()
