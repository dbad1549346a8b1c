"""Files and folders that are there whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from mmformer.files import whole_folder, write_whole


def test_a_write_that_fails_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "manifest.json"
    write_whole(path, "old")

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_whole(path, "new")
    assert path.read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["manifest.json"]


def test_a_folder_takes_its_name_only_when_it_is_whole(tmp_path: Path) -> None:
    folder = tmp_path / "a" / "step-3"
    with whole_folder(folder) as partial:
        (partial / "state").write_text("new")
        assert not folder.exists()
    assert (folder / "state").read_text() == "new"
    assert [path.name for path in folder.parent.iterdir()] == ["step-3"]


def test_a_failure_leaves_the_folder_that_was_there(tmp_path: Path) -> None:
    folder = tmp_path / "bundle"
    with whole_folder(folder) as partial:
        (partial / "state").write_text("old")
    with pytest.raises(RuntimeError), whole_folder(folder) as partial:
        (partial / "state").write_text("half")
        raise RuntimeError
    assert (folder / "state").read_text() == "old"
    with whole_folder(folder) as partial:
        assert list(partial.iterdir()) == [], "what the failure left is cleared away"
        (partial / "other").write_text("new")
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["bundle", "other"]


def test_killed_between_the_two_renamings_the_old_folder_comes_back(tmp_path: Path) -> None:
    folder = tmp_path / "bundle"
    (tmp_path / "bundle.old").mkdir()
    (tmp_path / "bundle.old" / "state").write_text("old")
    (tmp_path / "bundle.partial").mkdir()
    with pytest.raises(RuntimeError), whole_folder(folder):
        raise RuntimeError
    assert (folder / "state").read_text() == "old"
