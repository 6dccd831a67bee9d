"""Where a redirected connection was meant to go: what netfilter remembers of it (SO_ORIGINAL_DST)."""

from __future__ import annotations

import ipaddress
import socket
import struct

from datum_router_proxy.channel import Channel, PlainChannel

_SO_ORIGINAL_DST = 80  # linux/netfilter_ipv4.h, and IP6T_SO_ORIGINAL_DST of linux/netfilter_ipv6/ip6_tables.h
_V4 = struct.Struct("!2xH4s8x")  # sockaddr_in: family, port, address
_V6 = struct.Struct("!2xH4x16s4x")  # sockaddr_in6: family, port, flow, address, scope


def original_destination(channel: Channel) -> tuple[str, int] | None:
    """Return address and port that a client dialled; None if nothing was redirected, or the kernel does not know."""
    if not isinstance(channel, PlainChannel):
        return None
    sock = channel.sock
    try:
        local = sock.getsockname()
        if sock.family == socket.AF_INET:
            port, raw = _V4.unpack(sock.getsockopt(socket.IPPROTO_IP, _SO_ORIGINAL_DST, _V4.size))
        elif sock.family == socket.AF_INET6:
            port, raw = _V6.unpack(sock.getsockopt(socket.IPPROTO_IPV6, _SO_ORIGINAL_DST, _V6.size))
        else:
            return None
    except (OSError, struct.error):
        return None
    address = str(ipaddress.ip_address(raw))
    return None if (address, port) == (str(ipaddress.ip_address(local[0])), local[1]) else (address, port)
