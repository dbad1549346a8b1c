"""A set is checked as a whole: hashes, counts, and every member decoded; foreign tars are indexed where they lie."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from tiny import write_few, write_shards

from mmformer.data.checking import check
from mmformer.data.indexing import index_tars
from mmformer.data.manifest import Manifest
from mmformer.data.shards import RawSample, ShardReader, ShardWriter, verify
from mmformer.errors import InputError


def problems(folder: Path, decode: bool = True) -> list[str]:
    return [problem for _, found in check(Manifest.load(folder), decode, workers=1) for problem in found]


def test_a_whole_set_has_no_problems_with_any_number_of_processes(tmp_path: Path) -> None:
    folder = write_shards(tmp_path / "set")
    manifest = Manifest.load(folder)
    assert list(check(manifest, workers=2)) == [(shard, []) for shard in manifest.shards]
    assert problems(folder) == []


def test_members_that_cannot_be_decoded_are_named(tmp_path: Path) -> None:
    with ShardWriter(tmp_path, "s") as writer:
        writer.write(RawSample("good", {"json": b"{}", "bin": b"whatever"}))
        writer.write(RawSample("cut", {"png": b"\x89PNG\r\n", "txt": b"\xff"}))
    found = problems(tmp_path)
    assert len(found) == 2
    assert "s-train-000000.tar: cut.png: not a whole PNG" in found[0]
    assert "s-train-000000.tar: cut.txt: not UTF-8" in found[1]
    assert problems(tmp_path, decode=False) == []


def test_damage_is_found_and_what_is_whole_is_still_decoded(tmp_path: Path) -> None:
    folder = write_few(tmp_path / "set", 2, png=[b"no picture", b""])
    manifest = Manifest.load(folder)
    path = manifest.path(manifest.shards[0])
    with path.open("r+b") as file:
        file.seek(manifest.index(manifest.shards[0]).spans(1)["json"][0])
        file.write(b"!")
    found = problems(folder)
    assert "has the SHA-256" in found[0]
    assert "s0.png: not a whole PNG" in found[1]
    assert "the bytes of s1.json are not those that were indexed" in found[2]
    os.truncate(path, 700)
    found = problems(folder)
    assert len(found) == 2, "what the cut is, and where; nothing of it is decoded"
    assert "bytes, the manifest says" in found[0]
    assert "not a whole" in found[1] or "end-of-archive" in found[1]
    path.unlink()
    assert problems(folder) == [f"{path} is missing"]


def test_foreign_tars_are_indexed_where_they_lie(tmp_path: Path) -> None:
    whole = Manifest.load(write_shards(tmp_path / "set"))
    tars = [whole.path(shard) for shard in whole.shards]
    before = {path.name: path.read_bytes() for path in tars}
    for path in (tmp_path / "set").glob("*.json"):
        path.unlink()
    splits = {"val": "*-val-*", "train": "*"}
    manifest = index_tars(tars, splits, workers=1)
    assert manifest.root == tmp_path / "set"
    assert verify(manifest) == []
    assert Manifest.load(tmp_path / "set") == manifest
    assert [(shard.path, shard.split) for shard in manifest.shards] == [
        (path.name, "val" if "-val-" in path.name else "train") for path in tars
    ]
    assert {path.name: path.read_bytes() for path in tars} == before
    with pytest.raises(
        InputError, match=r"manifest.json is there already: replace it \(--overwrite\), or name another"
    ):
        index_tars(tars, splits, workers=1)
    assert index_tars(tars[:1], splits, overwrite=True, workers=1).shards == manifest.shards[:1]


def test_their_manifest_may_lie_elsewhere(tmp_path: Path) -> None:
    whole = Manifest.load(write_shards(tmp_path / "deep" / "set"))
    tars = [whole.path(shard) for shard in whole.shards]
    manifest = index_tars(tars, {"all": "*"}, tmp_path / "index" / "here", workers=1)
    assert manifest.shards[0].path == f"../../deep/set/{tars[0].name}"
    assert verify(manifest) == []
    reader = ShardReader(Manifest.load(tmp_path / "index" / "here"), "all")
    assert sorted(reader.keys) == sorted(key for split in whole.splits for key in ShardReader(whole, split).keys)
    both = index_tars([tars[0], tmp_path / "deep" / "set" / tars[1].name], {"train": "*"}, workers=1, overwrite=True)
    assert both.root == tmp_path / "deep" / "set"


def test_tars_that_cannot_be_indexed_leave_no_manifest(tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(b"hello" * 1000)
    with pytest.raises(InputError, match=r"a.tar is of no split: its name matches none of val=v"):
        index_tars([tmp_path / "a.tar"], {"val": "v*"}, workers=1)
    with pytest.raises(InputError, match=r"a.tar is not a whole, uncompressed tar"):
        index_tars([tmp_path / "a.tar"], {"val": "*"}, workers=1)
    assert [path.name for path in tmp_path.iterdir()] == ["a.tar"]
