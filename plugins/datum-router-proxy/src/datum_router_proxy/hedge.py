"""Races between attempts at several endpoints for one request: `policy.hedge` applied to tasks.

Theory of operation. Each attempt of a race is a task of its own up to its response head. Those beyond the first park
until their delay has passed (an alarm, so it is exact), and begin if the policy lets them. The request's own task waits
for the leader, cancels everybody else, takes the leader's exchange over (`Upstream.rebind`), and the module `attempt`
goes on with it as if it had made that attempt itself: outcome, retry and relay are the same for all. Attempts that
failed on the way are told to passive health; one that was only too slow has proved nothing and is not.
"""

from __future__ import annotations

import math

from datum_router.compiler.lease import Lease
from datum_router.compiler.link import LinkedRule
from datum_router.errors import UpstreamError
from datum_router.filters.base import apply_request
from datum_router.model.endpoint import EndpointKey
from datum_router.model.outcome import Outcome
from datum_router.model.request import LocalReply, RequestHead
from datum_router.plugins.protocols import DataPlaneObserver
from datum_router.policy import hedge
from datum_router.policy.hedge import RacerState
from datum_router.policy.timeout import remaining_s, try_deadline
from datum_router.reasons import Reason
from datum_router_proxy.accounts import Accounts
from datum_router_proxy.exchange import NOBODY, Downstream, Interim, Upstream, UpstreamHead
from datum_router_proxy.loop import DeadlineExpired, Loop, Task, TaskCancelled, current_task, park
from datum_router_proxy.outgoing import upstream_request
from datum_router_proxy.request import Request
from datum_router_proxy.settings import ProxySettings
from datum_router_proxy.trace import Trace
from datum_router_proxy.upstream.transport import Transport


class Racer:
    """One attempt of a race.

    Attributes:
        lease: None as long as it waits.
        response, error: What has come of it.
        made: Which of our attempts at the request it is.
        begun_at: When its endpoint was chosen, monotonic seconds.
    """

    __slots__ = ("begun_at", "error", "lease", "made", "number", "response", "state", "task", "upstream")

    def __init__(self, number: int, lease: Lease | None, begun_at: float) -> None:
        self.number = number
        self.lease = lease
        self.begun_at = begun_at
        self.made = 0
        self.state = RacerState.WAITING if lease is None else RacerState.RACING
        self.upstream: Upstream | None = None
        self.response: UpstreamHead | None = None
        self.error: Exception | None = None
        self.task: Task | None = None

    def leave(self) -> None:
        """Stop whatever is under way, and give the endpoint back."""
        if self.task is not None:
            self.task.cancel(Reason.DOWNSTREAM_RESET)
        if self.upstream is not None:
            self.upstream.cancel()
        if self.lease is not None:
            self.lease.release()


class Race:
    """One race; `run` belongs to the request's task."""

    __slots__ = ("_ended", "_head", "_hedges", "_main", "_request", "_rule", "_trace", "racers")

    def __init__(
        self, hedges: Hedges, request: Request, head: RequestHead, rule: LinkedRule, lease: Lease, trace: Trace
    ) -> None:
        self._hedges = hedges
        self._request = request
        self._head = head
        self._rule = rule
        self._trace = trace
        self._main = current_task()
        self._ended: list[int] = []
        now = hedges.loop.now
        others = range(2, rule.retry.hedge_attempts + 1)
        self.racers = [Racer(1, lease, now), *(Racer(number, None, now) for number in others)]

    @property
    def tried(self) -> frozenset[EndpointKey]:
        """The endpoints that have been asked."""
        return frozenset(racer.lease.key for racer in self.racers if racer.lease is not None)

    async def run(self, downstream: Downstream) -> Racer:
        """Return the attempt that decides, with everybody else gone; its lease is the caller's to release.

        The deadline of the request, or a client that leaves, ends the race as an error of the first attempt.
        """
        trace, main = self._trace, self._main
        trace.attempts += 1
        self.racers[0].made = trace.attempts
        loop = self._hedges.loop
        for racer in self.racers:
            racer.task = loop.spawn(self._attempt(racer), name=f"try {racer.number}")
        decided: Racer | None = None
        downstream.watch()
        try:
            while (index := hedge.leader(self._states(), self._ended)) is None:
                main.deadline, main.deadline_reason = trace.deadline, Reason.REQUEST_TIMEOUT
                if trace.idle is not None:
                    trace.idle.arm(main, trace.moved, loop.now)
                await park()
            decided = self.racers[index]
        except (DeadlineExpired, TaskCancelled) as error:
            decided = self.racers[0]
            decided.error, decided.response = error, None
        finally:
            downstream.unwatch()
            self._end(decided)
        if decided.upstream is not None:
            decided.upstream.rebind(main)
        return decided

    def _states(self) -> list[RacerState]:
        return [racer.state for racer in self.racers]

    def _end(self, decided: Racer | None) -> None:
        for racer in self.racers:
            if racer is not decided:
                if racer.state is RacerState.RACING:
                    racer.state = RacerState.OUT
                if racer.state is RacerState.FAILED:
                    self._hedges.note_failed(racer)
                racer.leave()
            elif racer.task is not None and not racer.task.done:
                racer.task.cancel(Reason.DOWNSTREAM_RESET)
            if racer.number > 1 and racer.lease is not None and racer.state in hedge.ENDS:
                self._hedges.accounts.hedged(racer.state)

    async def _attempt(self, racer: Racer) -> None:
        """Make one attempt, up to its response head; the task of a racer."""
        task = current_task()
        try:
            if racer.state is RacerState.WAITING:
                await self._delay(racer, task)
            if racer.state is RacerState.RACING:
                await self._ask(racer, task)
        except TaskCancelled:  # the race is over
            if racer.upstream is not None:
                racer.upstream.cancel()
            return
        except Exception as error:  # noqa: BLE001  # it is raised again in the request's task, if it matters there
            racer.error = error
            racer.state = RacerState.FAILED
            self._ended.append(racer.number - 1)
        self._main.wake()

    async def _delay(self, racer: Racer, task: Task) -> None:
        loop, rule, trace = self._hedges.loop, self._rule, self._trace
        task.deadline = hedge.begins_at(rule.retry, racer.number, begun_at=racer.begun_at)
        task.deadline_reason = Reason.PER_TRY_TIMEOUT  # a kind that is noticed in time
        loop.alarm(task)
        try:
            while True:
                await park()
        except DeadlineExpired:
            racer.begun_at = loop.now
        first = self.racers[0].lease
        assert first is not None
        may_begin = hedge.may_begin(
            self._states(),
            remaining_s=remaining_s(trace.deadline, now=loop.now),
            budget_ok=rule.has_retry_budget(first.state),
        )
        racer.state = RacerState.OUT
        if may_begin:
            lease = rule.select(self._head, rng=loop.rng, now=loop.now, excluded=self.tried, is_retry=True)
            if not isinstance(lease, LocalReply):
                racer.lease = lease
                racer.state = RacerState.RACING
                trace.attempts += 1
                racer.made = trace.attempts

    async def _ask(self, racer: Racer, task: Task) -> None:
        """Send the request and wait for the response head, twice if a kept connection had gone stale (threat U4)."""
        loop, rule, trace, lease = self._hedges.loop, self._rule, self._trace, racer.lease
        assert lease is not None
        head = apply_request(lease.filters, self._head) if lease.filters else self._head
        if isinstance(head, LocalReply):
            raise UpstreamError(
                "a filter of the destination cannot be used",
                reason=Reason.BAD_FILTER_OUTPUT,
                status_hint=head.status,
                is_unprocessed=True,
            )
        limit = try_deadline(rule.timeouts, begun_at=racer.begun_at, waited_s=0.0, is_answered=False)
        is_fresh = False
        while racer.response is None:
            task.deadline, task.deadline_reason = limit, Reason.PER_TRY_TIMEOUT
            if limit < math.inf:
                loop.alarm(task)
            racer.upstream = upstream = await self._hedges.transport.open(
                lease, NOBODY, is_fresh=is_fresh, connect_s=rule.timeouts.connect_s
            )
            try:
                upstream.send_head(
                    upstream_request(
                        self._request, head, rule, trace.deadline, attempts=racer.made, now=loop.now, rng=loop.rng
                    )
                )
                upstream.send_end()
                racer.response = await self._response(upstream)
            except UpstreamError:
                if not upstream.is_reused or is_fresh or upstream.has_received:
                    raise
                upstream.cancel()
                is_fresh = True
        self._ended.append(racer.number - 1)
        is_final = racer.response.status not in rule.retry.retry_on_status
        racer.state = RacerState.WON if is_final else RacerState.FAILED

    async def _response(self, upstream: Upstream) -> UpstreamHead:
        interim = 0
        while True:
            event = upstream.poll()
            if isinstance(event, UpstreamHead):
                return event
            if isinstance(event, Interim):  # 103 is a hint about this answer, which may not be the one that is given
                interim += 1
                if interim > self._hedges.settings.max_interim:
                    raise UpstreamError("too many interim responses", reason=Reason.TOO_MANY_INTERIM)
                continue
            upstream.flush()
            await park()


class Hedges:
    """Starts races; one per pipeline."""

    __slots__ = ("accounts", "loop", "observer", "settings", "transport")

    def __init__(
        self,
        loop: Loop,
        transport: Transport,
        observer: DataPlaneObserver,
        accounts: Accounts,
        settings: ProxySettings,
    ) -> None:
        self.loop = loop
        self.transport = transport
        self.observer = observer
        self.accounts = accounts
        self.settings = settings

    def begin(self, request: Request, head: RequestHead, rule: LinkedRule, lease: Lease, trace: Trace) -> Race | None:
        """Return a race for a request that is to be hedged; None for any other."""
        template = request.template
        if not rule.retry.hedge_delay_s or not hedge.is_hedged(
            rule.retry,
            head.method,
            has_body=template.has_body,
            is_tunnel=template.is_tunnel,
            is_retry=template.attempt > 1,
        ):
            return None
        return Race(self, request, head, rule, lease, trace)

    def note_failed(self, racer: Racer) -> None:
        """Tell passive health of an attempt that failed before its race was decided."""
        lease, upstream, response = racer.lease, racer.upstream, racer.response
        if lease is None:
            return
        error = racer.error
        if response is not None:
            reason = Reason.ROUTED
        elif isinstance(error, UpstreamError | DeadlineExpired):
            reason = error.reason
        else:
            return
        if reason in (Reason.POOL_OVERFLOW, Reason.LOCAL_RESOURCES):
            return  # not the endpoint's doing
        outcome = Outcome(
            service=lease.state.service.key,
            endpoint=lease.key,
            status=0 if response is None else response.status,
            reason=reason,
            is_sent=upstream is not None and upstream.is_sent,
            is_unprocessed=isinstance(error, UpstreamError) and error.is_unprocessed,
        )
        self.observer.attempt_ended(outcome)
        if lease.is_watched:
            lease.settle(outcome.outcome_class)
