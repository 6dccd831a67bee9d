"""The client role, and what both roles may send: responses, interim responses, GOAWAY, misuse, shutdown."""

from __future__ import annotations

import pytest

from datum_router.errors import LocalProtocolError
from datum_router.reasons import Reason
from datum_router_proxy import testing as t
from datum_router_proxy.wire.http2 import (
    PREFACE,
    ConnectionTerminated,
    DataReceived,
    ErrorCode,
    GoAwayReceived,
    InformationalReceived,
    RequestReceived,
    ResponseReceived,
    Role,
    SettingId,
    StreamEnded,
    StreamReset,
    StreamState,
    TrailersReceived,
)
from datum_router_proxy.wire.http2 import frames as f

OK = ((b":status", b"200"),)


def client() -> t.Peer:
    return t.Peer(Role.CLIENT)


def response(stream_id: int, *fields: tuple[bytes, bytes], end_stream: bool = False) -> bytes:
    return t.headers(stream_id, fields or OK, end_stream=end_stream)


def test_client_opens_with_preface_settings_and_window() -> None:
    peer = t.Peer(Role.CLIENT, greet=False)
    peer.engine.initiate()
    output = peer.engine.data_to_send()
    assert output.startswith(PREFACE)
    settings, window = t.parse(output)
    assert settings[3][:6] == b"\0\2\0\0\0\0", "ENABLE_PUSH 0"
    assert window[0] == f.WINDOW_UPDATE


def test_response_with_body_and_trailers() -> None:
    peer = client()
    stream_id = peer.request()
    events = peer.send(
        response(1, (b":status", b"200"), (b"content-length", b"3")),
        t.data(1, b"abc"),
        t.headers(1, [(b"grpc-status", b"0")]),
    )
    assert events == [
        ResponseReceived(stream_id, 200, ((b"content-length", b"3"),), 3, False),
        DataReceived(1, b"abc", 3),
        TrailersReceived(1, ((b"grpc-status", b"0"),)),
    ]
    assert peer.engine.open_streams == 0


def test_a16_interim_responses_are_reported_and_bounded() -> None:
    peer = client()
    peer.request()
    events = peer.send(*(response(1, (b":status", b"103"), (b"link", b"</x>")) for _ in range(16)))
    assert events == [InformationalReceived(1, 103, ((b"link", b"</x>"),))] * 16
    (reset,) = peer.send(response(1, (b":status", b"100")))
    assert (reset.error_code, reset.reason) == (ErrorCode.ENHANCE_YOUR_CALM, Reason.TOO_MANY_INTERIM)


BAD_RESPONSES = {
    "no status": response(1, (b"a", b"b")),
    "empty": t.headers(1, [], end_stream=False),
    "status not first": response(1, (b"a", b"b"), (b":status", b"200")),
    "status twice": response(1, (b":status", b"200"), (b":status", b"200")),
    "status of two digits": response(1, (b":status", b"20")),
    "status 600": response(1, (b":status", b"600")),
    "status with blank": response(1, (b":status", b"200 OK")),
    "request pseudo": response(1, (b":status", b"200"), (b":path", b"/")),
    "101": response(1, (b":status", b"101")),
    "interim that ends": response(1, (b":status", b"100"), end_stream=True),
    "D15 transfer-encoding": response(1, (b":status", b"200"), (b"transfer-encoding", b"chunked")),
    "D14 newline in value": response(1, (b":status", b"200"), (b"a", b"b\nc")),
    "D16 length twice": response(1, (b":status", b"200"), (b"content-length", b"1"), (b"content-length", b"1")),
    "D16 length without body": response(1, (b":status", b"200"), (b"content-length", b"1"), end_stream=True),
    "D16 short": response(1, (b":status", b"200"), (b"content-length", b"2")) + t.data(1, b"x", end_stream=True),
    "D16 long": response(1, (b":status", b"200"), (b"content-length", b"2")) + t.data(1, b"xyz"),
    "A17 body on 204": response(1, (b":status", b"204")) + t.data(1, b"x"),
    "A17 body on 304": response(1, (b":status", b"304"), (b"content-length", b"9")) + t.data(1, b"x"),
    "DATA first": t.data(1, b"x"),
    "D13 pseudo in trailers": response(1) + t.headers(1, [(b":status", b"200")]),
}


@pytest.mark.parametrize("case", BAD_RESPONSES)
def test_malformed_response_resets_its_stream_only(case: str) -> None:
    peer = client()
    peer.request()
    peer.request()
    events = peer.send(BAD_RESPONSES[case])
    reset = events[-1]
    assert isinstance(reset, StreamReset)
    assert (reset.stream_id, reset.error_code, reset.remote) == (1, ErrorCode.PROTOCOL_ERROR, False)
    assert peer.output()[-1][:3] == (f.RST_STREAM, 0, 1)
    assert peer.send(response(3, end_stream=True)) == [ResponseReceived(3, 200, (), None, True)]
    assert peer.engine.open_streams == 0, "a client holds no slots"


@pytest.mark.parametrize(
    ("method", "status"), [(b"HEAD", b"200"), (b"GET", b"304"), (b"GET", b"204")], ids=["HEAD", "304", "204"]
)
def test_content_length_without_body_is_legal_where_none_may_come(method: bytes, status: bytes) -> None:
    peer = client()
    peer.request(((b":method", method), *t.GET[1:]))
    (event,) = peer.send(response(1, (b":status", status), (b"content-length", b"1234"), end_stream=True))
    assert event.content_length == 1234
    peer.request(((b":method", method), *t.GET[1:]))
    events = peer.send(response(3, (b":status", status), (b"content-length", b"1234")), t.data(3, end_stream=True))
    assert [type(e) for e in events] == [ResponseReceived, StreamEnded]


CONNECTION_ERRORS = {
    "push": (t.frame(f.PUSH_PROMISE, f.END_HEADERS, 1, bytes(4) + b"\x82"), ErrorCode.PROTOCOL_ERROR),
    "server-opened stream": (response(2), ErrorCode.PROTOCOL_ERROR),
    "stream we never opened": (response(5), ErrorCode.PROTOCOL_ERROR),
    "DATA on one we never opened": (t.data(5, b"x"), ErrorCode.PROTOCOL_ERROR),
    "WINDOW_UPDATE on one we never opened": (t.window_update(5, 1), ErrorCode.PROTOCOL_ERROR),
    "ENABLE_PUSH 1 from a server": (t.settings((SettingId.ENABLE_PUSH, 1)), ErrorCode.PROTOCOL_ERROR),
    "after both ended": (response(1, end_stream=True) * 2, ErrorCode.STREAM_CLOSED),
}


@pytest.mark.parametrize("case", CONNECTION_ERRORS)
def test_client_connection_errors(case: str) -> None:
    sent, code = CONNECTION_ERRORS[case]
    peer = client()
    peer.request()
    last = peer.send(sent)[-1]
    assert isinstance(last, ConnectionTerminated)
    assert last.error_code == code


def test_first_frame_of_a_server_is_settings() -> None:
    peer = t.Peer(Role.CLIENT, greet=False)
    peer.engine.initiate()
    assert peer.send(t.ping())[-1].reason is Reason.BAD_PREFACE


def test_d22_streams_above_the_last_id_of_goaway_are_unprocessed() -> None:
    peer = client()
    for _ in range(3):
        peer.request()
    events = peer.send(t.goaway(1))
    assert events[0] == GoAwayReceived(1, 0)
    assert [(e.stream_id, e.unprocessed, e.remote) for e in events[1:]] == [(3, True, True), (5, True, True)]
    assert not peer.engine.can_open
    with pytest.raises(LocalProtocolError):
        peer.engine.open_stream()
    assert peer.send(response(1, end_stream=True)) == [ResponseReceived(1, 200, (), None, True)]
    assert peer.engine.is_drained


def test_d22_last_id_never_grows_again() -> None:
    peer = client()
    peer.request()
    peer.request()
    assert [type(e) for e in peer.send(t.goaway(2**31 - 1))] == [GoAwayReceived]
    assert [e.stream_id for e in peer.send(t.goaway(1))[1:]] == [3]
    assert peer.send(t.goaway(9)) == [GoAwayReceived(1, 0)]


def test_refused_stream_is_unprocessed_and_other_resets_are_not() -> None:
    peer = client()
    peer.request()
    peer.request()
    first, second = peer.send(t.rst_stream(1, ErrorCode.REFUSED_STREAM), t.rst_stream(3, ErrorCode.CANCEL))
    assert (first.unprocessed, first.reason) == (True, Reason.UPSTREAM_REFUSED_STREAM)
    assert (second.unprocessed, second.reason) == (False, Reason.UPSTREAM_RESET)


def test_upstream_resets_never_cost_the_connection() -> None:
    peer = client()
    for _ in range(500):
        stream_id = peer.request()
        assert [type(e) for e in peer.send(t.rst_stream(stream_id, 2))] == [StreamReset]


def test_peer_limit_on_streams_is_respected() -> None:
    peer = client()
    peer.send(t.settings((SettingId.MAX_CONCURRENT_STREAMS, 2)))
    peer.request()
    reserved = peer.engine.open_stream()
    assert not peer.engine.can_open
    peer.engine.reset_stream(reserved)
    assert peer.engine.can_open
    peer.output()
    assert peer.request() == 5


def test_reserved_streams_are_used_in_order() -> None:
    peer = client()
    first, second = peer.engine.open_stream(), peer.engine.open_stream()
    peer.engine.send_headers(second, t.GET, True)
    with pytest.raises(LocalProtocolError, match="later one"):
        peer.engine.send_headers(first, t.GET, True)


def test_extended_connect_needs_the_peers_consent() -> None:
    peer = client()
    fields = ((b":method", b"CONNECT"), (b":protocol", b"websocket"), *t.GET[1:])
    stream_id = peer.engine.open_stream()
    with pytest.raises(LocalProtocolError, match="extended CONNECT"):
        peer.engine.send_headers(stream_id, fields)
    peer.send(t.settings((SettingId.ENABLE_CONNECT_PROTOCOL, 1)))
    assert peer.engine.peer_allows_connect_protocol
    peer.engine.send_headers(stream_id, fields)
    events = peer.send(response(1, (b":status", b"200"), (b"content-length", b"7")), t.data(1, b"frames"))
    assert events == [
        ResponseReceived(1, 200, ((b"content-length", b"7"),), None, False),
        DataReceived(1, b"frames", 6),
    ]


# --- misuse of the engine  ---------------


def served(end_stream: bool = True, method: bytes = b"GET") -> t.Peer:
    peer = t.Peer()
    peer.send(t.headers(1, ((b":method", method), *t.GET[1:]), end_stream=end_stream))
    return peer


@pytest.mark.parametrize(
    "fields",
    [
        [(b"a", b"b")],
        [],
        [(b":status", b"20")],
        [(b":status", b"2\r\n")],
        [(b":status", b"101")],
        [(b":status", b"200"), (b"a", b"x\r\nset-cookie: y")],
        [(b":status", b"200"), (b"a", b"x\n")],
        [(b":status", b"200"), (b"a\nb", b"x")],
        [(b":status", b"200"), (b"A", b"x")],
        [(b":status", b"200"), (b"", b"x")],
        [(b":status", b"200"), (b"connection", b"close")],
        [(b":status", b"200"), (b"transfer-encoding", b"chunked")],
        [(b":status", b"200"), (b"content-length", b"1, 1")],
        [(b":status", b"200"), (b"content-length", b"1"), (b"content-length", b"1")],
        [(b":status", b"200"), (b":path", b"/")],
    ],
)
def test_a25_fields_that_could_split_a_message_never_leave(fields: list) -> None:
    peer = served()
    with pytest.raises(LocalProtocolError):
        peer.engine.send_headers(1, fields)
    assert not peer.engine.has_output
    assert peer.engine.is_open(1)


def test_messages_are_sent_in_order_only() -> None:
    peer = served()
    engine = peer.engine
    with pytest.raises(LocalProtocolError, match="HEAD"):
        engine.send_data(1, b"x")
    with pytest.raises(LocalProtocolError, match="HEAD"):
        engine.send_trailers(1, [(b"a", b"b")])
    engine.send_headers(1, [(b":status", b"103")])
    engine.send_headers(1, OK)
    with pytest.raises(LocalProtocolError, match="before"):
        engine.send_headers(1, OK)
    engine.send_trailers(1, [(b"a", b"b")])
    with pytest.raises(LocalProtocolError, match="not open"):
        engine.send_data(1, b"x")
    assert engine.stream_state(1) is StreamState.CLOSED


def test_body_has_to_be_as_long_as_its_content_length() -> None:
    for chunk, end in ((b"abcd", False), (b"ab", True)):
        peer = served()
        peer.engine.send_headers(1, (*OK, (b"content-length", b"3")))
        with pytest.raises(LocalProtocolError, match="expected 3"):
            peer.engine.send_data(1, chunk, end)
    peer = served(method=b"HEAD")
    peer.engine.send_headers(1, (*OK, (b"content-length", b"3")), end_stream=True)
    assert peer.engine.open_streams == 0


@pytest.mark.parametrize(("method", "status"), [(b"HEAD", b"200"), (b"GET", b"204"), (b"GET", b"304")])
def test_a17_no_body_leaves_where_none_is_allowed(method: bytes, status: bytes) -> None:
    peer = served(method=method)
    peer.engine.send_headers(1, [(b":status", status), (b"content-length", b"3")])
    with pytest.raises(LocalProtocolError, match="expected 0"):
        peer.engine.send_data(1, b"abc")
    peer.engine.send_data(1, b"", end_stream=True)
    assert peer.engine.open_streams == 0


def test_more_than_the_windows_allow_is_refused() -> None:
    peer = served()
    peer.engine.send_headers(1, OK)
    assert peer.engine.sendable(1) == 65_535
    with pytest.raises(LocalProtocolError, match="65536 bytes, the windows allow 65535"):
        peer.engine.send_data(1, bytes(65_536))
    peer.engine.send_data(1, bytes(65_535))
    assert peer.engine.sendable(1) == 0
    peer.engine.send_data(1, b"", end_stream=True)
    sizes = [(len(payload), flags) for kind, flags, _, payload in peer.output() if kind == f.DATA]
    assert sizes == [(16_384, 0), (16_384, 0), (16_384, 0), (16_383, 0), (0, 1)]


def test_large_header_block_is_cut_into_continuations() -> None:
    peer = served()
    peer.engine.send_headers(1, (*OK, *((b"x-%d" % i, b"v" * 1_000) for i in range(40))), end_stream=True)
    frames = peer.output()
    assert [kind for kind, *_ in frames] == [f.HEADERS, f.CONTINUATION, f.CONTINUATION]
    assert [flags for _, flags, *_ in frames] == [f.END_STREAM, 0, f.END_HEADERS]
    other = client()
    other.request()
    joined = b"".join(t.frame(*frame) for frame in frames)
    assert len(other.send(joined)[0].fields) == 40


def test_more_acknowledged_than_delivered_is_refused() -> None:
    peer = served(end_stream=False)
    peer.send(t.data(1, b"abc"))
    with pytest.raises(LocalProtocolError, match="3 are outstanding"):
        peer.engine.acknowledge(1, 4)


def test_unanswered_pings_are_bounded() -> None:
    peer = t.Peer()
    for _ in range(16):
        peer.engine.ping()
    with pytest.raises(LocalProtocolError, match="16"):
        peer.engine.ping()


# --- shutdown  ---------------


def test_graceful_shutdown_in_two_steps_loses_nothing() -> None:
    peer = served()
    engine = peer.engine
    engine.begin_shutdown()
    assert [(k, p[:4]) for k, _, _, p in peer.output()] == [(f.GOAWAY, b"\x7f\xff\xff\xff")]
    assert [type(e) for e in peer.send(t.headers(3))] == [RequestReceived], "not refused yet"
    engine.finish_shutdown()
    engine.finish_shutdown()
    assert [p[:4] for _, _, _, p in peer.output()] == [b"\0\0\0\3"]
    assert peer.send(t.headers(5, end_stream=False), t.data(5, b"x")) == [], "ignored, the peer retries elsewhere"
    assert not engine.is_drained
    for stream_id in (1, 3):
        engine.send_headers(stream_id, OK, end_stream=True)
    assert engine.is_drained


def test_goaway_with_an_error_code() -> None:
    peer = served()
    peer.engine.goaway(ErrorCode.INTERNAL_ERROR)
    assert peer.output() == [(f.GOAWAY, 0, 0, b"\0\0\0\1\0\0\0\2")]
    assert peer.engine.is_draining
