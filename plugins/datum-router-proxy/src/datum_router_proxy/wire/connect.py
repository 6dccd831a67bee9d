"""The head of a CONNECT request (RFC 9110 section 9.3.6, RFC 9112 section 3.2.3), for listeners that proxy.

Everything but the request line is read by the rules of any other head, so that nothing passes here that would be
refused there. A body is refused: what follows the head belongs to the tunnel, and two readings of where that begins
would be one too many.
"""

from __future__ import annotations

import msgspec

from datum_router.errors import RemoteProtocolError
from datum_router.reasons import Reason
from datum_router_proxy.wire import grammar
from datum_router_proxy.wire.http1 import FramingKind, Http1Limits, reader, writer

Field = tuple[bytes, bytes]

START = b"CONNECT "
END_OF_HEAD = b"\r\n\r\n"
ESTABLISHED = b"HTTP/1.1 200 Connection Established\r\n\r\n"
"""A 2xx answer to CONNECT has neither body nor length (RFC 9110 section 9.3.6)."""


class ConnectHead(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """A CONNECT request. `target` is as written, of bytes that a request line may hold; it is not canonical."""

    target: str
    fields: tuple[Field, ...] = ()


def find_end(data: bytes | bytearray, limits: Http1Limits) -> int:
    """Return the length of the head, 0 if it is not complete yet.

    Raises:
        RemoteProtocolError: 431: it is longer than it may be.
    """
    at = data.find(END_OF_HEAD)
    size = at + len(END_OF_HEAD) if at >= 0 else len(data)
    if size > limits.max_head_bytes:
        raise RemoteProtocolError(
            f"http/1: head of {size} bytes, at most {limits.max_head_bytes}",
            reason=Reason.HEAD_TOO_LARGE,
            status_hint=431,
        )
    return size if at >= 0 else 0


def parse(block: bytes, limits: Http1Limits) -> ConnectHead:
    """Return the head in `block`, which ends with its empty line.

    Raises:
        RemoteProtocolError: 400, 414, 431 or 505.
    """
    match = grammar.REQUEST_LINE.match(block)
    if match is None:
        raise reader.request_line_error(block)
    method, target, minor = match.groups()
    if len(target) > limits.max_target_bytes:
        raise reader.target_too_long(len(target), limits)
    if method != b"CONNECT":
        raise RemoteProtocolError("http/1: not a CONNECT", reason=Reason.BAD_METHOD, status_hint=400)
    rest = block[match.end() :]
    # Clients of HTTP/1.0 send no Host. It is not looked at: the target says where to (RFC 9112 section 3.2.3).
    host = b"host: connect\r\n" if minor == b"0" and not _has_host(rest) else b""
    head = reader.parse_request_head(b"GET / HTTP/1.%b\r\n%b%b" % (minor, host, rest), limits)
    if head.framing.kind is not FramingKind.NONE and not (
        head.framing.kind is FramingKind.LENGTH and not head.framing.length
    ):
        raise RemoteProtocolError("http/1: CONNECT with a body", reason=Reason.LENGTH_CONFLICT, status_hint=400)
    return ConnectHead(target=target.decode("ascii"), fields=head.fields)


def _has_host(fields: bytes) -> bool:
    lower = fields.lower()
    return lower.startswith(b"host:") or b"\nhost:" in lower


def refusal(status: int, text: str, fields: tuple[Field, ...] = ()) -> bytes:
    """Return a whole answer that ends the connection."""
    body = text.encode("utf-8", "replace")
    head = writer.encode_response_head(
        status,
        None,
        ((b"content-type", b"text/plain; charset=utf-8"), *fields),
        b"content-length: %d\r\nconnection: close\r\n" % len(body),
    )
    return head + body
