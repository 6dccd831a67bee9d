"""Request heads: the threat rows A1 to A8 and A14 to A24, one table a row."""

from __future__ import annotations

import pytest

from datum_router.errors import RemoteProtocolError
from datum_router.reasons import Reason
from datum_router_proxy.wire.http1 import (
    NEED_DATA,
    FramingKind,
    H1RequestHead,
    HeadCache,
    Http1Connection,
    Http1Limits,
    MessageComplete,
    RequestReceived,
    Role,
    Signal,
    TargetForm,
)


def read(raw: bytes, limits: Http1Limits | None = None) -> H1RequestHead:
    connection = Http1Connection(Role.SERVER, limits or Http1Limits())
    connection.receive_data(raw)
    event = connection.next_event()
    assert isinstance(event, RequestReceived), event
    return event.head


def feed(connection: Http1Connection, raw: bytes, step: int) -> None:
    for start in range(0, len(raw), step):
        connection.receive_data(raw[start : start + step])
        connection.next_event()


def refusal(raw: bytes, limits: Http1Limits | None = None) -> tuple[int, Reason]:
    """Return (status, reason) of the refusal; whole and byte by byte must agree that it is one."""
    statuses = []
    for step in (len(raw), 1):
        connection = Http1Connection(Role.SERVER, limits or Http1Limits())
        with pytest.raises(RemoteProtocolError) as caught:
            feed(connection, raw, step)
        assert connection.must_close
        assert not connection.can_reuse
        statuses.append((caught.value.status_hint, caught.value.reason))
    return statuses[0]


def get(*lines: bytes) -> bytes:
    return b"GET / HTTP/1.1\r\nHost: a\r\n" + b"".join(line + b"\r\n" for line in lines) + b"\r\n"


def post(*lines: bytes) -> bytes:
    return b"POST" + get(*lines)[3:]


@pytest.mark.parametrize(
    "lines",
    [
        (b"Content-Length: 5", b"Transfer-Encoding: chunked"),
        (b"Transfer-Encoding: chunked", b"Content-Length: 5"),
        (b"CONTENT-LENGTH: 0", b"transfer-encoding: CHUNKED"),
        (b"Transfer-Encoding: chunked", b"X: y", b"content-length: 5"),
        (b"Transfer-Encoding: identity", b"content-length: 5"),
    ],
)
def test_a1_content_length_with_transfer_encoding_is_refused(lines: tuple[bytes, ...]) -> None:
    assert refusal(post(*lines)) == (400, Reason.LENGTH_CONFLICT)


@pytest.mark.parametrize(
    "lines",
    [
        (b"Transfer-Encoding: chunked, chunked",),
        (b"Transfer-Encoding: gzip, chunked",),
        (b"Transfer-Encoding: chunked, identity",),
        (b"Transfer-Encoding: chunked", b"Transfer-Encoding: chunked"),
        (b"Transfer-Encoding: chunked", b"Transfer-Encoding: identity"),
        (b'Transfer-Encoding: "chunked"',),
        (b"Transfer-Encoding: 'chunked', x",),
        (b"Transfer-Encoding:",),
        (b"Transfer-Encoding: chunked;q=1",),
        (b"Transfer-Encoding: ,chunked",),
        (b"Transfer-Encoding: chunked,",),
        (b"Transfer-Encoding:\tchunked",),
        (b"Transfer-Encoding:  chunked",),
        (b"Transfer-Encoding: chunked ",),
        (b"Transfer-Encoding: chunked\t",),
        (b"X: transfer-encoding: chunked", b"Transfer-Encoding:\tchunked"),
    ],
)
def test_a2_obfuscated_transfer_encoding_is_refused(lines: tuple[bytes, ...]) -> None:
    assert refusal(post(*lines)) == (400, Reason.BAD_TRANSFER_ENCODING)


@pytest.mark.parametrize("coding", [b"gzip", b"identity", b"xchunked", b"chunkedchunked", b"chunke", b"pigeons"])
def test_a2_unknown_transfer_coding_is_not_implemented(coding: bytes) -> None:
    assert refusal(post(b"Transfer-Encoding: " + coding)) == (501, Reason.UNKNOWN_TRANSFER_CODING)


def test_a2_chunked_is_case_insensitive() -> None:
    assert read(post(b"Transfer-Encoding:Chunked")).framing.kind is FramingKind.CHUNKED


def test_a3_transfer_encoding_on_http_1_0_is_refused() -> None:
    raw = b"POST / HTTP/1.0\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"
    assert refusal(raw) == (400, Reason.BAD_TRANSFER_ENCODING)


@pytest.mark.parametrize(
    "value",
    [
        b"",
        b"+5",
        b"-5",
        b"0x5",
        b"5 5",
        b"5,5",
        b"5, 5",
        b"1_0",
        b"5.0",
        b"5a",
        b"\xb2",
        b"\xd9\xa5",
        b"1" * 19,
        b'"5"',
    ],
)
def test_a4_content_length_grammar(value: bytes) -> None:
    assert refusal(post(b"Content-Length: " + value)) == (400, Reason.BAD_LENGTH)


def test_a4_repeated_equal_content_length_is_refused() -> None:
    assert refusal(post(b"Content-Length: 5", b"Content-Length: 5")) == (400, Reason.BAD_LENGTH)


def test_a4_eighteen_digits_are_taken() -> None:
    assert read(post(b"Content-Length: " + b"9" * 18)).framing.length == 10**18 - 1
    assert read(post(b"Content-Length: 007")).framing.length == 7


@pytest.mark.parametrize(
    "raw",
    [
        b"GET / HTTP/1.1\nHost: a\n\n",
        b"GET / HTTP/1.1\r\nHost: a\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nX: y\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nX: a\rb\r\n\r\n",
        b"GET / HTTP/1.1\rHost: a\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nX: a\r\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\n\n\r\n",
        b"\rGET / HTTP/1.1\r\nHost: a\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nX: y\r\n\rfoo: bar\r\n\r\n",
    ],
)
def test_a6_bare_cr_or_lf_is_refused(raw: bytes) -> None:
    assert refusal(raw) == (400, Reason.BAD_LINE_END)


def test_a6_line_feed_only_head_is_refused_before_it_ends() -> None:
    connection = Http1Connection(Role.SERVER)
    connection.receive_data(b"GET / HTTP/1.1\n")
    with pytest.raises(RemoteProtocolError) as caught:
        connection.next_event()
    assert caught.value.reason is Reason.BAD_LINE_END


@pytest.mark.parametrize(
    "line",
    [
        b" folded",
        b"\tfolded",
        b"X : y",
        b"X\t: y",
        b": y",
        b"no colon",
        b"X y: z",
        b" : x",
        b"\xc3\xa9: x",
        b"X\x00: y",
    ],
)
@pytest.mark.parametrize("is_first", [True, False])
def test_a7_malformed_field_lines_are_refused(line: bytes, is_first: bool) -> None:
    raw = b"GET / HTTP/1.1\r\n" + line + b"\r\nHost: a\r\n\r\n" if is_first else get(b"A: b", line, b"C: d")
    assert refusal(raw) == (400, Reason.BAD_HEADER)


@pytest.mark.parametrize("byte", [*range(0x09), 0x0B, 0x0C, *range(0x0E, 0x20), 0x7F])
def test_a8_control_bytes_in_values_are_refused(byte: int) -> None:
    assert refusal(get(b"X: a" + bytes((byte,)) + b"b")) == (400, Reason.BAD_HEADER)


def test_a8_obs_text_and_blanks_inside_pass_unchanged() -> None:
    assert read(get(b"X: \xe9\xff \t z")).fields == ((b"x", b"\xe9\xff \t z"),)


def test_a8_blanks_around_a_value_are_stripped() -> None:
    fields = read(get(b"A: \t b \t", b"C:d", b"E:", b"F: \t", b"G:\tx  y ")).fields
    assert fields == ((b"a", b"b"), (b"c", b"d"), (b"e", b""), (b"f", b""), (b"g", b"x  y"))


@pytest.mark.parametrize("method", [b"GET", b"HEAD", b"DELETE", b"OPTIONS"])
def test_a14_a_body_on_any_method_is_framed(method: bytes) -> None:
    head = read(method + b" / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\n")
    assert (head.framing.kind, head.framing.length) == (FramingKind.LENGTH, 3)


def test_a15_expect_continue_is_an_attribute_and_no_field() -> None:
    head = read(post(b"Content-Length: 3", b"Expect: 100-Continue"))
    assert head.expect_continue
    assert head.fields == ()
    assert read(post(b"Transfer-Encoding: chunked", b"Expect: 100-continue")).expect_continue


def test_a15_expect_without_a_body_or_on_http_1_0_asks_for_nothing() -> None:
    assert not read(get(b"Expect: 100-continue")).expect_continue
    assert not read(post(b"Content-Length: 0", b"Expect: 100-continue")).expect_continue
    raw = b"POST / HTTP/1.0\r\nHost: a\r\nContent-Length: 3\r\nExpect: 100-continue\r\n\r\n"
    assert not read(raw).expect_continue


@pytest.mark.parametrize("lines", [(b"Expect: 200-ok",), (b"Expect:",), (b"Expect: 100-continue",) * 2])
def test_a15_any_other_expectation_fails(lines: tuple[bytes, ...]) -> None:
    assert refusal(post(b"Content-Length: 3", *lines)) == (417, Reason.BAD_EXPECT)


@pytest.mark.parametrize(
    ("line", "status", "reason"),
    [
        (b"GET  / HTTP/1.1", 400, Reason.BAD_REQUEST_LINE),
        (b"GET / HTTP/1.1 ", 400, Reason.BAD_REQUEST_LINE),
        (b"GET\t/ HTTP/1.1", 400, Reason.BAD_REQUEST_LINE),
        (b"GET /", 400, Reason.BAD_REQUEST_LINE),
        (b"GET HTTP/1.1", 400, Reason.BAD_REQUEST_LINE),
        (b"GET /a b HTTP/1.1", 400, Reason.BAD_REQUEST_LINE),
        (b" GET / HTTP/1.1", 400, Reason.BAD_REQUEST_LINE),
        (b"G(T / HTTP/1.1", 400, Reason.BAD_METHOD),
        (b"get / HTTP/1.1", 400, Reason.BAD_METHOD),
        (b"Get / HTTP/1.1", 400, Reason.BAD_METHOD),
        (b"G" * 33 + b" / HTTP/1.1", 400, Reason.BAD_METHOD),
        (b"GET / HTTP/1", 400, Reason.BAD_VERSION),
        (b"GET / HTTP/1.", 400, Reason.BAD_VERSION),
        (b"GET / HTTP/1.10", 400, Reason.BAD_VERSION),
        (b"GET / HTTP/01.1", 400, Reason.BAD_VERSION),
        (b"GET / http/1.1", 400, Reason.BAD_VERSION),
        (b"GET / HTTP/0.9", 400, Reason.BAD_VERSION),
        (b"GET / HTTP/1,1", 400, Reason.BAD_VERSION),
        (b"GET / ICE/1.0", 400, Reason.BAD_VERSION),
        (b"GET / HTTP/2.0", 505, Reason.BAD_VERSION),
        (b"GET / HTTP/3.0", 505, Reason.BAD_VERSION),
        (b"CONNECT a:443 HTTP/1.1", 405, Reason.METHOD_NOT_ALLOWED),
        (b"GET /#f HTTP/1.1", 400, Reason.BAD_TARGET),
        (b"GET /\xe9 HTTP/1.1", 400, Reason.BAD_TARGET),
        (b"GET /\x7f HTTP/1.1", 400, Reason.BAD_TARGET),
        (b"GET * HTTP/1.1", 400, Reason.BAD_TARGET),
        (b"GET a HTTP/1.1", 400, Reason.BAD_TARGET),
        (b"GET a:80 HTTP/1.1", 400, Reason.BAD_TARGET),
        (b"GET ftp://a/ HTTP/1.1", 400, Reason.BAD_TARGET),
        (b"GET http:/a HTTP/1.1", 400, Reason.BAD_TARGET),
        (b"GET http:///x HTTP/1.1", 400, Reason.BAD_TARGET),
    ],
)
def test_a20_request_lines(line: bytes, status: int, reason: Reason) -> None:
    assert refusal(line + b"\r\nHost: a\r\n\r\n") == (status, reason)


def test_a20_bad_request_line_is_refused_before_the_head_ends() -> None:
    connection = Http1Connection(Role.SERVER)
    connection.receive_data(b"GET /\r\n")
    with pytest.raises(RemoteProtocolError) as caught:
        connection.next_event()
    assert caught.value.reason is Reason.BAD_REQUEST_LINE


@pytest.mark.parametrize(
    "start", [b"\x16\x03\x01\x02\x00", b"\x0d\x0a\x0d\x0a\x00\x0d\x0aQUIT\x0a", b"PROXY TCP4 1 2 3\r\n"]
)
def test_b6_bytes_of_other_protocols_are_bad_http(start: bytes) -> None:
    connection = Http1Connection(Role.SERVER)
    connection.receive_data(start)
    with pytest.raises(RemoteProtocolError) as caught:
        connection.next_event()
    assert caught.value.status_hint == 400


def test_a20_later_minor_version_counts_as_1_1_and_unknown_methods_pass() -> None:
    head = read(b"FOO-BAR / HTTP/1.7\r\nHost: a\r\n\r\n")
    assert (head.method, head.minor_version, head.keep_alive) == ("FOO-BAR", 1, True)
    assert read(b"M" * 32 + b" / HTTP/1.1\r\nHost: a\r\n\r\n").method == "M" * 32


def test_a20_one_empty_line_before_the_request_is_forgiven_and_no_second() -> None:
    assert read(b"\r\n" + get()).method == "GET"
    assert refusal(b"\r\n\r\n" + get()) == (400, Reason.BAD_REQUEST_LINE)


@pytest.mark.parametrize("most", [0, 1, 2, 5])
def test_a20_empty_lines_before_each_request_are_limited_however_they_come(most: int) -> None:
    limits = Http1Limits(max_empty_lines=most)
    for step in (1, 2, 3, 1000):
        connection = Http1Connection(Role.SERVER, limits)
        for _ in range(2):
            feed(connection, b"\r\n" * most + get(), step)
            assert isinstance(connection.next_event(), MessageComplete)
            connection.send_response(204, ())
            connection.send_end()
            connection.start_next_cycle()
        with pytest.raises(RemoteProtocolError, match="too many empty lines before a request line") as caught:
            feed(connection, b"\r\n" * (most + 1), step)
        assert (caught.value.status_hint, caught.value.reason) == (400, Reason.BAD_REQUEST_LINE)


def test_a20_target_limit() -> None:
    limits = Http1Limits(max_target_bytes=100)
    assert read(b"GET /" + b"a" * 99 + b" HTTP/1.1\r\nHost: a\r\n\r\n", limits).target == b"/" + b"a" * 99
    assert refusal(b"GET /" + b"a" * 100 + b" HTTP/1.1\r\nHost: a\r\n\r\n", limits) == (414, Reason.TARGET_TOO_LONG)
    assert refusal(b"GET /" + b"a" * 9000 + b" HTTP/1.1\r\nHost: a\r\n\r\n") == (414, Reason.TARGET_TOO_LONG)


def test_a20_target_limit_acts_before_the_line_ends() -> None:
    connection = Http1Connection(Role.SERVER)
    connection.receive_data(b"GET /" + b"a" * 8300)
    with pytest.raises(RemoteProtocolError) as caught:
        connection.next_event()
    assert caught.value.status_hint == 414


@pytest.mark.parametrize("step", [1, 7, 200])
def test_a20_connect_is_left_to_whoever_serves_it(step: int) -> None:
    connection = Http1Connection(Role.SERVER, Http1Limits(serve_connect=True))
    raw = b"CONNECT a.example:443 HTTP/1.1\r\nHost: a\r\n\r\nbytes of the tunnel"
    found = []
    for at in range(0, len(b"\r\n" + raw), step):
        connection.receive_data((b"\r\n" + raw)[at : at + step])
        found.append(connection.next_event())
    assert found[-1] is Signal.CONNECT
    assert set(found) <= {NEED_DATA, Signal.CONNECT}
    assert connection.trailing_data() == raw
    assert read(get(), Http1Limits(serve_connect=True)).method == "GET"


@pytest.mark.parametrize(
    ("target", "host", "form", "path_query", "authority"),
    [
        (b"/", b"Example.COM", TargetForm.ORIGIN, b"/", b"example.com"),
        (b"/a?b=c|d", b"a:8080", TargetForm.ORIGIN, b"/a?b=c|d", b"a:8080"),
        (b"//evil", b"a", TargetForm.ORIGIN, b"//evil", b"a"),
        (b"http://B.example:81/p?q", b"a", TargetForm.ABSOLUTE, b"/p?q", b"b.example:81"),
        (b"HTTPS://b", b"a", TargetForm.ABSOLUTE, b"/", b"b"),
        (b"http://b?q", b"a", TargetForm.ABSOLUTE, b"/?q", b"b"),
        (b"/", b"[2001:DB8::1]:443", TargetForm.ORIGIN, b"/", b"[2001:db8::1]:443"),
        (b"/", b"10.0.0.1", TargetForm.ORIGIN, b"/", b"10.0.0.1"),
    ],
)
def test_a21_target_forms(target: bytes, host: bytes, form: TargetForm, path_query: bytes, authority: bytes) -> None:
    head = read(b"GET " + target + b" HTTP/1.1\r\nHost: " + host + b"\r\n\r\n")
    assert (head.form, head.path_query, head.authority) == (form, path_query, authority)
    assert head.fields == ()


def test_a21_asterisk_form_is_for_options() -> None:
    head = read(b"OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n")
    assert (head.form, head.path_query) == (TargetForm.ASTERISK, b"*")


@pytest.mark.parametrize(
    "host",
    [
        b"",
        b"user@a",
        b"a,b",
        b"a, b",
        b"a b",
        b"a/b",
        b"a:",
        b"a:0",
        b"a:65536",
        b"a:080",
        b"a:-1",
        b"a:80:80",
        b"[::1",
        b"::1",
        b"[::g]",
        b"[::1]x",
        b"[fe80::1%25eth0]",
        b"a%2e",
        b"\xc3\xa9",
        b"a\tb",
        b"http://a",
        b"x" * 256,
    ],
)
def test_a21_bad_hosts_are_refused(host: bytes) -> None:
    assert refusal(b"GET / HTTP/1.1\r\nHost: " + host + b"\r\n\r\n") == (400, Reason.BAD_HOST)


@pytest.mark.parametrize(
    "raw",
    [
        b"GET / HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.0\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nHost: a\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nhost: b\r\n\r\n",
        b"GET http://a/ HTTP/1.1\r\n\r\n",
        b"GET http://u@a/ HTTP/1.1\r\nHost: a\r\n\r\n",
        b"GET http://a:99999/ HTTP/1.1\r\nHost: a\r\n\r\n",
        b"GET http://a/ HTTP/1.1\r\nHost: bad host\r\n\r\n",
    ],
)
def test_a21_missing_repeated_or_bad_authority_is_refused(raw: bytes) -> None:
    assert refusal(raw) == (400, Reason.BAD_HOST)


def test_a22_field_count_limit() -> None:
    lines = [b"X: y"] * 99
    assert len(read(get(*lines)).fields) == 99
    assert refusal(get(*lines, b"X: y")) == (431, Reason.TOO_MANY_FIELDS)


def test_a22_field_size_limit() -> None:
    limits = Http1Limits(max_field_bytes=64)
    assert read(get(b"X: " + b"y" * 59), limits).fields == ((b"x", b"y" * 59),)
    assert refusal(get(b"X: " + b"y" * 60), limits) == (431, Reason.HEAD_TOO_LARGE)
    assert refusal(get(b"X: " + b"y" * 16400)) == (431, Reason.HEAD_TOO_LARGE)


def test_a22_head_size_limit() -> None:
    lines = [b"X-%02d: " % n + b"y" * 1000 for n in range(70)]
    assert refusal(get(*lines)) == (431, Reason.HEAD_TOO_LARGE)


@pytest.mark.parametrize("piece", [b"X: y\r\n", b"y", b"Y: " + b"z" * 900 + b"\r\n"])
def test_a22_the_engine_stops_at_the_limit_of_an_endless_head(piece: bytes) -> None:
    connection = Http1Connection(Role.SERVER)
    connection.receive_data(b"GET / HTTP/1.1\r\nHost: a\r\nX: ")
    pieces = 0

    def endless() -> None:
        nonlocal pieces
        while pieces * len(piece) < 1 << 20:
            connection.receive_data(piece)
            pieces += 1
            assert connection.next_event() is NEED_DATA

    with pytest.raises(RemoteProtocolError) as caught:
        endless()
    assert caught.value.status_hint == 431
    assert pieces * len(piece) <= 64 * 1024 + len(piece)
    assert connection.buffered_bytes == 0


class CountingBuffer(bytearray):
    """Count the bytes that searches may touch."""

    work = 0

    def find(self, sub: bytes, start: int = 0, end: int | None = None) -> int:  # type: ignore[override]
        type(self).work += len(self) - start
        return super().find(sub, start)

    def count(self, sub: bytes, start: int = 0, end: int | None = None) -> int:  # type: ignore[override]
        type(self).work += (len(self) if end is None else end) - start
        return super().count(sub, start, len(self) if end is None else end)

    def rfind(self, sub: bytes, start: int = 0, end: int | None = None) -> int:  # type: ignore[override]
        type(self).work += (len(self) if end is None else end) - start
        return super().rfind(sub, start, len(self) if end is None else end)


def test_a23_a_head_in_single_bytes_costs_linear_work() -> None:
    connection = Http1Connection(Role.SERVER)
    head = b"GET / HTTP/1.1\r\nHost: a\r\n" + b"".join(b"X-%02d: " % n + b"y" * 600 + b"\r\n" for n in range(90))
    connection.receive_data(head[:1])
    connection.next_event()
    connection._buffer = CountingBuffer(connection._buffer)
    CountingBuffer.work = 0
    for offset in range(1, len(head)):
        connection.receive_data(head[offset : offset + 1])
        assert connection.next_event() is NEED_DATA
    assert isinstance(connection._buffer, CountingBuffer)
    assert CountingBuffer.work <= 10 * len(head)


def test_a24_names_with_underscores_are_dropped_and_counted() -> None:
    head = read(get(b"X_A: 1", b"Content_Length: 5", b"B: 2", b"Transfer_Encoding: chunked"))
    assert head.fields == ((b"b", b"2"),)
    assert head.dropped_fields == 3
    assert head.framing.kind is FramingKind.NONE


def test_a24_underscore_fields_count_towards_the_limit() -> None:
    assert refusal(get(*[b"X_A: 1"] * 100)) == (431, Reason.TOO_MANY_FIELDS)


@pytest.mark.parametrize(
    ("version", "lines", "keep_alive", "nominations"),
    [
        (b"1.1", (), True, set()),
        (b"1.0", (), False, set()),
        (b"1.1", (b"Connection: close",), False, set()),
        (b"1.0", (b"Connection: Keep-Alive",), True, set()),
        (b"1.0", (b"Connection: keep-alive, close",), False, set()),
        (b"1.1", (b"Connection: X-Foo, close", b"Connection: BAR"), False, {b"x-foo", b"bar"}),
        (b"1.1", (b"Connection: ,, x-foo ,",), True, {b"x-foo"}),
        (b"1.1", (b"Connection: clo se",), False, set()),
        (b"1.1", (b'Connection: "close"',), False, set()),
    ],
)
def test_keep_alive_and_nominations(
    version: bytes, lines: tuple[bytes, ...], keep_alive: bool, nominations: set[bytes]
) -> None:
    head = read(get(*lines).replace(b"HTTP/1.1", b"HTTP/" + version))
    assert (head.keep_alive, set(head.nominations)) == (keep_alive, nominations)
    assert head.fields == ()


def test_upgrade_needs_its_nomination_and_http_1_1() -> None:
    assert read(get(b"Upgrade: WebSocket, h2c", b"Connection: Upgrade")).upgrade == (b"websocket", b"h2c")
    assert read(get(b"Upgrade: websocket")).upgrade == ()
    raw = get(b"Upgrade: websocket", b"Connection: upgrade").replace(b"HTTP/1.1", b"HTTP/1.0")
    assert read(raw).upgrade == ()


def test_te_trailers_is_an_attribute() -> None:
    assert read(get(b"TE: gzip;q=0.5, Trailers")).te_trailers
    assert not read(get(b"TE: gzip")).te_trailers


def test_the_same_error_is_raised_again_and_later_bytes_are_forgotten() -> None:
    connection = Http1Connection(Role.SERVER)
    connection.receive_data(b"get / HTTP/1.1\r\n\r\n")
    with pytest.raises(RemoteProtocolError) as first:
        connection.next_event()
    connection.receive_data(get())
    with pytest.raises(RemoteProtocolError) as second:
        connection.next_event()
    assert second.value is first.value
    assert not connection.wants_data
    assert connection.buffered_bytes == 0


def test_closing_inside_a_head_is_truncation_and_before_it_is_not() -> None:
    connection = Http1Connection(Role.SERVER)
    connection.receive_data(b"GET / HT")
    assert connection.next_event() is NEED_DATA
    assert connection.has_partial_head
    connection.receive_data(b"")
    with pytest.raises(RemoteProtocolError) as caught:
        connection.next_event()
    assert caught.value.reason is Reason.TRUNCATED


def test_cache_returns_the_same_head_for_the_same_bytes_only() -> None:
    cache = HeadCache()
    seen = []
    for raw in (get(b"A: 1"), get(b"A: 1"), get(b"A: 2")):
        connection = Http1Connection(Role.SERVER, cache=cache)
        connection.receive_data(raw)
        event = connection.next_event()
        assert isinstance(event, RequestReceived)
        seen.append(event.head)
    assert seen[0] is seen[1]
    assert seen[2].fields == ((b"a", b"2"),)


def test_cache_is_bounded_in_entries_and_bytes_and_skips_long_heads() -> None:
    event = RequestReceived(read(get()))
    cache = HeadCache(max_entries=10, max_bytes=1000)
    for number in range(100):
        cache.put(b"%03d" % number, event)
        assert len(cache) <= 10
    for number in range(100):
        cache.put(b"%0100d" % number, event)
        assert cache.block_bytes <= 1000
    cache.put(b"x" * 5000, event)
    assert cache.get(b"x" * 5000) is None
    cache.clear()
    assert len(cache) == 0


def test_cache_keeps_what_is_asked_for_and_forgets_the_rest() -> None:
    event = RequestReceived(read(get()))
    cache = HeadCache(max_entries=10)
    cache.put(b"hot", event)
    for number in range(100):
        cache.put(b"%d" % number, event)
        assert cache.get(b"hot") is event
    assert cache.get(b"0") is None
