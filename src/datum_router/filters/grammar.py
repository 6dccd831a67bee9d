"""The grammar of header fields that filters may produce (RFC 9110 sections 5.1, 5.5, 5.6.2)."""

from __future__ import annotations

import re

# field-name = token, here in lower case (HTTP/2 has no other);  tchar = "!" / "#" / "$" / ... / DIGIT / ALPHA
_NAME = re.compile(rb"[!#$%&'*+\-.^_`|~0-9a-z]+\Z")
# field-value = *field-content, no leading or trailing blank;  obs-text passes, CTL but HTAB does not
_VALUE = re.compile(rb"(?:[!-~\x80-\xff](?:[\t -~\x80-\xff]*[!-~\x80-\xff])?)?\Z")

FORBIDDEN_NAMES = frozenset(
    (
        b"connection",
        b"content-length",
        b"expect",
        b"host",
        b"http2-settings",
        b"keep-alive",
        b"proxy-connection",
        b"te",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
    )
)
"""Fields that frame a message or belong to one connection (RFC 9110 section 7.6.1): the wire engines' own.

`host` changes by a rewrite, which keeps authority and Host together.
"""


def name_problem(name: bytes) -> str:
    """Return why a field name may not be produced, empty if it may."""
    if not _NAME.match(name):
        return "a field name that is no lower-case token"
    if name in FORBIDDEN_NAMES:
        return f"the field {name.decode('ascii')}, which only the router itself may set"
    return ""


def value_problem(value: bytes) -> str:
    """Return why a field value may not be produced, empty if it may."""
    return "" if _VALUE.match(value) else "a field value with a control byte or a blank at its edge"


def field_problem(name: bytes, value: bytes) -> str:
    """Return why a field may not be produced, empty if it may."""
    return name_problem(name) or value_problem(value)
