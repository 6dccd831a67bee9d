"""CPU of one proxied request without sockets: connection, routing among 1,000 routes, upstream exchange, accounts.

    python benchmarks/bench_lane.py

Channels that hand bytes over in memory stand for both sides, so what remains is our own code. Printed are the best of
many short runs, once as requests are served and once with the express lane switched off; then the same with filters.
"""

from __future__ import annotations

import gc
import random
import time
from collections.abc import Callable, Iterator, Sequence
from typing import cast
from unittest import mock

from datum_router.compiler.link import Snapshot
from datum_router.compiler.linker import Linker
from datum_router.model.endpoint import make_endpoint
from datum_router.model.listener import Listener
from datum_router.model.route import FilterConfig, HeaderEdit, Rewrite
from datum_router.model.service import UpstreamProtocol
from datum_router.model.snapshot import Holder, SnapshotData
from datum_router.plugins.manager import load_plugins
from datum_router.reasons import Reason
from datum_router.testing.factories import make_rule, make_service
from datum_router_proxy.channel import Channel
from datum_router_proxy.express import ExpressLane
from datum_router_proxy.loop import Loop, Task
from datum_router_proxy.pipeline import Pipeline
from datum_router_proxy.server.h1 import H1Connection
from datum_router_proxy.settings import ProxySettings
from datum_router_proxy.upstream import transport
from datum_router_runtime.reporter import Reporter

ROUTES = 1000
CLIENTS = 8
ANSWER = (
    b"HTTP/1.1 200 OK\r\nServer: upstream\r\nDate: Sat, 28 Nov 2026 15:29:44 GMT\r\nContent-Type: text/plain\r\n"
    b"Content-Length: 1024\r\nConnection: keep-alive\r\n\r\n" + b"x" * 1024
)
FIELDS = (
    b"Host: 127.0.0.1:8080\r\nAccept: */*\r\nUser-Agent: Mozilla/5.0 (X11; Linux)\r\nAccept-Encoding: gzip\r\n"
    b"Accept-Language: en-US,en;q=0.9\r\nCookie: session=0123456789abcdef\r\nReferer: https://example.com/page\r\n\r\n"
)
FILTERS = (
    HeaderEdit(set=(("x-tenant", "shop"),), remove=("cookie",)),
    Rewrite(hostname="inner.example", prefix_path="/v2"),
    HeaderEdit(is_response=True, add=(("strict-transport-security", "max-age=31536000"),), remove=("server",)),
)


class MemoryChannel:
    """One side of a connection: what is written to it makes the next input appear in a later round of the loop."""

    is_tls = False
    alpn: str | None = None
    sni: str | None = None
    hangup = False
    buffered = 0
    last_progress = 0.0

    def __init__(self, inputs: Iterator[bytes], later: list[MemoryChannel], whole: int) -> None:
        self.task: Task | None = None
        self.eager: Callable[[], bool] | None = None
        self.on_close: Callable[[], None] | None = None
        self.peer = ("127.0.0.1", 1234)
        self.reset_reason = Reason.DOWNSTREAM_RESET
        self.readable = False
        self.is_closed = False
        self.messages = 0
        self._inputs = inputs
        self._later = later
        self._whole = whole
        self._written = 0
        self._input = b""

    def advance(self) -> None:
        """Let the next input be there."""
        self._input = next(self._inputs)
        self.readable = True
        assert self.task is not None
        if self.eager is None or not self.eager():
            self.task.wake()

    def recv(self, size: int = 65536) -> bytes | None:
        """See `Channel.recv`."""
        data, self._input = self._input, b""
        self.readable = False
        return data[:size] or None

    def write(self, *buffers: bytes | memoryview) -> None:
        """See `Channel.write`; a whole message is answered."""
        self._written += sum(map(len, buffers))
        if self._written >= self._whole:
            self._written = 0
            self.messages += 1
            self._later.append(self)

    def send(self, data: bytes) -> None:
        """See `Channel.send`."""
        self.write(data)

    def check(self) -> None:
        """Nothing breaks here."""

    def finish_writes(self) -> None:
        """Nothing is closed here."""

    def close(self) -> None:
        """See `Channel.close`."""
        self.is_closed = True

    def linger(self, _bytes: int = 0, _seconds: float = 0.0) -> None:
        """See `Channel.linger`."""
        self.close()

    def abort(self) -> None:
        """See `Channel.abort`."""
        self.close()


def same() -> Iterator[bytes]:
    """Requests that are all alike."""
    while True:
        yield b"GET /svc500/hello HTTP/1.1\r\n" + FIELDS


def different() -> Iterator[bytes]:
    """Requests of which no two have the same target."""
    number = 0
    while True:
        number += 1
        yield b"GET /svc%d/item/%d HTTP/1.1\r\n" % (number % ROUTES, number) + FIELDS


def traced() -> Iterator[bytes]:
    """Requests of which no two have the same value in one field."""
    number = 0
    while True:
        number += 1
        yield b"GET /svc500/hello HTTP/1.1\r\ntraceparent: 00-%032x-%016x-01\r\n" % (number * 7919, number) + FIELDS


def posts() -> Iterator[bytes]:
    """Requests that are all alike, with a body."""
    head = b"POST /svc500/items HTTP/1.1\r\nContent-Type: application/json\r\nContent-Length: 256\r\n"
    while True:
        yield head + FIELDS + b"x" * 256


def answers() -> Iterator[bytes]:
    """What an upstream says."""
    while True:
        yield ANSWER


def make_holder(
    listener: Listener, filters: Sequence[FilterConfig] = (), *, protocol: UpstreamProtocol = UpstreamProtocol.HTTP
) -> Holder[Snapshot]:
    """Return many routes that all lead to one endpoint."""
    service = make_service("default/up", [make_endpoint("127.0.0.1", 9000)], protocol=protocol)
    paths = ["/", *(f"/svc{number}" for number in range(1, ROUTES))]
    rules = tuple(
        make_rule(path, route=f"default/r{number}", to=("default/up",), filters=filters)
        for number, path in reversed(list(enumerate(paths)))
    )
    data = SnapshotData(version=1, services={service.key: service}, rules=rules, listeners=(listener,))
    return Holder(Linker(load_plugins(disabled=frozenset())).link(data))


def measure(requests: Callable[[], Iterator[bytes]], filters: Sequence[FilterConfig] = ()) -> float:
    """Return the CPU microseconds of one request."""
    loop = Loop(rng=random.Random(1))
    listener = Listener(name="plain")
    holder = make_holder(listener, filters)
    later: list[MemoryChannel] = []

    async def dial(*_: object, **__: object) -> MemoryChannel:
        return MemoryChannel(answers(), later, whole=100)

    settings = ProxySettings()
    clients = []
    with mock.patch.object(transport, "dial", dial):
        connections = transport.Transport(loop, settings)
        pipeline = Pipeline(loop, holder, Reporter(has_access_log=False), settings, connections)
        for _ in range(CLIENTS):
            channel = MemoryChannel(requests(), later, whole=1024 + 100)
            channel.task = loop.spawn(H1Connection(pipeline, cast(Channel, channel), listener).run(b""), name="client")
            channel.advance()
            clients.append(channel)

        def serve(count: int) -> int:
            wanted = sum(client.messages for client in clients) + count
            while (served := sum(client.messages for client in clients)) < wanted:
                loop.drain()
                waiting = later.copy()
                later.clear()
                for channel in waiting:
                    channel.advance()
            return served - wanted + count

        serve(2000)
        gc.collect()
        best = float("inf")
        for _ in range(40):
            began = time.process_time()
            served = serve(500)
            best = min(best, (time.process_time() - began) / served)
        loop.stop()
    return best * 1e6


def main() -> None:
    """Print a line for each kind of request."""
    for note, filters in (("", ()), (", filters", FILTERS)):
        for name, requests in (
            ("same head", same),
            ("other targets", different),
            ("traced", traced),
            ("with body", posts),
        ):
            lane = measure(requests, filters)
            with mock.patch.object(ExpressLane, "plan", return_value=None):
                pipeline = measure(requests, filters)
            print(f"HTTP/1.1, {name}{note}: {lane:.1f} us by the express lane, {pipeline:.1f} us by the pipeline alone")


if __name__ == "__main__":
    main()
