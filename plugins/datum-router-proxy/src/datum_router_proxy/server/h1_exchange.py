"""What a request sees of a client's HTTP/1.1 connection: its own body, and where its answer goes.

The connection itself, from one request to the next, is `h1.H1Connection`, of which this is the half that the pipeline
calls. It is a base class since a connection has one exchange at a time: a second object would be one more step for
each call.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from datum_router.errors import RemoteProtocolError
from datum_router.reasons import Reason
from datum_router_proxy.answers import Answer, DateField
from datum_router_proxy.channel import Channel, ChannelError
from datum_router_proxy.exchange import ClientGone, Field, FieldTuple
from datum_router_proxy.loop import Task
from datum_router_proxy.request import Template
from datum_router_proxy.server.base import Server, tunnel_data
from datum_router_proxy.server.known_head import KnownHead
from datum_router_proxy.wire import websocket
from datum_router_proxy.wire.http1 import (
    FRAMING_CHUNKED,
    FRAMING_NONE,
    NEED_DATA,
    DataReceived,
    Framing,
    FramingKind,
    Http1Connection,
    MessageComplete,
    Role,
)

_LENGTH: Final = FramingKind.LENGTH


class H1Exchange:
    """See `exchange.Downstream`."""

    __slots__ = (
        "_body_ended", "_channel", "_engine", "_expects_continue", "_is_closing", "_is_ending", "_is_tunnel", "_known",
        "_out", "_out_bytes", "_plane", "_task", "_trailers", "_unread", "_whole_body", "has_started", "protocol",
        "request_websocket_key",
    )  # fmt: skip

    def __init__(self, plane: Server, channel: Channel) -> None:
        self._plane = plane
        self._channel = channel
        self._engine = Http1Connection(Role.SERVER, plane.h1_limits, plane.h1_cache)
        self._known = KnownHead(plane.h1_limits)
        self._whole_body = b""  # read by the express lane, and to be read again
        self._unread = b""  # a head that was recognised by its bytes: the engine has not seen it
        self._task: Task | None = None
        self._out: list[bytes] = []
        self._out_bytes = 0
        self._trailers: FieldTuple = ()
        self._body_ended = self._expects_continue = self._is_tunnel = False
        self._is_closing = self._is_ending = False  # after this exchange: by itself; because the gateway wants it
        self.protocol = "h1"
        self.has_started = False
        self.request_websocket_key: bytes | None = None

    # --- the request --------------------------------------------------------------------------------------------

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
        """True once the client has closed or reset; a half close counts too: nearly always it has left."""
        return self._channel.is_closed or (self._channel.hangup and self._body_ended and not self._is_tunnel)

    def watch(self) -> None:
        """Let a client that hangs up, or has done so, cancel the task; see `exchange.Downstream`."""
        self._channel.watcher = self._task
        if self._channel.hangup and self._task is not None:
            self._task.cancel(Reason.DOWNSTREAM_RESET)

    def unwatch(self) -> None:
        """Let it only show in `is_gone`."""
        self._channel.watcher = None

    @property
    def last_progress(self) -> float:
        """When bytes last moved."""
        return self._channel.last_progress

    def settle(self) -> None:
        """Let the engine read a head that was recognised by its bytes."""
        data = self._unread
        if data:
            self._unread = b""
            self._engine.receive_data(data)
            self._engine.next_event()
            assert self._known.template is not None
            self._reset(self._known.template)

    def _reset(self, template: Template) -> None:
        self._trailers = ()
        self._body_ended = False
        self._whole_body = b""
        self._expects_continue = template.expects_continue
        self._is_tunnel = self.has_started = False
        self.protocol = "h1"
        self.request_websocket_key = template.websocket_key
        if not template.has_body:
            self._engine.next_event()  # the end of the message: nothing is on the wire for it
            self._body_ended = True

    def read_body(self) -> bytes | None:
        """Return the next piece of the body; see `exchange.Body`."""
        if self._is_tunnel:
            return self._read_tunnel()
        if self._body_ended:
            whole, self._whole_body = self._whole_body, b""
            return whole
        engine = self._engine
        channel = self._channel
        if self._expects_continue:
            self._expects_continue = False
            if not engine.buffered_bytes and not channel.readable:
                # We answer it ourselves, once an upstream is there to take the body (threat A15).
                self._queue(engine.send_informational(100))
                self.flush()
        try:
            event = engine.next_event()
            while event is NEED_DATA:
                if not channel.readable:
                    return None
                data = channel.recv()
                if data is None:
                    return None
                engine.receive_data(data)
                event = engine.next_event()
        except ChannelError as error:
            raise ClientGone from error
        except RemoteProtocolError as error:
            if error.reason is Reason.TRUNCATED:
                raise ClientGone from error
            raise
        if isinstance(event, DataReceived):
            return event.data
        if isinstance(event, MessageComplete):
            self._trailers = event.trailers
        self._body_ended = True
        return b""

    def _read_tunnel(self) -> bytes | None:
        if self._body_ended:
            return b""
        data = tunnel_data(self._engine, self._channel)
        self._body_ended = data == b""
        return data

    # --- the response -------------------------------------------------------------------------------------------

    @property
    def is_writable(self) -> bool:
        """True if another piece may be queued."""
        return self._out_bytes < self._plane.settings.buffer_bytes and not self._channel.buffered

    @property
    def is_flushed(self) -> bool:
        """True once the kernel has taken everything."""
        return not self._out and not self._channel.buffered

    @property
    def has_unread(self) -> bool:
        """Return False: what has come can be read at once."""
        return False

    def whole_body(self) -> bytes | None:
        """Return the whole body if it has come and its length was stated; see `exchange.Downstream`."""
        engine = self._engine
        body = engine.whole_body()
        if body is None and self._channel.readable:  # many clients send head and body by two calls
            try:
                data = self._channel.recv()
            except ChannelError as error:
                raise ClientGone from error
            if data is not None:
                engine.receive_data(data)
                body = engine.whole_body()
        if body is not None:
            self._whole_body = body
            self._body_ended = True
        return body

    def send_answer(self, answer: Answer, date: DateField, body: bytes, trailers: bytes = b"") -> bool:
        """Send a whole response past the engine; see `exchange.Downstream`."""
        if answer.length != len(body) or trailers:
            return False
        if self._plane.is_draining or self._is_ending or not (self._unread or self._engine.skip_response()):
            return False
        head = answer.h1 if answer.has_date else answer.h1 + date.refresh(self._plane.loop.now).h1
        try:
            self._channel.send(b"%b\r\n%b" % (head, body))
        except ChannelError as error:
            raise ClientGone from error
        self._whole_body = b""
        return True

    def send_informational(self, status: int, fields: Sequence[Field]) -> None:
        """Queue a 1xx response."""
        self._queue(self._engine.send_informational(status, fields))

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
        engine = self._engine
        if is_bodyless:
            framing = FRAMING_NONE
        elif content_length is not None:
            framing = Framing(_LENGTH, content_length)
        else:
            framing = FRAMING_CHUNKED
        close = close or self._plane.is_draining or self._is_ending or not self._body_ended
        data = engine.send_response(
            status, fields, framing=framing, content_length=content_length if is_bodyless else None, close=close
        )
        self.has_started = True
        self._queue(data)

    def accept_tunnel(self, fields: Sequence[Field]) -> None:
        """Queue 101; the connection carries the tunnel's bytes from then on."""
        key = self.request_websocket_key
        assert key is not None
        data = self._engine.send_switch(websocket.WEBSOCKET, websocket.switch_fields(fields, key=key))
        self.has_started = True
        self.protocol = "ws"
        self._is_tunnel = True
        self._is_closing = True
        self._body_ended = False
        self._queue(data)

    def send_data(self, data: bytes) -> None:
        """Queue body bytes."""
        if self._is_tunnel:
            self._queue(data)
            return
        for piece in self._engine.data_buffers(data):
            self._queue(piece)

    def send_end(self, trailers: Sequence[Field] = ()) -> None:
        """Queue the end of the response; half close a tunnel."""
        if self._is_tunnel:
            self.flush()
            self._channel.finish_writes()
            return
        data = self._engine.send_end(trailers)
        if data:
            self._queue(data)

    def _queue(self, data: bytes) -> None:
        self._out.append(data)
        self._out_bytes += len(data)

    def flush(self) -> None:
        """Write what is queued in one call."""
        out = self._out
        if not out:
            return
        try:
            self._channel.write(*out)
        except ChannelError:
            self._channel.close()
        out.clear()
        self._out_bytes = 0

    def abort(self, reason: Reason) -> None:
        """Cut the connection: without a last chunk or the stated length the answer cannot be taken for complete."""
        self._out.clear()
        self._out_bytes = 0
        self._is_closing = True
        self._channel.abort()
