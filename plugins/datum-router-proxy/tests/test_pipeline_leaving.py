# ruff: noqa: SIM117  # nested contexts stand in the order of the story
"""A client that leaves while its request waits for an upstream frees it at once (threat U7)."""

from __future__ import annotations

import contextlib
import random
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest
import trio

from datum_router.model.policy import ConnectionLimits, RetryPolicy, TimeoutPolicy
from datum_router.model.service import Service, UpstreamProtocol
from datum_router.reasons import Reason
from datum_router_proxy.settings import ProxySettings
from datum_router_proxy.testing_clients import H1Client, client
from datum_router_proxy.testing_peers import (
    Exchange,
    Gateway,
    bounded,
    full_queue,
    gateway,
    make_rule,
    make_service,
    upstream,
)

LONG_S = 60.0
"""Longer than a test may take: nothing here ends by a time limit."""
PATIENT = ProxySettings(pool_wait_s=LONG_S)
HEAD = b"GET / HTTP/1.1\r\nhost: a.test\r\n\r\n"
BEGUN_BODY = b"POST / HTTP/1.1\r\nhost: a.test\r\ncontent-length: 5\r\n\r\nab"


@asynccontextmanager
async def serving(service: Service, retry: RetryPolicy = RetryPolicy(max_retries=0)) -> AsyncIterator[Gateway]:
    """Run a gateway that would wait for longer than a test may take."""
    rule = make_rule(retry=retry, timeouts=TimeoutPolicy(request_s=LONG_S))
    async with gateway([service], [rule], settings=PATIENT) as running:
        yield running


async def comes(condition: Callable[[], bool]) -> None:
    while not condition():
        await trio.lowlevel.checkpoint()


async def leaves(running: Gateway, stream: trio.SocketStream) -> None:
    """Close the client's side, and require that its request ends and its connection is given back."""
    before = len(running.recorder.events)
    held = running.plane.stats()["connections"]
    await stream.aclose()
    await running.recorder.until(lambda: len(running.recorder.events) > before)
    assert running.recorder.events[-1].reason is Reason.DOWNSTREAM_RESET
    assert running.recorder.events[-1].status == 0
    await comes(lambda: running.plane.stats()["connections"] == held - 1)


async def asks(running: Gateway, message: bytes = HEAD) -> trio.SocketStream:
    """Send a request and return once it is under way: it waits for its upstream then."""
    before = running.plane.stats()["requests_in_flight"]
    stream = await trio.open_tcp_stream("127.0.0.1", running.port)
    await stream.send_all(message)
    await comes(lambda: running.plane.stats()["requests_in_flight"] > before)
    return stream


@pytest.mark.parametrize("message", [HEAD, BEGUN_BODY], ids=["head", "body"])
def test_while_we_dial(message: bytes) -> None:
    async def main() -> None:
        with full_queue() as port:
            async with serving(make_service([port], connect_timeout_s=LONG_S)) as running:
                stream = await asks(running, message)
                assert running.plane.stats()["upstream_connections"] == 1, "dials are counted"
                await leaves(running, stream)
                assert running.plane.stats()["upstream_connections"] == 0
                assert [one.reason for one in running.recorder.outcomes] == [Reason.DOWNSTREAM_RESET]

    bounded(main)


def test_before_we_dial() -> None:
    async def main() -> None:
        with full_queue() as port:
            async with serving(make_service([port], connect_timeout_s=LONG_S)) as running:
                stream = await trio.open_tcp_stream("127.0.0.1", running.port)
                await stream.send_all(HEAD)
                await stream.send_eof()  # the gateway may see this and the request at once
                await running.recorder.until(lambda: len(running.recorder.events) == 1)
                assert running.recorder.events[0].reason is Reason.DOWNSTREAM_RESET
                assert running.plane.stats()["upstream_connections"] == 0
                await stream.aclose()

    bounded(main)


def test_while_the_upstream_says_nothing_to_our_handshake() -> None:
    async def main() -> None:
        hello = trio.Event()

        async def silent(stream: trio.SocketStream) -> None:
            assert await stream.receive_some()
            hello.set()
            with contextlib.suppress(trio.BrokenResourceError):
                assert await stream.receive_some() == b""
            given_up.set()

        given_up = trio.Event()
        async with trio.open_nursery() as nursery:
            listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
            nursery.start_soon(trio.serve_listeners, silent, listeners)
            port = listeners[0].socket.getsockname()[1]
            service = make_service([port], protocol=UpstreamProtocol.HTTPS, connect_timeout_s=LONG_S)
            async with serving(service) as running:
                stream = await asks(running)
                await hello.wait()
                await leaves(running, stream)
                await given_up.wait()
            nursery.cancel_scope.cancel()

    bounded(main)


def test_while_it_waits_for_a_connection_to_get_free() -> None:
    release = trio.Event()

    async def app(exchange: Exchange) -> None:
        await release.wait()
        await exchange.reply(200, b"ok")

    async def main() -> None:
        async with upstream(app) as server:
            service = make_service([server.port], limits=ConnectionLimits(max_connections=1, max_pending_requests=1))
            async with serving(service) as running, client(running.port, "h1") as first:
                assert isinstance(first, H1Client)
                await first.send("GET", "/")
                await comes(lambda: running.plane.stats()["requests_in_flight"] == 1)
                for _ in range(3):  # more often than there are places in the queue
                    await leaves(running, await asks(running))
                release.set()
                assert (await first.receive()).status == 200

    bounded(main)


def test_in_the_pause_before_another_attempt() -> None:
    async def busy(exchange: Exchange) -> None:
        await exchange.reply(503, b"")

    async def main() -> None:
        retry = RetryPolicy(max_retries=1, initial_backoff_s=LONG_S, max_backoff_s=LONG_S, retry_on_status=(503,))
        async with upstream(busy) as one, upstream(busy) as two:
            async with serving(make_service([one.port, two.port]), retry) as running:
                running.plane._loop.rng = random.Random(1)  # whose first pause is of 8 s
                stream = await asks(running)
                await running.recorder.until(lambda: len(running.recorder.outcomes) == 1)
                await leaves(running, stream)

    bounded(main)
