"""WebSocket handshakes (RFC 6455 section 4, RFC 8441): check them and translate them between HTTP/1.1 and HTTP/2.

Nothing here reads frames: after the handshake the connection is a tunnel of bytes. The one frame we ever write is
the close frame at shutdown. A request that is no valid handshake is not an error: it goes on as plain HTTP, without
its Upgrade (threat B3).
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable
from typing import Final

from datum_router_proxy.wire import grammar
from datum_router_proxy.wire.http1.events import FramingKind, H1RequestHead, H1ResponseHead

Field = tuple[bytes, bytes]

WEBSOCKET: Final = b"websocket"
VERSION: Final = b"13"
GOING_AWAY: Final = 1001
"""Close code of an endpoint that goes down (RFC 6455 section 7.4.1)."""

MAX_CLOSE_REASON_BYTES: Final = 123
"""A control frame holds 125 bytes, two of them are the code (RFC 6455 section 5.5)."""

_GUID: Final = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
_KEY: Final = b"sec-websocket-key"
_ACCEPT: Final = b"sec-websocket-accept"
_VERSION: Final = b"sec-websocket-version"
_PROTOCOL: Final = b"sec-websocket-protocol"
_HTTP1_ONLY: Final = frozenset({_KEY, _ACCEPT, b"connection", b"upgrade", b"host"})


def handshake_key(head: H1RequestHead) -> bytes | None:
    """Return Sec-WebSocket-Key if `head` is a valid opening handshake, else None (RFC 6455 section 4.2.1).

    Valid: GET on HTTP/1.1 without a body, Upgrade that names websocket and is nominated by Connection, one key of 16
    bytes in base64, one version that is 13.
    """
    if head.method != "GET" or head.minor_version != 1 or WEBSOCKET not in head.upgrade:
        return None
    if head.framing.kind is not FramingKind.NONE and (
        head.framing.kind is not FramingKind.LENGTH or head.framing.length
    ):
        return None
    keys = _values(head.fields, _KEY)
    if len(keys) != 1 or not grammar.WEBSOCKET_KEY.fullmatch(keys[0]) or _values(head.fields, _VERSION) != [VERSION]:
        return None
    return keys[0]


def is_connect_handshake(method: bytes, protocol: bytes | None, fields: Iterable[Field]) -> bool:
    """Return whether an HTTP/2 request is a WebSocket handshake: extended CONNECT, version 13 (RFC 8441 section 5)."""
    return method == b"CONNECT" and protocol == WEBSOCKET and _values(fields, _VERSION) == [VERSION]


def accept_value(key: bytes) -> bytes:
    """Return the Sec-WebSocket-Accept that proves `key` was understood (RFC 6455 section 4.2.2)."""
    # SHA-1 is what the RFC says; it guards against confusion, not against forgery
    return base64.b64encode(hashlib.sha1(key + _GUID, usedforsecurity=False).digest())


def make_key(nonce: bytes) -> bytes:
    """Return Sec-WebSocket-Key for 16 random bytes given by the caller (RFC 6455 section 4.1)."""
    if len(nonce) != 16:
        raise ValueError(f"websocket nonce of {len(nonce)} bytes, expected 16")
    return base64.b64encode(nonce)


def is_accepted(head: H1ResponseHead, key: bytes, *, offered_protocols: Iterable[Field] = ()) -> bool:
    """Return whether an upstream's response opens the tunnel for `key` (RFC 6455 section 4.1, points 1 to 6).

    Args:
        offered_protocols: The request's fields; a subprotocol nobody offered is a failed handshake.
    """
    if head.status != 101 or head.upgrade != (WEBSOCKET,) or _values(head.fields, _ACCEPT) != [accept_value(key)]:
        return False
    chosen = _values(head.fields, _PROTOCOL)
    if not chosen:
        return True
    offered = {part.strip(b" \t") for value in _values(offered_protocols, _PROTOCOL) for part in value.split(b",")}
    return len(chosen) == 1 and chosen[0] in offered


def connect_fields(fields: Iterable[Field], *, scheme: bytes, authority: bytes, path: bytes) -> list[Field]:
    """Return an extended CONNECT for an HTTP/1.1 handshake: pseudo-header fields first (RFC 8441 section 4)."""
    return [
        (b":method", b"CONNECT"),
        (b":protocol", WEBSOCKET),
        (b":scheme", scheme),
        (b":path", path),
        (b":authority", authority),
        *(field for field in fields if field[0] not in _HTTP1_ONLY),
    ]


def upgrade_fields(fields: Iterable[Field], *, key: bytes) -> list[Field]:
    """Return the fields of an HTTP/1.1 handshake for an extended CONNECT; the engine adds Upgrade and Connection."""
    kept = [field for field in fields if field[0] not in _HTTP1_ONLY and not field[0].startswith(b":")]
    return [*kept, (_KEY, key)]


def connect_response_fields(fields: Iterable[Field]) -> list[Field]:
    """Return the fields of the HTTP/2 200 response that stands for an HTTP/1.1 101 (RFC 8441 section 5)."""
    return [field for field in fields if field[0] not in _HTTP1_ONLY]


def switch_fields(fields: Iterable[Field], *, key: bytes) -> list[Field]:
    """Return the fields of the HTTP/1.1 101 response that stands for an HTTP/2 2xx; the engine adds Upgrade."""
    kept = [field for field in fields if field[0] not in _HTTP1_ONLY and not field[0].startswith(b":")]
    return [*kept, (_ACCEPT, accept_value(key))]


def close_frame(code: int = GOING_AWAY, reason: bytes = b"", *, mask: bytes | None = None) -> bytes:
    """Return a close frame (RFC 6455 section 5.5.1).

    Args:
        mask: Four random bytes when we speak as client (towards an upstream), None as server.
    """
    if not 1000 <= code <= 4999:
        raise ValueError(f"close code {code}, expected 1000 to 4999")
    if len(reason) > MAX_CLOSE_REASON_BYTES:
        raise ValueError(f"close reason of {len(reason)} bytes, at most {MAX_CLOSE_REASON_BYTES}")
    payload = code.to_bytes(2, "big") + reason
    if mask is None:
        return bytes((0x88, len(payload))) + payload
    if len(mask) != 4:
        raise ValueError(f"mask of {len(mask)} bytes, expected 4")
    masked = bytes(byte ^ mask[index % 4] for index, byte in enumerate(payload))
    return bytes((0x88, 0x80 | len(payload))) + mask + masked


def _values(fields: Iterable[Field], name: bytes) -> list[bytes]:
    return [value for key, value in fields if key == name]
