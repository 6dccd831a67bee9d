"""Client certificates at a listener: who is let in, counted by verdict, and who must leave when that changes.

Certificates have dates, and dates are of the wall clock, which may be set: so the end of one is compared with that
clock again and again, and never becomes a deadline of the monotonic clock, which neither a clock that is put right nor
a machine that has slept would move. Nothing is looked at for a request: the data plane looks every second, and passes
over its connections only once the first of their certificates has ended.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Final

import trio

from datum_router.observe import names
from datum_router.observe.cells import Cell
from datum_router.reasons import Reason
from datum_router_proxy.channel import Channel
from datum_router_proxy.client_identity import ClientSession, admit, is_refusal, why
from datum_router_proxy.server.connection import Unknown
from datum_router_proxy.server.tls import ServerTls
from datum_router_proxy.tls_channel import TlsChannel

log = logging.getLogger(__name__)

EXPIRED_SLICE: Final = 128
"""Connections whose certificate has ended that are told to end before others run."""


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


class ClientDates:
    """End connections gracefully whose client's certificate is not believed any more, or has ended.

    One whose client has only just come is not ended at once (see `Unknown.finish_drain`): it is told again every look.

    Args:
        clock: Unix seconds.
    """

    __slots__ = ("_clock", "_counts", "_ending", "_first_end_at", "_watched")

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._watched: set[Unknown] = set()
        self._ending: set[Unknown] = set()
        self._first_end_at = math.inf  # or earlier: of a connection that is gone
        self._counts: dict[str, int] = {}

    def watch(self, connection: Unknown) -> None:
        """Look after a new connection, if its client has shown a certificate."""
        client = connection.channel.client
        if client is not None and client.is_known:
            self._watched.add(connection)
            self._first_end_at = min(self._first_end_at, client.ends_at)

    def forget(self, connection: Unknown) -> None:
        """Note that a connection has ended."""
        self._watched.discard(connection)
        self._ending.discard(connection)

    def end(self, connection: Unknown) -> None:
        """Have a connection end."""
        self._watched.discard(connection)
        self._ending.add(connection)
        connection.begin_drain()
        connection.finish_drain()

    def end_outdated(self, connections: Iterable[Unknown], listener: str, tls: ServerTls | None) -> int:
        """End connections of a listener whose clients were held to what is not asked any more; return how many.

        What was verified by a CA, a list or an allow-list that has changed is not to be believed. Until such a
        connection has ended, its requests are answered with 421, see `routing.client_guard`.
        """
        count = 0
        for connection in connections:
            channel = connection.channel
            if connection.listener.name == listener and channel.is_tls and _is_outdated(channel, tls):
                self.end(connection)
                count += 1
        return count

    async def end_expired(self) -> None:
        """Have those end whose certificate has ended: each logged and counted once; others run in between."""
        for index, connection in enumerate(tuple(self._ending)):
            if index and index % EXPIRED_SLICE == 0:
                await trio.lowlevel.checkpoint()
            if connection in self._ending:
                connection.finish_drain()
        now = self._clock()
        if now <= self._first_end_at:
            return
        # One that has not said yet what it speaks cannot be told; it is looked at again.
        due = [one for one in self._watched if _ends_at(one) < now and one.serving is not None]
        for index, connection in enumerate(due):
            if index and index % EXPIRED_SLICE == 0:
                await trio.lowlevel.checkpoint()
            if connection not in self._watched:
                continue  # it has ended meanwhile
            self.end(connection)
            listener = connection.listener.name
            self._counts[listener] = self._counts.get(listener, 0) + 1
            log.info(
                "client certificate expired on an open connection",
                extra={"listener": listener, "peer": connection.channel.peer[0], "expired_at": _ends_at(connection)},
            )
        self._first_end_at = min(map(_ends_at, self._watched), default=math.inf)

    def take_cells(self) -> Iterator[Cell]:
        """Give what has been counted since the last call."""
        counts, self._counts = self._counts, {}
        for listener, count in counts.items():
            yield Cell(names.CLIENT_CERTIFICATES.name, (listener, "expired"), count)


def _ends_at(connection: Unknown) -> float:
    client = connection.channel.client
    return math.inf if client is None else client.ends_at


def _is_outdated(channel: Channel, tls: ServerTls | None) -> bool:
    held_to = None if channel.client is None else channel.client.policy
    wanted = None if tls is None else tls.policy_for(channel.sni)
    return held_to != wanted
