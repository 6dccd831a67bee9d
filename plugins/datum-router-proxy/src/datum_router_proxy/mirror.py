"""Copies of requests, sent on the side: the original neither waits for them nor learns what became of them.

Theory of operation. A request without a body is copied at once, in a task of its own. One with a body is kept, piece
by piece, as it goes to its own service (`BodyCopy`); when it has ended, the copy goes. All that copies can take is
bounded: how many are kept or under way, how much of a body, how long one lasts. What goes beyond is dropped and
counted, since a copy is worth less than the request it is made of.
"""

from __future__ import annotations

import logging

from datum_router.compiler.link import LinkedRule
from datum_router.errors import DatumRouterError
from datum_router.filters.mirror import MirrorFilter, copy_of
from datum_router.model.request import RequestHead
from datum_router.reasons import Reason
from datum_router_proxy.accounts import Accounts
from datum_router_proxy.loop import Loop, TaskCancelled, current_task
from datum_router_proxy.outgoing import upstream_request
from datum_router_proxy.request import Request
from datum_router_proxy.settings import ProxySettings
from datum_router_proxy.sidecalls import SideCalls
from datum_router_proxy.trace import Trace

log = logging.getLogger(__name__)

ANSWER_BYTES = 65_536
"""Of a copy's answer, read so that its connection can be used again; a longer one costs the connection."""


class BodyCopy:
    """A request's body, kept for its copies while it goes to its own service."""

    __slots__ = ("_bytes", "_copies", "_launch", "_most", "_parts")

    def __init__(self, mirrors: Mirrors, launch: Launch, most_bytes: int) -> None:
        self._copies = mirrors
        self._launch: Launch | None = launch
        self._parts: list[bytes] = []
        self._bytes = 0
        self._most = most_bytes

    def take(self, piece: bytes) -> None:
        """Keep a piece; what is empty ends the body, and the copies go."""
        launch = self._launch
        if launch is None:
            return
        if not piece:
            self._launch = None
            self._copies.launch(launch, b"".join(self._parts))
            return
        self._bytes += len(piece)
        if self._bytes > self._most:
            self.close()
        else:
            self._parts.append(piece)

    def close(self) -> None:
        """Drop copies that have not gone: the body is too long, or has not come to its end."""
        if self._launch is not None:
            self._copies.drop("dropped_body", len(self._launch.filters), are_begun=True)
            self._launch = None
            self._parts.clear()


class Launch:
    """What is needed to send copies of one request."""

    __slots__ = ("filters", "head", "request", "rule")

    def __init__(
        self, rule: LinkedRule, request: Request, head: RequestHead, filters: tuple[MirrorFilter, ...]
    ) -> None:
        self.rule = rule
        self.request = request
        self.head = head
        self.filters = filters


class Mirrors:
    """Sends copies; one per pipeline. `under_way`: how many are kept or have not ended."""

    __slots__ = ("_accounts", "_calls", "_loop", "_settings", "under_way")

    def __init__(self, loop: Loop, settings: ProxySettings, accounts: Accounts, calls: SideCalls) -> None:
        self._loop = loop
        self._settings = settings
        self._accounts = accounts
        self._calls = calls
        self.under_way = 0

    def begin(self, launch: Launch, trace: Trace) -> None:
        """Send copies of a request now, or once its body has ended."""
        template = launch.request.template
        if template.is_tunnel or (template.content_length or 0) > self._settings.mirror_body_bytes:
            self.drop("dropped_body", len(launch.filters))  # a WebSocket has no end to wait for
            return
        room = max(0, self._settings.mirror_requests - self.under_way)
        self.drop("dropped_busy", len(launch.filters[room:]))
        launch.filters = launch.filters[:room]
        self.under_way += len(launch.filters)
        if not template.has_body:
            self.launch(launch, b"")
        elif launch.filters:
            trace.body.copy = BodyCopy(self, launch, self._settings.mirror_body_bytes)

    def drop(self, why: str, count: int, *, are_begun: bool = False) -> None:
        """Count copies that are not sent."""
        for _ in range(count):
            self._accounts.filtered("mirror", why)
        if are_begun:
            self.under_way -= count

    def launch(self, launch: Launch, body: bytes) -> None:
        """Start a task for each copy."""
        for item in launch.filters:
            self._loop.spawn(self._run(launch, item, body), name="mirror")

    async def _run(self, launch: Launch, item: MirrorFilter, body: bytes) -> None:
        outcome = "failed"
        try:
            outcome = await self._send(launch, item, body)
        except TaskCancelled:
            raise
        except DatumRouterError as error:
            log.debug("copy of a request failed", extra={"service": item.config.service, "error": str(error)})
        except Exception:
            log.exception("copy of a request failed", extra={"service": item.config.service})
        finally:
            self.under_way -= 1
            self._accounts.filtered("mirror", outcome)

    async def _send(self, launch: Launch, item: MirrorFilter, body: bytes) -> str:
        loop = self._loop
        task = current_task()
        task.deadline = loop.now + self._settings.mirror_timeout_s
        task.deadline_reason = Reason.SIDE_CALL_TIMEOUT
        lease = launch.rule.select_side(item.config.service, launch.head, rng=loop.rng, now=loop.now)
        if lease is None:
            return "dropped_unavailable"
        sent = upstream_request(
            launch.request,
            copy_of(launch.head),
            launch.rule,
            task.deadline,
            attempts=1,
            now=loop.now,
            rng=loop.rng,
        )
        answer = await self._calls.call(lease, sent, body, most_bytes=ANSWER_BYTES)
        return "server_error" if answer.status >= 500 else "answered"
