"""The ClientHello as it is looked at: real ones of OpenSSL, cut anywhere; broken ones; what a ticket is named."""

from __future__ import annotations

import ssl

import pytest
from hypothesis import given
from hypothesis import strategies as st

from datum_router_proxy.wire.client_hello import (
    MAX_HELLO_BYTES,
    MAX_RECORD_BYTES,
    ClientHello,
    NotTls,
    read_client_hello,
)


def hello(name: str | None = "shop.example", *, maximum: ssl.TLSVersion = ssl.TLSVersion.TLSv1_3) -> bytes:
    """Return what OpenSSL sends first."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.maximum_version = maximum
    context.set_alpn_protocols(["h2", "http/1.1"])
    received, sent = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = context.wrap_bio(received, sent, server_hostname=name)
    with pytest.raises(ssl.SSLWantReadError):
        client.do_handshake()
    return sent.read()


def record(payload: bytes, kind: int = 22) -> bytes:
    return bytes((kind, 3, 1)) + len(payload).to_bytes(2, "big") + payload


def message(body: bytes, kind: int = 1) -> bytes:
    return bytes((kind,)) + len(body).to_bytes(3, "big") + body


def body(*extensions: tuple[int, bytes]) -> bytes:
    together = b"".join(k.to_bytes(2, "big") + len(v).to_bytes(2, "big") + v for k, v in extensions)
    return (
        b"\x03\x03"
        + bytes(32)
        + b"\x00"
        + b"\x00\x02\x13\x01"
        + b"\x01\x00"
        + len(together).to_bytes(2, "big")
        + together
    )


def names(*entries: tuple[int, bytes]) -> bytes:
    listed = b"".join(bytes((kind,)) + len(name).to_bytes(2, "big") + name for kind, name in entries)
    return len(listed).to_bytes(2, "big") + listed


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
@pytest.mark.parametrize(
    ("asked", "read"), [("shop.example", "shop.example"), ("SHOP.Example", "shop.example"), (None, "")]
)
def test_the_server_name_of_a_real_hello_is_read(version: ssl.TLSVersion, asked: str | None, read: str) -> None:
    found = read_client_hello(hello(asked, maximum=version))
    assert found == ClientHello(server_name=read)


def test_every_prefix_asks_for_more_and_the_whole_is_read() -> None:
    data = hello()
    assert [read_client_hello(data[:size]) for size in range(len(data))] == [None] * len(data)
    assert read_client_hello(data + b"what follows") == ClientHello(server_name="shop.example")


@given(st.data())
def test_records_may_be_cut_anywhere(data: st.DataObject) -> None:
    whole = message(body((0, names((0, b"shop.example")))))
    cuts = sorted(data.draw(st.sets(st.integers(1, len(whole) - 1), max_size=12)))
    pieces = [whole[a:b] for a, b in zip([0, *cuts], [*cuts, len(whole)], strict=True)]
    sent = b"".join(record(piece) for piece in pieces)
    assert read_client_hello(sent) == ClientHello(server_name="shop.example")
    assert read_client_hello(sent[: data.draw(st.integers(0, len(sent) - 1))]) is None


@given(st.binary(max_size=600))
def test_any_bytes_get_a_verdict(data: bytes) -> None:
    assert isinstance(read_client_hello(data), ClientHello | NotTls | None)
    assert isinstance(read_client_hello(record(message(body() + data))), ClientHello | NotTls | None)


TICKET = bytes(range(16)) + b"the rest of the ticket"
_IDENTITY = len(TICKET).to_bytes(2, "big") + TICKET + bytes(4)
PRE_SHARED_KEY = len(_IDENTITY).to_bytes(2, "big") + _IDENTITY + b"\x00\x21\x20" + bytes(32)


@pytest.mark.parametrize("extension", [(35, TICKET), (41, PRE_SHARED_KEY)], ids=["TLS 1.2", "TLS 1.3"])
def test_the_name_of_the_key_of_a_ticket_is_read(extension: tuple[int, bytes]) -> None:
    found = read_client_hello(record(message(body((0, names((0, b"a.example"))), extension))))
    assert found == ClientHello(server_name="a.example", ticket_name=bytes(range(16)))


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"GET / HTTP/1.1\r\n", "the first record is no handshake"),
        (b"\x15", "the first record is no handshake"),
        (record(b"\x01\x00", 23), "the first record is no handshake"),
        (b"\x16\x02\x00\x00\x10", "the first record is no handshake"),
        (b"\x16\x03\x01\x00\x00", "a record has no plausible length"),
        (b"\x16\x03\x01" + (MAX_RECORD_BYTES + 1).to_bytes(2, "big"), "a record has no plausible length"),
        (record(message(b"", kind=2)), "the first message is no ClientHello"),
        (record(b"\x01" + (MAX_HELLO_BYTES).to_bytes(3, "big")), "the ClientHello is too long"),
        (record(b"\x01\x00\x7f\x00") + record(b"\x00" * 300) * 108, "the ClientHello is too long"),
        (record(b"\x01\x00\x7f\x00") + record(b"\x00") * 6000, "the ClientHello is cut into too many records"),
        (record(message(b"\x03\x03")), "a length goes beyond what holds it"),
        (record(message(body()[:-2] + b"\x00\x05")), "a length goes beyond what holds it"),
        (record(message(body((0, names((0, b"a"))), (0, names((0, b"b")))))), "an extension comes twice"),
        (record(message(body((0, names((1, b"a")))))), "a server name is of no known type"),
        (record(message(body((0, names((0, b"a"), (0, b"b")))))), "there is more than one server name"),
        (record(message(body((0, names((0, b"a b")))))), "the server name is no host name"),
        (record(message(body((0, names((0, b"a\x00b")))))), "the server name is no host name"),
        (record(message(body((0, names((0, b"a" * 254)))))), "the server name is no host name"),
        (record(message(body((0, names((0, b".")))))), "the server name is no host name"),
    ],
)
def test_what_is_no_hello_is_told_by_the_rule_it_breaks(data: bytes, why: str) -> None:
    assert read_client_hello(data) == NotTls(why=why)


def test_a_trailing_dot_is_no_part_of_the_name_and_no_extensions_are_no_name() -> None:
    assert read_client_hello(record(message(body((0, names((0, b"A.example."))))))) == ClientHello(
        server_name="a.example"
    )
    assert read_client_hello(record(message(body()[:-2]))) == ClientHello()
