"""Parse complete blocks: request heads, response heads, trailer sections. Pure functions, bytes in, heads out.

Theory of operation: the connection finds where a block ends (an empty line) and hands the exact bytes over. One
anchored regex reads the start line and one pass of `FIELD_LINE` splits and validates all field lines together. Only
names in a small set are looked at; their meaning goes into attributes of the head and the field itself is consumed.
Whatever the quick pass does not take is read line by line, which either finds a legal rarity (an underscore in a
name, trailing blanks) or says exactly what is wrong.

Results depend on the block and the limits alone, never on the connection: that is what makes heads cacheable.
"""

from __future__ import annotations

from typing import Final

from datum_router.errors import RemoteProtocolError
from datum_router.reasons import Reason
from datum_router_proxy.wire import grammar
from datum_router_proxy.wire.http1.events import (
    CONSUMED_FIELDS,
    FRAMING_CHUNKED,
    FRAMING_NONE,
    FRAMING_UNTIL_CLOSE,
    Field,
    FieldTuple,
    Framing,
    FramingKind,
    H1RequestHead,
    H1ResponseHead,
    TargetForm,
)
from datum_router_proxy.wire.http1.limits import Http1Limits
from datum_router_proxy.wire.hygiene import is_forbidden_trailer

KNOWN_METHODS: Final[dict[bytes, str]] = {
    name.encode(): name for name in ("GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PATCH", "TRACE")
}
"""Methods whose text is shared. Others that fit the grammar are passed on: a gateway does not judge them."""

REFUSED_METHODS: Final = frozenset({b"CONNECT"})
"""Methods the server role answers with 405: a plain CONNECT would make us an open tunnel (threat A20)."""

_REQUEST_CONSUMED: Final = CONSUMED_FIELDS
_RESPONSE_CONSUMED: Final = CONSUMED_FIELDS - {b"expect", b"host", b"te"}

_NO_NAMES: Final[frozenset[bytes]] = frozenset()
# (states close, states keep-alive, nominations) for the values nearly every peer sends
_CONNECTION_COMMON: Final[dict[bytes, tuple[bool, bool, frozenset[bytes]]]] = {
    b"keep-alive": (False, True, _NO_NAMES),
    b"close": (True, False, _NO_NAMES),
    b"upgrade": (False, False, frozenset({b"upgrade"})),
    b"keep-alive, upgrade": (False, True, frozenset({b"upgrade"})),
    b"te": (False, False, frozenset({b"te"})),
}


def parse_request_head(block: bytes, limits: Http1Limits) -> H1RequestHead:
    """Return the request head in `block`, which ends with its empty line and begins with the request line.

    Raises:
        RemoteProtocolError: 400, 405 (CONNECT), 414, 417, 431, 501 or 505, by RFC 9110 and RFC 9112 as narrowed by
            the threat rows A1 to A25.
    """
    match = grammar.REQUEST_LINE.match(block)
    if match is None:
        raise request_line_error(block)
    raw_method, target, minor = match.groups()
    if len(target) > limits.max_target_bytes:
        raise target_too_long(len(target), limits)
    if raw_method in REFUSED_METHODS:
        raise RemoteProtocolError(
            "http/1: method CONNECT is not served", reason=Reason.METHOD_NOT_ALLOWED, status_hint=405
        )
    lines, dropped = _split_fields(block, match.end(), limits.max_fields, limits.max_field_bytes, _head_error)

    fields: list[Field] = []
    consumed: list[Field] = []
    keep = fields.append
    for name, value in lines:
        lower = name.lower()
        if lower in _REQUEST_CONSUMED:
            consumed.append((lower, value))
        else:
            keep((lower, value))

    is_http10 = minor == b"0"
    hosts: list[bytes] = []
    lengths: list[bytes] = []
    codings: list[bytes] = []
    connection: list[bytes] = []
    expect: list[bytes] = []
    upgrade: list[bytes] = []
    te_trailers = False
    for name, value in consumed:
        if name == b"host":
            hosts.append(value)
        elif name == b"connection":
            connection.append(value)
        elif name == b"content-length":
            lengths.append(value)
        elif name == b"transfer-encoding":
            codings.append(value)
        elif name == b"expect":
            expect.append(value)
        elif name == b"te":
            te_trailers = te_trailers or _mentions_trailers(value)
        elif name == b"upgrade":
            upgrade.append(value)

    if codings or lengths:
        framing = _request_framing(codings, lengths, is_http10, block)
    else:
        framing = FRAMING_NONE

    form, path_query, authority = _read_target(raw_method, target, hosts)

    keep_alive = not is_http10
    nominations = _NO_NAMES
    protocols: tuple[bytes, ...] = ()
    if connection:
        close, persist, nominations = _read_connection(connection)
        keep_alive = not close and (persist or keep_alive)
        if upgrade and not is_http10 and b"upgrade" in nominations:
            protocols = _read_tokens(upgrade)

    expect_continue = False
    if expect:
        # RFC 9110 section 10.1.1: HTTP/1.0 peers cannot mean it; anything but 100-continue is 417 (threat A15)
        if len(expect) > 1 or expect[0].lower() != b"100-continue":
            raise RemoteProtocolError(
                "http/1: expect is not exactly one 100-continue", reason=Reason.BAD_EXPECT, status_hint=417
            )
        has_body = framing.kind is FramingKind.CHUNKED or framing.length > 0
        expect_continue = has_body and not is_http10

    return H1RequestHead(
        method=KNOWN_METHODS.get(raw_method) or raw_method.decode("ascii"),
        target=target,
        form=form,
        path_query=path_query,
        minor_version=0 if is_http10 else 1,
        authority=authority,
        fields=tuple(fields),
        framing=framing,
        keep_alive=keep_alive,
        expect_continue=expect_continue,
        te_trailers=te_trailers,
        upgrade=protocols,
        nominations=nominations,
        dropped_fields=dropped,
    )


def parse_response_head(block: bytes, limits: Http1Limits) -> H1ResponseHead:
    """Return the response head in `block`, framed as the answer to a method other than HEAD (RFC 9112 section 6.3).

    Raises:
        RemoteProtocolError: 502 whatever is wrong: a bad upstream is never the client's fault (threat A17).
    """
    match = grammar.STATUS_LINE.match(block)
    if match is None:
        raise status_line_error(block)
    minor, code, phrase = match.groups()
    if match.end() > limits.max_field_bytes:
        raise _bad(Reason.HEAD_TOO_LARGE, f"status line of {match.end()} bytes, at most {limits.max_field_bytes}", 502)
    lines, dropped = _split_fields(block, match.end(), limits.max_fields, limits.max_field_bytes, _response_error)

    fields: list[Field] = []
    lengths: list[bytes] = []
    codings: list[bytes] = []
    connection: list[bytes] = []
    upgrade: list[bytes] = []
    keep = fields.append
    for name, value in lines:
        lower = name.lower()
        if lower not in _RESPONSE_CONSUMED:
            keep((lower, value))
        elif lower == b"content-length":
            lengths.append(value)
        elif lower == b"transfer-encoding":
            codings.append(value)
        elif lower == b"connection":
            connection.append(value)
        elif lower == b"upgrade":
            upgrade.append(value)

    status = int(code)
    is_http10 = minor == b"0"
    content_length: int | None = None
    if codings:
        if lengths:
            raise _bad(Reason.LENGTH_CONFLICT, "response with content-length and transfer-encoding", 502)
        if is_http10:
            raise _bad(Reason.BAD_TRANSFER_ENCODING, "transfer-encoding in an http/1.0 response", 502)
        _require_chunked(codings, block, 502)
        framing = FRAMING_CHUNKED
    elif lengths:
        content_length = _one_length(lengths, 502)
        framing = Framing(FramingKind.LENGTH, content_length)
    else:
        framing = FRAMING_UNTIL_CLOSE
    if status < 200 or status in (204, 304):
        framing = FRAMING_NONE
        if status != 304:
            content_length = None  # RFC 9110 section 8.6: not allowed in 1xx and 204, so it means nothing

    keep_alive = not is_http10
    nominations = _NO_NAMES
    protocols: tuple[bytes, ...] = ()
    if connection:
        close, persist, nominations = _read_connection(connection)
        keep_alive = not close and (persist or keep_alive)
        if upgrade and b"upgrade" in nominations:
            protocols = _read_tokens(upgrade)

    return H1ResponseHead(
        status=status,
        reason=phrase or b"",
        minor_version=0 if is_http10 else 1,
        fields=tuple(fields),
        framing=framing,
        content_length=content_length,
        keep_alive=keep_alive,
        upgrade=protocols,
        nominations=nominations,
        dropped_fields=dropped,
    )


def parse_trailers(block: bytes, limits: Http1Limits, status_hint: int) -> FieldTuple:
    """Return the trailer fields in `block` (it ends with its empty line), unsafe names left out (RFC 9110 6.5.1).

    Raises:
        RemoteProtocolError: A line is not a field line, or there are too many (431 for clients, threat A13).
    """

    fail = _trailer_error if status_hint == 400 else _response_trailer_error
    lines, _ = _split_fields(block, 0, limits.max_trailer_fields, limits.max_trailer_bytes, fail)
    lowered = ((name.lower(), value) for name, value in lines)
    return tuple(field for field in lowered if not is_forbidden_trailer(field[0]))


# --- start lines -----------------------------------------------------------------------------------------------------


def request_line_error(block: bytes) -> RemoteProtocolError:
    """Return the error that says what is wrong with the request line at the start of `block` (threat A20)."""
    end = block.find(b"\n")
    line = block[: end + 1] if end >= 0 else block
    if not line.endswith(b"\r\n") or b"\r" in line[:-2]:
        return _bad(Reason.BAD_LINE_END, "request line holds a bare CR or LF", 400)
    parts = line[:-2].split(b" ")
    if len(parts) != 3 or not all(parts):
        return _bad(
            Reason.BAD_REQUEST_LINE, f"request line has {len(parts)} parts, expected method, target, version", 400
        )
    method, target, version = parts
    if not grammar.METHOD.fullmatch(method):
        return _bad(Reason.BAD_METHOD, f"method is not an upper-case token of {grammar.MAX_METHOD_BYTES} bytes", 400)
    number = grammar.HTTP_VERSION.fullmatch(version)
    if number is None or number[1] == b"0":
        return _bad(Reason.BAD_VERSION, "version is not HTTP/1.0 or HTTP/1.1", 400)
    if number[1] != b"1":
        return _bad(Reason.BAD_VERSION, "major version other than 1", 505)
    if not grammar.TARGET.fullmatch(target):
        return _bad(Reason.BAD_TARGET, "request-target holds a fragment, control or non-ascii byte", 400)
    return _bad(Reason.BAD_REQUEST_LINE, "malformed request line", 400)


def status_line_error(block: bytes) -> RemoteProtocolError:
    """Return the error for a status line that `STATUS_LINE` does not take."""
    end = block.find(b"\n")
    line = block[: end + 1] if end >= 0 else block
    if not line.endswith(b"\r\n") or b"\r" in line[:-2]:
        return _bad(Reason.BAD_LINE_END, "status line holds a bare CR or LF", 502)
    return _bad(Reason.BAD_STATUS_LINE, "status line is not HTTP/1.x, a code 100 to 599 and a phrase", 502)


def target_too_long(size: int, limits: Http1Limits) -> RemoteProtocolError:
    """Return the 414 error for a request-target of `size` bytes or more."""
    return _bad(Reason.TARGET_TOO_LONG, f"target of {size} bytes, at most {limits.max_target_bytes}", 414)


def _read_target(method: bytes, target: bytes, hosts: list[bytes]) -> tuple[TargetForm, bytes, bytes]:
    """Return (form, path and query, canonical authority), RFC 9112 sections 3.2 and 3.3."""
    if len(hosts) > 1:
        raise _bad(Reason.BAD_HOST, f"{len(hosts)} host fields, expected one", 400)
    host = hosts[0] if hosts else None
    if host is not None and not grammar.AUTHORITY.fullmatch(host):
        raise _bad(Reason.BAD_HOST, "host is not a name or address with an optional port 1 to 65535", 400)
    if target.startswith(b"/"):
        form, path_query, authority = TargetForm.ORIGIN, target, host
    elif target == b"*":
        if method != b"OPTIONS":
            raise _bad(Reason.BAD_TARGET, "asterisk-form is for OPTIONS only", 400)
        form, path_query, authority = TargetForm.ASTERISK, target, host
    else:
        match = grammar.ABSOLUTE_FORM.fullmatch(target)
        if match is None:
            raise _bad(Reason.BAD_TARGET, "request-target is neither a path nor an http or https uri", 400)
        authority, rest = match.groups()
        if not grammar.AUTHORITY.fullmatch(authority):
            raise _bad(Reason.BAD_HOST, "authority of the request-target is not host and optional port", 400)
        form, path_query = TargetForm.ABSOLUTE, rest or b"/"
        if path_query.startswith(b"?"):
            path_query = b"/" + path_query
        if host is None:
            authority = None  # RFC 9112 section 3.2: Host is required whatever the form
    if authority is None:
        raise _bad(Reason.BAD_HOST, "host field is missing", 400)
    return form, path_query, authority.lower()


# --- field lines -----------------------------------------------------------------------------------------------------


class _Fail:
    """Make errors of one block kind: a callable, so that the quick pass stays free of closures."""

    __slots__ = ("_limit_status", "_status", "_syntax", "_what")

    def __init__(self, what: str, status: int, limit_status: int, syntax: Reason = Reason.BAD_HEADER) -> None:
        self._what = what
        self._syntax = syntax
        self._status = status
        self._limit_status = limit_status

    def __call__(self, reason: Reason, text: str) -> RemoteProtocolError:
        too_much = reason is Reason.TOO_MANY_FIELDS or reason is Reason.HEAD_TOO_LARGE
        if reason is Reason.BAD_HEADER:
            reason = self._syntax
        return _bad(reason, f"{self._what}: {text}", self._limit_status if too_much else self._status)


_head_error: Final = _Fail("request head", 400, 431)
_response_error: Final = _Fail("response head", 502, 502)
_trailer_error: Final = _Fail("trailer section", 400, 431, Reason.BAD_TRAILER)
_response_trailer_error: Final = _Fail("trailer section", 502, 502, Reason.BAD_TRAILER)


def _split_fields(
    block: bytes, start: int, max_fields: int, max_field_bytes: int, fail: _Fail
) -> tuple[list[Field], int]:
    """Return the field lines of `block[start:]` (names as they came) and how many with underscores were dropped."""
    end = len(block) - 2
    lines: list[Field] = grammar.FIELD_LINE.findall(block, start, end)
    count = block.count(b"\n", start, end)
    if count > max_fields:
        raise fail(Reason.TOO_MANY_FIELDS, f"{count} fields, at most {max_fields}")
    if end - start > max_field_bytes:
        longest = max(map(len, block[start:end].split(b"\n")))
        if longest + 1 > max_field_bytes:
            raise fail(Reason.HEAD_TOO_LARGE, f"field line of {longest + 1} bytes, at most {max_field_bytes}")
    if len(lines) == count:
        return lines, 0
    return _split_slowly(block[start:end], fail)


def _split_slowly(section: bytes, fail: _Fail) -> tuple[list[Field], int]:
    """Read line by line what the quick pass did not take: say what is wrong, or allow the two legal rarities."""
    lines: list[Field] = []
    dropped = 0
    for line in section.split(b"\r\n")[:-1]:
        match = grammar.FIELD_LINE_ANY.fullmatch(line)
        if match is None:
            raise _field_line_error(line, fail)
        name, value = match.groups()
        if b"_" in name:
            dropped += 1  # threat A24: some servers read `content_length` as `content-length`
        else:
            lines.append((name, value.rstrip(b" \t")))
    return lines, dropped


def _field_line_error(line: bytes, fail: _Fail) -> RemoteProtocolError:
    if b"\n" in line or b"\r" in line:
        return fail(Reason.BAD_LINE_END, "bare CR or LF")
    if line[:1] in (b" ", b"\t", b""):
        return fail(Reason.BAD_HEADER, "folded line or white space before a field name")
    name, colon, _ = line.partition(b":")
    if not colon:
        return fail(Reason.BAD_HEADER, "field line without a colon")
    if not name:
        return fail(Reason.BAD_HEADER, "empty field name")
    if name[-1:] in (b" ", b"\t"):
        return fail(Reason.BAD_HEADER, "white space before the colon")
    if not grammar.TOKEN.fullmatch(name):
        return fail(Reason.BAD_HEADER, "field name is not a token")
    return fail(Reason.BAD_HEADER, "control byte in a field value")


# --- meaning of consumed fields -------------------------------------------------------------------------------------


def _request_framing(codings: list[bytes], lengths: list[bytes], is_http10: bool, block: bytes) -> Framing:
    """Decide how the request body ends, refusing whatever two parsers could read differently (RFC 9112 6.1, 6.3)."""
    if not codings:
        return Framing(FramingKind.LENGTH, _one_length(lengths, 400))
    if lengths:
        raise _bad(Reason.LENGTH_CONFLICT, "request with content-length and transfer-encoding", 400)
    if is_http10:
        raise _bad(Reason.BAD_TRANSFER_ENCODING, "transfer-encoding in an http/1.0 request", 400)
    _require_chunked(codings, block, 400)
    return FRAMING_CHUNKED


def _one_length(lengths: list[bytes], status_hint: int) -> int:
    if len(lengths) > 1:
        raise _bad(Reason.BAD_LENGTH, f"{len(lengths)} content-length fields, expected one", status_hint)
    length = grammar.parse_content_length(lengths[0])
    if length is None:
        raise _bad(Reason.BAD_LENGTH, "content-length is not 1 to 18 decimal digits", status_hint)
    return length


def _require_chunked(codings: list[bytes], block: bytes, status_hint: int) -> None:
    """Return if the one Transfer-Encoding says `chunked` and nothing else, written without odd white space (A2)."""
    if len(codings) == 1:
        coding = codings[0].lower()
        if coding == b"chunked":
            if grammar.CHUNKED_FIELD_LINE.search(block):
                return
        elif grammar.TRANSFER_CODING.fullmatch(coding):
            hint = 501 if status_hint == 400 else status_hint
            raise _bad(Reason.UNKNOWN_TRANSFER_CODING, "transfer coding other than chunked", hint)
    raise _bad(Reason.BAD_TRANSFER_ENCODING, "transfer-encoding is not exactly one chunked", status_hint)


def _read_connection(values: list[bytes]) -> tuple[bool, bool, frozenset[bytes]]:
    """Return (close, keep-alive, other nominations). An element that is no token closes: it might have been close."""
    if len(values) == 1:
        known = _CONNECTION_COMMON.get(values[0].lower())
        if known is not None:
            return known
    close = persist = False
    names: set[bytes] = set()
    for value in values:
        for part in value.split(b","):
            name = part.strip(b" \t").lower()
            if name == b"close":
                close = True
            elif name == b"keep-alive":
                persist = True
            elif grammar.TOKEN.fullmatch(name):
                names.add(name)
            elif name:
                close = True
    return close, persist, frozenset(names)


def _read_tokens(values: list[bytes]) -> tuple[bytes, ...]:
    """Return the lower-case elements of comma lists, empty ones left out (RFC 9110 section 5.6.1.2)."""
    parts = (part.strip(b" \t").lower() for value in values for part in value.split(b","))
    return tuple(part for part in parts if part)


def _mentions_trailers(value: bytes) -> bool:
    return any(part.strip(b" \t").lower() == b"trailers" for part in value.split(b","))


def _bad(reason: Reason, text: str, status_hint: int) -> RemoteProtocolError:
    return RemoteProtocolError(f"http/1: {text}", reason=reason, status_hint=status_hint)
