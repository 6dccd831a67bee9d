"""What the server role writes: threat row A25, framing by request, keep-alive, upgrades."""

from __future__ import annotations

import pytest

from datum_router.errors import LocalProtocolError, RemoteProtocolError
from datum_router.reasons import Reason
from datum_router_proxy.wire.http1 import (
    FRAMING_CHUNKED,
    FRAMING_NONE,
    FRAMING_UNTIL_CLOSE,
    NEED_DATA,
    PAUSED,
    ConnectionClosed,
    Framing,
    FramingKind,
    Http1Connection,
    MessageComplete,
    RequestReceived,
    Role,
    State,
    Trigger,
)
from datum_router_proxy.wire.http1.state import TABLE, advance

FIVE = Framing(FramingKind.LENGTH, 5)


def serving(start: bytes = b"GET / HTTP/1.1", *lines: bytes) -> Http1Connection:
    connection = Http1Connection(Role.SERVER)
    connection.receive_data(start + b"\r\nHost: a\r\n" + b"".join(line + b"\r\n" for line in lines) + b"\r\n")
    assert isinstance(connection.next_event(), RequestReceived)
    assert connection.next_event() == MessageComplete()
    return connection


@pytest.mark.parametrize(
    "field",
    [
        (b"x", b"a\r\nset-cookie: b"),
        (b"x", b"a\nb"),
        (b"x", b"a\rb"),
        (b"x", b"a\x00b"),
        (b"x", b"\x7f"),
        (b"x", b"\r\n"),
        (b"x\r\ny", b"a"),
        (b"x: y", b"a"),
        (b"", b"a"),
        (b"x y", b"a"),
        (b"X", b"a"),
        (b"x\xe9", b"a"),
        (b":x", b"a"),
        (b"content-length", b"5"),
        (b"transfer-encoding", b"chunked"),
        (b"connection", b"close"),
        (b"upgrade", b"x"),
        (b"keep-alive", b"1"),
    ],
)
def test_a25_bad_fields_never_leave(field: tuple[bytes, bytes]) -> None:
    connection = serving()
    for fields in ((field,), ((b"a", b"b"), field, (b"c", b"d"))):
        with pytest.raises(LocalProtocolError) as caught:
            connection.send_response(200, fields)
        assert (caught.value.status_hint, caught.value.reason) == (500, Reason.BAD_FILTER_OUTPUT)
    assert connection.send_response(500, ()).startswith(b"HTTP/1.1 500 Internal Server Error\r\n")


def test_a25_error_names_the_field_and_never_its_value() -> None:
    with pytest.raises(LocalProtocolError) as caught:
        serving().send_response(200, ((b"x-a", b"secret\r\n"),))
    assert "x-a" in str(caught.value)
    assert "secret" not in str(caught.value)


def test_a25_bad_trailers_and_phrases_never_leave() -> None:
    connection = serving()
    with pytest.raises(LocalProtocolError):
        connection.send_response(299, (), reason=b"a\r\nb: c")
    connection.send_response(200, (), framing=FRAMING_CHUNKED)
    for trailer in ((b"a", b"b\r\nc"), (b"content-length", b"5"), (b"host", b"b")):
        with pytest.raises(LocalProtocolError):
            connection.send_end((trailer,))


def test_response_head_and_body_in_wire_order() -> None:
    connection = serving()
    wire = connection.send_response(200, ((b"a", b"b"), (b"a", b"c"), (b"e", b"")), framing=FIVE)
    wire += connection.send_data(b"hello") + connection.send_end()
    assert wire == b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\na: b\r\na: c\r\ne: \r\n\r\nhello"
    assert connection.can_reuse


def test_registered_phrases_win_and_others_pass() -> None:
    assert serving().send_response(404, (), reason=b"Nope").startswith(b"HTTP/1.1 404 Not Found\r\n")
    assert serving().send_response(299, (), reason=b"Fine").startswith(b"HTTP/1.1 299 Fine\r\n")
    assert serving().send_response(299, ()).startswith(b"HTTP/1.1 299 \r\n")
    for status in (99, 600, 100, 101):
        with pytest.raises(LocalProtocolError):
            serving().send_response(status, ())


@pytest.mark.parametrize(
    ("start", "status", "framing", "stated", "expected"),
    [
        (b"GET / HTTP/1.1", 200, FRAMING_NONE, None, b"content-length: 0"),
        (b"GET / HTTP/1.1", 204, FRAMING_NONE, None, None),
        (b"GET / HTTP/1.1", 204, FIVE, 5, None),
        (b"GET / HTTP/1.1", 304, FRAMING_NONE, None, None),
        (b"GET / HTTP/1.1", 304, FRAMING_NONE, 5, b"content-length: 5"),
        (b"HEAD / HTTP/1.1", 200, FIVE, None, b"content-length: 5"),
        (b"HEAD / HTTP/1.1", 200, FRAMING_NONE, 5, b"content-length: 5"),
        (b"HEAD / HTTP/1.1", 200, FRAMING_NONE, None, None),
        (b"HEAD / HTTP/1.1", 200, FRAMING_CHUNKED, None, b"transfer-encoding: chunked"),
        (b"GET / HTTP/1.1", 200, FRAMING_CHUNKED, None, b"transfer-encoding: chunked"),
    ],
)
def test_framing_lines(start: bytes, status: int, framing: Framing, stated: int | None, expected: bytes | None) -> None:
    head = serving(start).send_response(status, (), framing=framing, content_length=stated)
    lines = head.split(b"\r\n")[1:-2]
    assert lines == ([] if expected is None else [expected])


@pytest.mark.parametrize(
    ("start", "status"), [(b"HEAD / HTTP/1.1", 200), (b"GET / HTTP/1.1", 204), (b"GET / HTTP/1.1", 304)]
)
@pytest.mark.parametrize("framing", [FIVE, FRAMING_CHUNKED, FRAMING_UNTIL_CLOSE])
def test_bodyless_responses_swallow_their_body(start: bytes, status: int, framing: Framing) -> None:
    connection = serving(start)
    connection.send_response(status, (), framing=framing)
    assert connection.send_data(b"hello") == b""
    assert connection.data_buffers(b"hello") == ()
    assert connection.send_end(((b"a", b"b"),)) == b""
    assert connection.can_reuse


def test_length_is_enforced_both_ways() -> None:
    connection = serving()
    connection.send_response(200, (), framing=FIVE)
    with pytest.raises(LocalProtocolError):
        connection.send_data(b"123456")
    assert connection.send_data(b"1234") == b"1234"
    with pytest.raises(LocalProtocolError):
        connection.send_end()
    assert not connection.can_reuse


def test_http_1_0_client_gets_no_chunks_and_no_interim_response() -> None:
    connection = serving(b"GET / HTTP/1.0", b"Connection: keep-alive")
    assert connection.send_informational(103) == b""
    head = connection.send_response(200, (), framing=FRAMING_CHUNKED)
    assert head == b"HTTP/1.1 200 OK\r\nconnection: close\r\n\r\n"
    assert connection.send_data(b"hello") + connection.send_end() == b"hello"
    assert not connection.can_reuse


def test_http_1_0_keep_alive_is_confirmed() -> None:
    connection = serving(b"GET / HTTP/1.0", b"Connection: keep-alive")
    assert b"connection: keep-alive\r\n" in connection.send_response(200, (), framing=FIVE)
    connection.send_data(b"hello")
    connection.send_end()
    assert connection.can_reuse


@pytest.mark.parametrize("lines", [(b"Connection: close",), ()])
def test_close_is_stated_when_asked_for_by_either_side(lines: tuple[bytes, ...]) -> None:
    connection = serving(b"GET / HTTP/1.1", *lines)
    assert b"\r\nconnection: close\r\n" in connection.send_response(200, (), close=not lines)
    connection.send_end()
    assert connection.must_close
    assert not connection.can_reuse


def test_error_response_after_a_bad_request_closes() -> None:
    connection = Http1Connection(Role.SERVER)
    connection.receive_data(b"get / HTTP/1.1\r\n\r\n")
    with pytest.raises(RemoteProtocolError) as caught:
        connection.next_event()
    head = connection.send_response(caught.value.status_hint, (), framing=FIVE)
    assert head == b"HTTP/1.1 400 Bad Request\r\ncontent-length: 5\r\nconnection: close\r\n\r\n"
    assert connection.send_data(b"sorry") + connection.send_end() == b"sorry"
    assert not connection.can_reuse


def test_timeout_response_without_a_request_closes_and_ignores_the_last_method() -> None:
    connection = serving(b"HEAD / HTTP/1.1")
    connection.send_response(204, ())
    connection.send_end()
    connection.start_next_cycle()
    connection.receive_data(b"GET / HT")
    assert connection.next_event() is NEED_DATA
    assert b"connection: close" in connection.send_response(408, (), framing=FIVE)
    assert connection.send_data(b"hello") == b"hello"


def test_informational_responses_leave_the_final_one_due() -> None:
    connection = serving()
    assert connection.send_informational(100) == b"HTTP/1.1 100 Continue\r\n\r\n"
    hints = connection.send_informational(103, ((b"link", b"</a>"),))
    assert hints == b"HTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\n"
    for status in (101, 200, 99):
        with pytest.raises(LocalProtocolError):
            connection.send_informational(status)
    connection.send_response(200, ())
    with pytest.raises(LocalProtocolError):
        connection.send_informational(103)
    with pytest.raises(LocalProtocolError):
        Http1Connection(Role.SERVER).send_informational(100)


def test_switch_hands_over_what_came_after_the_request() -> None:
    connection = serving(b"GET / HTTP/1.1", b"Connection: upgrade", b"Upgrade: websocket")
    connection.receive_data(b"\x81\x00")
    assert connection.next_event() is PAUSED
    head = connection.send_switch(b"websocket", ((b"sec-websocket-accept", b"x"),))
    assert head == (
        b"HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\n"
        b"sec-websocket-accept: x\r\n\r\n"
    )
    assert connection.trailing_data() == b"\x81\x00"
    assert (connection.reading, connection.writing) == (State.SWITCHED, State.SWITCHED)
    assert not connection.can_reuse


def test_switch_needs_a_complete_request_that_asked_for_it() -> None:
    with pytest.raises(LocalProtocolError):
        serving().send_switch(b"websocket", ())
    connection = Http1Connection(Role.SERVER)
    connection.receive_data(
        b"POST / HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: x\r\nContent-Length: 5\r\n\r\n"
    )
    assert isinstance(connection.next_event(), RequestReceived)
    with pytest.raises(LocalProtocolError):
        connection.send_switch(b"x", ())


def test_refused_upgrade_closes_if_the_client_did_not_wait_for_the_switch() -> None:
    for early in (b"", b"GET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n"):
        connection = serving(b"GET / HTTP/1.1", b"Connection: upgrade", b"Upgrade: websocket")
        if early:
            connection.receive_data(early)
        head = connection.send_response(200, ())
        connection.send_end()
        assert (b"connection: close" in head) == bool(early)
        assert connection.can_reuse != bool(early)


def test_half_closed_client_still_gets_its_response() -> None:
    connection = serving()
    connection.receive_data(b"")
    assert connection.next_event() is PAUSED
    connection.send_response(204, ())
    connection.send_end()
    connection.start_next_cycle()
    assert connection.next_event() == ConnectionClosed()
    assert connection.next_event() == ConnectionClosed()
    assert not connection.can_reuse


def test_unread_request_body_forbids_reuse() -> None:
    connection = Http1Connection(Role.SERVER)
    connection.receive_data(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\n")
    assert isinstance(connection.next_event(), RequestReceived)
    connection.send_response(413, ())
    connection.send_end()
    assert not connection.can_reuse
    with pytest.raises(LocalProtocolError):
        connection.start_next_cycle()


@pytest.mark.parametrize("state", list(State))
def test_every_state_fails_into_error_and_nothing_leaves_error(state: State) -> None:
    assert advance(state, Trigger.FAIL) is State.ERROR
    assert [target for target in TABLE[State.ERROR] if target not in (None, State.ERROR)] == []


def test_steps_that_the_table_lacks_name_both_words() -> None:
    with pytest.raises(LocalProtocolError, match="end is not possible in state idle"):
        advance(State.IDLE, Trigger.END)
