"""Serialise heads, chunks and trailers. The one place where HTTP/1.1 bytes of ours come from.

Every field passes `encode_fields`, which refuses anything that could end a line early (threat A25): the emitted block
must consist of value bytes and of exactly as many CRLFs as there are fields. Framing and connection fields are never
taken from the caller's list; they are written from typed arguments.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from datum_router.errors import LocalProtocolError
from datum_router.reasons import Reason
from datum_router_proxy.wire import grammar
from datum_router_proxy.wire.http1.events import Field, Framing, FramingKind

LAST_CHUNK: Final = b"0\r\n\r\n"

REASON_PHRASES: Final[dict[int, bytes]] = {
    100: b"Continue",
    101: b"Switching Protocols",
    102: b"Processing",
    103: b"Early Hints",
    200: b"OK",
    201: b"Created",
    202: b"Accepted",
    203: b"Non-Authoritative Information",
    204: b"No Content",
    205: b"Reset Content",
    206: b"Partial Content",
    207: b"Multi-Status",
    208: b"Already Reported",
    226: b"IM Used",
    300: b"Multiple Choices",
    301: b"Moved Permanently",
    302: b"Found",
    303: b"See Other",
    304: b"Not Modified",
    305: b"Use Proxy",
    307: b"Temporary Redirect",
    308: b"Permanent Redirect",
    400: b"Bad Request",
    401: b"Unauthorized",
    402: b"Payment Required",
    403: b"Forbidden",
    404: b"Not Found",
    405: b"Method Not Allowed",
    406: b"Not Acceptable",
    407: b"Proxy Authentication Required",
    408: b"Request Timeout",
    409: b"Conflict",
    410: b"Gone",
    411: b"Length Required",
    412: b"Precondition Failed",
    413: b"Content Too Large",
    414: b"URI Too Long",
    415: b"Unsupported Media Type",
    416: b"Range Not Satisfiable",
    417: b"Expectation Failed",
    421: b"Misdirected Request",
    422: b"Unprocessable Content",
    423: b"Locked",
    424: b"Failed Dependency",
    425: b"Too Early",
    426: b"Upgrade Required",
    428: b"Precondition Required",
    429: b"Too Many Requests",
    431: b"Request Header Fields Too Large",
    451: b"Unavailable For Legal Reasons",
    500: b"Internal Server Error",
    501: b"Not Implemented",
    502: b"Bad Gateway",
    503: b"Service Unavailable",
    504: b"Gateway Timeout",
    505: b"HTTP Version Not Supported",
    506: b"Variant Also Negotiates",
    507: b"Insufficient Storage",
    508: b"Loop Detected",
    511: b"Network Authentication Required",
}
"""Reason phrases of RFC 9110 section 15 and the IANA registry."""

_STATUS_LINES: Final[dict[int, bytes]] = {
    code: b"HTTP/1.1 %d %b\r\n" % (code, phrase) for code, phrase in REASON_PHRASES.items()
}

WRITTEN_FIELDS: Final = frozenset(
    {
        b"connection",
        b"content-length",
        b"host",
        b"keep-alive",
        b"proxy-connection",
        b"transfer-encoding",
        b"upgrade",
    }
)
"""Names refused in field lists, because the writer states them from typed arguments."""

_TE_TRAILERS: Final = (b"te", b"trailers")
_TE_LINES: Final = b"te: trailers\r\nconnection: te\r\n"
_REQUEST_REFUSED: Final = WRITTEN_FIELDS | {b"te"}
_RESPONSE_REFUSED: Final = WRITTEN_FIELDS - {b"host"}
_TRAILER_REFUSED: Final = WRITTEN_FIELDS | {b"trailer", b"te"}


def encode_fields(fields: Sequence[Field], refused: frozenset[bytes]) -> bytes:
    """Return the field lines, each with its CRLF.

    Raises:
        LocalProtocolError: 500 `bad_filter_output`: a name is no lower-case token or one of `refused`, or a value
            holds CR, LF, NUL or another control byte. Nothing of the message may be sent then.
    """
    if not fields:
        return b""
    names = [field[0] for field in fields]
    block = b"\r\n".join(map(b": ".join, fields)) + b"\r\n"
    count = len(names)
    if (
        block.translate(None, grammar.VALUE_BYTES) != b"\r\n" * count
        or b"".join(names).translate(None, grammar.LOWER_TOKEN_BYTES)
        or not all(names)
        or not refused.isdisjoint(names)
    ):
        raise _bad_output(fields, refused)
    return block


def _bad_output(fields: Sequence[Field], refused: frozenset[bytes]) -> LocalProtocolError:
    """Say which field is wrong, by position and name if that can be printed; never by value."""
    for index, (name, value) in enumerate(fields):
        if not name or name.translate(None, grammar.LOWER_TOKEN_BYTES):
            return _local(f"field {index}: name is not a lower-case token")
        if value.translate(None, grammar.VALUE_BYTES):
            return _local(f"field {index} ({name.decode('ascii')}): control byte in the value")
        if name in refused:
            return _local(f"field {index} ({name.decode('ascii')}): written by the engine, not by a field list")
    return _local("field list is not well formed")


def _local(text: str) -> LocalProtocolError:
    return LocalProtocolError(f"http/1: {text}", reason=Reason.BAD_FILTER_OUTPUT, status_hint=500)


def framing_line(framing: Framing) -> bytes:
    """Return the field line that states `framing`; empty for NONE and UNTIL_CLOSE."""
    if framing.kind is FramingKind.LENGTH:
        return b"content-length: %d\r\n" % framing.length
    if framing.kind is FramingKind.CHUNKED:
        return b"transfer-encoding: chunked\r\n"
    return b""


def response_framing_lines(status: int, framing: Framing, content_length: int | None, *, is_head: bool) -> bytes:
    """Return the framing lines of a final response (RFC 9110 section 8.6, RFC 9112 section 6.1).

    204 states nothing; 304 and answers to HEAD may state what GET would have been told; NONE states length 0.
    """
    if status == 204:
        return b""
    if is_head or status == 304:
        if framing.kind is FramingKind.LENGTH:
            return framing_line(framing)
        if content_length is not None:
            return b"content-length: %d\r\n" % content_length
        return framing_line(framing) if is_head and status != 304 else b""
    if framing.kind is FramingKind.NONE:
        return b"content-length: 0\r\n"
    return framing_line(framing)


def encode_request_head(
    method: str,
    target: bytes,
    host: bytes,
    fields: Sequence[Field],
    *,
    framing: Framing,
    upgrade: bytes | None,
    close: bool,
) -> bytes:
    """Return a request head: request line, Host first (RFC 9110 section 7.2), framing, connection, other fields.

    `te: trailers` may stand in `fields`; it is nominated in Connection as RFC 9110 section 10.1.4 asks.
    """
    raw_method = method.encode("ascii", "replace")
    if not grammar.METHOD.fullmatch(raw_method) or raw_method == b"CONNECT":
        raise _local("method is not an upper-case token, or is CONNECT")
    if not grammar.ORIGIN_FORM.fullmatch(target) and not (target == b"*" and raw_method == b"OPTIONS"):
        raise _local("target is not origin-form")
    if not grammar.AUTHORITY.fullmatch(host):
        raise _local("host is not a name or address with an optional port")
    options: list[bytes] = []
    extra = framing_line(framing)
    if upgrade is not None:
        if not grammar.TOKEN.fullmatch(upgrade):
            raise _local("upgrade is not a token")
        options.append(b"upgrade")
        extra += b"upgrade: " + upgrade + b"\r\n"
    te = [field for field in fields if field[0] == b"te"]
    if te:
        if len(te) > 1 or te[0][1] != b"trailers":
            raise _local("te may only be one trailers")
        fields = [field for field in fields if field[0] != b"te"]
        options.append(b"te")
        extra += b"te: trailers\r\n"
    if close:
        options.append(b"close")
    if options:
        extra += b"connection: " + b", ".join(options) + b"\r\n"
    return b"%b %b HTTP/1.1\r\nhost: %b\r\n%b%b\r\n" % (
        raw_method,
        target,
        host,
        extra,
        encode_fields(fields, _REQUEST_REFUSED),
    )


def encode_request_fields(
    host: bytes, before: Sequence[Field], after: Sequence[Field], *, name: bytes, framing: Framing
) -> tuple[bytes, bytes]:
    """Return what `encode_request_head` would write behind the request line, around the value of a field.

    Args:
        before, after: Fields in front of it and behind it; `te: trailers` may stand behind it only.
        name: Of the field, whose value the caller makes: a lower-case token.

    Raises:
        LocalProtocolError: As `encode_request_head`.
    """
    if not grammar.AUTHORITY.fullmatch(host):
        raise _local("host is not a name or address with an optional port")
    extra = framing_line(framing)
    if _TE_TRAILERS in after:
        after = [field for field in after if field != _TE_TRAILERS]
        extra += _TE_LINES
    head = b"host: %b\r\n%b%b%b: " % (host, extra, encode_fields(before, _REQUEST_REFUSED), name)
    return head, b"\r\n%b\r\n" % encode_fields(after, _REQUEST_REFUSED)


def encode_response_head(status: int, reason: bytes | None, fields: Sequence[Field], extra: bytes) -> bytes:
    """Return a response head; `extra` are field lines of the engine, each with CRLF.

    The registered phrase is used for a registered status, whatever `reason` says: phrases carry no meaning and
    are one place less for foreign text.
    """
    line = _STATUS_LINES.get(status)
    if line is None:
        if not 100 <= status <= 599:
            raise _local(f"status {status} is not between 100 and 599")
        phrase = reason or b""
        if not grammar.REASON_PHRASE.fullmatch(phrase):
            raise _local("reason phrase holds a control byte")
        line = b"HTTP/1.1 %d %b\r\n" % (status, phrase)
    return b"%b%b%b\r\n" % (line, extra, encode_fields(fields, _RESPONSE_REFUSED))


def encode_chunk(data: bytes) -> bytes:
    """Return one chunk; `data` must not be empty, for an empty chunk would end the body."""
    return b"%x\r\n%b\r\n" % (len(data), data)


def encode_last_chunk(trailers: Sequence[Field]) -> bytes:
    """Return the last chunk with the trailer section (RFC 9112 section 7.1.2)."""
    if not trailers:
        return LAST_CHUNK
    return b"0\r\n%b\r\n" % encode_fields(trailers, _TRAILER_REFUSED)
