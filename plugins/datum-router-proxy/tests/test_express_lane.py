"""The express lane and the pipeline are two roads to one place: whatever comes, both sides must see the same."""

from __future__ import annotations

import contextlib
import re
from collections.abc import AsyncIterator, Iterable, Sequence
from operator import itemgetter
from unittest import mock

import h11
import msgspec
import pytest
import trio
import trio.testing
from hypothesis import given, settings
from hypothesis import strategies as st

from datum_router.model.policy import RetryPolicy
from datum_router.model.route import (
    FilterConfig,
    HeaderEdit,
    Match,
    PathMatch,
    Redirect,
    Rewrite,
    Rule,
    RuleId,
)
from datum_router.model.service import UpstreamProtocol
from datum_router_proxy.accounts import Accounts
from datum_router_proxy.express import ExpressLane
from datum_router_proxy.request import MAX_BODY_BYTES
from datum_router_proxy.testing_clients import Answer, Field, H1Client, H2Client, client
from datum_router_proxy.testing_peers import (
    Exchange,
    bounded,
    gateway,
    make_rule,
    make_service,
    make_snapshot,
    upstream,
)
from datum_router_proxy.upstream.h2 import H2Upstream

TIMES = 4
ID = re.compile(rb"[0-9a-f]{32}")
DATE = b"date: Sat, 28 Nov 2026 15:29:44 GMT"
NOW = re.compile(rb"(?!Sat, 28 Nov 2026 15:29:44)\w{3}, \d\d \w{3} \d{4} \d\d:\d\d:\d\d GMT")
RETRY = RetryPolicy(max_retries=1, retry_on_status=(503,), initial_backoff_s=0.001, max_backoff_s=0.001)


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

Seen = tuple[list[bytes], list[tuple[int, list[Field], bytes]], int]
Request = tuple[str, Sequence[Field]]

MINE = [(b"x-mine", b"1"), (b"accept", b"*/*")]
REQUESTS: Sequence[Request] = [("/a%7Eb/../c?d=%20", MINE)] * TIMES
OTHER_TARGETS: Sequence[Request] = [("/a/x", MINE), ("/a/x", MINE), ("/a/y/?q=//", MINE), ("/a", []), ("/a/y", [])]


@contextlib.asynccontextmanager
async def listening(
    answer: bytes, pieces: int, heads: list[bytes], answers_per_connection: int = 1000
) -> AsyncIterator[int]:
    """Run an upstream that says the same to every request, in so many pieces, and note requests; yield its port.

    After some answers on one connection it takes another request there and closes.
    """

    async def serve(stream: trio.SocketStream) -> None:
        with contextlib.suppress(trio.BrokenResourceError):  # a broken response ends in a reset
            await talk(stream)

    async def talk(stream: trio.SocketStream) -> None:
        stream.setsockopt(trio.socket.IPPROTO_TCP, trio.socket.TCP_NODELAY, 1)
        buffer = b""
        left = answers_per_connection
        while data := await stream.receive_some(65536):
            buffer += data
            while b"\r\n\r\n" in buffer:
                head, _, buffer = buffer.partition(b"\r\n\r\n")
                length = re.search(rb"\r\ncontent-length: (\d+)", head)
                wanted = int(length[1]) if length is not None else 0
                while len(buffer) < wanted:
                    buffer += await stream.receive_some(65536)
                heads.append(ID.sub(b"ID", head) + buffer[:wanted])
                buffer = buffer[wanted:]
                if not left:
                    return
                left -= 1
                size = -(-len(answer) // pieces)
                for start in range(0, len(answer), size):
                    await stream.send_all(answer[start : start + size])
                    if pieces > 1:
                        await trio.testing.wait_all_tasks_blocked()

    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.serve_listeners, serve, listeners)
        yield listeners[0].socket.getsockname()[1]
        nursery.cancel_scope.cancel()


async def ask(peer: H1Client | H2Client, method: str, target: str, fields: Sequence[Field], body: bytes) -> Answer:
    """Send a request by one call, so that its body is there with its head."""
    if isinstance(peer, H1Client):
        events = [
            h11.Request(method=method, target=target, headers=[(b"host", b"shop.example"), *fields]),
            h11.Data(data=body),
            h11.EndOfMessage(),
        ]
        await peer.stream.send_all(b"".join(peer.connection.send(event) or b"" for event in events))
        return await peer.receive()
    with mock.patch.object(peer, "flush"):
        stream_id = await peer.open(method, target, fields, end=not body)
    if body:
        await peer.send(stream_id, body, end=True)
    else:
        await peer.flush()
    return await peer.receive(stream_id)


def exchange(
    answer: bytes,
    pieces: int,
    down: str,
    *,
    has_lane: bool,
    snapshots: Sequence[Sequence[Rule]] = ([make_rule(retry=RETRY)],),
    requests: Sequence[Request] = REQUESTS,
    method: str = "GET",
    body: bytes = b"",
    answers_per_connection: int = 1000,
) -> Seen:
    """Send the requests by each snapshot; return what the upstream and the client saw, and what the lane served."""
    heads: list[bytes] = []
    answers: list[tuple[int, list[Field], bytes]] = []
    served = 0

    def count(*_: object, **__: object) -> None:
        nonlocal served
        served += 1

    async def main() -> None:
        async with (
            listening(answer, pieces, heads, answers_per_connection) as port,
            gateway([make_service([port])], snapshots[0]) as running,
            client(running.port, down) as peer,
        ):
            for rules in snapshots:
                running.holder.swap(make_snapshot([make_service([port])], rules))
                for target, fields in requests:
                    got = await ask(peer, method, target, fields, body)
                    answers.append((got.status, seen(got.headers), ID.sub(b"ID", got.body)))

    keep_plan = mock.patch.object(ExpressLane, "plan", return_value=None)
    with mock.patch.object(Accounts, "express_ended", count):
        if has_lane:
            bounded(main)
        else:
            with keep_plan:
                bounded(main)
    return heads, answers, served


def seen(fields: Iterable[Field]) -> list[Field]:
    """Return fields in the order of their names, with what differs each time masked."""
    masked = [(name, NOW.sub(b"NOW", ID.sub(b"ID", value))) for name, value in fields if name != b":status"]
    return sorted(masked, key=itemgetter(0))


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


# name: (filters, whether the lane serves requests with them; None: if the response has a Date)
FILTERS: dict[str, tuple[Sequence[FilterConfig], bool | None]] = {
    "none": ([], True),
    "set": ([HeaderEdit(set=(("x-mine", "2"), ("x-new", "é")))], True),
    "add": ([HeaderEdit(add=(("x-mine", "2"), ("via", "1.1 us")))], True),
    "remove": ([HeaderEdit(remove=("x-mine", "accept", "forwarded"))], True),
    "in order": ([HeaderEdit(add=(("x-a", "1"),)), HeaderEdit(set=(("x-a", "2"),)), HeaderEdit(remove=("via",))], True),
    "response": ([HeaderEdit(is_response=True, set=(("server", "us"),), add=(("vary", "a"),), remove=("via",))], True),
    "responses in reverse": (
        [HeaderEdit(is_response=True, set=(("x-a", "1"),)), HeaderEdit(is_response=True, add=(("x-a", "2"),))],
        True,
    ),
    "date set": ([HeaderEdit(is_response=True, set=(("date", "Sun, 29 Nov 2026 00:00:00 GMT"),))], True),
    "date added": ([HeaderEdit(is_response=True, add=(("date", "Sun, 29 Nov 2026 00:00:00 GMT"),))], None),
    "date removed": ([HeaderEdit(is_response=True, remove=("date",))], True),
    "path": ([Rewrite(full_path="/else/where")], True),
    "prefix": ([Rewrite(prefix_path="/v2/")], True),
    "host": ([Rewrite(hostname="Inner.Example")], True),
    "all": (
        [
            HeaderEdit(set=(("x-mine", "2"),)),
            Rewrite(hostname="inner", prefix_path="/"),
            HeaderEdit(is_response=True, remove=("x-mine",)),
        ],
        True,
    ),
    "id added": ([HeaderEdit(add=(("x-request-id", "1"),))], True),
    "id set": ([HeaderEdit(set=(("x-request-id", "-"),))], False),
    "id removed": ([HeaderEdit(remove=("x-request-id",))], False),
    "redirect": ([Redirect(scheme="https", prefix_path="/new")], False),
    "cannot be built": ([HeaderEdit(set=(("host", "evil"),))], False),
    "bad value": ([HeaderEdit(is_response=True, set=(("x-a", "1\r\nx-b: 2"),))], False),
}


BODIES = {
    "empty": (b"", True),
    "short": (b"a=1&b=2", True),
    "looks like a request": (b"GET /evil HTTP/1.1\r\nhost: a\r\n\r\n", True),
    "at the limit": (b"x" * MAX_BODY_BYTES, None),  # as its pieces happen to arrive
    "past the limit": (b"x" * (MAX_BODY_BYTES + 1), False),
}


@pytest.mark.parametrize("down", ["h1", "h2"])
@pytest.mark.parametrize("method", ["POST", "PUT"])
@pytest.mark.parametrize("name", BODIES)
def test_bodies_arrive_the_same_on_both_roads(name: str, method: str, down: str) -> None:
    body, is_served = BODIES[name]
    fields = [(b"content-length", b"%d" % len(body))]
    requests: Sequence[Request] = [("/a", fields), ("/a", fields), ("/b", fields), ("/a", [*fields, *MINE])]
    by_lane, by_pipeline = (
        exchange(PLAIN, 1, down, has_lane=has_lane, requests=requests, method=method, body=body)
        for has_lane in (True, False)
    )
    assert by_lane[:2] == by_pipeline[:2]
    if is_served is not None:
        assert by_lane[2] == (len(requests) - 1 if is_served else 0)


@pytest.mark.parametrize("down", ["h1", "h2"])
@pytest.mark.parametrize("method", ["POST", "PUT"])
@pytest.mark.parametrize("name", RESPONSES)
def test_requests_with_bodies_end_and_are_repeated_the_same_on_both_roads(name: str, method: str, down: str) -> None:
    answer, pieces, is_served = RESPONSES[name]
    requests: Sequence[Request] = [("/a", [(b"content-length", b"5"), *MINE])] * TIMES
    by_lane, by_pipeline = (
        exchange(answer, pieces, down, has_lane=has_lane, requests=requests, method=method, body=b"hello")
        for has_lane in (True, False)
    )
    assert by_lane[:2] == by_pipeline[:2]
    if is_served is not None:
        assert by_lane[2] == (TIMES - 1 if is_served else 0)


@pytest.mark.parametrize("down", ["h1", "h2"])
@pytest.mark.parametrize(("method", "statuses"), [("PUT", [200] * 4), ("POST", [200, 502, 200, 502])])
def test_only_an_idempotent_request_with_a_body_is_repeated(method: str, statuses: list[int], down: str) -> None:
    requests: Sequence[Request] = [("/a", [(b"content-length", b"5")])] * TIMES
    by_lane, by_pipeline = (
        exchange(
            PLAIN,
            1,
            down,
            has_lane=has_lane,
            requests=requests,
            method=method,
            body=b"hello",
            answers_per_connection=1,
        )
        for has_lane in (True, False)
    )
    assert by_lane[:2] == by_pipeline[:2]
    assert [status for status, _, _ in by_lane[1]] == statuses
    assert len(by_lane[0]) == (7 if method == "PUT" else 4)


def test_a_body_that_comes_with_its_head_takes_the_lane() -> None:
    heads: list[bytes] = []
    sizes: list[int] = []

    def count(*args: object) -> None:
        bytes_in = args[5]
        assert isinstance(bytes_in, int)
        sizes.append(bytes_in)

    async def main() -> None:
        async with (
            listening(PLAIN, 1, heads) as port,
            gateway([make_service([port])]) as running,
            client(running.port, "h1") as peer,
        ):
            assert isinstance(peer, H1Client)
            for number in range(6):
                body = b"%d" % number * (number % 3 + 1)
                head = b"POST /a HTTP/1.1\r\nHost: shop.example\r\nContent-Length: %d\r\n\r\n" % len(body)
                await peer.stream.send_all(head + body)
                data = b""
                while not data.endswith(b"hello"):
                    data += await peer.stream.receive_some(65536)
                assert heads[-1].endswith(b"\r\nx-request-id: ID" + body)

    with mock.patch.object(Accounts, "express_ended", side_effect=count):
        bounded(main)
    assert sizes == [2, 3, 1, 2, 3]


def make_filtered(prefix: str, filters: Sequence[FilterConfig]) -> Rule:
    return msgspec.structs.replace(
        make_rule(filters=filters, retry=RETRY), id=RuleId(prefix), match=Match(path=PathMatch(value=prefix))
    )


@pytest.mark.parametrize("down", ["h1", "h2"])
@pytest.mark.parametrize("has_date", [True, False])
@pytest.mark.parametrize("name", FILTERS)
def test_filters_do_the_same_on_both_roads(name: str, has_date: bool, down: str) -> None:
    filters, is_served = FILTERS[name]
    if is_served is None:
        is_served = has_date
    answer = response(
        b"200 OK", *([DATE] if has_date else []), b"x-mine: 1", b"server: x", b"content-length: 2", body=b"ok"
    )
    snapshots = [[make_filtered("/a", filters)]]
    by_lane, by_pipeline = (
        exchange(answer, 1, down, has_lane=has_lane, snapshots=snapshots, requests=OTHER_TARGETS)
        for has_lane in (True, False)
    )
    assert by_lane[:2] == by_pipeline[:2]
    assert by_lane[2] == (len(OTHER_TARGETS) - 1 if is_served else 0)


NAMES = st.sampled_from(["x-mine", "x-new", "accept", "via", "x-forwarded-for", "x-request-id", "date", "server"])
VALUES = st.sampled_from(["", "1", "-", "a, b", "é"])
FIELDS = st.lists(st.tuples(NAMES, VALUES), max_size=2).map(tuple)
REMOVED = st.lists(NAMES, max_size=2).map(tuple)
EDITS = st.builds(HeaderEdit, is_response=st.booleans(), set=FIELDS, add=FIELDS, remove=REMOVED)
BAD_EDITS = st.sampled_from([HeaderEdit(add=(("te", "x"),)), HeaderEdit(is_response=True, set=(("x-a", "\0"),))])
HOSTNAMES = st.sampled_from(["", "", "Inner.Example", "inner", "a:1"])
FULL_PATHS = {"full_path": st.sampled_from(["/", "/n/%7e", "/x/../y", "/../n"])}
PREFIXES = {"prefix_path": st.sampled_from(["", "/", "/n/", "/n%41"])}
REWRITES = st.one_of(*(st.builds(Rewrite, hostname=HOSTNAMES, **part) for part in ({}, FULL_PATHS, PREFIXES)))
REDIRECTS = st.one_of(*(st.builds(Redirect, hostname=HOSTNAMES, **part) for part in ({}, FULL_PATHS, PREFIXES)))
FILTER_LISTS = st.lists(st.one_of(EDITS, EDITS, EDITS, REWRITES, REWRITES, REDIRECTS, BAD_EDITS), max_size=4)
CLIENT_FIELDS = st.lists(
    st.tuples(
        st.sampled_from([b"x-mine", b"x-new", b"via", b"x-request-id", b"te"]), st.sampled_from([b"1", b"trailers"])
    ).filter(lambda field: field[0] != b"te" or field[1] == b"trailers"),
    max_size=3,
    unique_by=itemgetter(0),
)
ANSWER_FIELDS = st.lists(st.sampled_from([DATE, b"x-mine: 1", b"x-new: 1", b"via: 1.1 a", b"server: x"]), max_size=4)
TARGETS = st.sampled_from(["/a", "/a/x", "/a/x?q=/a", "/b/", "/b/x//y", "/b?"])


@settings(max_examples=60)
@given(
    filters=st.tuples(FILTER_LISTS, FILTER_LISTS),
    requests=st.lists(st.tuples(TARGETS, CLIENT_FIELDS), min_size=2, max_size=5),
    fields=ANSWER_FIELDS,
    down=st.sampled_from(["h1", "h2"]),
)
def test_any_filters_do_the_same_on_both_roads(
    filters: tuple[list[FilterConfig], list[FilterConfig]],
    requests: list[tuple[str, list[Field]]],
    fields: list[bytes],
    down: str,
) -> None:
    answer = response(b"200 OK", *fields, b"content-length: 2", body=b"ok")
    # What was made for one rule must not serve another, on the same connection and after the routes have changed.
    snapshots = [[make_filtered("/a", one), make_filtered("/b", other)] for one, other in (filters, filters[::-1])]
    by_lane, by_pipeline = (
        exchange(answer, 1, down, has_lane=has_lane, snapshots=snapshots, requests=[*requests, *requests])
        for has_lane in (True, False)
    )
    assert by_lane[:2] == by_pipeline[:2]


GOOD_REWRITES = REWRITES.filter(lambda one: one.hostname != "a:1" and one.full_path != "/../n")
GOOD_LISTS = st.lists(st.one_of(EDITS, EDITS, GOOD_REWRITES), max_size=3)


def with_destination_filters(rule: Rule, filters: Sequence[FilterConfig]) -> Rule:
    (ref,) = rule.destinations
    return msgspec.structs.replace(rule, destinations=(msgspec.structs.replace(ref, filters=tuple(filters)),))


@settings(max_examples=40)
@given(
    filters=st.tuples(GOOD_LISTS, GOOD_LISTS),
    requests=st.lists(st.tuples(st.sampled_from(["/a", "/a/x", "/a/x?q=/a"]), CLIENT_FIELDS), min_size=1, max_size=3),
    fields=ANSWER_FIELDS,
)
def test_filters_of_a_destination_come_after_those_of_the_rule(
    filters: tuple[list[FilterConfig], list[FilterConfig]],
    requests: list[tuple[str, list[Field]]],
    fields: list[bytes],
) -> None:
    answer = response(b"200 OK", *fields, b"content-length: 2", body=b"ok")
    one_after_the_other = with_destination_filters(make_filtered("/a", filters[0]), filters[1])
    in_one_list = make_filtered("/a", [*filters[0], *filters[1]])
    by_destination, by_rule = (
        exchange(
            answer, 1, "h1", has_lane=True, snapshots=[[rule]], requests=requests, answers_per_connection=1
        )  # a kept connection closes on the next request, which is sent once more
        for rule in (one_after_the_other, in_one_list)
    )
    assert by_destination[:2] == by_rule[:2]
    assert len(by_rule[0]) == 2 * len(requests) - 1


@pytest.mark.parametrize(
    ("trailers", "status"),
    [([(b"grpc-status", b"0")], 200), ([(b"grpc-status", b"5"), (b"x-more", b"1")], 200), ([], 200)],
)
@pytest.mark.parametrize(
    "filters", [(), FILTERS["all"][0], FILTERS["date set"][0], [HeaderEdit(remove=("grpc-timeout",))]]
)
def test_unary_grpc_is_the_same_on_both_roads(
    trailers: list[Field], status: int, filters: Sequence[FilterConfig]
) -> None:
    def run(*, has_lane: bool) -> tuple[list[object], list[object], int]:
        requests: list[object] = []
        got: list[object] = []
        served = 0

        async def app(one: Exchange) -> None:
            body = await one.body()
            kept = [(name, b"" if name == b"grpc-timeout" else value) for name, value in seen(one.headers)]
            requests.append((one.method, one.path, kept, body))
            await one.head(200, [(b"content-type", b"application/grpc")])
            await one.data(b"\0\0\0\0\x02ok")
            await one.end(trailers)

        def count(*_: object, **__: object) -> None:
            nonlocal served
            served += 1

        async def main() -> None:
            async with (
                upstream(app, UpstreamProtocol.GRPC) as server,
                gateway(
                    [make_service([server.port], protocol=UpstreamProtocol.GRPC)], [make_rule(filters=filters)]
                ) as running,
                client(running.port, "h2") as peer,
            ):
                for _ in range(TIMES):
                    answer = await peer.request(
                        "POST",
                        "/shop.Cart/Get",
                        [(b"content-type", b"application/grpc"), (b"te", b"trailers"), (b"grpc-timeout", b"9S")],
                        b"\0\0\0\0\x02hi",
                    )
                    got.append((answer.status, seen(answer.headers), answer.body, sorted(answer.trailers)))

        with mock.patch.object(Accounts, "express_ended", count):
            if has_lane:
                bounded(main)
            else:
                with mock.patch.object(ExpressLane, "plan", return_value=None):
                    bounded(main)
        return requests, got, served

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
