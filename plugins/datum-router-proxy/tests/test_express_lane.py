"""The express lane and the pipeline are two roads to one place: whatever comes, both sides must see the same."""

from __future__ import annotations

import contextlib
import re
from unittest import mock

import pytest
import trio
import trio.testing

from datum_router.model.policy import RetryPolicy
from datum_router.model.service import UpstreamProtocol
from datum_router_proxy.accounts import Accounts
from datum_router_proxy.express import ExpressLane
from datum_router_proxy.testing_clients import Answer, H1Client, H2Client, client
from datum_router_proxy.testing_peers import Exchange, bounded, gateway, make_rule, make_service, upstream
from datum_router_proxy.upstream.h2 import H2Upstream

TIMES = 4
ID = re.compile(rb"[0-9a-f]{32}")
DATE = b"date: Sat, 28 Nov 2026 15:29:44 GMT"


def response(status: bytes, *fields: bytes, body: bytes = b"", version: bytes = b"1.1") -> bytes:
    return b"HTTP/%b %b\r\n%b\r\n%b" % (version, status, b"".join(field + b"\r\n" for field in fields), body)


PLAIN = response(b"200 OK", DATE, b"content-length: 5", body=b"hello")

# name: (response, pieces it comes in, whether the lane serves it; None: as the pieces happen to arrive)
RESPONSES = {
    "plain": (PLAIN, 1, True),
    "no date": (response(b"200 OK", b"content-length: 2", body=b"ok"), 1, True),
    "empty": (response(b"200 OK", DATE, b"content-length: 0"), 1, True),
    "not found": (response(b"404 Nope", DATE, b"content-length: 4", b"x-a: 1", b"x-a: 2", body=b"gone"), 1, True),
    "unknown status": (response(b"299 ", DATE, b"content-length: 1", body=b"x"), 1, True),
    "no content": (response(b"204 No Content", DATE), 1, True),
    "not modified": (response(b"304 Not Modified", DATE, b'etag: "1"'), 1, True),
    "cookies": (response(b"200 OK", DATE, b"set-cookie: a=1", b"set-cookie: b=2", b"content-length: 0"), 1, True),
    "hop by hop": (
        response(b"200 OK", DATE, b"connection: x-b", b"x-b: 1", b"via: 1.1 a", b"content-length: 0"),
        1,
        True,
    ),
    "two pieces": (PLAIN, 2, None),
    "byte by byte": (PLAIN, 60, None),
    "chunked": (response(b"200 OK", DATE, b"transfer-encoding: chunked", body=b"5\r\nhello\r\n0\r\n\r\n"), 1, False),
    "early hints": (response(b"103 x", b"link: </a>") + PLAIN, 1, False),
    "closing": (response(b"200 OK", DATE, b"connection: close", b"content-length: 5", body=b"hello"), 1, False),
    "http/1.0": (response(b"200 OK", DATE, b"content-length: 5", body=b"hello", version=b"1.0"), 1, False),
    "past the end": (PLAIN + b"more", 1, False),
    "two lengths": (response(b"200 OK", b"content-length: 5", b"content-length: 6", body=b"hello"), 1, False),
    "no http": (b"hello\r\n\r\n", 1, False),
    "retried status": (response(b"503 Busy", DATE, b"content-length: 0"), 1, False),
}

Seen = tuple[list[bytes], list[tuple[int, list[tuple[bytes, bytes]], bytes]], int]


def exchange(answer: bytes, pieces: int, down: str, *, has_lane: bool) -> Seen:
    """Send the same request several times; return what the upstream and the client saw, and what the lane served."""
    heads: list[bytes] = []
    answers: list[tuple[int, list[tuple[bytes, bytes]], bytes]] = []
    served = 0

    async def serve(stream: trio.SocketStream) -> None:
        with contextlib.suppress(trio.BrokenResourceError):  # a broken response ends in a reset
            await talk(stream)

    async def talk(stream: trio.SocketStream) -> None:
        stream.setsockopt(trio.socket.IPPROTO_TCP, trio.socket.TCP_NODELAY, 1)
        buffer = b""
        while data := await stream.receive_some(65536):
            buffer += data
            while b"\r\n\r\n" in buffer:
                head, _, buffer = buffer.partition(b"\r\n\r\n")
                heads.append(ID.sub(b"ID", head))
                size = -(-len(answer) // pieces)
                for start in range(0, len(answer), size):
                    await stream.send_all(answer[start : start + size])
                    if pieces > 1:
                        await trio.testing.wait_all_tasks_blocked()

    def count(*_: object, **__: object) -> None:
        nonlocal served
        served += 1

    async def main() -> None:
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        port = listeners[0].socket.getsockname()[1]
        retry = RetryPolicy(max_retries=1, retry_on_status=(503,), initial_backoff_s=0.001, max_backoff_s=0.001)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.serve_listeners, serve, listeners)
            async with (
                gateway([make_service([port])], [make_rule(retry=retry)]) as running,
                client(running.port, down) as peer,
            ):
                for _ in range(TIMES):
                    got = await peer.request("GET", "/a%7Eb/../c?d=%20", [(b"x-mine", b"1"), (b"accept", b"*/*")])
                    fields = [field for field in got.headers if field[0] not in (b"date", b":status", b"x-request-id")]
                    answers.append((got.status, sorted(fields), ID.sub(b"ID", got.body)))
            nursery.cancel_scope.cancel()

    keep_plan = mock.patch.object(ExpressLane, "plan", return_value=None)
    with mock.patch.object(Accounts, "express_ended", count):
        if has_lane:
            bounded(main)
        else:
            with keep_plan:
                bounded(main)
    return heads, answers, served


@pytest.mark.parametrize("down", ["h1", "h2"])
@pytest.mark.parametrize("name", RESPONSES)
def test_both_roads_lead_to_the_same(name: str, down: str) -> None:
    answer, pieces, is_served = RESPONSES[name]
    by_lane = exchange(answer, pieces, down, has_lane=True)
    by_pipeline = exchange(answer, pieces, down, has_lane=False)
    assert by_lane[0] == by_pipeline[0]
    assert by_lane[1] == by_pipeline[1]
    assert by_pipeline[2] == 0
    # The first request finds no kept connection.
    if is_served is not None:
        assert by_lane[2] == (TIMES - 1 if is_served else 0)


@pytest.mark.parametrize(
    ("trailers", "status"),
    [([(b"grpc-status", b"0")], 200), ([(b"grpc-status", b"5"), (b"x-more", b"1")], 200), ([], 200)],
)
def test_unary_grpc_is_the_same_on_both_roads(trailers: list[tuple[bytes, bytes]], status: int) -> None:
    def run(*, has_lane: bool) -> tuple[list[object], list[object], int]:
        seen: list[object] = []
        got: list[object] = []
        served = 0

        async def app(one: Exchange) -> None:
            body = await one.body()
            kept = [field for field in one.headers if field[0] not in (b"x-request-id", b"grpc-timeout")]
            seen.append((one.method, one.path, sorted(kept), body))
            await one.head(200, [(b"content-type", b"application/grpc")])
            await one.data(b"\0\0\0\0\x02ok")
            await one.end(trailers)

        def count(*_: object, **__: object) -> None:
            nonlocal served
            served += 1

        async def main() -> None:
            async with (
                upstream(app, UpstreamProtocol.GRPC) as server,
                gateway([make_service([server.port], protocol=UpstreamProtocol.GRPC)]) as running,
                client(running.port, "h2") as peer,
            ):
                for _ in range(TIMES):
                    answer = await peer.request(
                        "POST",
                        "/shop.Cart/Get",
                        [(b"content-type", b"application/grpc"), (b"te", b"trailers"), (b"grpc-timeout", b"9S")],
                        b"\0\0\0\0\x02hi",
                    )
                    fields = sorted(field for field in answer.headers if field[0] not in (b"date", b":status"))
                    got.append((answer.status, fields, answer.body, sorted(answer.trailers)))

        with mock.patch.object(Accounts, "express_ended", count):
            if has_lane:
                bounded(main)
            else:
                with mock.patch.object(ExpressLane, "plan", return_value=None):
                    bounded(main)
        return seen, got, served

    by_lane, by_pipeline = run(has_lane=True), run(has_lane=False)
    assert by_lane[:2] == by_pipeline[:2]
    assert by_pipeline[2] == 0
    if not trailers:
        assert by_lane[2] == 0, "a missing grpc-status is the pipeline's to say"


def test_pipelined_requests_and_other_targets_are_told_apart() -> None:
    async def app(one: Exchange) -> None:
        await one.reply(200, one.path.encode())

    async def main() -> None:
        async with (
            upstream(app) as server,
            gateway([make_service([server.port])]) as running,
            client(running.port, "h1") as peer,
        ):
            assert isinstance(peer, H1Client)
            wanted = []
            for number in range(12):
                count = 1 + number % 3
                paths = [f"/{number}/{at}" for at in range(count)]
                await peer.stream.send_all(
                    b"".join(
                        b"GET %s HTTP/1.1\r\nHost: shop.example\r\nX-A: b\r\n\r\n" % path.encode() for path in paths
                    )
                )
                wanted += paths
                data = b""
                with trio.fail_after(5):
                    while data.count(b"HTTP/1.1 200 OK") < count or not data.endswith(paths[-1].encode()):
                        data += await peer.stream.receive_some(65536)
                bodies = re.findall(rb"\r\n\r\n(/\d+/\d+)", data)
                assert bodies == [path.encode() for path in paths]
            assert [one.path for one in server.requests] == wanted

    bounded(main)


async def unary_in_one_piece(peer: H2Client, body: bytes, times: int) -> list[Answer]:
    """Send that many calls, all of them in one write."""
    fields = [(b"content-type", b"application/grpc"), (b"te", b"trailers")]
    streams = []
    with mock.patch.object(peer, "flush", mock.AsyncMock()):
        for _ in range(times):
            streams.append(await peer.open("POST", "/shop.Cart/Get", fields, end=False))
            peer.connection.send_data(streams[-1], body, end_stream=True)
    await peer.flush()
    return [await peer.receive(stream_id) for stream_id in streams]


def test_u8_bodies_that_wait_for_the_upstreams_window_go_on_when_it_opens() -> None:
    """Found by the soak: the rest of a body was never sent, and its request ended at its deadline."""
    count, body = 16, b"\0\0\0\x3e\x80" + bytes(16_000)  # 256,080 bytes for a window of 65,535
    partly_sent = 0
    answers: list[tuple[int, bytes, list[tuple[bytes, bytes]]]] = []

    gate = trio.Event()
    begun = 0

    async def app(one: Exchange) -> None:
        nonlocal begun
        begun += 1
        if begun > 5:  # four bodies and a part of the next one fill the window
            gate.set()
        if begun > 1:
            await gate.wait()
        got = await one.body()
        await one.head(200, [(b"content-type", b"application/grpc")])
        await one.data(b"\0\0\0\0\x05%5d" % len(got))
        await one.end([(b"grpc-status", b"0")])

    send = H2Upstream.send_whole

    def send_whole(self: H2Upstream, block: bytes, data: bytes, *, has_body: bool) -> bool:
        nonlocal partly_sent
        is_sent = send(self, block, data, has_body=has_body)
        partly_sent += not is_sent
        return is_sent

    async def main() -> None:
        async with (
            upstream(app, UpstreamProtocol.GRPC) as server,
            gateway([make_service([server.port], protocol=UpstreamProtocol.GRPC)]) as running,
            client(running.port, "h2") as peer,
        ):
            assert isinstance(peer, H2Client)
            for times in (1, count):  # the first one opens the connection
                for answer in await unary_in_one_piece(peer, body, times):
                    answers.append((answer.status, answer.body, sorted(answer.trailers)))

    with mock.patch.object(H2Upstream, "send_whole", send_whole):
        bounded(main)
    assert partly_sent
    assert answers == [(200, b"\0\0\0\0\x05%5d" % len(body), [(b"grpc-status", b"0")])] * (count + 1)
