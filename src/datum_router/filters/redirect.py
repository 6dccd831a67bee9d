"""Answer with a redirect whose target is built from typed parts (Gateway API HTTPRequestRedirectFilter).

No text of the client reaches the scheme; the host is the configured one or the validated authority; the path is a
normalised one and so begins with exactly one slash. `//evil.example` therefore cannot become a host.
"""

from __future__ import annotations

from datum_router.filters.grammar import value_problem
from datum_router.filters.rewrite import BAD_OUTPUT, PathChange, hostname_problem, path_problem
from datum_router.model.request import LocalReply, RequestHead, ResponseHead
from datum_router.model.route import Match, Redirect
from datum_router.reasons import Reason
from datum_router.routing.normalize import (
    MAX_PORT,
    Authority,
    BadHost,
    BadPath,
    Normalized,
    normalize_target,
    parse_authority,
)

REDIRECT_STATUSES = (301, 302, 303, 307, 308)
DEFAULT_PORTS = {"http": 80, "https": 443}


def redirect_problem(config: Redirect, match: Match) -> str:
    """Return why a redirect cannot be used with a match, empty if it can."""
    if config.scheme not in ("", *DEFAULT_PORTS):
        return f"scheme {config.scheme!r}, expected http or https"
    if config.port is not None and not 1 <= config.port <= MAX_PORT:
        return f"port {config.port}, expected 1 to {MAX_PORT}"
    if config.status not in REDIRECT_STATUSES:
        return f"status {config.status}, expected one of {', '.join(map(str, REDIRECT_STATUSES))}"
    return hostname_problem(config.hostname) or path_problem(config.full_path, config.prefix_path, match)


class RedirectFilter:
    """Reply to every request with a redirect; the query is kept."""

    __slots__ = ("_hostname", "_path", "_port", "_scheme", "_status")

    def __init__(self, config: Redirect, match: Match) -> None:
        """Take a configuration for which `redirect_problem` is empty."""
        authority = parse_authority(config.hostname) if config.hostname else None
        self._hostname = authority.host if isinstance(authority, Authority) else ""
        self._scheme = config.scheme
        self._port = config.port
        self._status = config.status
        self._path = PathChange(config.full_path, config.prefix_path, match)

    def on_request(self, head: RequestHead) -> RequestHead | LocalReply:
        """Return the redirect.

        Port: the configured one; else the well-known one of a configured scheme; else the one the client used. A
        port that is the scheme's own is left out.
        """
        path = self._path.apply(head.path)
        if isinstance(path, BadPath):
            return BAD_OUTPUT
        if path == "*":
            path = "/"
        target = normalize_target((path if head.query is None else f"{path}?{head.query}").encode("utf-8", "replace"))
        scheme = self._scheme or head.scheme
        asked = parse_authority(head.authority)
        host = self._hostname or (asked.host if isinstance(asked, Authority) else "")
        if not isinstance(target, Normalized) or scheme not in DEFAULT_PORTS or not host:
            if isinstance(asked, BadHost) and not self._hostname:
                return LocalReply(status=400, reason=Reason.BAD_HOST, detail="a redirect needs a valid Host")
            return BAD_OUTPUT
        port = self._port
        if port is None and not self._scheme and isinstance(asked, Authority):
            port = asked.port
        if port == DEFAULT_PORTS[scheme]:
            port = None
        location = f"{scheme}://{Authority(host, port).text}{target.target}".encode("ascii", "replace")
        if value_problem(location):
            return BAD_OUTPUT
        return LocalReply(status=self._status, reason=Reason.REDIRECTED, headers=((b"location", location),))

    def on_response(self, head: ResponseHead) -> ResponseHead:
        """Return the head unchanged; a redirect has no upstream response."""
        return head
