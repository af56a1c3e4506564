"""Stands between an S3 client and its server: delays requests, refuses them, cuts connections midway."""

from __future__ import annotations

import re
import socket
import socketserver
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Literal

Fault = Literal["", "slow_down", "forbid", "cut", "refuse"]
"""What becomes of a request: nothing odd, a 503, a 403, half of its answer, no answer at all."""

_LENGTH = re.compile(rb"\r\ncontent-length:\s*(\d+)", re.IGNORECASE)
_EXPECT = re.compile(rb"\r\nexpect:[^\r]*", re.IGNORECASE)
_CHUNKED = re.compile(rb"\r\ntransfer-encoding:\s*chunked", re.IGNORECASE)
_ANSWERS = {"slow_down": (b"503 Slow Down", b"SlowDown"), "forbid": (b"403 Forbidden", b"AccessDenied")}


@dataclass(frozen=True, slots=True)
class Request:
    """A request as the proxy sees it, counted from 1."""

    number: int
    method: str
    path: str


@dataclass(slots=True)
class Proxy:
    """A proxy that is up. `judge` is asked about each request, in any thread; `delay` is in seconds."""

    server: int
    port: int = 0
    delay: float = 0.0
    judge: Callable[[Request], Fault] = lambda _: ""
    seen: list[Request] = field(default_factory=list)
    _turn: threading.Lock = field(default_factory=threading.Lock)

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def count(self, method: str, part: str = "") -> int:
        """How many requests of a method there were for paths that hold `part`."""
        with self._turn:
            return sum(each.method == method and part in each.path for each in self.seen)

    def hears(self, head: bytes) -> Fault:
        method, path, _ = head.split(b"\r\n", 1)[0].decode().split(" ", 2)
        with self._turn:
            request = Request(len(self.seen) + 1, method, path)
            self.seen.append(request)
        time.sleep(self.delay)
        return self.judge(request)


@contextmanager
def flaky_proxy(server: int) -> Iterator[Proxy]:
    """A proxy before the server at that port, until the block ends."""
    proxy = Proxy(server)

    class Handler(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            with suppress(OSError, EOFError), socket.create_connection(("127.0.0.1", server)) as behind:
                while _pass_on(proxy, self.request, behind):
                    pass

    class Server(socketserver.ThreadingTCPServer):
        daemon_threads = True
        allow_reuse_address = True
        request_queue_size = 256
        block_on_close = False

    with Server(("127.0.0.1", 0), Handler) as listening:
        proxy.port = listening.server_address[1]
        thread = threading.Thread(target=listening.serve_forever, args=(0.05,), daemon=True)
        thread.start()
        try:
            yield proxy
        finally:
            listening.shutdown()
            thread.join()


def _pass_on(proxy: Proxy, client: socket.socket, behind: socket.socket) -> bool:
    """One request and its answer; False when the connection is at its end."""
    head = _head(client)
    fault = proxy.hears(head)
    if fault == "refuse":
        return False
    if _EXPECT.search(head):  # not signed; the client waits for it before its body
        client.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
    body = _exactly(client, _length(head))
    if fault in _ANSWERS:
        status, code = _ANSWERS[fault]
        told = b"<?xml version='1.0'?><Error><Code>%s</Code><Message>no</Message></Error>" % code
        client.sendall(
            b"HTTP/1.1 %s\r\nContent-Type: application/xml\r\nConnection: close\r\n"
            b"Content-Length: %d\r\n\r\n%s" % (status, len(told), told)
        )
        return False
    behind.sendall(_EXPECT.sub(b"", head) + body)
    answer = _head(behind)
    empty = head.startswith(b"HEAD ") or answer.split(b" ", 2)[1] in (b"204", b"304")
    chunked = _CHUNKED.search(answer) is not None
    content = b"" if empty else _chunks(behind) if chunked else _exactly(behind, _length(answer))
    if fault == "cut":
        client.sendall((answer + content)[: len(answer) + len(content) // 2 - 1])
        return False
    client.sendall(answer + content)
    return True


def _head(side: socket.socket) -> bytes:
    head = b""
    while not head.endswith(b"\r\n\r\n"):
        byte = side.recv(1)
        if not byte:
            raise EOFError
        head += byte
    return head


def _length(head: bytes) -> int:
    found = _LENGTH.search(head)
    return int(found[1]) if found else 0


def _exactly(side: socket.socket, count: int) -> bytes:
    data = bytearray()
    while len(data) < count:
        piece = side.recv(min(count - len(data), 2**16))
        if not piece:
            raise EOFError
        data += piece
    return bytes(data)


def _chunks(side: socket.socket) -> bytes:
    data = b""
    while True:
        size = b""
        while not size.endswith(b"\r\n"):
            size += _exactly(side, 1)
        data += size + _exactly(side, int(size, 16) + 2)
        if int(size, 16) == 0:
            return data
