"""WebSocket handshakes: threat rows B3 and B4, P9."""

from __future__ import annotations

import pytest
from websockets.frames import Frame
from websockets.streams import StreamReader

from datum_router_proxy.wire import websocket
from datum_router_proxy.wire.http1 import (
    H1RequestHead,
    H1ResponseHead,
    Http1Connection,
    RequestReceived,
    ResponseReceived,
    Role,
)

KEY = b"dGhlIHNhbXBsZSBub25jZQ=="  # RFC 6455 section 1.3
ACCEPT = b"s3pPLMBiTxaQ9kYGzzhZRbK+xOo="


def request(start: bytes = b"GET / HTTP/1.1", **changes: bytes | None) -> H1RequestHead:
    lines = {
        b"Host": b"a",
        b"Connection": b"keep-alive, Upgrade",
        b"Upgrade": b"WebSocket",
        b"Sec-WebSocket-Key": KEY,
        b"Sec-WebSocket-Version": b"13",
    }
    for name, value in changes.items():
        header = name.replace("_", "-").encode()
        lines.pop(header, None)
        if value is not None:
            lines[header] = value
    connection = Http1Connection(Role.SERVER)
    connection.receive_data(start + b"\r\n" + b"".join(b"%b: %b\r\n" % line for line in lines.items()) + b"\r\n")
    event = connection.next_event()
    assert isinstance(event, RequestReceived)
    return event.head


def response(*lines: bytes, status: int = 101) -> H1ResponseHead:
    connection = Http1Connection(Role.CLIENT)
    connection.send_request("GET", b"/", b"a", (), upgrade=b"websocket")
    connection.send_end()
    connection.receive_data(b"HTTP/1.1 %d x\r\n" % status + b"".join(line + b"\r\n" for line in lines) + b"\r\n")
    event = connection.next_event()
    assert isinstance(event, ResponseReceived)
    return event.head


def test_b3_valid_handshake_yields_its_key() -> None:
    assert websocket.handshake_key(request()) == KEY
    assert websocket.handshake_key(request(Content_Length=b"0")) == KEY


@pytest.mark.parametrize(
    "head",
    [
        request(b"POST / HTTP/1.1"),
        request(b"GET / HTTP/1.0"),
        request(Upgrade=b"h2c"),
        request(Upgrade=None),
        request(Connection=b"keep-alive"),
        request(Sec_WebSocket_Version=b"8"),
        request(Sec_WebSocket_Version=None),
        request(Sec_WebSocket_Version=b"13, 8"),
        request(Content_Length=b"5"),
        request(Transfer_Encoding=b"chunked"),
    ],
)
def test_b3_anything_else_stays_plain_http(head: H1RequestHead) -> None:
    assert websocket.handshake_key(head) is None


@pytest.mark.parametrize(
    "key",
    [
        b"",
        b"abc",
        KEY + b"=",
        KEY[:-2],
        b"dGhlIHNhbXBsZSBub25jZR==",
        KEY[:-3] + b"===",
        b"!" * 22 + b"==",
        KEY.replace(b"=", b"A"),
    ],
)
def test_b3_keys_that_are_not_sixteen_bytes_are_refused(key: bytes) -> None:
    assert websocket.handshake_key(request(Sec_WebSocket_Key=key)) is None


def test_b3_two_keys_are_refused() -> None:
    head = request(**{"Sec-WebSocket-Key": KEY, "sec-websocket-key": KEY})
    assert websocket.handshake_key(head) is None


def test_accept_value_is_the_one_of_the_rfc() -> None:
    assert websocket.accept_value(KEY) == ACCEPT
    assert websocket.make_key(b"the sample nonce") == KEY
    with pytest.raises(ValueError, match="expected 16"):
        websocket.make_key(b"short")


GOOD = (b"Connection: Upgrade", b"Upgrade: websocket", b"Sec-WebSocket-Accept: " + ACCEPT)


def test_b3_right_answer_opens_the_tunnel() -> None:
    assert websocket.is_accepted(response(*GOOD), KEY)


@pytest.mark.parametrize(
    "head",
    [
        response(*GOOD[:2]),
        response(*GOOD[:2], b"Sec-WebSocket-Accept: " + ACCEPT.lower()),
        response(*GOOD, b"Sec-WebSocket-Accept: " + ACCEPT),
        response(GOOD[0], b"Upgrade: other", GOOD[2]),
        response(*GOOD[1:]),
        response(*GOOD, status=200),
        response(*GOOD, b"Sec-WebSocket-Protocol: nobody-asked"),
    ],
)
def test_b3_wrong_answers_do_not(head: H1ResponseHead) -> None:
    assert not websocket.is_accepted(head, KEY)


def test_b3_subprotocol_must_be_one_that_was_offered() -> None:
    offered = ((b"sec-websocket-protocol", b"chat, superchat"),)
    assert websocket.is_accepted(response(*GOOD, b"Sec-WebSocket-Protocol: superchat"), KEY, offered_protocols=offered)
    assert not websocket.is_accepted(response(*GOOD, b"Sec-WebSocket-Protocol: x"), KEY, offered_protocols=offered)


def test_b4_extended_connect_is_recognised() -> None:
    fields = ((b"sec-websocket-version", b"13"),)
    assert websocket.is_connect_handshake(b"CONNECT", b"websocket", fields)
    assert not websocket.is_connect_handshake(b"CONNECT", None, fields)
    assert not websocket.is_connect_handshake(b"GET", b"websocket", fields)
    assert not websocket.is_connect_handshake(b"CONNECT", b"websocket", ())


def test_b4_requests_translate_there_and_back() -> None:
    head = request(Sec_WebSocket_Protocol=b"chat")
    there = websocket.connect_fields(head.fields, scheme=b"https", authority=b"a", path=b"/x")
    assert there[:5] == [
        (b":method", b"CONNECT"),
        (b":protocol", b"websocket"),
        (b":scheme", b"https"),
        (b":path", b"/x"),
        (b":authority", b"a"),
    ]
    assert (b"sec-websocket-protocol", b"chat") in there
    assert b"sec-websocket-key" not in dict(there)
    assert sorted(websocket.upgrade_fields(there, key=KEY)) == sorted(head.fields)


def test_b4_responses_translate_there_and_back() -> None:
    head = response(*GOOD, b"Sec-WebSocket-Extensions: x")
    there = websocket.connect_response_fields(head.fields)
    assert there == [(b"sec-websocket-extensions", b"x")]
    assert sorted(websocket.switch_fields(there, key=KEY)) == sorted(head.fields)


@pytest.mark.parametrize("mask", [None, b"\x01\x02\x03\x04"])
def test_p9_close_frame_is_read_by_an_independent_library(mask: bytes | None) -> None:
    reader = StreamReader()
    reader.feed_data(websocket.close_frame(reason=b"going away", mask=mask))
    parser = Frame.parse(reader.read_exact, mask=mask is not None, max_size=125)
    with pytest.raises(StopIteration) as stopped:
        next(parser)
    frame = stopped.value.value
    assert (int(frame.opcode), frame.fin, bytes(frame.data)) == (8, True, b"\x03\xe9going away")


def test_p9_close_frame_limits() -> None:
    assert len(websocket.close_frame(reason=b"x" * 123)) == 127
    with pytest.raises(ValueError, match="at most 123"):
        websocket.close_frame(reason=b"x" * 124)
    with pytest.raises(ValueError, match="1000 to 4999"):
        websocket.close_frame(999)
    with pytest.raises(ValueError, match="expected 4"):
        websocket.close_frame(mask=b"x")
