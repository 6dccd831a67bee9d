"""Section A of the threat list: HTTP/1 requests that two parsers could read differently, and upstreams that lie."""

from __future__ import annotations

import contextlib
import re
import socket
from dataclasses import dataclass

import pytest

from tests.threats.kit import (
    CANARY,
    CLOSE,
    HOST,
    INNER,
    OK,
    TE,
    Arena,
    Received,
    cpu_s,
    get,
    post,
    read_all,
    read_until,
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
