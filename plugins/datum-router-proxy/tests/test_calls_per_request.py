"""How many of our functions one request calls, by lane: what a feature adds to requests that do not use it shows here.

Calls are counted, not time, so that the figures are the same on every machine. A bound has room for a call, of the
pipeline for three; who needs more for requests of plain rules should decide it when a rule is linked, or a head is
planned, and not per request.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

import pytest

from datum_router.model.service import UpstreamProtocol
from datum_router_proxy import testing as t
from datum_router_proxy.testing_peers import make_service
from datum_router_proxy.testing_roads import Field, H1Client, H1Server, H2Client, H2Server, Peer, World

WARM_UP = 8
COUNTED = 16
BODY = b"x" * 1024
H1_ANSWER = b"HTTP/1.1 200 OK\r\nserver: up\r\ncontent-type: text/plain\r\ncontent-length: 1024\r\n\r\n" + BODY
H1_FIELDS = b"Host: shop.example\r\nAccept: */*\r\nUser-Agent: test\r\nCookie: a=b\r\n"
H1_GET = b"GET /%d HTTP/1.1\r\n" + H1_FIELDS + b"\r\n"
H1_POST = b"POST /%d HTTP/1.1\r\n" + H1_FIELDS + b"Content-Length: 5\r\n\r\nhello"
H2_HEAD: tuple[Field, ...] = ((b":scheme", b"http"), (b":authority", b"shop.example"), (b"accept", b"*/*"))
GRPC_FIELDS: tuple[Field, ...] = ((b"content-type", b"application/grpc"), (b"te", b"trailers"))
MESSAGE = b"\0\0\0\0\x05hello"

Ask = Callable[[World, Peer, int], None]


def h1_upstream(world: World) -> Peer:
    return H1Server(world, lambda _: [H1_ANSWER])


def grpc_upstream(world: World) -> Peer:
    head = ((b":status", b"200"), (b"content-type", b"application/grpc"))

    def answer(stream_id: int) -> list[bytes]:
        ended = t.headers(stream_id, ((b"grpc-status", b"0"),))
        return [t.headers(stream_id, head, end_stream=False) + t.data(stream_id, MESSAGE) + ended]

    return H2Server(world, lambda request: answer(request.stream_id))


def ask_h1(head: bytes) -> Ask:
    def ask(_: World, client: Peer, number: int) -> None:
        client.to_send.append(head % number)

    return ask


def ask_h2(method: bytes, *bodies: bytes, fields: tuple[Field, ...] = ()) -> Ask:
    def ask(_: World, client: Peer, number: int) -> None:
        assert isinstance(client, H2Client)
        client.request(((b":method", method), (b":path", b"/%d" % number), *H2_HEAD, *fields), *bodies)

    return ask


@contextmanager
def counting(calls: Counter[str]) -> Iterator[None]:
    """Count calls of functions of ours, but not what peers do, which may use an engine of ours as well."""
    within_peers = 0

    def note(frame: FrameType, event: str, _: object) -> None:
        nonlocal within_peers
        code = frame.f_code
        module = str(frame.f_globals.get("__name__"))
        if module.startswith("datum_router_proxy.testing"):
            if code.co_name == "take":
                within_peers += {"call": 1, "return": -1}.get(event, 0)
        elif event == "call" and not within_peers and module.startswith("datum_router"):
            calls[code.co_qualname] += 1

    before = sys.getprofile()
    sys.setprofile(note)
    try:
        yield
    finally:
        sys.setprofile(before)


def calls_of(ask: Ask, upstream: Callable[[World], Peer], *, is_h2: bool, has_lane: bool, is_new: bool) -> Counter[str]:
    """Return what is called for `COUNTED` requests; a target is new each time if `is_new`."""
    protocol = UpstreamProtocol.HTTP if upstream is h1_upstream else UpstreamProtocol.GRPC
    world = World(make_service([9000], protocol=protocol), upstream)
    calls: Counter[str] = Counter()
    with world.running(has_lane=has_lane):
        client: Peer = H2Client() if is_h2 else H1Client()
        world.connect(client, is_h2=is_h2)
        world.settle()
        for number in range(WARM_UP + COUNTED):
            ask(world, client, number if is_new else 1)
            with counting(calls if number >= WARM_UP else Counter()):
                world.settle()
        assert len(world.forwarded) == WARM_UP + COUNTED
        assert [event.status for event in world.observer.events] == [200] * (WARM_UP + COUNTED)
        assert len(world.upstreams) == 1  # they were kept, and taken again
        # The first ones made the connection, and the head was new.
        assert (world.express >= COUNTED) is has_lane
    return calls


GRPC = ask_h2(b"POST", MESSAGE, fields=GRPC_FIELDS)


@pytest.mark.parametrize(
    ("ask", "upstream", "is_h2", "has_lane", "is_new", "most"),
    [
        pytest.param(ask_h1(H1_GET), h1_upstream, False, True, False, 49, id="h1 GET"),
        pytest.param(ask_h1(H1_GET), h1_upstream, False, True, True, 60, id="h1 GET, other targets"),
        pytest.param(ask_h1(H1_POST), h1_upstream, False, True, False, 106, id="h1 POST"),
        pytest.param(ask_h2(b"GET"), h1_upstream, True, True, False, 126, id="h2 GET"),
        pytest.param(GRPC, grpc_upstream, True, True, False, 240, id="gRPC"),
        pytest.param(ask_h1(H1_GET), h1_upstream, False, False, False, 228, id="h1 GET, pipeline"),
        pytest.param(ask_h1(H1_POST), h1_upstream, False, False, False, 258, id="h1 POST, pipeline"),
        pytest.param(GRPC, grpc_upstream, True, False, False, 485, id="gRPC, pipeline"),
    ],
)
def test_a_request_of_a_plain_rule_calls_few_functions(
    ask: Ask, upstream: Callable[[World], Peer], is_h2: bool, has_lane: bool, is_new: bool, most: int
) -> None:
    calls = calls_of(ask, upstream, is_h2=is_h2, has_lane=has_lane, is_new=is_new)
    again = calls_of(ask, upstream, is_h2=is_h2, has_lane=has_lane, is_new=is_new)
    assert calls == again  # nothing but the code decides
    assert 0 < calls.total() <= most * COUNTED, dict(calls.most_common())
