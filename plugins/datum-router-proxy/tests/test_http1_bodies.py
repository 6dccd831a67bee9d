"""Bodies and trailers in both roles: threat rows A9 to A13, A17, A19."""

from __future__ import annotations

import pytest

from datum_router.errors import RemoteProtocolError
from datum_router.reasons import Reason
from datum_router_proxy.wire.http1 import (
    NEED_DATA,
    PAUSED,
    DataReceived,
    FramingKind,
    Http1Connection,
    Http1Limits,
    MessageComplete,
    RequestReceived,
    Role,
    Signal,
    State,
)
from datum_router_proxy.wire.http1.chunked import ChunkedDecoder

CHUNKED = b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"


def begin(head: bytes = CHUNKED, limits: Http1Limits | None = None) -> Http1Connection:
    connection = Http1Connection(Role.SERVER, limits or Http1Limits())
    connection.receive_data(head)
    assert isinstance(connection.next_event(), RequestReceived)
    return connection


def drain(connection: Http1Connection) -> tuple[bytes, MessageComplete | None]:
    body = b""
    while True:
        event = connection.next_event()
        if isinstance(event, DataReceived):
            assert type(event.data) is bytes
            assert event.data
            body += event.data
        elif isinstance(event, MessageComplete):
            return body, event
        else:
            assert isinstance(event, Signal)
            return body, None


def body_of(wire: bytes, step: int | None = None, limits: Http1Limits | None = None) -> tuple[bytes, MessageComplete]:
    connection = begin(limits=limits)
    body = b""
    for start in range(0, len(wire), step or len(wire)):
        connection.receive_data(wire[start : start + (step or len(wire))])
        more, end = drain(connection)
        body += more
        if end is not None:
            return body, end
    raise AssertionError("message did not end")


def refusal(wire: bytes, limits: Http1Limits | None = None) -> tuple[int, Reason]:
    verdicts = []
    for step in (None, 1):
        with pytest.raises(RemoteProtocolError) as caught:
            body_of(wire, step, limits)
        verdicts.append((caught.value.status_hint, caught.value.reason))
    return verdicts[0]


@pytest.mark.parametrize("step", [None, 1, 2, 3, 7])
def test_chunks_are_joined_and_end_with_the_last_one(step: int | None) -> None:
    body, end = body_of(b"5\r\nhello\r\nA\r\n0123456789\r\n000\r\n\r\n", step)
    assert body == b"hello0123456789"
    assert end.trailers == ()


@pytest.mark.parametrize(
    "wire",
    [
        b"+5\r\nhello\r\n",
        b"-5\r\nhello\r\n",
        b"0x5\r\nhello\r\n",
        b"5_0\r\n",
        b" 5\r\nhello\r\n",
        b"5 \r\nhello\r\n",
        b"5\t\r\nhello\r\n",
        b"\r\nhello\r\n",
        b"5x\r\nhello\r\n",
        b"g\r\n",
        b"5,5\r\n",
        b"0" * 17 + b"5\r\nhello\r\n",
        b"\xb25\r\n",
        b"5\nhello\r\n",
        b"5\rhello\r\n",
        b"5\r\r\nhello",
        b"5;\r\nhello\r\n",
        b"5;=x\r\nhello\r\n",
        b"5; a\r\nhello\r\n",
        b"5 ;a\r\nhello\r\n",
        b"5;a =b\r\nhello\r\n",
        b"5;a=\r\nhello\r\n",
        b"5;a\nb\r\nhello\r\n",
        b'5;a="x\r\nhello\r\n',
        b'5;a="x\n"\r\nhello\r\n',
        b"5;a\x00\r\nhello\r\n",
    ],
)
def test_a9_a11_malformed_chunk_headers_are_refused(wire: bytes) -> None:
    assert refusal(wire + b"0\r\n\r\n") == (400, Reason.BAD_CHUNK)


@pytest.mark.parametrize("tail", [b"XX", b"\nX", b"\rX", b"\n\r", b"0\r\n\r\n", b" \r\n", b"\r\r\n"])
def test_a10_chunk_data_must_be_followed_by_crlf(tail: bytes) -> None:
    assert refusal(b"5\r\nhello" + tail + b"0\r\n\r\n")[1] is Reason.BAD_CHUNK


def test_a9_sixteen_digits_are_taken_without_waiting_for_them() -> None:
    connection = begin()
    connection.receive_data(b"f" * 16 + b"\r\nhello")
    assert connection.next_event() == DataReceived(b"hello")
    assert connection.next_event() is NEED_DATA


def test_a11_valid_extensions_are_dropped() -> None:
    body, _ = body_of(b'5;a;b=c;d="e;\\" f"\r\nhello\r\n0;last\r\n\r\n')
    assert body == b"hello"


def test_a11_chunk_header_limit() -> None:
    fits = b"5;a=" + b"b" * 250 + b"\r\n"
    assert len(fits) == 256
    assert body_of(fits + b"hello\r\n0\r\n\r\n")[0] == b"hello"
    assert refusal(b"5;a=" + b"b" * 251 + b"\r\nhello\r\n0\r\n\r\n") == (400, Reason.BAD_CHUNK)


def test_a11_endless_chunk_header_stops_at_the_limit() -> None:
    connection = begin()
    connection.receive_data(b"5;a=" + b"b" * 300)
    with pytest.raises(RemoteProtocolError):
        connection.next_event()


def test_a11_extension_limit_per_message() -> None:
    chunk = b"1;a=" + b"b" * 197 + b"\r\nx\r\n"  # 200 bytes of extensions each
    assert body_of(chunk * 40 + b"0\r\n\r\n")[0] == b"x" * 40
    assert refusal(chunk * 41 + b"0\r\n\r\n") == (400, Reason.BAD_CHUNK)


def test_a12_one_byte_chunks_are_batched_into_few_events() -> None:
    connection = begin()
    connection.receive_data(b"1\r\nx\r\n" * 40_000)
    events = 0
    total = 0
    while isinstance(event := connection.next_event(), DataReceived):
        events += 1
        total += len(event.data)
    assert total == 40_000
    assert events <= 4


def test_a12_decoder_moves_forward_only() -> None:
    decoder = ChunkedDecoder(Http1Limits(chunk_batch_bytes=10))
    wire = b"4\r\nabcd\r\n" * 10
    position = 0
    while position < len(wire):
        data, after, ended = decoder.decode(wire, position)
        assert after > position
        assert len(data) <= 12
        assert not ended
        position = after


def test_large_pieces_of_a_body_are_not_copied() -> None:
    for head in (CHUNKED, b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 2147483648\r\n\r\n"):
        connection = begin(head)
        if head is CHUNKED:
            connection.receive_data(b"80000000\r\n")
            assert connection.next_event() is NEED_DATA
        for _ in range(3):
            piece = bytes(65536)
            connection.receive_data(piece)
            event = connection.next_event()
            assert isinstance(event, DataReceived)
            assert event.data is piece
            assert connection.buffered_bytes == 0


@pytest.mark.parametrize("step", [None, 1, 5])
def test_a13_trailers_are_parsed_and_unsafe_names_dropped(step: int | None) -> None:
    unsafe = (
        b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\nHost: b\r\nAuthorization: x\r\n"
        b"X-Forwarded-For: 1.1.1.1\r\n"
        b"Cookie: a\r\nConnection: close\r\nX-Datum-Route: z\r\nProxy-Authorization: x\r\nTrailer: y\r\nA_B: c\r\n"
    )
    _, end = body_of(b"0\r\nGrpc-Status: 0\r\n" + unsafe + b"X-Sum: 1 \r\n\r\n", step)
    assert end.trailers == ((b"grpc-status", b"0"), (b"x-sum", b"1"))


@pytest.mark.parametrize("line", [b" folded", b"X : y", b"no colon", b": y", b"X: \x00"])
def test_a13_malformed_trailers_are_refused(line: bytes) -> None:
    assert refusal(b"0\r\nA: b\r\n" + line + b"\r\n\r\n") == (400, Reason.BAD_TRAILER)


@pytest.mark.parametrize("wire", [b"0\r\nA: b\n\r\n\r\n", b"0\r\nA: b\rc\r\n\r\n", b"0\r\n\nA: b\r\n\r\n"])
def test_a6_bare_cr_or_lf_in_trailers_is_refused(wire: bytes) -> None:
    assert refusal(wire) == (400, Reason.BAD_LINE_END)


def test_a13_trailer_count_limit() -> None:
    assert len(body_of(b"0\r\n" + b"A: b\r\n" * 64 + b"\r\n")[1].trailers) == 64
    assert refusal(b"0\r\n" + b"A: b\r\n" * 65 + b"\r\n")[0] == 431


def test_a13_trailer_size_limit() -> None:
    assert refusal(b"0\r\nA: " + b"b" * 8200 + b"\r\n\r\n") == (431, Reason.BAD_TRAILER)
    connection = begin()
    connection.receive_data(b"0\r\nA: " + b"b" * 8200)
    with pytest.raises(RemoteProtocolError):
        connection.next_event()


@pytest.mark.parametrize("wire", [b"", b"5", b"5\r\nhel", b"5\r\nhello", b"5\r\nhello\r\n", b"0\r\n", b"0\r\nA: b\r\n"])
def test_closing_inside_a_chunked_body_is_truncation(wire: bytes) -> None:
    connection = begin()
    if wire:
        connection.receive_data(wire)
    drain(connection)
    connection.receive_data(b"")
    with pytest.raises(RemoteProtocolError) as caught:
        connection.next_event()
    assert (caught.value.status_hint, caught.value.reason) == (400, Reason.TRUNCATED)


def test_content_length_body_ends_at_its_length_and_closing_early_is_truncation() -> None:
    connection = begin(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\n")
    connection.receive_data(b"hel")
    assert connection.next_event() == DataReceived(b"hel")
    connection.receive_data(b"loGET")
    assert connection.next_event() == DataReceived(b"lo")
    assert connection.next_event() == MessageComplete()
    assert connection.next_event() is PAUSED
    short = begin(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\n")
    short.receive_data(b"hel")
    assert short.next_event() == DataReceived(b"hel")
    short.receive_data(b"")
    with pytest.raises(RemoteProtocolError) as caught:
        short.next_event()
    assert caught.value.reason is Reason.TRUNCATED


def test_a_whole_body_is_taken_once_it_is_there_and_nothing_of_what_follows() -> None:
    connection = begin(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\n")
    connection.receive_data(b"hell")
    assert connection.whole_body() is None
    connection.receive_data(b"oGET / HTTP/1.1\r\n")
    assert connection.whole_body() == b"hello"
    assert connection.whole_body() is None
    assert connection.trailing_data() == b"GET / HTTP/1.1\r\n"
    assert connection.reading is State.DONE


def test_a_chunked_body_is_never_whole() -> None:
    connection = begin()
    connection.receive_data(b"5\r\nhello\r\n0\r\n\r\n")
    assert connection.whole_body() is None
    assert drain(connection)[0] == b"hello"


def test_a14_body_of_a_get_is_never_parsed_as_a_request() -> None:
    inner = b"GET /admin HTTP/1.1\r\nHost: a\r\n\r\n"
    connection = begin(b"GET / HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % len(inner) + inner)
    assert drain(connection) == (inner, MessageComplete())
    assert connection.next_event() is PAUSED


def test_a19_pipelined_requests_wait_for_their_turn() -> None:
    connection = begin(b"GET /1 HTTP/1.1\r\nHost: a\r\n\r\nGET /2 HTTP/1.1\r\nHost: a\r\n\r\nBAD")
    targets = []
    for _ in range(2):
        assert connection.next_event() == MessageComplete()
        assert connection.next_event() is PAUSED
        connection.send_response(204, ())
        connection.send_end()
        connection.start_next_cycle()
        event = connection.next_event()
        if isinstance(event, RequestReceived):
            targets.append(event.head.target)
            assert event.head.framing.kind is FramingKind.NONE
    assert targets == [b"/2"]


def test_a19_read_ahead_is_bounded_by_wants_data() -> None:
    connection = begin(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n", Http1Limits(max_read_ahead_bytes=1000))
    assert connection.next_event() == MessageComplete()
    sent = 0
    while connection.wants_data:
        connection.receive_data(b"x" * 100)
        sent += 100
        assert connection.next_event() is PAUSED
    assert sent == 1000
    assert connection.buffered_bytes == 1000
