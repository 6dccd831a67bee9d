"""Kit for tests of the data plane: a gateway on loopback, and independent peers (h11, h2) to put on both sides of it.

Nothing here uses our own engines. Applications are written once, against `Exchange`, and served over HTTP/1.1 or
HTTP/2; clients speak either and return the same `Answer`.
"""

from __future__ import annotations

import socket
import ssl
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress

import h2.events
import h2.exceptions
import h2.settings
import h11
import trio

from datum_router.compiler.link import Snapshot
from datum_router.compiler.linker import Linker
from datum_router.model.endpoint import EndpointKey, make_endpoint
from datum_router.model.listener import Listener
from datum_router.model.outcome import Outcome
from datum_router.model.policy import ConnectionLimits, RetryPolicy, TimeoutPolicy
from datum_router.model.route import BackendRef, FilterConfig, Rule, RuleId
from datum_router.model.service import Service, ServiceKey, UpstreamProtocol, UpstreamTls
from datum_router.model.snapshot import Holder, SnapshotData
from datum_router.observe.events import RequestEnded
from datum_router.observe.meter import MeterBook, RequestMeter
from datum_router.plugins import builtin
from datum_router.plugins.manager import Candidate, PluginSet, load_plugins
from datum_router.reasons import Reason
from datum_router.routing.regex import load_engine
from datum_router_proxy.dataplane import ProxyDataPlane
from datum_router_proxy.settings import ProxySettings
from datum_router_proxy.testing_clients import Field, H2Peer

SERVICE = ServiceKey("default/backend")


class Recorder:
    """An observer that keeps everything and lets tests wait for it."""

    wants_events = True

    def __init__(self) -> None:
        self.meters = MeterBook()
        self.reasons: list[tuple[str, Reason]] = []
        self.outcomes: list[Outcome] = []
        self.events: list[RequestEnded] = []
        self.rejections: list[tuple[str, Reason]] = []
        self._changed = trio.Event()

    def meter(self, *, protocol: str, route: str, service: str) -> RequestMeter:
        """Return it from `meters`."""
        return self.meters.meter(protocol, route, service)

    def request_reason(self, protocol: str, reason: Reason) -> None:
        """Keep it."""
        self.reasons.append((protocol, reason))

    def attempt_answered(self, service: ServiceKey, endpoint: EndpointKey, status: int) -> None:
        """Keep it as an outcome."""
        self.attempt_ended(Outcome(service=service, endpoint=endpoint, status=status, is_sent=True))

    def attempt_ended(self, outcome: Outcome) -> None:
        """Keep it."""
        self.outcomes.append(outcome)
        self._note()

    def request_ended(self, event: RequestEnded) -> None:
        """Keep it."""
        self.events.append(event)
        self._note()

    def rejected(self, protocol: str, reason: Reason) -> None:
        """Keep it."""
        self.rejections.append((protocol, reason))
        self._note()

    def _note(self) -> None:
        self._changed.set()
        self._changed = trio.Event()

    async def until(self, predicate: Callable[[], bool]) -> None:
        """Return once `predicate` holds; it is asked again after each report."""
        with trio.fail_after(5):
            while not predicate():
                await self._changed.wait()


def make_service(
    ports: Iterable[int],
    *,
    key: ServiceKey = SERVICE,
    protocol: UpstreamProtocol = UpstreamProtocol.HTTP,
    tls: UpstreamTls | None = None,
    limits: ConnectionLimits = ConnectionLimits(),
    connect_timeout_s: float = 2.0,
) -> Service:
    """Build a service with endpoints on loopback."""
    return Service(
        key=key,
        protocol=protocol,
        endpoints=tuple(make_endpoint("127.0.0.1", port) for port in ports),
        tls=tls,
        limits=limits,
        connect_timeout_s=connect_timeout_s,
    )


def make_rule(
    service: ServiceKey = SERVICE,
    *,
    retry: RetryPolicy = RetryPolicy(initial_backoff_s=0.001, max_backoff_s=0.002),
    timeouts: TimeoutPolicy = TimeoutPolicy(request_s=10.0),
    filters: Sequence[FilterConfig] = (),
) -> Rule:
    """Build a rule that matches everything."""
    return Rule(
        id=RuleId("default/route#0"),
        route="default/route",
        destinations=(BackendRef(service=service),),
        retry=retry,
        timeouts=timeouts,
        filters=tuple(filters),
    )


class Gateway:
    """A running data plane."""

    def __init__(self, plane: ProxyDataPlane, recorder: Recorder, port: int, holder: Holder[Snapshot]) -> None:
        self.plane = plane
        self.recorder = recorder
        self.port = port
        self.holder = holder
        self.is_done = trio.Event()

    async def drained(self) -> None:
        """Return when `run` has returned."""
        with trio.fail_after(5):
            await self.is_done.wait()


def make_snapshot(
    services: Iterable[Service],
    rules: Iterable[Rule],
    listeners: Iterable[Listener] = (),
    plugins: PluginSet | None = None,
) -> Snapshot:
    """Link a snapshot; with the built-in plugins only if no others are given."""
    plugins = plugins or load_plugins(
        [Candidate(entry_point="builtin", distribution="datum-router", load=lambda: builtin)]
    )
    return Linker(plugins, regex=load_engine()).link(
        SnapshotData(
            version=1,
            digest="test",
            services={service.key: service for service in services},
            rules=tuple(rules),
            listeners=tuple(listeners),
        )
    )


@asynccontextmanager
async def gateway(
    services: Iterable[Service] = (),
    rules: Iterable[Rule] | None = None,
    *,
    settings: ProxySettings = ProxySettings(),
    listener: Listener = Listener(name="test"),
    plugins: PluginSet | None = None,
    wall_clock: Callable[[], float] = time.time,
) -> AsyncIterator[Gateway]:
    """Run a data plane with one listener on loopback."""
    holder = Holder(make_snapshot(services, [make_rule()] if rules is None else rules, [listener], plugins))
    recorder = Recorder()
    plane = ProxyDataPlane(holder, recorder, settings, wall_clock=wall_clock)
    sock = socket.create_server(("127.0.0.1", 0), backlog=128)
    sock.setblocking(False)
    port = sock.getsockname()[1]
    plane.add_listener(listener, sock)
    running = Gateway(plane, recorder, port, holder)

    async def run() -> None:
        await plane.run()
        running.is_done.set()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(run)
        try:
            yield running
        finally:
            nursery.cancel_scope.cancel()


@contextmanager
def full_queue(address: str = "127.0.0.1", port: int = 0) -> Iterator[int]:
    """Give a port that answers no SYN, since its listener's queue is full: a dial there ends by its time alone."""
    fillers = [socket.socket() for _ in range(4)]
    with socket.create_server((address, port), backlog=0) as sock:
        try:
            for filler in fillers:
                filler.setblocking(False)
                filler.connect_ex(sock.getsockname())
            yield sock.getsockname()[1]
        finally:
            for filler in fillers:
                filler.close()


# --- applications --------------------------------------------------------------------------------------------------


class Exchange:
    """One request at a test upstream, and the way to answer it."""

    method: str
    path: str
    headers: list[Field]
    trailers: list[Field]

    async def read(self) -> bytes | None:
        """Return some of the body, None at its end."""
        raise NotImplementedError

    async def body(self) -> bytes:
        """Return the whole body."""
        parts = []
        while (part := await self.read()) is not None:
            parts.append(part)
        return b"".join(parts)

    async def info(self, status: int, headers: Sequence[Field] = ()) -> None:
        """Send an interim response."""
        raise NotImplementedError

    async def head(self, status: int, headers: Sequence[Field] = (), *, end: bool = False) -> None:
        """Send a final head."""
        raise NotImplementedError

    async def data(self, data: bytes) -> None:
        """Send body bytes."""
        raise NotImplementedError

    async def end(self, trailers: Sequence[Field] = ()) -> None:
        """End the response."""
        raise NotImplementedError

    async def reset(self) -> None:
        """Cut the response off."""
        raise NotImplementedError

    async def reply(
        self, status: int = 200, body: bytes = b"", headers: Sequence[Field] = (), trailers: Sequence[Field] = ()
    ) -> None:
        """Send a whole response."""
        lengths = [] if trailers else [(b"content-length", b"%d" % len(body))]
        await self.head(status, [*headers, *lengths])
        if body:
            await self.data(body)
        await self.end(trailers)

    def header(self, name: bytes) -> bytes | None:
        """Return a field's value."""
        return next((value for key, value in self.headers if key == name), None)


App = Callable[[Exchange], Awaitable[None]]


class Upstream:
    """A running test upstream."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.connections = 0
        self.requests: list[Exchange] = []
        self.gone = trio.Event()


@asynccontextmanager
async def upstream(
    app: App, protocol: UpstreamProtocol = UpstreamProtocol.HTTP, *, tls: ssl.SSLContext | None = None
) -> AsyncIterator[Upstream]:
    """Serve `app` on loopback; with `tls` ALPN decides about the protocol."""
    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
    state = Upstream(listeners[0].socket.getsockname()[1])

    async def handle(raw: trio.SocketStream) -> None:
        state.connections += 1
        stream: trio.abc.Stream = raw
        try:
            if tls is not None:
                stream = secured = trio.SSLStream(raw, tls, server_side=True)
                await secured.do_handshake()
                serve = _serve_h2 if secured.selected_alpn_protocol() == "h2" else _serve_h1
                await serve(stream, app, state)
            elif protocol in (UpstreamProtocol.H2C, UpstreamProtocol.GRPC):
                await _serve_h2(stream, app, state)
            else:
                await _serve_h1(stream, app, state)
        except* (trio.BrokenResourceError, trio.ClosedResourceError):
            pass
        finally:
            state.gone.set()
            await trio.aclose_forcefully(raw)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.serve_listeners, handle, listeners)
        try:
            yield state
        finally:
            nursery.cancel_scope.cancel()


class _H1Exchange(Exchange):
    def __init__(self, stream: trio.abc.Stream, connection: h11.Connection, request: h11.Request) -> None:
        self._stream = stream
        self._connection = connection
        self.method = request.method.decode()
        self.path = request.target.decode()
        self.headers = [(bytes(name), bytes(value)) for name, value in request.headers]
        self.trailers = []
        self.is_reset = False

    async def read(self) -> bytes | None:
        while True:
            event = self._connection.next_event()
            if event is h11.NEED_DATA:
                self._connection.receive_data(bytes(await self._stream.receive_some(65536)))
            elif isinstance(event, h11.Data):
                return bytes(event.data)
            elif isinstance(event, h11.EndOfMessage):
                self.trailers = [(bytes(name), bytes(value)) for name, value in event.headers]
                return None
            else:
                return None

    async def _send(self, event: h11.Event) -> None:
        data = self._connection.send(event)
        if data:
            await self._stream.send_all(data)

    async def info(self, status: int, headers: Sequence[Field] = ()) -> None:
        await self._send(h11.InformationalResponse(status_code=status, headers=list(headers), reason=b"x"))

    async def head(self, status: int, headers: Sequence[Field] = (), *, end: bool = False) -> None:
        await self._send(h11.Response(status_code=status, headers=list(headers), reason=b"x"))

    async def data(self, data: bytes) -> None:
        await self._send(h11.Data(data=data))

    async def end(self, trailers: Sequence[Field] = ()) -> None:
        await self._send(h11.EndOfMessage(headers=list(trailers)))

    async def reset(self) -> None:
        self.is_reset = True
        assert isinstance(self._stream, trio.SocketStream)
        self._stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")
        await trio.aclose_forcefully(self._stream)


async def _serve_h1(stream: trio.abc.Stream, app: App, state: Upstream) -> None:
    connection = h11.Connection(h11.SERVER)
    while True:
        event = connection.next_event()
        if event is h11.NEED_DATA:
            connection.receive_data(bytes(await stream.receive_some(65536)))
            continue
        if not isinstance(event, h11.Request):
            return
        exchange = _H1Exchange(stream, connection, event)
        state.requests.append(exchange)
        await app(exchange)
        if exchange.is_reset:
            return
        while connection.their_state is h11.SEND_BODY:
            if connection.next_event() is h11.NEED_DATA:
                return  # answered early: the rest of the request is not wanted
        if connection.our_state is not h11.DONE:
            return
        connection.start_next_cycle()


class _H2Exchange(Exchange):
    def __init__(self, server: _H2Server, stream_id: int, headers: list[Field]) -> None:
        self._server = server
        self._stream_id = stream_id
        fields = dict(headers)
        self.method = fields[b":method"].decode()
        self.path = fields.get(b":path", b"").decode()
        self.headers = [item for item in headers if item[0][:1] != b":"] + [(b"host", fields[b":authority"])]
        self.pseudo = fields
        self.trailers = []
        self.error: int | None = None
        self._send_channel, self._chunks = trio.open_memory_channel[tuple[bytes, int] | None](1000)
        self.is_cancelled = trio.Event()

    def feed(self, item: tuple[bytes, int] | None) -> None:
        self._send_channel.send_nowait(item)

    async def read(self) -> bytes | None:
        item = await self._chunks.receive()
        if item is None:
            return None
        self._server.connection.acknowledge_received_data(item[1], self._stream_id)
        await self._server.flush()
        return item[0]

    async def info(self, status: int, headers: Sequence[Field] = ()) -> None:
        await self.head(status, headers)

    async def head(self, status: int, headers: Sequence[Field] = (), *, end: bool = False) -> None:
        self._server.connection.send_headers(self._stream_id, [(b":status", b"%d" % status), *headers], end_stream=end)
        await self._server.flush()

    async def data(self, data: bytes) -> None:
        await self._server.send(self._stream_id, data)

    async def end(self, trailers: Sequence[Field] = ()) -> None:
        if trailers:
            self._server.connection.send_headers(self._stream_id, list(trailers), end_stream=True)
        else:
            self._server.connection.end_stream(self._stream_id)
        await self._server.flush()

    async def reset(self) -> None:
        self._server.connection.reset_stream(self._stream_id, 2)
        await self._server.flush()


class _H2Server(H2Peer):
    def __init__(self, stream: trio.abc.Stream) -> None:
        super().__init__(stream, client_side=False)
        self.exchanges: dict[int, _H2Exchange] = {}


async def _serve_h2(stream: trio.abc.Stream, app: App, state: Upstream) -> None:
    server = _H2Server(stream)
    server.connection.local_settings = h2.settings.Settings(
        client=False, initial_values={h2.settings.SettingCodes.ENABLE_CONNECT_PROTOCOL: 1}
    )
    server.connection.initiate_connection()
    await server.flush()

    async def run(exchange: _H2Exchange) -> None:
        with suppress(h2.exceptions.ProtocolError, trio.BrokenResourceError, trio.ClosedResourceError):
            await app(exchange)

    async with trio.open_nursery() as nursery:
        while True:
            data = await stream.receive_some(65536)
            if not data:
                nursery.cancel_scope.cancel()
                return
            for event in server.connection.receive_data(data):
                if isinstance(event, h2.events.RequestReceived):
                    exchange = _H2Exchange(server, event.stream_id, list(event.headers))
                    server.exchanges[event.stream_id] = exchange
                    state.requests.append(exchange)
                    nursery.start_soon(run, exchange)
                elif isinstance(event, h2.events.DataReceived):
                    server.exchanges[event.stream_id].feed((event.data, event.flow_controlled_length))
                elif isinstance(event, h2.events.TrailersReceived):
                    server.exchanges[event.stream_id].trailers = list(event.headers)
                elif isinstance(event, h2.events.StreamEnded):
                    server.exchanges[event.stream_id].feed(None)
                elif isinstance(event, h2.events.StreamReset):
                    server.exchanges[event.stream_id].error = event.error_code
                    server.exchanges[event.stream_id].is_cancelled.set()
                elif isinstance(event, h2.events.WindowUpdated | h2.events.RemoteSettingsChanged):
                    server.opened()
            await server.flush()


def bounded(main: Callable[[], Awaitable[None]]) -> None:
    """Run a test's coroutine for ten seconds at most."""

    async def run() -> None:
        with trio.fail_after(10):
            await main()

    trio.run(run)


def refused_port() -> int:
    """Return a loopback port that nobody listens on."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def as_dict(headers: Iterable[Field]) -> Mapping[bytes, bytes]:
    """Return fields as a mapping; the last one of a name wins."""
    return dict(headers)
