"""Whatever is sent, in whatever pieces, and whatever happens meanwhile: the express lane leads where the pipeline does.

Besides what clients and upstreams see, what is told to telemetry has to be the same on both roads, and nothing may be
held in the end. Requests and responses are drawn by seed from lists that hold what a memo could take for another.
"""

from __future__ import annotations

import itertools
import json
import os
import random
import re
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec
import pytest

from datum_router.model.policy import TimeoutPolicy
from datum_router.model.route import Match, PathKind, PathMatch
from datum_router.model.service import Service, UpstreamProtocol, UpstreamTls
from datum_router.reasons import Reason
from datum_router_proxy import testing as t
from datum_router_proxy.testing_peers import make_rule, make_service
from datum_router_proxy.testing_roads import (
    CLOSED,
    RETRY,
    Field,
    Forwarded,
    H1Client,
    H1Server,
    H2Client,
    H2Server,
    Peer,
    World,
    masked,
)
from datum_router_proxy.wire.http2 import Http2Limits, RequestReceived

SHARED = Path(os.environ.get("DATUM_ROUTER_SHARED", Path(__file__).resolve().parents[4] / "shared"))
HOST = b"Host: shop.example\r\n"
END = HOST + b"\r\n"
OK = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"

# What a target of /N asks for: good answers first, then those that break HTTP, end in the middle or hold too much.
GOOD = (
    OK,
    b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n",
    b"HTTP/1.1 200 OK\r\ndate: Sat, 28 Nov 2026 15:29:44 GMT\r\nx: \xe9\r\ncontent-length: 5\r\n\r\nhello",
    b"HTTP/1.1 204 No Content\r\ncontent-length: 5\r\n\r\n",
    b'HTTP/1.1 304 Not Modified\r\ncontent-length: 50\r\netag: "1"\r\n\r\n',
    b"HTTP/1.1 299 \r\nset-cookie: a\r\nset-cookie: b\r\nx-datum-a: 1\r\nconnection: x-q\r\nx-q: 1\r\n"
    b"content-length: 0\r\n\r\n",
    b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
    b"HTTP/1.1 103 x\r\nlink: </a>\r\n\r\nHTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello",
    b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 5\r\n\r\nhello",
    b"HTTP/1.0 200 OK\r\ncontent-length: 5\r\n\r\nhello",
    b"HTTP/1.1 200 OK\r\nx: " + b"v" * 5000 + b"\r\ncontent-length: 5\r\n\r\nhello",
    b"HTTP/1.1 200 OK\r\ncontent-length: 70000\r\n\r\n" + b"x" * 70000,
)
BAD = (
    b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nokHTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nOTHER",
    b"HTTP/1.1 204 No Content\r\ncontent-length: 5\r\n\r\nhello",
    b"HTTP/1.1 304 x\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
    b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\ncontent-length: 5\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
    b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\ncontent-length: 5\r\n\r\nhello",
    b"HTTP/1.1 101 Switch\r\nconnection: upgrade\r\nupgrade: h2c\r\n\r\n",
    b"HTTP/1.1 503 Busy\r\ncontent-length: 0\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nx: a\r\n b\r\ncontent-length: 0\r\n\r\n",
    b"HTTP/1.1 600 x\r\ncontent-length: 1\r\n\r\nz",
    b"\r\nHTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n",
    b"HTTP/1.1 200 OK\r\n\r\nuntil",
    b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhel",
    b"\r\n\r\n",
    b"x",
)
ANSWERS = (*GOOD, *BAD)

REQUESTS = (
    b"GET /%d HTTP/1.1\r\n" + END,
    b"GET /%d HTTP/1.1\r\n" + HOST + b"X-A: b\r\n\r\n",
    b"GET /%d?x=y HTTP/1.1\r\n" + HOST + b"X-A: b\r\n\r\n",
    b"POST /%d HTTP/1.1\r\n" + HOST + b"X-A: b\r\n\r\n",
    b"POST /%d HTTP/1.1\r\n" + HOST + b"content-length: 0\r\n\r\n",
    b"POST /%d HTTP/1.1\r\n" + HOST + b"content-length: 5\r\n\r\nhello",
    b"POST /%d HTTP/1.1\r\n" + HOST + b"transfer-encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
    b"POST /%d HTTP/1.1\r\n" + HOST + b"Expect: 100-continue\r\ncontent-length: 5\r\n\r\nhello",
    b"HEAD /%d HTTP/1.1\r\n" + HOST + b"X-A: b\r\n\r\n",
    b"GET http://other.example/%d HTTP/1.1\r\n" + HOST + b"X-A: b\r\n\r\n",
    b"GET /%d HTTP/1.1\r\nHost: other.example\r\nX-A: b\r\n\r\n",
    b"OPTIONS * HTTP/1.1\r\n" + HOST + b"X-A: b\r\n\r\n",
    b"GET /a/../%d HTTP/1.1\r\n" + HOST + b"X-A: b\r\n\r\n",
    b"GET /%d HTTP/1.0\r\n" + HOST + b"X-A: b\r\n\r\n",
    b"GET /%d HTTP/1.1\r\n" + HOST + b"X-A: b\r\nConnection: close\r\n\r\n",
    b"\r\nGET /%d HTTP/1.1\r\n" + HOST + b"X-A: b\r\n\r\n",
    b"GET /%d HTTP/1.1\r\nGET /0 HTTP/1.1\r\n" + HOST + b"X-A: b\r\n\r\n",
    b"GET /%d HTTP/1.1\r\n" + HOST + b"x_y: b\r\n\r\n",
    b"GET /%d HTTP/1.1\r\n" + HOST + b"X-A: \xe9 \r\n\r\n",
    b"GET /%d HTTP/1.1\r\n" + HOST + b"TE: trailers\r\nX-Request-Id: mine\r\nX-Forwarded-For: 1.2.3.4\r\n\r\n",
    b"GET /%d/" + b"z" * 8185 + b" HTTP/1.1\r\n" + HOST + b"X-A: b\r\n\r\n",
    b"GET /%d/\xe9 HTTP/1.1\r\n" + HOST + b"X-A: b\r\n\r\n",
    b"GET /%d/%%2f HTTP/1.1\r\n" + HOST + b"X-A: b\r\n\r\n",
    b"GET  /%d HTTP/1.1\r\n" + HOST + b"X-A: b\r\n\r\n",
    b"GET /%d HTTP/1.1\n" + HOST + b"X-A: b\r\n\r\n",
    b"TRACE /%d HTTP/1.1\r\n" + HOST + b"X-A: b\r\n\r\n",
)
GRPC = (
    (b":method", b"POST"),
    (b":scheme", b"http"),
    (b":path", b"/shop.Cart/Get"),
    (b":authority", b"shop.example"),
    (b"content-type", b"application/grpc"),
    (b"te", b"trailers"),
)


def cut(data: bytes, rng: random.Random, how: str) -> list[bytes]:
    """Return `data` in one piece (`whole`), in single bytes (`bytes`, if it is short), or cut anywhere (`random`)."""
    if how == "whole" or not data:
        return [data]
    if how == "bytes" and len(data) < 2000:
        return [data[at : at + 1] for at in range(len(data))]
    at = sorted({0, len(data), *(rng.randrange(len(data)) for _ in range(rng.randint(1, 4)))})
    return [data[start:end] for start, end in itertools.pairwise(at)]


def wanted(path: bytes, answers: int) -> int:
    number = re.search(rb"/([0-9]+)", path)
    return int(number[1]) % answers if number else 0


def h1_answer(how: str = "whole") -> Callable[[Forwarded], Sequence[bytes]]:
    def answer(request: Forwarded) -> list[bytes]:
        number = wanted(request.head.split(b" ")[1], len(ANSWERS))
        is_head = request.head.startswith(b"HEAD")
        data = OK[:-2] if is_head else ANSWERS[number]
        pieces = cut(data, random.Random(number), how)
        return pieces if is_head or data in GOOD else [*pieces, CLOSED]

    return answer


def h2_frames(request: RequestReceived) -> list[bytes]:
    """Return the pieces of a response: whole and in parts, with and without trailers, reset, cut, or malformed."""
    stream_id = request.stream_id
    status, grpc = (b":status", b"200"), (b"content-type", b"application/grpc")

    def head(*fields: Field, end: bool = False) -> bytes:
        return t.headers(stream_id, fields, end_stream=end)

    def data(payload: bytes, *, end: bool = False) -> bytes:
        return t.data(stream_id, payload, end_stream=end)

    done = head((b"grpc-status", b"0"), end=True)
    unary = head(status, grpc) + data(b"\0\0\0\0\x02ok") + done
    short = head((b":status", b"304"), (b"content-length", b"500"), end=True)
    answers: tuple[list[bytes], ...] = (
        [unary],
        [head(status, grpc), data(b"\0\0\0\0\x02ok"), head((b"grpc-status", b"5"), (b"x-more", b"1"), end=True)],
        [head(status, grpc, (b"grpc-status", b"5"), end=True)],
        [head(status, (b"content-length", b"5")) + data(b"hello", end=True)],
        [head(status, (b"content-length", b"5")) + data(b"hel"), data(b"lo", end=True)],
        [head((b":status", b"204"), end=True)],
        [short],
        [head((b":status", b"103")) + head(status, end=True)],
        [head(status) + b"".join(data(b"%d" % part) for part in range(12)) + data(b"", end=True)],
        [head(status, grpc, end=True)],
        [
            head(status, (b"content-length", b"5"))
            + data(b"hello")
            + head((b"server-timing", b"a"), (b"x-t", b"1"), end=True)
        ],
        [head((b":status", b"503"), (b"content-length", b"1")) + data(b"x", end=True)],
        [unary + t.rst_stream(stream_id, 0)],
        [t.rst_stream(stream_id, 7)],
        [head(status, grpc), t.rst_stream(stream_id, 2)],
        [unary + t.goaway(stream_id)],
        [t.goaway(max(0, stream_id - 2))],
        [t.settings((3, 1)), unary],
        [t.settings((1, 0)), unary],
        [head(status, grpc), CLOSED],
        [head(status, (b"content-length", b"5")) + data(b"hell", end=True)],
        [head((b":status", b"204")) + data(b"x", end=True)],
        [head(status, (b"connection", b"close"), end=True)],
        [head(status, (b"x", b"a\r\nb: c"), end=True)],
        [head(status, grpc) + data(b"\0\0\0\0\x02ok") + head((b":status", b"0"), end=True)],
        [t.frame(1, 4, stream_id, t.block([status]) + b"\x40\x01x\x01y") + data(b"", end=True)],
        [t.frame(1, 4, stream_id, t.block([status]) + b"\xbe") + data(b"", end=True)],
        [data(b"early")],
    )
    return [short] if request.method == b"HEAD" else answers[wanted(request.path, len(answers))]


def h2_request(rng: random.Random, number: int) -> tuple[list[Field], list[bytes]]:
    """Return the fields of a request and the parts of its body, none if it has no body."""
    kind = rng.choice(("grpc", "grpc", "get", "get", "post", "head"))
    target = b"/%d/%b" % (number, rng.choice((b"", b"a", b"?q", b"%7e", b"x/../y")))
    fields = [(b":method", b"GET"), (b":scheme", b"http"), (b":path", target)]
    fields.append((b":authority", rng.choice((b"shop.example", b"shop.example", b"b.example:80"))))
    size = rng.choice((0, 5, 5, 16_383, 16_384, 16_385, 20_000))
    body = [b"b" * (size // 2), b"b" * (size - size // 2)] if rng.random() < 0.3 else [b"b" * size]
    if kind == "head":
        fields[0] = (b":method", b"HEAD")
    elif kind == "get":
        fields += [(b"te", b"trailers")] if rng.random() < 0.3 else []
    else:
        fields[0] = (b":method", b"POST")
        if kind == "grpc":
            fields += [(b"content-type", b"application/grpc"), (b"te", b"trailers")]
            fields += [(b"grpc-timeout", rng.choice((b"9S", b"0S", b"bad")))] if rng.random() < 0.4 else []
        elif rng.random() < 0.5:
            fields.append((b"content-length", b"%d" % size))
    return fields, [] if kind in ("get", "head") else body


class Seen(msgspec.Struct, frozen=True, kw_only=True):
    """What could be seen from outside, without what is new each time, and what was held in the end."""

    forwarded: list[tuple[bytes, bytes, bytes]]
    clients: list[object]
    events: list[str]
    reports: list[str]
    left_over: str


def told(client: Peer) -> object:
    if isinstance(client, H1Client):
        return masked(client.got), client.pipe.ended
    assert isinstance(client, H2Client)
    return {
        stream_id: [(kind, masked(what) if isinstance(what, bytes) else what) for kind, what in got]
        for stream_id, got in client.got.items()
    }


def seen_of(world: World) -> Seen:
    observer = world.observer
    events = [msgspec.structs.replace(event, request_id="") for event in observer.events]
    reports = [*observer.reasons, *observer.rejections, *observer.outcomes]
    return Seen(
        forwarded=[(one.head, one.body, one.address) for one in world.forwarded],
        clients=[told(client) for client in world.clients],
        events=sorted(map(repr, events)),
        reports=sorted(map(repr, reports)),
        left_over=world.left_over,
    )


def assert_ids_are_told_apart(world: World) -> None:
    """Each request has an id of its own, and reached the upstream with that and with its client's address."""
    by_id = {event.request_id.encode(): event for event in world.observer.events}
    assert len(by_id) == len(world.observer.events)
    for one in world.forwarded:
        event = by_id[one.request_id]
        assert one.address == event.client_ip.encode()
        assert event.path.encode() in one.head


def h1_world(answer: Callable[[Forwarded], Sequence[bytes]], service: Service | None = None) -> World:
    return World(service or make_service([9000]), lambda world: H1Server(world, answer))


def h2_world(
    answer: Callable[[RequestReceived], Sequence[bytes]] = h2_frames, limits: Http2Limits | None = None
) -> World:
    service = make_service([9000], protocol=UpstreamProtocol.GRPC)
    return World(service, lambda world: H2Server(world, answer, limits))


def send(sent: Sequence[bytes], *, has_lane: bool = True, how: str = "whole", is_hasty: bool = False) -> Seen:
    """Send pieces over one HTTP/1 connection; a hasty client does not wait for anything between them."""
    world = h1_world(h1_answer(how))
    with world.running(has_lane=has_lane):
        client = H1Client()
        world.connect(client, is_h2=False)
        for piece in sent:
            client.pipe.give(piece)
            if not is_hasty:
                world.settle()
        world.settle()
        world.end()
        assert_ids_are_told_apart(world)
        return seen_of(world)


# --- what was found ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("has_kept", [True, False])
def test_a7_a_request_line_in_place_of_a_field_is_refused_whatever_came_before(has_kept: bool) -> None:
    """An empty line before a remembered request line made that one, and all after it, the end of any other head."""
    first = [b"GET /0 HTTP/1.1\r\n" + END] if has_kept else []
    world = h1_world(lambda _: [OK if has_kept else GOOD[8]])
    with world.running():
        client = H1Client()
        world.connect(client, is_h2=False)
        for piece in (*first, b"\r\nGET /0 HTTP/1.1\r\n" + END, b"GET /x HTTP/1.1\r\nGET /0 HTTP/1.1\r\n" + END):
            client.pipe.give(piece)
            world.settle()
        assert client.got.count(b"HTTP/1.1 400 Bad Request") == 1
        assert [one.head.split(b" ")[1] for one in world.forwarded] == [b"/0"] * (1 + len(first))
        assert world.observer.rejections == [("h1", Reason.BAD_HEADER)]
        assert not world.left_over


@pytest.mark.parametrize("has_lane", [True, False])
def test_a6_one_empty_line_before_each_request_is_forgiven(has_lane: bool) -> None:
    """It may come with the request before, and the request after it may be a remembered one."""
    request = b"GET /0 HTTP/1.1\r\n" + END
    world = h1_world(lambda _: [OK])
    with world.running(has_lane=has_lane):
        client = H1Client()
        world.connect(client, is_h2=False)
        before, after = b"\r\n" + request, request + b"\r\n"
        for piece in (request, after, after, request, before, request, after, before):
            client.pipe.give(piece)
            world.settle()
        assert client.got.count(b"HTTP/1.1 200 OK") == 7
        assert client.got.count(b"HTTP/1.1 400 Bad Request") == 1, "two empty lines are one too many"


@pytest.mark.parametrize("has_lane", [True, False])
@pytest.mark.parametrize("size", [999, 1000, 1001, 16_384])
def test_d20_a_body_that_a_window_keeps_back_goes_on_when_it_opens(size: int, has_lane: bool) -> None:
    world = h2_world(limits=Http2Limits(stream_window_bytes=1000))
    with world.running(has_lane=has_lane):
        client = H2Client()
        world.connect(client, is_h2=True)
        for body in (b"", b"b" * size):  # the window is known from the second request on
            stream_id = client.request(GRPC, body)
            world.settle()
        assert client.got[stream_id][-1] == ("end", 0)
        assert [len(one.body) for one in world.forwarded] == [0, size]
        assert not world.left_over


@pytest.mark.parametrize("is_shared", [True, False])
def test_a_client_that_left_with_its_request_is_not_waited_for(is_shared: bool) -> None:
    """Otherwise an endpoint would be blamed for not answering in time what nobody waits for."""
    answers = [b"GET /0"]  # the first request makes a connection that the lane finds
    world = (
        h2_world(lambda request: h2_frames(request) if answers and answers.pop() else [])
        if is_shared
        else h1_world(lambda _: [OK] if answers and answers.pop() else [])
    )
    with world.running():
        client = H1Client()
        world.connect(client, is_h2=False)
        client.pipe.give(b"GET /3 HTTP/1.1\r\n" + END)
        world.settle()
        client.pipe.give(b"GET /3 HTTP/1.1\r\n" + END)
        client.pipe.give(CLOSED)
        world.settle()
        assert not world.left_over
        world.wait(20.0)
        assert [outcome.reason for outcome in world.observer.outcomes] == [Reason.ROUTED, Reason.DOWNSTREAM_RESET]
        assert [event.reason for event in world.observer.events] == [Reason.ROUTED, Reason.DOWNSTREAM_RESET]


def test_a_client_that_resets_its_stream_while_the_body_comes_is_counted() -> None:
    """The lane waits some rounds for the rest of a body that is there unread."""
    world = h2_world()
    with world.running():
        client = H2Client()
        world.connect(client, is_h2=True)
        client.request(GRPC, b"")
        world.settle()
        stream_id = client.connection.get_next_available_stream_id()
        client.connection.send_headers(stream_id, GRPC)
        client.connection.send_data(stream_id, b"half")
        head = client.connection.data_to_send()
        client.connection.reset_stream(stream_id)
        for piece in (head, t.ping(), client.connection.data_to_send()):
            client.pipe.give(piece)
        world.settle()
        assert not world.left_over
        assert [event.reason for event in world.observer.events] == [Reason.ROUTED, Reason.DOWNSTREAM_RESET]


def test_an_https_service_without_settings_has_its_connections_found() -> None:
    world = h1_world(h1_answer(), make_service([9000], protocol=UpstreamProtocol.HTTPS))
    with world.running():
        client = H1Client()
        world.connect(client, is_h2=False)
        for _ in range(2):
            client.pipe.give(b"GET /0 HTTP/1.1\r\n" + END)
            world.settle()
        assert client.got.count(b"200 OK") == 2
        assert len(world.upstreams) == world.express == 1


def test_a_service_that_now_speaks_http2_is_not_sent_http1_on_kept_connections() -> None:
    tls = UpstreamTls()
    service = make_service([9000], protocol=UpstreamProtocol.HTTPS, tls=tls)
    peers: list[Callable[[World], Peer]] = [
        lambda world: H2Server(world, h2_frames),
        lambda world: H1Server(world, h1_answer()),
    ]

    def dialled(world: World) -> Peer:
        return peers.pop()(world)

    world = World(service, dialled)
    with world.running():
        client = H1Client()
        world.connect(client, is_h2=False)
        for _ in range(2):
            client.pipe.give(b"GET /3 HTTP/1.1\r\n" + END)
            world.settle()
            world.edit([make_rule(retry=RETRY)], make_service([9000], protocol=UpstreamProtocol.GRPC, tls=tls))
        assert isinstance(world.upstreams[1], H2Server)
        assert client.got.count(b"HTTP/1.1 2") == 2


# --- what is drawn --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(40))
def test_requests_over_http1_lead_to_the_same_in_any_pieces_and_on_both_roads(seed: int) -> None:
    rng = random.Random(seed)
    usual = rng.choice((*REQUESTS[:3], REQUESTS[15]))
    is_good = seed % 2 == 0
    requests = []
    for _ in range(rng.randint(2, 7)):
        request = usual if rng.random() < 0.55 else rng.choice(REQUESTS)
        number = 0 if rng.random() < 0.4 else rng.randrange(len(GOOD) if is_good else len(ANSWERS))
        requests.append(request % number if b"%d" in request else request)
    stream = b"".join(requests)
    how = rng.choice(("whole", "whole", "random", "bytes"))
    ways = {
        "each": requests,
        "whole": [stream],
        "bytes": cut(stream, rng, "bytes"),
        "random": cut(stream, rng, "random"),
    }
    likes = []
    for name, sent in ways.items():
        by_lane = send(sent, how=how)
        assert by_lane == send(sent, how=how, has_lane=False), name
        assert not by_lane.left_over, name
        heads = [head for head, _, _ in by_lane.forwarded]
        answers, ended = by_lane.clients[0]  # type: ignore[misc]  # HTTP/1: bytes, and how it ended
        likes.append((heads, re.findall(rb"HTTP/1.1 (?!100)([0-9]+)", answers), ended))
    assert send(requests, is_hasty=True) == send(requests, is_hasty=True, has_lane=False)
    # A broken answer may be late or early compared with the next request: only good ones are alike in any pieces.
    assert not is_good or all(like == likes[0] for like in likes)


@pytest.mark.parametrize("seed", range(160))
def test_whatever_happens_both_roads_lead_to_the_same(seed: int) -> None:
    assert happenings(seed, has_lane=True) == happenings(seed, has_lane=False)


def happenings(seed: int, *, has_lane: bool) -> Seen:
    """Let several clients of both protocols, edits, resets, drains and the clock do as the seed says."""
    rng = random.Random(seed)
    world = h1_world(h1_answer(rng.choice(("whole", "whole", "random")))) if seed % 2 else h2_world()
    usual = rng.choice(REQUESTS[:3])
    with world.running(has_lane=has_lane):
        for number in range(1, rng.randint(2, 4)):
            is_h2 = rng.random() < 0.5
            address = f"192.0.2.{number}"
            window = rng.choice((65_535, 65_535, 4))
            client = H2Client(address, window_bytes=window) if is_h2 else H1Client(address)
            world.connect(client, is_h2=is_h2)
        world.settle()
        for _ in range(rng.randint(4, 20)):
            client = rng.choice(world.clients)
            number = 0 if rng.random() < 0.7 else rng.randrange(len(ANSWERS))
            kind = rng.random()
            if kind < 0.7:
                if isinstance(client, H2Client):
                    fields, body = h2_request(rng, number)
                    stream_id = 0 if client.is_over else client.request(fields, *body)
                    if stream_id and not number and rng.random() < 0.2:
                        client.connection.reset_stream(stream_id)
                        client.flush()
                else:
                    request = usual if rng.random() < 0.7 else rng.choice(REQUESTS)
                    client.pipe.give(request % number if b"%d" in request else request)
                if rng.random() < 0.2:
                    continue  # the next thing happens at the same time
            elif kind < 0.8:
                world.wait(rng.choice((0.5, 4.0, 11.0)))
            elif kind < 0.97:
                timeouts = TimeoutPolicy(
                    request_s=rng.choice((3.0, 10.0)),
                    per_try_s=rng.choice((0.0, 2.0)),
                    stream_idle_s=rng.choice((None, 2.5)),
                )
                rule = make_rule(retry=RETRY, timeouts=timeouts)
                path = Match(path=PathMatch(kind=PathKind.PREFIX, value=rng.choice(("/", "/", "/0"))))
                world.edit([msgspec.structs.replace(rule, match=path, hostnames=rng.choice(((), ("shop.example",))))])
            else:
                world.pipeline.is_draining = not world.pipeline.is_draining
            world.settle()
        world.settle()
        world.end()
        assert_ids_are_told_apart(world)
        seen = seen_of(world)
        assert not seen.left_over
        # Who is first of those that come at the same time is nobody's concern.
        return msgspec.structs.replace(seen, forwarded=sorted(seen.forwarded, key=lambda one: one[2]))


@pytest.mark.skipif(not SHARED.exists(), reason="the public corpora are not at hand")
@pytest.mark.parametrize("before", [b"", b"\r\n"])
def test_the_public_corpus_is_judged_the_same_after_a_head_that_is_remembered(before: bytes) -> None:
    for case in json.loads((SHARED / "corpora" / "http1_public.json").read_text()):
        raw = case["raw"].replace("@H@", "shop.example").encode("latin-1")
        known = [b"GET /0 HTTP/1.1\r\n" + END, before + b"GET /0 HTTP/1.1\r\n" + END]
        whole = send([*known, raw])
        assert whole == send([*known, raw], has_lane=False), case["id"]
        assert not whole.left_over, case["id"]
        split = send([*known, *cut(raw, random.Random(1), "bytes")])
        assert [one[0] for one in whole.forwarded] == [one[0] for one in split.forwarded], case["id"]
