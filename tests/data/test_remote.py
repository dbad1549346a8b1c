"""What lies elsewhere, for all that reads sets: training, index, check, stats and filters; patterns and archives."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import fsspec
import pytest
from tiny import tiny_data, write_shards

from mmformer.curation.best import Best
from mmformer.curation.candidates import Place
from mmformer.curation.curate import curate
from mmformer.curation.scores import Cut
from mmformer.data import remote, transfer
from mmformer.data.checking import check
from mmformer.data.dataset import MixedDataset
from mmformer.data.indexing import index_tars
from mmformer.data.manifest import Manifest, Shard
from mmformer.data.opening import open_samples
from mmformer.data.patterns import find_files, find_places
from mmformer.data.remote import CacheSpec, RemoteManifest, find_urls, join_url, open_manifest
from mmformer.data.shards import verify
from mmformer.data.statistics import Questions, measure
from mmformer.data.transfer import FETCHING, Patience, copy
from mmformer.errors import InputError


@pytest.fixture
def local(tmp_path: Path) -> Path:
    return write_shards(tmp_path / "local")


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> CacheSpec:
    """Where copies usually are, in a home of its own."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    return CacheSpec()


@pytest.fixture
def bucket(local: Path, cache: CacheSpec) -> Iterator[str]:
    """The tars alone, elsewhere."""
    memory = fsspec.filesystem("memory")
    for tar in local.glob("*.tar"):
        memory.put(str(tar), f"/bucket/{tar.name}")
    yield "memory://bucket"
    memory.rm("/bucket", recursive=True)


def read(source: Path | str, split: str = "train") -> dict[str, dict[str, bytes]]:
    samples = open_samples(str(source), split)
    return {raw.key: raw.members for raw in (samples[place] for place in range(len(samples)))}


def test_a_bucket_of_tars_is_indexed_and_read_where_it_is(bucket: str, local: Path, tmp_path: Path) -> None:
    splits = {split: f"*-{split}-*" for split in ("train", "val", "test")}
    manifest = index_tars(find_places(bucket, ".tar"), splits, tmp_path / "index", workers=1)
    assert {shard.path for shard in manifest.shards} == {f"{bucket}/{path.name}" for path in local.glob("*.tar")}
    assert {path.suffix for path in (tmp_path / "index").iterdir()} == {".json"}, "the tars are not here"
    for split in splits:
        assert read(tmp_path / "index", split) == read(local, split)
    opened = open_manifest(tmp_path / "index")
    assert verify(opened) == []
    assert [problems for _, problems in check(opened, workers=1)] == [[]] * 6
    assert {split: facts.samples for split, facts in measure(opened, Questions(), workers=1).items()} == {
        "train": 32,
        "val": 8,
        "test": 8,
    }


def test_the_copies_are_those_that_indexing_made_and_may_be_lost(
    bucket: str, local: Path, cache: CacheSpec, tmp_path: Path
) -> None:
    manifest = index_tars([f"{bucket}/tiny-train-000000.tar"], {"train": "*"}, tmp_path / "index", workers=1)
    (kept,) = cache.shards.iterdir()
    assert kept.stem == manifest.shards[0].sha256[:32]
    before = read(tmp_path / "index")
    kept.unlink()
    assert read(tmp_path / "index") == before
    with fsspec.open(f"{bucket}/tiny-train-000000.tar", "wb") as file:
        file.write(b"changed")
    kept.unlink()
    with pytest.raises(InputError, match=r"memory://bucket/tiny-train-000000.tar has 7 bytes, .* was changed or cut"):
        read(tmp_path / "index")
    (problem,) = verify(open_manifest(tmp_path / "index"))
    assert "it was changed or cut" in problem


def test_several_readers_copy_a_shard_once(
    bucket: str, cache: CacheSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    index_tars([f"{bucket}/tiny-train-000000.tar"], {"train": "*"}, tmp_path / "index", workers=1)
    (kept,) = cache.shards.iterdir()
    kept.unlink()
    copied: list[str] = []

    def slowly(url: str, *rest: Any) -> str:
        copied.append(url)
        time.sleep(0.2)
        return copy(url, *rest)

    monkeypatch.setattr(remote, "copy", slowly)
    manifest = open_manifest(tmp_path / "index")
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(manifest.fetch, [*manifest.shards] * 4))
    assert found == [kept] * 4
    assert copied == [f"{bucket}/tiny-train-000000.tar"]


def test_a_copy_that_is_not_whole_is_made_again(bucket: str, cache: CacheSpec, tmp_path: Path) -> None:
    index_tars([f"{bucket}/tiny-train-000000.tar"], {"train": "*"}, tmp_path / "index", workers=1)
    before = read(tmp_path / "index")
    (kept,) = cache.shards.glob("*.tar")
    for damaged in (b"", kept.read_bytes()[:700]):
        kept.write_bytes(damaged)
        assert read(tmp_path / "index") == before


def test_a_copy_that_another_process_removes_before_it_is_open_is_made_again(
    bucket: str, cache: CacheSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    index_tars([f"{bucket}/tiny-train-000000.tar"], {"train": "*"}, tmp_path / "index", workers=1)
    before, fetch = read(tmp_path / "index"), RemoteManifest.fetch
    removed: list[Path] = []

    def loses(self: RemoteManifest, shard: Shard) -> Path:
        path = fetch(self, shard)
        if len(removed) < 2:
            path.unlink()
            removed.append(path)
        return path

    monkeypatch.setattr(RemoteManifest, "fetch", loses)
    assert read(tmp_path / "index") == before
    assert len(removed) == 2


def test_what_the_killed_had_begun_to_copy_is_removed(bucket: str, cache: CacheSpec, tmp_path: Path) -> None:
    """What another process copies at the time is not, and takes room."""
    index_tars([f"{bucket}/tiny-train-000000.tar"], {"train": "*"}, tmp_path / "index", workers=1)
    (kept,) = cache.shards.glob("*.tar")
    left, copied = (cache.shards / f"{FETCHING}{name}" for name in ("left", "copied"))
    for path in (left, copied):
        path.write_bytes(bytes(1000))
    small = replace(cache, gib=(kept.stat().st_size + 1500) / 2**30)
    with copied.open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        remote._make_room(small, 0, keep=tmp_path)
        assert (left.exists(), copied.exists(), kept.exists()) == (False, True, True)
        remote._make_room(small, 1000, keep=tmp_path)
        assert (copied.exists(), kept.exists()) == (True, False)


def test_what_is_elsewhere_cannot_have_an_index_beside_it(bucket: str) -> None:
    with pytest.raises(InputError, match=r"000.tar is elsewhere, where no index can be written .*--output"):
        index_tars(find_places(f"{bucket}/tiny-val-*.tar", ".tar"), {"val": "*"}, workers=1)
    with fsspec.open(f"{bucket}/cut.tar", "wb") as file:
        file.write(b"x" * 600)
    with pytest.raises(InputError, match=r"^memory://bucket/cut.tar is not a whole, uncompressed tar"):
        index_tars([f"{bucket}/cut.tar"], {"val": "*"}, Path("nowhere"), workers=1)
    assert not Path("nowhere").exists()


def test_places_elsewhere_are_named_as_those_here(bucket: str) -> None:
    assert find_places(f"{bucket}/tiny-{{val,test}}-000000.tar", ".tar") == [
        f"{bucket}/tiny-val-000000.tar",
        f"{bucket}/tiny-test-000000.tar",
    ]
    assert find_places(f"{bucket}/*-train-*", ".tar") == [f"{bucket}/tiny-train-{n:06d}.tar" for n in range(4)]
    assert len(find_places(bucket, ".tar")) == 6
    with pytest.raises(InputError, match=r"The pattern 'memory://bucket/none\*.tar' matches nothing"):
        find_places(f"{bucket}/none*.tar", ".tar")
    with pytest.raises(InputError, match=r"cannot be listed: Protocol not known: nothing"):
        find_places("nothing://bucket/*.tar", ".tar")
    with pytest.raises(InputError, match=r"is elsewhere, and a set is built of files that are here"):
        find_files(f"{bucket}/tiny-val-000000.tar", ".tar")


def test_a_filter_reads_a_set_elsewhere_and_names_its_tars(local: Path, cache: CacheSpec, tmp_path: Path) -> None:
    memory = fsspec.filesystem("memory")
    memory.put(f"{local}/", "/sets/whole/", recursive=True)
    try:
        best = Best(Cut(keep=0.5), place=Place("number", "json", "number"))
        here, far = curate(local, tmp_path / "near", best), curate("memory://sets/whole", tmp_path / "far", best)
        assert (here.keys, here.verdicts) == (far.keys, far.verdicts)
        assert read(tmp_path / "far") == read(tmp_path / "near")
        assert all(shard.path.startswith("memory://sets/whole/") for shard in Manifest.load(tmp_path / "far").shards)
        again = curate(tmp_path / "far", tmp_path / "again", best)
        assert again.kept == 8
        rows = (tmp_path / "again" / "removed.tsv").read_text().splitlines()
        assert len(rows) == 1 + 16 + 8, "what the filter before removed is there too"
    finally:
        memory.rm("/sets", recursive=True)


def test_copies_are_asked_for_where_some_shard_is_elsewhere(bucket: str, tmp_path: Path, local: Path) -> None:
    index_tars(find_places(f"{bucket}/*train*.tar", ".tar"), {"train": "*"}, tmp_path / "index", workers=1)
    own = CacheSpec(str(tmp_path / "copies"))
    data = tiny_data(local, source=str(tmp_path / "index"), copies=own, validation=None, test=None)
    assert MixedDataset(data, seed=0)[3].key == MixedDataset(replace(data, copies=CacheSpec()), seed=0)[3].key
    assert len(list(own.shards.glob("*.tar"))) == 1, "the one that was read"


def test_a_pattern_elsewhere_names_several_sets(local: Path, cache: CacheSpec) -> None:
    memory = fsspec.filesystem("memory")
    for name in ("a", "b"):
        memory.put(f"{local}/", f"/sets/part-{name}/", recursive=True)
    memory.pipe("/sets/part-c/notes.txt", b"no set")
    try:
        for pattern in ("memory://sets/part-*", "memory://sets/part-{a,b}"):
            assert len(open_samples(pattern, "train")) == 64
        with pytest.raises(InputError, match=r"nothing matches this pattern"):
            open_samples("memory://sets/other-*", "train")
    finally:
        memory.rm("/sets", recursive=True)


def test_listing_is_asked_for_again_and_no_folder_is_passed_over(
    bucket: str, monkeypatch: pytest.MonkeyPatch, waits: list[float]
) -> None:
    """As files are: what passes is waited for, what stays is told, and so is what waiting cannot mend."""
    memory = fsspec.get_filesystem_class("memory")
    listed, fault = memory.ls, {"/bucket/b": [ConnectionError("reset"), TimeoutError("no answer"), None]}
    memory().pipe({"/bucket/a/x.tar": b"x", "/bucket/b/y.tar": b"y", "/bucket/b/deep/z.tar": b"z"})

    def failing(self: Any, path: str, *words: Any, **named: Any) -> Any:
        if errors := fault.get(path.rstrip("/")):
            error = errors.pop(0) if len(errors) > 1 else errors[0]
            if error is not None:
                raise error
        return listed(self, path, *words, **named)

    monkeypatch.setattr(memory, "ls", failing)
    assert find_places(f"{bucket}/*/?.tar", ".tar") == [f"{bucket}/a/x.tar", f"{bucket}/b/y.tar"]
    assert [0.5 * 2**n <= wait <= 2**n for n, wait in enumerate(waits)] == [True] * 2
    assert find_places(f"{bucket}/**/[x-z].tar", ".tar") == [f"{bucket}/{n}.tar" for n in ("a/x", "b/deep/z", "b/y")]
    fault["/bucket/b"] = [ConnectionError("reset")]
    waits.clear()
    with pytest.raises(InputError, match=r"memory://bucket/\*/\*.tar cannot be listed: reset."):
        find_places(f"{bucket}/*/*.tar", ".tar")
    assert len(waits) == 4, "five attempts"
    fault["/bucket/b"] = [PermissionError("not yours")]
    with pytest.raises(InputError, match="cannot be listed: not yours"):
        find_places(f"{bucket}/*/*.tar", ".tar")
    fault["/bucket/b"] = [FileNotFoundError("/bucket/b")]
    assert find_places(f"{bucket}/*/*.tar", ".tar") == [f"{bucket}/a/x.tar"], "it went away in between"
    assert len(waits) == 4


def test_a_listing_that_does_not_come_is_given_up(monkeypatch: pytest.MonkeyPatch, waits: list[float]) -> None:
    ended = threading.Event()
    monkeypatch.setattr(fsspec.get_filesystem_class("memory"), "ls", lambda *words, **named: ended.wait(20))
    with pytest.raises(InputError, match=r"cannot be listed: nothing came for 0.05 s"):
        find_urls("memory://bucket/*.tar", Patience(2, 0.05))
    ended.set()
    assert len(waits) == 1


def test_an_archive_is_read_through_a_chain(local: Path, cache: CacheSpec, tmp_path: Path) -> None:
    shutil.make_archive(str(tmp_path / "packed"), "zip", tmp_path, "local")
    assert read(f"zip://local::file://{tmp_path}/packed.zip") == read(local)
    shutil.make_archive(str(tmp_path / "flat"), "zip", local)
    assert read(f"zip://::file://{tmp_path}/flat.zip") == read(local)
    assert read(f"zip://lo*::file://{tmp_path}/packed.zip") == read(local)


def test_urls_are_joined_as_paths_are() -> None:
    assert join_url("s3://bucket/sets/small", "../tars/a.tar") == "s3://bucket/sets/tars/a.tar"
    assert join_url("zip://set::s3://bucket/x.zip", "a.tar") == "zip://set/a.tar::s3://bucket/x.zip"
    assert join_url("simplecache::s3://bucket/set", "a.tar") == "simplecache::s3://bucket/set/a.tar"


def test_a_full_disk_here_is_no_mistake_of_the_address(
    local: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(descriptor: int, mode: str) -> object:
        os.close(descriptor)
        return Path("/dev/full").open(mode, buffering=0)

    monkeypatch.setattr(transfer.os, "fdopen", full)
    target = tmp_path / "kept" / "manifest.json"
    with pytest.raises(OSError) as caught:
        copy(f"file://{local / 'manifest.json'}", target, Patience())
    assert caught.value.errno == errno.ENOSPC
    assert not list(target.parent.iterdir())
