"""Big bodies and slow readers: memory stays flat, back-pressure reaches the other end."""

from __future__ import annotations

import socket
from typing import Any

import pytest

pytestmark = [pytest.mark.e2e, pytest.mark.slow]
GIB = 1 << 30
SIZE = 2 * GIB
LIMIT = 32 << 20
CHUNK = b"\0" * (1 << 20)


def test_two_gib_up_and_down_grow_memory_by_less_than_32_mib(
    directory: Any, start_gateway: Any, start_backend: Any, kit: Any
) -> None:
    received: list[int] = []

    def backend(sock: socket.socket, rest: bytes) -> None:
        head = service.heads[-1]
        if head.startswith(b"POST"):
            total = len(rest)
            buffer = bytearray(1 << 20)
            while total < SIZE:
                count = sock.recv_into(buffer)
                if not count:
                    return
                total += count
            received.append(total)
            sock.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok")
        else:
            sock.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % SIZE)
            for _ in range(SIZE // len(CHUNK)):
                sock.sendall(CHUNK)

    service = start_backend(backend)
    # A minute at least for each direction on a slow machine, so the route's timeout of 30 s is lifted.
    (directory / "a.yaml").write_text(kit.manifest("a", service, extra="  timeoutSeconds: 0"))
    gateway = start_gateway()
    with socket.create_connection(("127.0.0.1", gateway.port), timeout=60) as sock:
        sock.sendall(b"GET /warm HTTP/1.1\r\nHost: a.test\r\n\r\n")
        _read_download(sock, SIZE // 64, expect_all=False)
    before = gateway.rss_bytes()
    peak = before
    with socket.create_connection(("127.0.0.1", gateway.port), timeout=60) as sock:
        sock.sendall(b"POST / HTTP/1.1\r\nHost: a.test\r\nContent-Length: %d\r\n\r\n" % SIZE)
        for index in range(SIZE // len(CHUNK)):
            sock.sendall(CHUNK)
            if index % 256 == 0:
                peak = max(peak, gateway.rss_bytes())
        assert sock.recv(65536).startswith(b"HTTP/1.1 200")
    assert received == [SIZE]
    with socket.create_connection(("127.0.0.1", gateway.port), timeout=60) as sock:
        sock.sendall(b"GET / HTTP/1.1\r\nHost: a.test\r\n\r\n")
        total = _read_download(sock, SIZE, expect_all=True)
        peak = max(peak, gateway.rss_bytes())
    assert total == SIZE
    assert peak - before < LIMIT


def _read_download(sock: socket.socket, size: int, *, expect_all: bool) -> int:
    buffer = bytearray(1 << 20)
    data = b""
    while b"\r\n\r\n" not in data:
        data += sock.recv(65536)
    assert data.startswith(b"HTTP/1.1 200")
    total = len(data.split(b"\r\n\r\n", 1)[1])
    while total < size:
        count = sock.recv_into(buffer)
        if not count:
            assert not expect_all, f"cut after {total} bytes"
            break
        total += count
    return total


def test_a_client_that_stops_reading_stops_the_upstream_being_read(
    directory: Any, start_gateway: Any, start_backend: Any, kit: Any
) -> None:
    sent = [0]

    def backend(sock: socket.socket, _rest: bytes) -> None:
        sock.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % GIB)
        for _ in range(GIB // 65536):
            sent[0] += sock.send(CHUNK[:65536])

    service = start_backend(backend)
    (directory / "a.yaml").write_text(kit.manifest("a", service))
    gateway = start_gateway()
    with socket.create_connection(("127.0.0.1", gateway.port), timeout=30) as sock:
        sock.sendall(b"GET / HTTP/1.1\r\nHost: a.test\r\n\r\n")
        assert sock.recv(1024).startswith(b"HTTP/1.1 200")
        stalled = [-1]

        def has_stalled() -> bool:
            # Equal over two looks a poll of the admin page apart: what the kernel's socket buffers hold, and no more.
            gateway.stats()
            is_equal = sent[0] == stalled[0] > 0
            stalled[0] = sent[0]
            return is_equal

        kit.eventually(has_stalled, "the backend's writes stall")
        # Two pairs of kernel socket buffers and our own 64 KiB; the whole would be 1 GiB.
        assert sent[0] < 64 << 20
