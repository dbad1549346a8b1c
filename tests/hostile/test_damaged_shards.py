"""Shards that were cut or changed: all of it is found, or does no harm to any sample."""

from __future__ import annotations

import json
import os
import random
import shutil
from pathlib import Path

import pytest
from attempts import count, damaged, fuzz, outcome, strange
from tiny import write_shards

from mmformer.data.damage import DamageError
from mmformer.data.manifest import Manifest, ShardIndex
from mmformer.data.shards import RawSample, ShardReader, ShardWriter, verify_shard
from mmformer.data.tar import index_shard
from mmformer.errors import InputError

FOUND, HARMLESS = "found", "harmless"


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One shard of samples with several members, one of them long, and keys that need headers of their own."""
    with ShardWriter(tmp_path_factory.mktemp("whole") / "set", "s") as writer:
        for number in range(12):
            key = f"{'deep/' * 30 if number % 4 == 0 else ''}k{number:03d}"
            members = {"json": json.dumps({"names": {"en": f"thing {number}"}}).encode(), "bin": bytes(range(number))}
            writer.write(RawSample(key, members | {"png": random.Random(number).randbytes(700)}))
    return writer.folder


def whole_samples(folder: Path) -> list[RawSample]:
    reader = ShardReader(Manifest.load(folder), "train")
    return [reader[place] for place in range(len(reader))]


def what_a_reader_makes(folder: Path, expected: list[RawSample]) -> set[str]:
    """Of each sample: it is refused, or is what was written."""
    found = set()
    reader = ShardReader(Manifest.load(folder), "train")
    for place, sample in enumerate(expected):
        try:
            assert reader[place] == sample, "damage was silent"
            found.add(HARMLESS)
        except InputError:
            found.add(FOUND)
    return found


def what_an_index_makes(tar: Path, expected: ShardIndex) -> str:
    """Where nothing is known of a tar: it is refused, or its samples lie where they lay, and their bytes are known."""
    try:
        found = index_shard(tar)
    except InputError:
        return FOUND
    where = (found.keys, found.extensions, found.members)
    return HARMLESS if where == (expected.keys, expected.extensions, expected.members) else "otherwise"


def copied(whole: Path, folder: Path) -> Path:
    return Path(shutil.copytree(whole, folder / "set", dirs_exist_ok=True))


def test_every_cut_is_found(whole: Path, tmp_path: Path) -> None:
    """At every boundary of blocks, where webdataset sees nothing wrong, and in some blocks."""
    folder = copied(whole, tmp_path)
    manifest, expected = Manifest.load(folder), whole_samples(whole)
    (shard,) = manifest.shards
    tar, content = manifest.path(shard), manifest.path(shard).read_bytes()
    index = index_shard(tar)
    end = max(offset + length for row in range(len(index)) for offset, length in index.spans(row).values())
    for size in [*range(0, len(content), 512), *range(1, len(content), 7001)]:
        tar.write_bytes(content[:size])
        assert what_a_reader_makes(folder, expected) == {FOUND}
        assert verify_shard(manifest, shard)
        made = what_an_index_makes(tar, index)
        assert made == FOUND or (made == HARMLESS and size >= end), f"cut at {size}, {made}"
        count("shards cut", FOUND)


@pytest.mark.parametrize("flips", [100, pytest.param(1000, marks=pytest.mark.slow)])
def test_no_flipped_bit_is_silent(whole: Path, tmp_path: Path, flips: int) -> None:
    folder = copied(whole, tmp_path)
    manifest, expected = Manifest.load(folder), whole_samples(whole)
    (shard,) = manifest.shards
    tar, content = manifest.path(shard), manifest.path(shard).read_bytes()
    index, chance = index_shard(tar), random.Random(0)
    outcomes = set()
    for _ in range(flips):
        bit = chance.randrange(8 * len(content))
        changed = bytearray(content)
        changed[bit // 8] ^= 1 << bit % 8
        tar.write_bytes(changed)
        made = what_a_reader_makes(folder, expected)
        assert verify_shard(manifest, shard), "the hash is another"
        inside = any(a <= bit // 8 < a + n for row in range(len(index)) for a, n in index.spans(row).values())
        assert (FOUND in made) == inside, "damage of a member is found where it is read, and no other matters"
        if inside:
            assert what_an_index_makes(tar, index) == HARMLESS
        outcomes |= made
        count("bits of shards flipped", FOUND if inside else HARMLESS)
    assert outcomes == {FOUND, HARMLESS}


@pytest.mark.parametrize("budget", [40, pytest.param(3000, marks=pytest.mark.slow)])
def test_a_damaged_tar_of_which_nothing_is_known_is_indexed_or_refused(
    whole: Path, tmp_path: Path, budget: int
) -> None:
    (shard,) = Manifest.load(whole).shards
    content, tar = (whole / shard.path).read_bytes(), tmp_path / "s.tar"

    def attempt(data: bytes) -> None:
        tar.write_bytes(data)
        index = index_shard(tar)
        size = len(data)
        for row in range(len(index)):
            assert all(0 <= offset <= offset + length <= size for offset, length in index.spans(row).values())

    assert "refused" in fuzz("tars", damaged(content), attempt, budget)


@pytest.mark.parametrize("budget", [40, pytest.param(4000, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", ["manifest", "index"])
def test_strange_manifests_and_indexes_are_read_or_refused(name: str, whole: Path, tmp_path: Path, budget: int) -> None:
    folder = copied(whole, tmp_path)
    (shard,) = Manifest.load(folder).shards
    file = folder / ("manifest.json" if name == "manifest" else shard.index)

    def attempt(tree: object) -> None:
        file.write_text(json.dumps(tree), encoding="utf-8")
        manifest = Manifest.load(folder)
        reader = ShardReader(manifest, manifest.splits[0])
        for place in range(min(len(reader), 40)):
            try:
                reader[place]
            except DamageError:  # of this sample; others may be whole
                continue

    assert "refused" in fuzz(f"shards, {name}", strange(json.loads(file.read_text())), attempt, budget)


def test_a_skipped_sample_is_counted_by_its_cause(tmp_path: Path) -> None:
    """What the fuzzed readers raise is what a run counts: see tests/data/test_damage.py for the counting."""
    folder = write_shards(tmp_path / "set")
    manifest = Manifest.load(folder)
    shard = manifest.split("train")[0]
    offset, _ = manifest.index(shard).spans(0)["png"]
    with manifest.path(shard).open("r+b") as file:
        file.seek(offset)
        byte = file.read(1)
        file.seek(offset)
        file.write(bytes([byte[0] ^ 4]))
        os.fsync(file.fileno())
    reader = ShardReader(manifest, "train")
    with pytest.raises(DamageError, match="are not those that were indexed") as caught:
        reader.read(0, 0)
    assert (caught.value.key, caught.value.cause) == (reader.part_keys(0)[0], "changed bytes")
    assert outcome(lambda: reader.read(0, 1)) == "read"
