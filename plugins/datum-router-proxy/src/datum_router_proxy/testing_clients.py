"""Clients for tests of the data plane, made of h11 and h2: nothing here uses our own engines."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field

import h2.config
import h2.connection
import h2.events
import h2.exceptions
import h11
import trio

Field = tuple[bytes, bytes]


class H2Peer:
    def __init__(self, stream: trio.abc.Stream, *, client_side: bool) -> None:
        self.stream = stream
        self.connection = h2.connection.H2Connection(
            h2.config.H2Configuration(client_side=client_side, header_encoding=None)
        )
        self.windows = trio.Event()
        self._lock = trio.Lock()

    async def flush(self) -> None:
        async with self._lock:
            data = self.connection.data_to_send()
            if data:
                await self.stream.send_all(data)

    async def send(self, stream_id: int, data: bytes, *, end: bool = False) -> None:
        while data:
            room = min(
                self.connection.local_flow_control_window(stream_id), self.connection.max_outbound_frame_size, len(data)
            )
            if room <= 0:
                await self.windows.wait()
                continue
            self.connection.send_data(stream_id, data[:room], end_stream=end and room == len(data))
            data = data[room:]
            await self.flush()

    def opened(self) -> None:
        self.windows.set()
        self.windows = trio.Event()


@dataclass
class Answer:
    """What a client got. `is_cut` is True if the response had no clean end."""

    status: int = 0
    headers: list[Field] = field(default_factory=list)
    body: bytes = b""
    trailers: list[Field] = field(default_factory=list)
    interim: list[int] = field(default_factory=list)
    is_cut: bool = False

    def header(self, name: bytes) -> bytes | None:
        """Return a field's value."""
        return next((value for key, value in self.headers if key == name), None)


class H1Client:
    """One HTTP/1.1 connection."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self.stream = stream
        self.connection = h11.Connection(h11.CLIENT, max_incomplete_event_size=200_000)

    async def send(
        self, method: str, path: str, headers: Sequence[Field] = (), body: bytes | None = None, *,
        is_chunked: bool = False, trailers: Sequence[Field] = (), end: bool = True,
    ) -> None:  # fmt: skip
        """Send a request, or its head and what is given of its body."""
        fields = [(b"host", b"shop.example"), *headers]
        if is_chunked:
            fields.append((b"transfer-encoding", b"chunked"))
        elif body is not None and not any(name == b"content-length" for name, _ in fields):
            fields.append((b"content-length", b"%d" % len(body)))
        await self._send(h11.Request(method=method, target=path, headers=fields))
        if body:
            for start in range(0, len(body), 16384):
                await self._send(h11.Data(data=body[start : start + 16384]))
        if end:
            await self._send(h11.EndOfMessage(headers=list(trailers)))

    async def _send(self, event: h11.Event) -> None:
        data = self.connection.send(event)
        if data:
            await self.stream.send_all(data)

    async def receive(self) -> Answer:
        """Read one response to its end."""
        answer = Answer()
        parts = []
        while True:
            try:
                event = self.connection.next_event()
                if event is h11.NEED_DATA:
                    self.connection.receive_data(await self.stream.receive_some(65536))
                    continue
            except (h11.RemoteProtocolError, trio.BrokenResourceError):
                answer.is_cut = True
                break
            if isinstance(event, h11.InformationalResponse):
                answer.interim.append(event.status_code)
            elif isinstance(event, h11.Response):
                answer.status = event.status_code
                answer.headers = [(bytes(name), bytes(value)) for name, value in event.headers]
            elif isinstance(event, h11.Data):
                parts.append(bytes(event.data))
            elif isinstance(event, h11.EndOfMessage):
                answer.trailers = [(bytes(name), bytes(value)) for name, value in event.headers]
                break
            else:
                answer.is_cut = answer.status == 0
                break
        answer.body = b"".join(parts)
        if self.connection.our_state is h11.DONE and self.connection.their_state is h11.DONE:
            self.connection.start_next_cycle()
        return answer

    async def request(self, method: str, path: str, headers: Sequence[Field] = (), body: bytes | None = None, *,
                      is_chunked: bool = False, trailers: Sequence[Field] = ()) -> Answer:  # fmt: skip
        """Send a request and read its response."""
        await self.send(method, path, headers, body, is_chunked=is_chunked, trailers=trailers)
        return await self.receive()


class H2Client(H2Peer):
    """One HTTP/2 connection; `pump` runs in the background."""

    def __init__(self, stream: trio.abc.Stream) -> None:
        super().__init__(stream, client_side=True)
        self.answers: dict[int, Answer] = {}
        self.ended: dict[int, trio.Event] = {}
        self.resets: dict[int, int] = {}
        self.goaway: list[int] = []
        self.settings = trio.Event()
        self.closed = trio.Event()
        self.auto_acknowledge = True
        self.changed = trio.Event()

    async def pump(self) -> None:
        """Read until the end."""
        self.connection.initiate_connection()
        await self.flush()
        try:
            while data := await self.stream.receive_some(65536):
                for event in self.connection.receive_data(data):
                    self._take(event)
                await self.flush()
                self.changed.set()
                self.changed = trio.Event()
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass
        self.closed.set()
        for stream_id, ended in self.ended.items():
            if not ended.is_set():
                self.answers[stream_id].is_cut = True
                ended.set()

    def _take(self, event: h2.events.Event) -> None:
        if isinstance(event, h2.events.ResponseReceived):
            answer = self.answers[event.stream_id]
            answer.headers = [item for item in event.headers if item[0] != b":status"]
            answer.status = int(dict(event.headers)[b":status"])
        elif isinstance(event, h2.events.InformationalResponseReceived):
            self.answers[event.stream_id].interim.append(int(dict(event.headers)[b":status"]))
        elif isinstance(event, h2.events.DataReceived):
            self.answers[event.stream_id].body += event.data
            if self.auto_acknowledge:
                self.connection.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
        elif isinstance(event, h2.events.TrailersReceived):
            self.answers[event.stream_id].trailers = list(event.headers)
        elif isinstance(event, h2.events.StreamEnded):
            self.ended[event.stream_id].set()
        elif isinstance(event, h2.events.StreamReset):
            self.resets[event.stream_id] = int(event.error_code)
            if not self.ended[event.stream_id].is_set():
                self.answers[event.stream_id].is_cut = True
                self.ended[event.stream_id].set()
        elif isinstance(event, h2.events.ConnectionTerminated):
            self.goaway.append(event.last_stream_id or 0)
        elif isinstance(event, h2.events.RemoteSettingsChanged):
            self.settings.set()
            self.opened()
        elif isinstance(event, h2.events.WindowUpdated):
            self.opened()

    async def open(self, method: str, path: str, headers: Sequence[Field] = (), *, end: bool,
                   pseudo: Sequence[Field] = ()) -> int:  # fmt: skip
        """Send a request head."""
        stream_id = self.connection.get_next_available_stream_id()
        self.answers[stream_id] = Answer()
        self.ended[stream_id] = trio.Event()
        fields = [
            (b":method", method.encode()), (b":scheme", b"http"), (b":path", path.encode()),
            (b":authority", b"shop.example"), *pseudo, *headers,
        ]  # fmt: skip
        self.connection.send_headers(stream_id, fields, end_stream=end)
        await self.flush()
        return stream_id

    async def receive(self, stream_id: int) -> Answer:
        """Wait for the end of a response."""
        await self.ended[stream_id].wait()
        return self.answers[stream_id]

    async def until(self, predicate: Callable[[], bool]) -> None:
        """Return once `predicate` holds; asked after each piece of input."""
        with trio.fail_after(5):
            while not predicate():
                await self.changed.wait()

    async def request(self, method: str, path: str, headers: Sequence[Field] = (), body: bytes | None = None, *,
                      is_chunked: bool = False, trailers: Sequence[Field] = ()) -> Answer:  # fmt: skip
        """Send a request and wait for its response."""
        fields = list(headers)
        if body is not None and not is_chunked:
            fields.append((b"content-length", b"%d" % len(body)))
        stream_id = await self.open(method, path, fields, end=body is None)
        if body is not None:
            with suppress(h2.exceptions.StreamClosedError):  # answered early: the rest is not wanted
                if body:
                    await self.send(stream_id, body)
                if trailers:
                    self.connection.send_headers(stream_id, list(trailers), end_stream=True)
                else:
                    self.connection.end_stream(stream_id)
                await self.flush()
        return await self.receive(stream_id)


async def read_all(stream: trio.abc.Stream) -> bytes:
    """Return everything up to the end of a stream, and close it."""
    got = b""
    try:
        while data := await stream.receive_some(65536):
            got += data
    finally:
        await trio.aclose_forcefully(stream)
    return got


@asynccontextmanager
async def client(port: int, protocol: str) -> AsyncIterator[H1Client | H2Client]:
    """Connect to the gateway with HTTP/1.1 (`h1`) or HTTP/2 with prior knowledge (`h2`)."""
    stream = await trio.open_tcp_stream("127.0.0.1", port)
    try:
        if protocol == "h1":
            yield H1Client(stream)
            return
        peer = H2Client(stream)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(peer.pump)
            await peer.settings.wait()
            try:
                yield peer
            finally:
                nursery.cancel_scope.cancel()
    finally:
        await trio.aclose_forcefully(stream)
