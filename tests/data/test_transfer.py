"""Copying from a server that answers with errors, slowly, not at all, in part, or with something else."""

from __future__ import annotations

import hashlib
import queue
import random
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny import VOCABULARY, tiny_data, write_shards
from web_server import Asked, Fault, Server, serving

from mmformer.data import transfer
from mmformer.data.damage import ShardError
from mmformer.data.loading import training_loader
from mmformer.data.manifest import Manifest
from mmformer.data.remote import CacheSpec, open_manifest
from mmformer.data.shards import ShardReader
from mmformer.data.transfer import Expected, Patience, copy
from mmformer.errors import InputError
from mmformer.tokenizers.text import TextTokensSpec

DATA = np.random.default_rng(0).bytes(13 * 2**20 + 5)  # several blocks of ours and of fsspec's
EXPECTED = Expected(hashlib.sha256(DATA).hexdigest(), len(DATA))


@pytest.fixture(params=[True, False], ids=["parts", "whole"])
def server(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Server]:
    """One that can send parts of files, and one that cannot."""
    (tmp_path / "served").mkdir()
    (tmp_path / "served" / "a.tar").write_bytes(DATA)
    with serving(tmp_path / "served", request.param) as server:
        yield server


def copied(server: Server, folder: Path, name: str = "a.tar", patience: Patience = Patience(4, 10.0)) -> bytes:
    copy(f"{server.url}/{name}", folder / "copy", patience, EXPECTED)
    return (folder / "copy").read_bytes()


def test_a_whole_file_is_copied(server: Server, tmp_path: Path, waits: list[float]) -> None:
    assert copied(server, tmp_path) == DATA
    assert not waits


def test_errors_that_pass_are_waited_for(server: Server, tmp_path: Path) -> None:
    waits: list[float] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(transfer, "sleep", waits.append)
        server.fault = lambda number, asked: Fault(status=(503, 500, 429)[len(waits)]) if len(waits) < 3 else None
        assert copied(server, tmp_path) == DATA
    assert [0.5 * 2**n <= wait <= 2**n for n, wait in enumerate(waits)] == [True] * 3, "each twice the one before"


def test_errors_that_stay_are_told_with_the_number_of_attempts(
    server: Server, tmp_path: Path, waits: list[float]
) -> None:
    server.fault = lambda number, asked: Fault(status=503)
    with pytest.raises(ShardError, match=r"a.tar cannot be read \(asked 4 times\): 503") as caught:
        copied(server, tmp_path)
    assert caught.value.cause == "unreachable shard"
    assert len(waits) == 3
    assert not [path for path in tmp_path.iterdir() if path.name != "served"], "nothing is left"


@pytest.mark.parametrize(
    ("status", "cause", "message"),
    [(404, "missing shard", "there is no such file. Check the address"), (403, "unreachable shard", "403")],
)
def test_what_waiting_cannot_mend_is_told_at_once(
    status: int, cause: str, message: str, server: Server, tmp_path: Path, waits: list[float]
) -> None:
    server.fault = lambda number, asked: Fault(status=status)
    with pytest.raises(ShardError, match=message) as caught:
        copied(server, tmp_path)
    assert (caught.value.cause, waits) == (cause, [])


def test_a_server_that_is_not_there_is_asked_again(tmp_path: Path, waits: list[float]) -> None:
    with serving(tmp_path) as server:
        pass
    with pytest.raises(ShardError, match=r"asked 4 times\): .*Cannot connect to host") as caught:
        copied(server, tmp_path)
    assert (caught.value.cause, len(waits)) == ("unreachable shard", 3)


def test_a_cut_answer_is_taken_up_where_it_was_cut(server: Server, tmp_path: Path, waits: list[float]) -> None:
    def parts() -> list[int]:
        return [asked.first for asked in server.asked if asked.method == "GET"]

    server.fault = lambda number, asked: Fault(cut=(3 * 2**20, 2**16)[number]) if number < 2 else None
    assert copied(server, tmp_path) == DATA
    assert len(waits) == 1 + server.ranges, "the other one's second answer is known to be of no use before it is cut"
    if server.ranges:
        assert parts()[0] == 0
        assert min(parts()[1:]) > 2**21, "what had come is not asked for again"


def test_an_answer_that_ends_early_without_a_word_is_noticed(
    server: Server, tmp_path: Path, waits: list[float]
) -> None:
    server.fault = lambda number, asked: Fault(ends=2**20) if number == 0 and asked.method == "GET" else None
    assert copied(server, tmp_path) == DATA
    assert len(waits) == 1
    assert (2**20 in {asked.first for asked in server.asked}) == server.ranges, "the rest is asked for, if it can be"


def test_an_answer_that_stalls_is_given_up(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transfer, "_WAIT", 0.01)
    server.fault = lambda number, asked: Fault(stalls=3.0) if number == 0 and asked.method == "GET" else None
    assert copied(server, tmp_path, patience=Patience(3, 1.0)) == DATA
    server.fault = lambda number, asked: Fault(stalls=1.0) if asked.method == "GET" else None
    with pytest.raises(ShardError, match=r"asked 2 times\): nothing came for 0.2 s") as caught:
        copied(server, tmp_path, patience=Patience(2, 0.2))
    assert caught.value.cause == "unreachable shard"


def test_a_file_that_comes_by_bytes_is_given_up(server: Server, tmp_path: Path, waits: list[float]) -> None:
    """Each answer has a little of it: a file would be asked for as often as it has bytes."""
    server.fault = lambda number, asked: Fault(cut=1000) if asked.method == "GET" else None
    with pytest.raises(ShardError, match=r"asked 4 times\)"):
        copied(server, tmp_path)
    assert len(waits) == 3


def test_an_answer_that_trickles_is_given_up(server: Server, tmp_path: Path, waits: list[float]) -> None:
    """Its next bytes come in time, and its next 4 MiB do not."""
    server.fault = lambda number, asked: Fault(slow=0.1) if asked.method == "GET" else None
    began = time.perf_counter()
    with pytest.raises(ShardError, match=r"asked 2 times\): (nothing|no more than \d+ bytes) came for 0.5 s"):
        copied(server, tmp_path, patience=Patience(2, 0.5))
    assert time.perf_counter() - began < 15, "the whole would take 21"


def test_waits_do_not_grow_for_ever(server: Server, tmp_path: Path, waits: list[float]) -> None:
    server.fault = lambda number, asked: Fault(status=503)
    with pytest.raises(ShardError, match=r"asked 12 times\)"):
        copied(server, tmp_path, patience=Patience(12, 1.0))
    assert 30 <= max(waits) <= 60 and len(waits) == 11


class SlowQueue(queue.Queue[Any]):
    """Each of what it has takes half a second by a clock of its own, and where less is left, does not come."""

    seconds = 0.0

    def get(self, block: bool = True, timeout: float | None = None) -> Any:
        if not block or timeout is None:
            return super().get(block)
        if timeout < 0.5:
            raise queue.Empty
        SlowQueue.seconds += 0.5
        return super().get(timeout=60)


def test_a_slow_answer_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It takes longer than the limit, but no 4 MiB of it do: by a clock that does not depend on the machine."""
    pieces = [DATA[first : first + 2**16] for first in range(0, len(DATA), 2**16)]
    monkeypatch.setattr(SlowQueue, "seconds", 0.0)
    monkeypatch.setattr(transfer.queue, "Queue", SlowQueue)
    monkeypatch.setattr(transfer, "monotonic", lambda: SlowQueue.seconds)
    monkeypatch.setattr(transfer, "_blocks", lambda *_: iter(pieces))
    copy("memory://a.tar", tmp_path / "copy", Patience(1, 33.0), EXPECTED)
    assert (tmp_path / "copy").read_bytes() == DATA
    assert SlowQueue.seconds > 100, "209 pieces, of which 64 are 4 MiB and take 32 seconds"
    with pytest.raises(ShardError, match=r"no more than \d+ bytes came for 31 s"):
        copy("memory://a.tar", tmp_path / "copy", Patience(1, 31.0), EXPECTED)


def test_another_file_is_not_waited_for(server: Server, tmp_path: Path, waits: list[float]) -> None:
    (server.folder / "shorter.tar").write_bytes(DATA[:-1])
    (server.folder / "longer.tar").write_bytes(DATA + b"x")
    (server.folder / "flipped.tar").write_bytes(DATA[:-1] + b"\x00")
    assert DATA[-1] != 0
    for name in ("shorter.tar", "longer.tar", "flipped.tar"):
        with pytest.raises(ShardError, match=rf"{name} has .*\d bytes.*was changed or cut. Restore it") as caught:
            copied(server, tmp_path, name)
        assert caught.value.cause == "changed shard"
    assert len(waits) <= 1, "a shorter file may have been a cut answer"


@pytest.mark.parametrize("seed", [*range(6), *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(6, 106))])
def test_whatever_fails_on_the_way_no_other_bytes_arrive(seed: int, server: Server, tmp_path: Path) -> None:
    own = random.Random(seed)
    faults = [
        Fault(status=own.choice((500, 502, 503, 429))),
        Fault(cut=own.randrange(2**22)),
        Fault(ends=own.randrange(2**22)),
        None,
    ]
    server.fault = lambda number, asked: own.choice(faults)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(transfer, "sleep", lambda seconds: None)
        try:
            assert copied(server, tmp_path, patience=Patience(8, 10.0)) == DATA
        except ShardError as error:
            assert "asked 8 times" in str(error)
            assert not (tmp_path / "copy").exists()


# ------------------------------------------------------------------------------------------- a set on such a server


@pytest.fixture
def cache(tmp_path: Path) -> CacheSpec:
    return CacheSpec(str(tmp_path / "cache"), attempts=6, timeout=20.0)


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_do_not_depend_on_what_fails_on_the_way(
    workers: int, tmp_path: Path, cache: CacheSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transfer, "_WAIT", 0.001)
    folder = write_shards(tmp_path / "set")
    encoders = {"text": TextTokensSpec(VOCABULARY, context_length=16).encoder()}
    here = list(training_loader(tiny_data(folder), encoders, 3, 0, 6))

    def twice(number: int, asked: Asked) -> Fault | None:
        """Each file fails when it is asked for first, and is cut after that."""
        before = [other for other in server.asked if (other.method, other.path) == ("GET", asked.path)]
        return (Fault(status=503), Fault(cut=100), None)[min(2, len(before) - 1)] if asked.method == "GET" else None

    with serving(folder) as server:
        server.fault = twice
        far = tiny_data(folder, source=server.url, copies=cache, workers=workers)
        there = list(training_loader(far, encoders, 3, 0, 6))
    assert [batch.keys for batch in there] == [batch.keys for batch in here]  # type: ignore[attr-defined]
    tars = {path.stem for path in cache.shards.glob("*.tar")}
    assert tars == {shard.sha256[:32] for shard in Manifest.load(folder).split("train")}


def test_the_copies_keep_to_their_room(tmp_path: Path) -> None:
    """Room for two of four shards: each is copied when its turn comes, and what is open stays readable."""
    folder = write_shards(tmp_path / "set")
    shards = Manifest.load(folder).split("train")
    room = sum(sorted(shard.bytes for shard in shards)[-2:])
    cache = CacheSpec(str(tmp_path / "cache"), gib=room / 2**30)
    with serving(folder) as server:
        reader = ShardReader(open_manifest(server.url, cache), "train", max_open=1)
        here = ShardReader(Manifest.load(folder), "train")
        for place in [*range(32), *range(31, -1, -1)]:
            assert reader[place] == here[place]
            assert sum(path.stat().st_size for path in cache.shards.glob("*.tar")) <= room
        tars = [asked.path for asked in server.asked if asked.method == "GET" and asked.path.endswith(".tar")]
    assert len(set(tars)) == 4
    assert len(tars) == 6, "on the way back, the last two are there still"


@pytest.mark.parametrize("change", [{"attempts": 0}, {"timeout": 0.0}, {"gib": 0.0}])
def test_patience_out_of_range_is_refused(change: dict[str, float]) -> None:
    with pytest.raises(InputError, match=rf"CacheSpec\.{next(iter(change))} must be"):
        CacheSpec(**change)  # type: ignore[arg-type]
