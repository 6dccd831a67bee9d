"""Find or make the connection for one attempt: asks the pool, dials, waits, and keeps the counts right."""

from __future__ import annotations

import functools
import math
from collections import deque
from collections.abc import Iterator

from datum_router.compiler.lease import Lease
from datum_router.compiler.link import Snapshot
from datum_router.errors import UpstreamError
from datum_router.model.endpoint import Endpoint, EndpointKey
from datum_router.model.service import ServiceKey, UpstreamProtocol, UpstreamTls
from datum_router.observe.cells import Cell
from datum_router.reasons import Reason
from datum_router_proxy.channel import Channel, PlainChannel
from datum_router_proxy.exchange import Upstream, Watched
from datum_router_proxy.loop import DeadlineExpired, Loop, Task, current_task, park
from datum_router_proxy.request import RequestLines
from datum_router_proxy.settings import ProxySettings
from datum_router_proxy.upstream.connect import dial
from datum_router_proxy.upstream.h1 import BULK_CONNECTIONS, H1Upstream
from datum_router_proxy.upstream.h2 import H2Connection
from datum_router_proxy.upstream.pool import Bucket, BucketKey, Pool, Verdict
from datum_router_proxy.wire.hpack_codec import LineCache
from datum_router_proxy.wire.http1 import HeadCache, Http1Limits
from datum_router_proxy.wire.http2 import Http2Limits, codec_within

_ALPN = {"h1": ("http/1.1",), "h2": ("h2",), "auto": ("h2", "http/1.1")}
_DEFAULT_TLS = UpstreamTls()
_HTTP = UpstreamProtocol.HTTP


class _Waiter:
    """A request that waits for a connection; `ticket` and `ends_at` stay if it was called, and another was faster."""

    __slots__ = ("ends_at", "is_called", "task", "ticket")

    def __init__(self, task: Task, ticket: int, ends_at: float) -> None:
        self.task = task
        self.ticket = ticket
        self.ends_at = ends_at
        self.is_called = False


class Transport:
    """All upstream connections of one process."""

    __slots__ = (
        "_h2_limits", "_h2_lines", "_head_cache", "_head_limits", "_loop", "_pool", "_request_lines",
        "_settings", "_tickets", "_vpcs", "_waiters",
    )  # fmt: skip

    def __init__(self, loop: Loop, settings: ProxySettings) -> None:
        self._loop = loop
        self._settings = settings
        self._pool: Pool[H1Upstream, H2Connection] = Pool(idle_per_bucket=settings.upstream_idle_per_endpoint)
        self._waiters: dict[ServiceKey, deque[_Waiter]] = {}  # in order of their tickets
        self._tickets = 0
        self._vpcs = settings.vpcs()
        self._head_limits = Http1Limits(max_informational=settings.max_interim)
        self._head_cache = HeadCache()
        self._h2_lines = LineCache()
        self._request_lines = RequestLines()
        self._h2_limits = Http2Limits(
            stream_window_bytes=settings.stream_window_bytes,
            connection_window_bytes=settings.connection_window_bytes,
            interim_responses=settings.max_interim,
            enable_connect_protocol=False,
        )

    @property
    def connections(self) -> int:
        """Upstream connections, dials included."""
        return self._pool.connections

    def take_cells(self) -> Iterator[Cell]:
        """Give what telemetry shows of the services' connections."""
        return self._pool.take_cells()

    @property
    def h1_limits(self) -> Http1Limits:
        """What heads of HTTP/1 upstreams are held to."""
        return self._head_limits

    def take(self, lease: Lease) -> H1Upstream | None:
        """Return a kept HTTP/1 connection for the express lane if one is there and nothing is doubtful about it."""
        service = lease.state.service
        if self._waiters and service.key in self._waiters:
            return None  # who was called has not had its turn yet: nobody is to go before
        mode, tls = "h1", service.tls
        if service.protocol is not _HTTP:
            mode, tls = _mode(service.protocol, tls, is_tunnel=False)
            if mode == "h2":
                return None
        idle = self._pool.idle((service.key, lease.key, lease.endpoint.port, mode), tls)
        if not idle:
            return None
        connection = idle[-1][0]
        channel = connection.channel
        if channel.readable or channel.is_closed:
            return None  # closed by the peer, or worse: the pipeline sorts it out
        idle.pop()
        connection.take()
        return connection

    def take_shared(self, lease: Lease) -> H2Connection | None:
        """Return a connection that has room for a stream, for the express lane, if one is there."""
        service = lease.state.service
        if service.protocol is _HTTP:
            return None
        mode, tls = _mode(service.protocol, service.tls, is_tunnel=False)
        for connection in self._pool.shared((service.key, lease.key, lease.endpoint.port, mode), tls):
            if connection.has_room():
                return connection
        return None

    async def open(
        self,
        lease: Lease,
        downstream: Watched,
        *,
        is_tunnel: bool = False,
        is_fresh: bool = False,
        connect_s: float | None = None,
    ) -> Upstream:
        """Return an exchange with the lease's endpoint, for the calling task.

        If it is cancelled or fails, nothing is left open and every count is as before.

        Args:
            downstream: Who it is for: if nothing is there to be used at once, a client that leaves ends the wait.
            is_tunnel: For a WebSocket. Where ALPN would decide, HTTP/1.1 is asked for: every server has it there.
            is_fresh: Do not use an idle connection (threat U4).
            connect_s: Overrides the service's connect timeout.

        Raises:
            UpstreamError: Connect failures, or `pool_overflow` when no connection got free in time.
            TaskCancelled: With `downstream_reset`: the client has left meanwhile.
        """
        service = lease.state.service
        mode, tls = _mode(service.protocol, service.tls, is_tunnel=is_tunnel)
        endpoint = lease.endpoint
        key = BucketKey(service.key, lease.key, endpoint.port, mode)
        bucket, idle, shared = self._pool.bucket(key, tls)
        if idle or shared:
            self._discard(idle, shared)
        task = current_task()
        limits = lease.state.limits.limits  # not what the service says: this is one worker's share
        is_waiting = is_watched = False
        ticket, ends_at = 0, math.inf
        waiter: _Waiter | None = None
        try:
            while True:
                choice = self._pool.choose(
                    bucket,
                    max_connections=limits.max_connections,
                    max_pending=limits.max_pending_requests,
                    is_waiting=is_waiting,
                    is_fresh=is_fresh,
                )
                for stale in choice.close:
                    stale.close()
                if choice.verdict is Verdict.REUSE and choice.reused is not None:
                    return choice.reused.begin(task, is_reused=True)
                connection = choice.shared if choice.verdict is Verdict.SHARE else None
                if connection is not None and (connection.is_greeted or not is_tunnel):
                    return connection.begin(task, is_reused=connection.is_greeted)
                if not is_watched:
                    is_watched = True
                    downstream.watch()
                if connection is not None:
                    # Whether extended CONNECT may be used is known only from the peer's SETTINGS (RFC 8441 3).
                    await connection.greeted(task)
                    continue
                if choice.verdict is Verdict.DIAL:
                    made = await self._dial(
                        bucket, endpoint, connect_s or service.connect_timeout_s, service.idle_timeout_s
                    )
                    if isinstance(made, H1Upstream):
                        return made.begin(task, is_reused=False)
                    continue  # a shared connection is in the bucket now
                if choice.verdict is Verdict.OVERFLOW:
                    raise self._overflow(service.key, "too many requests wait for a connection")
                if not is_waiting:
                    is_waiting = True
                    self._tickets = ticket = self._tickets + 1
                    ends_at = self._loop.now + self._settings.pool_wait_s
                waiter = _Waiter(task, ticket, ends_at)
                await self._wait(service.key, waiter)
                waiter = None
        finally:
            if is_watched:
                downstream.unwatch()
            if is_waiting:
                self._pool.waited(service.key)
            if waiter is not None and waiter.is_called:
                self._call_next(service.key)  # it was our turn, but we leave

    async def dial_plain(self, lease: Lease, *, connect_s: float | None = None) -> PlainChannel:
        """Return a new connection to the lease's endpoint that belongs to the calling task, and to no pool.

        Raises:
            UpstreamError, DeadlineExpired, TaskCancelled: As `connect.dial`.
        """
        service, endpoint = lease.state.service, lease.endpoint
        channel = await dial(
            self._loop,
            endpoint.address,
            endpoint.port,
            timeout_s=connect_s or service.connect_timeout_s,
            device=self._vpcs.device(endpoint.vpc),
        )
        assert isinstance(channel, PlainChannel)
        channel.reset_reason = Reason.UPSTREAM_RESET
        return channel

    async def _dial(
        self, bucket: Bucket[H1Upstream, H2Connection], endpoint: Endpoint, timeout_s: float, idle_s: float
    ) -> H1Upstream | H2Connection:
        is_ok = False
        shared: H2Connection | None = None
        key = bucket.key
        try:
            channel = await dial(
                self._loop,
                endpoint.address,
                key.port,
                timeout_s=timeout_s,
                tls=bucket.tls,
                alpn=_ALPN[key.mode],
                device=self._vpcs.device(endpoint.vpc),
            )
            is_ok = True
            channel.reset_reason = Reason.UPSTREAM_RESET
            if key.mode == "h2" or (key.mode == "auto" and channel.alpn == "h2"):
                shared = self._make_h2(bucket, channel, idle_s)
        finally:
            self._pool.dialled(bucket, shared, is_ok=is_ok)
            if not is_ok or bucket.key.mode != "h1":
                self._call_all(key.service)
        if shared is not None:
            return shared
        settings = self._settings
        return H1Upstream(
            channel,
            limits=self._head_limits,
            cache=self._head_cache,
            given_back=functools.partial(self._given_back, bucket),
            closed=functools.partial(self._h1_closed, bucket),
            buffer_bytes=settings.buffer_bytes,
            may_read_bulk=self._may_read_bulk,
        )

    def _may_read_bulk(self) -> bool:
        return self._pool.connections <= BULK_CONNECTIONS

    def _make_h2(self, bucket: Bucket[H1Upstream, H2Connection], channel: Channel, idle_s: float) -> H2Connection:
        settings = self._settings
        connection = H2Connection(
            self._loop,
            channel,
            limits=self._h2_limits,
            codec=codec_within(self._h2_limits, settings.hpack_codec, self._h2_lines),
            lines=self._request_lines,
            most_output=settings.connection_output_bytes,
            most_streams=settings.upstream_streams,
            idle_s=idle_s,
            closed=functools.partial(self._h2_closed, bucket),
            has_slot=functools.partial(self._has_slot, bucket.key.service),
        )
        connection.task = self._loop.spawn(connection.drive(), name=f"upstream {bucket.key.service}")
        return connection

    # --- connections come back ----------------------------------------------------------------------------------

    def _given_back(self, bucket: Bucket[H1Upstream, H2Connection], connection: H1Upstream) -> None:
        surplus = self._pool.put(bucket, connection, self._loop.now)
        if surplus is not None:
            surplus.close()
        if self._waiters:
            self._call_next(bucket.key.service)

    def _h1_closed(self, bucket: Bucket[H1Upstream, H2Connection], _connection: H1Upstream) -> None:
        self._pool.closed(bucket)
        self._call_next(bucket.key.service)

    def _h2_closed(self, bucket: Bucket[H1Upstream, H2Connection], connection: H2Connection) -> None:
        self._pool.closed(bucket, connection)
        self._call_all(bucket.key.service)

    def _has_slot(self, service: ServiceKey, _connection: H2Connection) -> None:
        if self._waiters:
            self._call_next(service)

    async def _wait(self, service: ServiceKey, waiter: _Waiter) -> None:
        queue = self._waiters.setdefault(service, deque())
        at = len(queue)
        while at and queue[at - 1].ticket > waiter.ticket:
            at -= 1
        queue.insert(at, waiter)
        task = waiter.task
        outer, outer_reason = task.deadline, task.deadline_reason
        is_ours = waiter.ends_at < outer
        if is_ours:
            task.deadline, task.deadline_reason = waiter.ends_at, Reason.POOL_OVERFLOW
        try:
            while not waiter.is_called:
                await park()
        except DeadlineExpired as exc:
            if is_ours:
                said = f"no connection got free within {self._settings.pool_wait_s:g} s"
            elif exc.reason is Reason.PER_TRY_TIMEOUT:
                said = "no connection got free in the time of one try"  # the endpoint has not been asked
            else:
                raise
            raise self._overflow(service, said) from exc
        finally:
            if is_ours:
                task.deadline, task.deadline_reason = outer, outer_reason
            if not waiter.is_called:
                queue.remove(waiter)
            if not queue and self._waiters.get(service) is queue:
                del self._waiters[service]

    def _overflow(self, service: ServiceKey, said: str) -> UpstreamError:
        self._pool.usage(service).overflowed += 1
        return UpstreamError(
            f"service {service}: {said}", reason=Reason.POOL_OVERFLOW, status_hint=503, is_unprocessed=True
        )

    def _call_next(self, service: ServiceKey) -> None:
        """Give the longest-waiting request another look at the pool."""
        queue = self._waiters.get(service)
        if queue:
            waiter = queue.popleft()
            waiter.is_called = True
            waiter.task.wake()

    def _call_all(self, service: ServiceKey) -> None:
        for _ in range(len(self._waiters.get(service, ()))):
            self._call_next(service)

    # --- upkeep ----------------------------------------------------------------------------------------------------

    def sweep(self, snapshot: Snapshot) -> None:
        """Close what has been idle too long, has gone stale, or belongs to endpoints or TLS settings that have left."""
        endpoints: dict[ServiceKey, tuple[float, frozenset[EndpointKey], UpstreamTls | None]] = {}
        for key in self._pool.services():
            state = snapshot.services.get(key)
            if state is not None:
                service = state.service
                _, tls = _mode(service.protocol, service.tls, is_tunnel=False)
                endpoints[key] = (service.idle_timeout_s, frozenset(one.key for one in service.endpoints), tls)
        self._discard(*self._pool.sweep(self._loop.now, endpoints))

    def shed(self) -> None:
        """Give up what only makes the next request faster."""
        self._head_cache.clear()
        self._request_lines.clear()
        self._discard(self._pool.take_idle(), [])

    def close(self) -> None:
        """Close everything that carries no request and take no new streams on what does."""
        self._discard(*self._pool.drop_all())

    def _discard(self, idle: list[H1Upstream], shared: list[H2Connection]) -> None:
        for connection in idle:
            connection.close()
        for link in shared:
            link.retire()


def _mode(protocol: UpstreamProtocol, tls: UpstreamTls | None, *, is_tunnel: bool) -> tuple[str, UpstreamTls | None]:
    """Return the bucket mode and the TLS settings for a service's protocol."""
    if protocol is UpstreamProtocol.HTTP:
        return "h1", tls
    if protocol is UpstreamProtocol.HTTPS:
        return ("h1" if is_tunnel else "auto"), tls if tls is not None else _DEFAULT_TLS
    return "h2", tls
