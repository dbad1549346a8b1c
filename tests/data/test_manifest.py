"""The manifest and the index: what is written is read back, and what cannot be right is refused with the fix."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmformer.data.manifest import FilterRecord, Manifest, Shard, ShardIndex
from mmformer.errors import InputError

SHA = "0123456789abcdef" * 4
ROW = Shard("a-train-000000.tar", "train", 2, 4096, SHA, "a-train-000000.index.json")
RECORD = FilterRecord("length", {"least": 3, "words": ["a"]}, kept=2, removed=5)
INDEX = ShardIndex("a-train-000000.tar", 4096, ("json", "png"), ("k0", "k1"), ((0, 512, 3, 1, 1536, 9), (0, 2560, 5)))


def write(folder: Path, content: Any) -> Path:
    (folder / "manifest.json").write_text(content if isinstance(content, str) else json.dumps(content))
    return folder


def as_written(*rows: dict[str, Any], **header: Any) -> dict[str, Any]:
    return {"format": "mmformer-shards", "version": 1, "shards": list(rows)} | header


def test_a_folder_and_its_file_load_as_what_was_saved(tmp_path: Path) -> None:
    shards = (
        ROW,
        replace(ROW, path="sub/b.tar", split="val", index="sub/b.json"),
        replace(ROW, path="c.tar", index="c.json"),
    )
    saved = Manifest(tmp_path, shards)
    path = saved.save()
    assert Manifest.load(tmp_path) == saved
    assert Manifest.load(path) == saved
    assert Manifest.load(str(path)).shards == shards
    assert saved.splits == ("train", "val")
    assert saved.split("train") == (shards[0], shards[2])
    assert saved.path(shards[1]) == tmp_path / "sub" / "b.tar"
    assert [path.name for path in tmp_path.iterdir()] == ["manifest.json"]


ROWS = st.builds(
    replace, st.just(ROW), split=st.text(min_size=1), samples=st.integers(0, 2**40), bytes=st.integers(0, 2**63 - 1)
)


@settings(deadline=None, max_examples=30)
@given(st.lists(ROWS, max_size=5))
def test_any_table_survives(tmp_path_factory: pytest.TempPathFactory, rows: list[Shard]) -> None:
    folder = tmp_path_factory.mktemp("table")
    table = (ROW, *(replace(row, path=f"{number}.tar", index=f"{number}.json") for number, row in enumerate(rows)))
    Manifest(folder, table).save()
    assert Manifest.load(folder).shards == table


def test_what_filters_did_is_kept_and_their_tars_may_lie_elsewhere(tmp_path: Path) -> None:
    rows = (replace(ROW, path="../whole/a.tar"), replace(ROW, path="../whole/a.tar", split="val", index="val.json"))
    saved = Manifest(tmp_path, rows, (RECORD, replace(RECORD, filter="é")))
    assert Manifest.load(saved.save()) == saved
    assert saved.path(rows[0]) == tmp_path / ".." / "whole" / "a.tar"


def test_an_unknown_split_lists_the_known_ones(tmp_path: Path) -> None:
    manifest = Manifest(tmp_path, (ROW, replace(ROW, path="b.tar", split="val", index="b.json")))
    with pytest.raises(
        InputError, match=r"no split 'trian' in .*manifest.json: it has train, val. Did you mean 'train"
    ):
        manifest.split("trian")


def test_a_missing_folder_names_its_neighbour(tmp_path: Path) -> None:
    (tmp_path / "emoji").mkdir()
    with pytest.raises(InputError, match=r"no folder of shards .*emojis. Did you mean 'emoji'\?"):
        Manifest.load(tmp_path / "emojis")
    with pytest.raises(InputError, match="no folder of shards"):
        Manifest.load(tmp_path / "nowhere" / "at-all")


def test_a_folder_without_a_manifest_says_what_makes_one(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"There is no manifest .*manifest.json. A folder of shards has a"):
        Manifest.load(tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "cannot be read: Expecting"),
        ("\udcff".encode("utf-8", "surrogateescape"), "cannot be read: .*utf-8"),
        ("[]", "must have the format 'mmformer-shards', but has 'list'"),
        (as_written(format="other"), "must have the format 'mmformer-shards', but has 'other'"),
        (as_written(asdict(ROW), version=3), "has version 3, but this mmformer reads up to version 2. Update mmformer"),
        (as_written(asdict(ROW), version=2), "table must be an object with the fields of a Layout, but is None"),
        (as_written(asdict(ROW), version="1"), "version from 1 to 2, but has '1'"),
        (as_written(), "at least one shard"),
        (as_written(shards={}), "at least one shard"),
        (as_written(asdict(ROW), asdict(ROW)), "lists the shard a-train-000000.tar twice"),
        (
            as_written(asdict(ROW) | {"sample": 1}),
            r"shards\[0\] has an unknown field 'sample'. Did you mean 'samples'",
        ),
        (as_written({"path": "a.tar"}), r"shards\[0\] lacks the field 'split'"),
        (as_written(asdict(ROW) | {"samples": -1}), "samples must be a whole number, but is -1"),
        (as_written(asdict(ROW) | {"samples": 2**63}), "samples must be 0 to 1099511627776, but is 92"),
        (as_written(asdict(ROW) | {"bytes": True}), "bytes must be a whole number, but is True"),
        (as_written(asdict(ROW) | {"split": ""}), "split must be text, but is ''"),
        (as_written(asdict(ROW), asdict(ROW) | {"path": "b.tar"}), "lists the index a-train-000000.index.json twice"),
        (as_written(asdict(ROW) | {"path": "/a.tar"}), "must be relative to the manifest's folder, but is '/a.tar'"),
        (as_written(asdict(ROW) | {"index": "../a.json"}), "must lie below the manifest's folder, but is '../a.json'"),
        (as_written(asdict(ROW) | {"index": "/a.json"}), "must lie below the manifest's folder, but is '/a.json'"),
        (as_written(asdict(ROW) | {"sha256": "xyz"}), "64 hexadecimal digits"),
        (as_written(3), r"shards\[0\] must be an object"),  # type: ignore[arg-type]
        (as_written(asdict(ROW), history={}), "'history' must be a list of what filters did"),
        (as_written(asdict(ROW), history=[asdict(RECORD) | {"keep": 1}]), r"history\[0\] has .* Did you mean 'kept'"),
        (as_written(asdict(ROW), history=[asdict(RECORD) | {"arguments": 1}]), "arguments must be an object, but is 1"),
    ],
)
def test_a_broken_manifest_is_refused(tmp_path: Path, content: Any, message: str) -> None:
    if isinstance(content, bytes):
        (tmp_path / "manifest.json").write_bytes(content)
    else:
        write(tmp_path, content)
    with pytest.raises(InputError, match=message):
        Manifest.load(tmp_path)


def test_an_index_survives_and_tells_spans(tmp_path: Path) -> None:
    path = tmp_path / ROW.index
    unusual = replace(INDEX, keys=("k\udcff", "猫"))  # a name that is not UTF-8, as tarfile reads it
    unusual.save(path)
    assert ShardIndex.load(path) == unusual
    assert len(INDEX) == 2
    assert INDEX.spans(0) == {"json": (512, 3), "png": (1536, 9)}
    assert INDEX.spans(1) == {"json": (2560, 5)}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"keys": ["k0"]}, "1 keys, but 2 rows"),
        ({"keys": ["k0", 1]}, "must be strings"),
        ({"keys": None}, "missing or of the wrong type"),
        ({"members": [[0, 512], []]}, "sample 'k0' are not"),
        ({"members": [[], [0, 1.5, 2]]}, "sample 'k1' are not"),
        ({"members": [[], [2, 512, 3]]}, "sample 'k1' lies outside the shard's 4096 bytes"),
        ({"members": [[], [0, 4095, 2]]}, "sample 'k1' lies outside"),
        ({"members": [[], [0, -1, 2]]}, "sample 'k1' lies outside"),
        ({"version": 9}, "has version 9"),
    ],
)
def test_a_broken_index_is_refused(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    path = tmp_path / "index.json"
    INDEX.save(path)
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(InputError, match=message):
        ShardIndex.load(path)


def test_a_missing_index_and_one_of_another_shard_say_so(tmp_path: Path) -> None:
    manifest = Manifest(tmp_path, (ROW,))
    with pytest.raises(InputError, match=r"no index of a shard, .*index.json. Make the index again"):
        manifest.index(ROW)
    replace(INDEX, bytes=9999).save(tmp_path / ROW.index)
    with pytest.raises(InputError, match=r"indexes 2 samples in 9999 bytes, but .* 2 samples in 4096 bytes"):
        manifest.index(ROW)
    INDEX.save(tmp_path / ROW.index)
    assert manifest.index(ROW) == INDEX
