"""Table tests of the server role, named by threat row (D1 to D21): what a peer sends, what the engine does about it."""

from __future__ import annotations

import struct

import pytest

from datum_router.reasons import Reason
from datum_router_proxy import testing as t
from datum_router_proxy.wire.http2 import (
    PREFACE,
    ConnectionTerminated,
    DataReceived,
    ErrorCode,
    Http2Limits,
    RequestReceived,
    RequestRejected,
    Role,
    SettingId,
    StreamReset,
    StreamState,
    TrailersReceived,
)
from datum_router_proxy.wire.http2 import frames as f


def terminated(events: list) -> ConnectionTerminated:
    assert isinstance(events[-1], ConnectionTerminated), events
    return events[-1]


def assert_goaway(peer: t.Peer, events: list, code: ErrorCode) -> None:
    assert terminated(events).error_code == code
    last = peer.output()[-1]
    assert last[0] == f.GOAWAY
    assert int.from_bytes(last[3][4:8], "big") == code
    assert peer.send(t.headers(99)) == [], "nothing is parsed after the end"


def assert_stream_error(peer: t.Peer, events: list, stream_id: int, code: ErrorCode) -> None:
    assert [e for e in events if isinstance(e, ConnectionTerminated)] == []
    resets = [e for e in events if isinstance(e, StreamReset)]
    assert [(e.stream_id, e.error_code, e.remote) for e in resets] == [(stream_id, code, False)]
    sent = [(kind, sid, payload) for kind, _flags, sid, payload in peer.output() if kind == f.RST_STREAM]
    assert sent == [(f.RST_STREAM, stream_id, code.to_bytes(4, "big"))]
    # The connection goes on: a bystander is served.
    later = peer.send(t.headers(stream_id + 100))
    assert [type(e) for e in later] == [RequestReceived]


def answer(peer: t.Peer, stream_id: int) -> None:
    peer.engine.send_headers(stream_id, [(b":status", b"204")], end_stream=True)
    peer.engine.data_to_send()


# --- connection errors: idle, closed, sizes, interleaving (D11, D18, D19)  ---------------

OPEN_BLOCK = t.headers(1, end_headers=False)
CONNECTION_ERRORS = {
    "D11 DATA on idle": (t.data(1, b"x"), ErrorCode.PROTOCOL_ERROR),
    "D11 RST_STREAM on idle": (t.rst_stream(1), ErrorCode.PROTOCOL_ERROR),
    "D11 WINDOW_UPDATE on idle": (t.window_update(1, 1), ErrorCode.PROTOCOL_ERROR),
    "D11 WINDOW_UPDATE on even idle": (t.window_update(2, 1), ErrorCode.PROTOCOL_ERROR),
    "D11 CONTINUATION without block": (t.frame(f.CONTINUATION, f.END_HEADERS, 1, b"\x82"), ErrorCode.PROTOCOL_ERROR),
    "D11 even stream": (t.headers(2), ErrorCode.PROTOCOL_ERROR),
    "D11 lower stream": (t.headers(5) + t.headers(3), ErrorCode.PROTOCOL_ERROR),
    "D11 HEADERS on 0": (t.headers(0), ErrorCode.PROTOCOL_ERROR),
    "D11 DATA on 0": (t.data(0, b"x"), ErrorCode.PROTOCOL_ERROR),
    "D11 RST_STREAM on 0": (t.rst_stream(0), ErrorCode.PROTOCOL_ERROR),
    "D11 PRIORITY on 0": (t.priority(0), ErrorCode.PROTOCOL_ERROR),
    "D11 SETTINGS on 1": (t.frame(f.SETTINGS, 0, 1), ErrorCode.PROTOCOL_ERROR),
    "D11 PING on 1": (t.frame(f.PING, 0, 1, b"12345678"), ErrorCode.PROTOCOL_ERROR),
    "D11 GOAWAY on 1": (t.frame(f.GOAWAY, 0, 1, bytes(8)), ErrorCode.PROTOCOL_ERROR),
    "D18 PUSH_PROMISE": (t.frame(f.PUSH_PROMISE, f.END_HEADERS, 1, bytes(4)), ErrorCode.PROTOCOL_ERROR),
    "D19 too large a frame": (t.frame(f.DATA, 0, 1, bytes(16_385)), ErrorCode.FRAME_SIZE_ERROR),
    "D19 too large an unknown frame": (t.frame(0x77, 0, 0, bytes(16_385)), ErrorCode.FRAME_SIZE_ERROR),
    "D19 RST_STREAM of 3": (t.headers(1) + t.frame(f.RST_STREAM, 0, 1, bytes(3)), ErrorCode.FRAME_SIZE_ERROR),
    "D19 SETTINGS of 5": (t.frame(f.SETTINGS, 0, 0, bytes(5)), ErrorCode.FRAME_SIZE_ERROR),
    "D19 SETTINGS ACK with payload": (t.frame(f.SETTINGS, f.ACK, 0, bytes(6)), ErrorCode.FRAME_SIZE_ERROR),
    "D19 PING of 7": (t.ping(b"1234567"), ErrorCode.FRAME_SIZE_ERROR),
    "D19 GOAWAY of 7": (t.frame(f.GOAWAY, 0, 0, bytes(7)), ErrorCode.FRAME_SIZE_ERROR),
    "D19 WINDOW_UPDATE of 5": (t.frame(f.WINDOW_UPDATE, 0, 0, bytes(5)), ErrorCode.FRAME_SIZE_ERROR),
    "D19 PRIORITY of 4 on idle": (t.frame(f.PRIORITY, 0, 1, bytes(4)), ErrorCode.FRAME_SIZE_ERROR),
    "D19 padded empty DATA": (
        t.headers(1, end_stream=False) + t.frame(f.DATA, f.PADDED, 1),
        ErrorCode.FRAME_SIZE_ERROR,
    ),
    "D19 DATA padding beyond": (
        t.headers(1, end_stream=False) + t.frame(f.DATA, f.PADDED, 1, b"\x04abc"),
        ErrorCode.PROTOCOL_ERROR,
    ),
    "D19 padded empty HEADERS": (t.frame(f.HEADERS, f.PADDED | f.END_HEADERS, 1), ErrorCode.FRAME_SIZE_ERROR),
    "D19 HEADERS padding beyond": (
        t.frame(f.HEADERS, f.PADDED | f.END_HEADERS, 1, b"\x05\x82\x86"),
        ErrorCode.PROTOCOL_ERROR,
    ),
    "D19 HEADERS priority cut": (
        t.frame(f.HEADERS, f.HAS_PRIORITY | f.END_HEADERS, 1, bytes(4)),
        ErrorCode.FRAME_SIZE_ERROR,
    ),
    "D19 HEADERS padding eats priority": (
        t.frame(f.HEADERS, f.PADDED | f.HAS_PRIORITY | f.END_HEADERS, 1, b"\x02" + bytes(6)),
        ErrorCode.PROTOCOL_ERROR,
    ),
    "D3 PING inside block": (OPEN_BLOCK + t.ping(), ErrorCode.PROTOCOL_ERROR),
    "D3 DATA inside block": (OPEN_BLOCK + t.data(1, b"x"), ErrorCode.PROTOCOL_ERROR),
    "D3 HEADERS inside block": (OPEN_BLOCK + t.headers(3), ErrorCode.PROTOCOL_ERROR),
    "D3 unknown frame inside block": (OPEN_BLOCK + t.frame(0x77), ErrorCode.PROTOCOL_ERROR),
    "D3 CONTINUATION of another": (
        OPEN_BLOCK + t.frame(f.CONTINUATION, f.END_HEADERS, 3),
        ErrorCode.PROTOCOL_ERROR,
    ),
    "D5 index 0": (t.frame(f.HEADERS, 5, 1, b"\x80"), ErrorCode.COMPRESSION_ERROR),
    "D5 index past the table": (t.frame(f.HEADERS, 5, 1, b"\xfe"), ErrorCode.COMPRESSION_ERROR),
    "D5 late size update": (t.frame(f.HEADERS, 5, 1, t.block(t.GET) + b"\x20"), ErrorCode.COMPRESSION_ERROR),
    "D5 size update above the setting": (
        t.frame(f.HEADERS, 5, 1, b"\x3f\xe2\x1f" + t.block(t.GET)),
        ErrorCode.COMPRESSION_ERROR,
    ),
    "D5 integer overrun": (t.frame(f.HEADERS, 5, 1, b"\xff\xff\xff\xff\xff\xff\xff\x0f"), ErrorCode.COMPRESSION_ERROR),
    "D20 connection increment 0": (t.window_update(0, 0), ErrorCode.PROTOCOL_ERROR),
    "D20 connection window overflow": (t.window_update(0, 2**31 - 1), ErrorCode.FLOW_CONTROL_ERROR),
    "D20 INITIAL_WINDOW_SIZE 2^31": (
        t.settings((SettingId.INITIAL_WINDOW_SIZE, 2**31)),
        ErrorCode.FLOW_CONTROL_ERROR,
    ),
    "D20 INITIAL_WINDOW_SIZE overflows a stream": (
        t.headers(1) + t.window_update(1, 2**31 - 1 - 65_535) + t.settings((SettingId.INITIAL_WINDOW_SIZE, 65_536)),
        ErrorCode.FLOW_CONTROL_ERROR,
    ),
    "D6 ENABLE_PUSH 2": (t.settings((SettingId.ENABLE_PUSH, 2)), ErrorCode.PROTOCOL_ERROR),
    "D6 MAX_FRAME_SIZE 16383": (t.settings((SettingId.MAX_FRAME_SIZE, 16_383)), ErrorCode.PROTOCOL_ERROR),
    "D6 MAX_FRAME_SIZE 2^24": (t.settings((SettingId.MAX_FRAME_SIZE, 2**24)), ErrorCode.PROTOCOL_ERROR),
    "D6 CONNECT_PROTOCOL taken back": (
        t.settings((SettingId.ENABLE_CONNECT_PROTOCOL, 1), (SettingId.ENABLE_CONNECT_PROTOCOL, 0)),
        ErrorCode.PROTOCOL_ERROR,
    ),
    "D8 PRIORITY on itself while idle": (t.priority(3, 3), ErrorCode.PROTOCOL_ERROR),
}


@pytest.mark.parametrize("case", CONNECTION_ERRORS)
def test_connection_error(case: str) -> None:
    sent, code = CONNECTION_ERRORS[case]
    peer = t.Peer()
    assert_goaway(peer, peer.send(sent), code)


# --- stream errors (D11, D13 to D16, D20)  ---------------


def with_fields(*extra: tuple[bytes, bytes], base: tuple = t.GET) -> bytes:
    return t.headers(1, (*base, *extra))


def without(name: bytes) -> bytes:
    return t.headers(1, [field for field in t.GET if field[0] != name])


def replaced(name: bytes, value: bytes) -> bytes:
    return t.headers(1, [(n, value if n == name else v) for n, v in t.GET])


OPEN = t.headers(1, t.POST, end_stream=False)
STREAM_ERRORS = {
    "D13 no :method": (without(b":method"), ErrorCode.PROTOCOL_ERROR),
    "D13 no :scheme": (without(b":scheme"), ErrorCode.PROTOCOL_ERROR),
    "D13 no :path": (without(b":path"), ErrorCode.PROTOCOL_ERROR),
    "D13 empty list": (t.frame(f.HEADERS, 5, 1), ErrorCode.PROTOCOL_ERROR),
    "D13 empty :path": (replaced(b":path", b""), ErrorCode.PROTOCOL_ERROR),
    "D13 :path without slash": (replaced(b":path", b"x"), ErrorCode.PROTOCOL_ERROR),
    "D13 :path asterisk on GET": (replaced(b":path", b"*"), ErrorCode.PROTOCOL_ERROR),
    "D13 :path with blank": (replaced(b":path", b"/ HTTP/1.1"), ErrorCode.PROTOCOL_ERROR),
    "D13 :path with CRLF": (replaced(b":path", b"/\r\nx: y"), ErrorCode.PROTOCOL_ERROR),
    "D13 :method with blank": (replaced(b":method", b"GET /x"), ErrorCode.PROTOCOL_ERROR),
    "D13 :method empty": (replaced(b":method", b""), ErrorCode.PROTOCOL_ERROR),
    "D13 :method too long": (replaced(b":method", b"A" * 33), ErrorCode.PROTOCOL_ERROR),
    "D13 :method ends with newline": (replaced(b":method", b"GET\n"), ErrorCode.PROTOCOL_ERROR),
    "D13 :scheme with colon": (replaced(b":scheme", b"http://x"), ErrorCode.PROTOCOL_ERROR),
    "D13 :method repeated": (t.headers(1, (t.GET[0], *t.GET)), ErrorCode.PROTOCOL_ERROR),
    "D13 :path repeated": (t.headers(1, (t.GET[2], *t.GET)), ErrorCode.PROTOCOL_ERROR),
    "D13 :authority repeated": (t.headers(1, (t.GET[3], *t.GET)), ErrorCode.PROTOCOL_ERROR),
    "D13 unknown pseudo": (t.headers(1, ((b":test", b"x"), *t.GET)), ErrorCode.PROTOCOL_ERROR),
    "D13 response pseudo": (t.headers(1, ((b":status", b"200"), *t.GET)), ErrorCode.PROTOCOL_ERROR),
    "D13 pseudo after regular": (t.headers(1, ((b"a", b"b"), *t.GET)), ErrorCode.PROTOCOL_ERROR),
    "D13 pseudo last": (t.headers(1, (*t.GET[:3], (b"a", b"b"), t.GET[3])), ErrorCode.PROTOCOL_ERROR),
    "D13 pseudo in trailers": (OPEN + t.headers(1, [(b":method", b"GET")]), ErrorCode.PROTOCOL_ERROR),
    "D13 :protocol without CONNECT": (t.headers(1, (*t.GET, (b":protocol", b"websocket"))), ErrorCode.PROTOCOL_ERROR),
    "D13 CONNECT with :path": (
        t.headers(1, ((b":method", b"CONNECT"), (b":path", b"/"), (b":authority", b"x:1"))),
        ErrorCode.PROTOCOL_ERROR,
    ),
    "D14 upper-case name": (with_fields((b"X-Test", b"ok")), ErrorCode.PROTOCOL_ERROR),
    "D14 empty name": (with_fields((b"", b"ok")), ErrorCode.PROTOCOL_ERROR),
    "D14 blank in name": (with_fields((b"a b", b"ok")), ErrorCode.PROTOCOL_ERROR),
    "D14 colon in name": (with_fields((b"a:b", b"ok")), ErrorCode.PROTOCOL_ERROR),
    "D14 newline in name": (with_fields((b"a\nb", b"ok")), ErrorCode.PROTOCOL_ERROR),
    "D14 obs-text in name": (with_fields((b"a\xff", b"ok")), ErrorCode.PROTOCOL_ERROR),
    "D14 CR in value": (with_fields((b"a", b"x\ry")), ErrorCode.PROTOCOL_ERROR),
    "D14 LF in value": (with_fields((b"a", b"x\ny")), ErrorCode.PROTOCOL_ERROR),
    "D14 whole line in value": (with_fields((b"a", b"x\nb\ny")), ErrorCode.PROTOCOL_ERROR),
    "D14 CRLF and field in value": (with_fields((b"a", b"x\r\ntransfer-encoding: chunked")), ErrorCode.PROTOCOL_ERROR),
    "D14 NUL in value": (with_fields((b"a", b"x\0y")), ErrorCode.PROTOCOL_ERROR),
    "D14 DEL in value": (with_fields((b"a", b"x\x7f")), ErrorCode.PROTOCOL_ERROR),
    "D14 leading blank": (with_fields((b"a", b" x")), ErrorCode.PROTOCOL_ERROR),
    "D14 trailing blank": (with_fields((b"a", b"x ")), ErrorCode.PROTOCOL_ERROR),
    "D14 trailing tab": (with_fields((b"a", b"x\t")), ErrorCode.PROTOCOL_ERROR),
    "D14 only blank": (with_fields((b"a", b" ")), ErrorCode.PROTOCOL_ERROR),
    "D14 trailing newline": (with_fields((b"a", b"x\n")), ErrorCode.PROTOCOL_ERROR),
    "D14 upper-case trailer": (OPEN + t.headers(1, [(b"X", b"y")]), ErrorCode.PROTOCOL_ERROR),
    "D15 connection": (with_fields((b"connection", b"close")), ErrorCode.PROTOCOL_ERROR),
    "D15 keep-alive": (with_fields((b"keep-alive", b"5")), ErrorCode.PROTOCOL_ERROR),
    "D15 proxy-connection": (with_fields((b"proxy-connection", b"x")), ErrorCode.PROTOCOL_ERROR),
    "D15 transfer-encoding": (with_fields((b"transfer-encoding", b"chunked")), ErrorCode.PROTOCOL_ERROR),
    "D15 upgrade": (with_fields((b"upgrade", b"h2c")), ErrorCode.PROTOCOL_ERROR),
    "D15 te gzip": (with_fields((b"te", b"trailers, gzip")), ErrorCode.PROTOCOL_ERROR),
    "D15 transfer-encoding as trailer": (
        OPEN + t.headers(1, [(b"transfer-encoding", b"chunked")]),
        ErrorCode.PROTOCOL_ERROR,
    ),
    "D16 length on a bodiless request": (with_fields((b"content-length", b"1")), ErrorCode.PROTOCOL_ERROR),
    "D16 length with sign": (with_fields((b"content-length", b"+0")), ErrorCode.PROTOCOL_ERROR),
    "D16 length with underscore": (with_fields((b"content-length", b"0_0")), ErrorCode.PROTOCOL_ERROR),
    "D16 length empty": (with_fields((b"content-length", b"")), ErrorCode.PROTOCOL_ERROR),
    "D16 length of 19 digits": (with_fields((b"content-length", b"0" * 19)), ErrorCode.PROTOCOL_ERROR),
    "D16 length list": (with_fields((b"content-length", b"0, 0")), ErrorCode.PROTOCOL_ERROR),
    "D16 length twice, equal": (
        with_fields((b"content-length", b"0"), (b"content-length", b"0")),
        ErrorCode.PROTOCOL_ERROR,
    ),
    "D16 body too long": (
        t.headers(1, (*t.POST, (b"content-length", b"3")), end_stream=False) + t.data(1, b"four"),
        ErrorCode.PROTOCOL_ERROR,
    ),
    "D16 body too short": (
        t.headers(1, (*t.POST, (b"content-length", b"3")), end_stream=False) + t.data(1, b"tw", end_stream=True),
        ErrorCode.PROTOCOL_ERROR,
    ),
    "D16 body too short, ended by trailers": (
        t.headers(1, (*t.POST, (b"content-length", b"3")), end_stream=False) + t.data(1, b"tw") + t.headers(1, []),
        ErrorCode.PROTOCOL_ERROR,
    ),
    "D13 second HEADERS without END_STREAM": (
        OPEN + t.headers(1, [(b"a", b"b")], end_stream=False),
        ErrorCode.PROTOCOL_ERROR,
    ),
    "D11 DATA after END_STREAM": (t.headers(1) + t.data(1, b"x"), ErrorCode.STREAM_CLOSED),
    "D11 HEADERS after END_STREAM": (t.headers(1) + t.headers(1), ErrorCode.STREAM_CLOSED),
    "D20 stream increment 0": (OPEN + t.window_update(1, 0), ErrorCode.PROTOCOL_ERROR),
    "D20 stream window overflow": (OPEN + t.window_update(1, 2**31 - 1), ErrorCode.FLOW_CONTROL_ERROR),
    "D8 HEADERS on itself": (
        t.frame(f.HEADERS, f.HAS_PRIORITY | 5, 1, struct.pack(">LB", 1, 0) + t.block(t.GET)),
        ErrorCode.PROTOCOL_ERROR,
    ),
    "D8 PRIORITY on itself": (OPEN + t.priority(1, 1), ErrorCode.PROTOCOL_ERROR),
    "D2 PRIORITY of 4": (OPEN + t.frame(f.PRIORITY, 0, 1, bytes(4)), ErrorCode.FRAME_SIZE_ERROR),
}


@pytest.mark.parametrize("case", STREAM_ERRORS)
def test_stream_error_resets_only_that_stream(case: str) -> None:
    sent, code = STREAM_ERRORS[case]
    peer = t.Peer()
    assert_stream_error(peer, peer.send(sent), 1, code)


# --- answerable requests  ---------------

REJECTED = {
    "D17 host differs": (with_fields((b"host", b"other.test")), 400, Reason.BAD_HOST),
    "D17 host twice": (with_fields((b"host", b"example.test"), (b"host", b"example.test")), 400, Reason.BAD_HOST),
    "A21 no authority at all": (without(b":authority"), 400, Reason.BAD_HOST),
    "A21 empty authority": (replaced(b":authority", b""), 400, Reason.BAD_HOST),
    "A21 userinfo": (replaced(b":authority", b"user@example.test"), 400, Reason.BAD_HOST),
    "A21 port too long": (replaced(b":authority", b"example.test:123456"), 400, Reason.BAD_HOST),
    "A21 authority with slash": (replaced(b":authority", b"example.test/x"), 400, Reason.BAD_HOST),
    "A21 authority with newline": (replaced(b":authority", b"example.test\n"), 400, Reason.BAD_HOST),
    "A20 path too long": (replaced(b":path", b"/" + b"x" * 8_192), 414, Reason.TARGET_TOO_LONG),
    "B4 plain CONNECT": (
        t.headers(1, ((b":method", b"CONNECT"), (b":authority", b"example.test:443"))),
        405,
        Reason.METHOD_NOT_ALLOWED,
    ),
    "D4 101 fields": (with_fields(*((b"a", b"b") for _ in range(97))), 431, Reason.HEAD_TOO_LARGE),
}


@pytest.mark.parametrize("case", REJECTED)
def test_request_that_is_answered_but_goes_nowhere(case: str) -> None:
    sent, status, reason = REJECTED[case]
    peer = t.Peer()
    (event,) = peer.send(sent)
    assert isinstance(event, RequestRejected)
    assert (event.stream_id, event.status, event.reason) == (1, status, reason)
    peer.engine.send_headers(1, [(b":status", b"%d" % status)], end_stream=True)
    assert [kind for kind, *_ in peer.output()] == [f.HEADERS]
    assert peer.engine.open_streams == 0


def test_d4_hundred_fields_are_accepted() -> None:
    peer = t.Peer()
    (event,) = peer.send(with_fields(*((b"a", b"b") for _ in range(96))))
    assert isinstance(event, RequestReceived)


def test_rejected_request_discards_its_body_and_is_stopped_after_the_answer() -> None:
    peer = t.Peer()
    sent = t.headers(1, (*t.POST, (b"host", b"x")), end_stream=False)
    assert [type(e) for e in peer.send(sent, t.data(1, bytes(16_000)))] == [RequestRejected]
    peer.engine.send_headers(1, [(b":status", b"400")], end_stream=True)
    frames = peer.output()
    assert [(kind, sid) for kind, _, sid, _ in frames] == [(f.HEADERS, 1), (f.RST_STREAM, 1)]
    assert frames[-1][3] == bytes(4), "NO_ERROR: RFC 9113 section 8.1"
    assert peer.send(t.data(1, bytes(16_000))) == []


# --- valid requests  ---------------


def test_request_head_is_reported_in_parts() -> None:
    peer = t.Peer()
    fields = (*t.GET, (b"host", b"EXAMPLE.test"), (b"accept", b"*/*"), (b"te", b"trailers"), (b"x", b"caf\xc3\xa9"))
    (event,) = peer.send(t.headers(1, fields))
    assert event == RequestReceived(
        1,
        b"GET",
        b"http",
        b"example.test",
        b"/",
        None,
        ((b"accept", b"*/*"), (b"te", b"trailers"), (b"x", b"caf\xc3\xa9")),
        None,
        True,
    )
    assert peer.engine.stream_state(1) is StreamState.HALF_CLOSED_REMOTE


def test_host_stands_in_for_a_missing_authority() -> None:
    peer = t.Peer()
    (event,) = peer.send(t.headers(1, (*t.GET[:3], (b"host", b"[2001:db8::1]:8080"))))
    assert (event.authority, event.fields) == (b"[2001:db8::1]:8080", ())


def test_cookie_crumbs_are_joined_where_the_first_stood() -> None:
    peer = t.Peer()
    crumbs = ((b"a", b"1"), (b"cookie", b"x=1"), (b"b", b"2"), (b"cookie", b"y=2"), (b"host", b"example.test"))
    (event,) = peer.send(with_fields(*crumbs))
    assert event.fields == ((b"a", b"1"), (b"cookie", b"x=1; y=2"), (b"b", b"2"))


def test_options_asterisk_is_a_path() -> None:
    peer = t.Peer()
    fields = ((b":method", b"OPTIONS"), (b":scheme", b"http"), (b":path", b"*"), (b":authority", b"example.test"))
    (event,) = peer.send(t.headers(1, fields))
    assert event.path == b"*"


WEBSOCKET = (
    (b":method", b"CONNECT"),
    (b":protocol", b"websocket"),
    (b":scheme", b"https"),
    (b":path", b"/chat"),
    (b":authority", b"example.test"),
)


def test_b4_extended_connect_is_reported_where_advertised() -> None:
    peer = t.Peer()
    (event,) = peer.send(t.headers(1, WEBSOCKET, end_stream=False))
    assert isinstance(event, RequestReceived)
    assert event.protocol == b"websocket"


def test_b4_extended_connect_is_malformed_where_not_advertised() -> None:
    peer = t.Peer(limits=Http2Limits(enable_connect_protocol=False))
    assert_stream_error(peer, peer.send(t.headers(1, WEBSOCKET, end_stream=False)), 1, ErrorCode.PROTOCOL_ERROR)


def test_body_and_trailers_are_reported_in_order() -> None:
    peer = t.Peer()
    events = peer.send(
        t.headers(1, (*t.POST, (b"content-length", b"5")), end_stream=False),
        t.data(1, b"he", padding=3),
        t.data(1, b"llo"),
        t.headers(1, [(b"grpc-status", b"0")]),
    )
    assert events[1:] == [
        DataReceived(1, b"he", 6),
        DataReceived(1, b"llo", 3),
        TrailersReceived(1, ((b"grpc-status", b"0"),)),
    ]


def test_header_block_in_pieces_is_one_request() -> None:
    peer = t.Peer()
    whole = t.block(t.GET)
    (event,) = peer.send(
        t.frame(f.HEADERS, f.END_STREAM, 1, whole[:3]),
        t.frame(f.CONTINUATION, 0, 1, whole[3:4]),
        t.frame(f.CONTINUATION, f.END_HEADERS, 1, whole[4:]),
    )
    assert (event.method, event.authority, event.end_stream) == (b"GET", b"example.test", True)


def test_d19_unknown_types_flags_and_reserved_bits_are_ignored() -> None:
    peer = t.Peer()
    sent = bytearray(t.headers(1))
    sent[4] |= 0xD2  # flags without meaning
    sent[5] |= 0x80  # reserved bit
    (event,) = peer.send(t.frame(0xEE, 0xFF, 0, b"x"), t.frame(0xEF, 0xFF, 7, b"y"), bytes(sent))
    assert isinstance(event, RequestReceived)


# --- preface (D18)  ---------------


@pytest.mark.parametrize(
    "opening",
    [b"GET / HTTP/1.1\r\n", b"P", PREFACE[:-1] + b"x", b"\0", PREFACE + t.ping(), PREFACE + t.settings(ack=True)],
)
def test_d18_bad_preface_ends_the_connection(opening: bytes) -> None:
    peer = t.Peer(greet=False)
    events = peer.send(opening)
    if opening == b"P":
        assert events == []
        events = peer.send(b"O")
    assert terminated(events).reason is Reason.BAD_PREFACE
    assert peer.output()[-1][0] == f.GOAWAY


def test_d18_wrong_preface_byte_is_refused_at_once() -> None:
    peer = t.Peer(greet=False)
    assert peer.send(b"PRI * HTTP/2.0\r\n") == []
    assert terminated(peer.send(b"\rX")).error_code == ErrorCode.PROTOCOL_ERROR


def test_server_announces_its_limits() -> None:
    peer = t.Peer(greet=False)
    peer.engine.initiate()
    peer.engine.initiate()
    (settings, window) = peer.output()
    entries = dict(struct.iter_unpack(">HL", settings[3]))
    assert entries == {
        SettingId.MAX_CONCURRENT_STREAMS: 100,
        SettingId.INITIAL_WINDOW_SIZE: 65_536,
        SettingId.MAX_HEADER_LIST_SIZE: 65_536,
        SettingId.ENABLE_CONNECT_PROTOCOL: 1,
    }
    assert (window[0], window[2], int.from_bytes(window[3], "big")) == (f.WINDOW_UPDATE, 0, 1_048_576 - 65_535)


# --- closed streams (D11)  ---------------


@pytest.mark.parametrize("late", [t.data(1, b"x"), t.headers(1)], ids=["DATA", "HEADERS"])
def test_d11_late_frame_after_both_ended_ends_the_connection(late: bytes) -> None:
    peer = t.Peer()
    peer.send(t.headers(1))
    answer(peer, 1)
    assert_goaway(peer, peer.send(late), ErrorCode.STREAM_CLOSED)


@pytest.mark.parametrize("late", [t.data(1, b"x"), t.headers(1)], ids=["DATA", "HEADERS"])
def test_d11_late_frame_after_the_peers_reset_is_answered_stream_closed(late: bytes) -> None:
    peer = t.Peer()
    peer.send(t.headers(1, end_stream=False), t.rst_stream(1))
    peer.engine.data_to_send()
    assert peer.send(late) == []
    assert [(k, p) for k, _, _, p in peer.output()] == [(f.RST_STREAM, ErrorCode.STREAM_CLOSED.to_bytes(4, "big"))]


@pytest.mark.parametrize("late", [t.data(1, b"x"), t.headers(1), t.window_update(1, 5), t.rst_stream(1)])
def test_d11_late_frame_after_our_reset_is_ignored(late: bytes) -> None:
    peer = t.Peer()
    peer.send(t.headers(1, end_stream=False))
    peer.engine.reset_stream(1)
    peer.engine.data_to_send()
    assert peer.send(late) == []
    assert peer.output() == []


@pytest.mark.parametrize("late", [t.window_update(1, 0), t.window_update(1, 2**31 - 1), t.rst_stream(1), t.priority(1)])
def test_d20_grants_and_resets_on_closed_streams_are_harmless(late: bytes) -> None:
    peer = t.Peer()
    peer.send(t.headers(1))
    answer(peer, 1)
    assert peer.send(late) == []
    assert peer.output() == []


def test_d11_only_recent_closed_streams_are_remembered() -> None:
    peer = t.Peer(limits=Http2Limits(closed_streams_remembered=2))
    for stream_id in (1, 3, 5):
        peer.send(t.headers(stream_id))
        answer(peer, stream_id)
    assert peer.send(t.data(1, b"x")) == []
    assert [k for k, *_ in peer.output()] == [f.RST_STREAM]
    assert_goaway(peer, peer.send(t.headers(1)), ErrorCode.PROTOCOL_ERROR)


def test_d11_compression_state_survives_refused_and_ignored_heads() -> None:
    peer = t.Peer(limits=Http2Limits(max_concurrent_streams=1))
    indexed = b"\x40\x01a\x01b"  # enters the dynamic table
    refused = t.frame(f.HEADERS, 5, 3, t.block(t.GET) + indexed)
    events = peer.send(t.headers(1), refused)
    assert [type(e) for e in events] == [RequestReceived, StreamReset]
    answer(peer, 1)
    (event,) = peer.send(t.frame(f.HEADERS, 5, 5, t.block(t.GET) + b"\xbe"))
    assert event.fields == ((b"a", b"b"),)


def test_end_of_input_is_reported_once_and_says_whether_something_was_cut() -> None:
    clean = t.Peer()
    assert clean.send(b"") == [
        ConnectionTerminated(ErrorCode.NO_ERROR, Reason.PEER_CLOSED, "connection: peer closed with 0 streams open")
    ]
    assert clean.send(b"") == []
    cut = t.Peer()
    cut.send(t.headers(1)[:-1])
    assert terminated(cut.send(b"")).reason is Reason.TRUNCATED
    busy = t.Peer()
    busy.send(t.headers(1))
    assert terminated(busy.send(b"")).reason is Reason.TRUNCATED
    assert not busy.engine.is_open(1)


def test_role_is_not_mistaken() -> None:
    assert t.Peer(Role.SERVER).engine.can_open is False
