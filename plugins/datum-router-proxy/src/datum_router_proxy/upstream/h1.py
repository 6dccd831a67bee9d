"""An HTTP/1.1 connection to an endpoint, one exchange at a time; the object is its own exchange."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

from datum_router.errors import RemoteProtocolError, UpstreamError
from datum_router.reasons import Reason
from datum_router_proxy.channel import BULK_BYTES, RECV_BYTES, Channel, ChannelError
from datum_router_proxy.exchange import END, End, Interim, UpstreamEvent, UpstreamHead, UpstreamRequest
from datum_router_proxy.loop import Task
from datum_router_proxy.request import Template
from datum_router_proxy.wire import websocket
from datum_router_proxy.wire.http1 import (
    FRAMING_CHUNKED,
    FRAMING_NONE,
    NEED_DATA,
    ConnectionClosed,
    DataReceived,
    Framing,
    FramingKind,
    H1ResponseHead,
    HeadCache,
    Http1Connection,
    Http1Limits,
    InformationalReceived,
    MessageComplete,
    ResponseReceived,
    Role,
)

Field = tuple[bytes, bytes]
Given = Callable[["H1Upstream"], None]

_VIA: Final = {0: b"1.0", 1: b"1.1"}
_NO_BODY: Final = FramingKind.NONE
_LENGTH: Final = FramingKind.LENGTH

BULK_CONNECTIONS: Final = 128
"""With more upstream connections than that nothing but short pieces is read: long ones can hold 24 MiB in all (E5)."""
FAST_CLIENT_READS: Final = 3
"""Short pieces in full before longer ones are read: a stalled HTTP/2 stream buffers two of them at most (D10)."""
SLOW_CLIENT_S: Final = 0.01
"""A client that takes nothing for longer is slow: what is read for it waits here, so less is read at once (E5)."""


class H1Upstream:
    """See `exchange.Upstream`.

    Args:
        given_back: Called with the connection when it can carry another exchange.
        closed: Called once it is closed.
        buffer_bytes: Queued before `is_writable` turns False.
        may_read_bulk: Asked before longer pieces are read: whether that many connections may hold one each.
    """

    __slots__ = (
        "_buffer_bytes", "_channel", "_closed", "_engine", "_full_reads", "_given_back", "_is_busy", "_is_closed",
        "_is_ended", "_is_tunnel", "_key", "_may_read_bulk", "_offered", "_out", "_out_bytes", "_read_bytes",
        "_write_failed", "has_received", "is_reused", "is_sent",
    )  # fmt: skip

    def __init__(
        self,
        channel: Channel,
        *,
        limits: Http1Limits,
        cache: HeadCache,
        given_back: Given,
        closed: Given,
        buffer_bytes: int,
        may_read_bulk: Callable[[], bool],
    ) -> None:
        self._channel = channel
        self._engine = Http1Connection(Role.CLIENT, limits, cache)
        self._given_back = given_back
        self._closed = closed
        self._buffer_bytes = buffer_bytes
        self._may_read_bulk = may_read_bulk
        self._is_closed = False
        self._is_busy = False
        self._out: list[bytes] = []
        self._reset()

    def _reset(self) -> None:
        self._out.clear()
        self._out_bytes = 0
        self._is_ended = False
        self._is_tunnel = False
        self._write_failed = False
        self._read_bytes = RECV_BYTES
        self._full_reads = 0
        self._key: bytes | None = None
        self._offered: tuple[Field, ...] = ()
        self.is_reused = False
        self.is_sent = False
        self.has_received = False

    def is_usable(self) -> bool:
        """Tell whether the idle connection is still good: open, and not a byte came while nobody asked."""
        channel = self._channel
        if channel.hangup or channel.is_closed:
            return False
        if not channel.readable:
            return True
        try:
            # TLS records without application data (session tickets) make a channel readable, and mean no harm.
            return channel.recv() is None
        except ChannelError:
            return False

    # --- for the express lane ----------------------------------------------------------------------------------

    @property
    def channel(self) -> Channel:
        """The connection itself; the express lane writes a request and reads a response past the engine."""
        return self._channel

    def take(self) -> None:
        """Begin an exchange past the engine; it ends by `release` or `adopt`."""
        self._is_busy = True

    def release(self) -> None:
        """Give the connection back after an exchange past the engine that was complete both ways."""
        self._is_busy = False
        channel = self._channel
        channel.task = channel.eager = None
        self._given_back(self)

    def adopt(self, template: Template, body: bytes, data: bytes | None, *, is_sent: bool) -> None:
        """Bring the engine to where it would be had it written the head of `template` and been given `data`.

        Args:
            body: The whole body of the request.
            data: What was received, None if nothing was.
            is_sent: False if the connection broke while the head was written.
        """
        self._reset()
        self._channel.eager = None
        self.is_reused = True
        self.is_sent = is_sent
        self._write_failed = not is_sent
        engine = self._engine
        head = template.head
        length = template.content_length
        engine.send_request(
            template.method,
            head.target.encode("ascii"),
            template.authority.encode("ascii"),
            (),
            framing=FRAMING_NONE if length is None else Framing(_LENGTH, length),
        )
        if body:
            engine.send_data(body)
        engine.send_end()
        if data is not None:
            self.has_received = bool(data)
            engine.receive_data(data)

    # --- for the pipeline ----------------------------------------------------------------------------------------

    def begin(self, task: Task, *, is_reused: bool) -> H1Upstream:
        """Start an exchange for `task`."""
        self._reset()
        self.is_reused = is_reused
        self._is_busy = True
        self._channel.task = task
        return self

    def rebind(self, task: Task) -> None:
        """Wake another task from now on."""
        self._channel.task = task

    # --- the request -------------------------------------------------------------------------------------------

    @property
    def is_writable(self) -> bool:
        """True if another piece may be queued; False for good once the upstream has stopped reading."""
        return not self._write_failed and self._out_bytes < self._buffer_bytes and not self._channel.buffered

    def send_head(self, request: UpstreamRequest) -> None:
        """Queue the request head; see `exchange.Upstream`."""
        key = request.websocket_key
        fields: Sequence[Field] = request.fields
        framing = FRAMING_NONE
        if key is not None:
            fields = websocket.upgrade_fields(fields, key=key)
            self._key = key
            self._offered = request.fields
        elif request.content_length is not None:
            framing = Framing(_LENGTH, request.content_length)
        elif request.has_body:
            framing = FRAMING_CHUNKED
        data = self._engine.send_request(
            request.method,
            request.target,
            request.authority,
            fields,
            framing=framing,
            upgrade=websocket.WEBSOCKET if key is not None else None,
        )
        self._queue(data)
        if key is not None:
            self._engine.send_end()  # the handshake has no body; what follows a 101 is no message of HTTP

    def send_data(self, data: bytes) -> None:
        """Queue body bytes."""
        if self._is_tunnel:
            self._queue(data)
            return
        for piece in self._engine.data_buffers(data):
            self._queue(piece)

    def send_end(self, trailers: Sequence[Field] = ()) -> None:
        """Queue the end of the request; in a tunnel, half close."""
        if self._is_tunnel:
            self.flush()
            if not self._write_failed:
                self._channel.finish_writes()
            self._write_failed = True
            return
        data = self._engine.send_end(trailers)
        if data:
            self._queue(data)

    def _queue(self, data: bytes) -> None:
        self._out.append(data)
        self._out_bytes += len(data)

    def flush(self) -> None:
        """Write what is queued; a failure only ends writing: an answer may be on its way."""
        out = self._out
        if not out:
            return
        if not self._write_failed:
            try:
                self._channel.write(*out)
                self.is_sent = True
            except ChannelError:
                self._write_failed = True
        out.clear()
        self._out_bytes = 0

    # --- the response ------------------------------------------------------------------------------------------

    def poll(self) -> UpstreamEvent | None:
        """Return what comes next of the response; see `exchange.Upstream`."""
        if self._out:
            self.flush()
        channel = self._channel
        if self._is_tunnel:
            return self._poll_tunnel()
        engine = self._engine
        try:
            event = engine.next_event()
            while event is NEED_DATA:
                if not channel.readable:
                    return None
                size = self._read_bytes
                data = channel.recv(size)
                if data is None:
                    return None
                if data:
                    self.has_received = True
                    if len(data) == size < BULK_BYTES:
                        self._full_reads += 1
                        # More than a downstream's buffer has come and we are still asked: the client takes it fast.
                        if self._full_reads >= FAST_CLIENT_READS:
                            self._read_bytes = size * 2 if self._may_read_bulk() else RECV_BYTES
                engine.receive_data(data)
                event = engine.next_event()
        except ChannelError as error:
            raise self._broken(str(error), _blame(error)) from error
        except RemoteProtocolError as error:
            reason = Reason.UPSTREAM_RESET if error.reason is Reason.TRUNCATED else error.reason
            raise self._broken(str(error), reason) from error
        if isinstance(event, DataReceived):
            return event.data
        if isinstance(event, MessageComplete):
            self._is_ended = True
            return End(event.trailers) if event.trailers else END
        if isinstance(event, ResponseReceived):
            return self._head(event.head)
        if isinstance(event, InformationalReceived):
            return Interim(status=event.head.status, fields=event.head.fields)
        if isinstance(event, ConnectionClosed):
            raise self._broken("closed before a response", Reason.UPSTREAM_RESET)
        raise AssertionError("upstream: polled after the end")

    def note_stall(self, seconds: float) -> None:
        """Read in small pieces again if the client is slow; see `exchange.Upstream`."""
        if seconds > SLOW_CLIENT_S:
            self._read_bytes = RECV_BYTES
            self._full_reads = 0

    def _head(self, head: H1ResponseHead) -> UpstreamHead:
        is_switch = False
        if head.status == 101:
            if self._key is None or not websocket.is_accepted(head, self._key, offered_protocols=self._offered):
                raise self._broken("accepted a WebSocket handshake wrongly", Reason.BAD_UPGRADE)
            self._is_tunnel = is_switch = True
        framing = head.framing
        is_bodyless = not is_switch and (framing.kind is _NO_BODY or (framing.kind is _LENGTH and not framing.length))
        length = framing.length if framing.kind is _LENGTH else head.content_length
        return UpstreamHead(
            status=head.status,
            fields=head.fields,
            content_length=length,
            is_bodyless=is_bodyless,
            via=_VIA[head.minor_version],
            nominations=head.nominations,
            is_switch=is_switch,
        )

    def _poll_tunnel(self) -> UpstreamEvent | None:
        if self._is_ended:
            return None
        first = self._engine.trailing_data()
        if first:
            return first
        if not self._channel.readable:
            return None
        try:
            data = self._channel.recv()
        except ChannelError as error:
            raise self._broken(str(error), _blame(error)) from error
        if data == b"":
            self._is_ended = True
            return END
        return data

    def _broken(self, said: str, reason: Reason) -> UpstreamError:
        host, port = self._channel.peer
        return UpstreamError(f"endpoint {host} port {port}: {said}", reason=reason, status_hint=502)

    # --- the end -----------------------------------------------------------------------------------------------

    def finish(self) -> None:
        """Give the connection back if both messages are complete and it persists, else close it."""
        if not self._is_busy:
            return
        self.flush()
        engine = self._engine
        channel = self._channel
        if engine.can_reuse and not self._write_failed and not channel.buffered and not channel.hangup:
            self._is_busy = False
            engine.start_next_cycle()
            channel.task = None
            self._given_back(self)
        else:
            self.close()

    def cancel(self) -> None:
        """Reset the connection."""
        if self._is_busy:
            self._is_busy = False
            self._channel.abort()
            self._note_closed()

    def close(self) -> None:
        """Close the connection."""
        self._is_busy = False
        self._channel.close()
        self._note_closed()

    def _note_closed(self) -> None:
        if not self._is_closed:
            self._is_closed = True
            self._closed(self)


def _blame(error: ChannelError) -> Reason:
    """Return why a connection broke, as far as more is known than that it did."""
    return error.reason if error.reason is Reason.UPSTREAM_TLS else Reason.UPSTREAM_RESET
