"""The HTTP/1.1 engine in both roles.

An input is one octet that chooses the pieces it is fed in, for the client one more that chooses the request, and the
bytes of the wire. Properties: `RemoteProtocolError` with a status of its role is the only error; the pieces change
nothing; a cache of heads changes nothing; every limit holds; what is accepted can be written again, and is then read
as the same message.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from datum_router.errors import RemoteProtocolError
from datum_router_proxy.wire.http1 import (
    FRAMING_CHUNKED,
    ConnectionClosed,
    DataReceived,
    Event,
    FramingKind,
    HeadCache,
    Http1Connection,
    Http1Limits,
    InformationalReceived,
    MessageComplete,
    RequestReceived,
    ResponseReceived,
    Role,
    Signal,
)

# Small, so that inputs of a few hundred bytes reach each of them.
LIMITS = Http1Limits(
    max_target_bytes=64,
    max_head_bytes=512,
    max_fields=8,
    max_field_bytes=128,
    max_chunk_header_bytes=24,
    max_chunk_extension_bytes=32,
    max_trailer_bytes=128,
    max_trailer_fields=4,
    max_informational=2,
    max_read_ahead_bytes=256,
    chunk_batch_bytes=64,
)
STATUSES = {Role.SERVER: {400, 405, 414, 417, 431, 501, 505}, Role.CLIENT: {502}}
# Method and protocol to upgrade to.
REQUESTS = (("GET", None), ("HEAD", None), ("POST", None), ("GET", b"websocket"))
FIELD_OVERHEAD = 4

WORDS = (
    b"\r\n", b"\r\n\r\n", b"\n", b"\r", b"\x00", b" ", b"\t", b":", b"GET ", b"HEAD ", b"OPTIONS * ", b"CONNECT ",
    b" HTTP/1.1\r\n", b" HTTP/1.0\r\n", b"HTTP/1.1 200 OK\r\n", b"HTTP/1.1 100 Continue\r\n\r\n", b"HTTP/1.1 101 x\r\n",
    b"HTTP/1.1 204 x\r\n", b"HTTP/1.1 304 x\r\n", b"Host: a\r\n", b"Content-Length: 5\r\n", b"Content-Length: 0\r\n",
    b"Transfer-Encoding: chunked\r\n", b"Connection: close\r\n", b"Connection: keep-alive, upgrade\r\n",
    b"Upgrade: websocket\r\n", b"Expect: 100-continue\r\n", b"TE: trailers\r\n", b"Trailer: x\r\n", b"x_y: z\r\n",
    b"5\r\nhello\r\n", b"0\r\n\r\n", b"0\r\nx: y\r\n\r\n", b"a;b=c\r\n", b';q="x"', b"http://h/", b"chunked", b"gzip, ",
)  # fmt: skip

_caches = {role: HeadCache() for role in Role}


def check_server(data: bytes) -> None:
    """Check the engine that reads requests."""
    if data:
        _check(Role.SERVER, data[1:], data[0], REQUESTS[0])


def check_client(data: bytes) -> None:
    """Check the engine that reads responses."""
    if len(data) >= 2:
        _check(Role.CLIENT, data[2:], data[0], REQUESTS[data[1] % len(REQUESTS)])


def _check(role: Role, wire: bytes, choice: int, request: tuple[str, bytes | None]) -> None:
    whole = events_of(role, [wire], request)
    for parts, cache in ((pieces(wire, choice), None), (pieces(wire, 0), None), ([wire], _caches[role])):
        other = events_of(role, parts, request, cache)
        if whole[-1:] == ["error"] or other[-1:] == ["error"]:
            # Pieces may show a fault earlier, and some of the body before it: the same heads in any case.
            assert other[-1:] == whole[-1:], (whole[-1:], other[-1:])
            assert _heads(other) == _heads(whole)
        else:
            assert other == whole
    for event in whole:
        _check_limits(event)
    _write_again(role, whole)


def pieces(wire: bytes, choice: int) -> list[bytes]:
    """Return the wire cut evenly (0: into single octets, then pieces of 2, 3, ...), or unevenly from 16 on."""
    if choice < 16:
        sizes: Iterable[int] = [choice + 1]
    else:
        sizes = [1 + (choice * 7 + k * 13) % 37 for k in range(11)]
    found: list[bytes] = []
    start = 0
    for size in _endless(sizes):
        if start >= len(wire):
            return found
        found.append(wire[start : start + size])
        start += size
    return found


def _endless(sizes: Iterable[int]) -> Iterator[int]:
    while True:
        yield from sizes


def _heads(events: list[object]) -> list[object]:
    kinds = (RequestReceived, ResponseReceived, InformationalReceived)
    return [event for event in events if isinstance(event, kinds)]


def events_of(
    role: Role, parts: Iterable[bytes], request: tuple[str, bytes | None], cache: HeadCache | None = None
) -> list[object]:
    """Return the events of a connection whose other half answers (or asks) at once; data are joined."""
    engine = Http1Connection(role, LIMITS, cache)
    _ask(engine, request)
    found: list[object] = []
    is_upgrade = False
    for part in [*parts, b""]:
        engine.receive_data(part)
        while True:
            event: Event | Signal | None
            status = 0
            try:
                event = engine.next_event()
            except RemoteProtocolError as error:
                status = error.status_hint
                event = None
            if event is None:
                assert status in STATUSES[role]
                assert engine.must_close
                assert engine.buffered_bytes == 0
                return [*found, "error"]
            if isinstance(event, Signal):
                if event is Signal.NEED_DATA:
                    assert engine.buffered_bytes <= LIMITS.max_head_bytes, "more is held than an incomplete head"
                break
            if isinstance(event, ConnectionClosed):
                return [*found, "closed"]
            if isinstance(event, DataReceived) and found and isinstance(found[-1], DataReceived):
                assert event.data
                found[-1] = DataReceived(found[-1].data + event.data)
            else:
                found.append(event)
            if isinstance(event, RequestReceived):
                is_upgrade = bool(event.head.upgrade)
            elif isinstance(event, MessageComplete):
                rest = b""
                if role is Role.SERVER:
                    if is_upgrade:
                        return [*found, "last"]  # what follows may close the connection, if it comes before the answer
                    engine.send_response(204, ())
                    engine.send_end()
                else:
                    rest = engine.trailing_data()  # as if it came later: surplus of an upstream forbids to go on
                if not engine.can_reuse:
                    return [*found, "last"]
                engine.start_next_cycle()
                _ask(engine, request)
                if rest:
                    engine.receive_data(rest)
    return found


def _ask(engine: Http1Connection, request: tuple[str, bytes | None]) -> None:
    if engine.role is Role.CLIENT:
        engine.send_request(request[0], b"/", b"a", (), upgrade=request[1])
        engine.send_end()


def _check_limits(event: object) -> None:
    if isinstance(event, RequestReceived):
        head = event.head
        assert len(head.target) <= LIMITS.max_target_bytes
        assert head.authority
        assert head.framing.kind is not FramingKind.UNTIL_CLOSE
    elif isinstance(event, ResponseReceived | InformationalReceived):
        assert 100 <= event.head.status <= 599
    if isinstance(event, RequestReceived | ResponseReceived | InformationalReceived):
        fields, most, longest = event.head.fields, LIMITS.max_fields, LIMITS.max_head_bytes
    elif isinstance(event, MessageComplete):
        fields, most, longest = event.trailers, LIMITS.max_trailer_fields, LIMITS.max_trailer_bytes
    else:
        return
    assert len(fields) <= most
    assert sum(len(name) + len(value) + FIELD_OVERHEAD - 1 for name, value in fields) <= longest
    for name, value in fields:
        assert name == name.lower()
        assert not set(b"\r\n\0") & set(name + value)
        assert value == value.strip(b" \t")


def _write_again(role: Role, events: list[object]) -> None:
    """Write each complete message as the other side would, and read it back."""
    head: RequestReceived | ResponseReceived | None = None
    body = b""
    for event in events:
        if isinstance(event, RequestReceived | ResponseReceived):
            head, body = event, b""
        elif isinstance(event, DataReceived):
            body += event.data
        elif isinstance(event, MessageComplete) and head is not None:
            if isinstance(head, RequestReceived):
                _request_again(head, body, event)
            elif head.head.status != 101:
                _response_again(head, body, event)
            head = None


def _request_again(event: RequestReceived, body: bytes, end: MessageComplete) -> None:
    head = event.head
    writer = Http1Connection(Role.CLIENT)
    wire = writer.send_request(head.method, head.path_query, head.authority, head.fields, framing=head.framing)
    wire += writer.send_data(body) + writer.send_end(end.trailers)
    reader = Http1Connection(Role.SERVER)
    reader.receive_data(wire)
    again = reader.next_event()
    assert isinstance(again, RequestReceived)
    assert (again.head.method, again.head.target, again.head.authority, again.head.fields, again.head.framing) == (
        head.method, head.path_query, head.authority, head.fields, head.framing,
    )  # fmt: skip
    _same_rest(reader, body, end)


def _response_again(event: ResponseReceived, body: bytes, end: MessageComplete) -> None:
    head = event.head
    writer = Http1Connection(Role.SERVER)
    writer.receive_data(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
    assert isinstance(writer.next_event(), RequestReceived)
    assert writer.next_event() == MessageComplete()
    framing = head.framing
    if framing.kind is FramingKind.UNTIL_CLOSE:
        framing = FRAMING_CHUNKED  # as the gateway does, to keep the client's connection
    wire = writer.send_response(head.status, head.fields, framing=framing, reason=head.reason)
    wire += writer.send_data(body) + writer.send_end(end.trailers)
    reader = Http1Connection(Role.CLIENT)
    _ask(reader, REQUESTS[0])
    reader.receive_data(wire)
    again = reader.next_event()
    assert isinstance(again, ResponseReceived)
    assert (again.head.status, again.head.fields) == (head.status, head.fields)
    _same_rest(reader, body, end)


def _same_rest(reader: Http1Connection, body: bytes, end: MessageComplete) -> None:
    found = b""
    while isinstance(event := reader.next_event(), DataReceived):
        found += event.data
    assert found == body
    assert event == end
    assert reader.buffered_bytes == 0
