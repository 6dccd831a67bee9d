"""A client's HTTP/2 connection: its own task reads and writes, each request is a task of its own."""

from __future__ import annotations

import functools
import math
from collections import deque
from collections.abc import Sequence

from datum_router.errors import LocalProtocolError
from datum_router.model.listener import Listener
from datum_router.reasons import Reason
from datum_router_proxy.answers import Answer, DateField
from datum_router_proxy.channel import Channel
from datum_router_proxy.exchange import ClientGone, Field, FieldTuple
from datum_router_proxy.express import Begun
from datum_router_proxy.flight import Flight
from datum_router_proxy.h2link import H2Link, Outbound
from datum_router_proxy.loop import Task
from datum_router_proxy.request import Template, from_h2
from datum_router_proxy.server.base import Server, client_hop
from datum_router_proxy.server.drain import NEWCOMER_S
from datum_router_proxy.wire import websocket
from datum_router_proxy.wire.http2 import (
    ConnectionTerminated,
    DataReceived,
    ErrorCode,
    Event,
    Http2Connection,
    Http2Limits,
    RequestReceived,
    RequestRejected,
    Role,
    StreamEnded,
    StreamReset,
    TrailersReceived,
    WindowOpened,
    codec_within,
)

_BODYLESS = frozenset((204, 304))
_CANCELLED = frozenset((Reason.DRAINING, Reason.POLICY_CHANGED))
_TIMEOUTS = frozenset((Reason.IDLE_TIMEOUT, Reason.WRITE_TIMEOUT))


@functools.lru_cache(maxsize=1024)
def _status_field(status: int) -> Field:
    return (b":status", b"%d" % status)


class H2Connection(H2Link):
    """One connection of a client."""

    __slots__ = (
        "_fresh", "_hop", "_idle_since", "_is_closing", "_last", "_last_event", "_listener", "_plane", "_stalled_at",
        "_streams",
    )  # fmt: skip

    def __init__(self, plane: Server, channel: Channel, listener: Listener) -> None:
        settings = plane.settings
        limits = Http2Limits(
            max_concurrent_streams=settings.max_concurrent_streams,
            stream_window_bytes=settings.stream_window_bytes,
            connection_window_bytes=settings.connection_window_bytes,
            serve_connect=listener.egress is not None,
        )
        super().__init__(
            plane.loop,
            channel,
            Http2Connection(Role.SERVER, limits, codec_within(limits, settings.hpack_codec, plane.h2_lines)),
            most_output=settings.connection_output_bytes,
        )
        self._plane = plane
        self._listener = listener
        self._streams: dict[int, H2Stream] = {}
        self._fresh: list[tuple[H2Stream, Template]] = []  # of the input at hand, not started yet
        self._idle_since = plane.loop.now
        self._stalled_at: float | None = None
        self._is_closing = False
        self._last: Template | None = None
        self._last_event: RequestReceived | None = None
        self._hop = client_hop(channel, listener, b"2")

    async def run(self, first: bytes) -> None:
        """Serve until the connection ends; `first` is what was read already."""
        if self._plane.is_draining:
            self.engine.begin_shutdown()
        await self.drive(first)

    @property
    def is_idle(self) -> bool:
        """True while no stream is open."""
        return not self._streams

    def rest(self) -> None:
        """Forget the last head while nothing is under way."""
        if not self._streams:
            self._last = self._last_event = None

    def begin_drain(self) -> None:
        """Announce the end (RFC 9113 section 6.8); streams that come meanwhile are served."""
        self.engine.begin_shutdown()
        self.wake()

    def finish_drain(self) -> None:
        """Refuse new streams; the connection closes after the last open one.

        Who has just connected is told of the end, and waited for: to be called until the connection has ended.
        """
        if self.engine.has_peer_streams or self._loop.now - self._idle_since >= NEWCOMER_S:
            self.engine.finish_shutdown()
        else:
            self.engine.begin_shutdown()
        self.wake()

    def depart(self, server: Server) -> None:
        """Have what is asked from now on served by `server`, and what has been asked but not begun."""
        self._plane = server
        for stream in self._streams.values():
            stream.depart(server)

    def cut(self) -> None:
        """End everything."""
        for stream in list(self._streams.values()):
            stream.leave(Reason.DRAINING)
        if self.task is not None:
            self.task.cancel(Reason.DRAINING)

    def forget(self, stream: H2Stream) -> None:
        """Take a finished stream out; its slot is free from now on (threat D1)."""
        self._streams.pop(stream.stream_id, None)
        self.engine.release(stream.stream_id)
        if not self._streams:
            self._idle_since = self._loop.now
        self.wake()

    # --- H2Link ------------------------------------------------------------------------------------------------

    def handle(self, event: Event) -> None:
        """Start a request, or note an event in the stream it is for."""
        kind = type(event)
        if kind is DataReceived or kind is StreamEnded:
            known = self._streams.get(event.stream_id)  # type: ignore[union-attr]  # these two have one
            if known is not None:
                known.note(event)
            return
        if isinstance(event, RequestReceived):
            template = self._template(event)
            stream = H2Stream(self, self._plane, event.stream_id, event, template.expects_continue)
            self._streams[event.stream_id] = stream
            self._fresh.append((stream, template))
            return
        if isinstance(event, WindowOpened):
            if not event.stream_id:
                self.room_again()
                return
        elif isinstance(event, RequestRejected):
            self._answer_rejected(event)
            return
        elif isinstance(event, ConnectionTerminated):
            if event.error_code:
                self._plane.rejected("h2", event.reason)
            return
        elif isinstance(event, StreamReset) and not event.remote:
            self._plane.rejected("h2", event.reason)
        known = self._streams.get(getattr(event, "stream_id", 0))
        if known is not None:
            known.note(event)

    def handled(self) -> None:
        """Start the requests that have come: by now those with a short body are whole."""
        fresh = self._fresh
        if not fresh:
            return
        self._fresh = []
        plane = self._plane
        for stream, template in fresh:
            # What has ended already is begun all the same, for its end to be counted where every end is.
            begun = None if stream.is_gone or self.is_over else plane.flights.launch(stream, template)
            if isinstance(begun, Flight):
                stream.task = begun.task
                continue
            stream.task = plane.loop.spawn(stream.run(template, begun), name="stream")
            if stream.is_gone:
                stream.task.cancel(stream.left)

    def _template(self, event: RequestReceived) -> Template:
        """Make a template of a head, or of the one before if only the target is another."""
        last, before = self._last, self._last_event
        if (
            last is not None
            and before is not None
            and event.end_stream is before.end_stream
            and event.protocol is None
            and event.fields == before.fields  # mostly the same object: then nothing is compared
            and event.method == before.method
            and event.authority == before.authority
            and event.scheme == before.scheme
        ):
            if event.path == before.path:
                return last
            template = last.retarget(event.path)
            if template is not None:
                self._last, self._last_event = template, event
                return template
        template = from_h2(event, self._hop, self._listener.name)
        if template.is_simple:
            self._last, self._last_event = template, event
        return template

    def _answer_rejected(self, event: RequestRejected) -> None:
        self._plane.rejected("h2", event.reason)
        body = f"{event.reason}: {event.message}\n".encode("latin-1", "replace")
        engine = self.engine
        fields = [
            _status_field(event.status),
            (b"content-type", b"text/plain; charset=utf-8"),
            (b"content-length", b"%d" % len(body)),
        ]
        engine.send_headers(event.stream_id, fields, event.is_head)
        if not event.is_head:
            if engine.sendable(event.stream_id) >= len(body):
                engine.send_data(event.stream_id, body, True)
            else:
                engine.reset_stream(event.stream_id, ErrorCode.NO_ERROR)
        engine.release(event.stream_id)

    def room_again(self) -> None:
        """Wake every stream."""
        for stream in self._streams.values():
            stream.wake()

    def is_finished(self) -> bool:
        """Close after a shutdown, once no stream is left."""
        return not self._streams and self.engine.is_drained

    def _deadline(self) -> tuple[float, Reason]:
        settings = self._plane.settings
        if self._channel.buffered:
            if self._stalled_at is None:
                self._stalled_at = self._loop.now
            since = max(self._stalled_at, self._channel.last_progress)
            return since + settings.write_timeout_s, Reason.WRITE_TIMEOUT
        self._stalled_at = None
        if self._streams:
            return math.inf, Reason.IDLE_TIMEOUT
        return self._idle_since + settings.keep_alive_timeout_s, Reason.IDLE_TIMEOUT

    def linger(self) -> None:
        """Close, but read a little longer; see `ProxySettings.linger_s`."""
        self._channel.linger(self._plane.settings.linger_bytes, self._plane.settings.linger_s)

    def lost(self, reason: Reason) -> None:
        """End every stream."""
        if reason in _TIMEOUTS:
            self._plane.rejected("h2", reason)
        for stream in list(self._streams.values()):
            stream.leave(Reason.DOWNSTREAM_RESET if reason is Reason.PEER_CLOSED else reason)


class H2Stream:
    """One request of a client; see `exchange.Downstream`."""

    __slots__ = (
        "_body_ended", "_chunks", "_connection", "_expects_continue", "_is_ended", "_is_gone", "_is_head", "_outbound",
        "_plane", "_progress", "_trailers", "has_started", "left", "protocol", "stream_id", "task",
    )  # fmt: skip

    def __init__(
        self, connection: H2Connection, plane: Server, stream_id: int, event: RequestReceived, expects_continue: bool
    ) -> None:
        self._connection = connection
        self._plane = plane
        self._outbound = Outbound(connection.engine, stream_id)
        self._chunks: deque[bytes] = deque()
        self._trailers: FieldTuple = ()
        self._expects_continue = expects_continue
        self._is_head = event.method == b"HEAD"
        self._is_ended = event.end_stream
        self._body_ended = event.end_stream
        self._is_gone = False
        self.left = Reason.DOWNSTREAM_RESET
        self._progress = plane.loop.now
        self.protocol = "h2"
        self.has_started = False
        self.stream_id = stream_id
        self.task: Task | None = None

    async def run(self, template: Template, begun: Begun | None = None) -> None:
        """Serve the request, perhaps from where it has begun, then stop what the client may still be sending."""
        try:
            await self._plane.serve(self, template, begun)
        finally:
            self.end()

    def end(self) -> None:
        """Take the stream out, the request being over; what the client may still be sending is stopped."""
        self._is_gone = True
        # RFC 9113 section 8.1: a complete answer, but the request is not: the rest is of no use.
        code = ErrorCode.NO_ERROR if self._outbound.is_done else ErrorCode.INTERNAL_ERROR
        self._connection.engine.reset_stream(self.stream_id, code)
        self._connection.forget(self)

    def depart(self, server: Server) -> None:
        """Be served by `server` unless that has begun."""
        self._plane = server

    def wake(self) -> None:
        """Let the task look again."""
        if self.task is not None:
            self.task.wake()

    def note(self, event: Event) -> None:
        """Take one event of this stream."""
        if isinstance(event, DataReceived):
            self._chunks.append(event.data)
            self._progress = self._plane.loop.now
            if event.end_stream:
                self._is_ended = True
        elif isinstance(event, StreamEnded):
            self._is_ended = True
        elif isinstance(event, TrailersReceived):
            self._trailers = event.fields
            self._is_ended = True
        elif isinstance(event, StreamReset):
            self.leave(Reason.DOWNSTREAM_RESET)
            return
        self.wake()

    def leave(self, reason: Reason) -> None:
        """Stop the request: the client is gone, or we cut it off."""
        if not self._is_gone:
            self._is_gone = True
            self.left = reason
            if self.task is not None:
                self.task.cancel(reason)

    # --- Downstream: the request --------------------------------------------------------------------------------

    @property
    def body_ended(self) -> bool:
        """True once the request has been read to its end."""
        return self._body_ended

    @property
    def trailers(self) -> FieldTuple:
        """The request's trailers."""
        return self._trailers

    @property
    def is_gone(self) -> bool:
        """True once the stream was reset or its connection lost."""
        return self._is_gone

    @property
    def last_progress(self) -> float:
        """When bytes of this stream last moved."""
        return self._progress

    def read_body(self) -> bytes | None:
        """Return the next piece of the body; see `exchange.Body`."""
        chunks = self._chunks
        if chunks:
            data = chunks.popleft()
            self._connection.engine.acknowledge(self.stream_id, len(data))
            if self._connection.engine.has_output:
                self._connection.wake()
            return data
        if self._is_ended:
            self._body_ended = True
            return b""
        if self._is_gone:
            raise ClientGone
        if self._expects_continue:
            self._expects_continue = False
            self.send_informational(100, ())
        return None

    # --- Downstream: the response -------------------------------------------------------------------------------

    @property
    def is_writable(self) -> bool:
        """True if another piece may be queued."""
        return not (self._outbound.is_stuck or self._connection.is_congested)

    @property
    def is_flushed(self) -> bool:
        """True once the windows have let everything pass to the connection."""
        return self._outbound.is_idle

    def watch(self) -> None:
        """Do nothing: `leave` cancels the task at any time."""

    def unwatch(self) -> None:
        """Do nothing."""

    def settle(self) -> None:
        """Do nothing: the engine has read the head."""

    @property
    def has_unread(self) -> bool:
        """True if more of the body may be there in the next round."""
        return not self._is_ended and self._connection.has_unread

    def whole_body(self) -> bytes | None:
        """Return the whole body if it has come, is short and has no trailers; it stays to be read all the same."""
        chunks = self._chunks
        if not self._is_ended or self._trailers or len(chunks) > 1:
            return None
        return chunks[0] if chunks else b""

    def send_answer(self, answer: Answer, date: DateField, body: bytes, trailers: bytes = b"") -> bool:
        """Send a whole response; see `exchange.Downstream`."""
        if self._connection.is_congested:
            return False
        block = answer.h2 if answer.has_date else answer.h2 + date.refresh(self._plane.loop.now).h2
        if not self._connection.engine.send_whole(self.stream_id, block, body, trailers):
            return False
        self.has_started = self._outbound.is_done = True
        return True

    def send_informational(self, status: int, fields: Sequence[Field]) -> None:
        """Queue a 1xx response."""
        if self._connection.engine.is_open(self.stream_id):
            self._connection.engine.send_headers(self.stream_id, [_status_field(status), *fields])
            self._connection.wake()

    def send_head(
        self,
        status: int,
        fields: Sequence[Field],
        *,
        content_length: int | None,
        is_bodyless: bool,
        close: bool = False,
    ) -> None:
        """Queue a final head; see `exchange.Downstream`."""
        engine = self._connection.engine
        if not engine.is_open(self.stream_id):
            raise ClientGone
        block = [_status_field(status), *fields]
        if content_length is not None and status != 204:
            block.append((b"content-length", b"%d" % content_length))
        elif is_bodyless and not self._is_head and status not in _BODYLESS:
            block.append((b"content-length", b"0"))
        engine.send_headers(self.stream_id, block, is_bodyless)
        self.has_started = True
        if is_bodyless:
            self._outbound.is_done = True

    def accept_tunnel(self, fields: Sequence[Field]) -> None:
        """Queue 200, which opens the tunnel (RFC 8441 section 5)."""
        engine = self._connection.engine
        if not engine.is_open(self.stream_id):
            raise ClientGone
        engine.send_headers(self.stream_id, [_status_field(200), *websocket.connect_response_fields(fields)])
        self.has_started = True
        self.protocol = "ws"

    def send_data(self, data: bytes) -> None:
        """Queue body bytes."""
        self._outbound.data(data)

    def send_end(self, trailers: Sequence[Field] = ()) -> None:
        """Queue the end of the response; half close a tunnel."""
        if not self._outbound.is_done:
            self._outbound.end(trailers)

    def flush(self) -> None:
        """Hand what the window allows to the connection's task."""
        if not self._outbound.is_idle:
            try:
                if self._outbound.push():
                    self._progress = self._plane.loop.now
            except LocalProtocolError:
                # More or less body than content-length stated: the client must not take it for complete.
                self.abort(Reason.UPSTREAM_PROTOCOL)
        if self._connection.engine.has_output:
            self._connection.wake()

    def abort(self, reason: Reason) -> None:
        """Reset the stream, so that the answer cannot be taken for complete."""
        self._outbound.is_done = True
        code = ErrorCode.CANCEL if reason in _CANCELLED else ErrorCode.INTERNAL_ERROR
        self._connection.engine.reset_stream(self.stream_id, code)
        self._connection.wake()
