"""Section E of the threat list: slow and greedy peers. Limits are shortened; what is tested is that they hold."""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Iterator

import pytest

from datum_router_proxy import testing as h2
from tests.threats import faultkit as kit

pytestmark = pytest.mark.e2e
TICK_S = 0.25
"""How late the data plane may notice a deadline, by design."""
SLACK_S = 6.0
"""What a busy machine may add."""


@pytest.fixture(scope="module")
def ground(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[kit.Arena, Sink]]:
    """One gateway with limits of a second for E1 to E4."""
    sink = Sink()
    backend = kit.Backend(sink)
    sink.backend = backend
    try:
        with kit.gateway_for(
            tmp_path_factory.mktemp("slow"),
            kit.manifest("a", backend),
            first_byte_timeout_s=1,
            head_timeout_s=1,
            keep_alive_timeout_s=1.5,
            body_idle_timeout_s=1,
            body_min_rate=1000,
            write_timeout_s=1,
        ) as gateway:
            yield gateway, sink
    finally:
        backend.close()


class Sink:
    """A backend's handler: reads a body to its end or to the connection's, and answers with `reply`.

    Attributes:
        aborted: Connections that ended before their request did.
        sent: Bytes of answers that went out.
    """

    def __init__(self) -> None:
        self.backend: object = None
        self.reply = kit.OK
        self.aborted = 0
        self.sent = 0
        self.broken = 0

    def __call__(self, sock: socket.socket, rest: bytes) -> None:
        head = self.backend.heads[-1].lower()  # type: ignore[attr-defined]
        body = rest
        try:
            while b"chunked" in head and not body.endswith(b"0\r\n\r\n"):
                data = sock.recv(65536)
                if not data:
                    raise ConnectionError("cut off")
                body += data
        except ConnectionError:
            self.aborted += 1
            raise
        try:
            view = memoryview(self.reply)
            while view:
                sent = sock.send(view[:65536])
                self.sent += sent
                view = view[sent:]
        except ConnectionError:
            self.broken += 1
            raise


@pytest.fixture
def slow(ground: tuple[object, Sink]) -> Iterator[tuple[kit.Arena, Sink]]:
    gateway, sink = ground
    sink.reply = kit.OK
    arena = kit.Arena(gateway)
    arena.fds -= arena.gauge("upstream_connections")
    yield arena, sink
    arena.end()


def drip(sock: socket.socket, pieces: Iterator[bytes], every_s: float, most_s: float) -> tuple[bytes, float]:
    """Send a piece each `every_s` until the other side answers or closes; return what it said, and when."""
    began = time.monotonic()
    sock.settimeout(every_s)
    said = b""
    while time.monotonic() - began < most_s:
        try:
            said = sock.recv(65536)
        except TimeoutError:
            with contextlib.suppress(ConnectionError):
                sock.sendall(next(pieces))
            continue
        except ConnectionError:
            pass
        return said, time.monotonic() - began
    raise AssertionError(f"still open after {most_s} s")


def endless(piece: bytes) -> Iterator[bytes]:
    while True:
        yield piece


def test_e1_a_head_in_drips_is_408_after_its_whole_time(slow: tuple[kit.Arena, Sink]) -> None:
    arena, _ = slow
    before = arena.counter("rejected|h1|head_timeout")
    with arena.connect() as first:
        first.sendall(b"GET / HTTP/1.1\r\nHost: a.test\r\nx: ")
        said, after_s = drip(first, endless(b"y"), 0.2, 1 + SLACK_S)
        assert kit.statuses(said) == [408]
        assert b"connection: close" in said.lower()
        assert after_s >= 1 - TICK_S
        assert kit.read_all(first) == b""
    # The second request of a connection has the same limit.
    with arena.connect() as later:
        later.sendall(kit.GET)
        kit.read_until(later, b"ok")
        said, _ = drip(later, one_by_one(kit.GET[:-2] + b"x: " + b"y" * 500), 0.2, 1 + SLACK_S)
        assert kit.statuses(said) == [408]
    arena.counted("rejected|h1|head_timeout", before + 2)


def one_by_one(data: bytes) -> Iterator[bytes]:
    return (bytes((byte,)) for byte in data)


def test_e1_a_header_block_in_drips_ends_its_http2_connection(slow: tuple[kit.Arena, Sink]) -> None:
    arena, _ = slow
    with arena.client2() as client:
        client.send(h2.headers(1, kit.head2(), end_headers=False))
        client.sock.settimeout(0.4)
        began, kinds = time.monotonic(), []
        while time.monotonic() - began < 1.5 + SLACK_S:
            try:
                kinds += [kind for kind, *_ in client.frames()]
                break
            except TimeoutError:
                client.send(h2.frame(9, 0, 1, h2.block([(b"x", b"y")])))
        assert kit.GOAWAY in kinds
        assert kit.HEADERS not in kinds


def test_e2_silence_is_closed_without_a_word(slow: tuple[kit.Arena, Sink]) -> None:
    arena, _ = slow
    with arena.connect() as fresh, arena.connect() as idle, arena.client2() as client:
        idle.sendall(kit.GET)
        kit.read_until(idle, b"ok")
        began = time.monotonic()
        assert kit.read_all(fresh) == b""
        assert kit.read_all(idle) == b""
        assert time.monotonic() - began < 1.5 + SLACK_S
        # An HTTP/2 connection without streams is told so before it is closed.
        assert [payload[4:8] for kind, _, _, payload in client.frames() if kind == kit.GOAWAY] == [bytes(4)]


CHUNKED = b"POST / HTTP/1.1\r\n" + kit.HOST + b"Transfer-Encoding: chunked\r\n\r\n"


@pytest.mark.parametrize(("piece", "every_s"), [(b"", 0.5), (b"1\r\nx\r\n", 0.2)], ids=["silent", "below the rate"])
def test_e3_a_slow_body_is_408_and_its_upstream_aborted(
    slow: tuple[kit.Arena, Sink], piece: bytes, every_s: float
) -> None:
    arena, sink = slow
    aborted, counted = sink.aborted, arena.counter("rejected|h1|body_timeout")
    with arena.connect() as sock:
        sock.sendall(CHUNKED + b"5\r\nhello\r\n")
        said, _ = drip(sock, endless(piece), every_s, 2 + SLACK_S)
        assert kit.statuses(said) == [408]
    arena.counted("rejected|h1|body_timeout", counted + 1)
    kit.eventually(lambda: sink.aborted == aborted + 1, "the upstream sees the request cut off")


def test_e3_a_slow_body_over_http2_loses_its_stream_alone(slow: tuple[kit.Arena, Sink]) -> None:
    arena, sink = slow
    aborted = sink.aborted
    with arena.client2() as client:
        client.send(h2.headers(1, kit.head2(method=b"POST"), end_stream=False), h2.data(1, b"hello"))
        assert client.verdict(1) in ("status 408", "reset 5")
        client.send(h2.headers(3, kit.head2()))
        assert client.verdict(3) == "status 200"
    kit.eventually(lambda: sink.aborted == aborted + 1, "the upstream sees the request cut off")


def test_e4_a_reader_that_stops_is_backpressure_first_and_cut_after_its_time(slow: tuple[kit.Arena, Sink]) -> None:
    arena, sink = slow
    sink.reply = b"HTTP/1.1 200 OK\r\ncontent-length: 50000000\r\n\r\n" + bytes(50_000_000)
    sent, broken = sink.sent, sink.broken
    with arena.connect(receive_buffer=4096) as sock:
        sock.sendall(kit.GET)
        assert sock.recv(100).startswith(b"HTTP/1.1 200")
        arena.counted("requests_reason|write_timeout")
        # Socket buffers of the kernel and our own, not the body.
        assert sink.sent - sent < 25_000_000
        data = kit.read_all(sock)
        assert len(data) < 50_000_000
    kit.eventually(lambda: sink.broken == broken + 1, "the upstream is cut off, too")
