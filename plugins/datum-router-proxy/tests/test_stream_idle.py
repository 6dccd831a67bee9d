"""`spec.timeouts.streamIdle`, from manifests to behaviour: silence ends requests, streams and WebSockets."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping

import pytest
import trio

from datum_router.model.policy import TimeoutPolicy
from datum_router.model.service import UpstreamProtocol
from datum_router.reasons import Reason
from datum_router_proxy.settings import ProxySettings
from datum_router_proxy.testing_clients import H1Client, client
from datum_router_proxy.testing_manifests import compile_route
from datum_router_proxy.testing_peers import Exchange, bounded, gateway, make_rule, make_service, upstream
from datum_router_proxy.testing_roads import CLOSED, RETRY, Forwarded, H1Server, World
from datum_router_proxy.testing_roads import H1Client as RoadClient

both = pytest.mark.parametrize("down", ["h1", "h2"])
IDLE: Mapping[str, object] = {"timeouts": {"request": "0s", "streamIdle": "200ms"}}
HANDSHAKE = (
    b"GET /chat HTTP/1.1\r\nhost: a\r\nupgrade: websocket\r\nconnection: Upgrade\r\n"
    b"sec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\nsec-websocket-version: 13\r\n\r\n"
)
ACCEPTED = (
    b"HTTP/1.1 101 Switching Protocols\r\nupgrade: websocket\r\nconnection: upgrade\r\n"
    b"sec-websocket-accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n"
)
EVENTS = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
EVENT = b"9\r\ndata: x\n\n\r\n"


@both
@pytest.mark.parametrize("up", [UpstreamProtocol.HTTP, UpstreamProtocol.H2C])
def test_a_silent_upstream_is_504_on_every_lane(down: str, up: UpstreamProtocol) -> None:
    calls = 0

    async def app(exchange: Exchange) -> None:
        nonlocal calls
        calls += 1
        if calls in (1, 4):
            await trio.sleep_forever()
        await exchange.reply(200, b"hello")

    async def main() -> None:
        async with upstream(app, up) as server:
            compiled = compile_route([server.port], IDLE, {"protocol": up.value})
            assert compiled.diagnostics == []
            async with gateway(compiled.services, compiled.rules) as running, client(running.port, down) as peer:
                answers = [await peer.request("GET", "/") for _ in range(4)]
                assert [answer.status for answer in answers] == [504, 200, 200, 504]
                assert b"stream_idle_timeout: nothing moved" in answers[0].body
                assert b"stream_idle_timeout: nothing moved" in answers[3].body
                silent = [one for one in running.recorder.outcomes if not one.status]
                assert [one.outcome_class for one in silent] == [None, None], "silence is nobody's fault"

    bounded(main)


@both
def test_a_stream_that_falls_silent_is_cut(down: str) -> None:
    async def app(exchange: Exchange) -> None:
        await exchange.head(200, [(b"content-type", b"text/event-stream")])
        await exchange.data(b"data: x\n\n")
        await trio.sleep_forever()

    async def main() -> None:
        async with upstream(app) as server:
            compiled = compile_route([server.port], IDLE)
            async with gateway(compiled.services, compiled.rules) as running, client(running.port, down) as peer:
                assert (await peer.request("GET", "/")).is_cut
                await running.recorder.until(lambda: bool(running.recorder.events))
                assert running.recorder.events[0].reason is Reason.STREAM_IDLE_TIMEOUT

    bounded(main)


def test_a_grpc_stream_ends_with_a_status() -> None:
    async def app(exchange: Exchange) -> None:
        await exchange.head(200, [(b"content-type", b"application/grpc")])
        await exchange.data(b"\0\0\0\0\0")
        await trio.sleep_forever()

    async def main() -> None:
        async with upstream(app, UpstreamProtocol.GRPC) as server:
            compiled = compile_route([server.port], IDLE, {"protocol": "GRPC"})
            async with gateway(compiled.services, compiled.rules) as running, client(running.port, "h2") as peer:
                fields = [(b"content-type", b"application/grpc"), (b"te", b"trailers")]
                answer = await peer.request("POST", "/a.B/C", fields, b"\0\0\0\0\0")
                assert dict(answer.trailers)[b"grpc-status"] == b"14"
                assert running.recorder.events[0].reason is Reason.STREAM_IDLE_TIMEOUT

    bounded(main)


@pytest.mark.parametrize(
    ("said", "settings", "ended_by"),
    [
        ("200ms", ProxySettings(), Reason.STREAM_IDLE_TIMEOUT),
        (None, ProxySettings(tunnel_idle_timeout_s=0.2), Reason.IDLE_TIMEOUT),
    ],
)
def test_a_websocket_ends_by_the_routes_limit_or_by_the_gateways(
    said: str | None, settings: ProxySettings, ended_by: Reason
) -> None:
    async def accept(stream: trio.SocketStream) -> None:
        await stream.receive_some(65536)
        await stream.send_all(ACCEPTED)
        with contextlib.suppress(trio.BrokenResourceError):
            await stream.receive_some(1)

    async def main() -> None:
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.serve_listeners, accept, listeners)
            port = listeners[0].socket.getsockname()[1]
            compiled = compile_route([port], {"timeouts": {"streamIdle": said}} if said else {})
            running = gateway(compiled.services, compiled.rules, settings=settings)
            async with running as plane, client(plane.port, "h1") as peer:
                assert isinstance(peer, H1Client)
                await peer.stream.send_all(HANDSHAKE)
                await plane.recorder.until(lambda: bool(plane.recorder.events))
                assert plane.recorder.events[0].reason is ended_by
            nursery.cancel_scope.cancel()

    bounded(main)


def silent(_: Forwarded) -> list[bytes]:
    return []


def idle_world(idle_s: float, answer: bytes) -> World:
    rule = make_rule(timeouts=TimeoutPolicy(request_s=0.0, stream_idle_s=idle_s))
    return World(make_service([80]), lambda world: H1Server(world, lambda _: [answer]), [rule])


def test_a_stream_lives_as_long_as_something_comes_in_time() -> None:
    world = idle_world(10.0, EVENTS + EVENT)
    with world.running():
        peer = RoadClient()
        world.connect(peer, is_h2=False)
        peer.pipe.give(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
        world.settle()
        for count in range(2, 20):
            world.wait(9.0)
            world.upstreams[0].pipe.give(EVENT)
            world.settle()
            assert peer.got.count(b"data: x") == count
        world.wait(9.9)
        assert not world.observer.reasons
        world.wait(0.2)
        assert [reason for _, reason in world.observer.reasons] == [Reason.STREAM_IDLE_TIMEOUT]
        assert not peer.got.endswith(b"0\r\n\r\n"), "nobody takes it for complete"
        world.end()
    assert world.left_over == ""


def test_what_the_client_sends_counts_as_well() -> None:
    rule = make_rule(timeouts=TimeoutPolicy(request_s=0.0, stream_idle_s=10.0))
    world = World(make_service([80]), lambda world: H1Server(world, silent), [rule])
    with world.running():
        peer = RoadClient()
        world.connect(peer, is_h2=False)
        peer.pipe.give(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 400000\r\n\r\n")
        world.settle()
        for _ in range(10):
            world.wait(9.0)
            peer.pipe.give(b"x" * 30000)
            world.settle()
        assert peer.got == b""
        world.wait(10.1)
        assert b"504" in peer.got
        assert b"stream_idle_timeout" in peer.got
        world.end()
    assert world.left_over == ""


def test_another_attempt_is_a_move() -> None:
    rule = make_rule(retry=RETRY, timeouts=TimeoutPolicy(request_s=0.0, stream_idle_s=10.0))
    world = World(make_service([80, 81]), lambda world: H1Server(world, silent), [rule])
    with world.running():
        peer = RoadClient()
        world.connect(peer, is_h2=False)
        peer.pipe.give(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
        world.settle()
        world.wait(8.0)
        world.upstreams[0].pipe.give(CLOSED)
        world.settle()
        assert len(world.upstreams) == 2
        world.wait(8.0)
        assert peer.got == b""
        world.wait(2.1)
        assert b"stream_idle_timeout" in peer.got
        world.end()
    assert world.left_over == ""


@pytest.mark.parametrize("down", ["h1", "h2"])
def test_a_race_that_falls_silent_is_over(down: str) -> None:
    async def never(exchange: Exchange) -> None:
        await trio.sleep_forever()

    async def main() -> None:
        async with upstream(never) as one, upstream(never) as two:
            compiled = compile_route([one.port, two.port], {**IDLE, "retries": {"hedging": {"delay": "20ms"}}})
            async with gateway(compiled.services, compiled.rules) as running, client(running.port, down) as peer:
                answer = await peer.request("GET", "/")
                assert answer.status == 504
                assert b"stream_idle_timeout" in answer.body
                assert running.recorder.events[0].attempts == 2

    bounded(main)


@pytest.mark.parametrize(("idle_s", "is_over"), [(0.0, False), (10.0, True)])
def test_a_websocket_without_a_limit_may_be_silent_for_ever(idle_s: float, is_over: bool) -> None:
    world = idle_world(idle_s, ACCEPTED)
    with world.running():
        peer = RoadClient()
        world.connect(peer, is_h2=False)
        peer.pipe.give(HANDSHAKE)
        world.settle()
        assert peer.got.startswith(b"HTTP/1.1 101 ")
        world.wait(9.0)
        peer.pipe.give(b"\x81\x80abcd")
        world.settle()
        world.wait(9.0)
        assert not world.observer.events
        world.wait(100_000.0)
        assert bool(world.observer.events) is is_over
        world.end()
    assert world.left_over == ""
