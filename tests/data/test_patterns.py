"""Files by folder, name or pattern."""

from __future__ import annotations

from pathlib import Path

import pytest

from mmformer.data.patterns import find_files
from mmformer.errors import InputError


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name in ("b/1.tar", "a/10.tar", "a/09.tar", "a/.hidden.tar", "a/x.txt", "c.tar"):
        Path(name).parent.mkdir(exist_ok=True)
        Path(name).touch()
    return tmp_path


@pytest.mark.parametrize(
    ("given", "found"),
    [
        (".", ["a/09.tar", "a/10.tar", "b/1.tar", "c.tar"]),
        ("c.tar", ["c.tar"]),
        ("a/x.txt", ["a/x.txt"]),  # named itself
        ("a/{10..09}.tar", None),
        ("a/{09..10}.tar", ["a/09.tar", "a/10.tar"]),
        ("{b/1,c}.tar", ["b/1.tar", "c.tar"]),
        ("*/*.tar", ["a/09.tar", "a/10.tar", "b/1.tar"]),
        ("{a,b}/*.tar", ["a/09.tar", "a/10.tar", "b/1.tar"]),
    ],
)
def test_what_is_named_is_found(folder: Path, given: str, found: list[str] | None) -> None:
    if found is None:
        with pytest.raises(InputError, match="from a number to a larger one"):
            find_files(given, ".tar")
    else:
        assert list(map(str, find_files(given, ".tar"))) == found


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("d.tar", r"There is no file or folder d.tar. Did you mean 'c.tar'\?"),
        ("a/{09..11}.tar", "There is no file or folder a/11.tar"),
        ("*.rar", "The pattern '\\*.rar' matches nothing"),
        ("?", "The pattern '\\?' matches folders only"),
        ("empty", "there is no .tar file in this folder or below it"),
    ],
)
def test_what_is_not_there_is_told(folder: Path, given: str, message: str) -> None:
    (folder / "empty").mkdir()
    with pytest.raises(InputError, match=message):
        find_files(given, ".tar")
