"""Section A of the threat list: HTTP/1 requests that two parsers could read differently, and upstreams that lie."""

from __future__ import annotations

import contextlib
import re
import select
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass

import msgspec
import pytest

from datum_router.model.request import Headers, LocalReply, RequestHead, ResponseHead
from datum_router.model.service import UpstreamProtocol
from datum_router.observe import names
from datum_router_proxy import testing_peers as peers
from datum_router_proxy.testing_clients import client
from tests.threats.kit import (
    CANARY,
    CLOSE,
    HOST,
    INNER,
    OK,
    SILENCE_S,
    TE,
    Arena,
    Received,
    cpu_s,
    dechunked,
    eventually,
    get,
    post,
    read_all,
    read_until,
    running,
    statuses,
)

pytestmark = pytest.mark.e2e

ZERO = b"0\r\n\r\n" + INNER
MIB = 1 << 20


@dataclass(frozen=True)
class Bad:
    """A message that is no request: the status it gets, and the counted reason."""

    name: str
    status: int
    reason: str
    message: bytes


def refused(arena: Arena, bad: Bad) -> None:
    """Require the verdict of a broken head, sent at once and in pieces: answered, counted, closed, nothing upstream."""
    assert statuses(arena.ask(bad.message)) == [bad.status]
    assert statuses(arena.ask(bad.message, pieces=40)) == [bad.status]
    assert arena.rejected() == {f"h1|{bad.reason}": 2}
    assert arena.upstream.raw == b""


def each(*cases: Bad) -> pytest.MarkDecorator:
    """Parametrise over `bad`."""
    return pytest.mark.parametrize("bad", cases, ids=lambda bad: bad.name.replace(" ", "-"))


# --- A1 to A4: how long is it? -------------------------------------------------------------------------------------


@each(
    Bad("CL.TE", 400, "length_conflict", post(b"Content-Length: 4\r\n", TE, body=ZERO)),
    Bad("TE.CL", 400, "length_conflict", post(TE, b"Content-Length: 4\r\n", body=ZERO)),
    Bad("case", 400, "length_conflict", post(b"cOnTent-LENGTH: 0\r\nTRANSFER-encoding: Chunked\r\n", body=INNER)),
    Bad("apart", 400, "length_conflict", post(b"Content-Length: 4\r\nX: y\r\nZ: y\r\n", TE, body=ZERO)),
    Bad("unknown coding", 400, "length_conflict", post(b"Content-Length: 4\r\nTransfer-Encoding: x\r\n", body=ZERO)),
)
def test_a1_both_lengths(arena: Arena, bad: Bad) -> None:
    refused(arena, bad)


TRANSFER = "bad_transfer_encoding"


@each(
    Bad("xchunked", 501, "unknown_transfer_coding", post(b"Transfer-Encoding: xchunked\r\n", body=ZERO)),
    Bad("gzip", 501, "unknown_transfer_coding", post(b"Transfer-Encoding: gzip\r\n", body=ZERO)),
    Bad("identity", 501, "unknown_transfer_coding", post(b"Transfer-Encoding: identity\r\n", body=INNER)),
    Bad("repeated", 400, TRANSFER, post(TE, TE, body=ZERO)),
    Bad("two fields", 400, TRANSFER, post(b"Transfer-Encoding: gzip\r\n", TE, body=ZERO)),
    Bad("listed", 400, TRANSFER, post(b"Transfer-Encoding: gzip, chunked\r\n", body=ZERO)),
    Bad("chunked twice", 400, TRANSFER, post(b"Transfer-Encoding: chunked, chunked\r\n", body=ZERO)),
    Bad("empty element", 400, TRANSFER, post(b"Transfer-Encoding: ,chunked\r\n", body=ZERO)),
    Bad("parameter", 400, TRANSFER, post(b"Transfer-Encoding: chunked;q=1\r\n", body=ZERO)),
    Bad("empty", 400, TRANSFER, post(b"Transfer-Encoding:\r\n", body=ZERO)),
    Bad("quoted", 400, TRANSFER, post(b'Transfer-Encoding: "chunked"\r\n', body=ZERO)),
    Bad("tab before", 400, TRANSFER, post(b"Transfer-Encoding:\tchunked\r\n", body=ZERO)),
    Bad("blank after", 400, TRANSFER, post(b"Transfer-Encoding: chunked \r\n", body=ZERO)),
    Bad("vertical tab", 400, "bad_header", post(b"Transfer-Encoding: \x0bchunked\r\n", body=ZERO)),
    Bad("NEL", 400, TRANSFER, post(b"Transfer-Encoding: \x85chunked\r\n", body=ZERO)),
    Bad("blank before colon", 400, "bad_header", post(b"Transfer-Encoding : chunked\r\n", body=ZERO)),
    Bad("folded", 400, "bad_header", post(b"Transfer-Encoding:\r\n chunked\r\n", body=ZERO)),
    Bad("Kelvin sign", 400, TRANSFER, post("Transfer-Encoding: chun\u212aed\r\n".encode(), body=ZERO)),
)
def test_a2_a_transfer_encoding_that_is_not_one_chunked(arena: Arena, bad: Bad) -> None:
    refused(arena, bad)


@each(
    Bad("alone", 400, TRANSFER, post(TE, body=ZERO, version=b"1.0")),
    Bad("keep-alive", 400, TRANSFER, post(TE, b"Connection: keep-alive\r\n", body=ZERO, version=b"1.0")),
)
def test_a3_transfer_encoding_on_http_1_0(arena: Arena, bad: Bad) -> None:
    refused(arena, bad)


def lengths(*values: bytes) -> bytes:
    """Build a POST with these Content-Length fields."""
    return post(*(b"Content-Length: " + value + b"\r\n" for value in values), body=b"abcd" + INNER)


@each(
    Bad("repeated", 400, "bad_length", lengths(b"4", b"4")),
    Bad("differing", 400, "bad_length", lengths(b"0", b"44")),
    Bad("list", 400, "bad_length", lengths(b"4, 4")),
    Bad("plus", 400, "bad_length", lengths(b"+4")),
    Bad("minus", 400, "bad_length", lengths(b"-1")),
    Bad("hex", 400, "bad_length", lengths(b"0x4")),
    Bad("blank", 400, "bad_length", lengths(b"")),
    Bad("inner blank", 400, "bad_length", lengths(b"4 4")),
    Bad("underscore", 400, "bad_length", lengths(b"4_4")),
    Bad("fraction", 400, "bad_length", lengths(b"4.0")),
    Bad("exponent", 400, "bad_length", lengths(b"4e0")),
    Bad("arabic digit", 400, "bad_length", lengths("\u0664".encode())),
    Bad("superscript", 400, "bad_length", lengths(b"\xb2")),
    Bad("19 digits", 400, "bad_length", lengths(b"0000000000000000004")),
    Bad("5000 digits", 400, "bad_length", lengths(b"1" * 5000)),
)
def test_a4_a_content_length_that_is_no_number(arena: Arena, bad: Bad) -> None:
    refused(arena, bad)


@pytest.fixture(scope="module")
def limited_ground(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Arena]:
    with running(tmp_path_factory.mktemp("limited") / "manifests", edge="maxRequestBodyBytes: 1000") as arena:
        yield arena


@pytest.fixture
def limited(limited_ground: Arena) -> Iterator[Arena]:
    """A gateway whose listener takes request bodies of at most 1,000 bytes."""
    limited_ground.begin()
    yield limited_ground
    limited_ground.end()


@pytest.mark.parametrize("expect", [b"", b"Expect: 100-continue\r\n"], ids=["", "expect"])
def test_a5_a_stated_length_past_the_limit_is_413_before_the_body_is_read(limited: Arena, expect: bytes) -> None:
    with limited.connect() as sock:
        sock.sendall(post(expect, b"Content-Length: 1001\r\n"))  # and not a byte of the body
        assert statuses(read_all(sock)) == [413]
    assert limited.upstream.raw == b""
    assert limited.rejected() == {"h1|body_too_large": 1}
    assert statuses(limited.sees_whole(post(b"Content-Length: 1000\r\n", body=b"x" * 1000))) == [200]


def test_a5_a_chunked_body_past_the_limit_is_413_and_never_complete_upstream(limited: Arena) -> None:
    message = post(TE, body=b"1f4\r\n" + b"x" * 500 + b"\r\n" + b"1f5\r\n" + b"x" * 501 + b"\r\n0\r\n\r\n" + INNER)
    assert statuses(limited.ask(message)) == [413]
    assert limited.upstream.requests == []
    assert CANARY not in limited.upstream.raw
    assert limited.rejected() == {"h1|body_too_large": 1}


# --- A6 to A8: lines, names and values -----------------------------------------------------------------------------


@each(
    Bad("LF after the request line", 400, "bad_line_end", b"GET / HTTP/1.1\n" + HOST + b"\r\n" + INNER),
    Bad("LF after a field", 400, "bad_line_end", get(b"/", b"X: y\n") + INNER),
    Bad("LF LF", 400, "bad_line_end", b"GET / HTTP/1.1\r\n" + HOST + b"X: y\n\n" + INNER),
    Bad("LF only", 400, "bad_line_end", b"GET / HTTP/1.1\nHost: a.test\n\n" + INNER),
    Bad("CR in the request line", 400, "bad_line_end", b"GET / HTTP/1.1\rX\r\n" + HOST + b"\r\n" + INNER),
    Bad("CR in a value", 400, "bad_line_end", get(b"/", b"X: a\rTransfer-Encoding: chunked\r\n") + INNER),
    Bad("CR in a name", 400, "bad_line_end", get(b"/", b"X\rY: a\r\n") + INNER),
    Bad("CR CR LF", 400, "bad_line_end", get(b"/", b"X: a\r\r\n") + INNER),
)
def test_a6_a_bare_cr_or_lf_in_a_head(arena: Arena, bad: Bad) -> None:
    refused(arena, bad)


@each(
    Bad("fold", 400, "bad_header", get(b"/", b"X: a\r\n b\r\n") + INNER),
    Bad("fold by tab", 400, "bad_header", get(b"/", b"X: a\r\n\tb\r\n") + INNER),
    Bad("folded Host", 400, "bad_header", get(b"/", host=b"Host:\r\n a.test\r\n") + INNER),
    Bad("blank before the first field", 400, "bad_header", get(b"/", host=b" " + HOST) + INNER),
    Bad("tab before the first field", 400, "bad_header", get(b"/", host=b"\t" + HOST) + INNER),
    Bad("blank before a colon", 400, "bad_header", get(b"/", b"X : y\r\n") + INNER),
    Bad("tab before a colon", 400, "bad_header", get(b"/", b"X\t: y\r\n") + INNER),
    Bad("blank in a name", 400, "bad_header", get(b"/", b"X Y: z\r\n") + INNER),
    Bad("no colon", 400, "bad_header", get(b"/", b"foo\r\n") + INNER),
    Bad("empty name", 400, "bad_header", get(b"/", b": x\r\n") + INNER),
)
def test_a7_a_line_that_is_no_field(arena: Arena, bad: Bad) -> None:
    refused(arena, bad)


@each(
    *(
        Bad(f"value {byte:#04x}", 400, "bad_header", get(b"/", b"X: a" + bytes((byte,)) + b"b\r\n") + INNER)
        for byte in (0x00, 0x01, 0x08, 0x0B, 0x0C, 0x1B, 0x1F, 0x7F)
    ),
    *(
        Bad(f"name {byte:#04x}", 400, "bad_header", get(b"/", b"X" + bytes((byte,)) + b"Y: a\r\n") + INNER)
        for byte in (0x00, 0x0B, 0x22, 0x28, 0x2F, 0x3B, 0x40, 0x7B, 0x7F, 0x80, 0xE9)
    ),
)
def test_a8_a_control_byte_in_a_value_or_no_token_as_a_name(arena: Arena, bad: Bad) -> None:
    refused(arena, bad)


def test_a8_obs_text_passes_unchanged(arena: Arena) -> None:
    value = bytes(range(0x80, 0x100))
    assert statuses(arena.sees_whole(get(b"/", b"X: " + value + b"\r\n"))) == [200]
    ((head, _),) = arena.upstream.requests
    assert b"x: " + value + b"\r\n" in head


# --- A9 to A13: chunks and trailers --------------------------------------------------------------------------------


def chunked(body: bytes, *fields: bytes) -> bytes:
    """Build a POST whose body is the given chunk framing, with a request behind it."""
    return post(TE, *fields, body=body + INNER)


def aborted(arena: Arena, bad: Bad) -> None:
    """Require the verdict of a broken body: an error or a cut, counted, and no complete message upstream."""
    for pieces in (1, 40):
        assert statuses(arena.ask(bad.message, pieces=pieces)) == [bad.status]
    assert arena.rejected() == {f"h1|{bad.reason}": 2}
    assert arena.upstream.requests == []
    assert CANARY not in arena.upstream.raw
    assert b"\r\n0\r\n" not in arena.upstream.raw


CHUNK = "bad_chunk"


@each(
    Bad("plus", 400, CHUNK, chunked(b"+4\r\nabcd\r\n0\r\n\r\n")),
    Bad("minus", 400, CHUNK, chunked(b"-1\r\nabcd\r\n0\r\n\r\n")),
    Bad("0x", 400, CHUNK, chunked(b"0x4\r\nabcd\r\n0\r\n\r\n")),
    Bad("underscore", 400, CHUNK, chunked(b"1_0\r\n0123456789abcdef\r\n0\r\n\r\n")),
    Bad("blank before", 400, CHUNK, chunked(b" 4\r\nabcd\r\n0\r\n\r\n")),
    Bad("blank after", 400, CHUNK, chunked(b"4 \r\nabcd\r\n0\r\n\r\n")),
    Bad("tab after", 400, CHUNK, chunked(b"4\t\r\nabcd\r\n0\r\n\r\n")),
    Bad("empty", 400, CHUNK, chunked(b"\r\nabcd\r\n0\r\n\r\n")),
    Bad("junk", 400, CHUNK, chunked(b"4g\r\nabcd\r\n0\r\n\r\n")),
    Bad("NUL", 400, CHUNK, chunked(b"4\0\r\nabcd\r\n0\r\n\r\n")),
    Bad("arabic digit", 400, CHUNK, chunked("\u0664\r\nabcd\r\n0\r\n\r\n".encode())),
    Bad("17 digits", 400, CHUNK, chunked(b"00000000000000004\r\nabcd\r\n0\r\n\r\n")),
    Bad("wrap to zero", 400, CHUNK, chunked(b"10000000000000000\r\nabcd\r\n0\r\n\r\n")),
    Bad("second chunk", 400, CHUNK, chunked(b"4\r\nabcd\r\nzz\r\n0\r\n\r\n")),
)
def test_a9_a_chunk_size_that_is_no_hexadecimal_number(arena: Arena, bad: Bad) -> None:
    aborted(arena, bad)


def test_a9_sixteen_digits_are_a_number(arena: Arena) -> None:
    body = b"0000000000000004\r\nabcd\r\n0000000000000000\r\n\r\n"
    assert statuses(arena.sees_whole(post(TE, body=body))) == [200]
    assert arena.upstream.requests[0][1] == b"4\r\nabcd\r\n0\r\n\r\n"


@each(
    Bad("junk", 400, CHUNK, chunked(b"4\r\nabcdXX0\r\n\r\n")),
    Bad("LF", 400, CHUNK, chunked(b"4\r\nabcd\n0\r\n\r\n")),
    Bad("CR", 400, CHUNK, chunked(b"4\r\nabcd\r0\r\n\r\n")),
    Bad("one byte too many", 400, CHUNK, chunked(b"4\r\nabcde\r\n0\r\n\r\n")),
    Bad("one byte too few", 400, CHUNK, chunked(b"4\r\nabc\r\n0\r\n\r\n")),
)
def test_a10_chunk_data_without_its_crlf(arena: Arena, bad: Bad) -> None:
    aborted(arena, bad)


@each(
    Bad("LF in a chunk header", 400, CHUNK, chunked(b"4\nabcd\r\n0\r\n\r\n")),
    Bad("CR in a chunk header", 400, CHUNK, chunked(b"4\r\rabcd\r\n0\r\n\r\n")),
    Bad("LF in an extension", 400, CHUNK, chunked(b"4;a\nabcd\r\n0\r\n\r\n")),
    Bad("CR in an extension", 400, CHUNK, chunked(b"4;a=\rb\r\nabcd\r\n0\r\n\r\n")),
    Bad("LF in a trailer", 400, "bad_line_end", chunked(b"0\r\nX: y\n\r\n")),
    Bad("CR in a trailer", 400, "bad_line_end", chunked(b"0\r\nX: y\rz\r\n\r\n")),
    Bad("LF after the last chunk", 400, CHUNK, chunked(b"0\n\r\n")),
)
def test_a6_a_bare_cr_or_lf_in_chunk_framing(arena: Arena, bad: Bad) -> None:
    aborted(arena, bad)


@each(
    Bad("257 bytes", 400, CHUNK, chunked(b"4;" + b"a" * 253 + b"\r\nabcd\r\n0\r\n\r\n")),
    Bad("8 KiB in all", 400, CHUNK, chunked((b"1;" + b"a" * 200 + b"\r\nx\r\n") * 41 + b"0\r\n\r\n")),
    Bad("control byte", 400, CHUNK, chunked(b"4;a\x01\r\nabcd\r\n0\r\n\r\n")),
    Bad("open quote", 400, CHUNK, chunked(b'4;a="b\r\nabcd\r\n0\r\n\r\n')),
    Bad("no name", 400, CHUNK, chunked(b"4;\r\nabcd\r\n0\r\n\r\n")),
)
def test_a11_chunk_extensions_that_are_wrong_or_too_long(arena: Arena, bad: Bad) -> None:
    aborted(arena, bad)


def test_a11_legal_chunk_extensions_are_dropped(arena: Arena) -> None:
    body = b'4;ext=1;q="x;\\"y"\r\nabcd\r\n2;' + b"z" * 251 + b"\r\nef\r\n0;last\r\n\r\n"
    assert statuses(arena.sees_whole(post(TE, body=body))) == [200]
    ((_, got),) = arena.upstream.requests
    assert dechunked(got) == b"abcdef"
    for trace in (b"ext", b"last", b"zz", b";", b'"'):
        assert trace not in got


def test_a12_a_mebibyte_in_one_byte_chunks_costs_at_most_four_seconds(arena: Arena) -> None:
    message = post(TE, CLOSE, body=b"1\r\na\r\n" * MIB + b"0\r\n\r\n")
    before = cpu_s(arena.pids)
    assert statuses(arena.ask(message)) == [200]
    assert cpu_s(arena.pids) - before <= 4.0
    ((_, body),) = arena.upstream.requests
    assert dechunked(body) == b"a" * MIB


@each(
    Bad("65 fields", 431, "too_many_fields", chunked(b"0\r\n" + b"t: x\r\n" * 65 + b"\r\n")),
    Bad("8 KiB", 431, "bad_trailer", chunked(b"0\r\n" + b"t: " + b"x" * 8190 + b"\r\n\r\n")),
    Bad("endless", 431, "bad_trailer", post(TE, body=b"0\r\n" + (b"t: " + b"x" * 500 + b"\r\n") * 30)),
    Bad("no colon", 400, "bad_trailer", chunked(b"0\r\nfoo\r\n\r\n")),
    Bad("fold", 400, "bad_trailer", chunked(b"0\r\nX: y\r\n z\r\n\r\n")),
    Bad("blank before a colon", 400, "bad_trailer", chunked(b"0\r\nX : y\r\n\r\n")),
)
def test_a13_trailers_that_are_wrong_or_too_many(arena: Arena, bad: Bad) -> None:
    aborted(arena, bad)


TRAILERS = (
    b"Host: evil.test\r\nContent-Length: 9\r\nTransfer-Encoding: chunked\r\nAuthorization: x\r\nCookie: a=b\r\n"
    b"X-Forwarded-For: 6.6.6.6\r\nX-Forwarded-Host: evil.test\r\nForwarded: for=6.6.6.6\r\nConnection: close\r\n"
    b"Set-Cookie: a=b\r\nX-Datum-X: 1\r\nX-Other: 1\r\nGrpc-Status: 0\r\n\r\n"
)


def test_a13_of_a_requests_trailers_only_the_allowed_ones_are_forwarded(arena: Arena) -> None:
    assert statuses(arena.sees_whole(post(TE, body=b"4\r\nabcd\r\n0\r\n" + TRAILERS))) == [200]
    ((_, body),) = arena.upstream.requests
    assert body == b"4\r\nabcd\r\n0\r\ngrpc-status: 0\r\n\r\n"


@pytest.mark.parametrize("te", [b"", b"TE: trailers\r\n"])
def test_a13_of_a_responses_trailers_only_the_allowed_ones_reach_who_asked(arena: Arena, te: bytes) -> None:
    arena.upstream.reply = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n" + TRAILERS
    data = arena.sees_whole(get(b"/", te))
    body = data.partition(b"\r\n\r\n")[2]
    assert body == b"2\r\nok\r\n0\r\n" + (b"grpc-status: 0\r\n" if te else b"") + b"\r\n"


# --- A14 to A19: bodies nobody expects, interim and early answers, pipelines ---------------------------------------


@pytest.mark.parametrize("method", [b"GET", b"HEAD", b"DELETE", b"OPTIONS", b"PATCH", b"FOO"])
@pytest.mark.parametrize("framing", ["length", "chunked", "expect"])
def test_a14_a_body_is_a_body_whatever_the_method(arena: Arena, method: bytes, framing: str) -> None:
    head = method + b" /first HTTP/1.1\r\n" + HOST
    length = b"Content-Length: %d\r\n" % len(INNER)
    if framing == "chunked":
        message = head + TE + b"\r\n%x\r\n" % len(INNER) + INNER + b"\r\n0\r\n\r\n"
    elif framing == "expect":
        message = head + length + b"Expect: 100-continue\r\n\r\n" + INNER
    else:
        message = head + length + b"\r\n" + INNER
    arena.upstream.reply = b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n"
    found = [status for status in statuses(arena.ask(message + get(b"/second", CLOSE))) if status != 100]
    assert found == [200, 200]
    first = arena.upstream.requests[0]
    assert first[0].startswith(method + b" /first HTTP/1.1\r\n")
    assert INNER in first[1]
    assert arena.upstream.targets == [b"/first", b"/second"]


def test_a15_we_say_100_ourselves_and_the_upstream_hears_no_expectation(arena: Arena) -> None:
    with arena.connect() as sock:
        sock.sendall(post(b"Expect: 100-Continue\r\nContent-Length: 2\r\n"))
        assert read_until(sock, b"\r\n\r\n").startswith(b"HTTP/1.1 100 ")
        assert arena.upstream.requests == []
        sock.sendall(b"hi")
        assert statuses(read_until(sock, b"ok")) == [200]
    ((head, body),) = arena.upstream.requests
    assert b"expect" not in head.lower()
    assert body == b"hi"


@each(
    Bad("other", 417, "bad_expect", post(b"Expect: 200-maybe\r\n", b"Content-Length: 0\r\n")),
    Bad("list", 417, "bad_expect", post(b"Expect: 100-continue, x\r\n", b"Content-Length: 0\r\n")),
    Bad("twice", 417, "bad_expect", post(b"Expect: 100-continue\r\n" * 2, b"Content-Length: 4\r\n")),
    Bad("empty", 417, "bad_expect", post(b"Expect:\r\n", b"Content-Length: 0\r\n")),
    Bad("refused head", 400, "bad_length", post(b"Expect: 100-continue\r\n", b"Content-Length: +4\r\n")),
)
def test_a15_any_other_expectation_is_417_and_a_refused_head_gets_no_100(arena: Arena, bad: Bad) -> None:
    refused(arena, bad)


def test_a15_http_1_0_gets_no_100(arena: Arena) -> None:
    message = post(b"Expect: 100-continue\r\nContent-Length: 2\r\n", body=b"hi", version=b"1.0")
    assert statuses(arena.ask(message)) == [200]
    assert b"expect" not in arena.upstream.requests[0][0].lower()


@dataclass(frozen=True)
class Lie:
    """What an upstream says, what the client gets, and why the attempt counts as failed (None: it does not)."""

    name: str
    reply: bytes
    expected: tuple[int, ...]
    reason: str | None


FAILURES = names.ATTEMPT_FAILURES.name


def lied(arena: Arena, lie: Lie) -> None:
    """Require that a lie is seen, counted and not relayed, and that its connection is used no more."""
    before = arena.counters()
    arena.upstream.reply = lie.reply
    data = arena.ask(post(b"Content-Length: 0\r\n", CLOSE))
    assert tuple(statuses(data)) == lie.expected
    change = arena.counters() - before
    failed = {name.split("|")[-1]: count for name, count in change.items() if name.startswith(FAILURES)}
    if lie.reason is None:
        assert failed == {}
        return
    assert failed == {lie.reason: 1}
    assert arena.rejected() == {}
    arena.upstream.reply = OK
    accepted = arena.upstream.accepted
    assert statuses(arena.sees_whole(get())) == [200]
    assert arena.upstream.accepted == accepted + 1


def every(*cases: Lie) -> pytest.MarkDecorator:
    """Parametrise over `lie`."""
    return pytest.mark.parametrize("lie", cases, ids=lambda lie: lie.name.replace(" ", "-"))


CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"


@every(
    Lie("100", CONTINUE + OK, (200,), None),
    Lie("102", b"HTTP/1.1 102 Processing\r\n\r\n" * 3 + OK, (200,), None),
    Lie("103", b"HTTP/1.1 103 Early\r\nlink: </x>\r\n\r\n" + OK, (103, 200), None),
    Lie("103 twice", b"HTTP/1.1 103 Early\r\nlink: </x>\r\n\r\n" * 2 + OK, (103, 103, 200), None),
    Lie("16", CONTINUE * 16 + OK, (200,), None),
    Lie("17", CONTINUE * 17 + OK, (502,), "too_many_interim"),
    Lie("thousands", CONTINUE * 5000 + OK, (502,), "too_many_interim"),
    Lie("101 nobody asked for", b"HTTP/1.1 101 X\r\nupgrade: x\r\nconnection: upgrade\r\n\r\n", (502,), "bad_upgrade"),
)
def test_a16_interim_responses(arena: Arena, lie: Lie) -> None:
    lied(arena, lie)


def said(fields: bytes, body: bytes = b"ok") -> bytes:
    """Build a response of 200."""
    return b"HTTP/1.1 200 OK\r\n" + fields + b"\r\n" + body


CHUNKED_OK = b"transfer-encoding: chunked\r\n"


@every(
    Lie(
        "both lengths", said(b"content-length: 2\r\n" + CHUNKED_OK, b"2\r\nok\r\n0\r\n\r\n"), (502,), "length_conflict"
    ),
    Lie("two lengths", said(b"content-length: 2\r\ncontent-length: 3\r\n"), (502,), "bad_length"),
    Lie("equal lengths", said(b"content-length: 2\r\ncontent-length: 2\r\n"), (502,), "bad_length"),
    Lie("sign", said(b"content-length: +2\r\n"), (502,), "bad_length"),
    Lie("list", said(b"content-length: 2, 2\r\n"), (502,), "bad_length"),
    Lie("unknown coding", said(b"transfer-encoding: gzip\r\n"), (502,), "unknown_transfer_coding"),
    Lie("chunked twice", said(CHUNKED_OK * 2, b"2\r\nok\r\n0\r\n\r\n"), (502,), "bad_transfer_encoding"),
    Lie(
        "chunked on 1.0",
        b"HTTP/1.0 200 OK\r\n" + CHUNKED_OK + b"\r\n2\r\nok\r\n0\r\n\r\n",
        (502,),
        "bad_transfer_encoding",
    ),
    Lie("LF", b"HTTP/1.1 200 OK\ncontent-length: 2\n\nok\r\n\r\n", (502,), "bad_line_end"),
    Lie("no HTTP", b"\x16\x03\x01\x02\x00garbage\r\n\r\n", (502,), "bad_status_line"),
    Lie("status 20", b"HTTP/1.1 20 OK\r\ncontent-length: 2\r\n\r\nok", (502,), "bad_status_line"),
    Lie("status 999", b"HTTP/1.1 999 X\r\ncontent-length: 2\r\n\r\nok", (502,), "bad_status_line"),
    Lie("status 099", b"HTTP/1.1 099 X\r\ncontent-length: 2\r\n\r\nok", (502,), "bad_status_line"),
    Lie("NUL", said(b"x: a\0b\r\ncontent-length: 2\r\n"), (502,), "bad_header"),
    Lie("fold", said(b"x: a\r\n b\r\ncontent-length: 2\r\n"), (502,), "bad_header"),
    Lie("300 fields", said(b"x: y\r\n" * 300, b""), (502,), "too_many_fields"),
    Lie("100 KB head", said(b"x: " + b"a" * 100_000 + b"\r\n"), (502,), "head_too_large"),
)
def test_a17_a_response_that_is_wrong_before_its_body_is_502(arena: Arena, lie: Lie) -> None:
    lied(arena, lie)


@pytest.mark.parametrize(
    ("reply", "status"),
    [
        (OK + b"HTTP/1.1 200 OK\r\ncontent-length: 6\r\n\r\npoison", 200),
        (OK + b"poison", 200),
        (said(CHUNKED_OK, b"2\r\nok\r\n0\r\n\r\npoison"), 200),
        (b"HTTP/1.1 304 Not Modified\r\ncontent-length: 6\r\n\r\npoison", 304),
        (b"HTTP/1.1 204 No Content\r\ncontent-length: 6\r\n\r\npoison", 204),
        (b"HTTP/1.1 204 No Content\r\ntransfer-encoding: chunked\r\n\r\n6\r\npoison\r\n0\r\n\r\n", 204),
    ],
    ids=["response", "bytes", "chunked", "304", "204", "204-chunked"],
)
def test_a17_bytes_past_the_end_answer_nobody(arena: Arena, reply: bytes, status: int) -> None:
    for _ in range(3):
        arena.upstream.reply = reply
        data = arena.sees_whole(get())
        assert statuses(data) == [status]
        assert b"poison" not in data
        arena.upstream.reply = OK
        accepted = arena.upstream.accepted
        assert arena.sees_whole(get()).endswith(b"ok")
        assert arena.upstream.accepted == accepted + 1


@pytest.mark.parametrize("is_reset", [False, True], ids=["closed", "reset"])
@pytest.mark.parametrize(
    ("reply", "is_begun"),
    [
        (b"", False),
        (b"HTTP/1.1 200 OK\r\nconte", False),
        (said(b"content-length: 10\r\n", b"abc"), True),
        (said(CHUNKED_OK, b"3\r\nabc\r\n"), True),
        (said(CHUNKED_OK, b"3\r\nabc\r\n0\r\n"), True),
        (said(CHUNKED_OK, b"3\r\nabc\r\nzz\r\n"), True),
    ],
    ids=["nothing", "half-a-head", "length", "chunks", "trailers", "bad-chunk"],
)
def test_a17_a_response_cut_short_is_502_before_its_head_and_never_complete_after_it(
    arena: Arena, reply: bytes, is_begun: bool, is_reset: bool
) -> None:
    def script(received: Received, _head: bytes, _rest: bytes) -> None:
        received.sock.sendall(reply)
        if is_reset:
            received.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")
        received.sock.close()

    arena.upstream.on_head = script
    data = arena.ask(post(b"Content-Length: 0\r\n", CLOSE))
    if is_begun:
        assert statuses(data) in ([200], [502], [])  # a reset may overtake the head
        head, _, body = data.partition(b"\r\n\r\n")
        if statuses(data) == [200]:
            assert not body.endswith(b"0\r\n\r\n")
            assert b"content-length: 10" not in head.lower() or len(body) < 10
    else:
        assert statuses(data) == [502]


def test_a18_an_early_answer_is_relayed_and_neither_connection_used_again(arena: Arena) -> None:
    reply = b"HTTP/1.1 413 Content Too Large\r\ncontent-length: 3\r\n\r\nbig"
    arena.upstream.on_head = lambda received, _head, _rest: received.sock.sendall(reply)
    with arena.connect() as sock:
        sock.sendall(post(b"Content-Length: 1000000\r\n", body=b"x" * 1000))
        data = read_until(sock, b"big")
        assert statuses(data) == [413]
        assert b"connection: close" in data.lower()
        # What was announced as body is no request, however much like one it looks.
        with contextlib.suppress(ConnectionError):
            sock.sendall(INNER)
        assert read_all(sock) == b""
    arena.upstream.on_head = None
    accepted = arena.upstream.accepted
    assert statuses(arena.sees_whole(get())) == [200]
    assert arena.upstream.accepted == accepted + 1
    assert CANARY not in arena.upstream.targets


@pytest.mark.parametrize("is_fast", [False, True], ids=["trickle", "burst"])
def test_a18_what_is_left_of_the_request_is_drained_for_a_second_and_64_kib_at_most(
    arena: Arena, is_fast: bool
) -> None:
    reply = b"HTTP/1.1 413 Content Too Large\r\ncontent-length: 3\r\n\r\nbig"
    arena.upstream.on_head = lambda received, _head, _rest: received.sock.sendall(reply)
    with arena.connect() as sock:
        sock.sendall(post(b"Content-Length: 1000000000\r\n"))
        assert statuses(read_until(sock, b"big")) == [413]
        began = time.monotonic()
        sent = 0
        with contextlib.suppress(ConnectionError):
            while time.monotonic() - began < SILENCE_S:
                sent += sock.send(b"x" * (65536 if is_fast else 1))
                if not is_fast:
                    select.select([], [], [], 0.02)
        # A second, the sweep that looks for it, and a machine that others share.
        assert time.monotonic() - began < 1.0 + 2.5
        # What the kernel had taken already counts, too: both sides' socket buffers.
        assert sent < (32 * MIB if is_fast else 1000)


def test_a19_pipelined_requests_are_answered_in_order_one_at_a_time(arena: Arena) -> None:
    may_answer = threading.Event()

    def slowly(received: Received, _head: bytes, _rest: bytes) -> None:
        assert may_answer.wait(SILENCE_S)
        received.sock.sendall(OK)

    arena.upstream.on_head = slowly
    with arena.connect() as sock:
        sock.sendall(b"".join(get(b"/%d" % index) for index in range(50)) + get(b"/last", CLOSE))
        eventually(lambda: b"\r\n\r\n" in arena.upstream.raw, "the first request arrives")
        arena.mark()
        assert arena.upstream.raw.count(b"HTTP/1.1\r\n") == 1
        may_answer.set()
        assert statuses(read_all(sock)) == [200] * 51
    targets = re.findall(rb"GET (\S+) HTTP/1.1\r\n", arena.upstream.raw)
    assert targets == [b"/%d" % index for index in range(50)] + [b"/last"]


def test_a19_what_follows_a_request_is_not_read_ahead(arena: Arena) -> None:
    may_answer = threading.Event()

    def slowly(received: Received, _head: bytes, _rest: bytes) -> None:
        assert may_answer.wait(2 * SILENCE_S)
        received.sock.sendall(OK)

    arena.upstream.on_head = slowly
    before = arena.gateway.rss_bytes()
    with arena.connect() as sock:
        sock.settimeout(1.0)
        sent = 0
        with contextlib.suppress(TimeoutError):
            while sent < 64 * MIB:
                sent += sock.send(get(b"/next") * 1000)
        assert sent < 64 * MIB
        assert arena.gateway.rss_bytes() - before < 2 * MIB
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")
    may_answer.set()


# --- A20 to A24: request line, host, limits ------------------------------------------------------------------------


def line(text: bytes) -> bytes:
    """Build a request with this request line."""
    return text + b"\r\n" + HOST + b"\r\n" + INNER


@each(
    Bad("two blanks", 400, "bad_request_line", line(b"GET  / HTTP/1.1")),
    Bad("blank in front", 400, "bad_request_line", line(b" GET / HTTP/1.1")),
    Bad("blank at the end", 400, "bad_request_line", line(b"GET / HTTP/1.1 ")),
    Bad("blank in the target", 400, "bad_request_line", line(b"GET /a b HTTP/1.1")),
    Bad("tab", 400, "bad_request_line", line(b"GET\t/ HTTP/1.1")),
    Bad("form feed", 400, "bad_request_line", line(b"GET\x0c/ HTTP/1.1")),
    Bad("HTTP 0.9", 400, "bad_request_line", b"GET /\r\n\r\n" + INNER),
    Bad("no target", 400, "bad_request_line", line(b"GET HTTP/1.1")),
    Bad("version 2.0", 505, "bad_version", line(b"GET / HTTP/2.0")),
    Bad("version 3.0", 505, "bad_version", line(b"GET / HTTP/3.0")),
    Bad("version 1.x", 400, "bad_version", line(b"GET / HTTP/1.x")),
    Bad("version 0.9", 400, "bad_version", line(b"GET / HTTP/0.9")),
    Bad("version 1.10", 400, "bad_version", line(b"GET / HTTP/1.10")),
    Bad("version in lower case", 400, "bad_version", line(b"GET / http/1.1")),
    Bad("other protocol", 400, "bad_version", line(b"GET / ICY/1.1")),
    Bad("lower-case method", 400, "bad_method", line(b"get / HTTP/1.1")),
    Bad("control byte in the method", 400, "bad_method", line(b"G\x01T / HTTP/1.1")),
    Bad("colon in the method", 400, "bad_method", line(b"GET:X / HTTP/1.1")),
    Bad("33 bytes of method", 400, "bad_method", line(b"A" * 33 + b" / HTTP/1.1")),
    Bad("CONNECT", 405, "method_not_allowed", line(b"CONNECT a.test:443 HTTP/1.1")),
    Bad("8193 bytes of target", 414, "target_too_long", line(b"GET /" + b"a" * 8192 + b" HTTP/1.1")),
    Bad("endless target", 414, "target_too_long", b"GET /" + b"a" * 20000),
    Bad("asterisk", 400, "bad_target", line(b"GET * HTTP/1.1")),
    Bad("relative target", 400, "bad_target", line(b"GET smuggled HTTP/1.1")),
    Bad("other scheme", 400, "bad_target", line(b"GET file:///etc/passwd HTTP/1.1")),
)
def test_a20_a_request_line_that_is_none(arena: Arena, bad: Bad) -> None:
    refused(arena, bad)


def test_a20_trace_is_not_served(arena: Arena) -> None:
    assert statuses(arena.ask(line(b"TRACE / HTTP/1.1").replace(INNER, b"")[:-2] + CLOSE + b"\r\n")) == [405]
    assert arena.rejected() == {"h1|method_not_allowed": 1}
    assert arena.upstream.raw == b""


def test_a20_at_the_limits_all_is_well(arena: Arena) -> None:
    target = b"/" + b"a" * 8191
    assert statuses(arena.sees_whole(b"A" * 32 + b" " + target + b" HTTP/1.1\r\n" + HOST + b"\r\n")) == [200]
    assert arena.upstream.targets == [target]


def with_host(*values: bytes) -> bytes:
    """Build a GET with these Host fields."""
    return get(host=b"".join(b"Host: " + value + b"\r\n" for value in values)) + INNER


@each(
    Bad("missing", 400, "bad_host", with_host()),
    Bad("missing beside an absolute target", 400, "bad_host", get(b"http://a.test/", host=b"") + INNER),
    Bad("repeated", 400, "bad_host", with_host(b"a.test", b"a.test")),
    Bad("differing", 400, "bad_host", with_host(b"a.test", b"b.test")),
    Bad("listed", 400, "bad_host", with_host(b"a.test, b.test")),
    Bad("userinfo", 400, "bad_host", with_host(b"u@a.test")),
    Bad("path", 400, "bad_host", with_host(b"a.test/smuggled")),
    Bad("blank", 400, "bad_host", with_host(b"a test")),
    Bad("empty", 400, "bad_host", with_host(b"")),
    Bad("port 0", 400, "bad_host", with_host(b"a.test:0")),
    Bad("port 65536", 400, "bad_host", with_host(b"a.test:65536")),
    Bad("port text", 400, "bad_host", with_host(b"a.test:8x")),
    Bad("port sign", 400, "bad_host", with_host(b"a.test:+80")),
    Bad("two ports", 400, "bad_host", with_host(b"a.test:80:81")),
    Bad("open bracket", 400, "bad_host", with_host(b"[::1")),
    Bad("zone", 400, "bad_host", with_host(b"[fe80::1%25eth0]")),
    Bad("non-ASCII", 400, "bad_host", with_host("\u00e4.test".encode())),
    Bad("userinfo in the target", 400, "bad_host", get(b"http://u@a.test/") + INNER),
    Bad("port in the target", 400, "bad_host", get(b"http://a.test:99999/") + INNER),
    Bad("no authority in the target", 400, "bad_target", get(b"http:///smuggled") + INNER),
)
def test_a21_a_host_that_is_none(arena: Arena, bad: Bad) -> None:
    refused(arena, bad)


@pytest.mark.parametrize(
    ("target", "host", "path", "authority"),
    [
        (b"http://a.test/x?y", b"other.test", b"/x?y", b"a.test"),
        (b"http://A.Test:81/x", b"other.test", b"/x", b"a.test:81"),
        (b"HTTP://a.test", b"other.test", b"/", b"a.test"),
        (b"https://a.test?y", b"other.test:1", b"/?y", b"a.test"),
        (b"/x", b"A.TEST", b"/x", b"a.test"),
        (b"/x", b"[2001:DB8::1]:8080", b"/x", b"[2001:db8::1]:8080"),
    ],
)
def test_a21_the_authority_of_the_target_wins_and_one_host_goes_up(
    arena: Arena, target: bytes, host: bytes, path: bytes, authority: bytes
) -> None:
    assert statuses(arena.sees_whole(get(target, host=b"Host: " + host + b"\r\n"))) == [200]
    ((head, _),) = arena.upstream.requests
    assert head.startswith(b"GET " + path + b" HTTP/1.1\r\n")
    assert re.findall(rb"(?i)\r\nhost: ([^\r]*)", head) == [authority]


@each(
    Bad("101 fields", 431, "too_many_fields", get(b"/", b"x: y\r\n" * 100)),
    Bad("16 KiB field", 431, "head_too_large", get(b"/", b"x: " + b"a" * 16380 + b"\r\n")),
    Bad("64 KiB head", 431, "head_too_large", get(b"/", (b"x: " + b"a" * 9000 + b"\r\n") * 8)),
    Bad("endless head", 431, "head_too_large", get(b"/", (b"x: " + b"a" * 9000 + b"\r\n") * 9)[:-2]),
    Bad("endless field", 431, "head_too_large", get(b"/", b"x: " + b"a" * 17000)[:-2]),
    Bad("endless name", 431, "head_too_large", get(b"/", b"x" * 17000)[:-2]),
    Bad("endless fields", 431, "too_many_fields", get(b"/", b"x: y\r\n" * 101)[:-2]),
)
def test_a22_too_many_fields_or_bytes(arena: Arena, bad: Bad) -> None:
    refused(arena, bad)


def test_a22_at_the_limits_all_is_well(arena: Arena) -> None:
    fields = [b"x%d: %s\r\n" % (index, b"a" * 600) for index in range(98)]
    assert statuses(arena.sees_whole(get(b"/", *fields))) == [200]
    assert len(re.findall(rb"\r\nx\d+: a{600}", arena.upstream.requests[0][0])) == 98


def test_a22_the_parser_stops_at_the_limit(arena: Arena) -> None:
    before = arena.gateway.rss_bytes()
    with arena.connect() as sock:
        sent = 0
        with contextlib.suppress(ConnectionError):
            sock.sendall(get(b"/", b"x: ")[:-4])
            while sent < 256 * MIB:
                sent += sock.send(b"a" * 65536)
        assert sent < 256 * MIB
    assert arena.gateway.rss_bytes() - before < 2 * MIB
    assert arena.rejected() == {"h1|head_too_large": 1}


def test_a23_64_kib_of_head_byte_by_byte_cost_at_most_two_seconds(arena: Arena) -> None:
    head = get(b"/", *(b"x%d: %s\r\n" % (index, b"a" * 9000) for index in range(7)))
    assert 60_000 < len(head) < 65_536
    before = cpu_s(arena.pids)
    with arena.connect() as sock:
        for at in range(len(head)):
            sock.send(head[at : at + 1])
        assert statuses(read_until(sock, b"ok")) == [200]
    assert cpu_s(arena.pids) - before <= 2.0


@pytest.mark.parametrize("name", [b"Content_Length", b"Transfer_Encoding", b"X_Forwarded_For", b"_x", b"x_"])
def test_a24_a_name_with_an_underscore_is_dropped_and_counted(arena: Arena, name: bytes) -> None:
    assert statuses(arena.sees_whole(get(b"/", name + b": 5\r\n", b"X-Y: z\r\n"))) == [200]
    ((head, _),) = arena.upstream.requests
    assert b"_" not in head
    assert b"\r\nx-y: z" in head
    assert arena.rejected() == {"h1|underscore_field": 1}


def test_a24_every_request_with_such_a_name_is_counted(arena: Arena) -> None:
    one = get(b"/", b"Content_Length: 5\r\n")
    assert statuses(arena.ask(one * 3 + get(b"/", CLOSE))) == [200] * 4
    assert arena.rejected() == {"h1|underscore_field": 3}


# --- A25: nothing but our serialiser ends a line -------------------------------------------------------------------


@pytest.mark.parametrize(
    "path",
    [
        b"/old?a=%0d%0aSet-Cookie:%20x=y",
        b"/old?a=%00",
        b"/old/%C4%8D%C4%8A",
        b"/old/%E5%98%8A%E5%98%8Dx",
        b"/old/%250d",
    ],
)
def test_a25_what_a_client_says_in_a_redirected_url_stays_encoded(redirecting: Arena, path: bytes) -> None:
    data = redirecting.sees_whole(get(path))
    assert statuses(data) == [302]
    assert re.findall(rb"\r\nlocation: ([^\r]*)\r\n", data) == [b"http://a.test" + path]
    assert b"set-cookie" not in data.lower().partition(b"location: ")[0]
    assert b"\n" not in data.partition(b"\r\n\r\n")[0].replace(b"\r\n", b"")


@pytest.mark.parametrize("path", [b"/old/%0d%0aSet-Cookie:x", b"/old/%00", b"/old/%7f"])
def test_a25_control_bytes_in_a_redirected_path_are_400(redirecting: Arena, path: bytes) -> None:
    assert statuses(redirecting.sees_whole(get(path))) == [400]
    assert redirecting.rejected() == {"h1|bad_path": 1}


@pytest.fixture(scope="module")
def redirecting_ground(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Arena]:
    with running(tmp_path_factory.mktemp("redirecting") / "manifests", extra=REDIRECT) as arena:
        yield arena


@pytest.fixture
def redirecting(redirecting_ground: Arena) -> Iterator[Arena]:
    """A gateway that redirects what is under /old to the same path with the same host."""
    redirecting_ground.begin()
    yield redirecting_ground
    redirecting_ground.end()


REDIRECT = """
---
apiVersion: router.datum.net/v1alpha1
kind: VPCRoute
metadata: {name: old}
spec:
  match: {pathPrefix: /old}
  filters: [{type: RequestRedirect, requestRedirect: {scheme: http}}]
"""

SPLITTERS = [b"a\r\nset-cookie: x=y", b"a\nb", b"a\rb", b"a\0b"]


class Splitter:
    """A filter that puts what it was given where it was told to, as a plugin with a fault would."""

    def __init__(self, place: str, value: bytes) -> None:
        self.place = place
        self.field = (b"x-split", value) if "name" not in place else (b"x" + value, b"y")

    def on_request(self, head: RequestHead) -> RequestHead | LocalReply:
        if self.place.startswith("request"):
            return msgspec.structs.replace(head, headers=Headers((*head.headers, self.field)))
        if self.place == "path":
            return msgspec.structs.replace(head, path="/" + self.field[1].decode())
        if self.place == "authority":
            return msgspec.structs.replace(head, authority=self.field[1].decode())
        if self.place.startswith("reply"):
            return LocalReply(status=302, reason="routed", headers=(self.field,))
        return head

    def on_response(self, head: ResponseHead) -> ResponseHead:
        if self.place.startswith("response"):
            return msgspec.structs.replace(head, headers=Headers((*head.headers, self.field)))
        return head


PLACES = ["request", "request-name", "path", "authority", "reply", "reply-name", "response", "response-name"]


@pytest.mark.parametrize("down", ["h1", "h2"])
@pytest.mark.parametrize("up", [UpstreamProtocol.HTTP, UpstreamProtocol.H2C])
@pytest.mark.parametrize("place", PLACES)
def test_a25_what_a_broken_plugin_makes_is_500_and_not_a_byte_of_it_is_sent(
    place: str, up: UpstreamProtocol, down: str
) -> None:
    async def ok(exchange: peers.Exchange) -> None:
        await exchange.reply(200, b"fine")

    async def main() -> None:
        async with peers.upstream(ok, up) as server:
            service = peers.make_service([server.port], protocol=up)
            async with peers.gateway([service]) as running:
                (linked,) = running.holder.current.rules.values()
                async with client(running.port, down) as peer:
                    for value in SPLITTERS:
                        linked.filters = (Splitter(place, value),)
                        answer = await peer.request("GET", "/")
                        assert answer.status == 500, (value, answer)
                        assert answer.body.startswith(b"bad_filter_output"), (value, answer)
                        assert not any(name.startswith((b"x-split", b"xa", b"set-")) for name, _ in answer.headers)
                    linked.filters = ()
                    assert (await peer.request("GET", "/")).body == b"fine"
                if not place.startswith("response"):
                    assert len(server.requests) == 1

    peers.bounded(main)
