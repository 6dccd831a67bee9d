"""One HTTP/1.1 connection without I/O: bytes in, events out; intents in, bytes out. Both roles.

Theory of operation: received bytes wait in `_buffer` from `_position` on. `next_event` takes one event out of them, or
says NEED_DATA, or PAUSED when the current message is complete: what follows belongs to the next message and is not
looked at before `start_next_cycle` (threat A19). The buffer is a bytes object as long as pieces are consumed whole, so
that bodies pass through without a copy; only what comes in while much is left over goes into a bytearray.

An incomplete block (head or trailers) is watched by `scan.LineScan`, so that it is refused early and at linear cost.

This module does not know: routes, timeouts, sockets, how much body a route allows, what a field means beyond framing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import msgspec

from datum_router.errors import LocalProtocolError, RemoteProtocolError
from datum_router.reasons import Reason
from datum_router_proxy.wire import grammar
from datum_router_proxy.wire.http1 import reader, writer
from datum_router_proxy.wire.http1.cache import HeadCache
from datum_router_proxy.wire.http1.chunked import ChunkedDecoder, cut
from datum_router_proxy.wire.http1.events import (
    CONNECTION_CLOSED,
    FRAMING_NONE,
    FRAMING_UNTIL_CLOSE,
    MESSAGE_COMPLETE,
    NEED_DATA,
    PAUSED,
    DataReceived,
    Event,
    Field,
    Framing,
    FramingKind,
    InformationalReceived,
    MessageComplete,
    RequestReceived,
    ResponseReceived,
    Role,
    Signal,
)
from datum_router_proxy.wire.http1.limits import DEFAULT_LIMITS, Http1Limits
from datum_router_proxy.wire.http1.scan import LineScan, check_head_size, refused
from datum_router_proxy.wire.http1.sender import BodySender
from datum_router_proxy.wire.http1.state import State, Trigger, advance

# Bound once: looking an enum member up costs more than the comparison it is for.
_IDLE: Final = State.IDLE
_BODY: Final = State.BODY
_DONE: Final = State.DONE
_SWITCHED: Final = State.SWITCHED
_CLOSED: Final = State.CLOSED
_ERROR: Final = State.ERROR
_ON_HEAD: Final = Trigger.HEAD
_ON_END: Final = Trigger.END
_ON_NEXT: Final = Trigger.NEXT
_SERVER: Final = Role.SERVER
_NO_BODY: Final = FramingKind.NONE
_LENGTH: Final = FramingKind.LENGTH
_CHUNKED: Final = FramingKind.CHUNKED

_CR: Final = 13
_CONCAT_BELOW: Final = 1024
"""Left-over bytes up to this many are joined with new ones by copying; more go into a bytearray."""


class Http1Connection:
    """Speak HTTP/1.1 as server or client.

    After a `RemoteProtocolError` the connection reads nothing more; a server may still send one response, and
    then must close. After a `LocalProtocolError` the message under way is broken and the connection must be closed.

    Args:
        role: SERVER reads requests and writes responses, CLIENT the other way round.
        cache: Parsed heads by bytes; share it only among connections of the same role and limits.
    """

    __slots__ = (
        "_at_trailers", "_body", "_buffer", "_cache", "_chunks", "_client_http10", "_empty_lines", "_eof", "_error",
        "_informational", "_is_server", "_keep_alive", "_left", "_method", "_position", "_reading", "_receive_kind",
        "_scan", "_upgrade_asked", "_writing", "limits", "role",
    )  # fmt: skip

    def __init__(self, role: Role, limits: Http1Limits = DEFAULT_LIMITS, cache: HeadCache | None = None) -> None:
        self.role = role
        self.limits = limits
        self._is_server = role is _SERVER
        self._cache = cache
        self._buffer: bytes | bytearray = b""
        self._position = 0
        self._eof = False
        self._error: RemoteProtocolError | None = None
        self._reading: State = _IDLE
        self._writing: State = _IDLE
        self._body = BodySender()
        self._scan = LineScan()
        self._reset()

    def _reset(self) -> None:
        self._empty_lines = 0
        self._receive_kind = _NO_BODY
        self._left = 0
        self._chunks: ChunkedDecoder | None = None
        self._at_trailers = False
        self._method = ""
        self._keep_alive = True
        self._client_http10 = False
        self._informational = 0
        self._upgrade_asked = False

    # --- what the driver asks ----------------------------------------------------------------------------------------

    @property
    def reading(self) -> State:
        """Return the state of the half we read."""
        return self._reading

    @property
    def writing(self) -> State:
        """Return the state of the half we write."""
        return self._writing

    @property
    def wants_data(self) -> bool:
        """Return whether more bytes should be read from the peer now.

        False between messages once `max_read_ahead_bytes` are held, after end of file, and after an error.
        """
        if self._eof or self._reading is _ERROR or self._reading is _CLOSED:
            return False
        if self._reading is _IDLE or self._reading is _BODY:
            return True
        return len(self._buffer) - self._position < self.limits.max_read_ahead_bytes

    @property
    def buffered_bytes(self) -> int:
        """Return how many received bytes have not become events yet."""
        return len(self._buffer) - self._position

    @property
    def has_partial_head(self) -> bool:
        """Return whether a head has begun and is not complete (decides between 408 and a silent close)."""
        return self._reading is _IDLE and len(self._buffer) > self._position

    @property
    def is_fresh(self) -> bool:
        """Return whether nothing of an exchange has been read or written, not even an empty line before it."""
        return self._reading is _IDLE and not (self._eof or self._empty_lines)

    @property
    def can_reuse(self) -> bool:
        """Return whether both messages are complete and the connection may carry another exchange.

        A client also needs that the upstream sent nothing past the end of its response (threat A17).
        """
        if self._reading is not _DONE or self._writing is not _DONE or not self._keep_alive:
            return False
        return self._is_server or not (self._eof or len(self._buffer) > self._position)

    @property
    def must_close(self) -> bool:
        """Return whether no further exchange is possible, whatever happens to the current one."""
        if self._reading is _ERROR or self._reading is _CLOSED or self._reading is _SWITCHED:
            return True
        return not self._keep_alive or (self._eof and not self._is_server)

    def start_next_cycle(self) -> None:
        """Make ready for the next exchange; `next_event` then looks at what has been buffered.

        Raises:
            LocalProtocolError: `can_reuse` is False.
        """
        if not self.can_reuse:
            raise LocalProtocolError("http/1: connection cannot be reused", status_hint=500)
        self._reading = advance(self._reading, _ON_NEXT)
        self._writing = advance(self._writing, _ON_NEXT)
        self._reset()

    def whole_body(self) -> bytes | None:
        """Return what is left of a body of stated length if all of it was received, and complete the message."""
        position, left = self._position, self._left
        if self._reading is not _BODY or self._receive_kind is not _LENGTH or len(self._buffer) - position < left:
            return None
        self._left = 0
        data = self._consume(position + left)
        self._complete(MESSAGE_COMPLETE)
        return data

    def trailing_data(self) -> bytes:
        """Return and forget what was received past the current message: the first bytes of a tunnel."""
        return self._consume(len(self._buffer))

    # --- reading -----------------------------------------------------------------------------------------------------

    def receive_data(self, data: bytes) -> None:
        """Take bytes from the peer; `b""` means end of file. Call `next_event` until it says NEED_DATA or PAUSED."""
        if not data:
            self._eof = True
            return
        if self._reading is _ERROR:
            return
        buffer = self._buffer
        position = self._position
        left = len(buffer) - position
        if not left:
            self._buffer = data
        elif isinstance(buffer, bytearray):
            if position:
                del buffer[:position]
            buffer += data
        elif left <= _CONCAT_BELOW:
            self._buffer = buffer[position:] + data
        else:
            self._buffer = bytearray(buffer[position:])
            self._buffer += data
        if position:
            self._position = 0
            if left:
                self._scan.shift(position)
            else:
                self._scan.restart(0)

    def next_event(self) -> Event | Signal:
        """Return the next event, NEED_DATA, PAUSED (see `start_next_cycle`), or CONNECT (see `Http1Limits`).

        Raises:
            RemoteProtocolError: The peer broke the protocol; the same error again on later calls.
        """
        state = self._reading
        try:
            if state is _IDLE:
                return self._next_head()
            if state is _BODY:
                return self._next_body()
        except RemoteProtocolError as error:
            self._reading = advance(state, Trigger.FAIL)
            self._keep_alive = False
            self._buffer = b""
            self._position = 0
            self._error = error
            if not self._is_server:
                error.status_hint = 502
            raise
        if state is _CLOSED:
            return CONNECTION_CLOSED
        if self._error is not None:
            raise self._error
        return PAUSED

    def _next_head(self) -> Event | Signal:
        buffer = self._buffer
        position = self._position
        size = len(buffer)
        if position == size:
            return self._no_head_yet()
        if not self._is_server and self._writing is _IDLE:
            raise refused(Reason.UPSTREAM_PROTOCOL, "response without a request", 502)
        while buffer[position] == _CR and self._is_server:
            # RFC 9112 section 2.2: at least one empty line before a request line should be ignored
            if size - position == 1 and not self._eof:
                return NEED_DATA
            if buffer[position + 1 : position + 2] != b"\n":
                raise refused(Reason.BAD_LINE_END, "bare CR before a request line", 400)
            self._empty_lines += 1
            if self._empty_lines > self.limits.max_empty_lines:
                raise refused(Reason.BAD_REQUEST_LINE, "too many empty lines before a request line", 400)
            position += 2
            self._move_to(position)
            if position == size:
                return self._no_head_yet()
        scan, limits = self._scan, self.limits
        if limits.serve_connect and buffer.startswith(b"CONNECT ", position):
            return Signal.CONNECT
        found = buffer.find(b"\r\n\r\n", max(position, scan.scanned - 3))
        if found < 0:
            check = scan.check_request_head if self._is_server else scan.check_response_head
            check(buffer, position, limits)
            return self._need_data("head")
        end = found + 4
        check_head_size(end - position, limits)
        block = self._consume(end)
        cache = self._cache
        event = None if cache is None else cache.get(block)
        if event is None:
            if self._is_server:
                event = RequestReceived(reader.parse_request_head(block, limits))
            else:
                response = reader.parse_response_head(block, limits)
                interim = response.status < 200 and response.status != 101
                event = InformationalReceived(response) if interim else ResponseReceived(response)
            if cache is not None:
                cache.put(block, event)
        if isinstance(event, RequestReceived):
            head = event.head
            self._method = head.method
            self._client_http10 = head.minor_version == 0
            self._keep_alive = head.keep_alive
            self._upgrade_asked = bool(head.upgrade)
            self._begin_body(head.framing)
            return event
        if isinstance(event, ResponseReceived):
            return self._take_response(event)
        return self._take_informational(event)

    def _no_head_yet(self) -> Event | Signal:
        if not self._eof:
            return NEED_DATA
        self._reading = advance(self._reading, Trigger.EOF)
        self._keep_alive = False
        return CONNECTION_CLOSED

    def _take_response(self, event: ResponseReceived) -> ResponseReceived:
        head = event.head
        if head.status == 101:
            # threat A16: a switch nobody asked for, or before we have said all, would desynchronise the connection
            if not self._upgrade_asked or self._writing is not _DONE:
                raise refused(Reason.BAD_UPGRADE, "101 without a complete upgrade request", 502)
            self._reading = advance(self._reading, Trigger.SWITCH)
            self._writing = advance(self._writing, Trigger.SWITCH)
            self._keep_alive = False
            return event
        if self._method == "HEAD" and head.framing.kind is not _NO_BODY:
            head = msgspec.structs.replace(head, framing=FRAMING_NONE)
            event = ResponseReceived(head)
        if not head.keep_alive or head.framing.kind is FramingKind.UNTIL_CLOSE:
            self._keep_alive = False
        self._begin_body(head.framing)
        return event

    def _take_informational(self, event: InformationalReceived) -> InformationalReceived:
        self._informational += 1
        if self._informational > self.limits.max_informational:
            raise refused(Reason.TOO_MANY_INTERIM, f"more than {self.limits.max_informational} interim responses", 502)
        self._reading = advance(self._reading, Trigger.INTERIM)
        return event

    def _begin_body(self, framing: Framing) -> None:
        self._reading = advance(self._reading, _ON_HEAD)
        kind = framing.kind
        self._receive_kind = kind
        if kind is _LENGTH:
            self._left = framing.length
        elif kind is _CHUNKED:
            self._chunks = ChunkedDecoder(self.limits)

    def _next_body(self) -> Event | Signal:
        kind = self._receive_kind
        buffer = self._buffer
        position = self._position
        if kind is _NO_BODY:
            return self._complete(MESSAGE_COMPLETE)
        if kind is _CHUNKED:
            return self._next_chunks()
        available = len(buffer) - position
        if kind is _LENGTH:
            left = self._left
            if not left:
                return self._complete(MESSAGE_COMPLETE)
            available = min(available, left)
            self._left = left - available
        if available:
            return DataReceived(self._consume(position + available))
        if not self._eof:
            return NEED_DATA
        if kind is _LENGTH:
            raise refused(Reason.TRUNCATED, f"closed with {self._left} bytes of the body missing", 400)
        return self._complete(MESSAGE_COMPLETE)

    def _consume(self, end: int) -> bytes:
        """Return the buffered bytes up to offset `end` and move past them."""
        data = cut(self._buffer, self._position, end)
        self._move_to(end)
        return data

    def _move_to(self, position: int) -> None:
        if position == len(self._buffer):
            self._buffer = b""
            position = 0
        self._position = position
        self._scan.restart(position)

    def _next_chunks(self) -> Event | Signal:
        chunks = self._chunks
        assert chunks is not None
        if not self._at_trailers:
            data, position, self._at_trailers = chunks.decode(self._buffer, self._position)
            self._move_to(position)
            if data:
                return DataReceived(data)
            if not self._at_trailers:
                return self._need_data("chunked body")
        buffer = self._buffer
        position = self._position
        limits = self.limits
        if buffer[position : position + 2] == b"\r\n":
            self._move_to(position + 2)
            return self._complete(MESSAGE_COMPLETE)
        found = buffer.find(b"\r\n\r\n", max(position, self._scan.scanned - 3))
        size = (found + 4 if found >= 0 else len(buffer)) - position
        if size > limits.max_trailer_bytes:
            raise refused(
                Reason.BAD_TRAILER,
                f"trailer section over {limits.max_trailer_bytes} bytes",
                431,
            )
        if found < 0:
            if len(buffer) > position:
                self._scan.check_lines(buffer, limits.max_trailer_fields, limits.max_trailer_bytes)
            return self._need_data("trailer section")
        block = self._consume(found + 4)
        trailers = reader.parse_trailers(block, limits, 400 if self._is_server else 502)
        return self._complete(MessageComplete(trailers) if trailers else MESSAGE_COMPLETE)

    def _need_data(self, what: str) -> Signal:
        if self._eof:
            raise refused(Reason.TRUNCATED, f"closed inside a {what}", 400)
        return NEED_DATA

    def _complete(self, event: MessageComplete) -> MessageComplete:
        self._reading = advance(self._reading, _ON_END)
        self._chunks = None
        return event

    # --- writing: client role ----------------------------------------------------------------------------------------

    def send_request(
        self,
        method: str,
        target: bytes,
        host: bytes,
        fields: Sequence[Field],
        *,
        framing: Framing = FRAMING_NONE,
        upgrade: bytes | None = None,
        close: bool = False,
    ) -> bytes:
        """Return a request head; body bytes follow by `send_data` and `send_end` (always call `send_end`).

        Args:
            target: Origin-form, or `*` with OPTIONS.
            host: Canonical authority for Host.
            fields: Lower-case names, none of `writer.WRITTEN_FIELDS`; `te: trailers` is taken.
            upgrade: One protocol to ask for; the connection is a tunnel after a 101.
            close: State that this is the last request on the connection.

        Raises:
            LocalProtocolError: Wrong role or state, or something that must not reach the wire (threat A25).
        """
        if self._is_server:
            raise LocalProtocolError("http/1: a server sends no requests", status_hint=500)
        if framing.kind is FramingKind.UNTIL_CLOSE:
            raise LocalProtocolError("http/1: a request body cannot end by closing", status_hint=500)
        after = advance(self._writing, _ON_HEAD)
        head = writer.encode_request_head(method, target, host, fields, framing=framing, upgrade=upgrade, close=close)
        self._writing = after
        self._method = method
        self._upgrade_asked = upgrade is not None
        self._body.begin(framing, bodyless=False)
        if close:
            self._keep_alive = False
        return head

    # --- writing: server role ----------------------------------------------------------------------------------------

    def send_response(
        self,
        status: int,
        fields: Sequence[Field],
        *,
        framing: Framing = FRAMING_NONE,
        reason: bytes | None = None,
        content_length: int | None = None,
        close: bool = False,
    ) -> bytes:
        """Return a final response head; body bytes follow by `send_data` and `send_end` (always call `send_end`).

        The engine decides what the wire needs: no body after HEAD, 204 and 304 (`send_data` then yields nothing); for
        an HTTP/1.0 client chunks become "until close"; NONE with any other status is `content-length: 0`; Connection
        says close when the request, the framing, an earlier error or `close` asks for it.

        Args:
            reason: Phrase for an unregistered status; ignored for registered ones.
            content_length: What to state where no body follows (HEAD, 304).

        Raises:
            LocalProtocolError: Wrong role or state, or something that must not reach the wire (threat A25).
        """
        if not self._is_server:
            raise LocalProtocolError("http/1: a client sends no responses", status_hint=500)
        if status < 200:
            raise LocalProtocolError(f"http/1: {status} is not a final status", status_hint=500)
        after = advance(self._writing, _ON_HEAD)
        if self._client_http10 and framing.kind is _CHUNKED:
            framing = FRAMING_UNTIL_CLOSE
        bodyless = self._method == "HEAD" or status in (204, 304)
        last = (
            close
            or not self._keep_alive
            or (framing.kind is FramingKind.UNTIL_CLOSE and not bodyless)
            or self._reading is _IDLE
            or self._reading is _ERROR
            # bytes sent in the hope of a switch that is now refused must not be taken for a request
            or (self._upgrade_asked and len(self._buffer) > self._position)
        )
        extra = writer.response_framing_lines(status, framing, content_length, is_head=self._method == "HEAD")
        if last:
            extra += b"connection: close\r\n"
        elif self._client_http10:
            extra += b"connection: keep-alive\r\n"
        head = writer.encode_response_head(status, reason, fields, extra)
        self._writing = after
        self._body.begin(framing, bodyless=bodyless)
        if last:
            self._keep_alive = False
        return head

    def skip_response(self) -> bool:
        """Note that a whole response was written past the engine; False, and nothing noted, where it has a say.

        It has none if the request is complete and nothing was said yet, the connection persists, and neither HTTP/1.0
        nor an upgrade asks for another head.
        """
        if (
            self._reading is not _DONE
            or self._writing is not _IDLE
            or not self._keep_alive
            or self._client_http10
            or self._upgrade_asked
            or not self._is_server
        ):
            return False
        self._writing = _DONE
        return True

    def send_informational(self, status: int, fields: Sequence[Field] = ()) -> bytes:
        """Return a 1xx response (not 101); nothing for an HTTP/1.0 client, which cannot read it (RFC 9110 15.2)."""
        if not self._is_server or self._reading is _IDLE or not 100 <= status <= 199 or status == 101:
            raise LocalProtocolError(f"http/1: {status} is not an interim response of a server", status_hint=500)
        self._writing = advance(self._writing, Trigger.INTERIM)
        if self._client_http10:
            return b""
        return writer.encode_response_head(status, None, fields, b"")

    def send_switch(self, upgrade: bytes, fields: Sequence[Field]) -> bytes:
        """Return the 101 response; both halves are a tunnel then, `trailing_data` holds its first bytes.

        Raises:
            LocalProtocolError: The client did not ask for an upgrade or its message is not complete yet.
        """
        if not self._is_server or not self._upgrade_asked or self._writing is not _IDLE:
            raise LocalProtocolError("http/1: 101 without an upgrade request", status_hint=500)
        if not grammar.TOKEN.fullmatch(upgrade):
            raise LocalProtocolError("http/1: upgrade is not a token", status_hint=500)
        if self._reading is not _DONE:
            raise LocalProtocolError("http/1: 101 before the request has ended", status_hint=500)
        extra = b"connection: upgrade\r\nupgrade: " + upgrade + b"\r\n"
        head = writer.encode_response_head(101, None, fields, extra)
        self._reading = advance(self._reading, Trigger.SWITCH)
        self._writing = advance(self._writing, Trigger.SWITCH)
        self._keep_alive = False
        return head

    # --- writing: both roles -----------------------------------------------------------------------------------------

    def send_data(self, data: bytes) -> bytes:
        """Return body bytes for the wire: `data` itself, or one chunk. Nothing for empty data or a bodyless response.

        Raises:
            LocalProtocolError: No body is under way, or more bytes than Content-Length stated.
        """
        if self._writing is not _BODY:
            raise self._no_body_error()
        return self._body.encode(data)

    def data_buffers(self, data: bytes) -> tuple[bytes, ...]:
        """Return what `send_data` returns as buffers for a gathering write: `data` is never copied."""
        if self._writing is not _BODY:
            raise self._no_body_error()
        return self._body.buffers(data)

    def _no_body_error(self) -> LocalProtocolError:
        return LocalProtocolError(f"http/1: body bytes in state {self._writing.name.lower()}", status_hint=500)

    def send_end(self, trailers: Sequence[Field] = ()) -> bytes:
        """Return what ends the message; trailers are left out where chunks do not carry them.

        Raises:
            LocalProtocolError: No message is under way, or bytes are missing from what Content-Length stated: the
                connection must be closed, so that the peer sees the cut.
        """
        after = advance(self._writing, _ON_END)
        tail = self._body.end(trailers)
        self._writing = after
        return tail
