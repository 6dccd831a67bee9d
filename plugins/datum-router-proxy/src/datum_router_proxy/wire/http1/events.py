"""What the HTTP/1.1 engine tells its driver: heads, data, ends. All of it immutable."""

from __future__ import annotations

import enum
from typing import Final

import msgspec

Field = tuple[bytes, bytes]
FieldTuple = tuple[Field, ...]


class Role(enum.Enum):
    """Which end of the connection the engine plays."""

    SERVER = "server"
    CLIENT = "client"


class TargetForm(enum.Enum):
    """The four forms of a request-target (RFC 9112 section 3.2)."""

    ORIGIN = "origin"
    ABSOLUTE = "absolute"
    ASTERISK = "asterisk"
    AUTHORITY = "authority"


class FramingKind(enum.Enum):
    """How the end of a message body is found (RFC 9112 section 6.3)."""

    NONE = "none"
    LENGTH = "length"
    CHUNKED = "chunked"
    UNTIL_CLOSE = "until_close"


class Framing(msgspec.Struct, frozen=True, gc=False):
    """State how a body is delimited; `length` counts bytes and is 0 unless `kind` is LENGTH."""

    kind: FramingKind
    length: int = 0


FRAMING_NONE: Final = Framing(FramingKind.NONE)
FRAMING_CHUNKED: Final = Framing(FramingKind.CHUNKED)
FRAMING_UNTIL_CLOSE: Final = Framing(FramingKind.UNTIL_CLOSE)


class H1RequestHead(msgspec.Struct, frozen=True, kw_only=True):
    """A request head, validated and canonical.

    Attributes:
        method: Upper-case token.
        target: The request-target as it came.
        form: Which form `target` has; AUTHORITY never comes out of the server role (CONNECT is refused).
        path_query: Origin-form part of the target, not normalised; `*` for asterisk-form.
        minor_version: 0 or 1; a later minor version counts as 1 (RFC 9110 section 2.5).
        authority: Lower-case host with port as given: absolute-form wins over Host (RFC 9112 section 3.2.2).
        fields: In order, lower-case names, without `CONSUMED_FIELDS`, without names that hold an underscore.
        framing: NONE, LENGTH or CHUNKED.
        keep_alive: Whether the client lets the connection persist (RFC 9112 section 9.3).
        expect_continue: Whether a body follows that waits for 100 (RFC 9110 section 10.1.1).
        te_trailers: Whether `TE: trailers` was stated.
        upgrade: Lower-case protocols of Upgrade, empty unless Connection nominated it.
        nominations: Lower-case names that Connection nominated, without `close` and `keep-alive`.
        dropped_fields: How many fields with an underscore in the name were dropped.
    """

    method: str
    target: bytes
    form: TargetForm
    path_query: bytes
    minor_version: int
    authority: bytes
    fields: FieldTuple
    framing: Framing
    keep_alive: bool
    expect_continue: bool = False
    te_trailers: bool = False
    upgrade: tuple[bytes, ...] = ()
    nominations: frozenset[bytes] = frozenset()
    dropped_fields: int = 0


class H1ResponseHead(msgspec.Struct, frozen=True, kw_only=True):
    """A response head, validated and canonical; attributes as in `H1RequestHead` unless stated here.

    Attributes:
        status: 100 to 599.
        reason: Reason phrase, may be empty.
        framing: What follows on the wire: NONE for HEAD, 1xx, 204 and 304.
        content_length: What Content-Length said, also where no body follows (HEAD, 304); None if absent.
    """

    status: int
    reason: bytes
    minor_version: int
    fields: FieldTuple
    framing: Framing
    content_length: int | None
    keep_alive: bool
    upgrade: tuple[bytes, ...] = ()
    nominations: frozenset[bytes] = frozenset()
    dropped_fields: int = 0


class RequestReceived(msgspec.Struct, frozen=True):
    """A request head has come; body events follow, then `MessageComplete`."""

    head: H1RequestHead


class ResponseReceived(msgspec.Struct, frozen=True):
    """A final response head has come (101 included, after which the connection is a tunnel)."""

    head: H1ResponseHead


class InformationalReceived(msgspec.Struct, frozen=True):
    """A 1xx response other than 101 has come; the final one is still due."""

    head: H1ResponseHead


class DataReceived(msgspec.Struct, frozen=True, gc=False):
    """Body bytes, never empty, without chunk framing."""

    data: bytes


class MessageComplete(msgspec.Struct, frozen=True):
    """The message has ended; `trailers` went through the same grammar as heads, unsafe names removed."""

    trailers: FieldTuple = ()


class ConnectionClosed(msgspec.Struct, frozen=True, gc=False):
    """The peer closed between messages: nothing was cut short."""


class Signal(enum.Enum):
    """What `next_event` answers when it has no event."""

    NEED_DATA = "need_data"
    PAUSED = "paused"
    CONNECT = "connect"


NEED_DATA: Final = Signal.NEED_DATA
PAUSED: Final = Signal.PAUSED
MESSAGE_COMPLETE: Final = MessageComplete()
CONNECTION_CLOSED: Final = ConnectionClosed()

Event = RequestReceived | ResponseReceived | InformationalReceived | DataReceived | MessageComplete | ConnectionClosed

CONSUMED_FIELDS: Final = frozenset(
    {
        b"connection",
        b"content-length",
        b"expect",
        b"host",
        b"keep-alive",
        b"proxy-connection",
        b"te",
        b"transfer-encoding",
        b"upgrade",
    }
)
"""Names whose meaning the engine has put into the head's attributes; they never appear among `fields`.

`host` and `expect` are consumed in requests only, `te` likewise; the others in both directions.
"""
