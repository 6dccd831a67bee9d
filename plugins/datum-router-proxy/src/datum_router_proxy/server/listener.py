"""The accept loop of one listening socket, and who is let in.

Theory of operation
===================
The listening socket is registered edge-triggered; its task accepts until the queue is empty, at most `accept_batch`
connections a step, and lets others run in between. A connection over a limit is accepted and reset at once: left in
the queue it would hold up the ones behind it. What is let in says in a task of its own what it has to before HTTP
(see `admission`: a PROXY header, a TLS handshake), and is then handed to `on_connection`; where bytes are only carried
on, to `on_stream`.

Out of descriptors (EMFILE, ENFILE) or of kernel memory, the loop gives up its reserve descriptor for a moment to accept
and reset one connection, so that its client does not hang, then sleeps 50 to 100 ms: it neither spins nor dies, and
goes on when descriptors come back (threats E7).

`AcceptCounts` is shared by all listeners of a process; entries leave it when the channel gives its descriptor back.
If the gateway has VPC attachments, the kernel is asked once for each connection by which interface it came, and the
connection sees a listener that names its attachment; without them nothing is asked.

Behind trusted proxies (`listener.trusted_hops`, PROXY protocol) one address stands for many clients and isn't limited
by itself; the address that a PROXY header tells is.

`stop_accepting` accepts what the kernel has queued before it closes: closing resets what waits there (threats P4).
"""

from __future__ import annotations

import contextlib
import errno
import functools
import logging
import os
import select
import socket
import time
from collections.abc import Callable, Mapping, Sequence

import msgspec
import trio

from datum_router.model.listener import Listener, ListenerMode
from datum_router.observe import names
from datum_router.observe.cells import Cell
from datum_router.reasons import Reason
from datum_router_proxy.channel import Channel, PlainChannel
from datum_router_proxy.loop import Loop, current_task, park
from datum_router_proxy.server.admission import Opened, Peers, needs_opening, open_connection
from datum_router_proxy.server.clients import ClientDesk
from datum_router_proxy.server.tls import ServerTls
from datum_router_proxy.vpc import incoming_interface

log = logging.getLogger(__name__)

OnConnection = Callable[[Channel, Listener], None]
OnStream = Callable[[PlainChannel, Listener, str], None]
Rejected = Callable[[str, Reason], None]

_EXHAUSTED = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})
_MAPPED = "::ffff:"


class AcceptLimits(msgspec.Struct, frozen=True, kw_only=True):
    """Limits on connections (threats E6, E7, E9).

    Attributes:
        max_per_listener, max_total, max_per_address: Open connections; `max_total` counts all listeners of the process.
        max_handshakes_per_address: TLS handshakes and PROXY headers under way.
        handshake_timeout_s: From accept to the end of the handshake, a PROXY header included.
        accept_batch: Connections accepted before others run.
        backoff_min_s, backoff_max_s: Sleep when descriptors have run out, evenly distributed.
    """

    max_per_listener: int = 10_000
    max_total: int = 50_000
    max_per_address: int = 200
    max_handshakes_per_address: int = 100
    handshake_timeout_s: float = 5.0
    accept_batch: int = 64
    backoff_min_s: float = 0.05
    backoff_max_s: float = 0.1


class AcceptCounts:
    """Open connections of a process; share one among its listeners."""

    __slots__ = ("handshakes", "per_address", "total")

    def __init__(self) -> None:
        self.total = 0
        self.per_address: dict[str, int] = {}
        self.handshakes: dict[str, int] = {}


def _decrement(counts: dict[str, int], key: str) -> None:
    left = counts[key] - 1
    if left:
        counts[key] = left
    else:
        del counts[key]


class ListenerTask:
    """Accepts on a bound, listening, non-blocking socket, which it owns from now on.

    Args:
        on_connection: Takes a channel that is ready for HTTP and owns it; called from a task of the loop.
        on_stream: Takes a channel whose bytes are to be carried on, and the server name of its ClientHello (empty if
            nobody has looked), and owns it; only needed for listeners of such modes.
        rejected: Counts by protocol (`tcp`, `tls`) and reason.
        secrets: See `ServerTls`.
        wall_clock: Unix seconds: certificates of clients have dates.
        attachments: Interface -> VPCAttachment (`namespace/name`) of this gateway.

    Attributes:
        connections: Open connections that came through here, handshakes included.
        accepted, turned_away: Let in, and reset over a limit, since telemetry has last set them back.
        is_accepting: False once stopped.
    """

    __slots__ = (
        "_attachments",
        "_clients",
        "_counts",
        "_is_stopping",
        "_limits",
        "_loop",
        "_on_connection",
        "_on_stream",
        "_peers",
        "_rejected",
        "_reserve_fd",
        "_secrets",
        "_seen",
        "_sock",
        "_task",
        "_tls",
        "accepted",
        "connections",
        "is_accepting",
        "listener",
        "turned_away",
    )  # fmt: skip

    def __init__(
        self,
        loop: Loop,
        listener: Listener,
        sock: socket.socket,
        on_connection: OnConnection,
        *,
        rejected: Rejected,
        limits: AcceptLimits = AcceptLimits(),
        counts: AcceptCounts | None = None,
        attachments: Mapping[str, str] | None = None,
        on_stream: OnStream | None = None,
        secrets: Sequence[bytes] = (),
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        self._loop = loop
        self._sock = sock
        self._on_connection = on_connection
        self._rejected = rejected
        self._limits = limits
        self._counts = counts if counts is not None else AcceptCounts()
        self._attachments = attachments or {}
        self._on_stream = on_stream
        self._secrets = tuple(secrets)
        self._seen: dict[tuple[str, str, bool], Listener] = {}
        self._peers = Peers(listener.trusted_proxies)
        self._tls: ServerTls | None = None
        self._clients = ClientDesk(listener.name, wall_clock)
        self._is_stopping = False
        self.listener = listener
        self.connections = 0
        self.accepted = 0
        self.turned_away = 0
        self.is_accepting = True
        self._apply_tls(listener)
        self._reserve_fd = _open_reserve()
        sock.setblocking(False)
        with contextlib.suppress(OSError):  # accepted sockets inherit it; Unix sockets have no such option
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        loop.register(sock.fileno(), self, select.EPOLLIN | select.EPOLLET)
        self._task = loop.spawn(self._accept_forever(), name=f"listener {listener.name}")

    @property
    def tls(self) -> ServerTls | None:
        """The certificates in force and what is wrong with the last ones given; None if the listener is plain."""
        return self._tls

    def update(self, listener: Listener) -> None:
        """Use these certificates and settings for new connections; unusable bindings keep their older certificate."""
        self.listener = listener
        self._seen = {}
        self._peers = Peers(listener.trusted_proxies)
        self._apply_tls(listener)

    def set_secrets(self, secrets: Sequence[bytes]) -> None:
        """Use these secrets for session tickets; see `ServerTls`."""
        self._secrets = tuple(secrets)
        if self._tls is not None:
            self._tls.set_secrets(self._secrets)

    def stop_accepting(self) -> None:
        """Accept what is queued already, then close the socket. Idempotent; open connections are not touched."""
        self._is_stopping = True
        self._task.wake()

    def handle(self, events: int) -> None:
        """Note epoll events (called by the loop)."""
        self._task.wake()

    def abort(self) -> None:
        """Close the socket at once; what the kernel has queued is reset. Idempotent."""
        if self.is_accepting:
            self.is_accepting = False
            # The supervisor holds the same socket: closing ours alone would not take it out of the epoll.
            self._loop.unregister(self._sock.fileno())
            self._sock.close()
            self._close_reserve()

    def _apply_tls(self, listener: Listener) -> None:
        if not listener.tls:
            self._tls = None
            return
        if self._tls is None:
            self._tls = ServerTls(listener, self._secrets)
        else:
            self._tls.update(listener)
        for problem in self._tls.problems:
            self._rejected("tls", Reason.INVALID_CERTIFICATE_REF)
            log.error("certificate not usable", extra={"problem": problem.message, "keeps_older": problem.is_stale})

    # --- accepting -------------------------------------------------------------------------------------------------

    async def _accept_forever(self) -> None:
        try:
            while not await self._accept_batch():
                pass
        finally:
            self.abort()

    async def _accept_batch(self) -> bool:
        """Accept until the queue is empty or others should run, then park; True when the socket is to be closed."""
        for _ in range(self._limits.accept_batch):
            try:
                sock, address = self._sock.accept()
            except BlockingIOError:
                if self._is_stopping:
                    return True
                await park()
                return False
            except OSError as exc:
                if exc.errno in _EXHAUSTED:
                    await self._back_off(exc)
                    return False
                if exc.errno in (errno.EBADF, errno.EINVAL, errno.ENOTSOCK):
                    # Not a listening socket any more: nothing will ever arrive.
                    log.error("listener broken", extra={"listener": self.listener.name, "error": exc.strerror})
                    return True
                # ECONNABORTED and pending network errors of that one connection (accept(2), "Error handling").
                continue
            self._admit(sock, _peer(address))
        current_task().wake()
        await park()
        return False

    async def _back_off(self, exc: OSError) -> None:
        self._rejected("tcp", Reason.TOO_MANY_CONNECTIONS)
        log.warning("out of descriptors", extra={"listener": self.listener.name, "error": exc.strerror})
        self._shed_one()
        limits = self._limits
        pause = self._loop.rng.uniform(limits.backoff_min_s, limits.backoff_max_s)
        await self._loop.in_trio(functools.partial(trio.sleep, pause))

    def _shed_one(self) -> None:
        """Reset one queued connection with the descriptor held in reserve."""
        if self._reserve_fd < 0:
            self._reserve_fd = _open_reserve()
            return
        self._close_reserve()
        with contextlib.suppress(OSError):
            sock, _ = self._sock.accept()
            _reset(sock)
        self._reserve_fd = _open_reserve()

    def _close_reserve(self) -> None:
        if self._reserve_fd >= 0:
            os.close(self._reserve_fd)
            self._reserve_fd = -1

    def _admit(self, sock: socket.socket, peer: tuple[str, int]) -> None:
        limits = self._limits
        counts = self._counts
        address = peer[0]
        listener = self.listener
        is_believed = (listener.has_proxy_protocol or listener.trusted_hops > 0) and self._peers.are_trusted(address)
        if listener.has_proxy_protocol and not is_believed:
            self._rejected("tcp", Reason.UNTRUSTED_PROXY)
            self.turned_away += 1
            _reset(sock)
            return
        is_limited = not is_believed
        attachment = self._attachments.get(incoming_interface(sock), "") if self._attachments else ""
        who = _who(address, attachment)
        if (
            self.connections >= limits.max_per_listener
            or counts.total >= limits.max_total
            or (is_limited and counts.per_address.get(who, 0) >= limits.max_per_address)
        ):
            self._turn_away(sock, "tcp")
            return
        has_opening = needs_opening(listener)
        if has_opening and is_limited and counts.handshakes.get(who, 0) >= limits.max_handshakes_per_address:
            self._turn_away(sock, "tls")
            return
        sock.setblocking(False)
        channel = PlainChannel(self._loop, sock, peer=peer)
        self.connections += 1
        self.accepted += 1
        counts.total += 1
        counts.per_address[who] = counts.per_address.get(who, 0) + 1
        channel.on_close = functools.partial(self._closed_in, attachment) if attachment else self._closed
        if not has_opening:
            self._hand_over(Opened(channel), self._as_seen(attachment, "", address))
        else:
            counts.handshakes[who] = counts.handshakes.get(who, 0) + 1
            self._loop.spawn(self._open(channel, attachment), name=f"handshake {listener.name}")

    def _turn_away(self, sock: socket.socket, protocol: str) -> None:
        self._rejected(protocol, Reason.TOO_MANY_CONNECTIONS)
        self.turned_away += 1
        _reset(sock)

    def take_cells(self) -> tuple[Cell, ...]:
        """Return what telemetry shows of this listener."""
        labels = (self.listener.name,)
        cells = (
            Cell(names.CONNECTIONS.name, labels, self.connections),
            Cell(names.ACCEPTED.name, labels, self.accepted),
            Cell(names.TURNED_AWAY.name, labels, self.turned_away),
        )
        self.accepted = self.turned_away = 0
        return (*cells, *self._clients.take_cells())

    def _closed(self, channel: PlainChannel) -> None:
        self._closed_in("", channel)

    def _closed_in(self, attachment: str, channel: PlainChannel) -> None:
        self.connections -= 1
        self._counts.total -= 1
        _decrement(self._counts.per_address, _who(channel.peer[0], attachment))

    def _as_seen(self, attachment: str, identity: str, address: str) -> Listener:
        """Return the listener as a connection sees it.

        Args:
            attachment: That it came in by, empty if by none.
            identity: Of the binding of its TLS handshake.
            address: Of its peer, who may be believed in X-Forwarded-For: by what holds now, not when it was accepted.
        """
        is_trusted = not self.listener.trusted_hops or self._peers.are_trusted(address)
        if not attachment and not identity and is_trusted:
            return self.listener
        key = (attachment, identity, is_trusted)
        seen = self._seen.get(key)
        if seen is None:
            hops = self.listener.trusted_hops if is_trusted else 0
            seen = self._seen[key] = msgspec.structs.replace(
                self.listener, attachment=attachment, identity=identity, trusted_hops=hops
            )
        return seen

    def _hand_over(self, opened: Opened, listener: Listener) -> None:
        channel = opened.channel
        try:
            if listener.mode is ListenerMode.HTTP:
                self._on_connection(channel, listener)
            elif self._on_stream is not None and isinstance(channel, PlainChannel):
                self._on_stream(channel, listener, opened.server_name)
            else:
                channel.abort()
        except Exception:  # one connection's trouble must not end the accept loop
            log.exception("connection could not be started", extra={"listener": self.listener.name})
            channel.abort()

    async def _open(self, raw: PlainChannel, attachment: str) -> None:
        handshakes = self._counts.handshakes
        peer = raw.peer[0]
        address = _who(peer, attachment)

        def told_client(client: tuple[str, int]) -> bool:
            """Count the connection as the client's, no longer as the proxy's."""
            nonlocal address
            per_address = self._counts.per_address
            _decrement(per_address, address)
            _decrement(handshakes, address)
            raw.peer = client
            address = _who(client[0], attachment)
            limits = self._limits
            is_over = (
                per_address.get(address, 0) >= limits.max_per_address
                or handshakes.get(address, 0) >= limits.max_handshakes_per_address
            )
            per_address[address] = per_address.get(address, 0) + 1
            handshakes[address] = handshakes.get(address, 0) + 1
            return not is_over

        opened: Opened | None = None
        try:
            opened = await open_connection(
                raw,
                self.listener,
                self._tls,
                self._clients,
                deadline=self._loop.now + self._limits.handshake_timeout_s,
                rejected=self._rejected,
                told_client=told_client,
            )
        finally:
            _decrement(handshakes, address)
            raw.task = None
            if opened is None:
                raw.close()
        if opened is not None:
            self._hand_over(opened, self._as_seen(attachment, opened.identity, peer))


def _peer(address: object) -> tuple[str, int]:
    """Return address and port of what accept gave; IPv4 in IPv6 clothes (RFC 4291 section 2.5.5.2) as IPv4."""
    if not isinstance(address, tuple):
        return ("", 0)
    host, port = str(address[0]), int(address[1])
    if host.startswith(_MAPPED) and "." in host:
        host = host[len(_MAPPED) :]
    return (host, port)


def _who(address: str, attachment: str) -> str:
    """Return what counts as one client: two VPCs may have equal addresses, and none of them is to use up another's."""
    return f"{address}%{attachment}" if attachment else address


def _reset(sock: socket.socket) -> None:
    with contextlib.suppress(OSError):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\x00\x00\x00\x00\x00\x00\x00")
    sock.close()


def _open_reserve() -> int:
    try:
        return os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return -1
