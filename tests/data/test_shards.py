"""Shards: written whole, read at any position, ordinary to other tools, and refused when damaged."""

from __future__ import annotations

import gc
import gzip
import multiprocessing
import os
import pickle
import shutil
import subprocess
import sys
import tarfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmformer.data.manifest import FilterRecord, Manifest, ShardIndex
from mmformer.data.shards import RawSample, ShardReader, ShardWriter, index_shard, verify
from mmformer.errors import InputError


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def sample(number: int) -> RawSample:
    members = {"json": b"{}" * number, "en-0.ogg": bytes(range(number)), "png": b"p" * 600}
    if number % 3 == 0:
        del members["en-0.ogg"]
    return RawSample(f"k{number:03d}", members)


SAMPLES = [sample(number) for number in range(11)]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    with ShardWriter(tmp_path / "set", "s", samples_per_shard=4) as writer:
        for one in SAMPLES:
            writer.write(one)
        writer.write(RawSample("v", {"png": b"v"}), split="val")
    return writer.folder


@pytest.fixture
def reader(folder: Path) -> ShardReader:
    return ShardReader(Manifest.load(folder), "train")


def test_what_is_written_is_read_at_every_position(reader: ShardReader) -> None:
    assert len(reader) == 11
    assert reader.counts == (4, 4, 3)
    assert [reader[position] for position in range(11)] == SAMPLES
    assert reader.read(1, 2) == SAMPLES[6]
    assert [reader.locate(position) for position in (0, 3, 4, 10)] == [(0, 0), (0, 3), (1, 0), (2, 2)]
    assert reader.keys == tuple(one.key for one in SAMPLES)
    assert reader.part_keys(2) == ("k008", "k009", "k010")
    for position in (-1, 11):
        with pytest.raises(IndexError, match=f"position {position} of a split of 11"):
            reader[position]


def test_files_are_numbered_and_the_manifest_lists_them(folder: Path) -> None:
    manifest = Manifest.load(folder)
    assert [shard.path for shard in manifest.shards] == [
        *(f"s-train-00000{number}.tar" for number in range(3)),
        "s-val-000000.tar",
    ]
    assert names(folder) == sorted(
        ["manifest.json", *(name for shard in manifest.shards for name in (shard.path, shard.index))]
    )
    assert verify(manifest) == []


def test_the_same_samples_give_the_same_bytes(folder: Path, tmp_path: Path) -> None:
    with ShardWriter(tmp_path / "again", "s", samples_per_shard=4) as writer:
        for one in SAMPLES:
            writer.write(one)
        writer.write(RawSample("v", {"png": b"v"}), split="val")
    assert writer.manifest.shards == Manifest.load(folder).shards
    for name in names(folder):
        assert (folder / name).read_bytes() == (tmp_path / "again" / name).read_bytes()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # webdataset does not close its files
def test_plain_webdataset_reads_the_same_samples(reader: ShardReader) -> None:
    webdataset = pytest.importorskip("webdataset")
    urls = [str(reader.manifest.path(shard)) for shard in reader.shards]
    found = [
        RawSample(one["__key__"], {name: data for name, data in one.items() if not name.startswith("__")})
        for one in webdataset.WebDataset(urls, shardshuffle=False, empty_check=False)
    ]
    gc.collect()  # so that what it left open is complained of here
    assert found == SAMPLES


def test_what_webdataset_writes_is_indexed_and_read(tmp_path: Path) -> None:
    webdataset = pytest.importorskip("webdataset")
    path = tmp_path / "w.tar"
    with webdataset.TarWriter(str(path), encoder=False) as writer:
        for one in SAMPLES:
            writer.write({"__key__": one.key, **one.members})
    index, data = index_shard(path), path.read_bytes()
    assert index.keys == tuple(one.key for one in SAMPLES)
    for row, one in enumerate(SAMPLES):
        assert {name: data[at : at + length] for name, (at, length) in index.spans(row).items()} == one.members


def test_offsets_are_those_of_the_tar(reader: ShardReader) -> None:
    for number, shard in enumerate(reader.shards):
        with tarfile.open(reader.manifest.path(shard)) as tar:
            content = {info.name: tar.extractfile(info).read() for info in tar}  # type: ignore[union-attr]
            assert {(info.mtime, info.uid, info.gid, info.uname, info.mode) for info in tar} == {(0, 0, 0, "", 0o644)}
        read = [reader.read(number, row) for row in range(shard.samples)]
        assert {f"{one.key}.{name}": data for one in read for name, data in one.members.items()} == content


def test_only_the_members_asked_for_are_read(reader: ShardReader, monkeypatch: pytest.MonkeyPatch) -> None:
    lengths = []
    pread = os.pread
    monkeypatch.setattr(os, "pread", lambda fd, length, at: lengths.append(length) or pread(fd, length, at))
    assert reader.read(0, 1, ["png", "en-0.ogg"]).members == {"png": b"p" * 600, "en-0.ogg": b"\x00"}
    assert lengths == [600, 1]
    assert list(reader.read(0, 0, ["en-0.ogg"]).members) == []  # this sample has none, others of the shard do
    assert reader.read(0, 0, []).members == {}
    with pytest.raises(InputError, match=r"has a member 'pgn': there are en-0.ogg, json, png. Did you mean 'png'\?"):
        reader.read(0, 0, ["pgn"])


KEYS = st.from_regex(r"[a-z0-9_\-é猫]{1,8}(/[a-z0-9_\-é猫]{1,60}){0,3}", fullmatch=True)
EXTENSIONS = st.from_regex(r"[a-z0-9\-][a-z0-9\-.猫]{0,6}", fullmatch=True)
MEMBERS = st.dictionaries(EXTENSIONS, st.binary(max_size=1200), min_size=1, max_size=3)


@settings(deadline=None, max_examples=40)
@given(content=st.dictionaries(KEYS, MEMBERS, min_size=1, max_size=6), per_shard=st.integers(1, 4))
def test_any_samples_survive(
    tmp_path_factory: pytest.TempPathFactory, content: dict[str, dict[str, bytes]], per_shard: int
) -> None:
    with ShardWriter(tmp_path_factory.mktemp("any"), "s", per_shard) as writer:
        for key, members in content.items():
            writer.write(RawSample(key, members))
    assert verify(writer.manifest) == []
    reader = ShardReader(writer.manifest, "train", max_open=2)
    assert reader.keys == tuple(content)
    for position in reversed(range(len(reader))):
        one = reader[position]
        assert one.members == content[one.key]


def open_shards(folder: Path) -> list[str]:
    targets = (str(link.readlink()) for link in Path("/proc/self/fd").iterdir() if link.is_symlink())
    return [target for target in targets if str(folder) in target]


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="counts open files in /proc")
def test_open_files_are_bounded_and_let_go(folder: Path) -> None:
    reader = ShardReader(Manifest.load(folder), "train", max_open=2)
    for position in (0, 4, 8, 1, 5, 9):
        assert reader[position] == SAMPLES[position]
        assert len(open_shards(folder)) <= 2
    assert len(open_shards(folder)) == 2
    del reader
    assert open_shards(folder) == []


def test_a_reader_pickles_without_what_is_open(reader: ShardReader) -> None:
    assert reader[5] == SAMPLES[5]
    data = pickle.dumps(reader)
    assert len(data) < 3000
    copy = pickle.loads(data)
    assert (copy.manifest, copy.split, copy.max_open) == (reader.manifest, "train", reader.max_open)
    assert [copy[position] for position in range(11)] == SAMPLES


@pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning")  # Python 3.12 and later warn of every fork
def test_forked_processes_share_a_reader(reader: ShardReader) -> None:
    def read_all(numbers: range) -> None:
        os._exit(0 if [reader[position] for position in numbers] == [SAMPLES[position] for position in numbers] else 1)

    assert reader[0] == SAMPLES[0]  # the file is open before the fork
    workers = [multiprocessing.get_context("fork").Process(target=read_all, args=(range(n, 11),)) for n in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(20)
        assert worker.exitcode == 0
    assert reader[1] == SAMPLES[1]


def test_threads_share_a_reader(folder: Path) -> None:
    reader = ShardReader(Manifest.load(folder), "train", max_open=1, max_indexes=1)
    positions = [(7 * n) % 11 for n in range(300)]
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(reader.__getitem__, positions)) == [SAMPLES[position] for position in positions]


def test_a_cut_shard_is_refused_with_both_sizes(folder: Path, reader: ShardReader) -> None:
    path = folder / reader.shards[1].path
    size = path.stat().st_size
    os.truncate(path, size - 1024)
    with pytest.raises(InputError, match=rf"{path} has {size - 1024} bytes, but the manifest says {size}. It was cut"):
        reader.read(1, 0)
    assert reader.read(0, 0) == SAMPLES[0]
    path.unlink()
    with pytest.raises(InputError, match=rf"{path} has {size - 1024} bytes"):
        reader.read(1, 0)  # what could not be used is not asked for again
    reader = ShardReader(reader.manifest, "train")
    with pytest.raises(InputError, match=rf"{path} is missing: the manifest lists it with {size} bytes. .*copy or"):
        reader.read(1, 0)


def test_a_shard_that_is_cut_while_open_is_refused(folder: Path, reader: ShardReader) -> None:
    reader.read(1, 0)
    os.truncate(folder / reader.shards[1].path, 600)
    with pytest.raises(InputError, match="bytes early, while it was open"):
        reader.read(1, 3)


def test_verify_names_every_kind_of_damage(folder: Path, tmp_path: Path) -> None:
    def damaged(name: str) -> tuple[Manifest, Path]:
        copy = tmp_path / name
        shutil.copytree(folder, copy)
        manifest = Manifest.load(copy)
        return manifest, manifest.path(manifest.shards[1])

    manifest, path = damaged("flipped")
    data = bytearray(path.read_bytes())
    data[manifest.index(manifest.shards[1]).spans(1)["png"][0]] ^= 1
    path.write_bytes(data)
    (problem,) = verify(manifest)
    assert f"{path} has the SHA-256" in problem
    assert manifest.shards[1].sha256 in problem

    manifest, path = damaged("cut")
    second = manifest.index(manifest.shards[1]).spans(1)["json"][0] - 512
    os.truncate(path, second)  # at a member's edge, where tarfile and webdataset see nothing wrong
    problems = verify(manifest)
    assert f"{path} has {second} bytes, the manifest says {manifest.shards[1].bytes}" in problems[0]
    assert "no end-of-archive mark" in problems[1]

    manifest, path = damaged("missing")
    path.unlink()
    assert verify(manifest) == [f"{path} is missing"]

    manifest, path = damaged("swapped")  # another shard's index, of equal size and count
    shutil.copy(manifest.root / manifest.shards[0].index, manifest.root / manifest.shards[1].index)
    (problem,) = verify(manifest)
    assert "index.json" in problem


def test_a_filtered_set_reads_and_verifies_the_samples_that_it_lists(folder: Path, tmp_path: Path) -> None:
    whole = Manifest.load(folder)
    shard = whole.shards[0]
    full = whole.index(shard)
    row = replace(shard, path=f"../{folder.name}/{shard.path}", samples=3, index="some.json")

    def kept(keys: tuple[str, ...], numbers: tuple[int, ...]) -> ShardIndex:
        members, sums = ([rows[number] for number in numbers] for rows in (full.members, full.checksums))
        return replace(full, keys=keys, members=tuple(members), checksums=tuple(sums))

    (tmp_path / "kept").mkdir()
    filtered = Manifest(tmp_path / "kept", (row,), (FilterRecord("balance", {}, kept=3, removed=2),))
    filtered.save()
    kept(("k003", "k001", "k003"), (3, 1, 3)).save(filtered.root / "some.json")
    assert verify(Manifest.load(filtered.root)) == []
    reader = ShardReader(Manifest.load(filtered.root), "train")
    assert [reader[position] for position in range(3)] == [SAMPLES[3], SAMPLES[1], SAMPLES[3]]
    (problem,) = verify(replace(filtered, history=()))[1:]
    assert "does not agree with" in problem, "a set that nobody filtered has all samples of its tars"
    kept(("k003", "k001", "k002"), (3, 1, 3)).save(filtered.root / "some.json")
    assert "does not agree with" in verify(filtered)[0], "the bytes of one sample under the key of another"


def test_index_shard_refuses_what_tarfile_takes_for_the_end(folder: Path, tmp_path: Path) -> None:
    path = folder / "s-train-000000.tar"
    data = path.read_bytes()
    header = index_shard(path).spans(1)["json"][0] - 512
    cases = {
        "cut at an edge": (data[:header], "no end-of-archive mark at byte"),
        "cut in a member": (data[: header - 100], "not a whole, uncompressed tar: unexpected end of data"),
        "damaged header": (data[:header] + b"x" * 512 + data[header + 512 :], f"a damaged header at byte {header}"),
        "compressed": (gzip.compress(data), "not a whole, uncompressed tar"),
        "no tar": (b"hello" * 1000, "not a whole, uncompressed tar"),
        "empty": (b"", "not a whole, uncompressed tar"),
    }
    for name, (content, message) in cases.items():
        other = tmp_path / f"{name}.tar"
        other.write_bytes(content)
        with pytest.raises(InputError, match=message):
            index_shard(other)
    with pytest.raises(InputError, match="There is no shard"):
        index_shard(tmp_path / "absent.tar")


def plain_tar(path: Path, *names: str) -> Path:
    with tarfile.open(path, "w") as tar:
        for name in names:
            tar.addfile(tarfile.TarInfo(name))
    return path


def test_index_shard_groups_as_webdataset_does(tmp_path: Path) -> None:
    path = plain_tar(tmp_path / "a.tar", "__meta__", "d.x/a.PNG", "README", "d.x/a.seg.png", "b.png")
    index = index_shard(path)
    assert index.keys == ("d.x/a", "b")
    assert [list(index.spans(row)) for row in range(2)] == [["png", "seg.png"], ["png"]]
    with pytest.raises(InputError, match="the sample 'a' comes twice"):
        index_shard(plain_tar(tmp_path / "b.tar", "a.png", "b.png", "a.json"))
    with pytest.raises(InputError, match="'a' has two members with the extension 'png'"):
        index_shard(plain_tar(tmp_path / "c.tar", "a.png", "a.PNG"))


@pytest.mark.parametrize("key", ["", "a.b", "/a", "a//b", "../a", "a/..", "a\nb", "a/b.c"])
def test_keys_that_would_not_come_back_are_refused(tmp_path: Path, key: str) -> None:
    with ShardWriter(tmp_path / "set", "s") as writer:
        writer.write(SAMPLES[1])
        with pytest.raises(InputError, match="cannot be used: it is a relative path"):
            writer.write(RawSample(key, {"png": b""}))


@pytest.mark.parametrize("extension", ["", "PNG", "a/b", "__key__", "a\n"])
def test_extensions_that_would_not_come_back_are_refused(tmp_path: Path, extension: str) -> None:
    with ShardWriter(tmp_path / "set", "s") as writer:
        writer.write(SAMPLES[1])
        with pytest.raises(InputError, match="an extension is in lower case"):
            writer.write(RawSample("a", {extension: b""}))
        with pytest.raises(InputError, match="has no members"):
            writer.write(RawSample("a", {}))
        with pytest.raises(InputError, match="'k001' comes twice"):
            writer.write(SAMPLES[1], split="val")


def test_an_exception_leaves_the_folder_as_it_was(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="stop"), ShardWriter(tmp_path, "s", samples_per_shard=1) as writer:
        writer.write(SAMPLES[1])
        writer.write(SAMPLES[2], split="val")
        raise RuntimeError("stop")
    assert names(tmp_path) == []
    with pytest.raises(InputError, match="No sample was written"), ShardWriter(tmp_path, "s"):
        pass
    assert names(tmp_path) == []


def test_a_set_is_replaced_only_when_asked(folder: Path) -> None:
    with pytest.raises(InputError, match="holds a set of shards already"):
        ShardWriter(folder, "s")
    (folder / "README.md").write_text("mine")
    with ShardWriter(folder, "s", overwrite=True) as writer:
        writer.write(SAMPLES[2])
    assert names(folder) == [
        "README.md",
        "manifest.json",
        "s-train-000000.index.json",
        "s-train-000000.tar",
    ]
    assert ShardReader(Manifest.load(folder), "train")[0] == SAMPLES[2]


def test_arguments_of_the_writer_are_checked(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="of letters, digits"):
        ShardWriter(tmp_path, "a/b")
    with pytest.raises(InputError, match="at least 1, but is 0"):
        ShardWriter(tmp_path, "a", samples_per_shard=0)
    with pytest.raises(InputError, match="split's name"), ShardWriter(tmp_path, "a") as writer:
        writer.write(SAMPLES[1], split="a b")


def test_shards_are_read_without_torch() -> None:
    program = "import sys, mmformer.data.shards; sys.exit('torch' in sys.modules or 'webdataset' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
