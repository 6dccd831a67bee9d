"""The receiving half: bytes in, events out (RFC 9113 sections 4 to 8).

Theory of operation. `Receiver.feed` parses whole frames in place, at most `frames_per_round` a call, and keeps what is
left. A fault of one stream queues RST_STREAM and reports StreamReset; a fault of the connection is raised inside as
RemoteProtocolError, caught in one place, turned into GOAWAY plus ConnectionTerminated, and ends parsing for good.
Nothing a peer sends makes `feed` raise. Every frame passes, in this order: size, header-block interleaving, first frame
is SETTINGS, its handler, overhead budget, control-queue bound.

Header blocks are decoded even for streams that are refused or gone, because the compression state is shared.
"""

from __future__ import annotations

from datum_router.errors import RemoteProtocolError
from datum_router.reasons import Reason

from ..hpack_codec import Field, HeaderListTooLarge
from . import frames as f
from .control import CONTROL_HANDLERS, fault
from .events import (
    ConnectionTerminated,
    DataReceived,
    Event,
    Fields,
    InformationalReceived,
    RequestReceived,
    RequestRejected,
    ResponseReceived,
    StreamEnded,
    TrailersReceived,
)
from .fields import RegularFields, malformed, parse_request, parse_response, parse_trailers
from .frames import ErrorCode
from .guard import calm
from .state import ConnectionState
from .stream import BODY, DONE, HEAD, NEXT, ClosedBy, Step, Stream

_DEBUG_BYTES = 96


def _closed(message: str) -> RemoteProtocolError:
    return fault(message, ErrorCode.STREAM_CLOSED, Reason.STREAM_STATE)


class Receiver:
    """Parse one direction of one connection."""

    __slots__ = (
        "_block",
        "_block_flags",
        "_block_frames",
        "_block_self_dependent",
        "_block_stream",
        "_eof",
        "_known",
        "_known_request",
        "_known_response",
        "_known_trailers",
        "_more",
        "_needed",
        "_now",
        "_pending",
        "_preface_seen",
        "_settings_seen",
        "_state",
    )

    def __init__(self, state: ConnectionState) -> None:
        self._state = state
        self._pending = bytearray()
        self._needed = 0
        self._more = False
        self._eof = False
        self._now = 0.0
        self._preface_seen = not state.is_server
        self._settings_seen = False
        self._block = bytearray()
        self._block_stream = 0  # not 0: only CONTINUATION on this stream may come
        self._block_flags = 0
        self._block_frames = 0
        self._block_self_dependent = False
        self._known = RegularFields()
        # What was last found, beside the list it was found in: the codec returns the same list for the same block.
        self._known_request: tuple[list[Field], RequestReceived] | None = None
        self._known_response: tuple[list[Field], tuple[int, Fields, int | None]] | None = None
        self._known_trailers: tuple[list[Field], Fields] | None = None

    @property
    def has_more(self) -> bool:
        """Say whether a complete frame waits, because the last round reached its limit."""
        return self._more

    def feed(self, data: bytes, now: float) -> list[Event]:
        """Take bytes (empty: end of input) and run one round."""
        if self._state.terminated:
            return []
        self._now = now
        if not data:
            self._eof = True
        elif self._pending:
            self._pending += data
            if not self._more and len(self._pending) < self._needed:
                return []
            data = b""
        return self._round(data)

    def more(self, now: float) -> list[Event]:
        """Run another round over what is buffered."""
        if self._state.terminated:
            return []
        self._now = now
        return self._round(b"")

    # --- one round ------------------------------------------------------------------------------------

    def _round(self, data: bytes) -> list[Event]:
        events: list[Event] = []
        if self._pending:
            data = bytes(self._pending)
            self._pending.clear()
        try:
            position = self._parse(data, events)
        except RemoteProtocolError as error:
            self._terminate(error, events)
            return events
        if position < len(data):
            self._pending += data[position:] if position else data
        if self._eof and not self._more:
            self._end_of_input(events)
        return events

    def _parse(self, buf: bytes, events: list[Event]) -> int:
        state = self._state
        state.start()
        position, end = 0, len(buf)
        self._more = False
        if not self._preface_seen:
            if not f.PREFACE.startswith(buf[: len(f.PREFACE)]):
                raise fault("connection: does not begin with the HTTP/2 preface", reason=Reason.BAD_PREFACE)
            if end < len(f.PREFACE):
                self._needed = 0  # every byte counts: a wrong one must be refused at once
                return 0
            self._preface_seen = True
            position = len(f.PREFACE)
        unpack = f.HEADER.unpack_from
        max_frame = state.max_frame_accepted()
        guard = state.guard
        left = state.limits.frames_per_round
        overhead_base = state.limits.overhead_base_bytes
        while True:
            if end - position < 9:
                self._needed = 9
                return position
            high, low, kind, flags, stream_id = unpack(buf, position)
            length = high << 8 | low
            stream_id &= 0x7FFFFFFF
            if length > max_frame:
                raise fault(f"frame: {length} bytes, at most {max_frame}", ErrorCode.FRAME_SIZE_ERROR)
            start = position + 9
            stop = start + length
            if stop > end:
                self._needed = 9 + length
                return position
            if left == 0:
                self._more = True
                return position
            left -= 1
            position = stop
            guard.overhead += 9
            if self._block_stream and (kind != f.CONTINUATION or stream_id != self._block_stream):
                raise fault(f"frame type {kind} on stream {stream_id} inside a header block")
            if not self._settings_seen:
                if kind != f.SETTINGS or flags & f.ACK:
                    raise fault("connection: the first frame is not SETTINGS", reason=Reason.BAD_PREFACE)
                self._settings_seen = True
            if kind == f.DATA:
                self._on_data(buf, start, stop, flags, stream_id, events)
            elif kind == f.HEADERS:
                self._on_headers(buf, start, stop, flags, stream_id, events)
            else:
                guard.overhead += length
                handler = CONTROL_HANDLERS.get(kind)
                if handler is not None:
                    handler(state, buf[start:stop], flags, stream_id, self._now, events)
                elif kind == f.CONTINUATION:
                    self._on_continuation(buf[start:stop], flags, stream_id, events)
                else:
                    guard.unknown_frames += 1  # RFC 9113 section 5.5: ignored
            if guard.overhead > overhead_base:
                guard.check_overhead()
            if state.control_queued:
                state.check_control_queue()

    def _terminate(self, error: RemoteProtocolError, events: list[Event]) -> None:
        state = self._state
        state.queue_goaway(state.peer_last_id, error.error_code, str(error).encode("ascii", "replace")[:_DEBUG_BYTES])
        self._stop(ConnectionTerminated(error.error_code, error.reason, str(error)), events)

    def _end_of_input(self, events: list[Event]) -> None:
        cut = bool(self._pending or self._block_stream or not self._settings_seen)
        reason = Reason.TRUNCATED if cut or self._state.streams else Reason.PEER_CLOSED
        what = "inside a frame or header block" if cut else f"with {len(self._state.streams)} streams open"
        self._stop(ConnectionTerminated(ErrorCode.NO_ERROR, reason, f"connection: peer closed {what}"), events)

    def _stop(self, event: ConnectionTerminated, events: list[Event]) -> None:
        state = self._state
        state.terminated = True
        state.streams.clear()
        state.held.clear()
        self._pending.clear()
        self._block.clear()
        self._more = False
        events.append(event)

    # --- DATA (RFC 9113 section 6.1) ---------------------------------------------------------------------

    # Both hot handlers take the frame's place in the buffer instead of a frame object.
    def _on_data(self, buf: bytes, start: int, stop: int, flags: int, stream_id: int, events: list[Event]) -> None:
        state = self._state
        length = stop - start
        stream = state.streams.get(stream_id)
        if (
            stream is not None
            and stream.inbound is BODY
            and 0 < length <= stream.recv.available
            and length <= state.recv.available
            and stream.expected < 0
            and not (flags & f.PADDED or stream.is_discarding or stream.no_inbound_body)
        ):
            # Nearly every frame of gRPC: nothing below can be the case.
            state.recv.available -= length
            stream.recv.available -= length
            stream.received += length
            stream.unconsumed += length
            guard = state.guard
            guard.empty_run = 0
            guard.payload += length
            has_end = flags & f.END_STREAM == 1
            events.append(DataReceived(stream_id, buf[start:stop], length, has_end))
            if has_end:
                stream.inbound = DONE
                if stream.outbound is DONE:
                    state.finish_if_done(stream)
            return
        if flags & f.PADDED:
            if not length:
                raise fault("DATA: padded, but empty", ErrorCode.FRAME_SIZE_ERROR)
            padding = buf[start]
            if padding >= length:
                raise fault(f"DATA: {padding} bytes of padding in {length}")
            data = buf[start + 1 : stop - padding]
        else:
            data = buf[start:stop]
        if stream is None and (stream_id == 0 or state.is_idle(stream_id)):
            raise fault(f"DATA on stream {stream_id}, which is not open", reason=Reason.STREAM_STATE)
        if length > state.recv.available:
            raise fault(
                f"DATA: {length} bytes, the connection window has {state.recv.available}",
                ErrorCode.FLOW_CONTROL_ERROR,
                Reason.FLOW_CONTROL,
            )
        state.recv.available -= length
        size = len(data)
        if size:
            state.guard.empty_run = 0
        elif not flags & f.END_STREAM:
            state.guard.empty()
        if stream is None:
            state.guard.overhead += length
            state.credit(length)
            self._late(stream_id, "DATA")
            return
        state.guard.payload += size
        state.guard.overhead += length - size
        error = self._data_fault(stream, length, size, flags)
        if error is not None:
            state.credit(length)
            state.fail_stream(stream, error, self._now, events)
            return
        stream.recv.available -= length
        stream.received += size
        if stream.is_discarding:
            state.credit_stream(stream, length)
        else:
            if length > size:
                state.credit_stream(stream, length - size)
            if size:
                stream.unconsumed += size
                events.append(DataReceived(stream_id, data, length, bool(flags & f.END_STREAM)))
            elif flags & f.END_STREAM:
                events.append(StreamEnded(stream_id))
        if flags & f.END_STREAM:
            self._end_message(stream)

    def _data_fault(self, stream: Stream, length: int, size: int, flags: int) -> RemoteProtocolError | None:
        step = Step.DATA_END if flags & f.END_STREAM else Step.DATA
        if NEXT[stream.inbound][step] is None:
            if stream.inbound is DONE:
                return _closed(f"DATA on stream {stream.stream_id} after END_STREAM")
            return malformed("response: DATA before the head", Reason.STREAM_STATE)
        if length > stream.recv.available:
            return fault(
                f"DATA: {length} bytes, the stream's window has {stream.recv.available}",
                ErrorCode.FLOW_CONTROL_ERROR,
                Reason.FLOW_CONTROL,
            )
        if size and stream.no_inbound_body:
            return malformed("response: body where none is allowed", Reason.BAD_LENGTH)
        if stream.expected >= 0:
            total = stream.received + size
            if total > stream.expected or (flags & f.END_STREAM and total != stream.expected):
                return malformed(f"body: {total} bytes, content-length says {stream.expected}", Reason.BAD_LENGTH)
        return None

    def _end_message(self, stream: Stream) -> None:
        stream.inbound = DONE
        if stream.outbound is DONE:
            self._state.finish_if_done(stream)

    def _late(self, stream_id: int, what: str) -> None:
        """Judge DATA or HEADERS on a stream that is closed (RFC 9113 section 5.1, "closed")."""
        state = self._state
        how = state.closed.get(stream_id)
        if how is ClosedBy.OWN_RESET:
            return  # it was on its way when our RST_STREAM left
        if how is ClosedBy.BOTH_ENDED:
            raise _closed(f"{what} on stream {stream_id} after END_STREAM")
        # The peer reset it, or it closed too long ago to tell: answer, and charge it (D2).
        state.queue_control(f.rst_stream_frame(stream_id, ErrorCode.STREAM_CLOSED))
        state.guard.reset(self._now)

    # --- HEADERS and CONTINUATION (RFC 9113 sections 6.2 and 6.10) -----------------------------------------

    def _on_headers(self, buf: bytes, start: int, stop: int, flags: int, stream_id: int, events: list[Event]) -> None:
        guard = self._state.guard
        length = stop - start
        if stream_id == 0:
            raise fault("HEADERS on stream 0")
        if flags & f.PADDED:
            if not length:
                raise fault("HEADERS: padded, but empty", ErrorCode.FRAME_SIZE_ERROR)
            padding = buf[start]
            start += 1
            stop -= padding
        self_dependent = False
        if flags & f.HAS_PRIORITY:
            if stop - start < 5 and length < 5 + (1 if flags & f.PADDED else 0):
                raise fault("HEADERS: priority fields are cut", ErrorCode.FRAME_SIZE_ERROR)
            # RFC 9113 section 5.3.2 deprecates priorities; RFC 7540 section 5.3.1 made depending on oneself an
            # error, and no honest peer does it.
            self_dependent = int.from_bytes(buf[start : start + 4], "big") & 0x7FFFFFFF == stream_id
            start += 5
        if stop < start:
            raise fault("HEADERS: more padding than payload")
        size = stop - start
        guard.overhead += length - size
        guard.payload += size
        if size:
            guard.empty_run = 0
        elif not flags & f.END_STREAM:
            guard.empty()
        if flags & f.END_HEADERS:
            self._on_block(stream_id, buf[start:stop], bool(flags & f.END_STREAM), self_dependent, events)
            return
        self._block += buf[start:stop]
        self._block_stream = stream_id
        self._block_flags = flags
        self._block_frames = 0
        self._block_self_dependent = self_dependent
        self._check_block_size()

    def _on_continuation(self, payload: bytes, flags: int, stream_id: int, events: list[Event]) -> None:
        if not self._block_stream:
            raise fault(f"CONTINUATION on stream {stream_id} without a header block", reason=Reason.STREAM_STATE)
        guard = self._state.guard
        limits = self._state.limits
        guard.overhead -= len(payload)
        guard.payload += len(payload)
        self._block_frames += 1
        if self._block_frames > limits.continuation_frames:
            raise calm(f"header block: more than {limits.continuation_frames} CONTINUATION frames")
        if payload:
            guard.empty_run = 0
        elif not flags & f.END_HEADERS:
            guard.empty()
        self._block += payload
        self._check_block_size()
        if flags & f.END_HEADERS:
            block = bytes(self._block)
            self._block.clear()
            self._block_stream = 0
            end_stream = bool(self._block_flags & f.END_STREAM)
            self._on_block(stream_id, block, end_stream, self._block_self_dependent, events)

    def _check_block_size(self) -> None:
        if len(self._block) > self._state.limits.header_block_bytes:
            raise calm(f"header block: more than {self._state.limits.header_block_bytes} compressed bytes")

    def _on_block(
        self, stream_id: int, block: bytes, end_stream: bool, self_dependent: bool, events: list[Event]
    ) -> None:
        state = self._state
        if len(block) > state.limits.header_block_bytes:
            raise calm(f"header block: more than {state.limits.header_block_bytes} compressed bytes")
        stream = state.streams.get(stream_id)
        if stream is None and (state.is_own(stream_id) if state.is_server else state.is_idle(stream_id)):
            raise fault(f"HEADERS on stream {stream_id}, which the peer may not open", reason=Reason.STREAM_STATE)
        fields: list[Field] | HeaderListTooLarge
        try:
            fields = state.codec.decode(block)
        except HeaderListTooLarge as error:
            fields = error
        if stream is None:
            if not state.is_server or stream_id <= state.peer_last_id:
                if state.is_server and stream_id not in state.closed:
                    raise fault(f"HEADERS: stream {stream_id} is not above the last one", reason=Reason.STREAM_STATE)
                self._late(stream_id, "HEADERS")
                return
            self._on_request(stream_id, fields, end_stream, self_dependent, events)
            return
        broken = self._on_known_stream(stream, fields, end_stream, self_dependent, events)
        if broken is not None:
            state.fail_stream(stream, broken, self._now, events)

    def _on_request(
        self,
        stream_id: int,
        fields: list[Field] | HeaderListTooLarge,
        end_stream: bool,
        self_dependent: bool,
        events: list[Event],
    ) -> None:
        state = self._state
        limits = state.limits
        state.peer_last_id = stream_id
        if state.goaway_sent is not None and stream_id > state.goaway_sent:
            state.remember(stream_id, ClosedBy.OWN_RESET)  # RFC 9113 section 6.8: ignored, the peer knows
            return
        if len(state.streams) + len(state.held) >= limits.max_concurrent_streams:
            full = fault(
                f"stream: {limits.max_concurrent_streams} are open", ErrorCode.REFUSED_STREAM, Reason.TOO_MANY_STREAMS
            )
            state.refuse_stream(stream_id, full, self._now, events)
            state.guard.refuse()
            return
        try:
            if self_dependent:
                raise fault(f"HEADERS: stream {stream_id} depends on itself")
            if isinstance(fields, HeaderListTooLarge):
                raise fields
            known = self._known_request
            if known is not None and fields is known[0] and end_stream is known[1].end_stream:
                request = known[1].on(stream_id)
            else:
                request = parse_request(
                    stream_id,
                    fields,
                    end_stream,
                    path_bytes=limits.path_bytes,
                    allow_protocol=limits.enable_connect_protocol,
                    allow_connect=limits.serve_connect,
                    known=self._known,
                )
                self._known_request = (fields, request)
        except RemoteProtocolError as error:
            if error.error_code:
                state.refuse_stream(stream_id, error, self._now, events)
                return
            stream = state.open(stream_id)
            stream.inbound = DONE if end_stream else BODY
            stream.is_discarding = True
            is_head = isinstance(fields, list) and (b":method", b"HEAD") in fields
            stream.is_head_request = is_head
            events.append(RequestRejected(stream_id, error.status_hint, error.reason, str(error), is_head))
            return
        stream = state.open(stream_id)
        stream.inbound = DONE if end_stream else BODY
        stream.is_head_request = request.method == b"HEAD"
        stream.is_tunnel = request.protocol is not None
        if request.content_length is not None:
            stream.expected = request.content_length
        events.append(request)

    def _on_known_stream(
        self,
        stream: Stream,
        fields: list[Field] | HeaderListTooLarge,
        end_stream: bool,
        self_dependent: bool,
        events: list[Event],
    ) -> RemoteProtocolError | None:
        if stream.inbound is DONE:
            return _closed(f"HEADERS on stream {stream.stream_id} after END_STREAM")
        if self_dependent:
            return fault(f"HEADERS: stream {stream.stream_id} depends on itself")
        if isinstance(fields, HeaderListTooLarge):
            return fault(str(fields), ErrorCode.ENHANCE_YOUR_CALM, Reason.HEAD_TOO_LARGE)
        try:
            if stream.inbound is HEAD:
                self._on_response(stream, fields, end_stream, events)
            else:
                self._on_trailers(stream, fields, end_stream, events)
        except RemoteProtocolError as error:
            return error
        return None

    def _on_response(self, stream: Stream, fields: list[Field], end_stream: bool, events: list[Event]) -> None:
        known = self._known_response
        if known is not None and fields is known[0]:
            status, lines, length = known[1]
        else:
            status, lines, length = parsed = parse_response(fields)
            self._known_response = (fields, parsed)
        if status < 200:
            stream.interim += 1
            if end_stream or status == 101:
                raise malformed("response: 101, or an interim response that ends the stream", Reason.BAD_STATUS_LINE)
            if stream.interim > self._state.limits.interim_responses:
                raise RemoteProtocolError(
                    f"response: more than {self._state.limits.interim_responses} interim responses",
                    reason=Reason.TOO_MANY_INTERIM,
                    error_code=ErrorCode.ENHANCE_YOUR_CALM,
                )
            events.append(InformationalReceived(stream.stream_id, status, lines))
            return
        if stream.is_tunnel and status < 300:
            length = None  # RFC 9110 section 9.3.6: ignored in a successful answer to CONNECT
        elif stream.is_head_request or status in (204, 304):
            stream.no_inbound_body = True
        elif length is not None:
            stream.expected = length
            if end_stream and length:
                raise malformed(f"response: content-length {length}, but no body follows", Reason.BAD_LENGTH)
        events.append(ResponseReceived(stream.stream_id, status, lines, length, end_stream))
        stream.inbound = DONE if end_stream else BODY
        if end_stream:
            self._state.finish_if_done(stream)

    def _on_trailers(self, stream: Stream, fields: list[Field], end_stream: bool, events: list[Event]) -> None:
        if not end_stream:
            raise malformed("trailers: HEADERS after the head without END_STREAM", Reason.STREAM_STATE)
        known = self._known_trailers
        if known is not None and fields is known[0]:
            lines = known[1]
        else:
            lines = parse_trailers(fields)
            self._known_trailers = (fields, lines)
        if 0 <= stream.expected != stream.received and not stream.is_discarding:
            raise malformed(f"body: {stream.received} bytes, content-length says {stream.expected}", Reason.BAD_LENGTH)
        if not stream.is_discarding:
            events.append(TrailersReceived(stream.stream_id, lines))
        self._end_message(stream)
