"""Rows D22 and D23: HTTP/2 upstreams that go away, and gRPC failures told as gRPC; the data plane runs in-process."""

from __future__ import annotations

import statistics
import time
from collections.abc import Awaitable, Callable

import pytest
import trio

from datum_router.model.policy import RetryPolicy, TimeoutPolicy
from datum_router.model.service import UpstreamProtocol
from datum_router.reasons import Reason
from datum_router_proxy import testing as frames
from datum_router_proxy.testing_clients import Answer, H2Client, client
from datum_router_proxy.testing_manifests import compile_route
from datum_router_proxy.testing_peers import Exchange, bounded, gateway, make_rule, make_service, upstream

pytestmark = pytest.mark.e2e

OK = [(b":status", b"200")]
RETRY = RetryPolicy(max_retries=1, initial_backoff_s=0.001, max_backoff_s=0.002)
GRPC = [(b"content-type", b"application/grpc"), (b"te", b"trailers")]
UNKNOWN, DEADLINE_EXCEEDED, UNIMPLEMENTED, INTERNAL, UNAVAILABLE = b"2", b"4", b"12", b"13", b"14"

Script = Callable[[trio.SocketStream, set[int], set[int]], Awaitable[None]]


async def serve(script: Script, stream: trio.SocketStream) -> None:
    """Speak HTTP/2 by hand: `script` is told which streams were opened and which it has answered, after each read."""
    await stream.send_all(frames.settings())
    got = b""
    answered: set[int] = set()
    while data := await stream.receive_some(65536):
        got += data
        asked = {stream_id for kind, _, stream_id, _ in frames.parse(got) if kind == 1}
        await script(stream, asked, answered)


async def answer_all(stream: trio.SocketStream, asked: set[int], answered: set[int]) -> None:
    for stream_id in sorted(asked - answered):
        await stream.send_all(frames.headers(stream_id, OK, end_stream=True))
    answered |= asked


@pytest.mark.parametrize("method", ["GET", "POST"])
def test_d22_streams_above_the_last_id_are_served_elsewhere_and_the_others_finish(method: str) -> None:
    async def main() -> None:
        async with trio.open_nursery() as nursery:
            served: list[str] = []
            left: list[trio.SocketStream] = []

            async def leaving(stream: trio.SocketStream, asked: set[int], answered: set[int]) -> None:
                """Wait for three streams, go away after the first, then finish that one; new connections are served."""
                if left and stream not in left:
                    await staying(stream, asked, answered)
                elif not left and asked == {1, 3, 5}:
                    left.append(stream)
                    await stream.send_all(frames.goaway(1) + frames.headers(1, OK, end_stream=False))
                    await stream.send_all(frames.data(1, b"late", end_stream=True))

            async def staying(stream: trio.SocketStream, asked: set[int], answered: set[int]) -> None:
                served.extend("elsewhere" for _ in asked - answered)
                await answer_all(stream, asked, answered)

            listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
            others = await trio.open_tcp_listeners(0, host="127.0.0.1")
            for script, opened in ((leaving, listeners), (staying, others)):

                async def handle(stream: trio.SocketStream, script: Script = script) -> None:
                    await serve(script, stream)

                nursery.start_soon(trio.serve_listeners, handle, opened)
            ports = [opened[0].socket.getsockname()[1] for opened in (listeners, others)]
            service = make_service(ports, protocol=UpstreamProtocol.H2C)
            async with (
                gateway([service], [make_rule(retry=RETRY)]) as running,
                client(running.port, "h2") as peer,
            ):
                assert isinstance(peer, H2Client)
                ids = [await peer.open(method, "/", end=True) for _ in range(6)]
                answers = [await peer.receive(stream_id) for stream_id in ids]
            assert [answer.status for answer in answers] == [200] * 6
            assert sorted(answer.body for answer in answers) == [b""] * 5 + [b"late"]
            assert len(left) == 1
            assert served.count("elsewhere") == 5, "three that it got first, and two that were never processed"
            nursery.cancel_scope.cancel()

    bounded(main)


def grpc_status(answer: Answer) -> bytes | None:
    """Return grpc-status, of which there must be one at most, in trailers or in a Trailers-Only head."""
    found = [value for name, value in (*answer.headers, *answer.trailers) if name == b"grpc-status"]
    assert len(found) <= 1
    return found[0] if found else None


async def hang(exchange: Exchange) -> None:
    await trio.sleep_forever()


async def reset_at_once(exchange: Exchange) -> None:
    await exchange.reset()


async def reset_later(exchange: Exchange) -> None:
    await exchange.head(200, [(b"content-type", b"application/grpc")])
    await exchange.data(b"\0\0\0\0\0")
    await exchange.reset()


async def no_trailers(exchange: Exchange) -> None:
    await exchange.head(200, [(b"content-type", b"application/grpc")])
    await exchange.data(b"\0\0\0\0\0")
    await exchange.end()


async def trailers_without_status(exchange: Exchange) -> None:
    await exchange.head(200, [(b"content-type", b"application/grpc")])
    await exchange.end([(b"x", b"y")])


async def status_9(exchange: Exchange) -> None:
    await exchange.head(200, [(b"content-type", b"application/grpc")])
    await exchange.end([(b"grpc-status", b"9"), (b"grpc-message", b"no")])


async def late(exchange: Exchange) -> None:
    await exchange.head(200, [(b"content-type", b"application/grpc")])
    await exchange.data(b"\0\0\0\0\0")
    await trio.sleep_forever()


def http(status: int) -> Callable[[Exchange], Awaitable[None]]:
    async def answer(exchange: Exchange) -> None:
        await exchange.reply(status, b"<html>", [(b"content-type", b"text/html")])

    answer.__name__ = f"http_{status}"
    return answer


@pytest.mark.parametrize(
    ("app", "code"),
    [
        (http(502), UNAVAILABLE), (http(503), UNAVAILABLE), (http(504), UNAVAILABLE), (http(500), UNKNOWN),
        (http(404), UNIMPLEMENTED), (http(400), INTERNAL), (reset_at_once, UNAVAILABLE), (reset_later, UNAVAILABLE),
        (hang, DEADLINE_EXCEEDED), (late, DEADLINE_EXCEEDED), (no_trailers, INTERNAL),
        (trailers_without_status, INTERNAL), (status_9, b"9"),
    ],
    ids=lambda item: getattr(item, "__name__", ""),
)  # fmt: skip
def test_d23_what_goes_wrong_upstream_is_http_200_and_the_right_grpc_status(
    app: Callable[[Exchange], Awaitable[None]], code: bytes
) -> None:
    async def main() -> None:
        async with upstream(app, UpstreamProtocol.GRPC) as server:
            service = make_service([server.port], protocol=UpstreamProtocol.GRPC)
            rule = make_rule(retry=RetryPolicy(max_retries=0), timeouts=TimeoutPolicy(request_s=0.3))
            async with gateway([service], [rule]) as running, client(running.port, "h2") as peer:
                answer = await peer.request("POST", "/a.B/C", GRPC, b"x")
                assert (answer.status, grpc_status(answer), answer.is_cut) == (200, code, False)
                assert answer.header(b"content-type") == b"application/grpc"

    bounded(main)


@pytest.mark.parametrize(
    "value",
    [b"", b"1", b"S", b"-1S", b"+1S", b"1s", b"1.5S", b"123456789S", b"1 S", b"0x1S", b"1_0S", "\u0661S".encode()],
)
def test_d23_a_malformed_timeout_is_refused_and_never_reaches_the_upstream(value: bytes) -> None:
    async def main() -> None:
        async with upstream(status_9, UpstreamProtocol.GRPC) as server:
            service = make_service([server.port], protocol=UpstreamProtocol.GRPC)
            async with gateway([service]) as running, client(running.port, "h2") as peer:
                answer = await peer.request("POST", "/a.B/C", [*GRPC, (b"grpc-timeout", value)], b"x")
                assert (answer.status, grpc_status(answer)) == (200, INTERNAL)
                assert server.requests == []
                assert running.recorder.rejections == [("h2", Reason.BAD_HEADER)]

    bounded(main)


@pytest.mark.parametrize(("asked", "limit"), [(b"200m", "10s"), (b"200000u", "0s"), (b"1H", "200ms")])
def test_d23_the_shorter_of_timeout_and_route_ends_the_call_and_the_upstream_is_told_what_is_left(
    asked: bytes, limit: str
) -> None:
    async def main() -> None:
        async with upstream(hang, UpstreamProtocol.GRPC) as server:
            route = {"retries": {"maxRetries": 0}, "timeouts": {"request": limit}}
            compiled = compile_route([server.port], route, {"protocol": "GRPC"})
            assert compiled.diagnostics == []
            async with (
                gateway(compiled.services, compiled.rules) as running,
                client(running.port, "h2") as peer,
            ):
                began = time.monotonic()
                answer = await peer.request("POST", "/a.B/C", [*GRPC, (b"grpc-timeout", asked)], b"x")
                assert (answer.status, grpc_status(answer)) == (200, DEADLINE_EXCEEDED)
                assert time.monotonic() - began >= 0.2
                told = server.requests[0].header(b"grpc-timeout")
                assert told is not None
                units = {b"n": 1e-9, b"u": 1e-6, b"m": 1e-3, b"S": 1.0}
                assert 0 < int(told[:-1]) * units[told[-1:]] <= 0.2

    bounded(main)


@pytest.mark.parametrize("how", ["reset", "close"])
def test_d23_a_cancel_reaches_the_upstream_within_100_ms(how: str) -> None:
    """The median of nine: single ones may wait for a machine that others share."""

    async def main() -> None:
        async def note(exchange: Exchange) -> None:
            arrived.set()
            await hang(exchange)

        async with upstream(note, UpstreamProtocol.GRPC) as server:
            service = make_service([server.port], protocol=UpstreamProtocol.GRPC)
            async with gateway([service]) as running:
                took = []
                for turn in range(9):
                    arrived = trio.Event()
                    async with client(running.port, "h2") as peer:
                        assert isinstance(peer, H2Client)
                        stream_id = await peer.open("POST", "/a.B/C", GRPC, end=False)
                        await peer.send(stream_id, b"x")
                        await arrived.wait()
                        began = time.monotonic()
                        if how == "reset":
                            peer.connection.reset_stream(stream_id, 8)
                            await peer.flush()
                        else:
                            await trio.aclose_forcefully(peer.stream)
                        cancelled: trio.Event = server.requests[turn].is_cancelled  # type: ignore[attr-defined]
                        await cancelled.wait()
                        took.append(time.monotonic() - began)
                assert statistics.median(took) <= 0.1

    bounded(main)
