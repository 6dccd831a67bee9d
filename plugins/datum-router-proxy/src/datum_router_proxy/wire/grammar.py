"""Every regular expression that touches header bytes, each beside the ABNF rule it implements.

Rules of this module:

- Patterns work on bytes and are anchored: they are used with `fullmatch`, with `match` at a known start and an
  explicit end, or (field lines only) by counting full lines, see `FIELD_LINE`. `$` is never used, because it also
  matches before a final newline.
- Quantifiers are possessive (`*+`, `++`) or bounded, and no two alternatives share a first byte, so matching is
  linear: there is nothing to backtrack into.
- HTTP/1 and HTTP/2 share the same character classes, so what one side accepts the other can express.
"""

from __future__ import annotations

import re
from typing import Final

# tchar = "!" / "#" / "$" / "%" / "&" / "'" / "*" / "+" / "-" / "." / "^" / "_" / "`" / "|" / "~" / DIGIT / ALPHA
# RFC 9110 section 5.6.2. The underscore stands apart because names that hold one are dropped (threat A24).
_TCHAR_NO_UNDERSCORE: Final = rb"!#$%&'*+\-.^`|~0-9A-Za-z"
_TCHAR: Final = _TCHAR_NO_UNDERSCORE + rb"_"
_TCHAR_UPPER: Final = rb"!#$%&'*+\-.^_`|~0-9A-Z"
_TCHAR_LOWER: Final = rb"!#$%&'*+\-.^_`|~0-9a-z"

# field-vchar = VCHAR / obs-text; inside a value SP and HTAB may stand between them. RFC 9110 section 5.5
_VALUE_CHAR: Final = rb"\t\x20-\x7e\x80-\xff"
_VCHAR: Final = rb"\x21-\x7e\x80-\xff"

TOKEN: Final = re.compile(rb"[" + _TCHAR + rb"]++")
"""token = 1*tchar (RFC 9110 section 5.6.2)."""

MAX_METHOD_BYTES: Final = 32

METHOD: Final = re.compile(rb"[" + _TCHAR_UPPER + rb"]{1,32}+")
"""method = token (RFC 9110 section 9.1), here without lower-case letters and at most 32 bytes.

Methods are case-sensitive and every registered one is upper-case; `get` is refused because some servers take it
for `GET` and others do not (threat A20).
"""

FIELD_NAME_H2: Final = re.compile(rb"[" + _TCHAR_LOWER + rb"]++")
"""field-name of RFC 9113 section 8.2.1: a token without upper-case letters."""

FIELD_VALUE: Final = re.compile(rb"(?:[" + _VCHAR + rb"](?:[" + _VALUE_CHAR + rb"]*[" + _VCHAR + rb"])?+)?+")
"""field-value = *( field-vchar [ 1*( SP / HTAB / field-vchar ) field-vchar ] ) (RFC 9110 section 5.5).

No control byte, no DEL, no blank at either end (RFC 9113 section 8.2.1 forbids those, HTTP/1 strips them). The one
quantifier that gives back bytes gives back the trailing blanks once: linear.
"""

FIELD_LINE: Final = re.compile(
    rb"^([" + _TCHAR_NO_UNDERSCORE + rb"]++):[ \t]*+([" + _VALUE_CHAR + rb"]*+)(?<![ \t])\r\n", re.MULTILINE
)
"""field-line = field-name ":" OWS field-value OWS CRLF (RFC 9112 section 5), the common shape of it.

Used with `findall` over a block of lines. Every match starts after a line feed (or at the block's start), ends with
CRLF and holds no other line feed, so it is exactly one line: if there are as many matches as line feeds, every line
of the block is valid and nothing was skipped. Lines that end in blanks or whose name holds an underscore do not
match; `FIELD_LINE_ANY` takes them one at a time.
"""

FIELD_LINE_ANY: Final = re.compile(rb"([" + _TCHAR + rb"]++):[ \t]*+([" + _VALUE_CHAR + rb"]*+)")
"""One field line without its CRLF, underscores allowed; trailing blanks are left for the caller to strip."""

# request-target bytes: VCHAR without "#" (RFC 9112 section 3.2 has no fragment). Deliberately wider than pchar: `|`,
# `"`, `{` and their like come raw from browsers; the path normaliser decides about them. Never blanks, controls or
# bytes above 0x7e (threat C4).
_TARGET_CHAR: Final = rb"\x21\x22\x24-\x7e"

REQUEST_LINE: Final = re.compile(rb"([" + _TCHAR_UPPER + rb"]{1,32}+) ([" + _TARGET_CHAR + rb"]++) HTTP/1\.([0-9])\r\n")
"""request-line = method SP request-target SP HTTP-version CRLF (RFC 9112 section 3), major version 1."""

HTTP_VERSION: Final = re.compile(rb"HTTP/([0-9])\.([0-9])")
"""HTTP-version = HTTP-name "/" DIGIT "." DIGIT (RFC 9112 section 2.3), case-sensitive."""

TARGET: Final = re.compile(rb"[" + _TARGET_CHAR + rb"]++")
"""The bytes any request-target form may hold."""

ORIGIN_FORM: Final = re.compile(rb"/[" + _TARGET_CHAR + rb"]*+")
"""origin-form = absolute-path [ "?" query ] (RFC 9112 section 3.2.1); also the shape of `:path` (RFC 9113 8.3.1)."""

ABSOLUTE_FORM: Final = re.compile(rb"(?i:https?)://([^/?#]++)([/?][" + _TARGET_CHAR + rb"]*+)?+")
"""absolute-form = absolute-URI (RFC 9112 section 3.2.2), http and https only: (authority, path and query)."""

# port: 1..65535 without leading zeros. RFC 3986 section 3.2.3 says *DIGIT; empty, zero and padded ports are refused
# (threat A21), for servers disagree on them.
_PORT: Final = rb"(?:6553[0-5]|655[0-2][0-9]|65[0-4][0-9]{2}|6[0-4][0-9]{3}|[1-5][0-9]{4}|[1-9][0-9]{0,3})"

# IPv4address and IPv6address, RFC 3986 section 3.2.2
_DEC_OCTET: Final = rb"(?:25[0-5]|2[0-4][0-9]|1[0-9]{2}|[1-9]?[0-9])"
_IPV4: Final = rb"(?:" + _DEC_OCTET + rb"\.){3}" + _DEC_OCTET
_H16: Final = rb"[0-9A-Fa-f]{1,4}"
_LS32: Final = rb"(?:" + _H16 + rb":" + _H16 + rb"|" + _IPV4 + rb")"
_IPV6: Final = (
    rb"(?:"
    rb"(?:" + _H16 + rb":){6}" + _LS32 + rb"|"
    rb"::(?:" + _H16 + rb":){5}" + _LS32 + rb"|"
    rb"(?:" + _H16 + rb")?::(?:" + _H16 + rb":){4}" + _LS32 + rb"|"
    rb"(?:(?:" + _H16 + rb":){0,1}" + _H16 + rb")?::(?:" + _H16 + rb":){3}" + _LS32 + rb"|"
    rb"(?:(?:" + _H16 + rb":){0,2}" + _H16 + rb")?::(?:" + _H16 + rb":){2}" + _LS32 + rb"|"
    rb"(?:(?:" + _H16 + rb":){0,3}" + _H16 + rb")?::" + _H16 + rb":" + _LS32 + rb"|"
    rb"(?:(?:" + _H16 + rb":){0,4}" + _H16 + rb")?::" + _LS32 + rb"|"
    rb"(?:(?:" + _H16 + rb":){0,5}" + _H16 + rb")?::" + _H16 + rb"|"
    rb"(?:(?:" + _H16 + rb":){0,6}" + _H16 + rb")?::"
    rb")"
)

IPV4: Final = re.compile(_IPV4)
"""IPv4address = dec-octet "." dec-octet "." dec-octet "." dec-octet (RFC 3986 section 3.2.2)."""

IPV6: Final = re.compile(_IPV6)
"""IPv6address (RFC 3986 section 3.2.2) without brackets or zone. Groups are bounded, so alternatives are too."""

AUTHORITY: Final = re.compile(rb"(?:[A-Za-z0-9._~\-]{1,255}+|\[" + _IPV6 + rb"\])(?::" + _PORT + rb")?+")
"""Host = uri-host [ ":" port ] (RFC 9110 section 7.2); also `:authority` without userinfo (RFC 9113 8.3.1).

reg-name is narrowed to unreserved characters: percent escapes and sub-delims (above all the comma, which would
allow a list) are refused. Names beyond ASCII come as A-labels.
"""

CONTENT_LENGTH: Final = re.compile(rb"[0-9]{1,18}")
"""Content-Length = 1*DIGIT (RFC 9110 section 8.6), at most 18 digits so that it fits any 64-bit peer (threat A4)."""

TRANSFER_CODING: Final = TOKEN
"""transfer-coding = token (RFC 9112 section 7); parameters are not taken."""

CHUNKED_FIELD_LINE: Final = re.compile(rb"^(?i:transfer-encoding): ?(?i:chunked)\r\n", re.MULTILINE)
"""The only shape in which `Transfer-Encoding: chunked` is taken: at most one blank, no odd white space (A2)."""

_QUOTED_STRING: Final = rb'"(?:[\t\x20\x21\x23-\x5b\x5d-\x7e\x80-\xff]|\\[\t\x20-\x7e\x80-\xff])*+"'
_CHUNK_EXT: Final = rb"(?:;[" + _TCHAR + rb"]++(?:=(?:[" + _TCHAR + rb"]++|" + _QUOTED_STRING + rb"))?+)*+"

CHUNK_HEADER: Final = re.compile(rb"([0-9A-Fa-f]{1,16}+)(" + _CHUNK_EXT + rb")\r\n")
"""chunk-size [ chunk-ext ] CRLF (RFC 9112 section 7.1): (size, extensions).

At most 16 digits. The BWS that section 7.1.1 allows around `;` and `=` is refused: blanks there are how chunk sizes
are hidden from one of two parsers (threat A9), and no known client writes them.
"""

CHUNK_HEADER_START: Final = re.compile(rb"[0-9A-Fa-f]{1,16}+(?:;[" + _VALUE_CHAR + rb"]*+)?+\r?+")
"""What the beginning of a chunk header may look like before its line end has come."""

STATUS_LINE: Final = re.compile(rb"HTTP/1\.([0-9]) ([1-5][0-9]{2})(?: ([" + _VALUE_CHAR + rb"]*+))?+\r\n")
"""status-line = HTTP-version SP status-code SP [ reason-phrase ] CRLF (RFC 9112 section 4).

The blank before an absent phrase is mandatory by the letter, but many servers leave it out and no two readings
differ; codes outside 100 to 599 are refused (RFC 9110 section 15).
"""

REASON_PHRASE: Final = re.compile(rb"[" + _VALUE_CHAR + rb"]*+")
"""reason-phrase = 1*( HTAB / SP / VCHAR / obs-text ) (RFC 9112 section 4), or nothing."""

REQUEST_ID: Final = re.compile(rb"[A-Za-z0-9._~+/=:\-]{1,128}+")
"""What a trusted hop may give as X-Request-Id: printable without blanks, quotes or separators of our own logs."""

FORWARDED_NODE: Final = re.compile(
    rb"(?:(" + _IPV4 + rb")(?::[0-9]{1,5})?+|\[(" + _IPV6 + rb")\](?::[0-9]{1,5})?+|(" + _IPV6 + rb"))"
)
"""An address in X-Forwarded-For: IPv4 or IPv6, with brackets and port at will: (v4, bracketed v6, bare v6)."""

SCHEME: Final = re.compile(rb"https?|wss?")
"""The schemes a trusted hop may claim in X-Forwarded-Proto."""

VIA_OURS: Final = re.compile(
    rb"(?:^|,)[ \t]*+(?:[A-Za-z0-9.\-]{1,32}+/)?+[A-Za-z0-9.\-]{1,32}+[ \t]++datum-router(?=[ \t,]|\Z)"
)
"""Via = #( received-protocol RWS received-by [ RWS comment ] ) (RFC 9110 section 7.6.3), entries that we wrote."""

GRPC_TIMEOUT: Final = re.compile(rb"([0-9]{1,8})([HMSmun])")
"""Timeout = TimeoutValue TimeoutUnit; TimeoutValue = 1*8DIGIT (gRPC over HTTP/2, Requests)."""

GRPC_CONTENT_TYPE: Final = re.compile(rb"(?i:application/grpc)(?:[+;][" + _VALUE_CHAR + rb"]*+)?+")
"""Content-Type = "application/grpc" [("+proto" / "+json" / {custom})] (gRPC over HTTP/2, Requests), or parameters."""

WEBSOCKET_KEY: Final = re.compile(rb"[A-Za-z0-9+/]{21}[AQgw]==")
"""base64-value-non-empty of exactly 16 bytes (RFC 6455 section 4.1): the last digit holds 2 bits and no more."""

# Bytes that an emitted block may hold beside its line ends; used with `bytes.translate`, which is the fastest way to
# ask "is every byte in this class".
VALUE_BYTES: Final = bytes(b for b in range(256) if b == 0x09 or 0x20 <= b <= 0x7E or b >= 0x80)
LOWER_TOKEN_BYTES: Final = b"!#$%&'*+-.^_`|~0123456789abcdefghijklmnopqrstuvwxyz"


def is_valid_field_name_h2(name: bytes) -> bool:
    """Return whether `name` may stand in HTTP/2: a token without upper-case letters (RFC 9113 section 8.2.1).

    Pseudo-header names (a leading colon) are not field names: look those up before asking.
    """
    return FIELD_NAME_H2.fullmatch(name) is not None


def is_valid_field_value(value: bytes) -> bool:
    """Return whether `value` is a field value without blanks at its ends (RFC 9110 section 5.5, RFC 9113 8.2.1)."""
    return FIELD_VALUE.fullmatch(value) is not None


def is_valid_authority(value: bytes) -> bool:
    """Return whether `value` is a host with an optional port 1 to 65535, without userinfo."""
    return AUTHORITY.fullmatch(value) is not None


def is_valid_method(value: bytes) -> bool:
    """Return whether `value` is a method we pass on: an upper-case token of at most 32 bytes."""
    return METHOD.fullmatch(value) is not None


def is_valid_origin_form(value: bytes) -> bool:
    """Return whether `value` is a path with optional query as HTTP/1 origin-form and HTTP/2 `:path` want it."""
    return ORIGIN_FORM.fullmatch(value) is not None


def parse_content_length(value: bytes) -> int | None:
    """Return the length that `value` states, or None if it is anything but 1 to 18 ASCII digits."""
    return int(value) if CONTENT_LENGTH.fullmatch(value) else None
