# ruff: noqa: SIM117  # nested contexts stand in the order of the story
"""What the pipeline decides by itself: refusals, retries, deadlines, gRPC status, local replies."""

from __future__ import annotations

import contextlib
import socket
import ssl

import msgspec
import pytest
import trio
import trustme

from datum_router.model.listener import Listener
from datum_router.model.policy import ConnectionLimits, RetryPolicy, TimeoutPolicy
from datum_router.model.route import HeaderEdit, Redirect
from datum_router.model.service import UpstreamProtocol, UpstreamTls
from datum_router.reasons import Reason
from datum_router_proxy import testing as frames
from datum_router_proxy.settings import ProxySettings
from datum_router_proxy.testing_clients import H1Client, H2Client, client
from datum_router_proxy.testing_peers import (
    Exchange,
    bounded,
    gateway,
    make_rule,
    make_service,
    refused_port,
    upstream,
)

both = pytest.mark.parametrize("down", ["h1", "h2"])
RETRY = RetryPolicy(max_retries=1, initial_backoff_s=0.001, max_backoff_s=0.002)


async def hello(exchange: Exchange) -> None:
    await exchange.body()
    await exchange.reply(200, b"hello")


OK = ((b":status", b"200"),)


async def never(exchange: Exchange) -> None:
    await trio.sleep_forever()


@both
def test_no_route_is_404_with_reason_and_request_id(down: str) -> None:
    async def main() -> None:
        async with gateway(rules=[]) as running, client(running.port, down) as peer:
            answer = await peer.request("GET", "/")
            assert answer.status == 404
            event = running.recorder.events[0]
            assert answer.body.decode() == f"no_route: no route matches the request\nrequest id: {event.request_id}\n"
            assert event.reason is Reason.NO_ROUTE
            assert (await peer.request("HEAD", "/")).body == b""
            assert (await peer.request("GET", "/")).status == 404, "the connection goes on"

    bounded(main)


@both
def test_service_without_endpoints_is_503(down: str) -> None:
    async def main() -> None:
        async with gateway([make_service([])]) as running, client(running.port, down) as peer:
            answer = await peer.request("GET", "/")
            assert answer.status == 503
            assert b"no_healthy_endpoint" in answer.body

    bounded(main)


@both
def test_refused_connect_is_tried_on_another_endpoint_with_its_body(down: str) -> None:
    async def echo(exchange: Exchange) -> None:
        await exchange.reply(200, await exchange.body())

    async def main() -> None:
        async with upstream(echo) as server:
            service = make_service([refused_port(), server.port])
            async with gateway([service]) as running, client(running.port, down) as peer:
                for _ in range(4):
                    answer = await peer.request("POST", "/", body=b"payload")
                    assert (answer.status, answer.body) == (200, b"payload")
                outcomes = running.recorder.outcomes
                failed = [outcome for outcome in outcomes if outcome.status == 0]
                assert failed
                assert all(one.reason is Reason.CONNECT_FAILED and one.is_unprocessed for one in failed)
                assert sum(event.attempts for event in running.recorder.events) == len(outcomes)

    bounded(main)


@both
def test_nobody_left_to_try_is_503(down: str) -> None:
    async def main() -> None:
        service = make_service([refused_port()])
        async with gateway([service]) as running, client(running.port, down) as peer:
            answer = await peer.request("GET", "/")
            assert answer.status == 503
            assert b"connect_failed" in answer.body
            assert b"no other endpoint is left" in answer.body
            assert running.recorder.outcomes[0].reason is Reason.CONNECT_FAILED

    bounded(main)


def test_refused_connect_without_retries_is_502() -> None:
    async def main() -> None:
        rule = make_rule(retry=RetryPolicy(max_retries=0))
        async with gateway([make_service([refused_port()])], [rule]) as running, client(running.port, "h1") as peer:
            answer = await peer.request("GET", "/")
            assert answer.status == 502
            assert b"connect_failed: the upstream could not be reached" in answer.body

    bounded(main)


@pytest.mark.parametrize("up", [UpstreamProtocol.HTTP, UpstreamProtocol.H2C])
def test_idempotent_request_is_tried_again_after_a_reset(up: UpstreamProtocol) -> None:
    async def broken(exchange: Exchange) -> None:
        await exchange.reset()

    async def main() -> None:
        async with upstream(broken, up) as bad, upstream(hello, up) as good:
            service = make_service([bad.port, good.port], protocol=up)
            async with gateway([service], [make_rule(retry=RETRY)]) as running, client(running.port, "h1") as peer:
                for _ in range(4):
                    assert (await peer.request("GET", "/")).body == b"hello"
                assert bad.requests

    bounded(main)


def test_status_named_by_the_policy_is_tried_again() -> None:
    async def busy(exchange: Exchange) -> None:
        await exchange.reply(503, b"busy")

    async def main() -> None:
        async with upstream(busy) as bad, upstream(hello) as good:
            rule = make_rule(
                retry=RetryPolicy(max_retries=1, retry_on_status=(503,), initial_backoff_s=0.001, max_backoff_s=0.002)
            )
            service = make_service([bad.port, good.port])
            async with gateway([service], [rule]) as running, client(running.port, "h1") as peer:
                for _ in range(4):
                    assert (await peer.request("GET", "/")).body == b"hello"
                statuses = {(await peer.request("POST", "/", body=b"x")).status for _ in range(4)}
                assert statuses == {200, 503}, "a POST that was answered is not repeated"

    bounded(main)


def test_body_above_the_retry_limit_is_sent_once_only() -> None:
    async def broken(exchange: Exchange) -> None:
        await exchange.body()
        await exchange.reset()

    async def main() -> None:
        async with upstream(broken) as bad:
            service = make_service([bad.port])
            settings = ProxySettings(retry_body_bytes=1000)
            rule = make_rule(retry=RETRY)
            async with gateway([service], [rule], settings=settings) as running, client(running.port, "h1") as peer:
                answer = await peer.request("PUT", "/", body=b"x" * 1001)
                assert answer.status == 502
                assert len(bad.requests) == 1

    bounded(main)


def test_pooled_connection_that_was_closed_is_replaced_without_the_client_noticing() -> None:
    async def main() -> None:
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        port = listeners[0].socket.getsockname()[1]
        accepted = 0

        async def once(stream: trio.SocketStream) -> None:
            nonlocal accepted
            accepted += 1
            await stream.receive_some(65536)
            await stream.send_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok")
            await stream.receive_some(65536)  # the next request arrives, and we are gone
            stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")
            await trio.aclose_forcefully(stream)

        rule = make_rule(retry=RetryPolicy(max_retries=0))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.serve_listeners, once, listeners)
            async with gateway([make_service([port])], [rule]) as running, client(running.port, "h1") as peer:
                for _ in range(3):
                    assert (await peer.request("GET", "/")).body == b"ok"
                assert accepted == 3
                answer = await peer.request("POST", "/", body=b"x")
                assert answer.status == 502, "a POST that may have been acted on is not repeated"
            nursery.cancel_scope.cancel()

    bounded(main)


@both
@pytest.mark.parametrize("up", [UpstreamProtocol.HTTP, UpstreamProtocol.H2C])
def test_deadline_is_504_and_reaches_the_upstream(down: str, up: UpstreamProtocol) -> None:
    async def main() -> None:
        rule = make_rule(timeouts=TimeoutPolicy(request_s=0.2))
        async with upstream(never, up) as server:
            service = make_service([server.port], protocol=up)
            async with gateway([service], [rule]) as running, client(running.port, down) as peer:
                answer = await peer.request("GET", "/")
                assert answer.status == 504
                assert b"request_timeout" in answer.body
                assert running.recorder.outcomes[0].reason is Reason.RESPONSE_TIMEOUT
                if up is UpstreamProtocol.H2C:
                    with trio.fail_after(1):
                        await server.requests[0].is_cancelled.wait()  # type: ignore[attr-defined]
                assert (await peer.request("GET", "/")).status == 504, "the client's connection goes on"

    bounded(main)


@both
def test_deadline_in_the_body_cuts_the_answer(down: str) -> None:
    async def app(exchange: Exchange) -> None:
        await exchange.head(200, [(b"content-length", b"10")])
        await exchange.data(b"half")
        await trio.sleep_forever()

    async def main() -> None:
        rule = make_rule(timeouts=TimeoutPolicy(request_s=0.2))
        async with upstream(app) as server, gateway([make_service([server.port])], [rule]) as running:
            async with client(running.port, down) as peer:
                assert (await peer.request("GET", "/")).is_cut
            await running.recorder.until(lambda: bool(running.recorder.events))
            assert running.recorder.events[0].reason is Reason.REQUEST_TIMEOUT

    bounded(main)


SLOW_HEADS = {
    "a body that stops": [(b"content-length", b"100")],
    "a body that is asked for": [(b"content-length", b"100"), (b"expect", b"100-continue")],
}


@both
@pytest.mark.parametrize("fields", SLOW_HEADS.values(), ids=list(SLOW_HEADS))
def test_a_client_that_keeps_its_body_back_says_nothing_of_the_endpoint(
    down: str, fields: list[tuple[bytes, bytes]]
) -> None:
    async def main() -> None:
        rule = make_rule(timeouts=TimeoutPolicy(request_s=0.3))
        async with upstream(hello) as server, gateway([make_service([server.port])], [rule]) as running:
            async with client(running.port, down) as peer:
                if isinstance(peer, H2Client):
                    await peer.open("POST", "/", fields, end=False)
                else:
                    await peer.send("POST", "/", fields, end=False)
                await running.recorder.until(lambda: bool(running.recorder.events))
                assert running.recorder.events[0].reason is Reason.REQUEST_TIMEOUT
                assert len(server.requests) == 1, "it has been asked"
            assert [one.reason for one in running.recorder.outcomes] == [Reason.DOWNSTREAM_RESET]

    bounded(main)


@both
def test_a_client_that_does_not_read_says_nothing_of_the_endpoint(down: str) -> None:
    async def large(exchange: Exchange) -> None:
        await exchange.head(200, [(b"content-length", b"100000000")])
        for _ in range(1000):
            await exchange.data(bytes(100_000))

    async def main() -> None:
        rule = make_rule(timeouts=TimeoutPolicy(request_s=0.5))
        async with upstream(large) as server, gateway([make_service([server.port])], [rule]) as running:
            async with client(running.port, down) as peer:
                if isinstance(peer, H2Client):
                    peer.auto_acknowledge = False
                    await peer.open("GET", "/", end=True)
                else:
                    await peer.send("GET", "/")
                await running.recorder.until(lambda: bool(running.recorder.events))
                assert running.recorder.events[0].reason is Reason.REQUEST_TIMEOUT
            assert [one.reason for one in running.recorder.outcomes] == [Reason.DOWNSTREAM_RESET]

    bounded(main)


@both
@pytest.mark.parametrize(
    ("method", "path", "headers", "status", "reason"),
    [
        ("TRACE", "/", [], 405, Reason.METHOD_NOT_ALLOWED),
        ("GET", "/a/%2fb", [], 400, Reason.BAD_PATH),
        ("GET", "/../etc", [], 400, Reason.BAD_PATH),
        ("GET", "/", [(b"via", b"1.1 datum-router, " * 10 + b"1.1 datum-router")], 508, Reason.LOOP_DETECTED),
        ("POST", "/", [(b"expect", b"the unexpected"), (b"content-length", b"0")], 417, Reason.BAD_EXPECT),
    ],
)
def test_requests_that_are_not_served(
    down: str, method: str, path: str, headers: list[tuple[bytes, bytes]], status: int, reason: Reason
) -> None:
    async def main() -> None:
        async with upstream(hello) as server, gateway([make_service([server.port])]) as running:
            async with client(running.port, down) as peer:
                body = b"" if method == "POST" else None
                if isinstance(peer, H2Client):
                    headers[:] = [item for item in headers if item[0] != b"content-length"]
                answer = await peer.request(method, path, headers, body)
                assert answer.status == status
                assert str(reason).encode() in answer.body
            assert (down, reason) in running.recorder.rejections
            assert not server.requests

    bounded(main)


def test_options_star_is_answered_by_the_router() -> None:
    async def main() -> None:
        async with gateway() as running, client(running.port, "h1") as peer:
            assert isinstance(peer, H1Client)
            await peer.stream.send_all(b"OPTIONS * HTTP/1.1\r\nhost: a\r\n\r\n")
            assert (await peer.stream.receive_some(1000)).startswith(b"HTTP/1.1 200 OK\r\n")

    bounded(main)


@both
@pytest.mark.parametrize("is_chunked", [False, True])
def test_body_above_the_listeners_limit_is_413(down: str, is_chunked: bool) -> None:
    async def main() -> None:
        listener = Listener(name="test", max_request_body_bytes=1000)
        async with (
            upstream(hello) as server,
            gateway([make_service([server.port])], listener=listener) as running,
            client(running.port, down) as peer,
        ):
            answer = await peer.request("POST", "/", body=b"x" * 2000, is_chunked=is_chunked)
            assert answer.status == 413
            assert (down, Reason.BODY_TOO_LARGE) in running.recorder.rejections

    bounded(main)


def test_filters_change_both_heads() -> None:
    edits = [
        HeaderEdit(set=(("x-set", "1"),), remove=("x-mine",)),
        HeaderEdit(is_response=True, add=(("x-answer", "2"),), remove=("server",)),
    ]

    async def app(exchange: Exchange) -> None:
        await exchange.reply(200, b"", [(b"server", b"secret")])

    async def main() -> None:
        async with upstream(app) as server:
            async with gateway([make_service([server.port])], [make_rule(filters=edits)]) as running:
                async with client(running.port, "h1") as peer:
                    answer = await peer.request("GET", "/", [(b"x-mine", b"0")])
                    assert (answer.header(b"x-answer"), answer.header(b"server")) == (b"2", None)
                    assert server.requests[0].header(b"x-set") == b"1"
                    assert server.requests[0].header(b"x-mine") is None

    bounded(main)


@both
def test_redirect_is_answered_by_the_router(down: str) -> None:
    async def main() -> None:
        rule = make_rule(filters=[Redirect(scheme="https", status=301)])
        async with gateway([make_service([])], [rule]) as running, client(running.port, down) as peer:
            answer = await peer.request("GET", "/a?b=c")
            assert (answer.status, answer.header(b"location")) == (301, b"https://shop.example/a?b=c")

    bounded(main)


def test_pipelined_requests_are_answered_in_order() -> None:
    async def app(exchange: Exchange) -> None:
        await exchange.reply(200, exchange.path.encode())

    async def main() -> None:
        async with upstream(app) as server, gateway([make_service([server.port])]) as running:
            stream = await trio.open_tcp_stream("127.0.0.1", running.port)
            await stream.send_all(b"".join(b"GET /%d HTTP/1.1\r\nhost: a\r\n\r\n" % number for number in range(5)))
            got = b""
            with trio.fail_after(5):
                while got.count(b"HTTP/1.1 200") < 5 or not got.endswith(b"/4"):
                    got += await stream.receive_some(65536)
            assert [part[-2:] for part in got.split(b"HTTP/1.1 200")[1:]] == [b"/0", b"/1", b"/2", b"/3", b"/4"]
            await stream.aclose()

    bounded(main)


@pytest.mark.parametrize(
    ("response", "reason"),
    [
        (b"HTTP/1.1 200 OK\r\ncontent-length: 1\r\ntransfer-encoding: chunked\r\n\r\n", "length_conflict"),
        (b"HTTP/1.1 200 OK\r\ncontent-length: -1\r\n\r\n", "bad_length"),
        (b"HTTP/1.1 200 OK\nbad: line\n\n", "bad_"),
        (b"HTTP/1.1 101 Switching Protocols\r\nupgrade: x\r\nconnection: upgrade\r\n\r\n", "bad_upgrade"),
        (b"HTTP/1.1 100 Continue\r\n\r\n" * 20, "too_many_interim"),
        (b"", "upstream_reset"),
    ],
)
def test_broken_answers_of_an_upstream_are_502(response: bytes, reason: str) -> None:
    async def main() -> None:
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        port = listeners[0].socket.getsockname()[1]

        async def serve(stream: trio.SocketStream) -> None:
            await stream.receive_some(65536)
            with contextlib.suppress(trio.BrokenResourceError):
                await stream.send_all(response)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.serve_listeners, serve, listeners)
            rule = make_rule(retry=RetryPolicy(max_retries=0))
            async with gateway([make_service([port])], [rule]) as running, client(running.port, "h1") as peer:
                answer = await peer.request("GET", "/")
                assert answer.status == 502
                assert reason.encode() in answer.body
            nursery.cancel_scope.cancel()

    bounded(main)


def test_bytes_past_the_end_of_a_response_keep_the_connection_out_of_the_pool() -> None:
    async def main() -> None:
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        port = listeners[0].socket.getsockname()[1]
        accepted = 0

        async def serve(stream: trio.SocketStream) -> None:
            nonlocal accepted
            accepted += 1
            while await stream.receive_some(65536):
                await stream.send_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nokHTTP/1.1 200 OK\r\n")

        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.serve_listeners, serve, listeners)
            async with gateway([make_service([port])]) as running, client(running.port, "h1") as peer:
                for _ in range(2):
                    assert (await peer.request("GET", "/")).body == b"ok"
                assert accepted == 2
            nursery.cancel_scope.cancel()

    bounded(main)


def test_connection_limit_makes_requests_wait_and_then_go_on() -> None:
    release = trio.Event()

    async def app(exchange: Exchange) -> None:
        await release.wait()
        await exchange.reply(200, b"ok")

    async def main() -> None:
        async with upstream(app) as server:
            service = make_service([server.port], limits=ConnectionLimits(max_connections=1, max_pending_requests=1))
            async with gateway([service]) as running, client(running.port, "h2") as peer:
                assert isinstance(peer, H2Client)
                ids = [await peer.open("GET", "/", end=True) for _ in range(3)]
                refused = await peer.receive(ids[2])
                assert refused.status == 503
                assert b"pool_overflow" in refused.body
                assert refused.header(b"retry-after") == b"1"
                release.set()
                assert [(await peer.receive(one)).status for one in ids[:2]] == [200, 200]
                assert server.connections == 1

    bounded(main)


def test_waiting_for_a_connection_is_bounded() -> None:
    async def main() -> None:
        async with upstream(never) as server:
            service = make_service([server.port], limits=ConnectionLimits(max_connections=1))
            settings = ProxySettings(pool_wait_s=0.2)
            async with gateway([service], settings=settings) as running, client(running.port, "h2") as peer:
                assert isinstance(peer, H2Client)
                await peer.open("GET", "/", end=True)
                late = await peer.open("GET", "/", end=True)
                with trio.fail_after(3):
                    answer = await peer.receive(late)
                assert answer.status == 503
                assert b"pool_overflow" in answer.body
                assert not [one for one in running.recorder.outcomes if one.reason is Reason.POOL_OVERFLOW]

    bounded(main)


def test_streams_above_the_last_id_of_a_goaway_go_on_a_new_connection_and_the_others_finish() -> None:
    async def main() -> None:
        one = await trio.open_tcp_listeners(0, host="127.0.0.1")
        two = await trio.open_tcp_listeners(0, host="127.0.0.1")
        ports = [listeners[0].socket.getsockname()[1] for listeners in (one, two)]
        accepted = 0

        async def leaving(stream: trio.SocketStream) -> None:
            """Take two requests, go away after the first one, answer it; later connections answer everything."""
            nonlocal accepted
            accepted += 1
            is_leaving = accepted == 1
            await stream.send_all(frames.settings())
            got = b""
            answered: set[int] = set()
            while data := await stream.receive_some(65536):
                got += data
                asked = {stream_id for kind, _, stream_id, _ in frames.parse(got) if kind == 1}
                if is_leaving and asked == {1, 3}:
                    await stream.send_all(frames.goaway(1) + frames.headers(1, OK, end_stream=True))
                elif not is_leaving:
                    for stream_id in sorted(asked - answered):
                        await stream.send_all(frames.headers(stream_id, OK, end_stream=True))
                    answered |= asked

        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.serve_listeners, leaving, [*one, *two])
            service = make_service(ports, protocol=UpstreamProtocol.H2C)
            rule = make_rule(retry=RETRY)
            async with gateway([service], [rule]) as running, client(running.port, "h2") as peer:
                assert isinstance(peer, H2Client)
                ids = [await peer.open("POST", "/", end=True) for _ in range(4)]
                assert [(await peer.receive(stream_id)).status for stream_id in ids] == [200] * 4
                assert accepted == 3, "the endpoint that left is asked again, on a new connection"
            nursery.cancel_scope.cancel()

    bounded(main)


@pytest.mark.parametrize("alpn", ["h2", "http/1.1"])
def test_https_upstream_is_verified_and_alpn_decides_its_protocol(alpn: str) -> None:
    ca = trustme.CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    ca.issue_cert("backend.example").configure_cert(context)
    context.set_alpn_protocols([alpn])
    tls = UpstreamTls(server_name="backend.example", ca_pem=ca.cert_pem.bytes().decode())

    async def main() -> None:
        async with upstream(hello, tls=context) as server:
            service = make_service([server.port], protocol=UpstreamProtocol.HTTPS, tls=tls)
            async with gateway([service]) as running, client(running.port, "h1") as peer:
                for _ in range(3):
                    assert (await peer.request("POST", "/", body=b"x" * 100_000)).body == b"hello"
                assert server.connections == 1
                assert hasattr(server.requests[0], "pseudo") is (alpn == "h2")
            stranger = msgspec.structs.replace(tls, server_name="other.example")
            service = make_service([server.port], protocol=UpstreamProtocol.HTTPS, tls=stranger)
            rule = make_rule(retry=RetryPolicy(max_retries=0))
            async with gateway([service], [rule]) as running, client(running.port, "h1") as peer:
                answer = await peer.request("GET", "/")
                assert answer.status == 502
                assert b"upstream_tls" in answer.body

    bounded(main)


# --- gRPC ----------------------------------------------------------------------------------------------------------

GRPC = [(b"content-type", b"application/grpc"), (b"te", b"trailers")]


def test_grpc_client_gets_local_replies_as_status() -> None:
    async def main() -> None:
        async with gateway(rules=[]) as running, client(running.port, "h2") as peer:
            answer = await peer.request("POST", "/a.B/C", GRPC, b"")
            assert (answer.status, answer.header(b"grpc-status")) == (200, b"12")
        async with gateway([make_service([])]) as running, client(running.port, "h2") as peer:
            answer = await peer.request("POST", "/a.B/C", GRPC, b"")
            assert answer.header(b"grpc-status") == b"14"

    bounded(main)


def test_grpc_timeout_shortens_the_deadline_and_is_told_upstream() -> None:
    async def main() -> None:
        async with upstream(never, UpstreamProtocol.GRPC) as server:
            service = make_service([server.port], protocol=UpstreamProtocol.GRPC)
            async with gateway([service]) as running, client(running.port, "h2") as peer:
                answer = await peer.request("POST", "/a.B/C", [*GRPC, (b"grpc-timeout", b"200m")], b"x")
                assert (answer.status, answer.header(b"grpc-status")) == (200, b"4")
                told = server.requests[0].header(b"grpc-timeout")
                assert told is not None
                assert told.endswith((b"n", b"u"))
                with trio.fail_after(1):
                    await server.requests[0].is_cancelled.wait()  # type: ignore[attr-defined]

    bounded(main)


@pytest.mark.parametrize(
    ("status", "code"), [(503, b"14"), (404, b"12"), (401, b"16"), (500, b"2")], ids=["503", "404", "401", "500"]
)
def test_http_answers_to_grpc_become_status(status: int, code: bytes) -> None:
    async def app(exchange: Exchange) -> None:
        await exchange.reply(status, b"<html>", [(b"content-type", b"text/html")])

    async def main() -> None:
        async with upstream(app, UpstreamProtocol.GRPC) as server:
            service = make_service([server.port], protocol=UpstreamProtocol.GRPC)
            async with gateway([service]) as running, client(running.port, "h2") as peer:
                answer = await peer.request("POST", "/a.B/C", GRPC, b"x")
                assert (answer.status, answer.header(b"grpc-status")) == (200, code)

    bounded(main)


def test_missing_grpc_status_is_internal_and_a_reset_unavailable() -> None:
    async def app(exchange: Exchange) -> None:
        await exchange.head(200, [(b"content-type", b"application/grpc")])
        await exchange.data(b"\0\0\0\0\0")
        if exchange.path == "/a.B/Reset":
            await exchange.reset()
        else:
            await exchange.end()

    async def main() -> None:
        async with upstream(app, UpstreamProtocol.GRPC) as server:
            service = make_service([server.port], protocol=UpstreamProtocol.GRPC)
            async with gateway([service]) as running, client(running.port, "h2") as peer:
                answer = await peer.request("POST", "/a.B/Missing", GRPC, b"x")
                assert dict(answer.trailers)[b"grpc-status"] == b"13"
                answer = await peer.request("POST", "/a.B/Reset", GRPC, b"x")
                assert dict(answer.trailers)[b"grpc-status"] == b"14"

    bounded(main)
