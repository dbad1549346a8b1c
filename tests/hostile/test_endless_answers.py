"""Servers that answer without end: refused in words, in under a second, before memory or the disk is full."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from attempts import count, outcome
from tiny import write_shards
from web_server import Asked, Fault, Server, serving

from mmformer.data.manifest import Manifest
from mmformer.data.remote import MOST_MANIFEST, MOST_TABLE, CacheSpec, most_index, open_manifest
from mmformer.data.shards import ShardReader
from mmformer.errors import InputError

SECOND = 1.0  # of one processor's time, the server's among it
ROOM = 300 * 2**20  # bytes of memory
BLOCK = bytes(2**20)

ANSWERS: dict[str, tuple[Fault, str]] = {
    "no end": (Fault(endless=BLOCK), "more than {most} bytes"),
    "a size that is too large": (Fault(declares=2**40, endless=BLOCK), f"{2**40} bytes"),
    "gzip of zeros": (Fault(encoding="gzip", endless=b"\0"), "more than {most} bytes"),
    "an end that is cut, and then none": (Fault(cut=100), "more than {most} bytes"),
}


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    with serving(write_shards(tmp_path / "set")) as server:
        yield server


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> CacheSpec:
    monkeypatch.setattr("mmformer.data.transfer.sleep", lambda seconds: None)
    return CacheSpec(str(tmp_path / "cache"), timeout=10.0)


def failing(server: Server, name: str, answer: str) -> None:
    """Have the server answer so where it is asked for one of its files."""
    fault, _ = ANSWERS[answer]
    if fault.encoding:
        (server.folder / name).write_bytes(gzip.compress(bytes(2**26), 9))

    def choose(number: int, asked: Asked) -> Fault | None:
        if not asked.path.endswith(name):
            return None
        earlier = [other for other in server.asked[:-1] if (other.method, other.path) == ("GET", asked.path)]
        if fault.cut is not None and earlier:
            return Fault(endless=BLOCK)
        return fault._replace(endless=b"") if fault.encoding else fault

    server.fault = choose


def refused(attempt: Callable[[], object], cache: CacheSpec, *parts: str) -> None:
    """In time, in little memory, with these words, and nothing is left of it."""
    before = {path for path in Path(cache.folder).rglob("*") if path.is_file()}

    def told() -> None:
        try:
            attempt()
        except InputError as error:
            for part in parts:
                assert part in str(error), f"{part!r} is not in {error}"
            raise

    assert outcome(told, SECOND, ROOM) == "refused"
    assert {path for path in Path(cache.folder).rglob("*") if path.is_file()} == before
    count("endless answers", "refused")


@pytest.mark.parametrize("answer", ANSWERS)
def test_manifests_that_do_not_end(answer: str, server: Server, cache: CacheSpec) -> None:
    open_manifest(server.url, cache)  # what is imported takes its time alone
    failing(server, "manifest.json", answer)
    told = ANSWERS[answer][1].format(most=MOST_MANIFEST.bytes)
    words = (f"{server.url}/manifest.json has {told}", f"at most {MOST_MANIFEST.bytes} are read. Check the address")
    refused(lambda: open_manifest(server.url, cache), cache, *words)


@pytest.mark.parametrize("large", [False, True], ids=["small", "large"])
@pytest.mark.parametrize("answer", ANSWERS)
def test_indexes_that_do_not_end(answer: str, large: bool, server: Server, cache: CacheSpec) -> None:
    """As long as what their manifest says of the tar allows, and never longer than any may be."""
    manifest = open_manifest(server.url, cache)
    shard = replace(manifest.shards[0], bytes=2**50) if large else manifest.shards[0]
    most = most_index(shard).bytes
    assert most == 2**25 if large else 8 * shard.bytes < most < 2**20
    failing(server, shard.index, answer)
    told = ANSWERS[answer][1].format(most=most)
    words = (f"{server.url}/{shard.index} has {told}", f"at most {most} are read. Restore it there, or index the tar")
    refused(lambda: manifest.index(shard), cache, *words)


@pytest.mark.parametrize("answer", ANSWERS)
def test_tables_that_do_not_end(answer: str, server: Server, cache: CacheSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    """The manifest says how long its table is: as long, and no longer than any may be."""
    monkeypatch.setattr("mmformer.data.manifest.MOST_ROWS", 0)
    manifest = Manifest.load(server.folder)
    manifest.save()
    open_manifest(server.url, replace(cache, folder=f"{cache.folder}-other"))
    (table,) = server.folder.glob("*.table")
    most = table.stat().st_size
    failing(server, table.name, answer)
    open_first = replace(cache, folder=f"{cache.folder}-first")
    refused(lambda: open_manifest(server.url, open_first), cache, f"{table.name} has ", f"the manifest says {most} and")
    file = server.folder / "manifest.json"
    content = json.loads(file.read_text())
    content["table"]["shards"] = 2**40
    file.write_text(json.dumps(content))
    words = (f"{table.name} has", "bytes by its manifest", f"at most {MOST_TABLE.bytes} are read")
    refused(lambda: open_manifest(server.url, open_first), cache, *words)


def test_the_longest_that_is_written_is_read(tmp_path: Path, cache: CacheSpec) -> None:
    """Names whose every byte takes six of an index, in members without content, and samples that stand there twice."""
    import tarfile

    from mmformer.data.tar import finish_shard

    tar = tmp_path / "set" / "s.tar"
    tar.parent.mkdir()
    with tarfile.open(tar, "w", format=tarfile.GNU_FORMAT) as file:
        for number in range(300):
            file.addfile(tarfile.TarInfo("\udcff" * (90 if number % 2 else 3000) + f"{number:03d}.x"))
    shard = finish_shard(tar, "train")
    Manifest(tar.parent, (shard,)).save()
    with serving(tar.parent) as server:
        manifest = open_manifest(server.url, cache)
        assert len(ShardReader(manifest, "train")._index(0)) == 300
    size = (tar.parent / shard.index).stat().st_size
    assert shard.bytes < size < most_index(shard).bytes
