"""Processes that torchrun starts again do not look for those that were there before."""

from __future__ import annotations

import os
import socket

import pytest
from torch.distributed import TCPStore

from mmformer.errors import InputError
from mmformer.parallel import meeting
from mmformer.parallel.meeting import let_no_more_in, open_own_store


@pytest.fixture
def shared(monkeypatch: pytest.MonkeyPatch) -> TCPStore:
    """torchrun's, and the environment that it gives."""
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    for name, value in {"ADDR": "127.0.0.1", "PORT": str(store.port)}.items():
        monkeypatch.setenv(f"MASTER_{name}", value)
    return store


def opened(rank: int, port: int, monkeypatch: pytest.MonkeyPatch, patience: float = 20.0) -> TCPStore | None:
    """As the process of this rank does, which torchrun has told of its store at a port."""
    told = {"RANK": str(rank), "MASTER_PORT": str(port), "TORCHELASTIC_USE_AGENT_STORE": "True"}
    for name, value in told.items():
        monkeypatch.setenv(name, value)
    return open_own_store(patience)


def test_each_start_has_a_store_of_its_own(shared: TCPStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """Twice in one store of torchrun's: the second time the first process's former place is still named there."""
    ports = set()
    for _ in range(2):
        first = opened(0, shared.port, monkeypatch)
        assert first is not None
        other = opened(1, shared.port, monkeypatch)
        assert other is not None
        assert other.port == first.port == int(os.environ["MASTER_PORT"])
        assert os.environ["TORCHELASTIC_USE_AGENT_STORE"] == "False", "torch opens this one"
        first.set("said", "by the first")
        assert other.get("said") == b"by the first"
        ports.add(first.port)
        del first
    assert len(ports) == 2
    assert shared.port not in ports


def test_one_that_is_gone_is_not_taken_for_the_first(shared: TCPStore, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        shared.set("mmformer/meeting", f"{free.getsockname()[1]} earlier")
    with pytest.raises(InputError, match=r"The first process, on 127\.0\.0\.1, was not found within 0\.3 seconds"):
        opened(1, shared.port, monkeypatch, patience=0.3)


def test_who_comes_late_waits_for_the_next_start(shared: TCPStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first process of this one is there still, and has not noticed that another was started again."""
    first = opened(0, shared.port, monkeypatch)
    assert first is not None
    assert opened(1, shared.port, monkeypatch) is not None
    let_no_more_in(first)
    with pytest.raises(InputError, match="was not found"):
        opened(1, shared.port, monkeypatch, patience=0.3)
    following = opened(0, shared.port, monkeypatch)
    late = opened(1, shared.port, monkeypatch)
    assert following is not None
    assert late is not None
    assert late.port == following.port != first.port


def test_a_store_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(meeting, "_ONE_TRY", 0.3)
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with pytest.raises(InputError, match=r"Process 1 cannot reach 127\.0\.0\.1, .* Let all machines reach"):
        opened(1, port, monkeypatch)


def test_another_that_listens_there_now_is_not_either(shared: TCPStore, monkeypatch: pytest.MonkeyPatch) -> None:
    stranger = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    shared.set("mmformer/meeting", f"{stranger.port} earlier")
    with pytest.raises(InputError, match="was not found"):
        opened(1, shared.port, monkeypatch, patience=0.3)


def test_elsewhere_nothing_is_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MASTER_PORT", "1")
    monkeypatch.delenv("TORCHELASTIC_USE_AGENT_STORE", raising=False)
    assert open_own_store(1.0) is None
    assert os.environ["MASTER_PORT"] == "1"
