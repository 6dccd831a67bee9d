"""Ground rule G5 of the threat list on its own: whoever leaves, at whatever moment, leaves nothing behind.

Nor does its memory grow. The other rules are checked around every test of this folder, see `kit.Arena`.
"""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest

from datum_router_proxy import testing as h2
from tests.threats.faultkit import rss_bytes
from tests.threats.kit import PREFACE, Arena, get, head2, post, read_all, running, statuses

pytestmark = pytest.mark.e2e

RESET_ON_CLOSE = b"\x01\0\0\0\0\0\0\0"
"""struct linger of socket(7): on, 0 seconds."""


@pytest.fixture(scope="module")
def ground(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Arena]:
    """A gateway that waits for a second only."""
    env = {"DATUM_ROUTER_DATA_PLANE_CONFIG": "head_timeout_s=1,first_byte_timeout_s=1"}
    with running(tmp_path_factory.mktemp("threats") / "manifests", env=env) as arena:
        yield arena


WHOLE = {
    "h1": post(b"Content-Length: 5\r\n", body=b"abcde"),
    "h2": PREFACE
    + h2.settings()
    + h2.headers(1, head2(method=b"POST"), end_stream=False)
    + h2.data(1, b"abcde", end_stream=True),
}


@pytest.mark.parametrize("is_reset", [False, True], ids=["close", "reset"])
@pytest.mark.parametrize("protocol", ["h1", "h2"])
def test_g5_clients_that_leave_in_a_request(arena: Arena, protocol: str, is_reset: bool) -> None:
    whole = WHOLE[protocol]
    for cut in range(0, len(whole) + 1, 5):
        with arena.connect() as sock:
            sock.sendall(whole[:cut])
            if is_reset:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)


@pytest.mark.parametrize("is_reset", [False, True], ids=["close", "reset"])
def test_g5_clients_that_leave_in_a_response(arena: Arena, is_reset: bool) -> None:
    arena.upstream.reply = b"HTTP/1.1 200 OK\r\ncontent-length: 4000000\r\n\r\n" + b"x" * 4_000_000
    for _ in range(10):
        with arena.connect() as sock:
            sock.sendall(get())
            sock.recv(100)
            if is_reset:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)


def test_g5_clients_that_say_half_a_head_or_nothing(arena: Arena) -> None:
    with arena.connect() as silent, arena.connect() as slow:
        slow.sendall(b"GET / HTTP/1.1\r\nHost: a.te")
        assert statuses(read_all(slow)) == [408]
        assert read_all(silent) == b""
    assert arena.rejected() == {"h1|head_timeout": 1, "tcp|idle_timeout": 1}


def test_g5_three_repeats_leave_the_memory_as_it_was(arena: Arena) -> None:
    """RSS within 10 % after three more tours of all of the above, the first one having filled caches and pools."""

    def tour() -> None:
        for whole in WHOLE.values():
            for cut in range(0, len(whole) + 1, 3):
                with arena.connect() as sock:
                    sock.sendall(whole[:cut])
        for _ in range(10):
            with arena.connect() as sock:
                sock.sendall(get())
                sock.recv(100)
        for _ in range(20):
            assert len(arena.sees_whole(get())) > 4_000_000

    def resident() -> int:
        return sum(rss_bytes(pid) for pid in arena.pids)

    arena.upstream.reply = b"HTTP/1.1 200 OK\r\ncontent-length: 4000000\r\n\r\n" + b"x" * 4_000_000
    tour()
    before = resident()
    for _ in range(3):
        tour()
    assert resident() <= before * 1.1
