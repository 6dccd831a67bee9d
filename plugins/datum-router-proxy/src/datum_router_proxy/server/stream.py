"""Connections whose bytes are carried on as they are: TLS that is passed through by its server name, and TCP.

Theory of operation
===================
One task for each connection chooses a rule and an endpoint, dials, and then moves bytes both ways until both sides have
ended. A piece is read only when all of the one before has left on the other side: what one side does not take, the
kernel's window of the other holds back, and no more than one piece for each direction is ever kept here. The end of one
side is passed on as a half close; a reset as a reset. Silence both ways for `tcp_idle_timeout_s` ends both sides.

Of a ClientHello nothing has been taken out of the kernel's buffer (`admission` looks with MSG_PEEK), so that the first
byte read here is the client's first.

An endpoint is tried once; if it cannot be reached another one is, as the rule's retries allow: not a byte has been read
of the client yet. A connection counts as a request in flight of its service, and as one of its connections, until it
ends, so that balancers see how loaded endpoints are, and limits hold.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator

from datum_router.compiler.lease import Lease
from datum_router.compiler.link import LinkedRule, Snapshot
from datum_router.compiler.streamlink import stream_head
from datum_router.errors import PluginContractError, UpstreamError
from datum_router.model.endpoint import EndpointKey
from datum_router.model.listener import Listener, ListenerMode
from datum_router.model.outcome import Outcome
from datum_router.model.request import LocalReply
from datum_router.model.snapshot import Holder
from datum_router.observe import names
from datum_router.observe.cells import Cell
from datum_router.observe.events import RequestEnded
from datum_router.plugins.protocols import DataPlaneObserver
from datum_router.reasons import Reason
from datum_router_proxy.channel import BULK_BYTES, ChannelError, PlainChannel
from datum_router_proxy.loop import DeadlineExpired, Loop, Task, TaskCancelled, current_task, park
from datum_router_proxy.settings import ProxySettings
from datum_router_proxy.upstream.transport import Transport

CONNECTED = 200
"""What an endpoint that took a connection counts as in its health: it has answered."""


class Relay:
    """Bytes both ways between two channels of one task.

    Attributes:
        bytes_in, bytes_out: From and to the client.
    """

    __slots__ = ("_client", "_is_client_done", "_is_upstream_done", "_upstream", "bytes_in", "bytes_out")

    def __init__(self, client: PlainChannel, upstream: PlainChannel) -> None:
        self._client = client
        self._upstream = upstream
        self._is_client_done = False
        self._is_upstream_done = False
        self.bytes_in = 0
        self.bytes_out = 0

    async def run(self, loop: Loop, *, idle_s: float, moves_per_turn: int) -> None:
        """Carry bytes until both sides have ended.

        Raises:
            ChannelError: One side broke; the other is to be reset.
            DeadlineExpired: Nothing moved for `idle_s`.
            TaskCancelled: As `park`.
        """
        task = current_task()
        client, upstream = self._client, self._upstream
        client.task = upstream.task = task
        task.deadline, task.deadline_reason = loop.now + idle_s, Reason.IDLE_TIMEOUT
        moves = 0
        while not (self._is_client_done and self._is_upstream_done and not client.buffered and not upstream.buffered):
            client.check()
            upstream.check()
            moved = 0
            if not self._is_client_done:
                size = _move(client, upstream)
                self._is_client_done = size == 0
                moved += size is not None
                self.bytes_in += size or 0
            if not self._is_upstream_done:
                size = _move(upstream, client)
                self._is_upstream_done = size == 0
                moved += size is not None
                self.bytes_out += size or 0
            if moved:
                task.deadline = loop.now + idle_s
                moves += 1
                if moves % moves_per_turn:
                    continue
                task.wake()  # others have their turn
            if self._is_client_done and self._is_upstream_done and not client.buffered and not upstream.buffered:
                break
            await park()


def _move(source: PlainChannel, sink: PlainChannel) -> int | None:
    """Move one piece; return its size, 0 for the end, None if there is nothing or the sink is still busy."""
    if sink.buffered or not source.readable:
        return None
    data = source.recv(BULK_BYTES)
    if data is None:
        return None
    if data:
        sink.write(data)
    else:
        sink.finish_writes()
    return len(data)


class Streams:
    """All connections of a process whose bytes are carried on."""

    __slots__ = ("_bytes", "_ended", "_holder", "_loop", "_observer", "_open", "_settings", "_transport")

    def __init__(
        self,
        loop: Loop,
        holder: Holder[Snapshot],
        observer: DataPlaneObserver,
        settings: ProxySettings,
        transport: Transport,
    ) -> None:
        self._loop = loop
        self._holder = holder
        self._observer = observer
        self._settings = settings
        self._transport = transport
        self._open: Counter[str] = Counter()
        self._ended: Counter[tuple[str, str]] = Counter()
        self._bytes: Counter[tuple[str, str]] = Counter()

    async def serve(self, stream: Stream) -> None:
        """Serve one connection to its end; never raises."""
        self._open[stream.listener.name] += 1
        try:
            await self._serve(stream)
        except (TaskCancelled, DeadlineExpired) as error:
            stream.reason = error.reason
        except PluginContractError as error:
            stream.reason = error.reason
        finally:
            self._open[stream.listener.name] -= 1
            self._note_end(stream)

    async def _serve(self, stream: Stream) -> None:
        task = stream.task = stream.client.task = current_task()
        listener = stream.listener
        head = stream_head(listener, server_name=stream.server_name, client_ip=stream.client.peer[0])
        rule = stream.rule = self._holder.current.match_stream(head)
        if rule is None:
            stream.reason = Reason.UNKNOWN_SERVER_NAME if listener.mode is ListenerMode.PASSTHROUGH else Reason.NO_ROUTE
            self._observer.rejected(_protocol(listener), stream.reason)
            return
        excluded: frozenset[EndpointKey] = frozenset()
        while True:
            chosen = rule.select(
                head, rng=self._loop.rng, now=self._loop.now, excluded=excluded, is_retry=stream.attempts > 0
            )
            if isinstance(chosen, LocalReply):
                if not stream.attempts:
                    stream.reason = Reason(chosen.reason)
                return
            stream.attempts += 1
            stream.service, stream.endpoint = chosen.state.service.key, chosen.key
            try:
                if await self._attempt(stream, rule, chosen, task):
                    return
            finally:
                chosen.release()
            if stream.attempts > rule.retry.max_retries:
                return
            excluded |= {chosen.key}

    async def _attempt(self, stream: Stream, rule: LinkedRule, lease: Lease, task: Task) -> bool:
        """Dial and carry; False if the endpoint could not be reached, which is noted in `stream`."""
        limits = lease.state.limits
        refused = limits.acquire_connection()
        if refused is not None:
            stream.reason = refused
            return True
        upstream: PlainChannel | None = None
        try:
            try:
                # Without a watcher: a client that has said all it has to say may wait for the answer, and one that has
                # left looks the same. How long we dial is bounded.
                upstream = await self._transport.dial_plain(lease, connect_s=rule.timeouts.connect_s)
            except UpstreamError as error:
                stream.reason = error.reason
                self._note_attempt(lease, 0, error.reason)
                return False
            self._note_attempt(lease, CONNECTED, Reason.ROUTED)
            stream.reason = Reason.ROUTED
            await self._carry(stream, upstream)
            return True
        finally:
            limits.release_connection()
            task.deadline = math.inf
            if upstream is not None:
                upstream.task = None
                upstream.close() if stream.reason is Reason.ROUTED else upstream.abort()

    async def _carry(self, stream: Stream, upstream: PlainChannel) -> None:
        settings = self._settings
        relay = Relay(stream.client, upstream)
        try:
            await relay.run(self._loop, idle_s=settings.tcp_idle_timeout_s, moves_per_turn=settings.moves_per_turn)
        except ChannelError as error:
            stream.reason = error.reason
        except (DeadlineExpired, TaskCancelled) as error:
            stream.reason = error.reason
            raise
        finally:
            stream.bytes_in, stream.bytes_out = relay.bytes_in, relay.bytes_out

    def _note_attempt(self, lease: Lease, status: int, reason: Reason) -> None:
        outcome = Outcome(service=lease.state.service.key, endpoint=lease.key, status=status, reason=reason)
        if reason is not Reason.LOCAL_RESOURCES:
            self._observer.attempt_ended(outcome)
        lease.settle(outcome.outcome_class)

    def _note_end(self, stream: Stream) -> None:
        client = stream.client
        client.task = None
        if stream.reason is Reason.ROUTED:
            client.close()
        else:
            client.abort()
        service = stream.service or names.NONE
        self._ended[service, str(stream.reason)] += 1
        self._bytes[service, "in"] += stream.bytes_in
        self._bytes[service, "out"] += stream.bytes_out
        rule = stream.rule
        if not self._observer.wants_events or (rule is not None and not rule.is_logged):
            return
        self._observer.request_ended(
            RequestEnded(
                protocol=_protocol(stream.listener),
                listener=stream.listener.name,
                method="",
                host=stream.server_name,
                path="",
                status=0,
                reason=stream.reason,
                route=rule.rule.route if rule is not None else "",
                rule=rule.rule.id if rule is not None else "",
                service=stream.service,
                endpoint=stream.endpoint,
                attempts=stream.attempts,
                bytes_in=stream.bytes_in,
                bytes_out=stream.bytes_out,
                duration_s=self._loop.now - stream.began_at,
                client_ip=client.peer[0],
            )
        )

    def take_cells(self) -> Iterator[Cell]:
        """Yield what telemetry shows, and set counters back."""
        for listener, count in self._open.items():
            yield Cell(names.STREAMS.name, (listener,), count)
        for labels, count in self._ended.items():
            yield Cell(names.STREAMS_ENDED.name, labels, count)
        for key, size in self._bytes.items():
            if size:
                yield Cell(names.STREAM_BYTES.name, key, size)
        self._ended.clear()
        self._bytes.clear()


class Stream:
    """One connection whose bytes are carried on, as the data plane's drain sees it.

    It has no way to tell a client that it is to go: it is served on through a drain's grace, then cut.
    """

    __slots__ = (
        "attempts", "began_at", "bytes_in", "bytes_out", "client", "endpoint", "listener", "reason", "rule",
        "server_name", "service", "task",
    )  # fmt: skip

    def __init__(self, client: PlainChannel, listener: Listener, server_name: str, *, now: float) -> None:
        self.client = client
        self.listener = listener
        self.server_name = server_name
        self.began_at = now
        self.task: Task | None = None
        self.rule: LinkedRule | None = None
        self.reason = Reason.ROUTED
        self.service = ""
        self.endpoint = ""
        self.attempts = 0
        self.bytes_in = 0
        self.bytes_out = 0

    def rest(self, before: float) -> None:
        """Do nothing: there is nothing that only speeds things up."""

    def begin_drain(self) -> None:
        """Do nothing: bytes that nobody understands hold no place to say so."""

    def finish_drain(self) -> None:
        """Do nothing: what is under way may end."""

    def cut(self) -> None:
        """End it."""
        if self.task is not None:
            self.task.cancel(Reason.DRAINING)


def _protocol(listener: Listener) -> str:
    return "tls" if listener.mode is ListenerMode.PASSTHROUGH else "tcp"
