"""Client certificates at a listener: who is let in, counted by verdict, and who must leave when that changes."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Iterator

from datum_router.observe import names
from datum_router.observe.cells import Cell
from datum_router.reasons import Reason
from datum_router_proxy.channel import Channel
from datum_router_proxy.client_identity import ClientSession, admit, is_refusal, why
from datum_router_proxy.server.connection import Unknown
from datum_router_proxy.server.tls import ServerTls
from datum_router_proxy.tls_channel import TlsChannel

log = logging.getLogger(__name__)


class ClientDesk:
    """Look at the certificates of one listener's clients.

    Args:
        clock: Unix seconds: certificates have dates.
    """

    __slots__ = ("_clock", "_counts", "_listener")

    def __init__(self, listener: str, clock: Callable[[], float] = time.time) -> None:
        self._listener = listener
        self._clock = clock
        self._counts: dict[str, int] = {}

    def admit(self, channel: TlsChannel) -> ClientSession | None:
        """Return what is known of a client; None if it was asked for nothing.

        Raises:
            ClientRefused: It is not let in.
        """
        session = admit(channel.ssl_object, now=self._clock())
        if session is not None:
            self._count("accepted" if session.is_known else "none")
        return session

    def refused(self, error: Exception, peer: tuple[str, int]) -> Reason:
        """Return the reason why a handshake failed, and count it if it was the client's certificate."""
        if not is_refusal(error):
            return Reason.TLS_HANDSHAKE
        self._count("refused")
        log.debug("client refused", extra={"listener": self._listener, "peer": peer[0], "why": why(error)})
        return Reason.CLIENT_CERTIFICATE

    def _count(self, verdict: str) -> None:
        self._counts[verdict] = self._counts.get(verdict, 0) + 1

    def take_cells(self) -> Iterator[Cell]:
        """Give what has been counted since the last call."""
        counts, self._counts = self._counts, {}
        for verdict, count in counts.items():
            yield Cell(names.CLIENT_CERTIFICATES.name, (self._listener, verdict), count)


def end_outdated(connections: Iterable[Unknown], listener: str, tls: ServerTls | None) -> int:
    """End connections of a listener gracefully whose clients were held to what is not asked any more; return how many.

    What was verified by a CA, a list or an allow-list that has changed is not to be believed. Until such a connection
    has ended, its requests are answered with 421, see `routing.client_guard`.
    """
    count = 0
    for connection in connections:
        channel = connection.channel
        if connection.listener.name == listener and channel.is_tls and _is_outdated(channel, tls):
            connection.begin_drain()
            connection.finish_drain()
            count += 1
    return count


def _is_outdated(channel: Channel, tls: ServerTls | None) -> bool:
    held_to = None if channel.client is None else channel.client.policy
    wanted = None if tls is None else tls.policy_for(channel.sni)
    return held_to != wanted
