"""Normalise request targets and authorities before anything reads them: one text is matched, forwarded and logged.

Theory of operation. Two readers that disagree on what a path means are a hole: the router authorises one resource
and the upstream serves another. So a target is brought into one canonical form here (RFC 3986 section 6.2.2), or
refused, and only the canonical form goes on. What cannot be made unambiguous is refused rather than guessed:
encoded slashes, backslashes, control bytes, climbing above the root.

Canonical path: begins with `/`; no `//`; no `.` or `..` segment; no percent-encoded unreserved character; hex digits
of escapes in upper case; printable ASCII that RFC 3986 does not allow in a path (`"<>[]^` and the like) is
percent-encoded. An escape that remains is text: it is never decoded a second time, so `%252e` stays `%252e`.

Normalising is idempotent, linear in the length, and knows nothing of methods, routes or limits: the wire engines
bound the length (414) before they call, and they alone know whether `*` is allowed (RFC 9112 section 3.2.4).
"""

from __future__ import annotations

import ipaddress
import re

import msgspec

from datum_router.reasons import Reason

MAX_HOST_CHARS = 253
"""Longest host name, without the trailing dot (RFC 1035 section 2.3.4)."""

# pchar    = unreserved / pct-encoded / sub-delims / ":" / "@"                     (RFC 3986 section 3.3)
# query    = *( pchar / "/" / "?" ), here with every visible ASCII byte but "#", since clients send them raw
# The path of a target that is canonical already: no escape, no segment that begins with a dot, no empty segment.
# Quantifiers are possessive, so that the check is linear and never backtracks.
_SEGMENT_FIRST = rb"[A-Za-z0-9\-_~!$&'()*+,;=:@]"
_SEGMENT_REST = rb"[A-Za-z0-9\-._~!$&'()*+,;=:@]"
_CANONICAL_TARGET = re.compile(
    rb"((?:/" + _SEGMENT_FIRST + _SEGMENT_REST + rb"*+)*+/?+)(?<=.)(?:\?([!-\"$-~]*+))?\Z", re.DOTALL
)
_CANONICAL_PATH = re.compile(r"(?=/)(?:/" + _SEGMENT_FIRST.decode() + _SEGMENT_REST.decode() + r"*+)*+/?+\Z")
_QUERY = re.compile(rb"[!-\"$-~]*+\Z")
_ESCAPE = re.compile(rb"%([0-9A-Fa-f]{2})")
_BAD_ESCAPE = re.compile(rb"%(?![0-9A-Fa-f]{2})")
_NOT_VISIBLE = re.compile(rb"[^!-~]")
_NOT_PCHAR = re.compile(rb"[\"<>\[\]^`{|}]")
_SLASHES = re.compile(rb"//+")
_DOT_SEGMENT = re.compile(rb"/\.")
# Some upstreams cut a segment at ";" before they resolve dots: `/x/..;/admin` climbs there and nowhere else.
_DOT_SEGMENT_WITH_PARAMETERS = re.compile(rb"/\.{1,2}(?:;|%3B)")

_UNRESERVED = frozenset(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~")

# host of an authority: dot-separated labels of letters, digits, "-" and "_" (RFC 1123, RFC 2782), or IPv6 in brackets.
# Deliberately narrower than reg-name: sub-delims and escapes in a host serve nobody but attackers.
_LABELS = r"[a-zA-Z0-9_\-]{1,63}(?:\.[a-zA-Z0-9_\-]{1,63})*+\.?+"
_AUTHORITY = re.compile(r"(" + _LABELS + r"|\[[0-9a-fA-F:.]{2,45}\])(?::([0-9]{1,5}))?\Z")
MAX_PORT = 65535


class Normalized(msgspec.Struct, frozen=True, gc=False):
    """A canonical target. `query` is what follows the first `?`, unchanged; None if there was no `?`."""

    path: str
    query: str | None = None

    @property
    def target(self) -> str:
        """Return path and query as they go upstream."""
        return self.path if self.query is None else f"{self.path}?{self.query}"


class BadPath(msgspec.Struct, frozen=True, gc=False):
    """A target that is refused with 400. `detail` says what was found; it holds no client text."""

    detail: str
    reason: Reason = Reason.BAD_PATH


class BadHost(msgspec.Struct, frozen=True, gc=False):
    """An authority that is refused with 400. `detail` says what was found; it holds no client text."""

    detail: str
    reason: Reason = Reason.BAD_HOST


class Authority(msgspec.Struct, frozen=True, gc=False):
    """A canonical authority.

    Attributes:
        host: Lower-case, without trailing dot; IPv6 compressed and in brackets.
        port: 1 to 65535, None if none was given.
    """

    host: str
    port: int | None = None

    @property
    def text(self) -> str:
        """Return what goes upstream as Host or :authority."""
        return self.host if self.port is None else f"{self.host}:{self.port}"


def normalize_target(path_query: bytes) -> Normalized | BadPath:
    """Return the canonical form of an origin-form target, or why it is refused.

    `*` comes back unchanged; the caller allows it for OPTIONS only. The query is checked for bytes that may not
    stand in a request line and is otherwise left alone: a lone `%` in a query is common and harmless there.

    Sources: RFC 3986 sections 5.2.4 and 6.2.2, RFC 9112 section 3.2.1.
    """
    canonical = _CANONICAL_TARGET.match(path_query)
    if canonical is not None:
        path, query = canonical.groups()
        return Normalized(path.decode("ascii"), None if query is None else query.decode("ascii"))
    return _normalize_slowly(path_query)


def _normalize_slowly(target: bytes) -> Normalized | BadPath:
    if target == b"*":
        return Normalized("*")
    path, mark, query = target.partition(b"?")
    if not path.startswith(b"/"):
        return BadPath("the path does not begin with a slash")
    if b"#" in target:
        return BadPath("a fragment")
    if _NOT_VISIBLE.search(path):
        return BadPath("a blank, control or non-ASCII byte in the path")
    if mark and not _QUERY.match(query):
        return BadPath("a blank, control or non-ASCII byte in the query")
    if b"\\" in path:
        return BadPath("a backslash in the path")
    if b"%" in path:
        if _BAD_ESCAPE.search(path):
            return BadPath("a percent sign without two hex digits in the path")
        problem = _bad_escape(path)
        if problem:
            return BadPath(problem)
        path = _ESCAPE.sub(_canonical_escape, path)
    path = _NOT_PCHAR.sub(_percent_encode, path)
    if b"//" in path:
        path = _SLASHES.sub(b"/", path)
    if _DOT_SEGMENT.search(path):
        if _DOT_SEGMENT_WITH_PARAMETERS.search(path):
            return BadPath("a dot segment with parameters")
        resolved = _remove_dot_segments(path)
        if resolved is None:
            return BadPath("a path that climbs above the root")
        path = resolved
    return Normalized(path.decode("ascii"), query.decode("ascii") if mark else None)


def _bad_escape(path: bytes) -> str:
    """Name the escape that may not stand in a path, or return an empty string."""
    for match in _ESCAPE.finditer(path):
        octet = int(match[1], 16)
        if octet < 0x20 or octet == 0x7F:
            return "an encoded control byte in the path"
        if octet == 0x2F:
            return "an encoded slash in the path"
        if octet == 0x5C:
            return "an encoded backslash in the path"
    return ""


def _canonical_escape(match: re.Match[bytes]) -> bytes:
    octet = int(match[1], 16)
    return bytes((octet,)) if octet in _UNRESERVED else match[0].upper()


def _percent_encode(match: re.Match[bytes]) -> bytes:
    return b"%%%02X" % match[0][0]


def _remove_dot_segments(path: bytes) -> bytes | None:
    """Resolve `.` and `..` segments (RFC 3986 section 5.2.4), or return None if the path leaves the root."""
    kept: list[bytes] = []
    segments = path.split(b"/")[1:]
    last = len(segments) - 1
    for position, segment in enumerate(segments):
        if segment == b"..":
            if not kept:
                return None
            kept.pop()
        elif segment != b".":
            kept.append(segment)
            continue
        if position == last:  # `/a/..` and `/a/.` name a directory
            kept.append(b"")
    return b"/" + b"/".join(kept)


def is_canonical(path: str) -> bool:
    """Tell whether a path is in canonical form already; False may be a false alarm (an escape, a segment `.x`)."""
    return _CANONICAL_PATH.match(path) is not None


def normalize_rule_path(text: str) -> str | BadPath:
    """Return the canonical form of a path written in a manifest (exact path, prefix, replacement), or why it is bad.

    Manifests may hold non-ASCII characters and blanks; they are percent-encoded as UTF-8 first, as clients do.
    `?` and `#` are refused: conditions on the query have their own field.
    """
    if is_canonical(text):
        return text
    if "?" in text or "#" in text:
        return BadPath("a query or fragment in a path")
    if text.isascii() and text.isprintable() and " " not in text:
        encoded = text.encode("ascii")  # what follows would change nothing
    else:
        encoded = _encode_rule_path(text)
    normalized = normalize_target(encoded)
    return normalized if isinstance(normalized, BadPath) else normalized.path


def _encode_rule_path(text: str) -> bytes:
    return "".join(
        char
        if "!" <= char <= "~" or char < " " or char == "\x7f"
        else "".join(f"%{octet:02X}" for octet in _utf8(char))
        for char in text
    ).encode("ascii")


def _utf8(char: str) -> bytes:
    return char.encode("utf-8", "replace")


def parse_authority(authority: bytes | str) -> Authority | BadHost:
    """Return the canonical form of a Host or :authority value, or why it is refused with 400.

    Refused: empty, userinfo, non-ASCII (IDN must come as `xn--`), escapes, empty labels, zone ids, an empty port or
    one outside 1 to 65535. Sources: RFC 3986 section 3.2, RFC 9110 sections 4.2 and 7.2.
    """
    if isinstance(authority, bytes):
        authority = authority.decode("latin-1")
    match = _AUTHORITY.match(authority)
    if match is None:
        return BadHost(_why_bad(authority))
    host, port_text = match.groups()
    port = None
    if port_text is not None:
        port = int(port_text)
        if not 1 <= port <= MAX_PORT:
            return BadHost("a port outside 1 to 65535")
    if host[0] == "[":
        try:
            return Authority(f"[{ipaddress.IPv6Address(host[1:-1]).compressed}]", port)
        except ValueError:
            return BadHost("a malformed IPv6 address")
    host = host.lower()
    if host[-1] == ".":
        host = host[:-1]
    if len(host) > MAX_HOST_CHARS:
        return BadHost(f"a host of more than {MAX_HOST_CHARS} characters")
    return Authority(host, port)


def canonical_host(authority: bytes | str) -> str | BadHost:
    """Return the host of an authority as the matcher compares it, or why the authority is refused with 400."""
    parsed = parse_authority(authority)
    return parsed if isinstance(parsed, BadHost) else parsed.host


def _why_bad(authority: str) -> str:
    if not authority:
        return "an empty host"
    if not authority.isascii():
        return "a non-ASCII byte in the host"
    if "@" in authority:
        return "user information in the authority"
    if authority[0] == "[":
        return "a malformed IPv6 address or port"
    if authority[0] == "." or ".." in authority:
        return "an empty label in the host"
    host, colon, port = authority.partition(":")
    if colon and _AUTHORITY.match(host):
        return "a malformed port" if port else "an empty port"
    return "a character or label that may not stand in a host"
