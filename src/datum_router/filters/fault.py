"""Faults on purpose: which requests are delayed or refused, drawn from a given generator."""

from __future__ import annotations

import random

import msgspec

from datum_router.filters.mirror import is_hit
from datum_router.model.filters import Fault
from datum_router.model.request import LocalReply, RequestHead, ResponseHead
from datum_router.reasons import Reason


class FaultPlan(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """What is done to one request: first it waits, then it is answered, if there is a reply."""

    delay_s: float = 0.0
    reply: LocalReply | None = None


class FaultFilter:
    """Changes no head: whoever runs the rule's filters waits, and answers."""

    __slots__ = ("_config",)

    def __init__(self, config: Fault) -> None:
        self._config = config

    def plan(self, rng: random.Random, *, is_grpc: bool) -> FaultPlan:
        """Draw what is done to a request. Always two draws or fewer, the delay's first."""
        config = self._config
        delay_s = config.delay_s if is_hit(config.delay_percent, rng) else 0.0
        reply: LocalReply | None = None
        if (config.status or (is_grpc and config.grpc_status is not None)) and is_hit(config.abort_percent, rng):
            reply = LocalReply(
                status=config.status or 503,
                reason=Reason.FAULT_INJECTED,
                detail="a fault was injected on purpose",
                grpc_status=config.grpc_status,
            )
        return FaultPlan(delay_s=delay_s, reply=reply)

    def on_request(self, head: RequestHead) -> RequestHead | LocalReply:
        """Return the head unchanged."""
        return head

    def on_response(self, head: ResponseHead) -> ResponseHead:
        """Return the head unchanged."""
        return head


def fault_problem(config: Fault) -> str:
    """Return why a fault cannot be injected, empty if it can."""
    if config.status and not 400 <= config.status <= 599:
        return f"status {config.status}, expected 400 to 599"
    return ""
