"""Which connection carries a request: decisions only. Dialling, closing and waiting are the transport's business.

Theory of operation. A *bucket* is one endpoint of one service as one protocol. It holds idle HTTP/1 connections (the
youngest is used first, so that the others can age out), HTTP/2 connections, and how many dials are under way.
Connections are counted per service, because that is what its limit is about; requests that find the limit reached are
counted as pending, and the transport lets them wait.

Invariant: `Usage.connections` is the number of connections that were dialled and not yet reported by `closed`, plus
dials under way. Nothing here keeps a connection that is in use; it comes back by `put` or leaves by `closed`.
"""

from __future__ import annotations

import enum
from collections.abc import Iterator, Sequence
from typing import Generic, NamedTuple, Protocol, TypeVar

from datum_router.model.endpoint import EndpointKey
from datum_router.model.service import ServiceKey, UpstreamTls
from datum_router.observe import names
from datum_router.observe.cells import Cell


class BucketKey(NamedTuple):
    """What connections must have in common to be interchangeable; `mode` is `h1`, `h2` or `auto`."""

    service: ServiceKey
    endpoint: EndpointKey
    port: int
    mode: str


class Idle(Protocol):
    """A connection that waits in the pool."""

    def is_usable(self) -> bool:
        """Tell whether it can carry a request now: the peer neither closed it nor said anything while idle."""
        ...


class Shared(Idle, Protocol):
    """An HTTP/2 connection, which can carry several requests."""

    def has_room(self) -> bool:
        """Tell whether another stream can be opened now."""
        ...

    def is_unused(self) -> bool:
        """Tell whether no stream is open."""
        ...


C = TypeVar("C", bound=Idle)
S = TypeVar("S", bound=Shared)


class Verdict(enum.Enum):
    """What to do for a request."""

    REUSE = "reuse"
    SHARE = "share"
    DIAL = "dial"
    WAIT = "wait"
    OVERFLOW = "overflow"


class Usage:
    """What one service holds, and what has happened since telemetry has last set it back."""

    __slots__ = ("closed", "connections", "opened", "overflowed", "pending")

    def __init__(self) -> None:
        self.connections = 0
        self.pending = 0
        self.opened = 0
        self.closed = 0
        self.overflowed = 0

    @property
    def is_over(self) -> bool:
        """Tell whether there is nothing left to know."""
        return not (self.connections or self.pending or self.opened or self.closed or self.overflowed)


class Bucket(Generic[C, S]):
    """Connections of one key; `idle` is oldest first, with the moment each became idle."""

    __slots__ = ("dialling", "idle", "is_dropped", "is_shared", "key", "shared", "tls")

    def __init__(self, key: BucketKey, tls: UpstreamTls | None) -> None:
        self.key = key
        self.tls = tls
        self.idle: list[tuple[C, float]] = []
        self.shared: list[S] = []
        self.dialling = 0
        self.is_dropped = False  # the pool has let go of it: nothing may come back
        # What `auto` turned out to be; None until the first dial has told.
        self.is_shared: bool | None = {"h1": False, "h2": True}.get(key.mode)


class Choice(Generic[C, S]):
    """What to do, with which connection, and which ones to close first."""

    __slots__ = ("close", "reused", "shared", "verdict")

    def __init__(
        self, verdict: Verdict, close: tuple[C, ...] = (), *, reused: C | None = None, shared: S | None = None
    ) -> None:
        self.verdict = verdict
        self.close = close
        self.reused = reused
        self.shared = shared


class Pool(Generic[C, S]):
    """Buckets and counts of one process.

    Args:
        idle_per_bucket: Idle HTTP/1 connections kept for one endpoint; the oldest goes first.
    """

    __slots__ = ("_buckets", "_idle_per_bucket", "_usage")

    def __init__(self, *, idle_per_bucket: int) -> None:
        self._idle_per_bucket = idle_per_bucket
        self._buckets: dict[BucketKey, Bucket[C, S]] = {}
        self._usage: dict[ServiceKey, Usage] = {}

    def usage(self, service: ServiceKey) -> Usage:
        """Return the service's counts."""
        usage = self._usage.get(service)
        if usage is None:
            usage = self._usage[service] = Usage()
        return usage

    def take_cells(self) -> Iterator[Cell]:
        """Give what has been counted since the last call, and what is held now."""
        for service, usage in self._usage.items():
            labels = (service,)
            yield Cell(names.UPSTREAM_CONNECTIONS.name, labels, usage.connections)
            yield Cell(names.UPSTREAM_PENDING.name, labels, usage.pending)
            yield Cell(names.UPSTREAM_OPENED.name, labels, usage.opened)
            yield Cell(names.UPSTREAM_CLOSED.name, labels, usage.closed)
            yield Cell(names.POOL_OVERFLOW.name, labels, usage.overflowed)
            usage.opened = usage.closed = usage.overflowed = 0

    @property
    def connections(self) -> int:
        """Connections of all services, dials included."""
        return sum(usage.connections for usage in self._usage.values())

    def bucket(self, key: BucketKey, tls: UpstreamTls | None) -> tuple[Bucket[C, S], list[C], list[S]]:
        """Return the bucket, and what is to be closed, or retired, because the TLS settings have changed.

        Whom a connection was verified against must not be forgotten: a CA, a pin or an identity that is gone is gone
        for connections that are there already, too.
        """
        bucket = self._buckets.get(key)
        if bucket is not None and (bucket.tls is tls or bucket.tls == tls):
            return bucket, [], []
        fresh: Bucket[C, S] = Bucket(key, tls)
        self._buckets[key] = fresh
        if bucket is None:
            return fresh, [], []
        bucket.is_dropped = True
        return fresh, [connection for connection, _ in bucket.idle], list(bucket.shared)

    def idle(self, key: tuple[str, str, int, str], tls: UpstreamTls | None) -> list[tuple[C, float]] | None:
        """Return the idle connections of a bucket, youngest last, if it is there and its TLS settings are these.

        Args:
            key: As `BucketKey`; a plain tuple is equal to it, and made in a third of the time.
        """
        bucket = self._buckets.get(key)  # type: ignore[call-overload]  # equal, and of the same hash
        if bucket is None or not (bucket.tls is tls or bucket.tls == tls):
            return None
        idle: list[tuple[C, float]] = bucket.idle
        return idle

    def shared(self, key: tuple[str, str, int, str], tls: UpstreamTls | None) -> Sequence[S]:
        """Return the HTTP/2 connections of a bucket, as `idle` does the others."""
        bucket = self._buckets.get(key)  # type: ignore[call-overload]  # as above
        if bucket is None or not (bucket.tls is tls or bucket.tls == tls):
            return ()
        shared: list[S] = bucket.shared
        return shared

    def choose(
        self,
        bucket: Bucket[C, S],
        *,
        max_connections: int,
        max_pending: int,
        is_waiting: bool = False,
        is_fresh: bool = False,
    ) -> Choice[C, S]:
        """Decide for one request. DIAL and WAIT are counted at once: report their end by `dialled` and `waited`.

        Args:
            is_waiting: The request is among the pending ones already.
            is_fresh: Do not reuse an idle connection, all may be stale (threat U4).
        """
        stale: list[C] = []
        if not is_fresh:
            idle = bucket.idle
            while idle:
                connection = idle.pop()[0]
                if connection.is_usable():
                    return Choice(Verdict.REUSE, tuple(stale), reused=connection)
                stale.append(connection)
        for shared in bucket.shared:
            if shared.has_room():
                return Choice(Verdict.SHARE, tuple(stale), shared=shared)
        usage = self.usage(bucket.key.service)
        # One dial at a time where its connection can be shared: everybody else waits for it instead of dialling too.
        if bucket.dialling and bucket.is_shared is not False:
            return self._wait(usage, max_pending, is_waiting, stale)
        if usage.connections - len(stale) >= max_connections:
            victim = self._oldest_idle(bucket.key.service)
            if victim is None:
                return self._wait(usage, max_pending, is_waiting, stale)
            stale.append(victim)
        bucket.dialling += 1
        usage.connections += 1
        return Choice(Verdict.DIAL, tuple(stale))

    def _wait(self, usage: Usage, max_pending: int, is_waiting: bool, stale: list[C]) -> Choice[C, S]:
        if not is_waiting:
            if usage.pending >= max_pending:
                return Choice(Verdict.OVERFLOW, tuple(stale))
            usage.pending += 1
        return Choice(Verdict.WAIT, tuple(stale))

    def _oldest_idle(self, service: ServiceKey) -> C | None:
        buckets = [bucket for bucket in self._buckets.values() if bucket.key.service == service and bucket.idle]
        if not buckets:
            return None
        return min(buckets, key=lambda bucket: bucket.idle[0][1]).idle.pop(0)[0]

    def waited(self, service: ServiceKey) -> None:
        """Note that a pending request waits no more."""
        self.usage(service).pending -= 1

    def dialled(self, bucket: Bucket[C, S], shared: S | None = None, *, is_ok: bool) -> None:
        """Note how a dial ended; an HTTP/2 connection is offered to everybody."""
        bucket.dialling -= 1
        if not is_ok:
            self.usage(bucket.key.service).connections -= 1
            return
        self.usage(bucket.key.service).opened += 1
        bucket.is_shared = shared is not None
        if shared is not None:
            bucket.shared.append(shared)

    def put(self, bucket: Bucket[C, S], connection: C, now: float) -> C | None:
        """Take an HTTP/1 connection back; return what is to be closed instead."""
        if bucket.is_dropped:
            return connection
        idle = bucket.idle
        idle.append((connection, now))
        return idle.pop(0)[0] if len(idle) > self._idle_per_bucket else None

    def closed(self, bucket: Bucket[C, S], shared: S | None = None) -> None:
        """Note that a connection of the bucket is closed."""
        usage = self.usage(bucket.key.service)
        usage.connections -= 1
        usage.closed += 1
        if shared is not None and shared in bucket.shared:
            bucket.shared.remove(shared)

    def sweep(
        self, now: float, endpoints: dict[ServiceKey, tuple[float, frozenset[EndpointKey], UpstreamTls | None]]
    ) -> tuple[list[C], list[S]]:
        """Return what is to be closed: idle for too long, gone stale, of endpoints that have left, or made by other
        TLS settings than those in force.

        Args:
            endpoints: Idle limit in seconds, endpoints and TLS settings of every service that is served.
        """
        idle_out: list[C] = []
        shared_out: list[S] = []
        for key, bucket in list(self._buckets.items()):
            idle_limit, known, tls = endpoints.get(key.service, (0.0, frozenset(), None))
            if key.endpoint not in known or not (bucket.tls is tls or bucket.tls == tls):
                idle_out += [connection for connection, _ in bucket.idle]
                shared_out += bucket.shared
                bucket.is_dropped = True
                del self._buckets[key]
                continue
            kept = []
            for entry in bucket.idle:
                if now - entry[1] >= idle_limit or not entry[0].is_usable():
                    idle_out.append(entry[0])
                else:
                    kept.append(entry)
            bucket.idle[:] = kept  # an empty bucket stays: its connections may all be in use
        for service in [service for service, usage in self._usage.items() if usage.is_over]:
            del self._usage[service]
        return idle_out, shared_out

    def take_idle(self) -> list[C]:
        """Return every HTTP/1 connection that carries no request, to be closed: memory is short."""
        idle: list[C] = []
        for bucket in self._buckets.values():
            idle += [connection for connection, _ in bucket.idle]
            bucket.idle = []
        return idle

    def services(self) -> set[ServiceKey]:
        """Return the services that have buckets."""
        return {key.service for key in self._buckets}

    def drop_all(self) -> tuple[list[C], list[S]]:
        """Return every connection that waits or is shared, to be closed at the end."""
        return self.sweep(0.0, {})
