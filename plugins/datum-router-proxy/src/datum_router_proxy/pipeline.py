"""A request's life, top to bottom: the same for every pairing of HTTP/1.1 and HTTP/2.

Theory of operation. `serve` is what can end a request early, `_forward` what happens if nothing does: match, filter,
choose, try, try again. The module `attempt` is one try: connection, head, body; `relay` is the response on its way to
the client. The module `pump` is under both: it moves bytes and waits. Requests that need nothing of all this take the
lane of the module `express`, and come here only if something is not as expected.

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
from collections.abc import Iterable

import trio

from datum_router.compiler.link import LinkedRule, Snapshot
from datum_router.errors import LocalProtocolError, PluginContractError, RemoteProtocolError, UpstreamError
from datum_router.filters.base import apply_request
from datum_router.health.circuit import ServiceLimits
from datum_router.model.endpoint import EndpointKey
from datum_router.model.request import LocalReply
from datum_router.model.snapshot import Holder
from datum_router.plugins.protocols import DataPlaneObserver
from datum_router.policy.timeout import request_deadline
from datum_router.reasons import Reason
from datum_router_proxy.accounts import Accounts
from datum_router_proxy.admission import Admission
from datum_router_proxy.answers import DateField
from datum_router_proxy.attempt import Attempts, Failure
from datum_router_proxy.body import BodyTooLarge, RequestBody
from datum_router_proxy.exchange import (
    ClientGone,
    Downstream,
    Field,
)
from datum_router_proxy.express import Begun, ExpressLane
from datum_router_proxy.extras import Extras
from datum_router_proxy.flight import Flights
from datum_router_proxy.gate import Gate, is_kept
from datum_router_proxy.hedge import Hedges
from datum_router_proxy.limit import IdleClock
from datum_router_proxy.loop import DeadlineExpired, Loop, TaskCancelled, current_task
from datum_router_proxy.pump import Pump
from datum_router_proxy.relay import Relay
from datum_router_proxy.replies import (
    LISTENER_GONE,
    NOT_ADMITTED,
    TOO_LARGE,
    admits,
    cut_short,
    nobody_left,
    reason_of,
    refuse,
    send_local_reply,
    timed_out,
    with_fields,
)
from datum_router_proxy.request import (
    Request,
    RequestIds,
    Template,
)
from datum_router_proxy.settings import ProxySettings
from datum_router_proxy.sidecalls import SideCalls
from datum_router_proxy.trace import Trace
from datum_router_proxy.upstream.transport import Transport
from datum_router_proxy.wire.hpack_codec import LineCache
from datum_router_proxy.wire.http1 import HeadCache, Http1Limits

log = logging.getLogger(__name__)

_CLIENT_FAULTS = frozenset((400, 405, 408, 413, 414, 417, 421, 431, 501, 508))
_NO_EXCLUSIONS: frozenset[EndpointKey] = frozenset()


class Pipeline:
    """Serves requests; one per process. It is what connections know as their `Server`.

    Attributes:
        is_draining: Answers over HTTP/1 say that they are the last one of their connection: we end, or memory is short.
        overload_reply: What every new request is told instead of being served (threat E8); in_flight: those under way.
        flights: How requests begin that may need no step of a task of their own.
        admission: Keeps requests out while there is more to do than can be done.
        gate: Asked for requests that limits hold for.
        extras: What rules have beside plain filters, and the templates of our own answers.
        tunnels, accounts: WebSockets that are open, by the task of each; what requests tell telemetry.
    """

    __slots__ = (
        "_attempts", "_date", "_express", "_hedges", "_holder", "_ids", "_listener_limits", "_observer", "_pump",
        "_transport", "accounts", "admission", "extras", "flights", "gate", "h1_cache", "h1_limits", "h2_lines",
        "in_flight", "is_draining", "loop", "overload_reply", "settings", "tunnels",
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
        self.gate = Gate(loop, settings)
        self._listener_limits: dict[str, int] = {}
        self._pump = pump = Pump(loop, settings)
        self._date = DateField()
        relay = Relay(loop, settings, pump=pump, date=self._date, gate=self.gate)
        self.tunnels = relay.tunnels
        self._hedges = Hedges(loop, transport, observer, self.accounts, settings)
        self._attempts = Attempts(loop, transport, observer, self.accounts, settings, pump=pump, relay=relay)
        self._ids = RequestIds(loop.rng)
        self.admission = Admission(loop, target_s=settings.shed_queue_age_s)
        self._express = ExpressLane(
            loop, transport, observer, self.accounts, self._date, self._ids, self.admission, settings.max_via_hops
        )
        self.flights = Flights(self, self._express, holder)
        self.extras = Extras(loop, settings, self.accounts, SideCalls(transport, observer))

    def rejected(self, protocol: str, reason: Reason) -> None:
        """Count a refusal."""
        self._observer.rejected(protocol, reason)

    def limit_body(self, listener: str, most_bytes: int) -> None:
        """Set a listener's `max_request_body_bytes`, 0 = none."""
        self._listener_limits[listener] = most_bytes

    def body_limit(self, listener: str) -> int:
        """Return a listener's `max_request_body_bytes`, 0 = none."""
        return self._listener_limits.get(listener, 0)

    def unwilling(self) -> LocalReply | None:
        """Return what a new request is told instead of being looked at, None if it is let in; once for each."""
        if self.overload_reply is not None:
            return self.overload_reply
        shedder = self.admission.shedder
        return self.admission.reply if shedder.is_shedding and not shedder.admits() else None

    def shed(self) -> None:
        """Forget what is only kept to be faster (threat E8)."""
        self.h1_cache.clear()
        self.h2_lines.lines.clear()
        self._express.shed()

    def close_tunnels(self) -> None:
        """Begin the closing handshake of every WebSocket (threat P9)."""
        for task, tunnel in self.tunnels.items():
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
        await self._serve(downstream, request, begun, self._holder.current)

    async def serve_departed(self, downstream: Downstream, template: Template, snapshot: Snapshot | None) -> None:
        """Answer one request of a connection whose listener has gone; see `server.departed`.

        Args:
            snapshot: The last one with the listener; None if that is too long ago.
        """
        downstream.settle()
        request = template.request(template.kept_id or self._ids.make())
        if snapshot is None:
            await self._serve(downstream, request, None, self._holder.current, LISTENER_GONE)
        else:
            await self._serve(downstream, request, None, snapshot)

    async def turn_away(self, downstream: Downstream, template: Template) -> None:
        """Answer one request that there is no time for; it has been put off already (see `admission`)."""
        downstream.settle()
        request = template.request(template.kept_id or self._ids.make())
        await self._serve(downstream, request, None, self._holder.current, self.admission.reply)

    async def _serve(
        self,
        downstream: Downstream,
        request: Request,
        begun: Begun | None,
        snapshot: Snapshot,
        refusal: LocalReply | None = None,
    ) -> None:
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
                reply = refusal or await self._forward(downstream, request, trace, begun, snapshot)
                if reply is self.admission.reply and refusal is None:
                    await self.admission.hold(current_task())
            except DeadlineExpired as error:
                reply = timed_out(error.reason)
            except BodyTooLarge:
                reply = TOO_LARGE
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
            body.close()
            self.accounts.ended(downstream.protocol, request, trace, self.loop.now)

    async def _forward(
        self, downstream: Downstream, request: Request, trace: Trace, begun: Begun | None, snapshot: Snapshot
    ) -> LocalReply | None:
        """Get the response from an upstream to the client; return what to say instead if there is none."""
        head = request.head
        rule: LinkedRule | None
        if begun is not None:
            rule = begun.rule  # it was found, and its filters reply nothing
            trace.rule, trace.linked = rule.rule, rule
        else:
            if (unwilling := self.unwilling()) is not None:
                return unwilling
            most_bytes = self._listener_limits.get(request.template.listener, 0)
            refusal = refuse(snapshot, request.template, most_bytes=most_bytes, max_via_hops=self.settings.max_via_hops)
            if refusal is not None:
                return refusal
            rule = snapshot.match(head)
            if snapshot.guards and not admits(snapshot, request.template, rule):
                return NOT_ADMITTED
            if rule is not None:  # before limits are asked: their 429 is an answer of the rule, too
                trace.rule, trace.linked = rule.rule, rule
            if snapshot.has_limiters or (rule is not None and rule.limiter is not None):
                refusal = await self.gate.admit(snapshot, rule, head, trace)
                if refusal is not None:
                    return refusal
        if rule is None:
            return LocalReply(status=404, reason=Reason.NO_ROUTE, detail="no route matches the request")
        if rule.extra is None:
            filtered = apply_request(rule.filters, head)
        else:
            filtered = await self.extras.on_request(rule, rule.extra, downstream, request, trace)
        if isinstance(filtered, LocalReply):
            return filtered
        head = filtered
        trace.deadline = request_deadline(
            rule.timeouts, now=trace.started_at, client_timeout_s=request.template.client_timeout_s
        )
        if trace.deadline <= trace.started_at:  # it came late already: nobody waits for the answer
            return timed_out(Reason.REQUEST_TIMEOUT)
        task = current_task()
        task.deadline, task.deadline_reason = trace.deadline, Reason.REQUEST_TIMEOUT
        if rule.timeouts.stream_idle_s:
            trace.idle = IdleClock(rule.timeouts.stream_idle_s, self.loop.now)
        picked_by = self.gate.enter(rule, request.head, head, trace) if rule.needs_pipeline else head
        tag = b"" if trace.session is None else trace.session.tag

        excluded = _NO_EXCLUSIONS
        failure: Failure | None = None
        held: tuple[ServiceLimits, ...] = ()
        while True:
            try:
                lease = (
                    begun.lease
                    if begun is not None
                    else rule.select(
                        picked_by,
                        rng=self.loop.rng,
                        now=self.loop.now,
                        excluded=excluded,
                        is_retry=failure is not None,
                        tag=tag,
                    )
                )
            finally:
                for limits in held:
                    limits.end_turn()
            if isinstance(lease, LocalReply):
                return lease if failure is None else nobody_left(failure.reply)
            raced = None
            try:
                sent = apply_request(lease.filters, head) if lease.filters else head
                if isinstance(sent, LocalReply):
                    return sent
                may_race = rule.may_hedge and begun is None and not (tag and is_kept(rule, lease, tag))
                race = self._hedges.begin(request, head, rule, lease, trace) if may_race else None
                if race is not None:
                    raced = await race.run(downstream)
                    excluded |= race.tried
                    lease = raced.lease or lease
                excluded |= {lease.key}
                failure = await self._attempts.run(
                    downstream, request, sent, rule, lease, trace, begun, raced, excluded
                )
            finally:
                lease.release()
                begun = None
            if failure is None:
                return None
            if not failure.decision.retry:
                return failure.reply
            task.deadline, task.deadline_reason = trace.deadline, Reason.REQUEST_TIMEOUT
            held = rule.retry_limits(lease.state)
            await self._pause(downstream, failure.decision.delay_s, held)
            trace.body.rewind()

    async def _pause(self, downstream: Downstream, delay_s: float, held: Iterable[ServiceLimits]) -> None:
        """Wait before another attempt, exactly: the sweep is too coarse for a backoff of milliseconds.

        Args:
            held: Keep a place for it meanwhile.
        """
        for limits in held:
            limits.hold_retry()
        if delay_s:
            downstream.watch()
            try:
                await self.loop.in_trio(functools.partial(trio.sleep, delay_s))
            except BaseException:
                for limits in held:
                    limits.let_go_retry()
                raise
            finally:
                downstream.unwatch()
        for limits in held:
            limits.begin_retry()

    # --- parts -----------------------------------------------------------------------------------------------------

    def _answer(self, downstream: Downstream, request: Request, trace: Trace, reply: LocalReply) -> None:
        """Say it if it still can be said; otherwise cut the response that has begun."""
        reply = self.extras.on_reply(trace, request, reply)
        trace.reason = reason_of(reply)
        reply = with_fields(reply, trace.linked)
        if reply.status in _CLIENT_FAULTS or trace.reason is Reason.OVERLOADED:
            self._observer.rejected(downstream.protocol, trace.reason)
        if downstream.is_gone:
            raise ClientGone
        if downstream.has_started:
            error = UpstreamError(reply.detail, reason=trace.reason, status_hint=reply.status)
            cut_short(downstream, request, trace, error)
            return
        try:
            trace.status = send_local_reply(downstream, request, reply, self._date_field())
        except LocalProtocolError as error:
            log.error("local reply refused", extra={"error": str(error)})
            plain = LocalReply(status=500, reason=Reason.BAD_FILTER_OUTPUT, detail="a filter's reply may not be sent")
            trace.reason = Reason.BAD_FILTER_OUTPUT
            trace.status = send_local_reply(downstream, request, plain, self._date_field())

    def _date_field(self) -> Field:
        """Return the Date field as of now."""
        return self._date.refresh(self.loop.now).field
