"""The table of very many shards, in a file of columns: what the manifest would say, and what cannot be right."""

from __future__ import annotations

import json
import pickle
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import tiny_data, write_shards

from mmformer.data import manifest as manifest_module
from mmformer.data import remote
from mmformer.data.dataset import MixedDataset
from mmformer.data.manifest import FilterRecord, Manifest, Shard
from mmformer.data.opening import open_samples
from mmformer.data.remote import open_manifest
from mmformer.data.shard_table import ShardTable
from mmformer.data.shards import ShardReader, verify
from mmformer.data.transfer import copy
from mmformer.errors import InputError

ROW = Shard("a-train-000000.tar", "train", 2, 4096, "0123456789abcdef" * 4, "a-train-000000.index.json")


@pytest.fixture(autouse=True)
def tables(monkeypatch: pytest.MonkeyPatch) -> None:
    """All manifests have their rows in a table."""
    monkeypatch.setattr(manifest_module, "MOST_ROWS", 0)


def many(number: int, splits: tuple[str, ...] = ("train", "val")) -> list[Shard]:
    return [Shard(f"é/{n}.tar", splits[n % len(splits)], n, n * 2**33, f"{n:064x}", f"{n}.json") for n in range(number)]


def test_a_table_says_what_was_saved(tmp_path: Path) -> None:
    rows = many(20)
    Manifest(tmp_path, rows, (FilterRecord("length", {}, kept=2, removed=5),)).save()
    found = Manifest.load(tmp_path)
    assert isinstance(found.shards, ShardTable)
    assert list(found.shards) == rows
    assert found.shards == rows
    assert found.shards != rows[:-1]
    assert found.splits == ("train", "val")
    assert list(found.split("val")) == rows[1::2]
    assert found.split("val")[-1] == rows[-1]
    assert found.split("val")[1:3] == (rows[3], rows[5])
    assert found.history[0].kept == 2
    assert pickle.loads(pickle.dumps(found)).split("val") == rows[1::2]
    with pytest.raises(InputError, match=r"no split 'vall' in .*it has train, val. Did you mean 'val'"):
        found.split("vall")
    with pytest.raises(IndexError):
        found.split("val")[10]


ROWS = st.builds(
    replace,
    st.just(ROW),
    split=st.sampled_from(("train", "é", "x")),
    samples=st.integers(0, 2**40),
    bytes=st.integers(0, 2**63 - 1),
    sha256=st.binary(min_size=32, max_size=32).map(bytes.hex),
)


@settings(deadline=None, max_examples=30)
@given(st.lists(ROWS, min_size=1, max_size=6))
def test_any_table_survives(tmp_path_factory: pytest.TempPathFactory, rows: list[Shard]) -> None:
    folder = tmp_path_factory.mktemp("table")
    rows = [replace(row, path=f"../{'d' * number}/{number}.tar", index=f"{number}") for number, row in enumerate(rows)]
    Manifest(folder, rows).save()
    assert Manifest.load(folder).shards == rows


def test_the_counts_of_a_split_are_those_of_its_rows(tmp_path: Path) -> None:
    rows = sorted(many(30), key=lambda shard: shard.split)
    for order in (rows, many(30)):
        Manifest(tmp_path, order).save()
        counts = ShardReader(Manifest.load(tmp_path), "val").counts
        assert list(counts) == [shard.samples for shard in order if shard.split == "val"]
        assert all(type(count) is int for count in counts)
        assert np.asarray(counts).sum() == len(ShardReader(Manifest.load(tmp_path), "val"))


def test_what_is_written_anew_leaves_nothing_of_the_old(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Manifest(tmp_path, many(3)).save()
    Manifest(tmp_path, many(4)).save()
    assert len(list(tmp_path.iterdir())) == 2
    monkeypatch.setattr(manifest_module, "MOST_ROWS", 4)
    Manifest(tmp_path, many(4)).save()
    assert [path.name for path in tmp_path.iterdir()] == ["manifest.json"]
    assert Manifest.load(tmp_path).shards == tuple(many(4))


@pytest.fixture
def far(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Path, str]]:
    """A set whose manifest has a table, here and elsewhere."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    folder = write_shards(tmp_path / "set")
    memory = fsspec.filesystem("memory")
    memory.put(f"{folder}/", "/tables/set/", recursive=True)
    yield folder, "memory://tables/set"
    memory.rm("/tables", recursive=True)


def test_samples_are_read_by_a_table_here_and_elsewhere(far: tuple[Path, str]) -> None:
    folder, url = far
    assert json.loads((folder / "manifest.json").read_text())["version"] == 2
    assert verify(Manifest.load(folder)) == []
    here, there = (open_samples(str(place), "train") for place in (folder, url))
    assert len(here) == len(there) == 32
    assert [here[n] for n in range(32)] == [there[n] for n in range(32)]
    data = tiny_data(folder, cache_mib=0)
    worker = pickle.loads(pickle.dumps(MixedDataset(data, 3)))
    assert [worker[position].key for position in range(20)] == [MixedDataset(data, 3)[p].key for p in range(20)]


def test_several_readers_copy_a_table_once(far: tuple[Path, str], monkeypatch: pytest.MonkeyPatch) -> None:
    copied: list[str] = []

    def slowly(url: str, *rest: Any) -> str:
        copied.append(Path(url).suffix)
        time.sleep(0.2)
        return copy(url, *rest)

    monkeypatch.setattr(remote, "copy", slowly)
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(open_manifest, [far[1]] * 4))
    assert all(each.shards == found[0].shards for each in found)
    assert copied.count(".table") == 1


def test_a_table_elsewhere_that_is_another_is_refused(far: tuple[Path, str]) -> None:
    memory = fsspec.filesystem("memory")
    (table,) = memory.glob("/tables/set/*.table")
    memory.pipe(table, memory.cat(table)[:-1] + b"x")
    with pytest.raises(InputError, match=r"manifest-.*table .* was changed or cut"):
        open_samples(far[1], "train")


def spoilt(folder: Path, **layout: Any) -> Path:
    """A manifest that says something else of its table."""
    Manifest(folder, many(5)).save()
    path = folder / "manifest.json"
    content = json.loads(path.read_text())
    content["table"] |= layout
    path.write_text(json.dumps(content))
    return folder


@pytest.mark.parametrize(
    ("layout", "message"),
    [
        ({"shards": 6}, r"manifest-.*table has \d+ bytes, but its manifest says \d+. Restore it"),
        ({"shards": 0}, "must be a table of at least one shard"),
        ({"path": 0}, "must be a table of at least one shard"),
        ({"index": 10**30}, "paths of 1 to 65,535 bytes"),
        ({"shards": -1}, "shards must be a whole number, but is -1"),
        ({"file": "../manifest.table"}, "must be the name of a file beside the manifest"),
        ({"file": "nowhere.table"}, "nowhere.table cannot be read: No such file"),
        ({"splits": []}, "at least one shard"),
        ({"splits": ["train"]}, r"shards\[1\].split cannot be 1"),
        ({"splits": "train"}, "splits must be a list of texts"),
        ({"urls": 0}, "urls must be true or false, but is 0"),
        ({"more": 0}, "unknown field 'more'"),
    ],
)
def test_a_broken_layout_is_refused(layout: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message):
        Manifest.load(spoilt(tmp_path, **layout))


def test_numbers_and_rows_that_cannot_be_right_are_refused(tmp_path: Path) -> None:
    folder = spoilt(tmp_path)
    (table,) = folder.glob("*.table")
    whole = table.read_bytes()
    table.write_bytes(whole[:15] + b"\xff" + whole[16:])  # the second count, of which this is the sign
    with pytest.raises(InputError, match=r"shards\[1\].samples cannot be -"):
        Manifest.load(folder)
    table.write_bytes(whole[:55] + b"\xff" + whole[56:])
    with pytest.raises(InputError, match=r"shards\[1\].bytes cannot be -"):
        Manifest.load(folder).shards[1]
    paths = len(whole) - 5 * (len("é/0.tar".encode()) + len("0.json"))
    table.write_bytes(whole[:paths] + b"/x" + whole[paths + 2 :])
    shards = Manifest.load(folder).shards
    assert shards[1] == many(5)[1]
    with pytest.raises(InputError, match=r"shards\[0\].path must be relative to the manifest's folder"):
        shards[0]
    table.write_bytes(whole[:paths] + b"\xff" + whole[paths + 1 :])
    with pytest.raises(InputError, match=r"shards\[0\] is not UTF-8"):
        Manifest.load(folder).shards[0]


def test_a_shard_twice_is_refused_when_it_is_written(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"lists the shard é/0.tar twice"):
        Manifest(tmp_path, [*many(3), many(3)[0]]).save()
    assert not list(tmp_path.iterdir())
