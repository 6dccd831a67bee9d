"""Rewrite authority and path before forwarding (Gateway API HTTPURLRewriteFilter), and replace path prefixes."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from datum_router.model.request import LocalReply, RequestHead, ResponseHead
from datum_router.model.route import FilterConfig, Match, PathKind, Rewrite
from datum_router.reasons import Reason
from datum_router.routing.normalize import (
    Authority,
    BadHost,
    BadPath,
    Normalized,
    normalize_rule_path,
    normalize_target,
    parse_authority,
)
from datum_router.routing.path import MATCH_ALL, canonical_value, prefix_matches


class PathChange:
    """A compiled change of the path: a whole new path, or another prefix in place of the matched one."""

    __slots__ = ("_full", "_prefix", "_replacement")

    def __init__(self, full_path: str | None, prefix_path: str | None, match: Match) -> None:
        """Take parts for which `path_problem` is empty."""
        full = None if full_path is None else normalize_rule_path(full_path)
        prefix = canonical_value(match.path)
        replacement = normalize_rule_path(prefix_path or "/")
        assert not isinstance(full, BadPath)
        assert not isinstance(replacement, BadPath)
        self._full = full
        self._prefix: str | None = prefix if prefix_path is not None and isinstance(prefix, str) else None
        # What is left after the prefix begins with a slash or is empty, so a trailing slash here would come twice.
        self._replacement = replacement.removesuffix("/")

    def apply(self, path: str) -> str | BadPath:
        """Return the new path, normalised.

        Replacing a prefix keeps what follows it: with `/foo` -> `/xyz`, `/foo/bar` becomes `/xyz/bar`, `/foo/` becomes
        `/xyz/` and `/foo` becomes `/xyz`; a replacement of `/` or nothing gives `/bar`, `/` and `/`. Trailing slashes
        of prefix and replacement do not count. A path outside the prefix (an earlier filter moved it) and `*` stay.
        """
        if path == "*":
            return path
        if self._full is not None:
            changed = self._full
        elif self._prefix is not None and prefix_matches(self._prefix, path):
            rest = path if self._prefix == MATCH_ALL else path[len(self._prefix) :]
            changed = self._replacement + rest or "/"
        else:
            return path
        normalized = normalize_target(changed.encode("utf-8", "replace"))
        return normalized.path if isinstance(normalized, Normalized) else normalized


def path_problem(full_path: str | None, prefix_path: str | None, match: Match) -> str:
    """Return why a path change cannot be used with a match, empty if it can."""
    if full_path is not None and prefix_path is not None:
        return "both a full path and a prefix replacement, expected at most one"
    if full_path is not None:
        return _replacement_problem("full path", full_path)
    if prefix_path is not None:
        if match.path.kind is not PathKind.PREFIX or isinstance(canonical_value(match.path), BadPath):
            return f"a prefix replacement with {match.path.kind} path match, expected a path prefix"
        return _replacement_problem("prefix replacement", prefix_path) if prefix_path else ""
    return ""


def _replacement_problem(noun: str, text: str) -> str:
    normalized = normalize_rule_path(text)
    if isinstance(normalized, BadPath):
        return f"{noun}: {normalized.detail}"
    return f"{noun}: an asterisk, expected a path that begins with a slash" if normalized == "*" else ""


def hostname_problem(hostname: str) -> str:
    """Return why a hostname cannot replace the authority, empty if it can (or is empty: keep)."""
    if not hostname:
        return ""
    authority = parse_authority(hostname)
    if isinstance(authority, BadHost):
        return f"hostname: {authority.detail}"
    return "" if authority.port is None else "hostname: a port, expected a name only"


def rewrite_problem(config: Rewrite, match: Match) -> str:
    """Return why a rewrite cannot be used with a match, empty if it can."""
    return hostname_problem(config.hostname) or path_problem(config.full_path, config.prefix_path, match)


def replaced_prefix_by(filters: Sequence[FilterConfig], match: Match) -> str:
    """Return what these filters put in place of the prefix that was matched; empty if it is still there after them.

    Whatever would replace the prefix after them finds none: filters of a destination come after those of the route.
    """
    prefix = canonical_value(match.path)
    if match.path.kind is not PathKind.PREFIX or isinstance(prefix, BadPath):
        return ""
    for config in filters:
        put = (config.full_path or config.prefix_path) if isinstance(config, Rewrite) else None
        path = normalize_rule_path(put) if put else ""
        if isinstance(path, str) and path and not prefix_matches(prefix, path):
            return path
    return ""


BAD_OUTPUT = LocalReply(
    status=500, reason=Reason.BAD_FILTER_OUTPUT, detail="a filter of the route produced an invalid path or field"
)


class RewriteFilter:
    """Change what the upstream sees; the query stays."""

    __slots__ = ("_changes_path", "_host", "_path")

    def __init__(self, config: Rewrite, match: Match) -> None:
        """Take a configuration for which `rewrite_problem` is empty."""
        authority = parse_authority(config.hostname) if config.hostname else None
        self._host = authority.host if isinstance(authority, Authority) else ""
        self._changes_path = config.full_path is not None or config.prefix_path is not None
        self._path = PathChange(config.full_path, config.prefix_path, match)

    def on_request(self, head: RequestHead) -> RequestHead | LocalReply:
        """Return the head with the new authority (without port) and path."""
        path = self._path.apply(head.path) if self._changes_path else head.path
        if isinstance(path, BadPath):
            return BAD_OUTPUT
        if self._host:
            return msgspec.structs.replace(head, path=path, authority=self._host, host=self._host)
        return head if path == head.path else msgspec.structs.replace(head, path=path)

    def on_response(self, head: ResponseHead) -> ResponseHead:
        """Return the head unchanged."""
        return head
