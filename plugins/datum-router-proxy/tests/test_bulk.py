"""How much an HTTP/1 upstream reads at once: more of a long body, less for a client that is slow."""

from __future__ import annotations

import random
from typing import cast

import pytest

from datum_router_proxy.channel import BULK_BYTES, RECV_BYTES, Channel
from datum_router_proxy.exchange import END, UpstreamHead, UpstreamRequest
from datum_router_proxy.loop import Loop, Task
from datum_router_proxy.upstream.h1 import FAST_CLIENT_READS, SLOW_CLIENT_S, H1Upstream
from datum_router_proxy.wire.http1 import HeadCache, Http1Limits


class Source:
    """A channel whose peer sends as much as is asked for, and which notes how much that was."""

    peer = ("127.0.0.1", 1)
    buffered = 0
    is_closed = hangup = False
    readable = True
    task: Task | None = None

    def __init__(self, data: bytes) -> None:
        self._data = data
        self.asked: list[int] = []

    def recv(self, size: int = RECV_BYTES) -> bytes:
        self.asked.append(size)
        data, self._data = self._data[:size], self._data[size:]
        return data

    def write(self, *buffers: bytes) -> None: ...


async def nothing() -> None: ...


def make(data: bytes, *, may_read_bulk: bool = True) -> tuple[H1Upstream, Source]:
    source = Source(data)
    upstream = H1Upstream(
        cast("Channel", source),
        limits=Http1Limits(),
        cache=HeadCache(),
        given_back=lambda _: None,
        closed=lambda _: None,
        buffer_bytes=32_768,
        may_read_bulk=lambda: may_read_bulk,
    )
    start(upstream)
    return upstream, source


def start(upstream: H1Upstream) -> None:
    loop = Loop(rng=random.Random(1))
    task = loop.spawn(nothing(), name="request")
    loop._close()
    upstream.begin(task, is_reused=False)
    upstream.send_head(UpstreamRequest(method="GET", target=b"/", authority=b"a", fields=()))
    upstream.send_end()


def drain(upstream: H1Upstream) -> int:
    """Read to the end; return how many body bytes there were."""
    size = 0
    while (event := upstream.poll()) != END:
        if isinstance(event, bytes):
            size += len(event)
        else:
            assert isinstance(event, UpstreamHead)
    return size


def test_e5_with_many_connections_nothing_but_short_pieces_is_read() -> None:
    body = bytes(1_000_000)
    upstream, source = make(b"HTTP/1.1 200 OK\r\ncontent-length: 1000000\r\n\r\n" + body, may_read_bulk=False)
    assert drain(upstream) == len(body)
    assert set(source.asked) == {RECV_BYTES}


def test_a_long_body_is_read_in_longer_and_longer_pieces() -> None:
    chunk = b"10000\r\n" + bytes(65_536) + b"\r\n"
    upstream, source = make(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n" + chunk * 20 + b"0\r\n\r\n")
    assert drain(upstream) == 20 * 65_536
    assert source.asked[:FAST_CLIENT_READS] == [RECV_BYTES] * FAST_CLIENT_READS
    assert source.asked[FAST_CLIENT_READS:][:3] == [2 * RECV_BYTES, BULK_BYTES, BULK_BYTES]
    assert max(source.asked) == BULK_BYTES


def test_a_short_answer_is_read_in_one_short_piece() -> None:
    upstream, source = make(b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello")
    assert drain(upstream) == 5
    assert source.asked == [RECV_BYTES]


@pytest.mark.parametrize(("stalled_s", "expected"), [(SLOW_CLIENT_S * 2, RECV_BYTES), (SLOW_CLIENT_S / 2, BULK_BYTES)])
def test_e5_for_a_slow_client_little_is_read(stalled_s: float, expected: int) -> None:
    upstream, source = make(b"HTTP/1.1 200 OK\r\ncontent-length: 1000000\r\n\r\n" + bytes(1_000_000))
    for _ in range(FAST_CLIENT_READS + 3):
        upstream.poll()
    assert source.asked[-1] == BULK_BYTES
    upstream.note_stall(stalled_s)
    upstream.poll()
    assert source.asked[-1] == expected


def test_each_exchange_begins_with_short_pieces() -> None:
    one = b"HTTP/1.1 200 OK\r\ncontent-length: 900000\r\n\r\n"
    upstream, source = make(one)
    assert isinstance(upstream.poll(), UpstreamHead)
    source._data = bytes(900_000)
    assert drain(upstream) == 900_000
    upstream.finish()
    source._data = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"
    start(upstream)
    source.asked.clear()
    assert drain(upstream) == 2
    assert source.asked == [RECV_BYTES]
