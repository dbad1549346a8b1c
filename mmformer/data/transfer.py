"""Copying a file from elsewhere: whole or not at all, and again where it fails.

Networks and stores fail for a while: a connection is refused, an answer is 503, comes slowly, stalls, or is cut. What
failed is asked for again after a wait that doubles, from the byte on where it was cut. What cannot become better by
waiting (no such file, no permission, an address of no known kind, another file than the manifest's) fails at once.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import queue
import random
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from itertools import count
from pathlib import Path
from time import monotonic, sleep
from typing import Any, BinaryIO, NamedTuple, TypeVar

from mmformer.data.damage import ShardError

FETCHING = ".fetching-"
"""What names begin with of what is being copied."""

_BLOCK = 2**22
_WAIT, _LONGEST_WAIT = 1.0, 60.0
"""Seconds before something is asked for again: for the first time, and at most."""

# No second try would help; the last two are what fsspec raises for a system that is not installed, or cannot do this.
_FINAL = (FileNotFoundError, PermissionError, IsADirectoryError, ValueError, ImportError, NotImplementedError)
_PASSING = (408, 425, 429)  # of the answers 400 to 499: too slow, too early, too many

T = TypeVar("T")


class Patience(NamedTuple):
    """How long to wait for what is elsewhere: for 4 MiB at most ``attempts`` times the ``timeout`` and a minute."""

    attempts: int = 5  # in a row in which less than 4 MiB came
    timeout: float = 60.0  # seconds that the next 4 MiB may take


class Expected(NamedTuple):
    """What a file must be."""

    sha256: str  # in hexadecimal, or its first digits
    bytes: int  # its size

    def refused(self, url: str, found: str) -> ShardError:
        """What to say of another one."""
        return ShardError(
            f"{url} has {found}, but the manifest says {self.bytes} and {self.sha256[:12]}…: it was changed or cut. "
            f"Restore it there.",
            "changed shard",
        )


class AtMost(NamedTuple):
    """How long a file may be that nothing else is known of: whoever sends it may never end."""

    bytes: int
    what: str  # it is, with its article
    fix: str  # a sentence

    def refused(self, url: str, found: str) -> ShardError:
        """What to say of a longer one."""
        return ShardError(
            f"{url} has {found}, but of {self.what} at most {self.bytes} are read. {self.fix}", "changed shard"
        )


class _OtherFileError(Exception):
    """A file of another size than it may have."""


class _CutError(OSError):
    """A file ended early."""


def copy(url: str, target: Path, patience: Patience, expected: Expected | AtMost | None = None) -> str:
    """Copy a file from elsewhere, whole or not at all; its SHA-256.

    Args:
        url: of the file.
        target: where it goes.
        patience: with what fails.
        expected: what it must be, or how long it may be: no more of it is asked for. None: whatever it is.

    Raises:
        ShardError: it is missing, cannot be reached, or is not what was expected.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    digest, size = hashlib.sha256(), 0
    descriptor, name = tempfile.mkstemp(dir=target.parent, prefix=FETCHING)
    try:
        with os.fdopen(descriptor, "wb") as file:
            fcntl.flock(file, fcntl.LOCK_EX)  # by which it is told from what was left
            for block in blocks(url, patience, expected):
                digest.update(block)
                size += len(block)
                file.write(block)  # an error of our own disk is not the address's
            file.flush()
            os.fsync(file.fileno())  # its name says that it is whole
        if isinstance(expected, Expected) and not digest.hexdigest().startswith(expected.sha256):
            raise expected.refused(url, f"{size} bytes and the SHA-256 {digest.hexdigest()[:12]}…")
        Path(name).replace(target)
        return digest.hexdigest()
    except _OtherFileError as error:
        assert expected is not None
        raise expected.refused(url, f"{error} bytes") from error
    finally:
        Path(name).unlink(missing_ok=True)


def remove_left(folder: Path) -> None:
    """Remove what was being copied into a folder by processes that were killed."""
    for path in folder.glob(f"{FETCHING}*"):
        with suppress(OSError), path.open("rb") as file:  # gone, or still being copied
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.fstat(file.fileno()).st_size:  # an empty one may be about to be
                path.unlink()


def blocks(url: str, patience: Patience, expected: Expected | AtMost | None = None) -> Iterator[bytes]:
    """The bytes of a file elsewhere, one after the other, whatever fails on the way.

    Args:
        url: of the file.
        patience: with what fails.
        expected: what it must be. Where its size is not known, its end is where the answer ends.
    """
    done = failed = mark = 0
    size = expected.bytes if isinstance(expected, Expected) else None
    most = None if expected is None else expected.bytes
    # Until a server says that it sends whole files alone. fsspec holds what is sent as a part, however long it is: one
    # that ends where it likes is asked for the whole.
    parts = not isinstance(expected, AtMost)
    while True:
        try:
            # A whole file is one answer of a web server, and what it lacks at the end another one, of a part.
            for block in _timed(_blocks(url, done, not (done and parts), expected), patience.timeout, len):
                done += len(block)
                if done - mark >= _BLOCK:  # by a byte each time, it would be asked for without end
                    failed, mark = 0, done
                if most is not None and done > most:  # not to be written down without end
                    raise _OtherFileError(f"more than {most}")
                yield block
            if size is None or done == size:
                return
            raise _CutError(f"it ended after {done} of {size} bytes")
        except _OtherFileError:
            raise
        except Exception as error:  # libraries of file systems raise what they like
            if isinstance(error, ValueError) and "range requests" in str(error) and parts:
                parts = False
                continue
            failed += 1
            final = _is_final(error)
            if final or failed == patience.attempts:
                tried = "" if final else f" (asked {failed} times)"
                cause = "missing shard" if is_missing(error) else "unreachable shard"
                raise ShardError(f"{url} cannot be read{tried}: {reason(error)}", cause) from error
        _wait(failed)


def ask(question: Callable[[], T], patience: Patience) -> T:
    """The answer of what is elsewhere, asked for again where that fails and can become better.

    Raises:
        Exception: what the question raised the last time.
    """
    for failed in count(1):
        try:
            return next(_timed((question() for _ in range(1)), patience.timeout))
        except Exception as error:
            if _is_final(error) or failed == patience.attempts:
                raise
        _wait(failed)
    raise AssertionError("each turn returns, raises or waits")


def _wait(failed: int) -> None:
    """After so many failures. Thousands of readers that failed together shall not ask again together."""
    sleep(min(_WAIT * 2 ** (failed - 1), _LONGEST_WAIT) * random.SystemRandom().uniform(0.5, 1))


def _blocks(url: str, start: int, streamed: bool, expected: Expected | AtMost | None) -> Iterator[bytes]:
    """The bytes of a file from one on; of a web server in one answer where it is ``streamed``, or else in parts."""
    import fsspec

    options: dict[str, Any] = {}
    if url.startswith(("http://", "https://")):  # fsspec's cache takes an answer that ends early for a whole one
        options = {"block_size": 0} if streamed else {"cache_type": "none"}
    with fsspec.open(url, "rb", **options) as remote:
        _check_declared(remote, expected)
        _pass(remote, start)
        while block := remote.read(_BLOCK):
            yield block


def _check_declared(remote: Any, expected: Expected | AtMost | None) -> None:
    """Refuse a file by the size that it says it has, where it says one, before any of it is read."""
    found = getattr(remote, "size", None)
    if isinstance(expected, AtMost):
        if found is None:  # fsspec leaves that of a web server's answer with the answer
            found = getattr(getattr(remote, "r", None), "content_length", None)
        if found is not None and found > expected.bytes:
            raise _OtherFileError(found)
    elif expected is not None and found not in (None, expected.bytes):
        raise _OtherFileError(found)


def _pass(remote: BinaryIO, start: int) -> None:
    """Go to a byte of a file, through all before it where there is no other way."""
    with suppress(ValueError, OSError, NotImplementedError):  # which fsspec's files raise that cannot be sought in
        remote.seek(start)
        return
    while start:
        passed = remote.read(min(start, _BLOCK))
        if not passed:
            raise _CutError(f"it ended {start} bytes before where it was cut last")
        start -= len(passed)


def _timed(source: Iterator[T], timeout: float, size: Callable[[T], int] = lambda each: _BLOCK) -> Iterator[T]:
    """The same, until the next 4 MiB take too long: file systems have no time limit in common, so a thread reads."""
    ready: queue.Queue[tuple[T] | BaseException | None] = queue.Queue(1)
    given_up = threading.Event()

    def read() -> None:
        try:
            for each in source:
                ready.put((each,))
                if given_up.is_set():
                    return
            ready.put(None)
        except BaseException as error:  # noqa: BLE001  # raised where it is waited for
            ready.put(error)

    threading.Thread(target=read, name="mmformer-transfer", daemon=True).start()
    came, deadline = 0, monotonic() + timeout
    try:
        while True:
            try:
                found = ready.get(timeout=max(0.0, deadline - monotonic()))
            except queue.Empty:
                what = f"no more than {came} bytes" if came else "nothing"
                raise TimeoutError(f"{what} came for {timeout:g} s") from None
            if isinstance(found, BaseException):
                raise found
            if found is None:
                return
            began = monotonic()
            yield found[0]
            came, deadline = came + size(found[0]), deadline + monotonic() - began  # what becomes of it takes its time
            if came >= _BLOCK:
                came, deadline = 0, monotonic() + timeout
    finally:
        given_up.set()
        with suppress(queue.Empty):
            ready.get_nowait()  # room for what the thread may still be putting there, before it sees that it may end


def _origin(error: BaseException) -> tuple[BaseException, int | None]:
    """What an error comes from, and the status of the server's answer.

    fsspec says that there is no such file where a server did not answer, too: what that came from says more.
    """
    if isinstance(error, FileNotFoundError) and error.__cause__ is not None:
        return _origin(error.__cause__)
    status = getattr(error, "status", None)  # aiohttp's
    if status is None:
        told = getattr(error, "response", None)  # botocore's
        status = told.get("ResponseMetadata", {}).get("HTTPStatusCode") if isinstance(told, dict) else None
    return error, status


def _is_final(error: BaseException) -> bool:
    """Whether to ask again is of no use."""
    origin, status = _origin(error)
    if status is not None:
        return 400 <= status < 500 and status not in _PASSING
    return isinstance(origin, _FINAL)


def is_missing(error: BaseException) -> bool:
    """Whether there is no such file."""
    origin, status = _origin(error)
    return status in (404, 410) or (status is None and isinstance(origin, FileNotFoundError))


def reason(error: BaseException) -> str:
    """What an error of fsspec's file systems means."""
    if is_missing(error):
        return "there is no such file. Check the address."
    if isinstance(error, ImportError):
        return f"{error} (fsspec needs a package for this kind of address.)"
    return f"{' '.join(str(_origin(error)[0]).split()) or type(error).__name__}."
