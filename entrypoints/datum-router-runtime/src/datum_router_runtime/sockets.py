"""Listening sockets: made by the supervisor, one per worker with SO_REUSEPORT, handed over and kept.

The supervisor keeps its copies, so that connections which arrive while a worker is being replaced wait in the
kernel's queue instead of being refused.
"""

from __future__ import annotations

import contextlib
import errno
import socket

from datum_router.errors import ConfigError
from datum_router.model.listener import Listener
from datum_router.reasons import Reason

BACKLOG = 4096
"""Connections that wait in the kernel for accept, per socket; the kernel caps it at net.core.somaxconn."""


class ListenerGroup:
    """The sockets of one listener: equal address, one for each worker. `scheme` is `http`, `https`, `tls` or `tcp`."""

    __slots__ = ("address", "name", "scheme", "sockets")

    def __init__(self, listener: Listener, sockets: list[socket.socket]) -> None:
        self.name = listener.name
        self.scheme = listener.mode.value.lower()
        if listener.tls:
            self.scheme = "https"
        self.sockets = sockets
        self.address: tuple[str, int] = sockets[0].getsockname()[:2]

    def close(self) -> None:
        """Close the supervisor's copies; workers keep theirs."""
        for sock in self.sockets:
            sock.close()
        self.sockets = []


def bind_group(listener: Listener, workers: int) -> ListenerGroup:
    """Bind `workers` sockets to the listener's address.

    SO_REUSEPORT alone would let a second gateway of the same user share the port unnoticed and take half of the
    traffic, so the port is first tried without it.

    Raises:
        ConfigError: The address cannot be bound; says why and what to do.
    """
    family = socket.AF_INET6 if ":" in listener.host else socket.AF_INET
    sockets: list[socket.socket] = []
    port = listener.port
    try:
        if port:
            with socket.socket(family, socket.SOCK_STREAM) as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                _bind(probe, family, listener.host, port)
                probe.listen(1)
        for _ in range(workers):
            sock = socket.socket(family, socket.SOCK_STREAM)
            sockets.append(sock)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            _bind(sock, family, listener.host, port)
            sock.listen(BACKLOG)
            sock.setblocking(False)
            port = sock.getsockname()[1]
    except OSError as error:
        for sock in sockets:
            with contextlib.suppress(OSError):
                sock.close()
        raise ConfigError(_explain(listener, error), reason=Reason.PORT_UNAVAILABLE) from error
    return ListenerGroup(listener, sockets)


def _bind(sock: socket.socket, family: int, host: str, port: int) -> None:
    if family == socket.AF_INET6:
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    sock.bind((host, port))


def _explain(listener: Listener, error: OSError) -> str:
    where = f"[{listener.host}]:{listener.port}" if ":" in listener.host else f"{listener.host}:{listener.port}"
    if error.errno == errno.EADDRINUSE:
        return f"listener {listener.name}: {where} is in use by another process; stop it or choose another port"
    if error.errno == errno.EACCES:
        return f"listener {listener.name}: no permission to bind {where}; choose a port above 1023"
    if error.errno == errno.EADDRNOTAVAIL:
        return f"listener {listener.name}: {listener.host} is not an address of this machine; use one that is"
    return f"listener {listener.name}: cannot bind {where}: {error.strerror}"
