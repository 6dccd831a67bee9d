"""The gRPC-like upstream: HTTP/2 with prior knowledge, made of the `h2` library."""

from __future__ import annotations

import h2.config
import h2.connection
import h2.events
import h2.exceptions
import trio

READ_BYTES = 65536
STREAM_MESSAGES = 5


def messages_of(data: bytes) -> list[bytes]:
    """Split length-prefixed gRPC messages (uncompressed).

    Raises:
        ValueError: A message is incomplete or compressed.
    """
    found = []
    while data:
        size = int.from_bytes(data[1:5], "big")
        if data[0] != 0 or len(data) < 5 + size:
            raise ValueError(f"incomplete message: {len(data)} bytes, expected {5 + size}")
        found.append(data[5 : 5 + size])
        data = data[5 + size :]
    return found


def frame_message(message: bytes) -> bytes:
    """Return a message with its gRPC prefix."""
    return b"\x00" + len(message).to_bytes(4, "big") + message


class Http2Server:
    """One connection: `/soak.Echo/Unary` echoes, `/soak.Echo/Stream` echoes five times."""

    def __init__(self, name: str, stream: trio.SocketStream) -> None:
        self.name = name
        self.stream = stream
        self._connection = h2.connection.H2Connection(
            h2.config.H2Configuration(client_side=False, header_encoding="utf-8")
        )
        self._requests: dict[int, tuple[dict[str, str], bytearray]] = {}
        self._unsent: dict[int, bytearray] = {}
        self._reading: trio.CancelScope | None = None
        self._is_closing = False

    def close_when_idle(self) -> None:
        """Say goodbye and close once no stream is open."""
        self._is_closing = True
        if self._reading is not None:
            self._reading.cancel()

    async def serve(self) -> None:
        """Serve until the router closes or we shall."""
        self._connection.initiate_connection()
        await self._flush()
        while True:
            data = b""
            with trio.CancelScope() as self._reading:
                data = await self.stream.receive_some(READ_BYTES)
            if not data:
                if self._is_closing and self._requests:
                    self._is_closing = False
                    continue
                self._connection.close_connection()
                await self._flush()
                return
            try:
                events = self._connection.receive_data(data)
            except h2.exceptions.ProtocolError:
                await self._flush()
                raise
            for event in events:
                self._take(event)
            await self._flush()

    def _take(self, event: h2.events.Event) -> None:
        match event:
            case h2.events.RequestReceived():
                assert event.stream_id is not None
                self._requests[event.stream_id] = (dict(event.headers or []), bytearray())  # type: ignore[arg-type] # text, by header_encoding
            case h2.events.DataReceived():
                assert event.stream_id is not None
                if event.stream_id in self._requests:
                    self._requests[event.stream_id][1].extend(event.data or b"")
                self._connection.acknowledge_received_data(event.flow_controlled_length or 0, event.stream_id)
            case h2.events.StreamEnded():
                assert event.stream_id is not None
                self._answer(event.stream_id)
            case h2.events.StreamReset():
                self._requests.pop(event.stream_id or 0, None)
                self._unsent.pop(event.stream_id or 0, None)
            case h2.events.WindowUpdated():
                for stream_id in list(self._unsent):
                    self._send(stream_id)

    def _answer(self, stream_id: int) -> None:
        fields, body = self._requests[stream_id]
        head = [
            (":status", "200"),
            ("content-type", "application/grpc"),
            ("x-soak-id", fields.get("x-soak-id", "")),
            ("x-backend", self.name),
        ]
        self._connection.send_headers(stream_id, head)
        (message,) = messages_of(bytes(body))
        times = STREAM_MESSAGES if fields[":path"].endswith("/Stream") else 1
        self._unsent[stream_id] = bytearray(frame_message(message) * times)
        self._send(stream_id)

    def _send(self, stream_id: int) -> None:
        connection, rest = self._connection, self._unsent[stream_id]
        while rest:
            size = min(len(rest), connection.local_flow_control_window(stream_id), connection.max_outbound_frame_size)
            if size <= 0:
                return
            connection.send_data(stream_id, bytes(rest[:size]))
            del rest[:size]
        connection.send_headers(stream_id, [("grpc-status", "0")], end_stream=True)
        del self._unsent[stream_id]
        del self._requests[stream_id]

    async def _flush(self) -> None:
        if data := self._connection.data_to_send():
            await self.stream.send_all(data)
