"""The PROXY protocol, both versions: strict, bounded, at any cut."""

from __future__ import annotations

import socket
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from datum_router_proxy.wire.proxy_header import (
    MAX_V1_BYTES,
    MAX_V2_BYTES,
    SIGNATURE,
    BadProxyHeader,
    ProxyHeader,
    read_proxy_header,
)


def v2(command: int = 0x21, family: int = 0x11, content: bytes = b"", *, length: int | None = None) -> bytes:
    return SIGNATURE + struct.pack(">BBH", command, family, len(content) if length is None else length) + content


def addresses(source: str, destination: str, source_port: int, destination_port: int) -> bytes:
    kind = socket.AF_INET6 if ":" in source else socket.AF_INET
    return (
        socket.inet_pton(kind, source)
        + socket.inet_pton(kind, destination)
        + struct.pack(">HH", source_port, destination_port)
    )


INET = addresses("192.0.2.7", "198.51.100.1", 50_000, 443)
INET6 = addresses("2001:db8::7", "2001:db8::1", 50_001, 443)
TLVS = b"\x04\x00\x03abc\x02\x00\x09a.example"

GOOD: list[tuple[bytes, tuple[str, int] | None]] = [
    (b"PROXY TCP4 192.0.2.7 198.51.100.1 50000 443\r\n", ("192.0.2.7", 50_000)),
    (b"PROXY TCP6 2001:DB8::7 2001:db8::1 50001 443\r\n", ("2001:db8::7", 50_001)),
    (b"PROXY TCP6 ::ffff:192.0.2.7 ::1 1 2\r\n", ("192.0.2.7", 1)),
    (b"PROXY UNKNOWN\r\n", None),
    (b"PROXY UNKNOWN ff:ff::1 whatever 1 2\r\n", None),
    (v2(content=INET), ("192.0.2.7", 50_000)),
    (v2(family=0x21, content=INET6), ("2001:db8::7", 50_001)),
    (v2(content=INET + TLVS), ("192.0.2.7", 50_000)),
    (v2(0x20, 0x00), None),
    (v2(0x20, 0x11, INET), None),
    (v2(0x21, 0x00, TLVS), None),
]


@pytest.mark.parametrize(("header", "source"), GOOD)
def test_a_header_is_read_to_its_last_byte_and_no_further(header: bytes, source: tuple[str, int] | None) -> None:
    expected = ProxyHeader(size=len(header), source=source)
    assert read_proxy_header(header + b"\x16\x03\x01") == expected
    assert read_proxy_header(header) == expected
    assert [read_proxy_header(header[:size]) for size in range(len(header))] == [None] * len(header)


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"GET / HTTP/1.1\r\n", "the connection does not begin with a PROXY header"),
        (b"\x16\x03\x01", "the connection does not begin with a PROXY header"),
        (b"proxy TCP4", "the connection does not begin with a PROXY header"),
        (b"PROXY TCP4 192.0.2.7 198.51.100.1 50000\r\n", "the line is not that of version 1"),
        (b"PROXY  TCP4 192.0.2.7 198.51.100.1 1 2\r\n", "the line is not that of version 1"),
        (b"PROXY TCP4 192.0.2.7 198.51.100.1 050 2\r\n", "the line is not that of version 1"),
        (b"PROXY UDP4 192.0.2.7 198.51.100.1 1 2\r\n", "the line is not that of version 1"),
        (b"PROXY TCP4 192.0.2.7 198.51.100.1 65536 2\r\n", "an address or port is none of that family"),
        (b"PROXY TCP4 2001:db8::7 198.51.100.1 1 2\r\n", "an address or port is none of that family"),
        (b"PROXY TCP4 192.0.2.300 198.51.100.1 1 2\r\n", "an address or port is none of that family"),
        (b"PROXY " + b"x" * MAX_V1_BYTES, "the line is too long"),
        (v2(0x11, content=INET), "the version is not 2"),
        (v2(0x22, content=INET), "the command is neither LOCAL nor PROXY"),
        (v2(length=MAX_V2_BYTES), "the header is too long"),
        (v2(family=0x31, content=bytes(216)), "the addresses are neither IPv4 nor IPv6"),
        (v2(family=0x12, content=INET), "the transport is no stream"),
        (v2(content=INET[:-1]), "the addresses are cut short"),
        (v2(family=0x21, content=INET), "the addresses are cut short"),
    ],
)
def test_anything_else_is_refused_by_the_rule_it_breaks(data: bytes, why: str) -> None:
    assert read_proxy_header(data) == BadProxyHeader(why=why)


@given(st.binary(max_size=300))
def test_any_bytes_get_a_verdict_and_none_waits_for_more_than_the_bound(data: bytes) -> None:
    for start in (b"", SIGNATURE, b"PROXY ", b"PROXY TCP4 "):
        found = read_proxy_header(start + data)
        assert isinstance(found, ProxyHeader | BadProxyHeader | None)
        assert found is not None or len(start + data) < MAX_V2_BYTES
