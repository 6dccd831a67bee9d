"""RequestRedirect: the router answers with a new location, built from typed parts only (threat C11)."""

from __future__ import annotations

from datum_router.filters.base import bad_output, is_valid_field, new_path
from datum_router.model.request import LocalReply, RequestHead, ResponseHead
from datum_router.model.route import Redirect, Rule

DEFAULT_PORTS = {"http": 80, "https": 443}


class RedirectFilter:
    """Answer with a redirect."""

    __slots__ = ("_config", "_rule")

    def __init__(self, config: Redirect, rule: Rule) -> None:
        self._config = config
        self._rule = rule

    def on_request(self, head: RequestHead) -> RequestHead | LocalReply:
        """Return the redirect.

        A scheme that is given drops the request's port (Gateway API HTTPRequestRedirectFilter); the scheme's default
        port is not written.
        """
        config = self._config
        path = new_path(head.path, self._rule, full=config.full_path, prefix=config.prefix_path)
        if path is None or not path.startswith("/"):
            return bad_output("the redirect's path is no valid path")
        scheme = config.scheme or head.scheme
        port = config.port
        if port is None and not config.scheme:
            port = _port_of(head.authority)
        host = config.hostname or head.host
        authority = host if port is None or DEFAULT_PORTS.get(scheme) == port else f"{host}:{port}"
        query = "" if head.query is None else f"?{head.query}"
        location = f"{scheme}://{authority}{path}{query}".encode("ascii", "replace")
        if not is_valid_field(b"location", location):
            return bad_output("the redirect's location must not be sent")
        return LocalReply(
            status=config.status, reason="redirected", detail="moved", headers=((b"location", location),)
        )

    def on_response(self, head: ResponseHead) -> ResponseHead:
        """Return the head as it is."""
        return head


def _port_of(authority: str) -> int | None:
    host, colon, port = authority.rpartition(":")
    return int(port) if colon and host and not host.endswith(":") and port.isdecimal() else None
