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
CLOSING_GET = b"GET / HTTP/1.1\r\n" + HOST + b"Connection: close\r\n\r\n"
INNER = b"GET " + CANARY + b" HTTP/1.1\r\n" + HOST + b"\r\n"
OK = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"
# A field of 4,000 bytes put into the table once and referred to 12,000 times.
BOMB = b"\x40\x01a\x7f\x80\x1e" + b"b" * 3967 + b"\xbe" * 12000
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
    """A gateway, a recorder under `/`, a bystander under `/bystander`, and what the gateway held at rest."""

    def __init__(self, gateway: Any, recorder: Recorder, kit: Any) -> None:
        self.gateway = gateway
        self.recorder = recorder
        self.kit = kit
        self.pids = gateway.worker_pids()
        self.fds = self._open_fds()
        self._answered = 0
        self._errors: list[str] = []
        self._is_over = threading.Event()

    def _open_fds(self) -> int:
        return sum(len(os.listdir(f"/proc/{pid}/fd")) for pid in self.pids)

    def begin(self) -> None:
        """Forget what was recorded, and start the bystander."""
        self.recorder.reply = OK
        self.recorder.requests.clear()
        self.recorder.backend.heads.clear()
        self._answered = 0
        self._is_over.clear()
        self._thread = threading.Thread(target=self._stand_by, daemon=True)
        self._thread.start()

    def _stand_by(self) -> None:
        try:
            with self.connect() as sock:
                while not self._is_over.wait(0.01):
                    sock.sendall(b"GET /bystander HTTP/1.1\r\n" + HOST + b"\r\n")
                    read_until(sock, b"\r\n\r\nfine")
                    self._answered += 1
        except (OSError, AssertionError) as error:
            self._errors.append(repr(error))

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.gateway.port), timeout=15)

    def ask(self, message: bytes) -> bytes:
        """Send `message` and return everything up to the gateway's close."""
        with self.connect() as sock:
            with contextlib.suppress(ConnectionError):
                sock.sendall(message)
            return read_all(sock)

    def end(self) -> None:
        """G1 and G5: the bystander never noticed, and everything is as it was."""
        before = self._answered
        self.kit.eventually(lambda: self._answered > before + 2 or bool(self._errors), "the bystander is answered")
        self._is_over.set()
        self._thread.join(timeout=10)
        assert self._errors == []
        self.kit.eventually(self._is_at_rest, "connections, requests, tasks and descriptors are given back", 8.0)
        assert self.gateway.worker_pids() == self.pids
        stats = self.gateway.stats()["counters"]
        assert "datum_router_worker_restarts_total" not in stats
        assert [name for name in stats if name.endswith("|internal")] == []
        log = self.gateway.log.read_text()
        assert "Traceback" not in log, log[log.index("Traceback") :][:3000]

    def _is_at_rest(self) -> bool:
        gauges = self.gateway.stats()["gauges"]
        pooled = gauges.pop("upstream_connections", 0)
        if gauges != {"connections": 0, "requests_in_flight": 0, "tasks": 1}:
            return False
        return self._open_fds() <= self.fds + pooled


@pytest.fixture(scope="module")
def ground(kit: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Arena]:
    """One gateway for all rows: what one leaves behind, the next one finds."""
    recorder = Recorder()
    recorder.backend = kit.Backend(recorder)
    bystander = kit.Backend(kit.answer(b"fine"))
    directory = tmp_path_factory.mktemp("attacks") / "manifests"
    directory.mkdir()
    (directory / "a.yaml").write_text(kit.manifest("a", recorder.backend))
    (directory / "b.yaml").write_text(kit.manifest("b", bystander, path="/bystander"))
    gateway = kit.Gateway(directory, "--listen", "127.0.0.1:0")
    try:
        built = Arena(gateway, recorder, kit)
        yield built
        recorder.backend.close()
        bystander.close()
        kit.eventually(lambda: gateway.stats()["gauges"]["upstream_connections"] == 0, "the pools let go of the dead")
    finally:
        gateway.stop()
        recorder.backend.close()
        bystander.close()


@pytest.fixture
def arena(ground: Arena) -> Iterator[Arena]:
    ground.begin()
    yield ground
    ground.end()


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
    "A22 endless head": (
        431,
        b"GET / HTTP/1.1\r\n" + HOST + b"".join(b"x%d: %s\r\n" % (i, b"a" * 9000) for i in range(9)),
    ),
    "B6 proxy protocol": (400, b"PROXY TCP4 1.2.3.4 5.6.7.8 1 2\r\n" + GET),
}
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
    body = b'4;ext=1;q="x"\r\nabcd\r\n0\r\nHost: evil\r\nContent-Length: 9\r\nX-T: 1\r\n\r\n'
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
        b"Upgrade: h2c, foo\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n"
        b"X-Forwarded-For: 6.6.6.6\r\nX-Forwarded-Proto: https\r\n"
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
    assert (found[b"te"], found[b"connection"].lower()) == (b"trailers", b"te")
    gone = {
        b"x-gone",
        b"keep-alive",
        b"proxy-connection",
        b"proxy-authorization",
        b"upgrade",
        b"http2-settings",
        b"x-datum-internal",
        b"content_length",
    }
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
    assert statuses(arena.ask(CLOSING_GET)) == [502]
    assert CANARY not in arena.recorder.targets


LIES: dict[str, tuple[bytes, tuple[int, ...]]] = {
    "A17 both lengths": (
        b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\ntransfer-encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n",
        (502,),
    ),
    "A17 two lengths": (b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\ncontent-length: 3\r\n\r\nok", (502,)),
    "A17 bad length": (b"HTTP/1.1 200 OK\r\ncontent-length: +2\r\n\r\nok", (502,)),
    "A17 bare LF": (b"HTTP/1.1 200 OK\ncontent-length: 2\n\nok\r\n\r\n", (502,)),
    "A17 garbage": (b"\x16\x03\x01\x02\x00garbage\r\n\r\n", (502,)),
    "A17 TE unknown": (b"HTTP/1.1 200 OK\r\ntransfer-encoding: gzip\r\n\r\nok", (502,)),
    "A17 NUL": (b"HTTP/1.1 200 OK\r\nx: a\0b\r\ncontent-length: 2\r\n\r\nok", (502,)),
    "A17 fold": (b"HTTP/1.1 200 OK\r\nx: a\r\n b\r\ncontent-length: 2\r\n\r\nok", (502,)),
    "A17 status": (b"HTTP/1.1 20 OK\r\ncontent-length: 2\r\n\r\nok", (502,)),
    "A17 status 999": (b"HTTP/1.1 999 X\r\ncontent-length: 2\r\n\r\nok", (502,)),
    "A16 flood": (b"HTTP/1.1 100 Continue\r\n\r\n" * 40 + OK, (502,)),
    "A16 some": (b"HTTP/1.1 102 P\r\n\r\n" * 4 + OK, (200,)),
    "A16 early hints": (b"HTTP/1.1 103 Early\r\nlink: </x>\r\n\r\n" + OK, (103, 200)),
    "A22 fields": (b"HTTP/1.1 200 OK\r\n" + b"".join(b"x%d: y\r\n" % i for i in range(300)) + b"\r\n", (502,)),
    "A22 head": (b"HTTP/1.1 200 OK\r\nx: " + b"a" * 100_000 + b"\r\n\r\n", (502,)),
    "B7 fields": (
        b"HTTP/1.1 200 OK\r\nx-datum-x: 1\r\nconnection: x-y\r\nx-y: 1\r\ncontent-length: 2\r\n\r\nok",
        (200,),
    ),
}


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
        assert b"poison" not in arena.ask(CLOSING_GET)
    arena.recorder.reply = b"HTTP/1.1 304 Not Modified\r\ncontent-length: 6\r\n\r\npoison"
    for _ in range(3):
        assert statuses(arena.ask(CLOSING_GET)) == [304]
    arena.recorder.reply = OK
    assert arena.gateway.get("/") == (200, b"ok")


def answer_raw(arena: Arena, *pieces: bytes, reset: bool = False) -> Callable[[socket.socket, bytes], None]:
    """Return a handler that says the pieces and closes the connection, by reset if asked."""

    def handler(sock: socket.socket, _rest: bytes) -> None:
        for piece in pieces:
            sock.sendall(piece)
        if reset:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        sock.close()

    return handler


def is_complete(data: bytes) -> bool:
    """Tell whether an HTTP/1 client would take the response for complete."""
    head, _, body = data.partition(b"\r\n\r\n")
    length = re.search(rb"(?i)content-length: (\d+)", head)
    return body.endswith(b"0\r\n\r\n") if length is None else len(body) >= int(length[1])


def test_a17_u1_u2_a_response_cut_short_is_502_before_its_head_and_never_complete_after_it(arena: Arena) -> None:
    backend = arena.recorder.backend
    try:
        for reset in (False, True):
            for pieces in ((), (b"HTTP/1.1 200 OK\r\nconte",)):
                backend.handler = answer_raw(arena, *pieces, reset=reset)
                (status,) = statuses(arena.ask(CLOSING_GET))
                assert status in (502, 503)
            for head, part in (
                (b"content-length: 10\r\n", b"abc"),
                (b"transfer-encoding: chunked\r\n", b"3\r\nabc\r\n"),
                (b"transfer-encoding: chunked\r\n", b"3\r\nabc\r\nzz\r\n"),
            ):
                backend.handler = answer_raw(arena, b"HTTP/1.1 200 OK\r\n" + head + b"\r\n", part, reset=reset)
                data = arena.ask(CLOSING_GET)
                assert statuses(data) in ([200], [502], [])  # a reset may overtake the head
                assert statuses(data) != [200] or not is_complete(data)
    finally:
        backend.handler = arena.recorder


def test_a18_an_early_answer_is_relayed_and_neither_connection_used_again(arena: Arena) -> None:
    backend = arena.recorder.backend
    reply = b"HTTP/1.1 413 Content Too Large\r\ncontent-length: 3\r\n\r\nbig"
    backend.handler = lambda sock, _rest: sock.sendall(reply)
    connections = backend.connections
    try:
        with arena.connect() as sock:
            sock.sendall(post(b"Content-Length: 1000000", body=b"x" * 1000))
            data = read_until(sock, b"big")
            assert statuses(data) == [413]
            assert b"connection: close" in data.lower()
            # What was announced as body is no request, however much like one it looks.
            with contextlib.suppress(ConnectionError):
                sock.sendall(INNER)
            assert read_all(sock) == b""
    finally:
        backend.handler = arena.recorder
    assert arena.gateway.get("/") == (200, b"ok")
    assert backend.connections >= connections + 1
    assert CANARY not in arena.recorder.targets


def test_g5_clients_that_leave_at_any_stage_leave_nothing_behind(arena: Arena) -> None:
    whole = post(b"Content-Length: 5", body=b"abcde")
    for cut in range(0, len(whole) + 1, 7):
        for reset in (False, True):
            with arena.connect() as sock:
                sock.sendall(whole[:cut])
                if reset:
                    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    arena.recorder.reply = b"HTTP/1.1 200 OK\r\ncontent-length: 4000000\r\n\r\n" + b"x" * 4_000_000
    for _ in range(10):
        with arena.connect() as sock:
            sock.sendall(GET)
            sock.recv(100)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def test_e1_e2_a_slow_head_is_408_and_silence_is_closed_without_a_word(arena: Arena) -> None:
    with arena.connect() as silent, arena.connect() as slow:
        slow.sendall(b"GET / HTTP/1.1\r\nHost: a.te")
        slow.settimeout(1.0)
        said = b""
        for _ in range(20):  # a byte a second: an idle clock would never end this
            try:
                said = slow.recv(65536)
                break
            except TimeoutError:
                slow.sendall(b"x")
        assert statuses(said) == [408]
        assert read_all(silent) == b""


def cpu_s(pids: list[int]) -> float:
    """Return the processor time that the processes have used so far."""
    ticks = 0
    for pid in pids:
        with open(f"/proc/{pid}/stat") as stat:
            ticks += sum(int(item) for item in stat.read().rsplit(")", 1)[1].split()[11:13])
    return ticks / os.sysconf("SC_CLK_TCK")


def test_a12_a23_many_tiny_pieces_cost_little_time(arena: Arena) -> None:
    before = cpu_s(arena.pids)
    tiny = b"1\r\na\r\n" * (1 << 18)
    message = post(TE, b"Connection: close", body=tiny + b"0\r\n\r\n")
    assert statuses(arena.ask(message)) == [200]
    assert cpu_s(arena.pids) - before < 1.0  # a quarter of the row's 1 MiB and 4 s
    ((_, body),) = arena.recorder.requests
    assert sum(len(piece) for piece in re.findall(rb"\r\n(a+)\r\n", b"\r\n" + body)) == 1 << 18
    before = cpu_s(arena.pids)
    with arena.connect() as sock:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        head = GET[:-2] + b"".join(b"x%d: %s\r\n" % (index, b"a" * 9000) for index in range(6)) + b"\r\n"
        for byte in head:
            sock.send(bytes((byte,)))
        assert statuses(read_until(sock, b"ok")) == [200]
    assert cpu_s(arena.pids) - before < 2.0


# --- HTTP/2 --------------------------------------------------------------------------------------------------------


class Client2:
    """Raw frames both ways."""

    def __init__(self, arena: Arena) -> None:
        self.sock = arena.connect()
        self.sock.sendall(PREFACE + h2.settings())
        self.decoder = hpack.Decoder()
        self._buffer = b""

    def __enter__(self) -> Client2:
        return self

    def __exit__(self, *_: object) -> None:
        self.sock.close()

    def send(self, *parts: bytes) -> None:
        with contextlib.suppress(ConnectionError):
            self.sock.sendall(b"".join(parts))

    def frames(self) -> Iterator[tuple[int, int, int, bytes]]:
        """Yield frames to the end of the connection."""
        while True:
            while len(self._buffer) >= 9 and len(self._buffer) >= 9 + int.from_bytes(self._buffer[:3], "big"):
                size = 9 + int.from_bytes(self._buffer[:3], "big")
                one, self._buffer = self._buffer[:size], self._buffer[size:]
                yield h2.parse(one)[0]
            try:
                data = self.sock.recv(65536)
            except ConnectionError:
                return
            if not data:
                return
            self._buffer += data

    def verdict(self, stream_id: int = 1) -> str:
        """Return how the stream (-1: the connection) ends: `status 200`, `reset 1`, `goaway 11` or `closed`."""
        status = ""
        for kind, flags, stream, payload in self.frames():
            if kind == GOAWAY and payload[4:8] != bytes(4):
                return f"goaway {int.from_bytes(payload[4:8], 'big')}"
            if kind == HEADERS:
                fields = self.decoder.decode(payload, raw=True)
                if stream == stream_id and not status:
                    status = "status " + dict(fields)[b":status"].decode()
            if stream == stream_id:
                if kind == RST_STREAM and not status:
                    return f"reset {int.from_bytes(payload, 'big')}"
                if flags & 1 or kind == RST_STREAM:
                    return status
        return "closed"


def head2(*extra: tuple[bytes, bytes], path: bytes = b"/", **pseudo: bytes) -> list[tuple[bytes, bytes]]:
    fields = {b":method": b"GET", b":scheme": b"http", b":path": path, b":authority": b"a.test"}
    fields |= {b":" + name.encode(): value for name, value in pseudo.items()}
    return [*fields.items(), *extra]


def test_d13_to_d17_bad_heads_and_bodies_reset_their_stream_and_never_reach_the_upstream(arena: Arena) -> None:
    headers = h2.headers
    cases: dict[str, tuple[tuple[str, ...], bytes]] = {
        "D13 no path": (("reset 1",), headers(1, head2()[:2] + head2()[3:])),
        "D13 no method": (("reset 1",), headers(1, head2()[1:])),
        "D13 no scheme": (("reset 1",), headers(1, head2()[:1] + head2()[2:])),
        "D13 empty path": (("reset 1",), headers(1, head2(path=b""))),
        "D13 repeated": (("reset 1",), headers(1, [(b":path", CANARY), *head2()])),
        "D13 unknown": (("reset 1",), headers(1, [(b":foo", b"x"), *head2()])),
        "D13 :status": (("reset 1",), headers(1, [(b":status", b"200"), *head2()])),
        "D13 late": (("reset 1",), headers(1, head2((b"x", b"y"), (b":path", CANARY)))),
        "D13 method": (("reset 1", "status 400"), headers(1, head2(method=b"GET " + CANARY + b" HTTP/1.1\r\nX:"))),
        "D13 path blank": (("reset 1", "status 400"), headers(1, head2(path=b"/ HTTP/1.1\r\nHost: x\r\n\r\n"))),
        "D13 path LF": (("reset 1", "status 400"), headers(1, head2(path=b"/a\nb"))),
        "D13 relative": (("reset 1", "status 400"), headers(1, head2(path=b"smuggled"))),
        "D13 absolute": (("reset 1", "status 400"), headers(1, head2(path=b"http://b.test/smuggled"))),
        "D13 authority CRLF": (("reset 1", "status 400"), headers(1, head2(authority=b"a.test\r\nX: y"))),
        "D13 authority userinfo": (("reset 1", "status 400"), headers(1, head2(authority=b"u@a.test"))),
        "D13 authority path": (("reset 1", "status 400"), headers(1, head2(authority=b"a.test/smuggled"))),
        "D13 authority empty": (("reset 1", "status 400"), headers(1, head2(authority=b""))),
        "D13 scheme": (("reset 1", "status 400"), headers(1, head2(scheme=b"http://a.test/smuggled?"))),
        "D14 upper case": (("reset 1",), headers(1, head2((b"X-Y", b"z")))),
        "D14 colon": (("reset 1",), headers(1, head2((b"x:y", b"z")))),
        "D14 name CRLF": (("reset 1",), headers(1, head2((b"x\r\ny", b"z")))),
        "D14 empty name": (("reset 1", "goaway 11"), headers(1, head2((b"", b"z")))),
        "D14 CR": (("reset 1",), headers(1, head2((b"x", b"a\rb")))),
        "D14 LF": (("reset 1",), headers(1, head2((b"x", b"a\nTransfer-Encoding: chunked")))),
        "D14 CRLF": (("reset 1",), headers(1, head2((b"x", b"a\r\n\r\n" + INNER)))),
        "D14 NUL": (("reset 1",), headers(1, head2((b"x", b"a\0")))),
        "D14 leading": (("reset 1",), headers(1, head2((b"x", b" a")))),
        "D14 trailing": (("reset 1",), headers(1, head2((b"x", b"a\t")))),
        "D15 TE chunked": (("reset 1",), headers(1, head2((b"transfer-encoding", b"chunked")))),
        "D15 connection": (("reset 1",), headers(1, head2((b"connection", b"close")))),
        "D15 keep-alive": (("reset 1",), headers(1, head2((b"keep-alive", b"5")))),
        "D15 upgrade": (("reset 1",), headers(1, head2((b"upgrade", b"websocket")))),
        "D15 te": (("reset 1",), headers(1, head2((b"te", b"gzip")))),
        "D16 repeated": (("reset 1",), headers(1, head2((b"content-length", b"0"), (b"content-length", b"0")))),
        "D16 odd": (("reset 1",), headers(1, head2((b"content-length", b"+0")))),
        "D16 early end": (("reset 1",), headers(1, head2((b"content-length", b"5")))),
        "D17 host": (("reset 1", "status 400"), headers(1, head2((b"host", b"other.test")))),
        "D17 hosts": (("reset 1", "status 400"), headers(1, head2((b"host", b"a.test"), (b"host", b"a.test")))),
        "B4 CONNECT": (("status 405", "reset 1"), headers(1, [(b":method", b"CONNECT"), (b":authority", b"a.test:1")])),
        "B4 protocol": (
            ("status 501", "reset 1"),
            headers(1, head2(method=b"CONNECT", protocol=b"foo"), end_stream=False),
        ),
        "A20 TRACE": (("status 405",), headers(1, head2(method=b"TRACE"))),
        "A20 path": (("status 414",), headers(1, head2(path=b"/" + b"a" * 9000))),
        "A15 expect": (("status 417",), headers(1, head2((b"expect", b"x")))),
        "C1": (("status 400",), headers(1, head2(path=b"/../smuggled"))),
        "C2": (("status 400",), headers(1, head2(path=b"/a%2Fsmuggled"))),
        "C4": (("reset 1", "status 400"), headers(1, head2(path=b"/a#b"))),
        "U11": (("status 508",), headers(1, head2((b"via", b", ".join([b"1.1 datum-router"] * 11))))),
        "D4 fields": (("status 431",), headers(1, head2(*((b"x%d" % i, b"y") for i in range(150))))),
    }
    wrong = {}
    for row, (expected, message) in cases.items():
        with Client2(arena) as client:
            client.send(message)
            found = client.verdict()
            if found not in expected:
                wrong[row] = found
            elif not found.startswith("goaway"):
                # A stream's fault is no other stream's: the next one is served.
                client.send(h2.headers(3, head2(path=b"/next")))
                if client.verdict(3) != "status 200":
                    wrong[row] = "the next stream was not served"
    assert wrong == {}
    assert set(arena.recorder.targets) == {b"/next"}


def test_d16_a_body_that_breaks_its_length_is_never_completed_upstream(arena: Arena) -> None:
    for pieces in (
        (h2.data(1, b"abcdef", end_stream=True),),
        (h2.data(1, b"abc", end_stream=True),),
        (h2.data(1, b"abcd"), h2.data(1, b"efgh", end_stream=True)),
        (h2.data(1, b"abc"), h2.rst_stream(1)),
        (h2.data(1, b"abc"), h2.headers(1, [(b":path", CANARY)])),
        (h2.data(1, b"abc"), h2.headers(1, [(b"content-length", b"3")])),
    ):
        with Client2(arena) as client:
            client.send(h2.headers(1, head2((b"content-length", b"5"), method=b"POST"), end_stream=False), *pieces)
            client.send(h2.headers(3, head2(path=b"/next")))
            assert client.verdict(3) == "status 200"
    assert {head.split(b" ")[1] for head, _ in arena.recorder.requests} == {b"/next"}
    assert CANARY not in b"".join(arena.recorder.backend.heads)


def flood(stream_frames: Callable[[int], bytes], count: int, opening: bytes = b"") -> bytes:
    return opening + b"".join(stream_frames(2 * index + 1) for index in range(count))


def test_d1_to_d12_d18_to_d20_floods_and_broken_framing_end_the_connection_and_no_other(arena: Arena) -> None:
    get, rst, cont = h2.headers, h2.rst_stream, 9
    open_post = h2.headers(1, head2(method=b"POST"), end_stream=False)
    hung = h2.headers(1, head2(), end_stream=False, end_headers=False)
    calm, wrong = (f"goaway {CALM}",), {}
    cases: dict[str, tuple[tuple[str, ...], bytes]] = {
        "D1 rapid reset": (calm, flood(lambda i: get(i, head2()) + rst(i), 400)),
        "D2 zero grants": (
            calm,
            flood(lambda i: get(i, head2(method=b"POST"), end_stream=False) + h2.frame(8, 0, i, bytes(4)), 400),
        ),
        "D2 bad priority": (
            calm,
            flood(lambda i: get(i, head2(method=b"POST"), end_stream=False) + h2.frame(2, 0, i, b"abc"), 400),
        ),
        "D2 bad heads": (calm, flood(lambda i: get(i, head2((b"X", b"y"))), 400)),
        "D3 continuation": (
            calm,
            hung + b"".join(h2.frame(cont, 0, 1, h2.block([(b"x%d" % i, b"y")])) for i in range(20)),
        ),
        "D3 size": (calm, hung + b"".join(h2.frame(cont, 0, 1, h2.block([(b"x", b"y" * 16000)])) for i in range(6))),
        "D3 other frame": ((f"goaway {PROTOCOL}",), hung + h2.ping()),
        "D4 bomb": ((f"goaway {COMPRESSION}", "status 431"), h2.frame(HEADERS, 5, 1, h2.block(head2()) + BOMB)),
        "D5 index 0": ((f"goaway {COMPRESSION}",), h2.frame(HEADERS, 5, 1, b"\x80")),
        "D5 index far": ((f"goaway {COMPRESSION}",), h2.frame(HEADERS, 5, 1, b"\xff\xff\xff\xff\xff\xff\x7f")),
        "D5 table size": ((f"goaway {COMPRESSION}",), h2.frame(HEADERS, 5, 1, b"\x3f\xe1\xff\x03" + h2.block(head2()))),
        "D5 huffman": ((f"goaway {COMPRESSION}",), h2.frame(HEADERS, 5, 1, b"\x00\x81\xff\x81\xff")),
        "D6 ping": (calm, h2.ping() * 3000),
        "D6 settings": (calm, h2.settings() * 3000),
        "D6 entries": (calm, h2.settings(*((0x99, i) for i in range(100)))),
        "D7 empty data": (calm, open_post + h2.data(1) * 100),
        "D7 empty continuation": (calm, hung + h2.frame(cont, 0, 1) * 100),
        "D8": (calm, h2.priority(1) * 3000),
        "D9": (calm, open_post + h2.window_update(1, 1) * 3000),
        "D11 even": ((f"goaway {PROTOCOL}",), get(2, head2())),
        "D11 zero": ((f"goaway {PROTOCOL}",), get(0, head2())),
        "D11 lower": ((f"goaway {PROTOCOL}", "goaway 5"), get(5, head2()) + get(3, head2())),
        "D11 data idle": ((f"goaway {PROTOCOL}",), h2.data(7, b"x")),
        "D11 data 0": ((f"goaway {PROTOCOL}",), h2.data(0, b"x")),
        "D18 push": ((f"goaway {PROTOCOL}",), h2.frame(5, 4, 1, bytes(4) + h2.block(head2()))),
        "D19 size": ((f"goaway {FRAME_SIZE}",), h2.frame(DATA, 0, 1, bytes(16385))),
        "D19 settings size": ((f"goaway {FRAME_SIZE}",), h2.frame(4, 0, 0, b"abc")),
        "D19 ping size": ((f"goaway {FRAME_SIZE}",), h2.frame(6, 0, 0, b"abc")),
        "D19 padding": ((f"goaway {PROTOCOL}",), open_post + h2.frame(DATA, 8, 1, b"\xffabc")),
        "D19 unknown": (("status 200",), h2.frame(0x77, 0xFF, 1, b"abc") + get(1, head2())),
        "D20 window": ((f"goaway {FLOW}",), h2.window_update(0, 2**31 - 1)),
        "D20 zero": ((f"goaway {PROTOCOL}",), h2.window_update(0, 0)),
        "D20 initial": ((f"goaway {FLOW}",), h2.settings((4, 2**31))),
    }
    for row, (expected, message) in cases.items():
        with Client2(arena) as client:
            client.send(message)
            found = client.verdict(-1 if expected == calm else 1)  # floods: whatever befalls single streams
            if found not in expected:
                wrong[row] = found
    assert wrong == {}


def test_d18_what_is_no_preface_is_refused(arena: Arena) -> None:
    assert statuses(arena.ask(b"PRI * HTTP/2.0\r\n\r\nXX\r\n\r\n" + INNER)) in ([], [400], [505])
    assert b"200" not in arena.ask(PREFACE + GET)
    assert arena.recorder.targets == []


def test_d10_readers_that_stop_hold_a_bounded_amount(arena: Arena) -> None:
    arena.recorder.reply = b"HTTP/1.1 200 OK\r\ncontent-length: 8000000\r\n\r\n" + b"x" * 8_000_000
    before = arena.gateway.rss_bytes()
    with Client2(arena) as client:
        client.send(h2.settings((4, 0)))
        for index in range(50):
            client.send(h2.headers(2 * index + 1, head2()))
        seen = 0
        for kind, _, _, _ in client.frames():
            seen += kind == HEADERS
            assert kind != DATA
            if seen == 50:
                break
        assert arena.gateway.rss_bytes() - before < 32 << 20
    arena.kit.eventually(lambda: arena.gateway.stats()["gauges"]["requests_in_flight"] <= 1, "all 50 are given up")
