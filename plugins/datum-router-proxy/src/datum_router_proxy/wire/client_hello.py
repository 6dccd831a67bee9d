"""Read a TLS ClientHello without answering it: the server name, and which ticket it wants to resume by. Sans I/O.

Sources: RFC 8446 sections 4.1.2, 4.2.11 and 5.1, RFC 6066 section 3, RFC 5077 section 3.2. What is looked for is what
decides who is to speak TLS with the client, or whether it may go there; all else is left to them. A hello whose lengths
do not add up, or with an extension twice, is refused: the server might understand it otherwise. A hello may be cut into
up to `MAX_RECORDS` records and those into any number of segments: whoever reads gives all bytes that have come, from
the first one on, each time.
"""

from __future__ import annotations

import struct

import msgspec

MAX_HELLO_BYTES = 32_768
"""Longest prefix of a connection that is looked at. Hellos have some 300 to 2,000 bytes, with post-quantum keys as
well; OpenSSL itself takes 16 KiB of them, if nothing else is set."""
MAX_RECORDS = 128
"""Most records of a hello. Whoever reads looks at all of them again for each segment that comes: without a limit,
32 KiB in records of one byte, sent byte by byte, cost half a minute of a processor. Real hellos have one or two."""
MAX_RECORD_BYTES = 16_384
"""Most plaintext of one record (RFC 8446 section 5.1)."""
TICKET_NAME_BYTES = 16
"""How much of a ticket names its key (RFC 5077 section 4), as OpenSSL has it."""

ACCESS_DENIED = b"\x15\x03\x03\x00\x02\x02\x31"
"""A fatal alert access_denied (49): what a client is told that may not go there (RFC 8446 section 6.2)."""

_HANDSHAKE = 22
_CLIENT_HELLO = 1
_SERVER_NAME = 0
_SESSION_TICKET = 35
_PRE_SHARED_KEY = 41
_EXTENSION = struct.Struct(">HH")
_BEYOND = "a length goes beyond what holds it"
_LABEL_BYTES = frozenset(b"abcdefghijklmnopqrstuvwxyz0123456789-_.")


class ClientHello(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """What a hello says.

    Attributes:
        server_name: Lower case, without trailing dot; empty if it names none.
        ticket_name: Of the key that its first ticket was made with; empty without ticket.
    """

    server_name: str = ""
    ticket_name: bytes = b""


class NotTls(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """These bytes can become no ClientHello; `why` says which rule they break, without anything of theirs."""

    why: str


class _Broken(Exception):  # never leaves this module
    pass


class _Reader:
    """A cursor over bytes; every read checks that they are there."""

    __slots__ = ("_at", "_data", "_end")

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0
        self._end = len(data)

    def is_over(self) -> bool:
        return self._at >= self._end

    def take(self, size: int) -> bytes:
        at = self._at
        if size > self._end - at:
            raise _Broken(_BEYOND)
        self._at = at + size
        return self._data[at : at + size]

    def number(self, size: int) -> int:
        return int.from_bytes(self.take(size), "big")

    def vector(self, size: int) -> bytes:
        """Take bytes that stand behind their length, a number of `size` bytes."""
        return self.take(self.number(size))


def read_client_hello(data: bytes) -> ClientHello | NotTls | None:
    """Return what the first bytes of a connection say; None if more are needed. O(bytes), without copying records."""
    found = _message(data)
    if found is None or isinstance(found, NotTls):
        return found
    try:
        return _parse(found)
    except _Broken as broken:
        return NotTls(why=str(broken))


def _message(data: bytes) -> bytes | NotTls | None:
    """Return the body of the hello out of its records, None if it is not whole yet."""
    pieces: list[bytes] = []
    have, wanted, at = 0, 4, 0
    size = len(data)
    while have < wanted:
        if size - at < 5:
            if size > at and data[at] != _HANDSHAKE:
                return NotTls(why="the first record is no handshake")
            return _more(size)
        kind, major, length = struct.unpack_from(">BBxH", data, at)
        if kind != _HANDSHAKE or major != 3:
            return NotTls(why="the first record is no handshake")
        if not 0 < length <= MAX_RECORD_BYTES:
            return NotTls(why="a record has no plausible length")
        if len(pieces) >= MAX_RECORDS:
            return NotTls(why="the ClientHello is cut into too many records")
        piece = data[at + 5 : at + 5 + length]
        pieces.append(piece)
        have += len(piece)
        if wanted == 4 and have >= 4:
            head = b"".join(pieces)[:4]
            if head[0] != _CLIENT_HELLO:
                return NotTls(why="the first message is no ClientHello")
            wanted = 4 + int.from_bytes(head[1:], "big")
            if wanted > MAX_HELLO_BYTES:
                return NotTls(why="the ClientHello is too long")
        if len(piece) < length and have < wanted:
            return _more(size)
        at += 5 + length
    if have > wanted:
        return NotTls(why="there are bytes after the ClientHello in its record")
    return b"".join(pieces)[4:wanted]


def _more(size: int) -> NotTls | None:
    return NotTls(why="the ClientHello is too long") if size >= MAX_HELLO_BYTES else None


def _parse(body: bytes) -> ClientHello:
    reader = _Reader(body)
    reader.take(2 + 32)  # version, random
    reader.vector(1)  # session id
    reader.vector(2)  # cipher suites
    reader.vector(1)  # compression
    if reader.is_over():
        return ClientHello()  # no extensions (RFC 5246 section 7.4.1.2)
    extensions = reader.vector(2)
    if not reader.is_over():
        raise _Broken("there are bytes after the extensions")
    name, ticket = "", b""
    seen: set[int] = set()
    at, end = 0, len(extensions)
    while at < end:  # without a reader, since there are a dozen or more in every hello
        begins = at + 4
        if begins > end:
            raise _Broken(_BEYOND)
        kind, length = _EXTENSION.unpack_from(extensions, at)
        at = begins + length
        if at > end:
            raise _Broken(_BEYOND)
        if kind in seen:
            raise _Broken("an extension comes twice")
        seen.add(kind)
        if kind == _SERVER_NAME:
            name = _server_name(extensions[begins:at])
        elif kind == _SESSION_TICKET:
            ticket = ticket or extensions[begins:at][:TICKET_NAME_BYTES]
        elif kind == _PRE_SHARED_KEY:
            ticket = _Reader(_Reader(extensions[begins:at]).vector(2)).vector(2)[:TICKET_NAME_BYTES]
    return ClientHello(server_name=name, ticket_name=ticket)


def _server_name(content: bytes) -> str:
    whole = _Reader(content)
    names = _Reader(whole.vector(2))
    if not whole.is_over():
        raise _Broken("there are bytes after the list of server names")
    if names.number(1) != 0:
        raise _Broken("a server name is of no known type")
    raw = names.vector(2).lower()
    if not names.is_over():
        raise _Broken("there is more than one server name")
    if raw.endswith(b"."):
        raw = raw[:-1]
    if not raw or len(raw) > 253 or not _LABEL_BYTES.issuperset(raw):
        raise _Broken("the server name is no host name")
    return raw.decode("ascii")
