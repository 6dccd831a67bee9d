"""The client role: what an upstream may answer. Threat rows A16 to A18, and A1 to A8 for responses."""

from __future__ import annotations

import pytest

from datum_router.errors import LocalProtocolError, RemoteProtocolError
from datum_router.reasons import Reason
from datum_router_proxy.wire.http1 import (
    FRAMING_CHUNKED,
    FRAMING_UNTIL_CLOSE,
    NEED_DATA,
    PAUSED,
    ConnectionClosed,
    DataReceived,
    Event,
    Framing,
    FramingKind,
    Http1Connection,
    Http1Limits,
    InformationalReceived,
    MessageComplete,
    ResponseReceived,
    Role,
    Signal,
    State,
)


def asked(method: str = "GET", upgrade: bytes | None = None, limits: Http1Limits | None = None) -> Http1Connection:
    connection = Http1Connection(Role.CLIENT, limits or Http1Limits())
    connection.send_request(method, b"/", b"a", (), upgrade=upgrade)
    connection.send_end()
    return connection


def events(connection: Http1Connection, wire: bytes, *, eof: bool = False, step: int | None = None) -> list[Event]:
    found: list[Event] = []
    pieces = [wire[start : start + (step or len(wire))] for start in range(0, len(wire), step or len(wire))]
    for piece in [*pieces, *([b""] if eof else [])]:
        connection.receive_data(piece)
        while not isinstance(event := connection.next_event(), Signal | ConnectionClosed):
            found.append(event)
    return found


def body(found: list[Event]) -> bytes:
    return b"".join(event.data for event in found if isinstance(event, DataReceived))


def refusal(wire: bytes, connection: Http1Connection | None = None) -> tuple[int, Reason]:
    connection = connection or asked()
    with pytest.raises(RemoteProtocolError) as caught:
        events(connection, wire)
    assert not connection.can_reuse
    assert connection.must_close
    return caught.value.status_hint, caught.value.reason


@pytest.mark.parametrize(
    ("lines", "reason"),
    [
        (b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n", Reason.LENGTH_CONFLICT),
        (b"Content-Length: 5\r\nContent-Length: 5\r\n", Reason.BAD_LENGTH),
        (b"Content-Length: 5\r\nContent-Length: 6\r\n", Reason.BAD_LENGTH),
        (b"Content-Length: 5, 5\r\n", Reason.BAD_LENGTH),
        (b"Content-Length: +5\r\n", Reason.BAD_LENGTH),
        (b"Transfer-Encoding: gzip\r\n", Reason.UNKNOWN_TRANSFER_CODING),
        (b"Transfer-Encoding: gzip, chunked\r\n", Reason.BAD_TRANSFER_ENCODING),
        (b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n", Reason.BAD_TRANSFER_ENCODING),
        (b" folded\r\n", Reason.BAD_HEADER),
        (b"X : y\r\n", Reason.BAD_HEADER),
        (b"X: a\x00b\r\n", Reason.BAD_HEADER),
        (b"X: a\n", Reason.BAD_LINE_END),
        (b"X: y\r\n" * 101, Reason.TOO_MANY_FIELDS),
        (b"X: " + b"y" * 16400 + b"\r\n", Reason.HEAD_TOO_LARGE),
    ],
)
def test_a17_bad_response_heads_are_502(lines: bytes, reason: Reason) -> None:
    assert refusal(b"HTTP/1.1 200 OK\r\n" + lines + b"\r\n") == (502, reason)


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b"HTTP/1.1 99 x\r\n", Reason.BAD_STATUS_LINE),
        (b"HTTP/1.1 600 x\r\n", Reason.BAD_STATUS_LINE),
        (b"HTTP/1.1 2000 x\r\n", Reason.BAD_STATUS_LINE),
        (b"HTTP/1.1  200 OK\r\n", Reason.BAD_STATUS_LINE),
        (b"HTTP/2.0 200 OK\r\n", Reason.BAD_STATUS_LINE),
        (b"http/1.1 200 OK\r\n", Reason.BAD_STATUS_LINE),
        (b"HTTP/1.1 200 O\x01K\r\n", Reason.BAD_STATUS_LINE),
        (b"SSH-2.0-OpenSSH_9\r\n", Reason.BAD_STATUS_LINE),
        (b"\r\nHTTP/1.1 200 OK\r\n", Reason.BAD_STATUS_LINE),
        (b"HTTP/1.1 200 OK\n", Reason.BAD_LINE_END),
    ],
)
def test_a17_bad_status_lines_are_502(line: bytes, reason: Reason) -> None:
    assert refusal(line + b"Content-Length: 0\r\n\r\n") == (502, reason)


def test_status_line_without_phrase_is_taken() -> None:
    for line in (b"HTTP/1.1 200\r\n", b"HTTP/1.1 200 \r\n"):
        found = events(asked(), line + b"Content-Length: 0\r\n\r\n")
        assert isinstance(found[0], ResponseReceived)
        assert (found[0].head.status, found[0].head.reason) == (200, b"")


def test_transfer_encoding_in_an_http_1_0_response_is_502() -> None:
    assert refusal(b"HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n") == (502, Reason.BAD_TRANSFER_ENCODING)


@pytest.mark.parametrize("step", [None, 1])
@pytest.mark.parametrize(
    ("head", "wire", "kind"),
    [
        (b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n", b"hello", FramingKind.LENGTH),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"5\r\nhello\r\n0\r\n\r\n", FramingKind.CHUNKED),
    ],
)
def test_delimited_responses_leave_the_connection_reusable(
    step: int | None, head: bytes, wire: bytes, kind: FramingKind
) -> None:
    connection = asked()
    found = events(connection, head + wire, step=step)
    assert isinstance(found[0], ResponseReceived)
    assert found[0].head.framing.kind is kind
    assert body(found) == b"hello"
    assert found[-1] == MessageComplete()
    assert connection.can_reuse
    connection.start_next_cycle()
    assert (connection.reading, connection.writing) == (State.IDLE, State.IDLE)


def test_response_without_length_ends_at_close() -> None:
    connection = asked()
    found = events(connection, b"HTTP/1.1 200 OK\r\n\r\nhello", eof=True)
    assert body(found) == b"hello"
    assert found[-1] == MessageComplete()
    assert not connection.can_reuse


@pytest.mark.parametrize(
    ("method", "head", "length"),
    [
        ("HEAD", b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n", 5),
        ("HEAD", b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", None),
        ("HEAD", b"HTTP/1.1 200 OK\r\n\r\n", None),
        ("GET", b"HTTP/1.1 204 No Content\r\n\r\n", None),
        ("GET", b"HTTP/1.1 204 No Content\r\nContent-Length: 5\r\n\r\n", None),
        ("GET", b"HTTP/1.1 304 Not Modified\r\nContent-Length: 5\r\n\r\n", 5),
        ("GET", b"HTTP/1.1 304 Not Modified\r\nTransfer-Encoding: chunked\r\n\r\n", None),
    ],
)
def test_a17_responses_without_body(method: str, head: bytes, length: int | None) -> None:
    connection = asked(method)
    found = events(connection, head)
    assert isinstance(found[0], ResponseReceived)
    assert found[0].head.framing.kind is FramingKind.NONE
    assert found[0].head.content_length == length
    assert found[1:] == [MessageComplete()]
    assert connection.can_reuse


@pytest.mark.parametrize(
    ("method", "head"),
    [
        ("GET", b"HTTP/1.1 204 No Content\r\n\r\n"),
        ("HEAD", b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n"),
        ("GET", b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"),
    ],
)
def test_a17_bytes_past_the_end_forbid_reuse(method: str, head: bytes) -> None:
    connection = asked(method)
    found = events(connection, head + b"hello")
    assert body(found) == b""
    assert not connection.can_reuse
    with pytest.raises(LocalProtocolError):
        connection.start_next_cycle()


@pytest.mark.parametrize(
    "wire",
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhel",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Enc",
    ],
)
def test_a17_truncated_responses_are_errors(wire: bytes) -> None:
    with pytest.raises(RemoteProtocolError) as caught:
        events(asked(), wire, eof=True)
    assert (caught.value.status_hint, caught.value.reason) == (502, Reason.TRUNCATED)


def test_broken_chunks_of_an_upstream_are_502() -> None:
    assert refusal(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n") == (502, Reason.BAD_CHUNK)


def test_close_before_any_byte_of_the_response_is_an_event_not_an_error() -> None:
    connection = asked()
    connection.receive_data(b"")
    assert connection.next_event() == ConnectionClosed()
    assert connection.must_close


def test_response_nobody_asked_for_is_an_error() -> None:
    connection = Http1Connection(Role.CLIENT)
    connection.receive_data(b"HTTP/1.1 408 Request Timeout\r\n\r\n")
    with pytest.raises(RemoteProtocolError) as caught:
        connection.next_event()
    assert caught.value.reason is Reason.UPSTREAM_PROTOCOL


def test_a16_interim_responses_come_before_the_final_one() -> None:
    wire = b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\nHTTP/1.1 204 x\r\n\r\n"
    for step in (None, 1):
        found = events(asked(), wire, step=step)
        assert [type(event) for event in found] == [
            InformationalReceived,
            InformationalReceived,
            ResponseReceived,
            MessageComplete,
        ]
        assert isinstance(found[1], InformationalReceived)
        assert found[1].head.fields == ((b"link", b"</a>"),)


def test_a16_flood_of_interim_responses_is_502() -> None:
    interim = b"HTTP/1.1 102 Processing\r\n\r\n"
    connection = asked()
    assert len(events(connection, interim * 16)) == 16
    assert refusal(interim, connection) == (502, Reason.TOO_MANY_INTERIM)


def test_a16_switch_is_taken_only_if_an_upgrade_was_asked_for() -> None:
    switch = b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"
    assert refusal(switch) == (502, Reason.BAD_UPGRADE)
    connection = asked(upgrade=b"websocket")
    found = events(connection, switch + b"\x81\x00")
    assert isinstance(found[0], ResponseReceived)
    assert found[0].head.upgrade == (b"websocket",)
    assert connection.next_event() is PAUSED
    assert connection.trailing_data() == b"\x81\x00"
    assert connection.trailing_data() == b""
    assert (connection.reading, connection.writing) == (State.SWITCHED, State.SWITCHED)
    assert not connection.can_reuse


def test_a18_early_response_forbids_reuse_while_the_request_is_unfinished() -> None:
    connection = Http1Connection(Role.CLIENT)
    connection.send_request("POST", b"/", b"a", (), framing=Framing(FramingKind.LENGTH, 10))
    connection.send_data(b"12345")
    found = events(connection, b"HTTP/1.1 413 x\r\nContent-Length: 0\r\n\r\n")
    assert found[-1] == MessageComplete()
    assert not connection.can_reuse
    connection.send_data(b"67890")
    connection.send_end()
    assert connection.can_reuse


@pytest.mark.parametrize("head", [b"HTTP/1.1 200 OK\r\nConnection: close\r\n", b"HTTP/1.0 200 OK\r\n"])
def test_upstream_that_closes_is_not_reused(head: bytes) -> None:
    connection = asked()
    events(connection, head + b"Content-Length: 0\r\n\r\n")
    assert not connection.can_reuse


def test_http_1_0_upstream_with_keep_alive_is_reused() -> None:
    connection = asked()
    events(connection, b"HTTP/1.0 200 OK\r\nConnection: keep-alive\r\nContent-Length: 0\r\n\r\n")
    assert connection.can_reuse


def test_request_heads_are_canonical() -> None:
    connection = Http1Connection(Role.CLIENT)
    head = connection.send_request("GET", b"/p?q", b"a:80", ((b"x", b"1"), (b"te", b"trailers"), (b"x", b"2")))
    assert head == b"GET /p?q HTTP/1.1\r\nhost: a:80\r\nte: trailers\r\nconnection: te\r\nx: 1\r\nx: 2\r\n\r\n"
    assert connection.send_end() == b""
    upgrade = Http1Connection(Role.CLIENT).send_request("GET", b"/", b"a", (), upgrade=b"websocket", close=True)
    assert upgrade == b"GET / HTTP/1.1\r\nhost: a\r\nupgrade: websocket\r\nconnection: upgrade, close\r\n\r\n"


def test_request_bodies_are_framed() -> None:
    connection = Http1Connection(Role.CLIENT)
    assert b"transfer-encoding: chunked\r\n" in connection.send_request("POST", b"/", b"a", (), framing=FRAMING_CHUNKED)
    assert connection.send_data(b"hello") == b"5\r\nhello\r\n"
    assert connection.data_buffers(b"x" * 16) == (b"10\r\n", b"x" * 16, b"\r\n")
    assert connection.send_data(b"") == b""
    assert connection.send_end(((b"a", b"b"),)) == b"0\r\na: b\r\n\r\n"


@pytest.mark.parametrize(
    ("method", "target", "host"),
    [
        ("get", b"/", b"a"),
        ("CONNECT", b"/", b"a"),
        ("G T", b"/", b"a"),
        ("GET", b"a", b"a"),
        ("GET", b"*", b"a"),
        ("GET", b"/a b", b"a"),
        ("GET", b"/\r\nx: y", b"a"),
        ("GET", b"/", b""),
        ("GET", b"/", b"a\r\nx: y"),
        ("GET", b"", b"a"),
        ("GETÄ", b"/", b"a"),
    ],
)
def test_a25_bad_request_lines_never_leave(method: str, target: bytes, host: bytes) -> None:
    connection = Http1Connection(Role.CLIENT)
    with pytest.raises(LocalProtocolError) as caught:
        connection.send_request(method, target, host, ())
    assert (caught.value.status_hint, caught.value.reason) == (500, Reason.BAD_FILTER_OUTPUT)
    assert connection.writing is State.IDLE


def test_client_misuse_is_a_local_error() -> None:
    connection = Http1Connection(Role.CLIENT)
    with pytest.raises(LocalProtocolError):
        connection.send_data(b"x")
    with pytest.raises(LocalProtocolError):
        connection.send_response(200, ())
    with pytest.raises(LocalProtocolError):
        connection.send_request("POST", b"/", b"a", (), framing=FRAMING_UNTIL_CLOSE)
    connection.send_request("GET", b"/", b"a", ())
    with pytest.raises(LocalProtocolError):
        connection.send_data(b"x")
    with pytest.raises(LocalProtocolError):
        connection.send_request("GET", b"/", b"a", ())
    assert connection.next_event() is NEED_DATA
