"""An HTTP/2 connection to an endpoint, shared by requests; each request is one stream."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Sequence

from datum_router.errors import UpstreamError
from datum_router.reasons import Reason
from datum_router_proxy.channel import Channel
from datum_router_proxy.exchange import END, End, Interim, UpstreamEvent, UpstreamHead, UpstreamRequest
from datum_router_proxy.h2link import H2Link, Outbound
from datum_router_proxy.loop import Loop, Task, park
from datum_router_proxy.request import RequestLines
from datum_router_proxy.wire import websocket
from datum_router_proxy.wire.hpack_codec import HeaderCodec
from datum_router_proxy.wire.http2 import (
    ConnectionTerminated,
    DataReceived,
    ErrorCode,
    Event,
    GoAwayReceived,
    Http2Connection,
    Http2Limits,
    InformationalReceived,
    ResponseReceived,
    Role,
    SettingsChanged,
    StreamEnded,
    StreamReset,
    TrailersReceived,
    WindowOpened,
)

Field = tuple[bytes, bytes]
FieldTuple = tuple[Field, ...]

_OF_STREAMS = frozenset((DataReceived, ResponseReceived, TrailersReceived, StreamEnded))
"""What nearly all events are, and what needs no thought of the connection."""

MOST_PARTS = 8
"""A response of more pieces than this is relayed piece by piece."""


class H2Connection(H2Link):
    """One connection; `closed` and `has_slot` are called when it ends and when a stream has ended.

    Args:
        lines: Encoded field lines of requests.
        most_streams: Streams at a time, if the peer allows as many.
        idle_s: Closed after this many seconds without a stream.
    """

    __slots__ = (
        "_closed", "_greeters", "_has_slot", "_idle_s", "_idle_since", "_is_retired", "_most_streams", "_scheme",
        "_streams", "is_greeted", "lines",
    )  # fmt: skip

    def __init__(
        self,
        loop: Loop,
        channel: Channel,
        *,
        limits: Http2Limits,
        codec: HeaderCodec,
        lines: RequestLines,
        most_output: int,
        most_streams: int,
        idle_s: float,
        closed: Callable[[H2Connection], None],
        has_slot: Callable[[H2Connection], None],
    ) -> None:
        super().__init__(loop, channel, Http2Connection(Role.CLIENT, limits, codec), most_output=most_output)
        # At once: a stream may be opened before the connection's task has run, and the preface must come first.
        self.engine.initiate()
        self._streams: dict[int, H2Upstream] = {}
        self._most_streams = most_streams
        self._idle_s = idle_s
        self._idle_since = loop.now
        self._is_retired = False
        self._scheme = b"https" if channel.is_tls else b"http"
        self._closed = closed
        self._has_slot = has_slot
        self.lines = lines
        self.is_greeted = False
        self._greeters: list[Task] = []

    @property
    def peer(self) -> tuple[str, int]:
        """Address and port of the endpoint."""
        return self._channel.peer

    @property
    def scheme(self) -> bytes:
        """What :scheme says."""
        return self._scheme

    def is_usable(self) -> bool:
        """Tell whether the connection is up."""
        return not (self.is_over or self._is_retired or self._channel.hangup)

    def has_room(self) -> bool:
        """Tell whether another stream can be opened now."""
        return self.is_usable() and len(self._streams) < self._most_streams and self.engine.can_open

    def is_unused(self) -> bool:
        """Tell whether no stream is open."""
        return not self._streams

    def begin(self, task: Task, *, is_reused: bool) -> H2Upstream:
        """Start an exchange for `task`; `has_room` must be True."""
        stream_id = self.engine.open_stream()
        stream = H2Upstream(self, stream_id, task, is_reused=is_reused)
        self._streams[stream_id] = stream
        return stream

    async def greeted(self, task: Task) -> None:
        """Park the calling task until the peer's SETTINGS have come or the connection is lost."""
        self._greeters.append(task)
        try:
            while not (self.is_greeted or self.is_over):
                await park()
        finally:
            self._greeters.remove(task)

    def retire(self) -> None:
        """Take no new streams; close once the open ones have ended."""
        self._is_retired = True
        self.wake()

    def forget(self, stream: H2Upstream) -> None:
        """Take a finished stream out."""
        if self._streams.pop(stream.stream_id, None) is not None:
            self._idle_since = self._loop.now
            self._has_slot(self)
            self.wake()

    # --- H2Link ------------------------------------------------------------------------------------------------

    def handle(self, event: Event) -> None:
        """Note an event in the stream it is for."""
        if type(event) in _OF_STREAMS:
            stream = self._streams.get(event.stream_id)  # type: ignore[union-attr]  # these have one
            if stream is not None:
                stream.note(event)
            return
        if isinstance(event, ConnectionTerminated):
            return
        if isinstance(event, SettingsChanged | WindowOpened):
            self.is_greeted = True
            for task in self._greeters:
                task.wake()
            if isinstance(event, WindowOpened) and event.stream_id:
                stream = self._streams.get(event.stream_id)
                if stream is not None:
                    stream.task.wake()
            else:
                self.room_again()
                self._has_slot(self)
            return
        if isinstance(event, GoAwayReceived):
            self.wake()
            return
        stream = self._streams.get(getattr(event, "stream_id", 0))
        if stream is not None:
            stream.note(event)

    def room_again(self) -> None:
        """Wake every stream."""
        for stream in self._streams.values():
            stream.task.wake()

    def is_finished(self) -> bool:
        """Close when retired or told to go away, once no stream is left."""
        return not self._streams and (self._is_retired or self.engine.is_draining)

    def _deadline(self) -> tuple[float, Reason]:
        return (math.inf if self._streams else self._idle_since + self._idle_s), Reason.IDLE_TIMEOUT

    def lost(self, reason: Reason) -> None:
        """End every stream."""
        for task in self._greeters:
            task.wake()
        streams, self._streams = list(self._streams.values()), {}
        for stream in streams:
            stream.lose(reason)
        self._closed(self)


class H2Upstream:
    """One stream; see `exchange.Upstream`. `task` is woken by its events."""

    __slots__ = (
        "_buffer", "_connection", "_error", "_is_done", "_is_ended", "_is_tunnel", "_outbound", "has_received",
        "is_reused", "is_sent", "stream_id", "task",
    )  # fmt: skip

    def __init__(self, connection: H2Connection, stream_id: int, task: Task, *, is_reused: bool) -> None:
        self._connection = connection
        self._outbound = Outbound(connection.engine, stream_id)
        self._buffer: deque[UpstreamEvent | ResponseReceived] = deque()
        self._error: UpstreamError | None = None
        self._is_done = False
        self._is_ended = False
        self._is_tunnel = False
        self.stream_id = stream_id
        self.task = task
        self.is_reused = is_reused
        self.is_sent = False
        self.has_received = False

    # --- events ------------------------------------------------------------------------------------------------

    def note(self, event: Event) -> None:
        """Take one event of this stream."""
        buffer = self._buffer
        kind = type(event)
        if kind is DataReceived:
            buffer.append(event.data)  # type: ignore[union-attr]  # this one has them
            if event.end_stream:  # type: ignore[union-attr]
                self._is_ended = True
                buffer.append(END)
        elif isinstance(event, ResponseReceived):
            self.has_received = True
            buffer.append(event)
            if event.end_stream:
                self._is_ended = True
                buffer.append(END)
        elif isinstance(event, TrailersReceived):
            self._is_ended = True
            buffer.append(End(event.fields))
        elif isinstance(event, StreamEnded):
            self._is_ended = True
            buffer.append(END)
        elif isinstance(event, InformationalReceived):
            self.has_received = True
            buffer.append(Interim(status=event.status, fields=event.fields))
        elif isinstance(event, StreamReset) and not self._is_ended:
            # After the end a reset is how a server says that it needs no more of the request (RFC 9113 section 8.1).
            self._fail(event.message, event.reason, is_unprocessed=event.unprocessed)
        self.task.wake()

    def lose(self, reason: Reason) -> None:
        """Note that the connection is gone."""
        if not self._is_ended:
            self._fail("connection lost", Reason.UPSTREAM_RESET)
        self.task.wake()

    def _fail(self, said: str, reason: Reason, *, is_unprocessed: bool = False) -> None:
        if self._error is None:
            host, port = self._connection.peer
            self._error = UpstreamError(
                f"endpoint {host} port {port}: {said}",
                reason=reason,
                status_hint=502,
                is_unprocessed=is_unprocessed or not self.is_sent,
            )

    # --- the request -------------------------------------------------------------------------------------------

    def note_stall(self, seconds: float) -> None:
        """Do nothing: what comes at once is bounded by the window of the stream."""

    @property
    def is_writable(self) -> bool:
        """True if another piece may be queued."""
        return not (self._outbound.is_stuck or self._outbound.is_done or self._error or self._connection.is_congested)

    def send_head(self, request: UpstreamRequest) -> None:
        """Queue the request head; see `exchange.Upstream`."""
        connection = self._connection
        engine = connection.engine
        if connection.is_over or self._error is not None:
            raise self._error or self._lost()
        target = request.target
        fields: list[Field]
        if request.websocket_key is not None:
            if not engine.peer_allows_connect_protocol:
                host, port = connection.peer
                raise UpstreamError(
                    f"endpoint {host} port {port}: takes no WebSocket over HTTP/2 (extended CONNECT not advertised)",
                    reason=Reason.BAD_UPGRADE,
                    is_unprocessed=True,
                )
            self._is_tunnel = True
            fields = websocket.connect_fields(
                request.fields, scheme=connection.scheme, authority=request.authority, path=target
            )
        else:
            fields = [
                (b":method", request.method.encode("ascii")),
                (b":scheme", connection.scheme),
                (b":path", target),
                (b":authority", request.authority),
                *request.fields,
            ]
            if request.content_length is not None:
                fields.append((b"content-length", b"%d" % request.content_length))
        has_end = not (request.has_body or self._is_tunnel)
        engine.send_headers(self.stream_id, fields, has_end)
        self.is_sent = True
        if has_end:
            self._outbound.is_done = True

    # --- for the express lane ----------------------------------------------------------------------------------

    def send_whole(self, block: bytes, body: bytes, *, has_body: bool) -> bool:
        """Send a request whose head is encoded already and whose body is here whole.

        Returns:
            False if a window keeps some of the body back: `poll` sends it as the window opens.

        Raises:
            UpstreamError: The connection is lost.
        """
        connection = self._connection
        if connection.is_over or self._error is not None:
            raise self._error or self._lost()
        sent = connection.engine.send_request_block(self.stream_id, block, body, has_body=has_body)
        self.is_sent = True
        connection.wake()
        if not has_body or sent == len(body):
            self._outbound.is_done = True
            return True
        self._outbound.data(body[sent:])
        self._outbound.end(())
        return False

    @property
    def is_silent(self) -> bool:
        """True while nothing has come of the response and nothing has gone wrong."""
        return not self._buffer and self._error is None

    @property
    def may_be_whole_soon(self) -> bool:
        """True if a response has begun whose end may be among what the connection has not looked at yet."""
        return not (self._is_ended or self._error) and self._connection.has_unread

    def take_whole(self) -> tuple[ResponseReceived, bytes, FieldTuple] | None:
        """Return head, body and trailers if the whole response is here and is nothing special; else take nothing."""
        buffer = self._buffer
        if not self._is_ended or self._error is not None or len(buffer) > MOST_PARTS:
            return None
        head, last = buffer[0], buffer[-1]
        if not isinstance(head, ResponseReceived) or self._is_tunnel or not isinstance(last, End):
            return None
        if len(buffer) == 3 and type(buffer[1]) is bytes:
            return head, buffer[1], last.trailers
        parts = [part for part in buffer if type(part) is bytes]
        if len(parts) != len(buffer) - 2:
            return None
        return head, b"".join(parts), last.trailers

    # --- for the pipeline ----------------------------------------------------------------------------------------

    def _lost(self) -> UpstreamError:
        host, port = self._connection.peer
        return UpstreamError(
            f"endpoint {host} port {port}: connection lost",
            reason=Reason.UPSTREAM_RESET,
            is_unprocessed=not self.is_sent,
        )

    def send_data(self, data: bytes) -> None:
        """Queue body bytes."""
        self._outbound.data(data)

    def send_end(self, trailers: Sequence[Field] = ()) -> None:
        """Queue the end of the request."""
        self._outbound.end(trailers)

    def flush(self) -> None:
        """Hand what the window allows to the connection's task."""
        if not self._outbound.is_idle:
            self._outbound.push()
        if self._connection.engine.has_output:
            self._connection.wake()

    # --- the response ------------------------------------------------------------------------------------------

    def poll(self) -> UpstreamEvent | None:
        """Return what comes next of the response; see `exchange.Upstream`."""
        buffer = self._buffer
        if not buffer:
            if self._error is not None:
                raise self._error
            self.flush()
            return None
        event = buffer.popleft()
        if type(event) is bytes:
            self._connection.engine.acknowledge(self.stream_id, len(event))
        elif isinstance(event, ResponseReceived):
            is_switch = self._is_tunnel and event.status < 300
            return UpstreamHead(
                status=event.status,
                fields=event.fields,
                content_length=event.content_length,
                is_bodyless=event.end_stream and not is_switch,
                via=b"2",
                is_switch=is_switch,
            )
        return event

    # --- the end -----------------------------------------------------------------------------------------------

    def finish(self) -> None:
        """Free the stream; what is left of the request is of no use any more."""
        if self._is_done:
            return
        self._is_done = True
        self.flush()
        if not self._outbound.is_done:
            self._connection.engine.reset_stream(self.stream_id, ErrorCode.NO_ERROR)
        self._connection.forget(self)

    def rebind(self, task: Task) -> None:
        """Wake another task from now on."""
        self.task = task

    def cancel(self) -> None:
        """Reset the stream."""
        if self._is_done:
            return
        self._is_done = True
        self._connection.engine.reset_stream(self.stream_id, ErrorCode.CANCEL)
        self._connection.forget(self)
