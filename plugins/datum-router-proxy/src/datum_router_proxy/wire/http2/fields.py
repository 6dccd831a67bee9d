"""Field rules of HTTP/2 messages (RFC 9113 section 8.2 and 8.3): what makes a message malformed, what a 400.

Names and values of a whole block are checked by one anchored expression over the block joined with line feeds; that
is sound because a line feed inside a name or value would change the number of line feeds. All quantifiers that
could share a match are possessive, so the time is linear.

Three verdicts exist, told apart by `error_code`: malformed (PROTOCOL_ERROR, the stream is reset, D13 to D16),
answerable (code 0, the request gets `status_hint`: D17, 405, 414), valid.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import chain

from datum_router.errors import RemoteProtocolError
from datum_router.reasons import Reason

from .events import Fields, RequestReceived
from .frames import ErrorCode

Field = tuple[bytes, bytes]

# token (RFC 9110 section 5.6.2) without upper case (RFC 9113 section 8.2.1).
_NAME = rb"[!#$%&'*+\-.^_`|~0-9a-z]++"
# field-value (RFC 9110 section 5.5): no blank at either end (RFC 9113 section 8.2.1), obs-text allowed.
_VALUE = rb"(?:[\x21-\x7e\x80-\xff]++(?:[\t ]++[\x21-\x7e\x80-\xff]++)*+)?+"
_LINES = re.compile(rb"(?:" + _NAME + rb"\n" + _VALUE + rb"\n)*+")

_METHOD = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]{1,32}")
_SCHEME = re.compile(rb"[A-Za-z][A-Za-z0-9+.\-]{0,31}")
# origin-form (RFC 9112 section 3.2.1) on bytes; what is not ASCII is left to path normalisation, which refuses it.
_PATH = re.compile(rb"/[\x21-\x7e\x80-\xff]*+")
# uri-host [":" port] (RFC 3986 section 3.2.2) without userinfo (RFC 9113 section 8.3.1).
_AUTHORITY = re.compile(rb"(?:\[[0-9A-Fa-f:.]{2,45}\]|[A-Za-z0-9\-._~!$&'()*+,;=]{1,255})(?::[0-9]{1,5})?")
_LENGTH = re.compile(rb"[0-9]{1,18}")
_STATUS = re.compile(rb"[1-5][0-9][0-9]")
_PROTOCOL = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z/]{1,64}")

# RFC 9113 section 8.2.2.
_CONNECTION_SPECIFIC = frozenset((b"connection", b"proxy-connection", b"keep-alive", b"transfer-encoding", b"upgrade"))
CHECKED_OUTGOING = _CONNECTION_SPECIFIC | {b"content-length"}
_SPECIAL = _CONNECTION_SPECIFIC | {b"host", b"content-length", b"te", b"cookie"}


def malformed(message: str, reason: Reason = Reason.BAD_HEADER) -> RemoteProtocolError:
    """Return the error of a malformed message (RFC 9113 section 8.1.1): the stream is reset."""
    return RemoteProtocolError(message, reason=reason, status_hint=400, error_code=ErrorCode.PROTOCOL_ERROR)


def answerable(status: int, message: str, reason: Reason) -> RemoteProtocolError:
    """Return the error of a request that is well-formed HTTP/2 but gets `status` instead of service."""
    return RemoteProtocolError(message, reason=reason, status_hint=status, error_code=ErrorCode.NO_ERROR)


def are_valid_lines(fields: Sequence[Field]) -> bool:
    """Say whether all names and values are well-formed; pseudo-header names are not."""
    joined = b"\n".join(chain.from_iterable(fields)) + b"\n"
    if not fields:
        return True
    return joined.count(b"\n") == 2 * len(fields) and _LINES.fullmatch(joined) is not None


class RegularFields:
    """What the regular fields of the last valid request were found to be: most clients send the same ones again."""

    __slots__ = ("fields", "host", "length", "lines")

    def __init__(self) -> None:
        self.fields: list[Field] = []
        self.host: bytes | None = None
        self.length: int | None = None
        self.lines: Fields = ()

    def check(self, fields: list[Field]) -> None:
        """Check the regular fields of a request, unless they are those of the last one.

        Raises:
            RemoteProtocolError: As `parse_request`.
        """
        # Fields of the dynamic table are the same objects each time, so that comparing costs 20 ns a field.
        if fields == self.fields and fields:
            return
        self.fields = []
        if not are_valid_lines(fields):
            raise malformed(
                "request: field name or value with forbidden bytes, or pseudo-header field after a regular one"
            )
        self.host, self.length, self.lines = _regular_request_fields(fields)
        self.fields = fields


def parse_request(
    stream_id: int,
    fields: list[Field],
    end_stream: bool,
    *,
    path_bytes: int,
    allow_protocol: bool,
    allow_connect: bool = False,
    known: RegularFields | None = None,
) -> RequestReceived:
    """Check a request head (RFC 9113 section 8.3.1) and return its event.

    Args:
        allow_connect: Plain CONNECT is an event, with empty scheme and path.
        known: The connection's memory of regular fields.

    Raises:
        RemoteProtocolError: Malformed (`error_code` PROTOCOL_ERROR) or answerable (`error_code` 0, `status_hint`).
    """
    method = scheme = authority = path = protocol = None
    pseudo = 0
    for name, value in fields:
        if name == b":method" and method is None:
            method = value
        elif name == b":path" and path is None:
            path = value
        elif name == b":scheme" and scheme is None:
            scheme = value
        elif name == b":authority" and authority is None:
            authority = value
        elif name == b":protocol" and protocol is None and allow_protocol:
            protocol = value
        elif name[:1] == b":":
            raise malformed("request: unknown or repeated pseudo-header field")
        else:
            break
        pseudo += 1
    if known is None:
        known = RegularFields()
    known.check(fields[pseudo:])
    host, length, lines = known.host, known.length, known.lines

    if method is None or _METHOD.fullmatch(method) is None:
        raise malformed("request: :method missing or not a token", Reason.BAD_METHOD)
    if method == b"CONNECT" and protocol is None:
        if scheme is not None or path is not None or authority is None:
            raise malformed("request: CONNECT takes :authority and neither :scheme nor :path", Reason.BAD_METHOD)
        if not allow_connect:
            raise answerable(405, "request: plain CONNECT is not served", Reason.METHOD_NOT_ALLOWED)
        if length is not None:
            raise malformed("request: CONNECT with a content-length", Reason.BAD_LENGTH)
        if _AUTHORITY.fullmatch(authority) is None:
            raise answerable(400, "request: :authority is not host:port", Reason.BAD_HOST)
        return RequestReceived(stream_id, method, b"", authority, b"", None, lines, None, end_stream)
    if protocol is not None and (method != b"CONNECT" or _PROTOCOL.fullmatch(protocol) is None):
        raise malformed("request: :protocol belongs to CONNECT and is a token", Reason.BAD_METHOD)
    if scheme is None or _SCHEME.fullmatch(scheme) is None:
        raise malformed("request: :scheme missing or not a scheme", Reason.BAD_TARGET)
    if path is None or (_PATH.fullmatch(path) is None and not (path == b"*" and method == b"OPTIONS")):
        raise malformed("request: :path missing, or not beginning with '/', or with forbidden bytes", Reason.BAD_PATH)
    if length is not None and end_stream and length:
        raise malformed(f"request: content-length {length}, but no body follows", Reason.BAD_LENGTH)

    if authority is None:
        if host is None:
            raise answerable(400, "request: neither :authority nor host", Reason.BAD_HOST)
        authority = host
    elif host is not None and host.lower() != authority.lower():
        raise answerable(400, "request: :authority and host differ", Reason.BAD_HOST)
    if _AUTHORITY.fullmatch(authority) is None:
        raise answerable(400, "request: :authority is not host[:port]", Reason.BAD_HOST)
    if len(path) > path_bytes:
        raise answerable(414, f"request: :path of {len(path)} bytes, at most {path_bytes}", Reason.TARGET_TOO_LONG)
    return RequestReceived(stream_id, method, scheme, authority, path, protocol, lines, length, end_stream)


def _regular_request_fields(regular: list[Field]) -> tuple[bytes | None, int | None, Fields]:
    host: bytes | None = None
    length: int | None = None
    cookies: list[bytes] = []
    cookie_at = -1
    rebuild = False
    kept = 0
    for name, value in regular:
        if name in _SPECIAL:
            if name == b"host":
                if host is not None:
                    raise answerable(400, "request: more than one host field", Reason.BAD_HOST)
                host = value
                rebuild = True
                continue
            if name == b"cookie":
                if not cookies:
                    cookie_at = kept
                else:
                    rebuild = True
                    cookies.append(value)
                    continue
                cookies.append(value)
            elif name == b"content-length":
                length = content_length(value, length)
            else:
                _refuse_connection_specific(name, value)
        kept += 1
    if not rebuild:
        return host, length, tuple(regular)
    lines = [line for line in regular if line[0] != b"host" and line[0] != b"cookie"]
    if cookies:
        # RFC 9113 section 8.2.3: crumbs become one field before they leave HTTP/2.
        lines.insert(cookie_at, (b"cookie", b"; ".join(cookies)))
    return host, length, tuple(lines)


def parse_response(fields: list[Field]) -> tuple[int, Fields, int | None]:
    """Check a response head (RFC 9113 section 8.3.2); return status, fields and content length.

    Raises:
        RemoteProtocolError: The response is malformed.
    """
    if not fields or fields[0][0] != b":status" or _STATUS.fullmatch(fields[0][1]) is None:
        raise malformed("response: :status missing, not first, or not 100 to 599", Reason.BAD_STATUS_LINE)
    regular = fields[1:]
    if not are_valid_lines(regular):
        raise malformed("response: field name or value with forbidden bytes, or a second pseudo-header field")
    length: int | None = None
    for name, value in regular:
        if name == b"content-length":
            length = content_length(value, length)
        elif name in _CONNECTION_SPECIFIC:
            raise malformed(f"response: connection-specific field {name.decode('ascii')}")
    return int(fields[0][1]), tuple(regular), length


def parse_trailers(fields: list[Field]) -> Fields:
    """Check a trailer section (RFC 9113 section 8.1): no pseudo-header fields, no framing fields.

    Raises:
        RemoteProtocolError: The message is malformed.
    """
    if not are_valid_lines(fields):
        raise malformed("trailers: field name or value with forbidden bytes, or a pseudo-header field")
    for name, _value in fields:
        if name in _CONNECTION_SPECIFIC or name == b"content-length":
            raise malformed(f"trailers: field {name.decode('ascii')} is not allowed there", Reason.BAD_TRAILER)
    return tuple(fields)


def content_length(value: bytes, before: int | None) -> int:
    """Read a content-length (RFC 9110 section 8.6), refusing a second one even if equal (D16)."""
    if before is not None:
        raise malformed("content-length: stated more than once", Reason.BAD_LENGTH)
    if _LENGTH.fullmatch(value) is None:
        raise malformed("content-length: expected 1 to 18 digits", Reason.BAD_LENGTH)
    return int(value)


def _refuse_connection_specific(name: bytes, value: bytes) -> None:
    if name == b"te":
        if value.lower() != b"trailers":
            raise malformed("request: te may only say trailers")
        return
    raise malformed(f"request: connection-specific field {name.decode('ascii')}")
