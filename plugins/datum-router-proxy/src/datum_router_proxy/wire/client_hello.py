"""The server name in a TLS ClientHello (RFC 8446 section 4.1.2, RFC 6066 section 3), without speaking TLS.

The bytes are passed on as they are, so what is read here must be what the server reads: a message with a field twice,
or with lengths that do not add up, is refused rather than understood. A name within an encrypted ClientHello (ECH)
cannot be read; what counts is the outer name, which is that of the server the connection goes to.
"""

from __future__ import annotations

import msgspec

from datum_router.errors import RemoteProtocolError
from datum_router.reasons import Reason

MAX_HELLO_BYTES = 16_384
"""Records that are read of one ClientHello, their heads included; post-quantum key shares need about 2 KiB."""

ACCESS_DENIED = b"\x15\x03\x03\x00\x02\x02\x31"
"""A fatal alert access_denied (49): what a client is told that may not go there (RFC 8446 section 6.2)."""

_HANDSHAKE = 22
_CLIENT_HELLO = 1
_MAX_RECORD = 16_384
_SERVER_NAME = 0
_HOST_NAME = 0


class ClientHello(msgspec.Struct, frozen=True, gc=False):
    """What was read. `server_name`: as sent, empty if there is none."""

    server_name: str


def read_client_hello(data: bytes) -> ClientHello | None:
    """Return what a stream's first bytes say, None if more are needed.

    Raises:
        RemoteProtocolError: They do not begin a ClientHello, or one that is malformed or too long.
    """
    message = bytearray()
    at = 0
    while True:
        if len(data) < at + 5:
            if at + 5 > MAX_HELLO_BYTES:
                raise _bad("a ClientHello that is too long")
            _check_start(data[at:])
            return None
        _check_start(data[at : at + 5])
        length = int.from_bytes(data[at + 3 : at + 5], "big")
        if not 0 < length <= _MAX_RECORD:
            raise _bad("a record of no length, or longer than 16384 bytes")
        if at + 5 + length > MAX_HELLO_BYTES:
            raise _bad("a ClientHello that is too long")
        record = data[at + 5 : at + 5 + length]
        if not message and record and record[0] != _CLIENT_HELLO:
            raise _bad("a handshake that begins with another message")
        if len(record) < length:
            return None
        message += record
        if len(message) >= 4:
            whole = 4 + int.from_bytes(message[1:4], "big")
            if whole > MAX_HELLO_BYTES:
                raise _bad("a ClientHello that is too long")
            if len(message) > whole:
                raise _bad("bytes after the ClientHello in its record")
            if len(message) == whole:
                return ClientHello(_server_name(_Reader(bytes(message[4:]))))
        at += 5 + length


def _check_start(data: bytes) -> None:
    if (data and data[0] != _HANDSHAKE) or (len(data) > 1 and data[1] != 3):
        raise _bad("no TLS handshake")


class _Reader:
    """Takes vectors of stated length from bytes."""

    __slots__ = ("_at", "_data")

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def is_at_end(self) -> bool:
        return self._at == len(self._data)

    def take(self, size: int) -> bytes:
        end = self._at + size
        if end > len(self._data):
            raise _bad("a length beyond the end of the ClientHello")
        found, self._at = self._data[self._at : end], end
        return found

    def number(self, size: int) -> int:
        return int.from_bytes(self.take(size), "big")

    def rest(self) -> bytes:
        return self.take(len(self._data) - self._at)

    def vector(self, size: int) -> _Reader:
        return _Reader(self.take(self.number(size)))


def _server_name(hello: _Reader) -> str:
    hello.take(2 + 32)  # legacy_version, random
    for size in (1, 2, 1):  # session id, cipher suites, compression methods
        hello.vector(size)
    if hello.is_at_end():
        return ""  # no extensions: TLS 1.2 and before
    extensions = hello.vector(2)
    if not hello.is_at_end():
        raise _bad("bytes after the extensions")
    seen: set[int] = set()
    name = ""
    while not extensions.is_at_end():
        kind = extensions.number(2)
        body = extensions.vector(2)
        if kind in seen:
            raise _bad("an extension twice")
        seen.add(kind)
        if kind == _SERVER_NAME:
            name = _host_name(body)
    return name


def _host_name(body: _Reader) -> str:
    names = body.vector(2)
    if not body.is_at_end():
        raise _bad("bytes after the list of server names")
    if names.number(1) != _HOST_NAME:
        raise _bad("a server name of an unknown type")
    raw = names.vector(2)
    text = raw.rest()
    if not names.is_at_end():
        raise _bad("several server names")
    if not text or not text.isascii():
        raise _bad("a server name that is empty or not ASCII")
    return text.decode("ascii")


def _bad(what: str) -> RemoteProtocolError:
    return RemoteProtocolError(f"tls: {what}", reason=Reason.TLS_HANDSHAKE, status_hint=400)
