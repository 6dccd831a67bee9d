"""An HTTP/2 client (prior knowledge) on the `h2` library that says exactly how each stream ended.

`h2` gives a connection up on GOAWAY, but streams up to the last one named there go on (RFC 9113 section 6.8). So
GOAWAY frames are taken out of the bytes before `h2` sees them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import h2.config
import h2.connection
import h2.errors
import h2.events
import h2.exceptions
import h2.settings
import trio

from datum_soak.client_h1 import Answer, connect
from datum_soak.outcomes import Address, Cause, Failure

READ_BYTES = 65536
FRAME_HEAD_BYTES = 9
GOAWAY = 0x7
MAX_STREAMS = 100
Fields = Sequence[tuple[str, str]]


class NotProcessed(Exception):
    """The gateway says that it did nothing for this request: it may be sent again (RFC 9113 sections 6.8 and 8.7)."""


def split_goaway(buffer: bytearray) -> Iterator[tuple[bytes, tuple[int, int] | None]]:
    """Take whole frames off the buffer; yield the bytes for `h2`, and (last stream, error code) of each GOAWAY."""
    start = 0
    while len(buffer) - start >= FRAME_HEAD_BYTES:
        size = FRAME_HEAD_BYTES + int.from_bytes(buffer[start : start + 3], "big")
        if len(buffer) - start < size:
            break
        if buffer[start + 3] == GOAWAY:
            payload = buffer[start + FRAME_HEAD_BYTES : start + size]
            last = int.from_bytes(payload[:4], "big") & 0x7FFFFFFF
            yield bytes(buffer[:start]), (last, int.from_bytes(payload[4:8], "big"))
            del buffer[: start + size]
            start = 0
        else:
            start += size
    if start:
        yield bytes(buffer[:start]), None
        del buffer[:start]


class _Stream:
    __slots__ = ("body", "done", "failure", "fields", "has_answer_begun", "is_not_processed", "unsent")

    def __init__(self, body: bytes) -> None:
        self.unsent = bytearray(body)
        self.fields: dict[str, str] = {}
        self.body = bytearray()
        self.done = trio.Event()
        self.failure: Failure | None = None
        self.is_not_processed = False
        self.has_answer_begun = False


class Http2Connection:
    """One connection with many streams; `run` must be running.

    Attributes:
        is_open: Whether new streams may begin.
    """

    def __init__(self, stream: trio.SocketStream) -> None:
        self._stream = stream
        self._connection = h2.connection.H2Connection(h2.config.H2Configuration(header_encoding="utf-8"))
        self._connection.initiate_connection()
        self._connection.update_settings({h2.settings.SettingCodes.INITIAL_WINDOW_SIZE: 1 << 20})
        self._connection.increment_flow_control_window(1 << 24)
        self._streams: dict[int, _Stream] = {}
        self._lock = trio.Lock()
        self._buffer = bytearray()
        self.local: Address = stream.socket.getsockname()[:2]
        self.is_open = True
        self.exchanges = 0

    @property
    def has_room(self) -> bool:
        """Tell whether another stream may begin."""
        return self.is_open and len(self._streams) < MAX_STREAMS

    async def run(self) -> None:
        """Read until the connection ends; then every stream has ended."""
        failure = Failure(Cause.CLOSED)
        try:
            await self._flush()
            while data := await self._stream.receive_some(READ_BYTES):
                self._buffer += data
                for part, goaway in split_goaway(self._buffer):
                    if part:
                        for event in self._connection.receive_data(part):
                            self._take(event)
                    if goaway is not None:
                        self._going_away(*goaway)
                await self._flush()
                if not self.is_open and not self._streams:
                    break
        except trio.BrokenResourceError:
            failure = Failure(Cause.RESET)
        except trio.ClosedResourceError:
            failure = Failure(Cause.CLOSED)
        except h2.exceptions.ProtocolError as error:
            failure = Failure(Cause.PROTOCOL, f"{type(error).__name__}: {error}")
        finally:
            self.is_open = False
            for stream_id in list(self._streams):
                self._end(stream_id, failure)
            await trio.aclose_forcefully(self._stream)

    async def exchange(self, fields: Fields, body: bytes = b"", *, begun: list[bool] | None = None) -> Answer:
        """Send a request and return its answer, trailers among its fields.

        Args:
            begun: Gets an item once an answer has begun, also if the exchange fails.

        Raises:
            NotProcessed: It may be sent again, on another connection.
            Failure: With the cause.
        """
        connection = self._connection
        self.exchanges += 1
        async with self._lock:
            if not self.is_open:
                raise NotProcessed
            stream_id = connection.get_next_available_stream_id()
            stream = self._streams[stream_id] = _Stream(body)
            connection.send_headers(stream_id, fields, end_stream=not body)
            self._send_body(stream_id)
        try:
            await self._flush()
            await stream.done.wait()
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            await stream.done.wait()  # the reader finds out why, and what had come before
        except trio.Cancelled:
            self._streams.pop(stream_id, None)
            raise
        finally:
            if begun is not None and stream.has_answer_begun:
                begun.append(True)
        if stream.is_not_processed:
            raise NotProcessed
        if stream.failure is not None:
            raise stream.failure
        return Answer(status=int(stream.fields.get(":status", "0")), fields=stream.fields, body=bytes(stream.body))

    def close(self) -> None:
        """Close at once; streams under way fail."""
        self.is_open = False
        self._stream.socket.close()

    # --- what comes ------------------------------------------------------------------------------------------------

    def _take(self, event: h2.events.Event) -> None:
        match event:
            case h2.events.ResponseReceived() | h2.events.TrailersReceived():
                stream = self._streams.get(event.stream_id or 0)
                if stream is not None:
                    stream.has_answer_begun = True
                    stream.fields.update((str(name), str(value)) for name, value in event.headers or [])
            case h2.events.DataReceived():
                assert event.stream_id is not None
                if (stream := self._streams.get(event.stream_id)) is not None:
                    stream.body += event.data or b""
                self._connection.acknowledge_received_data(event.flow_controlled_length or 0, event.stream_id)
            case h2.events.StreamEnded():
                self._end(event.stream_id or 0, None)
            case h2.events.StreamReset():
                code = event.error_code or 0
                name = h2.errors.ErrorCodes(code).name if code in set(h2.errors.ErrorCodes) else str(code)
                if (stream := self._streams.get(event.stream_id or 0)) is not None:
                    stream.is_not_processed = code == h2.errors.ErrorCodes.REFUSED_STREAM
                self._end(event.stream_id or 0, Failure(Cause.STREAM_RESET, reason=name))
            case h2.events.WindowUpdated() | h2.events.RemoteSettingsChanged():
                for stream_id in list(self._streams):
                    self._send_body(stream_id)

    def _going_away(self, last: int, code: int) -> None:
        self.is_open = False
        for stream_id in [stream_id for stream_id in self._streams if stream_id > last]:
            self._streams[stream_id].is_not_processed = True
            self._end(stream_id, Failure(Cause.PROTOCOL, f"GOAWAY {code}"))

    def _end(self, stream_id: int, failure: Failure | None) -> None:
        stream = self._streams.pop(stream_id, None)
        if stream is None:
            return
        if failure is not None and failure.cause in (Cause.RESET, Cause.CLOSED) and stream.has_answer_begun:
            failure = Failure(Cause.CUT_BODY, str(failure.cause))
        stream.failure = failure
        stream.done.set()

    # --- what goes -------------------------------------------------------------------------------------------------

    def _send_body(self, stream_id: int) -> None:
        connection, rest = self._connection, self._streams[stream_id].unsent
        while rest:
            size = min(len(rest), connection.local_flow_control_window(stream_id), connection.max_outbound_frame_size)
            if size <= 0:
                return
            connection.send_data(stream_id, bytes(rest[:size]), end_stream=size == len(rest))
            del rest[:size]

    async def _flush(self) -> None:
        async with self._lock:
            # Shielded: half a frame would break the connection for the others.
            with trio.CancelScope(shield=True):
                if data := self._connection.data_to_send():
                    await self._stream.send_all(data)


class Http2Pool:
    """A few connections, used in turn; one that goes away is replaced when it is next needed."""

    def __init__(self, gateway: Address, size: int, nursery: trio.Nursery) -> None:
        self._gateway = gateway
        self._nursery = nursery
        self._slots: list[Http2Connection | None] = [None] * size
        self._locks = [trio.Lock() for _ in range(size)]
        self._turn = 0
        self.opened = 0

    async def take(self) -> Http2Connection:
        """Return a connection on which a stream may begin.

        Raises:
            Failure: No new connection could be made.
        """
        self._turn = (self._turn + 1) % len(self._slots)
        index = self._turn
        async with self._locks[index]:
            connection = self._slots[index]
            if connection is None or not connection.has_room:
                connection = Http2Connection(await connect(self._gateway))
                self.opened += 1
                self._slots[index] = connection
                self._nursery.start_soon(connection.run)
            return connection

    def close(self) -> None:
        """Close all connections."""
        for index, connection in enumerate(self._slots):
            if connection is not None:
                connection.close()
            self._slots[index] = None
