"""A web server on this machine that serves a folder, and fails as it is told to."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import NamedTuple
from urllib.parse import unquote


class Asked(NamedTuple):
    """One question to the server."""

    method: str
    path: str
    first: int  # byte


class Fault(NamedTuple):
    """What becomes of one answer."""

    status: int = 0  # said in its place
    cut: int | None = None  # the connection closes after so many bytes
    ends: int | None = None  # it ends in order after so many bytes, and does not say how many were meant
    stalls: float = 0.0  # seconds before its bytes
    slow: float = 0.0  # seconds after each 64 KiB
    declares: int | None = None  # how many bytes it says that there are, in place of their number
    endless: bytes = b""  # come after its own again and again, for as long as they are read
    encoding: str = ""  # it says that they are packed so


Choose = Callable[[int, Asked], Fault | None]
"""From the number of a question for bytes, from 0, and the question."""


class Server:
    """See the module.

    Args:
        folder: what it serves.
        ranges: whether it can send parts.
    """

    def __init__(self, folder: Path, ranges: bool = True) -> None:
        self.folder, self.ranges = folder, ranges
        self.fault: Choose = lambda number, asked: None
        self.asked: list[Asked] = []
        self._lock = threading.Lock()
        self._number = 0
        owner = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                owner.answer(self)

            def do_HEAD(self) -> None:
                owner.answer(self)

            def log_message(self, *words: object) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}"

    def answer(self, handler: BaseHTTPRequestHandler) -> None:
        path = self.folder / unquote(handler.path).lstrip("/")
        part = handler.headers.get("Range", "")
        first, last = 0, None
        if self.ranges and part.startswith("bytes="):
            begin, _, end = part.removeprefix("bytes=").partition("-")
            first, last = int(begin), int(end) if end else None
        asked = Asked(handler.command, handler.path, first)
        with self._lock:
            self.asked.append(asked)
            fault = self.fault(self._number, asked) or Fault()
            self._number += handler.command == "GET"
        data = path.read_bytes() if path.is_file() else None
        if fault.status or data is None:
            handler.send_response(fault.status or 404)
            handler.send_header("Content-Length", "0")
            handler.end_headers()
            return
        whole = len(data)
        data = data[first : None if last is None else last + 1]
        handler.send_response(206 if self.ranges and part else 200)
        if fault.ends is None and (not fault.endless or fault.declares is not None):
            handler.send_header("Content-Length", str(len(data) if fault.declares is None else fault.declares))
        if fault.encoding:
            handler.send_header("Content-Encoding", fault.encoding)
        if self.ranges and part:
            handler.send_header("Content-Range", f"bytes {first}-{first + len(data) - 1}/{whole}")
        handler.send_header("Connection", "close")
        handler.end_headers()
        if handler.command == "HEAD":
            return
        time.sleep(fault.stalls)
        most = min(len(data) if limit is None else limit for limit in (fault.cut, fault.ends))
        try:
            for start in range(0, most, 2**16):
                handler.wfile.write(data[start : min(start + 2**16, most)])
                time.sleep(fault.slow)
            while fault.endless:
                handler.wfile.write(fault.endless)
            if fault.cut is not None:
                time.sleep(0.5)  # what the reader has not taken yet goes with the connection
        except OSError:  # the reader has given up
            pass


@contextmanager
def serving(folder: Path, ranges: bool = True) -> Iterator[Server]:
    server = Server(folder, ranges)
    thread = threading.Thread(target=server.http.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield server
    finally:
        server.http.shutdown()
        thread.join()
        server.http.server_close()
