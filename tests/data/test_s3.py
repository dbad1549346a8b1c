"""Sets in an S3 bucket: a real server (moto's) and the client that users have (s3fs), with errors between them."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import fsspec
import pytest
from tiny import write_shards

from mmformer.data import transfer
from mmformer.data.damage import ShardError
from mmformer.data.indexing import index_tars
from mmformer.data.opening import open_samples
from mmformer.data.patterns import find_places
from mmformer.data.remote import CacheSpec, find_urls

moto = pytest.importorskip("moto.server", reason="the S3-compatible server of these tests is not installed")
pytest.importorskip("s3fs", reason="the client of S3 is not installed")

BUCKET = "s3://sets/tiny"


class Store:
    """A server whose answers for objects and lists of them may fail."""

    def __init__(self) -> None:
        from werkzeug.serving import make_server

        self.fault: Callable[[int], str | None] = lambda number: None
        self.number = 0
        self._application = moto.DomainDispatcherApplication(moto.create_backend_app)
        self.http = make_server("127.0.0.1", 0, self._answer, threaded=True)
        self.url = f"http://127.0.0.1:{self.http.server_port}"
        self.thread = threading.Thread(target=self.http.serve_forever, kwargs={"poll_interval": 0.02})
        self.thread.start()

    def _answer(self, environ: dict[str, Any], start: Callable[..., Any]) -> Iterable[bytes]:
        listing = "list-type" in environ["QUERY_STRING"]
        if environ["REQUEST_METHOD"] != "GET" or not (listing or environ["PATH_INFO"].endswith((".tar", ".json"))):
            return self._application(environ, start)  # type: ignore[no-any-return]
        self.number += 1
        fault = self.fault(self.number - 1)
        if fault == "slow down":
            start("503 Slow Down", [("Content-Length", "0")])
            return []
        data = b"".join(self._application(environ, start))
        return [data[: len(data) // 2] if fault == "cut" else data]

    def close(self) -> None:
        self.http.shutdown()
        self.thread.join()
        self.http.server_close()


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Store]:
    """A bucket with a set, and nothing in memory of another test's."""
    store = Store()
    for name, value in {
        "AWS_ACCESS_KEY_ID": "tests",
        "AWS_SECRET_ACCESS_KEY": "tests",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": store.url,
        "AWS_MAX_ATTEMPTS": "1",
        "HOME": str(tmp_path / "home"),
    }.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(transfer, "_WAIT", 0.001)
    with urlopen(Request(f"{store.url}/moto-api/reset", method="POST")):
        pass  # what the test before had stored
    files = fsspec.filesystem("s3", skip_instance_cache=True)
    files.mkdir("sets")
    files.put(f"{write_shards(tmp_path / 'set')}/", "sets/tiny/", recursive=True)
    fsspec.get_filesystem_class("s3").clear_instance_cache()
    yield store
    fsspec.get_filesystem_class("s3").clear_instance_cache()
    store.close()


def read(source: str, cache: CacheSpec) -> dict[str, dict[str, bytes]]:
    samples = open_samples(source, "train", cache)
    return {raw.key: raw.members for raw in (samples[place] for place in range(len(samples)))}


@pytest.fixture
def cache(tmp_path: Path) -> CacheSpec:
    return CacheSpec(str(tmp_path / "cache"), attempts=6, timeout=20.0)


def test_a_set_in_a_bucket_is_read_as_it_is_here(store: Store, tmp_path: Path, cache: CacheSpec) -> None:
    here = read(str(tmp_path / "set"), cache)
    assert read(BUCKET, cache) == here
    assert read("s3://sets/ti*", cache) == here


def test_a_bucket_of_tars_is_indexed_where_it_is(store: Store, tmp_path: Path, cache: CacheSpec) -> None:
    tars = find_places(f"{BUCKET}/*-train-*.tar", ".tar")
    manifest = index_tars(tars, {"train": "*"}, tmp_path / "index", workers=1, cache=cache)
    assert [shard.path for shard in manifest.shards] == [f"{BUCKET}/tiny-train-{n:06d}.tar" for n in range(4)]
    assert read(str(tmp_path / "index"), cache) == read(str(tmp_path / "set"), cache)


@pytest.mark.parametrize("fault", ["slow down", "cut"])
def test_what_fails_on_the_way_is_asked_for_again(fault: str, store: Store, tmp_path: Path, cache: CacheSpec) -> None:
    store.fault = lambda number: fault if number % 3 else None
    assert read(BUCKET, cache) == read(str(tmp_path / "set"), cache)
    assert store.number > 9, "manifest, four indexes and four tars"


def test_a_list_that_cannot_be_had_is_asked_for_again(store: Store, tmp_path: Path, cache: CacheSpec) -> None:
    store.fault = lambda number: "slow down" if number < 2 else None
    assert find_urls("s3://sets/ti*/*-val-*.tar", cache.patience) == [f"{BUCKET}/tiny-val-000000.tar"]


def test_missing_and_changed_shards_are_told(store: Store, tmp_path: Path, cache: CacheSpec) -> None:
    files = fsspec.filesystem("s3")
    files.rm("sets/tiny/tiny-train-000000.tar")
    files.pipe("sets/tiny/tiny-train-000001.tar", b"another")
    samples = open_samples(BUCKET, "train", cache)
    for place, cause, told in ((0, "missing shard", "no such file"), (8, "changed shard", "has 7 bytes, but")):
        with pytest.raises(ShardError, match=told) as caught:
            samples[place]
        assert caught.value.cause == cause
    assert samples[16].key
