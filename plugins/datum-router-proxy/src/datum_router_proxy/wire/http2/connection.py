"""The HTTP/2 engine: one connection, either role, no I/O (RFC 9113; RFC 8441 for extended CONNECT).

Use. Call `initiate()`, write `data_to_send()`. For each read call `receive_data(data, now)` and act on the events;
while `has_buffered`, give others a turn, then call `receive_data_more(now)` before reading again (one connection must
not hold the loop, and unread input must stay in the kernel). Then write `data_to_send()` once. `receive_data` never
raises for what a peer sends. Send methods raise LocalProtocolError when *we* break the protocol; a stream that
the peer has reset in the meantime counts as such, so ask `is_open(stream_id)` after anything that waits.

Server duties. After a StreamReset of a request that was reported, call `release(stream_id)` when its upstream work has
ended: until then it holds its concurrency slot (D1). Call `acknowledge` as body bytes are consumed.
"""

from __future__ import annotations

from collections.abc import Iterable

from datum_router.errors import LocalProtocolError, RemoteProtocolError
from datum_router.reasons import Reason

from ..hpack_codec import CODECS, Field, HeaderCodec, LineCache, make_codec
from . import frames as f
from .events import Event
from .fields import CHECKED_OUTGOING, are_valid_lines, content_length
from .frames import ErrorCode
from .limits import Http2Limits
from .receive import Receiver
from .state import ConnectionState, Role
from .stream import BODY, DONE, HEAD, NEXT, ClosedBy, Step, Stream, StreamState

_ENDS = f.END_HEADERS | f.END_STREAM
_NO_BODY_STATUS = (b"204", b"304")


def codec_within(limits: Http2Limits, name: str = CODECS[0], cache: LineCache | None = None) -> HeaderCodec:
    """Make the header codec of one connection; see `make_codec` for name and cache."""
    return make_codec(
        name,
        list_bytes=limits.header_list_bytes,
        max_fields=limits.max_fields,
        table_bytes=limits.header_table_bytes,
        cache=cache,
    )


class Http2Connection:
    """Run one HTTP/2 connection.

    Args:
        role: Which side we are.
        limits: Limits; the defaults suit a listener.
        codec: Header compression of this connection; None makes one within the limits.
    """

    __slots__ = ("_receiver", "_state")

    def __init__(self, role: Role, limits: Http2Limits | None = None, codec: HeaderCodec | None = None) -> None:
        limits = limits if limits is not None else Http2Limits()
        if codec is None:
            codec = codec_within(limits)
        self._state = ConnectionState(role, limits, codec)
        self._receiver = Receiver(self._state)

    # --- input ------------------------------------------------------------------------------------------

    def initiate(self) -> None:
        """Queue the preface (client), SETTINGS and the connection window; also done by the first `receive_data`."""
        self._state.start()

    def receive_data(self, data: bytes, now: float) -> list[Event]:
        """Parse what was read and return what it means, in order.

        Args:
            data: Bytes read; empty means that the peer closed its side.
            now: Monotonic seconds.
        """
        return self._receiver.feed(data, now)

    def receive_data_more(self, now: float) -> list[Event]:
        """Parse another round of what is buffered; call it while `has_buffered`."""
        return self._receiver.more(now)

    @property
    def has_buffered(self) -> bool:
        """Say whether complete frames wait because a round reached `frames_per_round`."""
        return self._receiver.has_more

    # --- output -----------------------------------------------------------------------------------------

    @property
    def has_output(self) -> bool:
        """Say whether `data_to_send` would return something."""
        return bool(self._state.out)

    @property
    def output_bytes(self) -> int:
        """Return how many bytes are queued; stop reading upstreams while it is large (D10)."""
        return self._state.out_bytes

    def data_to_send(self) -> bytes:
        """Return all queued output and forget it. Call it only when the bytes can be handed to the transport."""
        state = self._state
        out = state.out
        if not out:
            return b""
        data = out[0] if len(out) == 1 else b"".join(out)
        out.clear()
        state.out_bytes = 0
        state.control_queued = 0
        return data

    # --- state ------------------------------------------------------------------------------------------

    @property
    def open_streams(self) -> int:
        """Return the streams that count against the limit: open ones and reset ones not yet released (D1)."""
        return len(self._state.streams) + len(self._state.held)

    @property
    def has_peer_streams(self) -> bool:
        """Say whether the peer has ever opened a stream."""
        return self._state.peer_last_id > 0

    @property
    def is_terminated(self) -> bool:
        """Say whether ConnectionTerminated was reported."""
        return self._state.terminated

    @property
    def is_draining(self) -> bool:
        """Say whether either side sent GOAWAY."""
        return self._state.goaway_sent is not None or self._state.peer_goaway is not None

    @property
    def is_drained(self) -> bool:
        """Say whether shutdown is final and no stream is left: the connection can be closed."""
        state = self._state
        is_final = state.goaway_sent is not None and state.goaway_sent != f.MAX_STREAM_ID
        return (is_final or state.peer_goaway is not None) and not state.streams and not state.held

    @property
    def can_open(self) -> bool:
        """Say whether `open_stream` would succeed (client role)."""
        state = self._state
        return (
            not state.is_server
            and not state.terminated
            and state.peer_goaway is None
            and state.goaway_sent is None
            and state.next_own_id <= f.MAX_STREAM_ID
            and len(state.streams) + len(state.reserved) < state.peer.max_concurrent_streams
        )

    @property
    def peer_max_concurrent_streams(self) -> int:
        """Return how many streams the peer lets us open; 100 until it says (client role)."""
        return self._state.peer.max_concurrent_streams

    @property
    def peer_allows_connect_protocol(self) -> bool:
        """Say whether the peer takes extended CONNECT (RFC 8441 section 3)."""
        return self._state.peer.enable_connect_protocol

    def is_open(self, stream_id: int) -> bool:
        """Say whether we may still send on the stream."""
        stream = self._state.streams.get(stream_id)
        return stream is not None and stream.outbound is not DONE

    def stream_state(self, stream_id: int) -> StreamState:
        """Return the stream's state in the words of RFC 9113 section 5.1; unknown streams are CLOSED."""
        stream = self._state.streams.get(stream_id)
        return StreamState.CLOSED if stream is None else stream.state

    def sendable(self, stream_id: int) -> int:
        """Return how many body bytes both windows allow now (bytes; 0 on streams that are gone)."""
        state = self._state
        stream = state.streams.get(stream_id)
        if stream is None or stream.outbound is not BODY:
            return 0
        return max(0, min(stream.send_window, state.send_window))

    # --- sending messages -----------------------------------------------------------------------------------

    def open_stream(self) -> int:
        """Reserve the next stream id (client role); send its head before opening another, or in the same order.

        Raises:
            LocalProtocolError: `can_open` is False.
        """
        state = self._state
        if not self.can_open:
            raise LocalProtocolError("stream: none can be opened on this connection now", reason=Reason.STREAM_STATE)
        stream_id = state.next_own_id
        state.next_own_id += 2
        state.reserved.add(stream_id)
        return stream_id

    def send_headers(self, stream_id: int, fields: Iterable[Field], end_stream: bool = False) -> None:
        """Send a head: a request on a reserved stream (client), an interim or the final response (server).

        Pseudo-header fields come first. Every field is checked (A25): nothing that could split a message leaves.

        Raises:
            LocalProtocolError: The stream is gone or not at its head, or a field must not be sent.
        """
        state = self._state
        fields = fields if isinstance(fields, (list, tuple)) else list(fields)
        if state.is_server:
            stream = self._stream(stream_id)
            self._send_response(stream, fields, end_stream)
        else:
            self._send_request(stream_id, fields, end_stream)

    def _send_request(self, stream_id: int, fields: list[Field] | tuple[Field, ...], end_stream: bool) -> None:
        state = self._state
        if stream_id not in state.reserved or stream_id < state.own_last_id:
            raise LocalProtocolError(
                f"stream {stream_id}: not reserved, or a later one was used before it", reason=Reason.STREAM_STATE
            )
        pseudo = dict(field for field in fields if field[0][:1] == b":")
        is_tunnel = b":protocol" in pseudo
        if is_tunnel and not state.peer.enable_connect_protocol:
            raise LocalProtocolError("request: the peer does not take extended CONNECT", reason=Reason.BAD_UPGRADE)
        length = check_outgoing(fields, len(pseudo), "request")
        block = state.codec.encode(fields)
        state.reserved.discard(stream_id)
        state.own_last_id = stream_id
        stream = state.open(stream_id)
        stream.is_head_request = pseudo.get(b":method") == b"HEAD"
        stream.is_tunnel = is_tunnel
        stream.send_expected = length
        self._send_block(stream, block, Step.HEAD_END if end_stream else Step.HEAD)

    def _send_response(self, stream: Stream, fields: list[Field] | tuple[Field, ...], end_stream: bool) -> None:
        state = self._state
        if not fields or fields[0][0] != b":status" or len(fields[0][1]) != 3 or not fields[0][1].isdigit():
            raise LocalProtocolError("response: :status of three digits has to come first", reason=Reason.BAD_HEADER)
        status = fields[0][1]
        is_interim = status[:1] == b"1"
        if is_interim and (end_stream or status == b"101"):
            raise LocalProtocolError("response: 101, or 1xx with END_STREAM", reason=Reason.BAD_HEADER)
        step = Step.INTERIM if is_interim else Step.HEAD_END if end_stream else Step.HEAD
        if NEXT[stream.outbound][step] is None:
            raise LocalProtocolError(f"stream {stream.stream_id}: head was sent before", reason=Reason.STREAM_STATE)
        length = check_outgoing(fields, 1, "response")
        if not is_interim:
            # RFC 9110 section 6.4.1: these answers have no body, whatever their content-length says.
            has_no_body = stream.is_head_request or status in _NO_BODY_STATUS
            stream.send_expected = 0 if has_no_body else length
        self._send_block(stream, state.codec.encode(fields), step)

    def send_request_block(self, stream_id: int, block: bytes, data: bytes, *, has_body: bool) -> int:
        """Send a request whose head is encoded already, and as much of its whole body as goes at once (client role).

        Args:
            block: Made of checked fields without a dynamic table; neither HEAD nor extended CONNECT.
            data: The whole body; it ends the message if all of it goes.

        Returns:
            How many bytes of `data` were sent.

        Raises:
            LocalProtocolError: The stream was not reserved, or a later one was used before it.
        """
        state = self._state
        if stream_id not in state.reserved or stream_id < state.own_last_id:
            raise LocalProtocolError(
                f"stream {stream_id}: not reserved, or a later one was used before it", reason=Reason.STREAM_STATE
            )
        state.reserved.discard(stream_id)
        state.own_last_id = stream_id
        stream = state.open(stream_id)
        if state.has_table_update:
            block = state.table_update() + block
        size, length = len(data), len(block)
        largest = state.peer.max_frame_bytes
        if not has_body or length > largest or size > largest or size > stream.send_window or size > state.send_window:
            self._send_block(stream, block, Step.HEAD if has_body else Step.HEAD_END)
            if not has_body:
                return 0
            sent = min(size, self.sendable(stream_id))
            if sent or not size:
                self.send_data(stream_id, data[:sent], sent == size)
            return sent
        # Nearly always: both frames fit, so they leave as one piece.
        header = f.HEADER.pack
        state.out += (
            header(length >> 8, length & 0xFF, f.HEADERS, f.END_HEADERS, stream_id),
            block,
            header(size >> 8, size & 0xFF, f.DATA, f.END_STREAM, stream_id),
            data,
        )
        state.out_bytes += 18 + length + size
        stream.sent = size
        stream.send_window -= size
        state.send_window -= size
        guard = state.guard
        guard.payload += length + size
        guard.data_frames_sent += 1
        guard.sent()
        stream.outbound = DONE
        return size

    def send_whole(self, stream_id: int, block: bytes, data: bytes, trailers: bytes = b"") -> bool:
        """Send a final response as one HEADERS and one DATA frame, perhaps trailers; False where that is not possible.

        Windows, frame size or the stream's phase may forbid it; nothing is sent then. Both blocks were made of checked
        fields without a dynamic table; `block` states the length of `data` if it states one (server role).
        """
        state = self._state
        stream = state.streams.get(stream_id)
        size = len(data)
        largest = state.peer.max_frame_bytes
        if (
            stream is None
            or stream.outbound is not HEAD
            or stream.is_head_request
            or size > stream.send_window
            or size > state.send_window
            or size > largest
            or len(block) >= largest
            or len(trailers) > largest
        ):
            return False
        if state.has_table_update:
            block = state.table_update() + block
        length = len(block)
        header = f.HEADER.pack
        out = state.out
        flags = f.END_HEADERS if size or trailers else _ENDS
        out += (header(length >> 8, length & 0xFF, f.HEADERS, flags, stream_id), block)
        state.out_bytes += 9 + length
        guard = state.guard
        if size:
            out += (header(size >> 8, size & 0xFF, f.DATA, 0 if trailers else f.END_STREAM, stream_id), data)
            state.out_bytes += 9 + size
            stream.send_window -= size
            state.send_window -= size
            stream.sent = size
            guard.data_frames_sent += 1
        if trailers:
            length = len(trailers)
            out += (header(length >> 8, length & 0xFF, f.HEADERS, _ENDS, stream_id), trailers)
            state.out_bytes += 9 + length
        guard.payload += length + size
        guard.sent()
        stream.outbound = DONE
        if stream.inbound is DONE:
            state.finish_if_done(stream)
        else:
            self._finish_sending(stream)
        return True

    def send_data(self, stream_id: int, data: bytes, end_stream: bool = False) -> None:
        """Send body bytes, cut into the peer's frame size; `data` may be empty to end the message.

        Raises:
            LocalProtocolError: The stream is gone or not in its body, `data` is longer than `sendable(stream_id)`, or
                the body would not be as long as the content-length that was sent.
        """
        state = self._state
        stream = self._stream(stream_id)
        size = len(data)
        following = NEXT[stream.outbound][Step.DATA_END if end_stream else Step.DATA]
        if following is None:
            raise LocalProtocolError(
                f"stream {stream_id}: body in phase {stream.outbound.name}", reason=Reason.STREAM_STATE
            )
        if size and size > min(stream.send_window, state.send_window):
            raise LocalProtocolError(
                f"stream {stream_id}: {size} bytes, the windows allow {self.sendable(stream_id)}",
                reason=Reason.FLOW_CONTROL,
                error_code=ErrorCode.FLOW_CONTROL_ERROR,
            )
        self._check_length(stream, size, end_stream)
        stream.sent += size
        stream.send_window -= size
        state.send_window -= size
        guard = state.guard
        guard.payload += size
        end_flag = f.END_STREAM if end_stream else 0
        largest = state.peer.max_frame_bytes
        if size <= largest:
            if size or end_stream:
                state.queue(f.frame_header(size, f.DATA, end_flag, stream_id))
                if size:
                    state.queue(data)
                guard.data_frames_sent += 1
                guard.sent()
        else:
            view = memoryview(data)
            for start in range(0, size, largest):
                piece = view[start : start + largest]
                flag = end_flag if start + largest >= size else 0
                state.queue(f.frame_header(len(piece), f.DATA, flag, stream_id))
                state.queue(bytes(piece))
                guard.data_frames_sent += 1
                guard.sent()
        if end_stream:
            stream.outbound = following
            self._finish_sending(stream)

    def send_trailers(self, stream_id: int, fields: Iterable[Field]) -> None:
        """Send a trailer section, which ends the message.

        Raises:
            LocalProtocolError: As for `send_data`, or a field must not be sent there.
        """
        stream = self._stream(stream_id)
        fields = fields if isinstance(fields, (list, tuple)) else list(fields)
        if NEXT[stream.outbound][Step.TRAILERS] is None:
            raise LocalProtocolError(
                f"stream {stream_id}: trailers in phase {stream.outbound.name}", reason=Reason.STREAM_STATE
            )
        if check_outgoing(fields, 0, "trailers") >= 0:
            raise LocalProtocolError("trailers: content-length is not allowed there", reason=Reason.BAD_TRAILER)
        self._check_length(stream, 0, True)
        self._send_block(stream, self._state.codec.encode(fields), Step.TRAILERS)

    def _check_length(self, stream: Stream, size: int, end_stream: bool) -> None:
        if stream.send_expected < 0:
            return
        total = stream.sent + size
        if total > stream.send_expected or (end_stream and total != stream.send_expected):
            raise LocalProtocolError(
                f"stream {stream.stream_id}: {total} bytes of body, expected {stream.send_expected}",
                reason=Reason.BAD_LENGTH,
            )

    def _send_block(self, stream: Stream, block: bytes, step: Step) -> None:
        state = self._state
        following = NEXT[stream.outbound][step]
        assert following is not None
        end_stream = following is DONE
        state.queue(f.header_frames(stream.stream_id, block, end_stream, state.peer.max_frame_bytes))
        state.guard.payload += len(block)
        state.guard.sent()
        stream.outbound = following
        if end_stream:
            self._finish_sending(stream)

    def _finish_sending(self, stream: Stream) -> None:
        state = self._state
        if stream.is_discarding and stream.inbound is not DONE:
            # RFC 9113 section 8.1: the answer is complete, the rest of the request is of no use.
            state.queue(f.rst_stream_frame(stream.stream_id, ErrorCode.NO_ERROR))
            state.drop(stream, ClosedBy.OWN_RESET)
            return
        state.finish_if_done(stream)

    # --- the rest ---------------------------------------------------------------------------------------

    def reset_stream(self, stream_id: int, error_code: int = ErrorCode.CANCEL) -> None:
        """Reset a stream; nothing happens if it is gone. A server still has to `release` it."""
        state = self._state
        state.reserved.discard(stream_id)
        stream = state.streams.get(stream_id)
        if stream is None:
            return
        state.queue(f.rst_stream_frame(stream_id, error_code))
        state.drop(stream, ClosedBy.OWN_RESET)

    def release(self, stream_id: int) -> None:
        """Free the slot of a reset stream, its upstream work having ended (D1). Harmless at any time."""
        self._state.held.discard(stream_id)

    def acknowledge(self, stream_id: int, size: int) -> None:
        """Give back `size` consumed body bytes; window updates are coalesced. Nothing happens if the stream is gone.

        Raises:
            LocalProtocolError: More than was delivered.
        """
        state = self._state
        stream = state.streams.get(stream_id)
        if stream is None or not size:
            return
        if not 0 < size <= stream.unconsumed:
            raise LocalProtocolError(
                f"stream {stream_id}: {size} bytes acknowledged, {stream.unconsumed} are outstanding",
                reason=Reason.FLOW_CONTROL,
            )
        stream.unconsumed -= size
        state.credit_stream(stream, size)

    def ping(self) -> bytes:
        """Queue a PING; PingAck with the returned eight bytes follows. Keep few outstanding (16 at most).

        Raises:
            LocalProtocolError: 16 are unanswered.
        """
        state = self._state
        if len(state.pings) >= 16:
            raise LocalProtocolError("ping: 16 are unanswered", reason=Reason.INTERNAL)
        state.ping_count += 1
        payload = state.ping_count.to_bytes(8, "big")
        state.pings.append(payload)
        state.queue(f.frame(f.PING, 0, 0, payload))
        return payload

    def goaway(self, error_code: int = ErrorCode.NO_ERROR, last_stream_id: int | None = None) -> None:
        """Queue GOAWAY; streams the peer opens above `last_stream_id` (None: the last it opened) are ignored."""
        state = self._state
        state.queue_goaway(state.peer_last_id if last_stream_id is None else last_stream_id, error_code)

    def begin_shutdown(self) -> None:
        """Announce the end without refusing anything yet (RFC 9113 section 6.8): GOAWAY with 2^31-1."""
        if self._state.goaway_sent is None:
            self._state.queue_goaway(f.MAX_STREAM_ID, ErrorCode.NO_ERROR)

    def finish_shutdown(self) -> None:
        """Refuse new streams, at least one round trip after `begin_shutdown`; open ones go on to `is_drained`."""
        state = self._state
        if state.goaway_sent is None or state.goaway_sent > state.peer_last_id:
            state.queue_goaway(state.peer_last_id, ErrorCode.NO_ERROR)

    def _stream(self, stream_id: int) -> Stream:
        stream = self._state.streams.get(stream_id)
        if stream is None:
            raise LocalProtocolError(
                f"stream {stream_id}: not open", reason=Reason.STREAM_STATE, error_code=ErrorCode.STREAM_CLOSED
            )
        return stream


def check_outgoing(fields: list[Field] | tuple[Field, ...], pseudo: int, what: str) -> int:
    """Check fields before they leave; return the content length, or -1."""
    regular = fields[pseudo:]
    for name, value in fields[:pseudo]:
        if name[:1] != b":" or b"\r" in value or b"\n" in value or b"\0" in value:
            raise LocalProtocolError(f"{what}: bad pseudo-header field", reason=Reason.BAD_FILTER_OUTPUT)
    if not are_valid_lines(regular):
        raise LocalProtocolError(
            f"{what}: field name or value with forbidden bytes, or an upper-case name", reason=Reason.BAD_FILTER_OUTPUT
        )
    length = -1
    for name, value in regular:
        if name not in CHECKED_OUTGOING:
            continue
        if name != b"content-length":
            raise LocalProtocolError(
                f"{what}: connection-specific field {name.decode('ascii')}", reason=Reason.BAD_FILTER_OUTPUT
            )
        try:
            length = content_length(value, None if length < 0 else length)
        except RemoteProtocolError as error:
            raise LocalProtocolError(f"{what}: {error}", reason=Reason.BAD_FILTER_OUTPUT) from error
    return length
