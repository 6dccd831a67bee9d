"""What one attempt sends upstream: the request after filters, with what only this attempt knows."""

from __future__ import annotations

import random

from datum_router.compiler.link import LinkedRule
from datum_router.model.request import RequestHead
from datum_router.policy.chain import attempt_number
from datum_router.policy.timeout import NO_DEADLINE, remaining_s, upstream_grpc_timeout_s
from datum_router_proxy.exchange import UpstreamRequest
from datum_router_proxy.request import Request
from datum_router_proxy.wire import chain, grpc, websocket


def upstream_request(
    request: Request,
    head: RequestHead,
    rule: LinkedRule,
    deadline: float,
    *,
    attempts: int,
    now: float,
    rng: random.Random,
) -> UpstreamRequest:
    """Return what is sent upstream for a request whose head may have gone through filters.

    Args:
        deadline: When the request must be over; `now` is the same clock, seconds.
        attempts: Ours, this one included.
    """
    template = request.template
    fields = head.headers.fields
    key = template.websocket_key
    if template.is_tunnel and key is None:
        key = websocket.make_key(rng.randbytes(16))
    if template.is_grpc and deadline != NO_DEADLINE:
        # The upstream is told what is left, not what the client said once.
        left = grpc.encode_timeout(upstream_grpc_timeout_s(deadline, now=now) or 0.0)
        fields = (*(field for field in fields if field[0] != b"grpc-timeout"), (b"grpc-timeout", left))
    elif template.tells_deadline(rule, deadline):
        fields = (*fields, chain.timeout_field(remaining_s(deadline, now=now)))
    if attempts > 1 or template.attempt > 1:
        fields = (*fields, chain.attempt_field(attempt_number(template.attempt, attempts)))
    return UpstreamRequest(
        method=head.method,
        target=head.target.encode("ascii"),
        authority=head.authority.encode("ascii"),
        fields=fields,
        has_body=template.has_body,
        content_length=None if template.is_tunnel else template.content_length,
        websocket_key=key,
    )
