"""How the processes of a run know of each other's end, whatever kind of end it is."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from lightning_fabric.plugins.environments.lightning import LightningEnvironment
from pytorch_lightning.strategies import SingleDeviceStrategy
from torch._C._distributed_c10d import HashStore, Store
from torch.distributed import DistNetworkError

from mmformer import collectives
from mmformer.errors import InputError, OtherProcessError
from mmformer.parallel.mesh import ParallelSpec
from mmformer.training import processes
from mmformer.training.presence import Presence, Watch
from mmformer.training.processes import MeshStrategy


def none_fails(code: int) -> None:
    raise AssertionError(f"with {code}")


def none_is_lost(number: int, how: str) -> None:
    raise AssertionError(f"process {number} {how}")


@pytest.fixture
def store() -> Iterator[Store]:
    yield HashStore()


def test_each_watches_the_one_before_it_and_all_are_told(store: Store) -> None:
    """Three processes, of which the second falls silent."""
    told: dict[int, tuple[int, str]] = {}
    done = threading.Event()

    def lost(own: int) -> Any:
        def note(number: int, how: str) -> None:
            told[own] = (number, how)
            if len(told) == 2:
                done.set()

        return note

    watches = [Watch(store, rank, 3, lost(rank), none_fails, beat=0.05, patience=0.5) for rank in range(3)]
    for watch in watches:
        watch.start()
    time.sleep(0.3)
    assert told == {}
    watches[1]._ended.set()  # without a word
    assert done.wait(10)
    assert told == dict.fromkeys((0, 2), (1, "gave no sign of life for 0.5 s"))
    for watch in watches:
        watch.end()


def test_who_leaves_in_order_is_not_missed(store: Store) -> None:
    told: list[int] = []
    watches = [
        Watch(store, rank, 2, lambda *found: told.append(found[0]), none_fails, beat=0.05, patience=0.3)
        for rank in (0, 1)
    ]
    for watch in watches:
        watch.start()
    time.sleep(0.15)
    watches[0].end()
    time.sleep(0.8)
    assert told == []
    watches[1].end()


def test_who_is_slow_to_end_does_not_miss_the_first_which_took_the_store_with_it(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    def gone(ask: Callable[[], Any]) -> Any:
        raise DistNetworkError("broken pipe")

    for left in (True, False):
        lost: list[int] = []
        watch = Watch(store, 1, 2, lambda number, how, lost=lost: lost.append(number), none_fails, beat=0.05)
        store.set("alive/0", "left" if left else "7")
        watch.start()
        time.sleep(0.2)
        monkeypatch.setattr(watch, "_asked", gone)
        watch._thread.join(5)
        assert not watch._thread.is_alive()
        assert lost == ([] if left else [0])
        watch.end()


def test_of_processes_that_one_started_it_knows_the_end(store: Store) -> None:
    told: list[tuple[int, str]] = []
    done = threading.Event()
    child = subprocess.Popen([sys.executable, "-c", "import os; os.kill(os.getpid(), 9)"])

    def note(number: int, how: str) -> None:
        told.append((number, how))
        done.set()

    watch = Watch(store, 0, 2, note, none_fails, [child], beat=0.05)
    watch.start()
    assert done.wait(10)
    assert told == [(1, "was killed by SIGKILL")]
    watch.end()


@pytest.mark.parametrize("first", [0, 2])
def test_where_one_fails_the_others_are_told_its_code_before_the_store_is_gone(first: int, store: Store) -> None:
    """Of three processes the first, which keeps the store, leaves last, whichever fails."""
    told: dict[int, int] = {}
    watches: list[Watch] = []

    def leaving(own: int) -> Callable[[int], None]:
        def leave(code: int) -> None:
            told[own] = code
            watches[own].say_left()

        return leave

    for rank in range(3):
        watches.append(Watch(store, rank, 3, none_is_lost, leaving(rank), beat=0.1, patience=5))
        if rank != first:
            watches[rank].start()
    assert watches[first].fail(2) is None, "it is the first"
    watches[0].beat = 10  # which it would wait for
    began = time.monotonic()
    watches[first].say_left()
    watches[0].say_left()
    assert time.monotonic() - began < 10, "not longer than it takes them"
    assert told.items() >= {other: 2 for other in (1, 2) if other != first}.items()
    assert watches[1].fail(1) == 2, "the first one's reason counts"


def test_nobody_is_waited_for_without_end(store: Store) -> None:
    Watch(store, 0, 2, none_is_lost, none_fails, beat=0.05).say_left()


class Silent(HashStore):
    """A store whose machine is gone without a word, or stopped: what it is asked is not answered."""

    def __init__(self) -> None:
        super().__init__()
        self.stopped, self.over = False, threading.Event()

    def check(self, keys: list[str]) -> bool:
        return self.over.wait() if self.stopped else super().check(keys)

    def add(self, key: str, value: int) -> int:
        return int(self.over.wait()) if self.stopped else super().add(key, value)


def test_a_store_that_is_silent_is_missed() -> None:
    told: list[tuple[int, str]] = []
    done, store = threading.Event(), Silent()

    def note(*found: Any) -> None:
        told.append(found)
        done.set()

    watch = Watch(store, 1, 2, note, none_fails, beat=0.05, patience=0.5)
    watch.start()
    store.stopped = True
    assert done.wait(10)
    assert told == [(0, "gave no sign of life for 0.5 s")]
    with pytest.raises(TimeoutError):
        watch.fail(2)
    watch.end()
    store.over.set()


def test_started_processes_that_end_in_order_with_a_code_of_their_own_are_not_lost(store: Store) -> None:
    """Those with GPUs say theirs."""
    ended = [subprocess.Popen([sys.executable, "-c", f"raise SystemExit({code})"]) for code in (130, 2)]
    assert [child.wait(30) for child in ended] == [130, 2]
    store.set("alive/1", "left")
    store.set("alive/2", "7")
    found = [Watch(store, 0, 3, none_is_lost, none_fails, given)._look(1) for given in (ended[:1], ended)]
    assert found == [None, (2, "ended with code 2")]
    store.set("code", "2")
    assert Watch(store, 0, 3, none_is_lost, none_fails, ended)._look(1) == 2


@pytest.fixture
def presence(store: Store) -> Presence:
    """Of the first of two processes."""
    made = Presence(SingleDeviceStrategy())
    made._watch = Watch(store, 0, 2, made._lose, made._fail, beat=0.05, patience=0.2)
    made._watch.start()
    return made


@pytest.mark.parametrize(
    "error", [InputError("s3://bucket: no connection"), ConnectionResetError(104, "Connection reset by peer")]
)
def test_what_was_refused_is_said_at_once(
    error: Exception, presence: Presence, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Though it speaks of connections, no other process is asked for."""
    monkeypatch.setattr(presence, "_is_lost", none_fails)
    with pytest.raises(type(error)) as caught, presence.watching():
        raise error
    assert caught.value is error
    assert (store.get("code"), store.get("alive/0")) == (b"2", b"left")


def test_a_connection_that_fails_is_the_reason_of_whom_it_goes_to(presence: Presence, store: Store) -> None:
    store.add("failures", 1)
    store.set("code", "2")
    with pytest.raises(OtherProcessError) as caught, presence.watching():
        raise RuntimeError("[gloo] Connection closed by peer")
    assert caught.value.code == 2


# ------------------------------------------------------------------------------------------------- meeting


class Meeting:
    """Of processes that others started, without any connection."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, store: Store) -> None:
        monkeypatch.setenv("LOCAL_RANK", "1")
        monkeypatch.setattr(MeshStrategy, "_setup_distributed", lambda strategy: None)
        monkeypatch.setattr(processes, "_get_default_store", lambda: store)
        monkeypatch.setattr(MeshStrategy, "broadcast", lambda strategy, told: self.first or told)
        self.first: tuple[str, Path | None] | None = None

    def join(self, state: Path | None, first: tuple[str, Path | None] | None = None) -> tuple[Path | None, Any]:
        """What a process goes on from, and its store."""
        self.first = first
        strategy = self.strategy()
        return strategy.of_first(state), strategy.store

    def strategy(self) -> MeshStrategy:
        made = MeshStrategy(ParallelSpec(shard=2))
        made.cluster_environment = LightningEnvironment()
        return made


def test_what_the_first_process_goes_on_from_all_do(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """One file system shows a checkpoint that another does not yet; and the first one alone reads it all."""
    meeting, newest = Meeting(monkeypatch, store), Path("step-000000004", "state.ckpt")
    assert meeting.join(None, ("start", newest))[0] == newest
    assert meeting.join(newest, ("start", None))[0] is None


def test_they_are_watched_from_when_they_have_met(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before anything that one may fail at: what they log to, say."""
    for name, value in {"rank": 1, "world_size": 2}.items():
        monkeypatch.setattr(collectives, name, lambda value=value: value)
    strategy = Meeting(monkeypatch, store).strategy()
    with pytest.raises(FileExistsError), Presence(strategy).watching():
        strategy.of_first(None)
        raise FileExistsError(17, "File exists")
    assert strategy.store is not None
    assert (strategy.store.get("code"), strategy.store.get("alive/1")) == (b"2", b"left")


def test_what_another_start_left_in_the_store_is_not_read(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Machines that count their restarts differently meet by the same names all the same."""
    meeting = Meeting(monkeypatch, store)
    before, own = meeting.join(None)[1], meeting.join(None)[1]
    before.set("code", "2")
    assert not own.check(["code"])
    of_one = []
    for count in ("1", "2"):
        monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", count)
        of_one.append(meeting.join(None, ("start", None))[1])
    of_one[0].set("alive/0", "1")
    assert of_one[1].get("alive/0") == b"1"
