"""Bodies of the gateway's own answers: texts with placeholders from a closed set, escaped for their content type.

A placeholder is a name of upper-case letters and underscores between percent signs. Nothing that a client has sent is
among them but the request id of a trusted peer, and that is escaped like everything else.
"""

from __future__ import annotations

import difflib
import html
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Final

import msgspec

from datum_router.model.filters import ReplyTemplate
from datum_router.model.request import LocalReply

MAX_BODY_CHARS: Final = 4096
"""Longest body of a template, in characters."""
PLACEHOLDERS: Final = ("STATUS", "STATUS_TEXT", "REASON", "DETAIL", "REQUEST_ID")
"""Status code; its name (RFC 9110 section 15); the token that metrics and logs have; a sentence; the request's id."""
PLACEHOLDER_PATTERN: Final = "%[A-Z_]+%"

_PLACEHOLDER: Final = re.compile(PLACEHOLDER_PATTERN.replace("[A-Z_]+", "([A-Z_]+)"))
_STATUS_TEXTS: Final[Mapping[int, str]] = {
    400: "Bad Request", 401: "Unauthorized", 403: "Forbidden", 404: "Not Found", 405: "Method Not Allowed",
    408: "Request Timeout", 413: "Content Too Large", 414: "URI Too Long", 417: "Expectation Failed",
    421: "Misdirected Request", 429: "Too Many Requests", 431: "Request Header Fields Too Large",
    500: "Internal Server Error", 501: "Not Implemented", 502: "Bad Gateway", 503: "Service Unavailable",
    504: "Gateway Timeout", 508: "Loop Detected",
}  # fmt: skip


def _json(text: str) -> str:
    return msgspec.json.encode(text)[1:-1].decode("utf-8")


def _plain(text: str) -> str:
    return text


ESCAPES: Final[Mapping[str, Callable[[str], str]]] = {
    "text/plain": _plain,
    "text/html": html.escape,
    "application/json": _json,
    "application/problem+json": _json,
}
"""Content types, and how a value is written within a text of each."""


def template_problem(body: str, content_type: str) -> str:
    """Return why a template cannot be used, empty if it can."""
    unknown = next((name for name in _PLACEHOLDER.findall(body) if name not in PLACEHOLDERS), None)
    if unknown is not None:
        near = difflib.get_close_matches(unknown, PLACEHOLDERS, n=1)
        known = f"%{near[0]}%" if near else ", ".join(f"%{name}%" for name in PLACEHOLDERS)
        return f"the placeholder %{unknown}%, expected {known}"
    if content_type.endswith("json"):
        try:
            # Only the status is a number: everything else is no JSON outside of quotes.
            values = {**dict.fromkeys(PLACEHOLDERS, "text"), "STATUS": "0"}
            msgspec.json.decode(_fill(body, content_type, values).encode("utf-8"))
        except (msgspec.DecodeError, UnicodeEncodeError) as error:
            return f"no JSON: {error}".lower()
    return ""


def _fill(body: str, content_type: str, values: Mapping[str, str]) -> str:
    escape = ESCAPES[content_type]
    return _PLACEHOLDER.sub(lambda found: escape(values.get(found[1], "")), body)


def dress(templates: Sequence[ReplyTemplate], reply: LocalReply, request_id: str) -> LocalReply:
    """Return a reply with the body of the first template for its status; the same object if there is none.

    A reply that has a body of its own (of a filter that asked somebody else) keeps it, and so do those below 400.
    """
    if reply.status < 400 or reply.body is not None:
        return reply
    for template in templates:
        if not template.statuses or reply.status in template.statuses:
            values = {
                "STATUS": str(reply.status),
                "STATUS_TEXT": _STATUS_TEXTS.get(reply.status, "Error"),
                "REASON": str(reply.reason),
                "DETAIL": reply.detail,
                "REQUEST_ID": request_id,
            }
            text = _fill(template.body, template.content_type, values)
            kind = template.content_type
            if kind.startswith("text/"):
                kind += "; charset=utf-8"  # JSON has no such parameter (RFC 8259 section 11)
            return msgspec.structs.replace(
                reply, body=text.encode("utf-8", "replace"), content_type=kind.encode("ascii")
            )
    return reply
