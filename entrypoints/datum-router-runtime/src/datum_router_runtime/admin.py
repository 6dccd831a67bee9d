"""The admin listener: what the gateway knows, as JSON or metrics, over HTTP on a loopback address. Reads only.

Own use of `h11` behind a loopback socket is no data path: nothing here is fast and nothing here is exposed.

A loopback address keeps other hosts out, but not requests that a gateway passes on: whoever may make a VPCService can
name any address as its endpoint. So what came through a proxy is refused, and what names another host than this one
(as a browser does whose DNS was rebound).
"""

from __future__ import annotations

import ipaddress
import json
import logging
import urllib.parse
from collections.abc import Awaitable, Callable, Mapping

import h11
import msgspec
import trio

log = logging.getLogger(__name__)

REQUEST_TIMEOUT_S = 10.0
"""A whole request must have come within this time."""

MAX_CONNECTIONS = 64
"""Connections served at once; further ones are closed at once."""

PAGES = ("/healthz", "/readyz", "/snapshot", "/diagnostics", "/plugins", "/health", "/stats", "/metrics")
"""The pages that a gateway has."""


class Text(msgspec.Struct, frozen=True, kw_only=True):
    """A page's body as it is to be sent."""

    body: bytes
    content_type: str


Page = Callable[[], tuple[int, object]] | Callable[[], Awaitable[tuple[int, object]]]
"""Gives a status and a JSON-like value or `Text`, at once or later."""


class Admin:
    """Serve pages by path."""

    __slots__ = ("_is_local", "_open", "_pages")

    def __init__(self, pages: Mapping[str, Page], *, is_local: bool = False) -> None:
        """Take the pages by path.

        Args:
            is_local: They are for people on this host alone; requests that come from elsewhere get 403.
        """
        self._pages = dict(pages)
        self._is_local = is_local
        self._open = 0

    async def serve(self, listener: trio.SocketListener) -> None:
        """Serve until cancelled."""
        await trio.serve_listeners(self._connection, [listener])

    async def _connection(self, stream: trio.SocketStream) -> None:
        if self._open >= MAX_CONNECTIONS:
            await stream.aclose()
            return
        self._open += 1
        try:
            with trio.move_on_after(REQUEST_TIMEOUT_S):
                await self._exchange(stream)
        except (trio.BrokenResourceError, h11.RemoteProtocolError):
            log.debug("admin client broke off")
        finally:
            self._open -= 1
            with trio.move_on_after(1.0, shield=True):
                await stream.aclose()

    async def _exchange(self, stream: trio.SocketStream) -> None:
        connection = h11.Connection(h11.SERVER)
        while True:
            event = connection.next_event()
            if event is h11.NEED_DATA:
                connection.receive_data(await stream.receive_some(65536))
            elif isinstance(event, h11.Request):
                await stream.send_all(await self._answer(connection, event))
                return
            else:
                return

    async def _answer(self, connection: h11.Connection, request: h11.Request) -> bytes:
        path = request.target.split(b"?", 1)[0].decode("ascii", "replace")
        page = self._pages.get(path)
        status: int
        value: object
        problem = _why_not_local(request) if self._is_local else ""
        if problem:
            status, value = 403, {"error": problem}
        elif request.method not in (b"GET", b"HEAD"):
            status, value = 405, {"error": f"found method {request.method.decode()}, expected GET"}
        elif page is None:
            status, value = 404, {"error": "no such page", "pages": sorted(self._pages)}
        else:
            try:
                found = page()
                status, value = found if isinstance(found, tuple) else await found
            except Exception as error:
                log.exception("admin page failed", extra={"page": path})
                status, value = 500, {"error": type(error).__name__}
        if isinstance(value, Text):
            body, content_type = value.body, value.content_type
        else:
            body = json.dumps(msgspec.to_builtins(value), indent=2, sort_keys=True).encode() + b"\n"
            content_type = "application/json"
        head = h11.Response(
            status_code=status,
            headers=[
                ("content-type", content_type),
                ("content-length", str(len(body))),
                ("connection", "close"),
            ],
        )
        data = connection.send(head) or b""
        if request.method != b"HEAD":
            data += connection.send(h11.Data(data=body)) or b""
        return data


def _why_not_local(request: h11.Request) -> str:
    """Return why a request is not one of somebody on this host; empty if it seems to be. No header value is told."""
    for name, value in request.headers:
        if name in (b"via", b"forwarded") or name.startswith(b"x-forwarded-"):
            return f"found header {name.decode()}, expected a request that came through no proxy"
        if name == b"host" and not _is_own(value.decode("ascii", "replace")):
            return "found another host in the header host, expected localhost or a loopback address"
    return ""


def _is_own(authority: str) -> bool:
    try:
        host = urllib.parse.urlsplit(f"//{authority}").hostname or ""
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
