"""What an idle connection forgets, that it serves on all the same, and what it weighs."""

from __future__ import annotations

import contextlib
import gc
import math
import tracemalloc

import pytest
import trio

from datum_router_proxy.dataplane import ProxyDataPlane
from datum_router_proxy.server.connection import Unknown
from datum_router_proxy.server.h1 import H1Connection
from datum_router_proxy.server.h2 import H2Connection
from datum_router_proxy.testing_clients import client
from datum_router_proxy.testing_peers import Exchange, bounded, gateway, make_service, upstream

FEW = 50
MANY = 150
OURS = (
    tracemalloc.Filter(True, "*/datum_router*"),
    tracemalloc.Filter(False, "*/datum_router_proxy/testing_*"),  # what upstream and observer of the test have seen
)
IDLE_BYTES = 4096
"""The aim for one idle keep-alive connection; it takes about 2,400 bytes of Python objects."""


async def hello(exchange: Exchange) -> None:
    await exchange.body()
    await exchange.reply(200, b"hello")


def connections(plane: object) -> set[Unknown]:
    assert isinstance(plane, ProxyDataPlane)
    return plane._connections


def remembered(connection: Unknown) -> object:
    serving = connection.serving
    if isinstance(serving, H1Connection):
        return serving._known.template
    assert isinstance(serving, H2Connection)
    return serving._last


async def until_idle(connection: Unknown) -> None:
    with trio.fail_after(5):
        while not connection.is_idle:  # noqa: ASYNC110  # a state of plain coroutines, which have no event
            await trio.sleep(0.001)


@pytest.mark.parametrize("down", ["h1", "h2"])
def test_an_idle_connection_forgets_its_last_head_and_serves_on(down: str) -> None:
    async def main() -> None:
        async with upstream(hello) as server, gateway([make_service([server.port])]) as running:  # noqa: SIM117
            async with client(running.port, down) as peer:
                for _ in range(3):
                    for _ in range(2):  # the first head of a connection is not remembered, the second is
                        assert (await peer.request("GET", "/")).body == b"hello"
                    (connection,) = connections(running.plane)
                    await until_idle(connection)
                    assert remembered(connection) is not None
                    connection.rest(0.0)
                    assert remembered(connection) is not None  # it has been at work since then
                    connection.rest(math.inf)
                    assert remembered(connection) is None

    bounded(main)


@pytest.mark.parametrize("down", ["h1", "h2"])
def test_a_connection_at_work_forgets_nothing(down: str) -> None:
    async def main() -> None:
        began, may_end = trio.Event(), trio.Event()
        may_end.set()

        async def slow(exchange: Exchange) -> None:
            began.set()
            await may_end.wait()
            await exchange.reply(200, b"slow")

        async with upstream(slow) as server, gateway([make_service([server.port])]) as running:
            async with client(running.port, down) as peer, trio.open_nursery() as nursery:
                for _ in range(2):
                    assert (await peer.request("GET", "/")).status == 200
                began, may_end = trio.Event(), trio.Event()
                bodies: list[bytes] = []

                async def ask() -> None:
                    bodies.append((await peer.request("GET", "/")).body)

                nursery.start_soon(ask)
                await began.wait()
                (connection,) = connections(running.plane)
                connection.rest(math.inf)
                assert remembered(connection) is not None
                may_end.set()
            assert bodies == [b"slow"]

    bounded(main)


def test_an_idle_connection_weighs_little() -> None:
    async def main() -> None:
        async with (
            upstream(hello) as server,
            gateway([make_service([server.port])]) as running,
            contextlib.AsyncExitStack() as stack,
        ):
            streams: list[trio.SocketStream] = []
            sizes: list[int] = []
            head = b"GET / HTTP/1.1\r\nhost: example.com\r\naccept: */*\r\nuser-agent: idle/1.0\r\n\r\n"
            for count in (FEW, MANY):
                while len(streams) < count:
                    stream = await trio.open_tcp_stream("127.0.0.1", running.port)
                    streams.append(await stack.enter_async_context(stream))
                    for _ in range(2):
                        await stream.send_all(head)
                        got = b""
                        while not got.endswith(b"hello"):
                            got += await stream.receive_some(65536)
                for connection in connections(running.plane):
                    await until_idle(connection)
                    connection.rest(math.inf)
                running.recorder.events.clear()
                gc.collect()
                taken = tracemalloc.take_snapshot().filter_traces(OURS)
                sizes.append(sum(trace.size for trace in taken.traces))
            # Sockets of clients are not among them: the filter takes what our own modules have made.
            assert len(connections(running.plane)) == MANY
            assert 1000 < (sizes[1] - sizes[0]) / (MANY - FEW) <= IDLE_BYTES

    tracemalloc.start()
    try:
        bounded(main)
    finally:
        tracemalloc.stop()
