"""ClientHello: read when it is whole, refused when it is malformed, never more than its limit."""

from __future__ import annotations

import contextlib
import ssl

import pytest
from hypothesis import given
from hypothesis import strategies as st

from datum_router_proxy.wire import client_hello
from datum_router_proxy.wire.client_hello import MAX_HELLO_BYTES, MAX_RECORDS, ClientHello, NotTls


class Refused(Exception):
    pass


def read_client_hello(data: bytes) -> ClientHello | None:
    found = client_hello.read_client_hello(data)
    if isinstance(found, NotTls):
        raise Refused(found.why)
    return found


def openssl(name: str | None) -> bytes:
    context = ssl.create_default_context()
    context.check_hostname = False
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    with pytest.raises(ssl.SSLWantReadError):
        context.wrap_bio(incoming, outgoing, server_hostname=name).do_handshake()
    return outgoing.read()


def extension(kind: int, body: bytes) -> bytes:
    return kind.to_bytes(2, "big") + len(body).to_bytes(2, "big") + body


def server_name(*names: bytes, kind: int = 0) -> bytes:
    entries = b"".join(bytes([kind]) + len(one).to_bytes(2, "big") + one for one in names)
    return extension(0, len(entries).to_bytes(2, "big") + entries)


def message(*extensions: bytes, after: bytes = b"") -> bytes:
    body = b"\x03\x03" + bytes(32) + b"\x00" + b"\x00\x02\x13\x01" + b"\x01\x00"
    joined = b"".join(extensions)
    if extensions:
        body += len(joined).to_bytes(2, "big") + joined
    body += after
    return b"\x01" + len(body).to_bytes(3, "big") + body


def records(data: bytes, size: int = 16_384) -> bytes:
    parts = [data[at : at + size] for at in range(0, len(data), size)]
    return b"".join(b"\x16\x03\x01" + len(part).to_bytes(2, "big") + part for part in parts)


def test_what_openssl_sends_is_read_at_its_last_byte() -> None:
    data = openssl("a.example")
    for size in range(len(data)):
        assert read_client_hello(data[:size]) is None
    assert read_client_hello(data) == ClientHello(server_name="a.example")
    assert read_client_hello(data + b"more") == ClientHello(server_name="a.example")
    assert read_client_hello(openssl(None)) == ClientHello(server_name="")


@pytest.mark.parametrize("size", [1, 2, 3, 5, 50])
def test_a_message_may_come_in_many_records(size: int) -> None:
    assert read_client_hello(records(message(server_name(b"a.example")), size)) == ClientHello(server_name="a.example")


def test_without_extensions_there_is_no_name() -> None:
    assert read_client_hello(records(message())) == ClientHello(server_name="")


@pytest.mark.parametrize(
    "data",
    [
        b"GET / HTTP/1.1\r\n",
        b"\x15\x03\x03\x00\x02\x02\x28",
        b"\x16\x02\x00\x00\x05",
        b"\x16\x03\x01\x00\x00",
        b"\x16\x03\x01\x40\x01",
        records(b"\x02\x00\x00\x00"),
        records(message(server_name(b"a"), server_name(b"b"))),
        records(message(server_name(b"a", b"b"))),
        records(message(server_name(b""))),
        records(message(server_name(b"\xc3\xa4"))),
        records(message(server_name(b"a", kind=1))),
        records(message(extension(0, b"\x00\x05\x00\x00\x01"))),
        records(message(extension(0, b"\x00\x04\x00\x00\x01ax"))),
        records(message(extension(10, b""), extension(10, b""))),
        records(message(server_name(b"a"), after=b"x")),
        records(message(b"\x00\x00\xff\xff")),
        records(message(server_name(b"a")) + b"\x01"),
        records(b"\x01\x00\xff\xff" + bytes(100)),
        records(message(extension(99, bytes(MAX_HELLO_BYTES)))),
    ],
)
def test_what_is_malformed_is_refused(data: bytes) -> None:
    with pytest.raises(Refused):
        read_client_hello(data)


@given(st.binary(max_size=400))
def test_no_bytes_raise_anything_else(data: bytes) -> None:
    for start in (b"", b"\x16\x03\x01", records(message(server_name(b"a")))[:60]):
        with contextlib.suppress(Refused):
            read_client_hello(start + data)


def test_a_hello_in_very_many_records_is_refused_before_it_is_whole() -> None:
    whole = message(extension(99, bytes(2 * MAX_RECORDS)))
    assert read_client_hello(records(whole, len(whole) // MAX_RECORDS + 1)) == ClientHello(server_name="")
    cut = records(whole, 1)
    assert read_client_hello(cut[: 6 * MAX_RECORDS]) is None
    with pytest.raises(Refused, match="too many records"):
        read_client_hello(cut[: 6 * MAX_RECORDS + 5])
