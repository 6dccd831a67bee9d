"""Typed events that a data plane emits; observers turn them into metrics, logs and traces."""

from __future__ import annotations

import msgspec

from datum_router.reasons import Reason


class RequestEnded(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """One request, at its end: the canonical access-log record.

    Attributes:
        protocol: Downstream protocol: `h1`, `h2`, `ws` for a WebSocket tunnel over either.
        status: What the client was told; 0 if it got no response head.
        reason: `routed`, or why the router answered or gave up by itself.
        route, rule, service, endpoint: Empty where none was chosen.
        bytes_in, bytes_out: Body bytes from and to the client.
        duration_s: From the complete request head to the last byte of the answer.
    """

    protocol: str
    listener: str
    method: str
    host: str
    path: str
    status: int
    reason: Reason
    route: str = ""
    rule: str = ""
    service: str = ""
    endpoint: str = ""
    attempts: int = 0
    bytes_in: int = 0
    bytes_out: int = 0
    duration_s: float = 0.0
    client_ip: str = ""
    request_id: str = ""
