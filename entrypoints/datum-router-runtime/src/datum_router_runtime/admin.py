"""The admin listener: what the gateway knows, as JSON or metrics, over HTTP on a loopback address. Reads only.

Own use of `h11` behind a loopback socket is no data path: nothing here is fast and nothing here is exposed.
"""

from __future__ import annotations

import json
import logging
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

    __slots__ = ("_open", "_pages")

    def __init__(self, pages: Mapping[str, Page]) -> None:
        self._pages = dict(pages)
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
        if request.method not in (b"GET", b"HEAD"):
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
