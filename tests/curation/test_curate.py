"""A filter's verdicts as a set of its own, over the shards of the old one."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import pytest
from sets import encoded as png
from sets import fields, keys, scene, table, texts, write_set
from tiny import tiny_data, write_shards

from mmformer.curation.candidates import Candidates, Place
from mmformer.curation.captions import Captions
from mmformer.curation.curate import curate
from mmformer.curation.duplicates import Duplicates
from mmformer.curation.filter import Filter, Verdict, removed
from mmformer.curation.picture_likeness import PictureLikeness
from mmformer.data.dataset import SampleDataset
from mmformer.data.manifest import Manifest
from mmformer.data.order import OrderSpec
from mmformer.data.shards import ShardReader, verify
from mmformer.errors import InputError


@dataclass(frozen=True)
class Fixed(Filter):
    """So many copies of each sample."""

    name: ClassVar[str] = "fixed"

    copies: tuple[int, ...]

    def judge(self, samples: Candidates) -> Sequence[Verdict]:
        assert len(samples) == len(self.copies)
        return [Verdict(times) if times else removed("unwanted", f"no {row}") for row, times in enumerate(self.copies)]


def files(folder: Path) -> dict[str, str]:
    return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write_set(tmp_path / "source", train=texts(*"abcdefgh"), test=texts("x", "y"))


def test_what_stays_is_read_in_its_order_and_the_shards_are_left_alone(source: Path, tmp_path: Path) -> None:
    before = files(source)
    done = curate(source, tmp_path / "out", Fixed((1, 0, 1, 0, 0, 0, 2, 1)))
    assert files(source) == before
    assert (done.kept, done.rows, done.reasons) == (4, 5, {"unwanted": 4})
    reader = ShardReader(Manifest.load(tmp_path / "out"), "train")
    read = [(raw.key, raw.members["txt"]) for raw in (reader[i] for i in range(len(reader)))]
    assert read == [("train0", b"a"), ("train2", b"c"), ("train6", b"g"), ("train6", b"g"), ("train7", b"h")]
    assert keys(tmp_path / "out", "test") == ["test0", "test1"], "carried over"
    assert reader.counts == (2, 3), "the shard of which nothing stays is none of the set"
    assert not list((tmp_path / "out").rglob("*.tar"))


def test_the_new_set_is_whole(source: Path, tmp_path: Path) -> None:
    curate(source, tmp_path / "deep" / "er" / "out", Fixed((1, 0, 1, 0, 0, 0, 2, 1)))
    assert verify(Manifest.load(tmp_path / "deep" / "er" / "out")) == []


def test_it_says_what_was_removed_and_why(source: Path, tmp_path: Path) -> None:
    curate(source, tmp_path / "out", Fixed((1, 0, 1, 1, 1, 1, 1, 0)))
    expected = [["train1", "train", "fixed", "unwanted", "no 1"], ["train7", "train", "fixed", "unwanted", "no 7"]]
    assert table(tmp_path / "out" / "removed.tsv") == expected
    (record,) = json.loads((tmp_path / "out" / "manifest.json").read_text())["history"]
    arguments = {"split": "train", "copies": [1, 0, 1, 1, 1, 1, 1, 0]}
    assert record == {"filter": "fixed", "arguments": arguments, "kept": 6, "removed": 2}


def test_filters_chain_and_remember_each_other(source: Path, tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "elsewhere" / "second"
    curate(source, first, Fixed((1, 0, 1, 1, 0, 1, 1, 1)))
    curate(first, second, Fixed((0, 1, 1, 1, 1, 0)))
    curate(second, tmp_path / "third", Fixed((1, 0)), split="test")
    assert keys(tmp_path / "third") == ["train2", "train3", "train5", "train6"]
    assert keys(tmp_path / "third", "test") == ["test0"]
    manifest = Manifest.load(tmp_path / "third")
    assert [(step.filter, step.kept, step.removed) for step in manifest.history] == [
        ("fixed", 6, 2),
        ("fixed", 4, 2),
        ("fixed", 1, 1),
    ]
    assert [row[0] for row in table(tmp_path / "third" / "removed.tsv")] == [
        "train1",
        "train4",
        "train0",
        "train7",
        "test1",
    ]
    assert verify(manifest) == []
    assert {manifest.path(shard).resolve().parent for shard in manifest.shards} == {source.resolve()}


def test_training_reads_the_filtered_set_and_only_that(tmp_path: Path) -> None:
    shards = write_shards(tmp_path / "shards")
    curate(shards, tmp_path / "red", Captions(Place("text", "json", "names.en"), match=r"\b(red|blue)\b"))
    data = tiny_data(tmp_path / "red", order=OrderSpec(lanes=2, block=8))
    dataset = SampleDataset(data, "train", data.order, seed=0, training=True)
    assert len(dataset) == len(keys(tmp_path / "red")) < 32
    epoch = [dataset[position] for position in range(len(dataset))]
    assert {sample.key for sample in epoch} == set(keys(tmp_path / "red"))
    whole = ShardReader(Manifest.load(shards), "train")
    named = {raw.key: json.loads(raw.members["json"])["colour"] for raw in (whole[i] for i in range(len(whole)))}
    assert {key for key, colour in named.items() if colour in ("red", "blue")} == {sample.key for sample in epoch}


def test_a_damaged_sample_does_not_stay(tmp_path: Path) -> None:
    good = [png(scene(seed)) for seed in range(3)]
    source = write_set(tmp_path / "source", train=[{"png": data} for data in (*good, good[0][:-40], good[1][:200])])
    done = curate(source, tmp_path / "out", Duplicates((PictureLikeness(),)))
    assert keys(tmp_path / "out") == ["train0", "train1", "train2"]
    assert done.reasons == {"damaged": 2}
    assert all("not a whole PNG" in row[4] for row in table(tmp_path / "out" / "removed.tsv"))


def test_a_detail_with_a_tab_and_lines_is_one_cell(tmp_path: Path) -> None:
    source = write_set(tmp_path / "source", train=fields({"t": 'a\t"b"\nc'}, {"t": "good enough"}))
    curate(source, tmp_path / "out", Captions(Place("text", "json", "t"), avoid=r"\t"))
    curate(tmp_path / "out", tmp_path / "again", Captions(Place("text", "json", "t"), characters=(1, None)))
    first, again = ((tmp_path / name / "removed.tsv").read_text() for name in ("out", "again"))
    assert first == again != ""


def test_nothing_is_written_where_nothing_would_be_left(source: Path, tmp_path: Path) -> None:
    with pytest.raises(
        InputError, match=r"fixed would leave none of the 8 samples .* 8 for 'unwanted'.*'train0': no 0"
    ):
        curate(source, tmp_path / "out", Fixed((0,) * 8))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["source"]


def test_a_folder_that_is_there_is_not_touched(source: Path, tmp_path: Path) -> None:
    before = files(source)
    for out in (source, tmp_path):
        with pytest.raises(InputError, match="is there already"):
            curate(source, out, Fixed((1,) * 8))
    assert files(tmp_path) == before


def test_an_unknown_split_is_refused(source: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="Did you mean 'train'"):
        curate(source, tmp_path / "out", Fixed(()), split="trian")
