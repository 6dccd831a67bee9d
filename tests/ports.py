"""Ports for what must know its port before it listens: listeners of manifests, servers that come back, and nobody."""

from __future__ import annotations

import random
import socket
from pathlib import Path

FIRST = 10_000
_RANGE = Path("/proc/sys/net/ipv4/ip_local_port_range")
_RANDOM = random.SystemRandom()
"""Tests run beside each other in processes: two with the same seed would choose the same ports."""


def free_port() -> int:
    """Return a port on which nobody listens; see `free_ports`."""
    return free_ports(1)[0]


def free_ports(count: int) -> list[int]:
    """Return different ports on which nobody listens, on any address of IPv4.

    They are below those that the kernel gives to clients and for port 0: a port out of its hands may be somebody else's
    again before it is used.
    """
    end = max(int(_RANGE.read_text().split()[0]), FIRST + 1_000)
    found: list[int] = []
    while len(found) < count:
        port = _RANDOM.randrange(FIRST, end)
        with socket.socket() as sock:
            try:
                sock.bind(("", port))
            except OSError:
                continue
        if port not in found:
            found.append(port)
    return found
