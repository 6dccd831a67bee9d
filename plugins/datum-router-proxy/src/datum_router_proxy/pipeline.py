"""A request's life, top to bottom: the same for every pairing of HTTP/1.1 and HTTP/2.

Theory of operation. `serve` is what can end a request early, `_forward` what happens if nothing does: match, filter,
choose, try, try again. `_attempt` is one try: connection, head, body, response. The module `pump` is under it: it moves
bytes and waits. Requests that need nothing of all this take the lane of the module `express`, and come here only if
something is not as expected.

Invariants
- The snapshot is read once. A lease is released exactly once per attempt, and each attempt has one Outcome.
- An upstream exchange that is not finished is cancelled when its attempt ends, whatever ended it: so a client that
  leaves, or a deadline, reaches the upstream at once.
- Once a response head was queued nothing is retried, and an attempt that fails then ends in an abort that the client
  cannot take for a complete answer (threat U2); gRPC has trailers for saying so (D23).
"""

from __future__ import annotations

import functools
import logging
import math

import trio

from datum_router.compiler.link import Lease, LinkedRule, Snapshot
from datum_router.errors import LocalProtocolError, PluginContractError, RemoteProtocolError, UpstreamError
from datum_router.filters.base import apply_request, apply_response
from datum_router.model.endpoint import EndpointKey
from datum_router.model.outcome import Outcome
from datum_router.model.request import Headers, LocalReply, RequestHead, ResponseHead
from datum_router.model.snapshot import Holder
from datum_router.plugins.protocols import DataPlaneObserver
from datum_router.policy.retry import IDEMPOTENT, RetryDecision, decide
from datum_router.policy.timeout import remaining_s, request_deadline
from datum_router.reasons import Reason
from datum_router_proxy.accounts import Accounts
from datum_router_proxy.answers import DateField
from datum_router_proxy.body import BodyTooLarge, RequestBody
from datum_router_proxy.channel import RECV_BYTES
from datum_router_proxy.exchange import (
    ClientGone,
    Downstream,
    End,
    Field,
    Interim,
    Upstream,
    UpstreamHead,
)
from datum_router_proxy.express import Begun, ExpressLane
from datum_router_proxy.flight import Flights
from datum_router_proxy.loop import DeadlineExpired, Loop, Task, TaskCancelled, current_task, park
from datum_router_proxy.pump import Pump
from datum_router_proxy.replies import (
    NOT_ADMITTED,
    admits,
    for_upstream_error,
    nobody_left,
    reason_of,
    refuse,
    send_local_reply,
    timed_out,
)
from datum_router_proxy.request import (
    Request,
    RequestIds,
    Template,
    is_clients_choice,
    upstream_request,
)
from datum_router_proxy.settings import ProxySettings
from datum_router_proxy.trace import Trace
from datum_router_proxy.tunnel import Tunnel
from datum_router_proxy.upstream.transport import Transport
from datum_router_proxy.wire import grpc, hygiene
from datum_router_proxy.wire.hpack_codec import LineCache
from datum_router_proxy.wire.http1 import HeadCache, Http1Limits

log = logging.getLogger(__name__)

_CLIENT_FAULTS = frozenset((400, 405, 408, 413, 414, 417, 421, 431, 501, 508))
_NOT_THE_ENDPOINT = frozenset((Reason.POOL_OVERFLOW, Reason.LOCAL_RESOURCES, Reason.BAD_FILTER_OUTPUT, Reason.INTERNAL))
"""How an attempt may end that says nothing about its endpoint, and must not count against it."""
_NO_EXCLUSIONS: frozenset[EndpointKey] = frozenset()


class Failure:
    """An attempt that led to no response: how it ended, what the client is told if there is no other, and what next."""

    __slots__ = ("decision", "reply")

    def __init__(self, decision: RetryDecision, reply: LocalReply) -> None:
        self.decision = decision
        self.reply = reply


class Pipeline:
    """Serves requests; one per process. It is what connections know as their `Server`.

    Attributes:
        is_draining: Answers over HTTP/1 say that they are the last one of their connection: we end, or memory is short.
        overload_reply: What every new request is told instead of being served (threat E8); in_flight: those under way.
        flights: How requests begin that may need no step of a task of their own.
        tunnels, accounts: WebSockets that are open and the task of each; what requests tell telemetry.
    """

    __slots__ = (
        "_date", "_express", "_holder", "_ids", "_listener_limits", "_observer", "_pump", "_transport", "accounts",
        "flights", "h1_cache", "h1_limits", "h2_lines", "in_flight", "is_draining", "loop", "overload_reply",
        "settings", "tunnels",
    )  # fmt: skip

    def __init__(
        self,
        loop: Loop,
        holder: Holder[Snapshot],
        observer: DataPlaneObserver,
        settings: ProxySettings,
        transport: Transport,
    ) -> None:
        self.loop = loop
        self.settings = settings
        self.h1_limits = Http1Limits()
        self.h1_cache = HeadCache()
        self.h2_lines = LineCache()
        self.is_draining = False
        self.overload_reply: LocalReply | None = None
        self.in_flight = 0
        self._holder = holder
        self._observer = observer
        self.accounts = Accounts(loop, observer)
        self._transport = transport
        self.tunnels: dict[Tunnel, Task] = {}
        self._listener_limits: dict[str, int] = {}
        self._pump = Pump(loop, settings)
        self._date = DateField()
        self._ids = RequestIds(loop.rng)
        self._express = ExpressLane(
            loop, transport, observer, self.accounts, self._date, self._ids, max_via_hops=settings.max_via_hops
        )
        self.flights = Flights(self, self._express, holder)

    def rejected(self, protocol: str, reason: Reason) -> None:
        """Count a refusal."""
        self._observer.rejected(protocol, reason)

    def limit_body(self, listener: str, most_bytes: int) -> None:
        """Set a listener's `max_request_body_bytes`, 0 = none."""
        self._listener_limits[listener] = most_bytes

    def body_limit(self, listener: str) -> int:
        """Return a listener's `max_request_body_bytes`, 0 = none."""
        return self._listener_limits.get(listener, 0)

    def shed(self) -> None:
        """Forget what is only kept to be faster (threat E8)."""
        self.h1_cache.clear()
        self.h2_lines.lines.clear()
        self._express.shed()

    def close_tunnels(self) -> None:
        """Begin the closing handshake of every WebSocket (threat P9)."""
        for tunnel, task in self.tunnels.items():
            tunnel.must_close = True
            task.wake()

    # --- a request's life ----------------------------------------------------------------------------------------

    async def serve(self, downstream: Downstream, template: Template, begun: Begun | None = None) -> None:
        """Answer one request, whatever happens; on return the client has the whole answer, or an abort.

        Args:
            begun: What one of the `flights` has begun of it.
        """
        # The lane counts no bytes: a listener with a limit on bodies has them go through the pipeline.
        is_limited = template.has_body and self._listener_limits.get(template.listener)
        if begun is None or begun.is_new or begun.is_over:
            rule: LinkedRule | None = None
            if begun is not None and begun.is_over:
                rule = begun.rule
            elif template.is_simple and not self.is_draining and not is_limited:
                rule = begun.rule if begun is not None else self._express.find_rule(template, self._holder.current)
            if rule is not None:
                self.in_flight += 1
                try:
                    if begun is None:
                        begun = self._express.choose(template, rule)
                    if begun.is_over and begun.raised is not None:
                        raise begun.raised
                    task, protocol = current_task(), downstream.protocol
                    if begun.is_over or await self._express.serve(downstream, template, begun, task, protocol):
                        if not downstream.is_flushed:
                            await self._pump.flushed(downstream)
                        return
                except (ClientGone, TaskCancelled, DeadlineExpired) as error:
                    reason = Reason.DOWNSTREAM_RESET if isinstance(error, ClientGone) else error.reason
                    self._observer.request_reason(downstream.protocol, reason)
                    downstream.abort(reason)
                    return
                except Exception:
                    log.exception("request failed", extra={"route": rule.rule.route})
                    downstream.abort(Reason.INTERNAL)
                    return
                finally:
                    self.in_flight -= 1
        downstream.settle()
        raw_id = (begun.request_id if begun is not None else b"") or template.kept_id or self._ids.make()
        request = template.request(raw_id)
        await self._serve(downstream, request, begun)

    async def _serve(self, downstream: Downstream, request: Request, begun: Begun | None) -> None:
        template = request.template
        body = RequestBody(
            downstream,
            self.settings,
            has_body=template.has_body,
            is_grpc=template.is_grpc,
            most_bytes=self._listener_limits.get(template.listener, 0),
        )
        trace = Trace(body, self.loop.now if begun is None else begun.started_at)
        self.in_flight += 1
        try:
            reply: LocalReply | None
            try:
                reply = await self._forward(downstream, request, trace, begun)
            except DeadlineExpired as error:
                reply = timed_out(error.reason)
            except BodyTooLarge as error:
                reply = LocalReply(status=413, reason=error.reason, detail="the request body is too large")
            except RemoteProtocolError as error:
                reply = LocalReply(status=error.status_hint, reason=error.reason, detail="the request body is broken")
            except (LocalProtocolError, PluginContractError) as error:
                route = trace.rule.route if trace.rule else ""
                log.error("message refused", extra={"error": str(error), "route": route})
                reply = LocalReply(status=500, reason=error.reason, detail="a filter or a plugin broke its promise")
            if reply is not None:
                self._answer(downstream, request, trace, reply)
            await self._pump.flushed(downstream)
        except ClientGone:
            trace.reason = Reason.DOWNSTREAM_RESET
            downstream.abort(Reason.DOWNSTREAM_RESET)
        except (TaskCancelled, DeadlineExpired) as error:
            trace.reason = error.reason
            downstream.abort(error.reason)
        except Exception:
            trace.reason = Reason.INTERNAL
            log.exception("request failed", extra={"request_id": request.request_id})
            downstream.abort(Reason.INTERNAL)
        finally:
            self.in_flight -= 1
            self.accounts.ended(downstream.protocol, request, trace, self.loop.now)

    async def _forward(
        self, downstream: Downstream, request: Request, trace: Trace, begun: Begun | None
    ) -> LocalReply | None:
        """Get the response from an upstream to the client; return what to say instead if there is none."""
        head = request.head
        rule: LinkedRule | None
        if begun is not None:
            rule = begun.rule  # it was found, and its filters reply nothing
        else:
            if self.overload_reply is not None:
                return self.overload_reply
            snapshot = self._holder.current
            most_bytes = self._listener_limits.get(request.template.listener, 0)
            refusal = refuse(snapshot, request.template, most_bytes=most_bytes, max_via_hops=self.settings.max_via_hops)
            if refusal is not None:
                return refusal
            rule = snapshot.match(head)
            if snapshot.guards and not admits(snapshot, request.template, rule):
                return NOT_ADMITTED
        if rule is None:
            return LocalReply(status=404, reason=Reason.NO_ROUTE, detail="no route matches the request")
        trace.rule = rule.rule
        trace.linked = rule
        filtered = apply_request(rule.filters, head)
        if isinstance(filtered, LocalReply):
            return filtered
        head = filtered
        trace.deadline = request_deadline(
            rule.timeouts, now=trace.started_at, grpc_timeout_s=request.template.grpc_timeout_s
        )
        task = current_task()
        task.deadline, task.deadline_reason = trace.deadline, Reason.REQUEST_TIMEOUT

        excluded = _NO_EXCLUSIONS
        failure: Failure | None = None
        while True:
            lease = (
                begun.lease
                if begun is not None
                else rule.select(
                    head, rng=self.loop.rng, now=self.loop.now, excluded=excluded, is_retry=failure is not None
                )
            )
            if isinstance(lease, LocalReply):
                return lease if failure is None else nobody_left(failure.reply)
            try:
                failure = await self._attempt(downstream, request, head, rule, lease, trace, begun)
            finally:
                lease.release()
                begun = None
            if failure is None:
                return None
            if not failure.decision.retry:
                return failure.reply
            excluded |= {lease.key}
            if failure.decision.delay_s:
                await self._pause(downstream, failure.decision.delay_s)
            trace.body.rewind()

    async def _attempt(
        self,
        downstream: Downstream,
        request: Request,
        head: RequestHead,
        rule: LinkedRule,
        lease: Lease,
        trace: Trace,
        begun: Begun | None,
    ) -> Failure | None:
        """Try one endpoint; None once the response has been relayed or, having begun, aborted."""
        trace.attempts += 1
        trace.service = lease.state.service.key
        trace.endpoint = lease.key
        template = request.template
        body = trace.body
        upstream: Upstream | None = None
        status = 0
        is_fresh = False
        ended = Reason.INTERNAL
        is_unprocessed = False
        try:
            while True:
                if begun is not None and begun.upstream is not None:
                    upstream = begun.upstream
                    body.note_sent()
                    if begun.raised is not None:
                        raise begun.raised
                elif begun is not None and begun.raised is not None:
                    raise begun.raised
                else:
                    upstream = await self._transport.open(
                        lease,
                        downstream,
                        is_tunnel=template.is_tunnel,
                        is_fresh=is_fresh,
                        connect_s=rule.timeouts.connect_s,
                    )
                try:
                    if begun is None or begun.upstream is None:
                        upstream.send_head(
                            upstream_request(request, head, trace.deadline, now=self.loop.now, rng=self.loop.rng)
                        )
                        if not template.has_body and not template.is_tunnel:
                            upstream.send_end()
                    response = await self._response(downstream, upstream, trace)
                    break
                except UpstreamError as error:
                    is_stale = upstream.is_reused and not is_fresh and not upstream.has_received
                    may_repeat = error.is_unprocessed or not upstream.is_sent or head.method in IDEMPOTENT
                    if not (is_stale and may_repeat and body.is_replayable and not template.is_tunnel):
                        raise
                    # The peer closed an idle connection as we took it (threat U4): once more, on a new one.
                    upstream.cancel()
                    body.rewind()
                    is_fresh = True
                    begun = None
            status = response.status
            if lease.trial is not None:
                # Its head decides: what is streamed afterwards may take hours.
                lease.trial.settle(self._outcome(lease, upstream, status=status, reason=Reason.ROUTED).outcome_class)
            if status in rule.retry.retry_on_status:
                outcome = self._outcome(lease, upstream, status=status, reason=Reason.ROUTED)
                decision = self._decide(outcome, head, rule, lease, trace, downstream)
                if decision.retry:
                    ended = Reason.ROUTED
                    reply = LocalReply(status=status, reason=Reason.ROUTED, detail=f"the upstream answered {status}")
                    return Failure(decision, reply)
            await self._relay(downstream, request, upstream, rule, response, trace)
            ended = Reason.ROUTED
            return None
        except UpstreamError as error:
            ended = error.reason
            is_unprocessed = error.is_unprocessed
            log.debug("attempt failed", extra={"error": str(error), "request_id": request.request_id})
            outcome = self._outcome(lease, upstream, status=status, reason=ended, is_unprocessed=is_unprocessed)
            if downstream.has_started:
                self._cut_short(downstream, request, trace, error)
                return None
            return Failure(self._decide(outcome, head, rule, lease, trace, downstream), for_upstream_error(error))
        except ClientGone:
            ended = Reason.DOWNSTREAM_RESET
            raise
        except (TaskCancelled, DeadlineExpired) as error:
            # A deadline counts against the endpoint, unless the client chose it or kept us waiting.
            is_ours = error.reason is Reason.CONNECT_TIMEOUT or (
                error.reason is Reason.REQUEST_TIMEOUT and not is_clients_choice(request, rule)
            )
            ended = Reason.RESPONSE_TIMEOUT if is_ours else Reason.DOWNSTREAM_RESET
            raise
        except (RemoteProtocolError, BodyTooLarge):
            ended = Reason.DOWNSTREAM_RESET
            raise
        finally:
            if upstream is not None:
                upstream.cancel()
            if ended not in _NOT_THE_ENDPOINT:
                outcome = self._outcome(lease, upstream, status=status, reason=ended, is_unprocessed=is_unprocessed)
                self._observer.attempt_ended(outcome)
                if lease.trial is not None:
                    lease.trial.settle(outcome.outcome_class)

    async def _response(self, downstream: Downstream, upstream: Upstream, trace: Trace) -> UpstreamHead:
        """Move the request up until the final response head comes; 103 is passed on, other interim ones are not."""
        interim = 0
        while True:
            event = await self._pump.next_event(downstream, upstream, trace)
            if isinstance(event, UpstreamHead):
                return event
            if isinstance(event, Interim):
                interim += 1
                if interim > self.settings.max_interim:
                    raise UpstreamError("too many interim responses", reason=Reason.TOO_MANY_INTERIM)
                if event.status == 103:
                    downstream.send_informational(103, hygiene.response_fields_for_downstream(event.fields))
            else:
                raise AssertionError("upstream: body before head")  # noqa: TRY004  # a broken invariant of ours

    async def _relay(
        self,
        downstream: Downstream,
        request: Request,
        upstream: Upstream,
        rule: LinkedRule,
        response: UpstreamHead,
        trace: Trace,
    ) -> None:
        """Send the response to the client, to its last byte."""
        template = request.template
        fields = hygiene.response_fields_for_downstream(
            response.fields, via_protocol=response.via, nominations=response.nominations
        )
        if not any(name == b"date" for name, _ in fields):
            fields.append(self._date_field())
        head = apply_response(rule.filters, ResponseHead(status=response.status, headers=Headers(fields)))
        if response.is_switch:
            await self._tunnel(downstream, upstream, head, trace)
            return
        if template.is_tunnel and template.websocket_key is None and 200 <= head.status < 300:
            # 2xx to extended CONNECT means a tunnel (RFC 9110 section 9.3.6), and there is none.
            raise UpstreamError("no switch of protocols", reason=Reason.BAD_UPGRADE)
        if template.is_grpc and not _speaks_grpc(response):
            code = grpc.status_from_http(response.status)
            said = f"the upstream answered HTTP {response.status} without gRPC"
            downstream.send_head(
                200, [*grpc.local_reply_fields(code, said), self._date_field()], content_length=None, is_bodyless=True
            )
            downstream.send_end()
            trace.status = 200
            return

        downstream.send_head(
            head.status,
            head.headers.fields,
            content_length=response.content_length,
            is_bodyless=response.is_bodyless,
        )
        trace.status = head.status
        trace.body.release()
        has_status = template.is_grpc and any(name == b"grpc-status" for name, _ in response.fields)
        moves = 0
        while True:
            event = await self._pump.next_event(downstream, upstream, trace)
            if type(event) is bytes:
                trace.bytes_out += len(event)
                downstream.send_data(event)
                moves += 1 + len(event) // RECV_BYTES  # a long piece counts for several
                if moves >= self.settings.moves_per_turn:
                    moves = 0
                    upstream.flush()
                    downstream.flush()
                    current_task().wake()
                    await park()
            elif isinstance(event, End):
                trailers = event.trailers
                if template.is_grpc and not has_status and not any(name == b"grpc-status" for name, _ in trailers):
                    missing = grpc.status_fields(grpc.GrpcStatus.INTERNAL, "the upstream's response has no grpc-status")
                    trailers = (*trailers, *missing)
                downstream.send_end(
                    hygiene.trailers_to_forward(trailers, te_trailers=template.te_trailers, is_grpc=template.is_grpc)
                    if trailers
                    else ()
                )
                downstream.flush()
                upstream.finish()
                return

    async def _tunnel(self, downstream: Downstream, upstream: Upstream, head: ResponseHead, trace: Trace) -> None:
        downstream.accept_tunnel(head.headers.fields)
        trace.status = 101
        tunnel = Tunnel(self.loop, self.settings, downstream, upstream)
        task = current_task()
        self.tunnels[tunnel] = task
        try:
            await tunnel.run()
            upstream.finish()
        finally:
            del self.tunnels[tunnel]
            task.deadline = math.inf
            trace.body.bytes_in = tunnel.bytes_in
            trace.bytes_out = tunnel.bytes_out

    async def _pause(self, downstream: Downstream, delay_s: float) -> None:
        """Wait before another attempt, exactly: the sweep is too coarse for a backoff of milliseconds."""
        downstream.watch()
        try:
            await self.loop.in_trio(functools.partial(trio.sleep, delay_s))
        finally:
            downstream.unwatch()

    # --- parts -----------------------------------------------------------------------------------------------------

    def _outcome(
        self, lease: Lease, upstream: Upstream | None, *, status: int, reason: Reason, is_unprocessed: bool = False
    ) -> Outcome:
        return Outcome(
            service=lease.state.service.key,
            endpoint=lease.key,
            status=status,
            reason=reason,
            is_sent=upstream is not None and upstream.is_sent,
            is_unprocessed=is_unprocessed,
        )

    def _decide(
        self, outcome: Outcome, head: RequestHead, rule: LinkedRule, lease: Lease, trace: Trace, downstream: Downstream
    ) -> RetryDecision:
        decision = decide(
            outcome,
            attempt=trace.attempts,
            method=head.method,
            policy=rule.retry,
            is_body_replayable=trace.body.is_replayable,
            is_response_started=downstream.has_started,
            remaining_s=remaining_s(trace.deadline, now=self.loop.now),
            budget_ok=lease.state.limits.has_retry_budget,
            rng=self.loop.rng,
        )
        return self.accounts.decided(decision)

    def _answer(self, downstream: Downstream, request: Request, trace: Trace, reply: LocalReply) -> None:
        """Say it if it still can be said; otherwise cut the response that has begun."""
        trace.reason = reason_of(reply)
        if reply.status in _CLIENT_FAULTS or trace.reason is Reason.OVERLOADED:
            self._observer.rejected(downstream.protocol, trace.reason)
        if downstream.is_gone:
            raise ClientGone
        if downstream.has_started:
            error = UpstreamError(reply.detail, reason=trace.reason, status_hint=reply.status)
            self._cut_short(downstream, request, trace, error)
            return
        try:
            trace.status = send_local_reply(downstream, request, reply, self._date_field())
        except LocalProtocolError as error:
            log.error("local reply refused", extra={"error": str(error)})
            plain = LocalReply(status=500, reason=Reason.BAD_FILTER_OUTPUT, detail="a filter's reply may not be sent")
            trace.reason = Reason.BAD_FILTER_OUTPUT
            trace.status = send_local_reply(downstream, request, plain, self._date_field())

    def _cut_short(self, downstream: Downstream, request: Request, trace: Trace, error: UpstreamError) -> None:
        """End a response that has begun so that nobody takes it for complete."""
        trace.reason = error.reason
        if request.template.is_grpc and downstream.protocol == "h2" and not downstream.is_gone:
            is_late = error.reason is Reason.REQUEST_TIMEOUT
            code = grpc.GrpcStatus.DEADLINE_EXCEEDED if is_late else grpc.GrpcStatus.UNAVAILABLE
            downstream.send_end(grpc.status_fields(code, str(error.reason)))
            downstream.flush()
        else:
            downstream.abort(error.reason)

    def _date_field(self) -> Field:
        """Return the Date field as of now."""
        return self._date.refresh(self.loop.now).field


def _speaks_grpc(response: UpstreamHead) -> bool:
    """Tell whether a response to a gRPC request is one: by its content type, or because it states a gRPC status."""
    return any(
        name == b"grpc-status" or (name == b"content-type" and grpc.is_grpc(value)) for name, value in response.fields
    )
