"""Every pairing of HTTP/1.1 and HTTP/2, downstream and upstream: what must hold whatever carries a request."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import h2.config
import h2.connection
import h2.events
import pytest
import trio

from datum_router.model.service import UpstreamProtocol
from datum_router.reasons import Reason
from datum_router_proxy.settings import ProxySettings
from datum_router_proxy.testing_clients import H1Client, H2Client, client
from datum_router_proxy.testing_peers import (
    Exchange,
    Gateway,
    Upstream,
    bounded,
    gateway,
    make_service,
    upstream,
)
from datum_router_proxy.wire.hpack_codec import CODECS
from datum_router_proxy.wire.hpack_fast import TableCodec
from datum_router_proxy.wire.hpack_reference import HpackCodec

PAIRINGS = [
    pytest.param(down, up, id=f"{down}-{up.lower()}")
    for down in ("h1", "h2")
    for up in (UpstreamProtocol.HTTP, UpstreamProtocol.H2C)
]
pairings = pytest.mark.parametrize(("down", "up"), PAIRINGS)


def run(
    app: Callable[[Exchange], Awaitable[None]],
    test: Callable[[H1Client | H2Client, Upstream, Gateway], Awaitable[None]],
    down: str,
    up: UpstreamProtocol,
) -> None:
    async def main() -> None:
        with trio.fail_after(10):
            async with (
                upstream(app, up) as server,
                gateway([make_service([server.port], protocol=up)]) as running,
                client(running.port, down) as peer,
            ):
                await test(peer, server, running)

    trio.run(main)


async def echo(exchange: Exchange) -> None:
    body = await exchange.body()
    await exchange.reply(200, body, [(b"x-length", exchange.header(b"content-length") or b"none")])


@pairings
def test_get_reaches_the_upstream_and_its_answer_the_client(down: str, up: UpstreamProtocol) -> None:
    async def app(exchange: Exchange) -> None:
        await exchange.reply(200, b"hello", [(b"x-path", exchange.path.encode())])

    async def test(peer: H1Client | H2Client, server: Upstream, running: Gateway) -> None:
        for number in range(3):
            answer = await peer.request("GET", f"/a/b?n={number}", [(b"x-mine", b"1")])
            assert (answer.status, answer.body) == (200, b"hello")
            assert answer.header(b"x-path") == f"/a/b?n={number}".encode()
            assert answer.header(b"content-length") == b"5"
            assert answer.header(b"date")
        assert server.connections == 1, "the upstream connection is kept"
        seen = server.requests[0]
        assert seen.header(b"host") == b"shop.example"
        assert seen.header(b"x-mine") == b"1"
        assert seen.header(b"x-forwarded-for") == b"127.0.0.1"
        assert seen.header(b"via") == (b"1.1" if down == "h1" else b"2") + b" datum-router"
        await running.recorder.until(lambda: len(running.recorder.events) == 3)
        event = running.recorder.events[0]
        assert (event.status, event.reason, event.protocol, event.attempts) == (200, Reason.ROUTED, down, 1)
        assert event.bytes_out == 5
        assert seen.header(b"x-request-id") == event.request_id.encode()
        assert [outcome.status for outcome in running.recorder.outcomes] == [200, 200, 200]
        assert running.plane.stats()["requests_in_flight"] == 0

    run(app, test, down, up)


@pairings
def test_post_with_a_stated_length_states_it_upstream(down: str, up: UpstreamProtocol) -> None:
    async def test(peer: H1Client | H2Client, server: Upstream, running: Gateway) -> None:
        answer = await peer.request("POST", "/", body=b"x" * 1000)
        assert (answer.status, answer.body) == (200, b"x" * 1000)
        assert answer.header(b"x-length") == b"1000"

    run(echo, test, down, up)


@pairings
def test_post_of_unknown_length_is_streamed(down: str, up: UpstreamProtocol) -> None:
    async def test(peer: H1Client | H2Client, server: Upstream, running: Gateway) -> None:
        answer = await peer.request("POST", "/", body=b"y" * 40_000, is_chunked=True)
        assert (answer.status, answer.body) == (200, b"y" * 40_000)
        assert answer.header(b"x-length") == b"none"

    run(echo, test, down, up)


@pairings
def test_empty_post_has_no_body(down: str, up: UpstreamProtocol) -> None:
    async def test(peer: H1Client | H2Client, server: Upstream, running: Gateway) -> None:
        for _ in range(2):
            answer = await peer.request("POST", "/", body=b"")
            assert (answer.status, answer.body) == (200, b"")

    run(echo, test, down, up)


@pairings
def test_big_bodies_pass_both_ways_unchanged(down: str, up: UpstreamProtocol) -> None:
    body = bytes(range(256)) * 8192  # 2 MiB, many windows

    async def test(peer: H1Client | H2Client, server: Upstream, running: Gateway) -> None:
        answer = await peer.request("PUT", "/", body=body)
        assert answer.status == 200
        assert answer.body == body
        assert not answer.is_cut

    run(echo, test, down, up)


@pairings
def test_head_states_the_length_and_sends_nothing(down: str, up: UpstreamProtocol) -> None:
    async def app(exchange: Exchange) -> None:
        await exchange.head(200, [(b"content-length", b"1234")], end=True)
        if up is UpstreamProtocol.HTTP:
            await exchange.end()

    async def test(peer: H1Client | H2Client, server: Upstream, running: Gateway) -> None:
        for _ in range(2):
            answer = await peer.request("HEAD", "/")
            assert (answer.status, answer.body, answer.header(b"content-length")) == (200, b"", b"1234")

    run(app, test, down, up)


@pairings
@pytest.mark.parametrize("status", [204, 304])
def test_answers_without_body_end_at_their_head(down: str, up: UpstreamProtocol, status: int) -> None:
    async def app(exchange: Exchange) -> None:
        await exchange.head(status, [(b"etag", b'"1"')], end=True)
        if up is UpstreamProtocol.HTTP:
            await exchange.end()

    async def test(peer: H1Client | H2Client, server: Upstream, running: Gateway) -> None:
        for _ in range(2):
            answer = await peer.request("GET", "/")
            assert (answer.status, answer.body, answer.header(b"etag")) == (status, b"", b'"1"')
            assert answer.header(b"content-length") is None

    run(app, test, down, up)


@pairings
def test_trailers_pass_to_a_client_that_takes_them(down: str, up: UpstreamProtocol) -> None:
    async def app(exchange: Exchange) -> None:
        await exchange.reply(200, b"data", trailers=[(b"server-timing", b"db;dur=1"), (b"x-secret", b"1")])

    async def test(peer: H1Client | H2Client, server: Upstream, running: Gateway) -> None:
        answer = await peer.request(
            "GET", "/", [(b"te", b"trailers"), *([(b"connection", b"te")] if down == "h1" else [])]
        )
        assert (answer.body, answer.trailers) == (b"data", [(b"server-timing", b"db;dur=1")])
        answer = await peer.request("GET", "/")
        assert (answer.body, answer.trailers) == (b"data", [])

    run(app, test, down, up)


@pairings
def test_expect_continue_is_answered_by_the_router(down: str, up: UpstreamProtocol) -> None:
    async def test(peer: H1Client | H2Client, server: Upstream, running: Gateway) -> None:
        expect = [(b"expect", b"100-continue"), (b"content-length", b"4")]
        if isinstance(peer, H1Client):
            await peer.send("POST", "/", expect, end=False)
            interim = await peer.stream.receive_some(1000)
            assert interim == b"HTTP/1.1 100 Continue\r\n\r\n"
            await peer.stream.send_all(b"body")
            peer.connection.receive_data(interim)
            answer = await peer.receive()
        else:
            stream_id = await peer.open("POST", "/", expect, end=False)
            await peer.until(lambda: peer.answers[stream_id].interim == [100])
            await peer.send(stream_id, b"body", end=True)
            answer = await peer.receive(stream_id)
        assert (answer.status, answer.body) == (200, b"body")
        assert server.requests[0].header(b"expect") is None

    run(echo, test, down, up)


@pairings
def test_early_hints_are_passed_on_and_other_interim_responses_are_not(down: str, up: UpstreamProtocol) -> None:
    async def app(exchange: Exchange) -> None:
        await exchange.info(102)
        await exchange.info(103, [(b"link", b"</a.css>; rel=preload")])
        await exchange.reply(200, b"done")

    async def test(peer: H1Client | H2Client, server: Upstream, running: Gateway) -> None:
        answer = await peer.request("GET", "/")
        assert (answer.status, answer.body, answer.interim) == (200, b"done", [103])

    run(app, test, down, up)


@pairings
def test_early_answer_is_relayed_and_the_rest_of_the_body_is_not_wanted(down: str, up: UpstreamProtocol) -> None:
    async def app(exchange: Exchange) -> None:
        await exchange.read()
        await exchange.reply(413, b"too big", [(b"connection", b"close")] if up is UpstreamProtocol.HTTP else [])

    async def test(peer: H1Client | H2Client, server: Upstream, running: Gateway) -> None:
        length = [(b"content-length", b"1000000")]
        if isinstance(peer, H1Client):
            await peer.send("POST", "/", length, b"x" * 1000, end=False)
            answer = await peer.receive()
            assert answer.header(b"connection") == b"close"
            assert await peer.stream.receive_some(1) == b""
        else:
            stream_id = await peer.open("POST", "/", length, end=False)
            await peer.send(stream_id, b"x" * 1000)
            answer = await peer.receive(stream_id)
            await peer.until(lambda: stream_id in peer.resets)
            assert peer.resets[stream_id] == 0
            assert (await peer.request("POST", "/", body=b"more")).status == 413, "the connection goes on"
        assert (answer.status, answer.body) == (413, b"too big")

    run(app, test, down, up)


@pairings
def test_upstream_that_resets_in_its_body_cuts_the_clients_answer(down: str, up: UpstreamProtocol) -> None:
    async def app(exchange: Exchange) -> None:
        await exchange.head(200, [(b"content-length", b"100")])
        await exchange.data(b"half")
        await exchange.reset()

    async def test(peer: H1Client | H2Client, server: Upstream, running: Gateway) -> None:
        answer = await peer.request("GET", "/")
        assert answer.is_cut
        await running.recorder.until(lambda: len(running.recorder.events) == 1)
        assert running.recorder.events[0].reason is Reason.UPSTREAM_RESET
        assert len(running.recorder.outcomes) == 1, "never tried again once the answer has begun"

    run(app, test, down, up)


@pairings
def test_upstream_that_resets_before_its_head_is_tried_again_and_then_a_502(down: str, up: UpstreamProtocol) -> None:
    async def app(exchange: Exchange) -> None:
        await exchange.reset()

    async def test(peer: H1Client | H2Client, server: Upstream, running: Gateway) -> None:
        answer = await peer.request("POST", "/", body=b"once only")
        assert answer.status == 502
        assert b"upstream_reset" in answer.body
        assert len(server.requests) == 1, "what may have been acted on is not repeated"

    run(app, test, down, up)


@pairings
def test_client_that_leaves_cancels_the_upstream_at_once(down: str, up: UpstreamProtocol) -> None:
    arrived = trio.Event()
    stopped = trio.Event()

    async def app(exchange: Exchange) -> None:
        arrived.set()
        if up is UpstreamProtocol.HTTP:
            try:
                while await exchange._stream.receive_some(1):  # type: ignore[attr-defined]
                    pass
            except trio.BrokenResourceError:
                pass
        else:
            await exchange.is_cancelled.wait()  # type: ignore[attr-defined]
        stopped.set()
        await trio.sleep_forever()

    async def test(peer: H1Client | H2Client, server: Upstream, running: Gateway) -> None:
        if isinstance(peer, H1Client):
            await peer.send("GET", "/")
            await arrived.wait()
            await peer.stream.aclose()
        else:
            stream_id = await peer.open("GET", "/", end=True)
            await arrived.wait()
            peer.connection.reset_stream(stream_id, 8)
            await peer.flush()
        with trio.fail_after(1):
            await stopped.wait()
        await running.recorder.until(lambda: len(running.recorder.events) == 1)
        event = running.recorder.events[0]
        assert (event.status, event.reason) == (0, Reason.DOWNSTREAM_RESET)

    run(app, test, down, up)


@pairings
def test_client_that_does_not_read_stops_the_upstream(down: str, up: UpstreamProtocol) -> None:
    sent = 0
    progress = trio.Event()

    async def app(exchange: Exchange) -> None:
        nonlocal sent, progress
        await exchange.head(200, [(b"content-length", b"%d" % (64 << 20))])
        for _ in range(64 * 16):
            await exchange.data(bytes(1 << 16))
            sent += 1 << 16
            progress.set()
            progress = trio.Event()
        await exchange.end()

    async def test(peer: H1Client | H2Client, server: Upstream, running: Gateway) -> None:
        if isinstance(peer, H1Client):
            await peer.send("GET", "/")
        else:
            peer.auto_acknowledge = False
            await peer.open("GET", "/", end=True)
        # Until nothing has moved for a while the upstream goes on filling buffers of the kernel.
        while True:
            with trio.move_on_after(0.3) as scope:
                await progress.wait()
            if scope.cancelled_caught:
                break
        assert sent < 32 << 20, "the upstream was read although nobody took it"
        assert running.plane.stats()["requests_in_flight"] == 1

    run(app, test, down, up)


@pytest.mark.parametrize("name", CODECS)
def test_the_setting_chooses_the_header_codec_of_both_sides(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[str] = []
    decode = {TableCodec: TableCodec.decode, HpackCodec: HpackCodec.decode}
    for kind, label in ((TableCodec, "table"), (HpackCodec, "hpack")):

        def count(self: TableCodec | HpackCodec, block: bytes, label: str = label) -> list[tuple[bytes, bytes]]:
            made.append(label)
            return decode[type(self)](self, block)

        monkeypatch.setattr(kind, "decode", count)

    async def main() -> None:
        h2c = UpstreamProtocol.H2C
        with trio.fail_after(10):
            async with (
                upstream(echo, h2c) as server,
                gateway(
                    [make_service([server.port], protocol=h2c)], settings=ProxySettings(hpack_codec=name)
                ) as running,
                client(running.port, "h2") as peer,
            ):
                answer = await peer.request("POST", "/", body=b"x")
                assert (answer.status, answer.body) == (200, b"x")

    trio.run(main)
    assert made == [name] * 2, "one head from the client, one from the upstream"


def test_upload_goes_on_when_the_window_opens_and_the_client_has_sent_all() -> None:
    # What the upstream's window held back leaves with its update; what waits unread in the client's socket must
    # follow, though no event tells of it any more.
    body = bytes(150_000)
    is_sent = trio.Event()

    async def serve(stream: trio.SocketStream) -> None:
        connection = h2.connection.H2Connection(h2.config.H2Configuration(client_side=False))
        connection.initiate_connection()
        await stream.send_all(connection.data_to_send())
        received = 0
        while data := await stream.receive_some(65536):
            for event in connection.receive_data(data):
                if isinstance(event, h2.events.DataReceived):
                    received += len(event.data)
                    if received == 65_535:
                        await is_sent.wait()
                        connection.increment_flow_control_window(100_000)
                        connection.increment_flow_control_window(100_000, event.stream_id)
                elif isinstance(event, h2.events.StreamEnded):
                    length = str(received).encode()
                    connection.send_headers(event.stream_id, [(b":status", b"200"), (b"x-received", length)], True)
            await stream.send_all(connection.data_to_send())

    async def main() -> None:
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        port = listeners[0].socket.getsockname()[1]
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.serve_listeners, serve, listeners)
            async with gateway([make_service([port], protocol=UpstreamProtocol.H2C)]) as running:
                stream = await trio.open_tcp_stream("127.0.0.1", running.port)
                head = b"POST / HTTP/1.1\r\nhost: shop.example\r\ncontent-length: %d\r\n\r\n" % len(body)
                with trio.fail_after(5):
                    await stream.send_all(head + body)
                    is_sent.set()
                    answer = await stream.receive_some(65536)
                assert answer.startswith(b"HTTP/1.1 200 ")
                assert b"x-received: 150000\r\n" in answer
                await stream.aclose()
            nursery.cancel_scope.cancel()

    bounded(main)
