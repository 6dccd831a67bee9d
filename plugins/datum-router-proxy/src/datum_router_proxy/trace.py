"""What is told about a request at its end, gathered while it lasts."""

from __future__ import annotations

import math

from datum_router.compiler.link import LinkedRule
from datum_router.filters.base import Filter
from datum_router.model.route import Rule
from datum_router.observe.events import RequestEnded
from datum_router.policy.affinity import Session
from datum_router.reasons import Reason
from datum_router_proxy.body import RequestBody
from datum_router_proxy.limit import IdleClock, TryClock
from datum_router_proxy.request import Request


class Trace:
    """One request's story. Times are CLOCK_MONOTONIC seconds.

    Attributes:
        idle: The clock of silence; None if silence has no limit.
        stalled_at: Since when the client takes nothing.
        stalled_s: How long in all we slept while it took nothing.
        tries: The clock of the present attempt; None if attempts have no limits of their own.
        filters: Of the destination that was last tried.
        added: Fields of ours for the upstream's response, before filters see it.
        session: Of `LinkedRule.affinity`; None if the request has none that is valid.
    """

    __slots__ = (
        "added",
        "attempts",
        "body",
        "bytes_out",
        "deadline",
        "endpoint",
        "filters",
        "idle",
        "linked",
        "reason",
        "rule",
        "service",
        "session",
        "stalled_at",
        "stalled_s",
        "started_at",
        "status",
        "tries",
    )

    def __init__(self, body: RequestBody, started_at: float) -> None:
        self.added: tuple[tuple[bytes, bytes], ...] = ()
        self.session: Session | None = None
        self.body = body
        self.started_at = started_at
        self.deadline = math.inf
        self.stalled_at: float | None = None
        self.stalled_s = 0.0
        self.tries: TryClock | None = None
        self.idle: IdleClock | None = None
        self.status = 0
        self.reason = Reason.ROUTED
        self.rule: Rule | None = None
        self.linked: LinkedRule | None = None
        self.service = ""
        self.endpoint = ""
        self.filters: tuple[Filter, ...] = ()
        self.attempts = 0
        self.bytes_out = 0

    @property
    def moved(self) -> int:
        """What grows whenever something moves: bytes both ways, and attempts."""
        return self.body.bytes_in + self.bytes_out + self.attempts

    @property
    def is_clients_turn(self) -> bool:
        """True while the client's body is waited for, or its reading."""
        return self.stalled_at is not None or self.body.is_awaited

    def event(self, protocol: str, request: Request, now: float) -> RequestEnded:
        """Return the access-log record."""
        template = request.template
        rule = self.rule
        return RequestEnded(
            protocol=protocol,
            listener=template.listener,
            method=template.method,
            host=template.host,
            path=template.path,
            status=self.status,
            reason=self.reason,
            route=rule.route if rule is not None else "",
            rule=rule.id if rule is not None else "",
            service=self.service,
            endpoint=self.endpoint,
            attempts=self.attempts,
            bytes_in=self.body.bytes_in,
            bytes_out=self.bytes_out,
            duration_s=now - self.started_at,
            client_ip=template.client_ip,
            request_id=request.request_id,
        )
