"""Limits of request bodies hold to the byte, in whatever pieces a body comes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress

import h2.exceptions
import h11
import msgspec
import trio
import trio.testing
from hypothesis import example, given, settings
from hypothesis import strategies as st

from datum_router.model.listener import Listener
from datum_router.reasons import Reason
from datum_router_proxy.testing_clients import Answer, Field, H1Client, H2Client, client
from datum_router_proxy.testing_peers import Exchange, bounded, gateway, make_rule, make_service, upstream

Sizes = Sequence[int]
STATED, STREAMED = "stated", "streamed"


def split(data: bytes, sizes: Sizes) -> Iterator[bytes]:
    """Yield the data in pieces of these sizes, over and over; of a size of 0 as an empty piece."""
    start = turn = 0
    while start < len(data):
        size = sizes[turn % len(sizes)]
        yield data[start : start + size]
        start, turn = start + size, turn + 1


async def ask_h1(peer: H1Client, fields: Sequence[Field], body: bytes, sizes: Sizes, cuts: Sizes) -> Answer:
    """Send chunks of these sizes, if the body is chunked, and all bytes of the wire by sends of those in `cuts`."""
    head = h11.Request(method="POST", target="/", headers=[(b"host", b"shop.example"), *fields])
    parts = [h11.Data(data=piece) for piece in split(body, sizes)]
    wire = b"".join(peer.connection.send(event) or b"" for event in (head, *parts, h11.EndOfMessage()))
    with suppress(trio.BrokenResourceError):  # answered early
        for piece in split(wire, cuts):
            await peer.stream.send_all(piece)
            await trio.testing.wait_all_tasks_blocked()
    return await peer.receive()


async def ask_h2(peer: H2Client, fields: Sequence[Field], body: bytes, sizes: Sizes, cuts: Sizes) -> Answer:
    """Send DATA frames of these sizes, padded by as much as `cuts` say; each by itself if that is odd."""
    stream_id = await peer.open("POST", "/", fields, end=False)
    with suppress(h2.exceptions.StreamClosedError):  # answered early
        for turn, piece in enumerate(split(body, sizes)):
            padding = cuts[turn % len(cuts)]
            peer.connection.send_data(stream_id, piece, pad_length=padding)
            if padding % 2:
                await peer.flush()
                await trio.testing.wait_all_tasks_blocked()
        peer.connection.end_stream(stream_id)
    await peer.flush()
    return await peer.receive(stream_id)


@settings(max_examples=120, deadline=None)
@given(
    down=st.sampled_from(["h1", "h2"]),
    length=st.sampled_from([STATED, STREAMED]),
    limits=st.tuples(st.integers(1, 60), st.sampled_from([0, 1, 7])),
    is_listeners=st.booleans(),
    more=st.sampled_from([-1, 0, 0, 1, 1, 40]),
    sizes=st.lists(st.integers(0, 20), min_size=1, max_size=6).filter(any),
    cuts=st.lists(st.integers(1, 90), min_size=1, max_size=6),
)
@example(down="h1", length=STREAMED, limits=(5, 0), is_listeners=True, more=1, sizes=[1], cuts=[1])
@example(down="h2", length=STREAMED, limits=(5, 0), is_listeners=False, more=1, sizes=[0, 1], cuts=[1])
@example(down="h1", length=STREAMED, limits=(5, 7), is_listeners=True, more=1, sizes=[2], cuts=[90])
def test_a_body_is_taken_up_to_its_limit_and_not_a_byte_more(
    down: str,
    length: str,
    limits: tuple[int, int],
    is_listeners: bool,
    more: int,
    sizes: list[int],
    cuts: list[int],
) -> None:
    least, above = limits
    # That of the other, listener or route, is not there or above: the lesser one holds.
    other = least + above if above else 0
    of_listener, of_route = (least, other) if is_listeners else (other, least)
    body = bytes(range(least + more))
    fields = [(b"content-length", b"%d" % len(body))] if length == STATED else []
    if length == STREAMED and down == "h1":
        fields = [(b"transfer-encoding", b"chunked")]
    got: list[bytes] = []

    async def app(exchange: Exchange) -> None:
        whole = await exchange.body()
        got.append(whole)
        await exchange.reply(200, b"%d" % len(whole))

    async def main() -> None:
        rule = msgspec.structs.replace(make_rule(), max_request_body_bytes=of_route)
        listener = Listener(name="test", max_request_body_bytes=of_listener)
        async with (
            upstream(app) as server,
            gateway([make_service([server.port])], [rule], listener=listener) as running,
            client(running.port, down) as peer,
        ):
            if isinstance(peer, H1Client):
                answer = await ask_h1(peer, fields, body, sizes, cuts)
            else:
                answer = await ask_h2(peer, fields, body, sizes, cuts)
            rejected = running.recorder.rejections
        if more <= 0:
            assert (answer.status, answer.body) == (200, b"%d" % len(body))
            assert got == [body]
            assert rejected == []
        else:
            assert (answer.status, answer.body.partition(b":")[0]) == (413, b"body_too_large")
            assert got == [], "nobody takes what was cut for complete"
            assert rejected == [(down, Reason.BODY_TOO_LARGE)]

    bounded(main)
