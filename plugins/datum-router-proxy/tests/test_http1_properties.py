"""Properties of the HTTP/1.1 engine: no bytes make it raise anything else, splits do not matter."""

from __future__ import annotations

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from datum_router.errors import RemoteProtocolError
from datum_router_proxy.wire.http1 import (
    FRAMING_CHUNKED,
    FRAMING_NONE,
    ConnectionClosed,
    DataReceived,
    Event,
    Framing,
    FramingKind,
    HeadCache,
    Http1Connection,
    InformationalReceived,
    MessageComplete,
    RequestReceived,
    ResponseReceived,
    Role,
    Signal,
)

STATUSES = {Role.CLIENT: {502}, Role.SERVER: {400, 405, 414, 417, 431, 501, 505}}

SETTINGS = settings(max_examples=200, deadline=None)

FRAGMENTS = [
    b"GET ",
    b"POST ",
    b"/",
    b"/a?b",
    b" HTTP/1.1",
    b" HTTP/1.0",
    b"\r\n",
    b"\n",
    b"\r",
    b"\r\n\r\n",
    b"Host: a\r\n",
    b":",
    b" ",
    b"\t",
    b"Content-Length: 5\r\n",
    b"Content-Length: 0\r\n",
    b"Transfer-Encoding: chunked\r\n",
    b"Connection: close\r\n",
    b"Connection: upgrade\r\nUpgrade: websocket\r\n",
    b"Expect: 100-continue\r\n",
    b"X_Y: z\r\n",
    b"X: \xff\r\n",
    b"\x00",
    b"5\r\nhello\r\n",
    b"0\r\n\r\n",
    b"0\r\n",
    b"a;b=c\r\n",
    b"hello",
    b"HTTP/1.1 200 OK\r\n",
    b"HTTP/1.1 100 C\r\n\r\n",
    b"HTTP/1.1 204 N\r\n",
    b"HTTP/1.1 101 S\r\n",
    b"GET / HTTP/1.1\r\nHost: a\r\n\r\n",
    b"fffff\r\n",
    b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n",
]

soup = st.lists(st.one_of(st.sampled_from(FRAGMENTS), st.binary(max_size=8)), max_size=24).map(b"".join)
cuts = st.lists(st.integers(min_value=1, max_value=40), min_size=1, max_size=30)


def pieces(wire: bytes, sizes: list[int]) -> list[bytes]:
    found = []
    start = 0
    index = 0
    while start < len(wire):
        size = sizes[index % len(sizes)]
        found.append(wire[start : start + size])
        start += size
        index += 1
    return found


def run(role: Role, parts: list[bytes], cache: HeadCache | None = None, method: str = "GET") -> list[Event | str]:
    """Return all events, data joined, of a peer that answers (or asks) at once; errors become their reason."""
    connection = Http1Connection(role, cache=cache)
    if role is Role.CLIENT:
        connection.send_request(method, b"/", b"a", (), upgrade=b"websocket")
        connection.send_end()
    found: list[Event | str] = []
    for part in [*parts, b""]:
        connection.receive_data(part)
        while True:
            try:
                event = connection.next_event()
            except RemoteProtocolError as error:
                found.append("error" if error.status_hint in STATUSES[role] else f"status {error.status_hint}")
                return found
            if isinstance(event, ConnectionClosed):
                found.append("closed")
                return found
            if isinstance(event, Signal):
                break
            if isinstance(event, DataReceived) and found and isinstance(found[-1], DataReceived):
                found[-1] = DataReceived(found[-1].data + event.data)
            else:
                found.append(event)
            if isinstance(event, MessageComplete):
                if role is Role.SERVER:
                    connection.send_response(204, ())
                    connection.send_end()
                if not connection.can_reuse:
                    return found
                connection.start_next_cycle()
                if role is Role.CLIENT:
                    connection.send_request(method, b"/", b"a", (), upgrade=b"websocket")
                    connection.send_end()
    return found


@SETTINGS
@given(role=st.sampled_from(Role), wire=soup, sizes=cuts)
def test_any_bytes_in_any_split_raise_nothing_but_remote_protocol_errors(
    role: Role, wire: bytes, sizes: list[int]
) -> None:
    assert not [event for event in run(role, pieces(wire, sizes)) if str(event).startswith("status")]


token = st.text("abcdefghijklmnopqrstuvwxyz0123456789-", min_size=1, max_size=12).map(
    lambda name: b"x-" + name.encode()
)
value_byte = st.sampled_from(b' \t!a,;="\\~\x80\xff')
value = st.lists(value_byte, max_size=12).map(lambda raw: bytes(raw).strip(b" \t"))
fields = st.lists(st.tuples(token, value), max_size=8).map(tuple)
trailers = (
    st.lists(st.tuples(token, value), max_size=3)
    .map(tuple)
    .filter(
        lambda found: (
            not any(
                name.startswith((b"x-forwarded-", b"x-datum-")) or name in (b"x-real-ip", b"x-request-id")
                for name, _ in found
            )
        )
    )
)
payload = st.lists(st.binary(min_size=1, max_size=40), max_size=5)
target = st.text("abc/?=&%.~|", max_size=20).map(lambda text: b"/" + text.encode())


class Message:
    def __init__(self, parts: list[bytes], framing: Framing, trailing: tuple[tuple[bytes, bytes], ...]) -> None:
        self.parts = parts
        self.framing = framing
        self.trailing = trailing if framing.kind is FramingKind.CHUNKED else ()


@st.composite
def messages(draw: st.DrawFn) -> Message:
    parts = draw(payload)
    framing = draw(
        st.sampled_from(
            [FRAMING_CHUNKED, Framing(FramingKind.LENGTH, sum(map(len, parts))), *([] if parts else [FRAMING_NONE])]
        )
    )
    return Message(parts, framing, draw(trailers))


def written(connection: Http1Connection, head: bytes, message: Message) -> bytes:
    body = b"".join(connection.send_data(part) for part in message.parts)
    return head + body + connection.send_end(message.trailing)


@SETTINGS
@given(
    method=st.sampled_from(["GET", "POST", "PURGE"]), path=target, given_fields=fields, message=messages(), sizes=cuts
)
def test_requests_survive_the_wire_in_any_split(
    method: str, path: bytes, given_fields: tuple[tuple[bytes, bytes], ...], message: Message, sizes: list[int]
) -> None:
    client = Http1Connection(Role.CLIENT)
    head = client.send_request(method, path, b"a.example:80", given_fields, framing=message.framing)
    wire = written(client, head, message)
    whole = run(Role.SERVER, [wire * 2], HeadCache())
    assert run(Role.SERVER, pieces(wire * 2, sizes)) == whole
    body = [DataReceived(b"".join(message.parts))] if message.parts else []
    first = whole[0]
    assert isinstance(first, RequestReceived)
    assert (first.head.method, first.head.target, first.head.fields) == (method, path, given_fields)
    assert (first.head.authority, first.head.framing) == (b"a.example:80", message.framing)
    assert whole == [first, *body, MessageComplete(message.trailing)] * 2 + ["closed"]


@SETTINGS
@given(status=st.sampled_from([200, 404, 299]), given_fields=fields, message=messages(), sizes=cuts)
def test_responses_survive_the_wire_in_any_split(
    status: int, given_fields: tuple[tuple[bytes, bytes], ...], message: Message, sizes: list[int]
) -> None:
    server = Http1Connection(Role.SERVER)
    server.receive_data(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
    server.next_event()
    server.next_event()
    interim = server.send_informational(103, given_fields)
    head = server.send_response(status, given_fields, framing=message.framing)
    wire = interim + written(server, head, message)
    whole = run(Role.CLIENT, [wire], HeadCache())
    assert run(Role.CLIENT, pieces(wire, sizes)) == whole
    assert isinstance(whole[0], InformationalReceived)
    final = whole[1]
    assert isinstance(final, ResponseReceived)
    assert (final.head.status, final.head.fields) == (status, given_fields)
    body = [DataReceived(b"".join(message.parts))] if message.parts else []
    assert whole[2:] == [*body, MessageComplete(message.trailing), "closed"]


@SETTINGS
@given(wire=soup, sizes=cuts)
@example(wire=b"GET / HTTP/1.1\r\nHost: a\r\n\r\n" * 3, sizes=[1])
def test_splits_never_change_what_was_accepted(wire: bytes, sizes: list[int]) -> None:
    for role in Role:
        whole = run(role, [wire], HeadCache())
        split = run(role, pieces(wire, sizes))
        if "error" in (whole[-1:] + split[-1:]):
            # a split may see the fault earlier or deliver part of the data before it: never a different message
            heads = [event for event in whole if isinstance(event, RequestReceived | ResponseReceived)]
            assert [event for event in split if isinstance(event, RequestReceived | ResponseReceived)] == heads
            assert split[-1] == whole[-1] == "error"
        else:
            assert split == whole


@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_cached_and_parsed_heads_are_equal_for_every_method(method: str) -> None:
    cache = HeadCache()
    wire = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n" + (b"" if method == "HEAD" else b"ok")
    for other in ("GET", "HEAD"):
        run(Role.CLIENT, [b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n"], cache, other)
    assert run(Role.CLIENT, [wire], cache, method) == run(Role.CLIENT, [wire], None, method)
