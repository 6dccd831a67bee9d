"""Hostile clients and lying upstreams against a running gateway, by row of the threat list (A, B, C, D, E).

Every test runs beside a bystander with a connection of its own, whose requests must all be answered, and ends with a
look at what is left behind: no traceback, no other worker, no descriptor, task or request still held.
"""

from __future__ import annotations

import contextlib
import os
import re
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from typing import Any

import hpack
import pytest

from datum_router_proxy import testing as h2
from datum_router_proxy.wire.http2 import PREFACE

pytestmark = pytest.mark.e2e
CANARY = b"/smuggled"
HOST = b"Host: a.test\r\n"
GET = b"GET / HTTP/1.1\r\n" + HOST + b"\r\n"
INNER = b"GET " + CANARY + b" HTTP/1.1\r\n" + HOST + b"\r\n"
OK = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"
CALM, PROTOCOL, COMPRESSION, FLOW, FRAME_SIZE = 11, 1, 9, 3, 6
DATA, HEADERS, RST_STREAM, GOAWAY = 0, 1, 3, 7


def read_all(sock: socket.socket) -> bytes:
    """Read to the end, be it clean or a reset."""
    data = b""
    with contextlib.suppress(ConnectionError):
        while chunk := sock.recv(65536):
            data += chunk
    return data


def read_until(sock: socket.socket, ending: bytes) -> bytes:
    data = b""
    while not data.endswith(ending):
        chunk = sock.recv(65536)
        assert chunk, f"closed after {data!r}"
        data += chunk
    return data


def statuses(data: bytes) -> list[int]:
    return [int(code) for code in re.findall(rb"HTTP/1\.1 (\d{3}) ", data)]


class Recorder:
    """An upstream's handler: reads each body by a strict reading of its head, and keeps heads with bodies."""

    def __init__(self) -> None:
        self.requests: list[tuple[bytes, bytes]] = []
        self.reply = OK
        self.backend: Any = None

    def __call__(self, sock: socket.socket, rest: bytes) -> None:
        head = self.backend.heads[-1]
        body = rest
        length = re.search(rb"(?i)\r\ncontent-length: (\d+)", head)
        if length:
            while len(body) < int(length[1]):
                body += self._more(sock)
        elif re.search(rb"(?i)\r\ntransfer-encoding: chunked", head):
            while not body.endswith(b"0\r\n\r\n"):
                body += self._more(sock)
        self.requests.append((head, body))
        sock.sendall(self.reply)

    def _more(self, sock: socket.socket) -> bytes:
        data = sock.recv(65536)
        if not data:
            raise ConnectionError("the gateway gave up")
        return data

    @property
    def targets(self) -> list[bytes]:
        return [head.split(b" ")[1] for head in self.backend.heads]


class Arena:
    """A gateway, its recorder under `/`, a bystander under `/bystander`, and the state of things before."""

    def __init__(self, gateway: Any, recorder: Recorder, kit: Any) -> None:
        self.gateway = gateway
        self.recorder = recorder
        self.kit = kit
        self.answered = 0
        self.errors: list[str] = []
        self._is_over = threading.Event()
        self.pids = gateway.worker_pids()
        self.fds = self.open_fds()
        self._thread = threading.Thread(target=self._stand_by, daemon=True)
        self._thread.start()

    def open_fds(self) -> int:
        return sum(len(os.listdir(f"/proc/{pid}/fd")) for pid in self.pids)

    def _stand_by(self) -> None:
        try:
            with self.connect() as sock:
                while not self._is_over.wait(0.01):
                    sock.sendall(b"GET /bystander HTTP/1.1\r\n" + HOST + b"\r\n")
                    read_until(sock, b"\r\n\r\nfine")
                    self.answered += 1
        except (OSError, AssertionError) as error:
            self.errors.append(repr(error))

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.gateway.port), timeout=10)

    def ask(self, message: bytes, *, half_close: bool = False) -> bytes:
        """Send `message` and return everything up to the gateway's close."""
        with self.connect() as sock:
            with contextlib.suppress(ConnectionError):
                sock.sendall(message)
                if half_close:
                    sock.shutdown(socket.SHUT_WR)
            return read_all(sock)

    def check_nothing_is_left(self, backends: list[Any]) -> None:
        """G1 and G5: the bystander never noticed, and everything is as it was."""
        before = self.answered
        self.kit.eventually(lambda: self.answered > before + 2 or bool(self.errors), "the bystander is still answered")
        self._is_over.set()
        self._thread.join(timeout=10)
        assert self.errors == []
        for backend in backends:
            backend.close()  # with it end the pooled connections to it
        self.kit.eventually(self._is_idle, f"nothing left behind: {self.gateway.stats()['gauges']}", 8.0)
        assert self.gateway.worker_pids() == self.pids
        assert self.gateway.stats()["counters"].get("worker_restarts", 0) == 0
        log = self.gateway.log.read_text()
        assert "Traceback" not in log, log[log.index("Traceback") :][:3000]
        assert "requests_reason|internal" not in self.gateway.stats()["counters"]

    def _is_idle(self) -> bool:
        gauges = self.gateway.stats()["gauges"]
        nothing = {"connections": 0, "requests_in_flight": 0, "tasks": 1, "upstream_connections": 0}
        return gauges == nothing and self.open_fds() <= self.fds


@pytest.fixture
def arena(directory: Any, start_gateway: Any, start_backend: Any, kit: Any) -> Iterator[Arena]:
    recorder = Recorder()
    recorder.backend = start_backend(recorder)
    bystander = start_backend(kit.answer(b"fine"))
    (directory / "a.yaml").write_text(kit.manifest("a", recorder.backend))
    (directory / "b.yaml").write_text(kit.manifest("b", bystander, path="/bystander"))
    built = Arena(start_gateway(), recorder, kit)
    yield built
    built.check_nothing_is_left([recorder.backend, bystander])


def post(*lines: bytes, body: bytes = b"", version: bytes = b"1.1") -> bytes:
    head = b"POST / HTTP/" + version + b"\r\n" + HOST + b"".join(line + b"\r\n" for line in lines)
    return head + b"\r\n" + body


def chunked(body: bytes) -> bytes:
    return post(b"Transfer-Encoding: chunked", body=body)


TE = b"Transfer-Encoding: chunked"
REFUSED_H1: dict[str, tuple[int, bytes]] = {
    "A1 CL.TE": (400, post(b"Content-Length: 4", TE, body=b"0\r\n\r\n" + INNER)),
    "A1 TE.CL": (400, post(TE, b"Content-Length: 4", body=b"0\r\n\r\n" + INNER)),
    "A1 case": (400, post(b"cOnTent-LENGTH: 0", b"TRANSFER-encoding: Chunked", body=INNER)),
    "A2 xchunked": (501, post(b"Transfer-Encoding: xchunked", body=b"0\r\n\r\n" + INNER)),
    "A2 repeated": (400, post(TE, TE, body=b"0\r\n\r\n" + INNER)),
    "A2 listed": (400, post(b"Transfer-Encoding: gzip, chunked", body=b"0\r\n\r\n" + INNER)),
    "A2 chunked twice": (400, post(b"Transfer-Encoding: chunked, chunked", body=b"0\r\n\r\n" + INNER)),
    "A2 identity": (400, post(b"Transfer-Encoding: identity", b"Content-Length: 0", body=INNER)),
    "A2 quoted": (400, post(b'Transfer-Encoding: "chunked"', body=b"0\r\n\r\n" + INNER)),
    "A2 vertical tab": (400, post(b"Transfer-Encoding: \x0bchunked", body=b"0\r\n\r\n" + INNER)),
    "A2 blank before colon": (400, post(b"Transfer-Encoding : chunked", body=b"0\r\n\r\n" + INNER)),
    "A2 folded": (400, post(b"Transfer-Encoding:\r\n chunked", body=b"0\r\n\r\n" + INNER)),
    "A3": (400, post(TE, body=b"0\r\n\r\n" + INNER, version=b"1.0")),
    "A4 repeated": (400, post(b"Content-Length: 4", b"Content-Length: 4", body=b"abcd" + INNER)),
    "A4 differing": (400, post(b"Content-Length: 0", b"Content-Length: 44", body=INNER)),
    "A4 list": (400, post(b"Content-Length: 4, 4", body=b"abcd" + INNER)),
    "A4 sign": (400, post(b"Content-Length: +4", body=b"abcd" + INNER)),
    "A4 minus": (400, post(b"Content-Length: -1", body=INNER)),
    "A4 hex": (400, post(b"Content-Length: 0x4", body=b"abcd" + INNER)),
    "A4 blank": (400, post(b"Content-Length: ", body=INNER)),
    "A4 inner blank": (400, post(b"Content-Length: 4 4", body=INNER)),
    "A4 underscore": (400, post(b"Content-Length: 4_4", body=INNER)),
    "A4 arabic digit": (400, post("Content-Length: \u0664".encode(), body=INNER)),
    "A4 superscript": (400, post(b"Content-Length: \xb2", body=INNER)),
    "A4 too long": (400, post(b"Content-Length: " + b"1" * 5000, body=INNER)),
    "A6 bare LF in head": (400, b"GET / HTTP/1.1\n" + HOST + b"\r\n" + INNER),
    "A6 bare LF field": (400, b"GET / HTTP/1.1\r\nHost: a.test\nX: y\r\n\r\n" + INNER),
    "A6 bare CR in value": (400, b"GET / HTTP/1.1\r\n" + HOST + b"X: a\rTransfer-Encoding: chunked\r\n\r\n" + INNER),
    "A6 LF LF": (400, b"GET / HTTP/1.1\r\n" + HOST + b"X: y\n\n" + INNER),
    "A7 obs-fold": (400, b"GET / HTTP/1.1\r\n" + HOST + b"X: a\r\n b\r\n\r\n" + INNER),
    "A7 blank before first": (400, b"GET / HTTP/1.1\r\n " + HOST + b"\r\n" + INNER),
    "A7 no colon": (400, b"GET / HTTP/1.1\r\n" + HOST + b"foo\r\n\r\n" + INNER),
    "A7 empty name": (400, b"GET / HTTP/1.1\r\n" + HOST + b": x\r\n\r\n" + INNER),
    "A8 NUL": (400, b"GET / HTTP/1.1\r\n" + HOST + b"X: a\0b\r\n\r\n" + INNER),
    "A8 non-token name": (400, b"GET / HTTP/1.1\r\n" + HOST + b"X(y): a\r\n\r\n" + INNER),
    "A8 DEL": (400, b"GET / HTTP/1.1\r\n" + HOST + b"X: \x7f\r\n\r\n" + INNER),
    "A20 two blanks": (400, b"GET  / HTTP/1.1\r\n" + HOST + b"\r\n" + INNER),
    "A20 tab": (400, b"GET\t/ HTTP/1.1\r\n" + HOST + b"\r\n" + INNER),
    "A20 version 2": (505, b"GET / HTTP/2.0\r\n" + HOST + b"\r\n" + INNER),
    "A20 bad version": (400, b"GET / HTTP/1.x\r\n" + HOST + b"\r\n" + INNER),
    "A20 HTTP/0.9": (400, b"GET /\r\n\r\n" + INNER),
    "A20 method token": (400, b"G@T\x01 / HTTP/1.1\r\n" + HOST + b"\r\n" + INNER),
    "A20 long target": (414, b"GET /" + b"a" * 9000 + b" HTTP/1.1\r\n" + HOST + b"\r\n" + INNER),
    "A21 no host": (400, b"GET / HTTP/1.1\r\n\r\n" + INNER),
    "A21 two hosts": (400, b"GET / HTTP/1.1\r\n" + HOST + HOST + b"\r\n" + INNER),
    "A22 fields": (431, b"GET / HTTP/1.1\r\n" + HOST + b"".join(b"x%d: y\r\n" % i for i in range(101)) + b"\r\n"),
    "A22 field size": (431, b"GET / HTTP/1.1\r\n" + HOST + b"x: " + b"a" * 17000 + b"\r\n\r\n"),
    "A22 endless head": (431, b"GET / HTTP/1.1\r\n" + HOST + b"".join(b"x%d: %s\r\n" % (i, b"a" * 9000) for i in range(9))),
    "B6 proxy protocol": (400, b"PROXY TCP4 1.2.3.4 5.6.7.8 1 2\r\n" + GET),
}  # fmt: skip
REFUSED_AND_ANSWERED: dict[str, tuple[int, bytes]] = {
    "A15 unknown expectation": (417, post(b"Expect: 200-maybe", b"Content-Length: 0")),
    "A20 CONNECT": (405, b"CONNECT a.test:443 HTTP/1.1\r\nHost: a.test:443\r\n\r\n"),
    "A20 TRACE": (405, b"TRACE / HTTP/1.1\r\n" + HOST + b"\r\n"),
    "A21 listed host": (400, b"GET / HTTP/1.1\r\nHost: a.test, b.test\r\n\r\n"),
    "A21 userinfo": (400, b"GET / HTTP/1.1\r\nHost: u@a.test\r\n\r\n"),
    "A21 port": (400, b"GET / HTTP/1.1\r\nHost: a.test:99999\r\n\r\n"),
    "A21 port text": (400, b"GET / HTTP/1.1\r\nHost: a.test:8x\r\n\r\n"),
    "C1 above root": (400, b"GET /a/../../smuggled HTTP/1.1\r\n" + HOST + b"\r\n"),
    "C1 encoded above root": (400, b"GET /%2e%2E/smuggled HTTP/1.1\r\n" + HOST + b"\r\n"),
    "C2 encoded slash": (400, b"GET /a%2fsmuggled HTTP/1.1\r\n" + HOST + b"\r\n"),
    "C2 encoded backslash": (400, b"GET /a%5Csmuggled HTTP/1.1\r\n" + HOST + b"\r\n"),
    "C2 backslash": (400, b"GET /a\\..\\smuggled HTTP/1.1\r\n" + HOST + b"\r\n"),
    "C4 NUL": (400, b"GET /a%00 HTTP/1.1\r\n" + HOST + b"\r\n"),
    "C4 escape": (400, b"GET /a%4 HTTP/1.1\r\n" + HOST + b"\r\n"),
    "C4 non-ASCII": (400, b"GET /\xe9 HTTP/1.1\r\n" + HOST + b"\r\n"),
    "C4 fragment": (400, b"GET /a#b HTTP/1.1\r\n" + HOST + b"\r\n"),
    "U11 loop": (508, b"GET / HTTP/1.1\r\n" + HOST + b"Via: " + b", ".join([b"1.1 datum-router"] * 11) + b"\r\n\r\n"),
}


def test_a1_to_a8_a20_to_a22_broken_requests_are_refused_closed_and_never_reach_the_upstream(arena: Arena) -> None:
    wrong = {}
    for row, (status, message) in REFUSED_H1.items():
        found = statuses(arena.ask(message))
        if found != [status]:
            wrong[row] = found
    assert wrong == {}
    assert arena.recorder.targets == []


def test_a15_a21_c1_to_c4_u11_well_framed_but_unwanted_requests_are_answered_and_go_nowhere(arena: Arena) -> None:
    wrong = {}
    for row, (status, message) in REFUSED_AND_ANSWERED.items():
        closing = message.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n", 1)
        found = statuses(arena.ask(closing))
        if found != [status]:
            wrong[row] = found
    assert wrong == {}
    assert arena.recorder.targets == []


def test_a9_to_a11_a13_broken_chunks_end_the_upstream_message_uncompleted(arena: Arena) -> None:
    bodies = {
        "A9 sign": b"+4\r\nabcd\r\n0\r\n\r\n",
        "A9 0x": b"0x4\r\nabcd\r\n0\r\n\r\n",
        "A9 underscore": b"1_0\r\n0123456789abcdef\r\n0\r\n\r\n",
        "A9 blank": b" 4\r\nabcd\r\n0\r\n\r\n",
        "A9 blank after": b"4 \r\nabcd\r\n0\r\n\r\n",
        "A9 empty": b"\r\nabcd\r\n0\r\n\r\n",
        "A9 junk": b"4g\r\nabcd\r\n0\r\n\r\n",
        "A9 17 digits": b"00000000000000004\r\nabcd\r\n0\r\n\r\n",
        "A9 negative": b"-1\r\nabcd\r\n0\r\n\r\n",
        "A6 LF in header": b"4\nabcd\r\n0\r\n\r\n",
        "A6 CR in header": b"4\r\rabcd\r\n0\r\n\r\n",
        "A6 LF in trailer": b"0\r\nX: y\n\r\n",
        "A10 no CRLF": b"4\r\nabcdXX0\r\n\r\n",
        "A10 LF": b"4\r\nabcd\n0\r\n\r\n",
        "A11 CR in extension": b"4;a=\rb\r\nabcd\r\n0\r\n\r\n",
        "A11 LF in extension": b"4;a\nabcd\r\n0\r\n\r\n",
        "A11 long": b"4;" + b"a" * 300 + b"\r\nabcd\r\n0\r\n\r\n",
        "A13 fields": b"0\r\n" + b"".join(b"t%d: x\r\n" % i for i in range(65)) + b"\r\n",
        "A13 bytes": b"0\r\nt: " + b"x" * 9000 + b"\r\n\r\n",
        "A13 no colon": b"0\r\nfoo\r\n\r\n",
    }
    wrong = {}
    for row, body in bodies.items():
        found = statuses(arena.ask(chunked(body + INNER)))
        if found not in ([400], [431], []):
            wrong[row] = found
    assert wrong == {}
    assert arena.recorder.requests == []  # no message was complete; heads alone may have been sent
    assert CANARY not in arena.recorder.targets


def test_a5_a11_a13_a14_a19_what_is_allowed_is_forwarded_canonical_and_in_order(arena: Arena) -> None:
    recorder = arena.recorder
    body = b"4;ext=1;q=\"x\"\r\nabcd\r\n0\r\nHost: evil\r\nContent-Length: 9\r\nX-T: 1\r\n\r\n"
    pipeline = (
        b"GET /1 HTTP/1.1\r\n" + HOST + b"Content-Length: %d\r\n\r\n" % len(INNER) + INNER
        + b"DELETE /2 HTTP/1.1\r\n" + HOST + TE + b"\r\n\r\n%x\r\n" % len(INNER) + INNER + b"\r\n0\r\n\r\n"
        + b"POST /3 HTTP/1.1\r\n" + HOST + TE + b"\r\n\r\n" + body
        + b"OPTIONS * HTTP/1.1\r\n" + HOST + b"\r\n"
        + b"GET /5 HTTP/1.1\r\n" + HOST + b"Connection: close\r\n\r\n" + INNER
    )  # fmt: skip
    assert statuses(arena.ask(pipeline)) == [200] * 5
    assert recorder.targets == [b"/1", b"/2", b"/3", b"/5"]
    third = recorder.requests[2]
    assert b"ext" not in third[1]
    assert b"evil" not in third[1]
    assert third[1].startswith(b"4\r\nabcd\r\n0\r\n")
    for head, _ in recorder.requests:
        assert head.lower().count(b"\r\nhost: a.test") == 1
        assert len(re.findall(rb"(?i)\r\n(?:content-length|transfer-encoding):", head)) <= 1
        assert b"\n" not in head.replace(b"\r\n", b"")


def test_a15_we_say_100_and_the_upstream_hears_no_expectation(arena: Arena) -> None:
    with arena.connect() as sock:
        sock.sendall(post(b"Expect: 100-continue", b"Content-Length: 2"))
        assert read_until(sock, b"\r\n\r\n").startswith(b"HTTP/1.1 100 ")
        sock.sendall(b"hi")
        assert statuses(read_until(sock, b"ok")) == [200]
    ((head, body),) = arena.recorder.requests
    assert b"expect" not in head.lower()
    assert body == b"hi"


def test_b1_b2_b5_b7_a21_a24_fields_from_outside_are_stripped_overwritten_or_canonical(arena: Arena) -> None:
    message = (
        b"GET http://A.Test.:80/x/./y//z/%7eq?a=%2e%2e HTTP/1.1\r\nHost: other.test\r\n"
        b"Connection: close, X-Gone, Host, X-Forwarded-For, Authorization\r\nX-Gone: 1\r\nAuthorization: keep\r\n"
        b"Keep-Alive: 5\r\nProxy-Connection: x\r\nProxy-Authorization: x\r\nTE: trailers, gzip\r\n"
        b"Upgrade: h2c, foo\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\nX-Forwarded-For: 6.6.6.6\r\nX-Forwarded-Proto: https\r\n"
        b"X-Forwarded-Host: evil.test\r\nForwarded: for=6.6.6.6\r\nX-Real-IP: 6.6.6.6\r\nX-Datum-Internal: 1\r\n"
        b"Content_Length: 5\r\nX-Obs: \xe9\r\n\r\n"
    )
    assert statuses(arena.ask(message)) == [200]
    ((head, _),) = arena.recorder.requests
    line, *lines = head.split(b"\r\n")
    assert line == b"GET /x/y/z/~q?a=%2e%2e HTTP/1.1"
    fields = [tuple(item.split(b": ", 1)) for item in lines]
    names = [name.lower() for name, _ in fields]
    found = {name.lower(): value for name, value in fields}
    assert re.fullmatch(rb"a\.test(:80)?", found[b"host"])
    assert names.count(b"host") == 1
    assert found[b"authorization"] == b"keep"
    assert found[b"x-obs"] == b"\xe9"
    assert b"6.6.6.6" not in head
    assert b"evil" not in head
    assert found[b"x-forwarded-for"] == b"127.0.0.1"
    assert found[b"x-forwarded-proto"] == b"http"
    gone = {
        b"x-gone", b"keep-alive", b"proxy-connection", b"proxy-authorization", b"te", b"upgrade", b"http2-settings",
        b"x-datum-internal", b"content_length",
    }  # fmt: skip
    assert gone.isdisjoint(names)


def test_b3_an_upgrade_tunnels_only_after_a_right_answer(arena: Arena) -> None:
    shake = (
        b"GET / HTTP/1.1\r\n" + HOST + b"Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: %s\r\n"
        b"Sec-WebSocket-Key: %s\r\n\r\n"
    )
    key = b"dGhlIHNhbXBsZSBub25jZQ=="
    # What follows a handshake that the upstream does not accept is no tunnel's data.
    for version, one in ((b"8", key), (b"13", b"short"), (b"13", key)):
        with arena.connect() as sock:
            sock.sendall(shake % (version, one))
            assert statuses(read_until(sock, b"ok"))[0] == 200
    assert b"upgrade" not in arena.recorder.requests[0][0].lower()
    assert b"upgrade" not in arena.recorder.requests[1][0].lower()
    switch = b"HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\n"
    arena.recorder.reply = switch + b"sec-websocket-accept: AAAA\r\n\r\n"
    assert statuses(arena.ask((shake % (b"13", key)).replace(b"\r\n\r\n", b"\r\n\r\n" + INNER)))[0] == 502
    arena.recorder.reply = switch + b"sec-websocket-accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n"
    # 101 that nobody asked for is a broken answer.
    assert statuses(arena.ask(GET)[:64])[0] == 502
    assert CANARY not in arena.recorder.targets


LIES: dict[str, tuple[bytes, tuple[int, ...]]] = {
    "A17 both lengths": (b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\ntransfer-encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n", (502,)),
    "A17 two lengths": (b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\ncontent-length: 3\r\n\r\nok", (502,)),
    "A17 bad length": (b"HTTP/1.1 200 OK\r\ncontent-length: +2\r\n\r\nok", (502,)),
    "A17 bare LF": (b"HTTP/1.1 200 OK\ncontent-length: 2\n\nok\r\n\r\n", (502,)),
    "A17 garbage": (b"\x16\x03\x01\x02\x00garbage\r\n\r\n", (502,)),
    "A17 TE unknown": (b"HTTP/1.1 200 OK\r\ntransfer-encoding: gzip\r\n\r\nok", (502,)),
    "A17 NUL": (b"HTTP/1.1 200 OK\r\nx: a\0b\r\ncontent-length: 2\r\n\r\nok", (502,)),
    "A17 fold": (b"HTTP/1.1 200 OK\r\nx: a\r\n b\r\ncontent-length: 2\r\n\r\nok", (502,)),
    "A17 status": (b"HTTP/1.1 20 OK\r\ncontent-length: 2\r\n\r\nok", (502,)),
    "A17 status 999": (b"HTTP/1.1 999 X\r\ncontent-length: 2\r\n\r\nok", (502, 999)),
    "A16 flood": (b"HTTP/1.1 100 Continue\r\n\r\n" * 40 + OK, (502,)),
    "A16 some": (b"HTTP/1.1 102 P\r\n\r\n" * 4 + OK, (200,)),
    "A16 early hints": (b"HTTP/1.1 103 Early\r\nlink: </x>\r\n\r\n" + OK, (103, 200)),
    "A22 fields": (b"HTTP/1.1 200 OK\r\n" + b"".join(b"x%d: y\r\n" % i for i in range(300)) + b"\r\n", (502,)),
    "A22 head": (b"HTTP/1.1 200 OK\r\nx: " + b"a" * 100_000 + b"\r\n\r\n", (502,)),
    "B7 fields": (b"HTTP/1.1 200 OK\r\nx-datum-x: 1\r\nconnection: x-y\r\nx-y: 1\r\ncontent-length: 2\r\n\r\nok", (200,)),
}  # fmt: skip


def test_a16_a17_b7_what_an_upstream_says_wrongly_is_502_and_never_relayed(arena: Arena) -> None:
    wrong = {}
    for row, (reply, expected) in LIES.items():
        arena.recorder.reply = reply
        data = arena.ask(b"POST / HTTP/1.1\r\n" + HOST + b"Content-Length: 0\r\nConnection: close\r\n\r\n")
        if tuple(statuses(data)) != expected or b"x-datum-x" in data or b"x-y" in data:
            wrong[row] = data[:200]
    assert wrong == {}


def test_a17_bytes_past_the_end_never_answer_the_next_request(arena: Arena) -> None:
    arena.recorder.reply = OK + b"HTTP/1.1 200 OK\r\ncontent-length: 6\r\n\r\npoison"
    for _ in range(5):
        assert b"poison" not in arena.ask(GET.replace(HOST, HOST + b"Connection: close\r\n"))
    arena.recorder.reply = b"HTTP/1.1 304 Not Modified\r\ncontent-length: 6\r\n\r\npoison"
    for _ in range(3):
        assert statuses(arena.ask(GET.replace(HOST, HOST + b"Connection: close\r\n"))) == [304]
    arena.recorder.reply = OK
    assert arena.gateway.get("/") == (200, b"ok")




def http2_client(arena: Arena) -> socket.socket:
    sock = arena.connect()
    sock.sendall(PREFACE + h2.settings())
    return sock


def frames(data: bytes) -> list[tuple[int, int, int, bytes]]:
    found = []
    while len(data) >= 9:
        length = int.from_bytes(data[:3], "big")
        if len(data) < 9 + length:
            break
        found.append((data[3], data[4], int.from_bytes(data[5:9], "big") & 0x7FFFFFFF, data[9 : 9 + length]))
        data = data[9 + length :]
    return found
