"""What the router says by itself: local replies as plain text, or as gRPC status for gRPC clients."""

from __future__ import annotations

import msgspec

from datum_router.compiler.link import LinkedRule, Snapshot
from datum_router.errors import UpstreamError
from datum_router.model.request import LocalReply
from datum_router.policy.chain import is_settled_reply
from datum_router.reasons import Reason
from datum_router_proxy.exchange import Downstream
from datum_router_proxy.request import Request, Template
from datum_router_proxy.trace import Trace
from datum_router_proxy.wire import chain, grpc

Field = tuple[bytes, bytes]

_SAID = {
    Reason.CONNECT_FAILED: "the upstream could not be reached",
    Reason.PER_TRY_TIMEOUT: "the upstream did not answer in the time of one try",
    Reason.CONNECT_TIMEOUT: "the upstream did not accept a connection in time",
    Reason.UPSTREAM_RESET: "the upstream closed the connection before it had answered",
    Reason.UPSTREAM_REFUSED_STREAM: "the upstream refused the request before it had looked at it",
    Reason.UPSTREAM_TLS: "no trusted connection to the upstream could be made",
    Reason.LOCAL_RESOURCES: "the router has no descriptors or memory left for a connection",
    Reason.POOL_OVERFLOW: "no connection to the upstream got free in time",
    Reason.BAD_UPGRADE: "the upstream does not take this WebSocket",
    Reason.TOO_MANY_INTERIM: "the upstream sent interim responses without end",
}
OVERLOADED = LocalReply(
    status=503, reason=Reason.OVERLOADED, detail="the router is short of memory", headers=((b"retry-after", b"5"),)
)
"""For every new request while memory is short (threat E8)."""
LISTENER_GONE = LocalReply(
    status=503,
    reason=Reason.DRAINING,
    detail="the listener of this connection has been removed",
    headers=((b"retry-after", b"1"),),
)
"""For a request on a connection whose listener went so long ago that its routes are forgotten; never 404, which clients
may keep as the truth about the resource."""
TOO_LARGE = LocalReply(status=413, reason=Reason.BODY_TOO_LARGE, detail="the request body is too large")
NOT_ADMITTED = LocalReply(
    status=421,
    reason=Reason.MISDIRECTED,
    detail="the host asks for another client certificate than this connection was made with; use a new connection",
)
"""For a request on a connection that was held to something else than its host asks for."""
_UNREACHED = frozenset((Reason.CONNECT_FAILED, Reason.LOCAL_RESOURCES))
_RETRY_AFTER: Field = (b"retry-after", b"1")


def for_upstream_error(error: UpstreamError) -> LocalReply:
    """Return the reply for an attempt that failed; it names no address, that is for the log."""
    return LocalReply(
        status=error.status_hint,
        reason=error.reason,
        detail=_SAID.get(error.reason, "the upstream's response could not be understood"),
        headers=(_RETRY_AFTER,) if error.status_hint == 503 else (),
    )


def nobody_left(reply: LocalReply) -> LocalReply:
    """Return what to say when a failed attempt cannot be followed by another: the true reason, always.

    Endpoints that could not be reached are 503: the service is unavailable, and asking again later is right. What
    an endpoint did wrong stays a 502 or 504 (threat G2).
    """
    if reply.reason not in _UNREACHED:
        return reply
    return msgspec.structs.replace(reply, status=503, detail=f"{reply.detail}, and no other endpoint is left")


def reason_of(reply: LocalReply) -> Reason:
    """Return the reply's reason; what a plugin made up counts as routed: its filter has answered."""
    try:
        return Reason(reply.reason)
    except ValueError:
        return Reason.ROUTED


def send_local_reply(downstream: Downstream, request: Request, reply: LocalReply, date: Field) -> int:
    """Queue `reply` and return the status the client is told.

    A gateway before us is told if it need not try again.

    Redirects and successes carry no text of ours unless they state one. gRPC clients get Trailers-Only (threat D23).

    Raises:
        LocalProtocolError: A field of the reply must not be sent.
    """
    template = request.template
    mark = [chain.SETTLED] if template.via_hops and is_settled_reply(reply.status, reason_of(reply)) else []
    if template.is_grpc and not template.is_tunnel:
        given = reply.grpc_status
        code = grpc.status_from_local_reply(reply.status) if given is None else grpc.GrpcStatus(given)
        message = f"{reply.reason}: {reply.detail}" if reply.detail else str(reply.reason)
        downstream.send_head(
            200, [*grpc.local_reply_fields(code, message), date, *mark], content_length=None, is_bodyless=True
        )
        downstream.send_end()
        return 200
    body = b""
    fields: list[Field] = [*reply.headers, date, *mark]
    if reply.body is not None:
        body = reply.body
    elif reply.status >= 400:
        text = f"{reply.reason}: {reply.detail}\nrequest id: {request.request_id}\n"
        body = text.encode("utf-8", "replace")
    elif reply.detail:
        body = reply.detail.encode("utf-8", "replace")
    if body:
        fields.append((b"content-type", reply.content_type))
    fields.append((b"x-request-id", request.request_id.encode("ascii")))
    is_bodyless = not body or template.method == "HEAD"
    # Such a connection will not get better by another request: a client that knows no 421 comes back on a new one.
    close = reply.reason is Reason.MISDIRECTED and reply.detail == NOT_ADMITTED.detail
    downstream.send_head(reply.status, fields, content_length=len(body), is_bodyless=is_bodyless, close=close)
    if not is_bodyless:
        downstream.send_data(body)
    downstream.send_end()
    return reply.status


def try_timed_out(*, is_unprocessed: bool) -> UpstreamError:
    """Return how an attempt ends whose own time is over."""
    return UpstreamError(
        "no answer in the time of one try",
        reason=Reason.PER_TRY_TIMEOUT,
        status_hint=504,
        is_unprocessed=is_unprocessed,
    )


def with_fields(reply: LocalReply, rule: LinkedRule | None) -> LocalReply:
    """Return a reply with the fields that the rule's VPCIngress wants on every answer."""
    if rule is None or not rule.reply_fields:
        return reply
    return msgspec.structs.replace(reply, headers=(*reply.headers, *rule.reply_fields))


def timed_out(reason: Reason) -> LocalReply:
    """Return what to say when a deadline has passed, by what it was for."""
    if reason is Reason.BODY_TIMEOUT:
        return LocalReply(status=408, reason=reason, detail="the request body came too slowly")
    if reason is Reason.STREAM_IDLE_TIMEOUT:
        return LocalReply(status=504, reason=reason, detail="nothing moved for as long as the route allows")
    if reason is Reason.PER_TRY_TIMEOUT:
        return LocalReply(status=504, reason=reason, detail="the client was too slow for the time of one try")
    return LocalReply(status=504, reason=reason, detail="the request took longer than the route allows")


def admits(snapshot: Snapshot, template: Template, rule: LinkedRule | None) -> bool:
    """Tell whether the connection that a request came by is good for its host, and for its rule."""
    return snapshot.admits(template.listener, template.client_auth, template.host, rule)


def refuse(snapshot: Snapshot, template: Template, *, most_bytes: int, max_via_hops: int) -> LocalReply | None:
    """Return the reply to a request that must not go anywhere, whatever the routes say.

    Args:
        most_bytes: The listener's `max_request_body_bytes`, 0 = none.
    """
    if template.refusal is not None:
        return template.refusal
    if template.via_hops > max_via_hops:
        return LocalReply(status=508, reason=Reason.LOOP_DETECTED, detail="the request has passed here too often")
    if template.scheme == "https" and not snapshot.serves_host(template.listener, template.host, template.identity):
        if snapshot.guards and not admits(snapshot, template, None):
            return NOT_ADMITTED
        return LocalReply(status=421, reason=Reason.MISDIRECTED, detail="the host is not served on this connection")
    if most_bytes and template.content_length is not None and template.content_length > most_bytes:
        return TOO_LARGE
    if template.is_options_star:
        return LocalReply(status=200, reason=Reason.ROUTED)
    return None


def cut_short(downstream: Downstream, request: Request, trace: Trace, error: UpstreamError) -> None:
    """End a response that has begun so that nobody takes it for complete."""
    trace.reason = error.reason
    if request.template.is_grpc and downstream.protocol == "h2" and not downstream.is_gone:
        is_late = error.reason in (Reason.REQUEST_TIMEOUT, Reason.PER_TRY_TIMEOUT)
        code = grpc.GrpcStatus.DEADLINE_EXCEEDED if is_late else grpc.GrpcStatus.UNAVAILABLE
        downstream.send_end(grpc.status_fields(code, str(error.reason)))
        downstream.flush()
    else:
        downstream.abort(error.reason)
