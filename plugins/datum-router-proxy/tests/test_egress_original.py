"""What netfilter remembers of a redirected connection."""

from __future__ import annotations

import socket
import struct
from typing import cast

import pytest

from datum_router_proxy.channel import Channel, PlainChannel
from datum_router_proxy.egress.original import original_destination
from datum_router_proxy.loop import Loop


class Socket:
    """A socket as far as it is asked."""

    def __init__(self, family: int, local: tuple[str, int], raw: bytes | OSError) -> None:
        self.family = family
        self._local, self._raw = local, raw

    def getsockname(self) -> tuple[str, int]:
        return self._local

    def getsockopt(self, level: int, option: int, size: int) -> bytes:
        assert (level, option) in ((socket.IPPROTO_IP, 80), (socket.IPPROTO_IPV6, 80))
        if isinstance(self._raw, OSError):
            raise self._raw
        assert size == len(self._raw)
        return self._raw


class Redirected(PlainChannel):
    """A channel over such a socket."""

    def __init__(self, sock: Socket) -> None:
        self._sock = cast(socket.socket, sock)


V4 = struct.pack("!HH4s8x", 2, 443, socket.inet_aton("192.0.2.1"))
V6 = struct.pack("!HHI16sI", 10, 8443, 0, socket.inet_pton(socket.AF_INET6, "2001:db8::1"), 0)


@pytest.mark.parametrize(
    ("sock", "expected"),
    [
        (Socket(socket.AF_INET, ("10.0.0.1", 8443), V4), ("192.0.2.1", 443)),
        (Socket(socket.AF_INET6, ("fd00::1", 8443), V6), ("2001:db8::1", 8443)),
        (Socket(socket.AF_INET, ("192.0.2.1", 443), V4), None),  # it was meant for us
        (Socket(socket.AF_INET, ("10.0.0.1", 8443), OSError(2, "no such entry")), None),
        (Socket(socket.AF_UNIX, ("10.0.0.1", 8443), V4), None),
    ],
)
def test_where_a_connection_was_meant_to_go(sock: Socket, expected: tuple[str, int] | None) -> None:
    assert original_destination(Redirected(sock)) == expected


def test_a_connection_that_nobody_redirected_has_no_other_destination() -> None:
    loop = Loop()
    listener = socket.create_server(("127.0.0.1", 0))
    with listener, socket.create_connection(listener.getsockname()) as client:
        accepted, _ = listener.accept()
        channel = PlainChannel(loop, accepted)
        assert original_destination(cast(Channel, channel)) is None
        channel.abort()
        assert client.fileno() >= 0
    loop._close()
