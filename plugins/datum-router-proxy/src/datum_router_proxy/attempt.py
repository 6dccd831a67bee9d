"""One try at an endpoint: connection, request, response; how it ended, and whether another one may follow.

Theory of operation. `Attempts.run` is called once per lease. It returns None once the response has been relayed (or has
begun and been cut short), else a `Failure`: what the client is told if nothing better comes, and what `policy.retry`
says of another try. Whatever happens, the exchange with the endpoint is over when it returns.
"""

from __future__ import annotations

import logging

from datum_router.compiler.lease import Lease
from datum_router.compiler.link import LinkedRule
from datum_router.errors import RemoteProtocolError, UpstreamError
from datum_router.model.endpoint import EndpointKey
from datum_router.model.outcome import Outcome
from datum_router.model.request import LocalReply, RequestHead
from datum_router.plugins.protocols import DataPlaneObserver
from datum_router.policy.retry import IDEMPOTENT, RetryDecision, decide
from datum_router.policy.retry_after import retry_after_s
from datum_router.policy.timeout import has_waited_for_client, is_clients_choice, remaining_s
from datum_router.reasons import Reason
from datum_router_proxy.accounts import Accounts
from datum_router_proxy.body import BodyTooLarge
from datum_router_proxy.exchange import ClientGone, Downstream, Interim, Upstream, UpstreamHead
from datum_router_proxy.express import Begun
from datum_router_proxy.hedge import Racer
from datum_router_proxy.limit import TryClock
from datum_router_proxy.loop import DeadlineExpired, Loop, TaskCancelled, current_task
from datum_router_proxy.outgoing import upstream_request
from datum_router_proxy.pump import Pump
from datum_router_proxy.relay import Relay
from datum_router_proxy.replies import cut_short, for_upstream_error, try_timed_out
from datum_router_proxy.request import Request
from datum_router_proxy.settings import ProxySettings
from datum_router_proxy.trace import Trace
from datum_router_proxy.upstream.transport import Transport
from datum_router_proxy.wire import chain, grpc, hygiene

log = logging.getLogger(__name__)

_NOT_THE_ENDPOINT = frozenset((Reason.POOL_OVERFLOW, Reason.LOCAL_RESOURCES, Reason.BAD_FILTER_OUTPUT, Reason.INTERNAL))
"""How an attempt may end that says nothing about its endpoint, and must not count against it."""


class Failure:
    """An attempt that led to no response: how it ended, what the client is told if there is no other, and what next."""

    __slots__ = ("decision", "reply")

    def __init__(self, decision: RetryDecision, reply: LocalReply) -> None:
        self.decision = decision
        self.reply = reply


class Attempts:
    """Makes attempts; one per pipeline."""

    __slots__ = ("_accounts", "_loop", "_observer", "_pump", "_relay", "_settings", "_transport")

    def __init__(
        self,
        loop: Loop,
        transport: Transport,
        observer: DataPlaneObserver,
        accounts: Accounts,
        settings: ProxySettings,
        *,
        pump: Pump,
        relay: Relay,
    ) -> None:
        self._loop = loop
        self._transport = transport
        self._observer = observer
        self._accounts = accounts
        self._settings = settings
        self._pump = pump
        self._relay = relay

    async def run(
        self,
        downstream: Downstream,
        request: Request,
        head: RequestHead,
        rule: LinkedRule,
        lease: Lease,
        trace: Trace,
        begun: Begun | None,
        raced: Racer | None,
        excluded: frozenset[EndpointKey],
    ) -> Failure | None:
        """Try one endpoint; None once the response has been relayed or, having begun, aborted.

        Args:
            excluded: Endpoints that have been asked, this one included.
            raced: The attempt that has decided a race: it is what is gone on with.
        """
        if raced is None:
            trace.attempts += 1
        if rule.has_try_limits:
            begun_at = (
                raced.begun_at if raced is not None else begun.started_at if begun is not None else self._loop.now
            )
            trace.tries = TryClock(rule.timeouts, begun_at, trace.body)
            trace.tries.arm(current_task(), self._loop)
        trace.service = lease.state.service.key
        trace.endpoint = lease.key
        trace.filters = lease.filters
        template = request.template
        body = trace.body
        upstream: Upstream | None = None
        status = 0
        is_fresh = False
        ended = Reason.INTERNAL
        is_unprocessed = False
        try:
            if raced is not None:
                upstream = raced.upstream
                if raced.error is not None:
                    raise raced.error
            while True:
                if raced is not None and raced.response is not None and upstream is not None:
                    response = raced.response
                    break
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
                            upstream_request(
                                request,
                                head,
                                rule,
                                trace.deadline,
                                attempts=trace.attempts,
                                now=self._loop.now,
                                rng=self._loop.rng,
                            )
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
            if trace.tries is not None:
                trace.tries.is_answered = True
            if lease.is_watched:
                # Its head decides: what is streamed afterwards may take hours.
                lease.settle(self._outcome(lease, upstream, status=status, reason=Reason.ROUTED).outcome_class)
            is_settled = (status >= 400 or response.is_bodyless) and chain.is_settled(response.fields)
            if (code := _retriable(response, request, rule)) is not None:
                outcome = self._outcome(lease, upstream, status=status, reason=Reason.ROUTED)
                asked_s = retry_after_s(response.fields, is_grpc=template.is_grpc)
                decision = self._decide(
                    outcome,
                    request,
                    head,
                    rule,
                    lease,
                    trace,
                    downstream,
                    code,
                    asked_s,
                    is_settled=is_settled,
                    has_other=rule.has_other(excluded),
                )
                if decision.retry:
                    ended = Reason.ROUTED
                    reply = LocalReply(status=status, reason=Reason.ROUTED, detail=f"the upstream answered {status}")
                    return Failure(decision, reply)
                is_settled = True
            is_settled = is_settled and template.via_hops > 0
            await self._relay.run(downstream, request, upstream, rule, response, trace, is_settled=is_settled)
            ended = Reason.ROUTED
            return None
        except (UpstreamError, DeadlineExpired) as caught:
            if isinstance(caught, UpstreamError):
                broken = caught
            elif caught.reason is Reason.PER_TRY_TIMEOUT and trace.stalled_at is None:
                broken = try_timed_out(is_unprocessed=upstream is None or not upstream.is_sent)
            else:
                ended = _blame(caught, request, rule, trace)
                raise
            ended = broken.reason
            is_unprocessed = broken.is_unprocessed
            log.debug("attempt failed", extra={"error": str(broken), "request_id": request.request_id})
            outcome = self._outcome(lease, upstream, status=status, reason=ended, is_unprocessed=is_unprocessed)
            if downstream.has_started:
                cut_short(downstream, request, trace, broken)
                return None
            return Failure(
                self._decide(outcome, request, head, rule, lease, trace, downstream), for_upstream_error(broken)
            )
        except ClientGone:
            ended = Reason.DOWNSTREAM_RESET
            raise
        except TaskCancelled as cancelled:
            ended = _blame(cancelled, request, rule, trace)
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
                if lease.is_watched:
                    lease.settle(outcome.outcome_class)

    async def _response(self, downstream: Downstream, upstream: Upstream, trace: Trace) -> UpstreamHead:
        """Move the request up until the final response head comes; 103 is passed on, other interim ones are not."""
        interim = 0
        while True:
            event = await self._pump.next_event(downstream, upstream, trace)
            if isinstance(event, UpstreamHead):
                return event
            if isinstance(event, Interim):
                interim += 1
                if interim > self._settings.max_interim:
                    raise UpstreamError("too many interim responses", reason=Reason.TOO_MANY_INTERIM)
                if event.status == 103:
                    downstream.send_informational(103, hygiene.response_fields_for_downstream(event.fields))
            else:
                raise AssertionError("upstream: body before head")  # noqa: TRY004  # a broken invariant of ours

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
        self,
        outcome: Outcome,
        request: Request,
        head: RequestHead,
        rule: LinkedRule,
        lease: Lease,
        trace: Trace,
        downstream: Downstream,
        grpc_status: int = 0,
        asked_s: float | None = None,
        *,
        is_settled: bool = False,
        has_other: bool = True,
    ) -> RetryDecision:
        decision = decide(
            outcome,
            attempt=trace.attempts,
            method=head.method,
            policy=rule.retry,
            is_body_replayable=trace.body.is_replayable,
            is_response_started=downstream.has_started,
            remaining_s=remaining_s(trace.deadline, now=self._loop.now),
            budget_ok=rule.has_retry_budget(lease.state),
            rng=self._loop.rng,
            grpc_status=grpc_status,
            retry_after_s=asked_s,
            is_settled=is_settled,
            has_other=has_other,
            is_retry=request.template.attempt > 1,
        )
        return self._accounts.decided(decision)


def _retriable(response: UpstreamHead, request: Request, rule: LinkedRule) -> int | None:
    """Return the gRPC code of a response that the route may try again, 0 if it has none; None if it may not.

    Only a response without messages counts (Trailers-Only): with any other one a call is committed (gRPC proposal A6).
    """
    policy = rule.retry
    code = 0
    if request.template.is_grpc and policy.retry_on_grpc and response.is_bodyless:
        code = grpc.status_of(response.fields)
        if code in policy.retry_on_grpc:
            return code
    return code if response.status in policy.retry_on_status else None


def _blame(error: TaskCancelled | DeadlineExpired, request: Request, rule: LinkedRule, trace: Trace) -> Reason:
    """Return how an attempt ended that a deadline of the whole request or a cancellation has ended.

    A deadline counts against the endpoint, unless the client chose it or kept us waiting.
    """
    is_ours = error.reason is Reason.CONNECT_TIMEOUT or (
        error.reason is Reason.REQUEST_TIMEOUT
        and not is_clients_choice(
            rule.timeouts, request.template.client_timeout_s, is_gateway=not request.template.is_grpc
        )
        and not has_waited_for_client(
            rule.timeouts, trace.body.waited_s + trace.stalled_s, is_clients_turn=trace.is_clients_turn
        )
    )
    return Reason.RESPONSE_TIMEOUT if is_ours else Reason.DOWNSTREAM_RESET
