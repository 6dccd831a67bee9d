"""A gateway with both egress listeners and an upstream behind a name, for tests: what a client gets of a VPCEgress."""

from __future__ import annotations

import contextlib
import functools
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager

import h2.config
import h2.connection
import h2.events
import trio

from datum_router.compiler.link import Snapshot
from datum_router.model.egress import EgressListener, EgressMode, EgressPolicy, EgressRule
from datum_router.model.listener import Listener
from datum_router.model.snapshot import Holder, SnapshotData
from datum_router.observe import names
from datum_router_proxy.dataplane import ProxyDataPlane
from datum_router_proxy.egress.resolver import NotFound
from datum_router_proxy.settings import ProxySettings
from datum_router_proxy.testing_manifests import Manifest, compile_manifests
from datum_router_proxy.testing_peers import Recorder, make_snapshot

NAME = "api.example.test"
"""The one name that there is."""
Handler = Callable[[trio.SocketStream], Awaitable[None]]


def in_trio(test: Callable[..., Awaitable[None]]) -> Callable[..., None]:
    """Run a test as a trio program."""

    @functools.wraps(test)
    def run(*args: object, **values: object) -> None:
        trio.run(functools.partial(test, *args, **values))

    return run


def allow(**changes: object) -> EgressRule:
    """Build a rule that allows `NAME` on loopback.

    Args:
        changes: Other fields of it.
    """
    values: dict[str, object] = {
        "name": "default/api",
        "namespace": "default",
        "hostnames": (NAME,),
        "networks": ("127.0.0.0/8",),
        **changes,
    }
    return EgressRule(**values)  # type: ignore[arg-type]  # fields of the struct by name


async def echo(stream: trio.SocketStream) -> None:
    """Give back what comes, to its end."""
    with contextlib.suppress(trio.BrokenResourceError):  # cut off with the tunnel
        async for data in stream:
            await stream.send_all(data)
        await stream.send_eof()


class Rig:
    """The gateway, what it counts and logs, and clients of it."""

    def __init__(
        self, plane: ProxyDataPlane, holder: Holder[Snapshot], ports: dict[EgressMode, int], upstream: int
    ) -> None:
        self.plane, self.holder, self.ports, self.upstream = plane, holder, ports, upstream
        self.proxy = ports[EgressMode.PROXY]
        self.recorder = Recorder()
        self.streams: list[trio.SocketStream] = []

    def use(self, *rules: EgressRule) -> None:
        """Put other rules in force."""
        self._put(SnapshotData(version=2, digest="y", egress=EgressPolicy(rules=rules)))

    def apply(self, *manifests: Manifest) -> list[str]:
        """Put what manifests say in force, and return the paths that `check` would name."""
        data, diagnostics = compile_manifests(manifests)
        self._put(data)
        return [one.path for one in diagnostics]

    def _put(self, data: SnapshotData) -> None:
        self.holder.current.data = data

    def decisions(self) -> list[tuple[str, ...]]:
        """Take what was counted since the last call."""
        return [cell.labels for cell in self.plane.take_cells() if cell.metric == names.EGRESS_DECISIONS.name]

    def tunnels(self) -> list[tuple[object, ...]]:
        """Return the access log's records of tunnels."""
        return [
            (one.protocol, one.host, str(one.reason), one.route, one.endpoint, one.bytes_in, one.bytes_out)
            for one in self.recorder.events
            if one.method == "CONNECT" and one.route
        ]

    def gauge(self) -> dict[str, float]:
        """Return what is open, by VPCEgress."""
        cells = [cell for cell in self.plane.take_cells() if cell.metric == names.EGRESS_CONNECTIONS.name]
        return {cell.labels[0]: cell.value for cell in cells}

    async def connect(self, mode: EgressMode = EgressMode.PROXY) -> trio.SocketStream:
        """Connect to a listener."""
        stream = await trio.open_tcp_stream("127.0.0.1", self.ports[mode])
        self.streams.append(stream)
        return stream

    async def tunnel(self, target: str = "") -> trio.SocketStream:
        """Open a tunnel, to the upstream by default."""
        stream = await self.connect()
        target = target or f"{NAME}:{self.upstream}"
        await stream.send_all(f"CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n\r\n".encode())
        head = await until(stream, b"\r\n\r\n")
        assert head == b"HTTP/1.1 200 Connection Established\r\n\r\n"
        return stream


async def until(stream: trio.abc.ReceiveStream, end: bytes) -> bytes:
    """Return what comes up to `end`, which has to be the last that is sent."""
    data = b""
    while not data.endswith(end):
        more = await stream.receive_some(65_536)
        assert more, data
        data += more
    return data


async def everything(stream: trio.abc.ReceiveStream) -> bytes:
    """Return what comes up to the end."""
    data = b""
    while more := await stream.receive_some(65_536):
        data += more
    return data


@asynccontextmanager
async def rig(
    *rules: EgressRule,
    handler: Handler = echo,
    settings: ProxySettings = ProxySettings(),
    addresses: Sequence[str] = ("127.0.0.1",),
    source: str = "default/",
) -> AsyncIterator[Rig]:
    """Run a gateway and an upstream, for ten seconds at most.

    Args:
        rules: What is in force; `allow()` if there are none.
        handler: What the upstream does with a connection.
        addresses: Those of `NAME`.
        source: See `EgressListener.source`.
    """

    async def ask(name: str) -> tuple[Sequence[str], float]:
        if name != NAME:
            raise NotFound(name)
        return addresses, 60.0

    snapshot = make_snapshot([], [])
    snapshot.data = SnapshotData(version=1, digest="x", egress=EgressPolicy(rules=rules or (allow(),)))
    holder = Holder(snapshot)
    recorder = Recorder()
    plane = ProxyDataPlane(holder, recorder, settings, ask)
    ports = {}
    for mode in EgressMode:
        sock = socket.create_server(("127.0.0.1", 0))
        sock.setblocking(False)
        ports[mode] = sock.getsockname()[1]
        plane.add_listener(Listener(name=mode, egress=EgressListener(mode=mode, source=source)), sock)
    async with trio.open_nursery() as nursery:
        listener = (await trio.open_tcp_listeners(0, host="127.0.0.1"))[0]
        nursery.start_soon(trio.serve_listeners, handler, [listener])
        nursery.start_soon(plane.run)
        with trio.fail_after(10):
            made = Rig(plane, holder, ports, listener.socket.getsockname()[1])
            made.recorder = recorder
            try:
                yield made
            finally:
                for stream in made.streams:
                    await trio.aclose_forcefully(stream)
        nursery.cancel_scope.cancel()


async def http(stream: trio.SocketStream) -> None:
    """Answer each request with its own head."""
    while True:
        head = b""
        while not head.endswith(b"\r\n\r\n"):
            more = await stream.receive_some(1)
            if not more:
                return
            head += more
        await stream.send_all(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(head), head))


async def reply(stream: trio.SocketStream) -> tuple[bytes, bytes]:
    """Return head and body of an answer that states its length."""
    head = b""
    while not head.endswith(b"\r\n\r\n"):
        head += await stream.receive_some(1)
    lower = head.lower()
    length = int(lower.partition(b"content-length: ")[2].partition(b"\r\n")[0])
    body = b""
    while len(body) < length:
        body += await stream.receive_some(length - len(body))
    return head, body


class H2Client:
    """A client by another library, which checks nothing of what it sends."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self._stream = stream
        config = h2.config.H2Configuration(
            header_encoding=None, validate_outbound_headers=False, normalize_outbound_headers=False
        )
        self.engine = h2.connection.H2Connection(config)
        self.engine.initiate_connection()
        self.events: list[h2.events.Event] = []

    async def request(self, *fields: tuple[str, str], end: bool = False) -> int:
        """Send a head, and return its stream."""
        number = self.engine.get_next_available_stream_id()
        self.engine.send_headers(number, [(name.encode(), value.encode()) for name, value in fields], end_stream=end)
        await self.flush()
        return number

    async def flush(self) -> None:
        """Send what is due."""
        await self._stream.send_all(self.engine.data_to_send())

    async def next(self, kind: type[h2.events.Event], number: int) -> h2.events.Event:
        """Return the next event of a kind on a stream; others of it are passed over."""
        while True:
            for at, event in enumerate(self.events):
                if isinstance(event, kind) and event.stream_id == number:  # type: ignore[attr-defined]  # these have one
                    del self.events[: at + 1]
                    return event
            data = await self._stream.receive_some(65_536)
            assert data, "the connection ended"
            for event in self.engine.receive_data(data):
                self.events.append(event)
                if isinstance(event, h2.events.DataReceived):
                    self.engine.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
            await self.flush()

    async def status(self, number: int) -> bytes:
        """Return the status of an answer."""
        event = await self.next(h2.events.ResponseReceived, number)
        return bytes(dict(event.headers)[b":status"])  # type: ignore[attr-defined]  # it has some

    async def data(self, number: int, size: int) -> bytes:
        """Return the next `size` bytes of a stream."""
        found = b""
        while len(found) < size:
            event = await self.next(h2.events.DataReceived, number)
            found += event.data  # type: ignore[attr-defined]  # it has some
        return found
