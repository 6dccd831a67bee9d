"""What a filter is, and how the built-in ones are made from a rule's configuration."""

from __future__ import annotations

import re
from typing import Protocol

from datum_router.model.request import FieldList, Headers, LocalReply, RequestHead, ResponseHead
from datum_router.model.route import FilterConfig, HeaderEdit, PathKind, Redirect, Rewrite, Rule
from datum_router.reasons import Reason
from datum_router.routing.normalize import BadPath, normalize_rule_path

_NAME = re.compile(rb"[!#$%&'*+\-.^_`|~0-9a-z]{1,256}")
_VALUE = re.compile(rb"[\t\x20-\x7e\x80-\xff]*")


class Filter(Protocol):
    """Change heads on their way. Pure; one object serves all requests of a rule."""

    def on_request(self, head: RequestHead) -> RequestHead | LocalReply:
        """Return the head to go on with, or the reply to give instead."""
        ...

    def on_response(self, head: ResponseHead) -> ResponseHead:
        """Return the response head to go on with."""
        ...


def is_valid_field(name: bytes, value: bytes) -> bool:
    """Tell whether a field may be sent: lower-case token, value without CR, LF, NUL and other controls (A25)."""
    return _NAME.fullmatch(name) is not None and _VALUE.fullmatch(value) is not None and value == value.strip(b" \t")


def bad_output(detail: str) -> LocalReply:
    """Return the reply for a filter whose output must not be sent."""
    return LocalReply(status=500, reason=Reason.BAD_FILTER_OUTPUT, detail=detail)


class BadFilter:
    """Stands for a filter whose configuration would produce what must not be sent: every request gets 500."""

    __slots__ = ("_reply",)

    def __init__(self, detail: str) -> None:
        self._reply = bad_output(detail)

    def on_request(self, head: RequestHead) -> RequestHead | LocalReply:
        """Return the refusal."""
        return self._reply

    def on_response(self, head: ResponseHead) -> ResponseHead:
        """Return the head as it is."""
        return head


def fields_of(pairs: tuple[tuple[str, str], ...]) -> FieldList | None:
    """Return fields as bytes with lower-case names, None if one must not be sent."""
    fields = tuple((name.lower().encode("utf-8"), value.strip(" \t").encode("utf-8")) for name, value in pairs)
    return fields if all(is_valid_field(name, value) for name, value in fields) else None


def new_path(path: str, rule: Rule, *, full: str | None, prefix: str | None) -> str | None:
    """Return the path after ReplaceFullPath or ReplacePrefixMatch (Gateway API HTTPPathModifier), normalised.

    The matched prefix is replaced by whole segments: with prefix `/foo`, `/foo/bar` and replacement `/xyz/` give
    `/xyz/bar`; replacement `/` gives `/bar`, for `/foo` itself `/`. None if the result is no path.
    """
    if full is not None:
        found = full or "/"
    elif prefix is not None:
        matched = rule.match.path.value.rstrip("/") if rule.match.path.kind is PathKind.PREFIX else path
        rest = path[len(matched) :] if path.startswith(matched) else ""
        stem = prefix.rstrip("/")
        found = stem + rest if rest and rest != "/" else (prefix if not rest else f"{stem}/")
        if not found.startswith("/"):
            found = f"/{found}"
    else:
        return path
    normal = normalize_rule_path(found)
    return None if isinstance(normal, BadPath) else normal


def build_filter(config: FilterConfig, rule: Rule) -> Filter:
    """Return the filter for a built-in configuration.

    Raises:
        TypeError: The configuration belongs to a plugin, whose spec makes the filter.
    """
    from datum_router.filters.headers import HeaderFilter
    from datum_router.filters.redirect import RedirectFilter
    from datum_router.filters.rewrite import RewriteFilter

    match config:
        case HeaderEdit():
            return HeaderFilter.build(config)
        case Redirect():
            return RedirectFilter(config, rule)
        case Rewrite():
            return RewriteFilter(config, rule)
        case _:
            raise TypeError(f"filter {config.name!r} belongs to a plugin")


def edited(headers: Headers, fields: FieldList, *, remove: frozenset[bytes]) -> Headers:
    """Return headers without the names in `remove`, followed by `fields`."""
    return Headers((*(pair for pair in headers.fields if pair[0] not in remove), *fields))
