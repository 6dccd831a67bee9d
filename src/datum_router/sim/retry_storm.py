"""The retry storm that does not happen: a chain of gateways before a service that fails for a while.

The gateways run the code of the data plane, unchanged: `policy.retry.decide`, `policy.backoff`, `policy.chain`,
`policy.timeout` and the budget of `health.circuit`. Only what lies around them is simulated: arrivals at random moments
(Poisson), one gateway a hop, and the service, which has so many workers, a queue, and no notion of requests whose
client has given up: it works on them all the same, as most services do. While it fails it answers 503 after the usual
time.

Two ways to retry are compared on the same arrivals:

- `per_hop`: each gateway retries on its own and has no budget, as proxies do that only count tries;
- `budgeted`: as Datum Router does, with its budget, and with what gateways of a chain tell each other.

Retries that multiply along the chain overload the service. When it is well again its queue is so long that every answer
comes too late, which is retried, which keeps the queue long: it stays down although nothing is broken any more (a
metastable failure; Bronson et al., HotOS 2021).
"""

from __future__ import annotations

import functools
import heapq
import math
import random
from collections.abc import Callable

import msgspec

from datum_router.health.circuit import ServiceLimits
from datum_router.model.endpoint import EndpointKey
from datum_router.model.outcome import Outcome
from datum_router.model.policy import ConnectionLimits, RetryPolicy, TimeoutPolicy
from datum_router.model.service import ServiceKey
from datum_router.policy.chain import attempt_number, is_settled_reply
from datum_router.policy.retry import decide
from datum_router.policy.timeout import remaining_s, request_deadline, try_deadline
from datum_router.reasons import Reason
from datum_router.sim.engine import Simulation

HEALTHY_SHARE = 0.99
"""The service is well again in the first second of whose requests this share succeeds, and of the next one's."""
HOP_S = 0.001
"""What a message takes from one hop to the next and back."""
_NO_BUDGET = 10**9
_SERVICE = ServiceKey("sim/service")
_ENDPOINT = EndpointKey("service")


class StormSettings(msgspec.Struct, frozen=True, kw_only=True):
    """What is simulated. Times are seconds.

    Attributes:
        retries: Tries beyond the first that each gateway may make.
        rate: Requests per second that arrive at the first gateway.
        service_s: Mean time that the service works on a request; exponential.
        utilisation: Share of the service's capacity that the requests take, without any retry.
        queue_s: Longest time that a request waits in the service's queue; 503 at once beyond it.
        healthy_s, fault_s, after_s: How long it is well, fails, and is watched afterwards.
    """

    hops: int = 5
    retries: int = 2
    rate: float = 100.0
    service_s: float = 0.25
    utilisation: float = 0.5
    queue_s: float = 2.0
    per_try_s: float = 1.0
    request_s: float = 10.0
    healthy_s: float = 10.0
    fault_s: float = 20.0
    after_s: float = 40.0
    seed: int = 1

    @property
    def end_s(self) -> float:
        """When the simulation ends."""
        return self.healthy_s + self.fault_s + self.after_s


class WayResult(msgspec.Struct, frozen=True, kw_only=True):
    """What one way of retrying led to.

    Attributes:
        attempts_per_arrival: Requests that the service got for each one that arrived while it failed.
        recovery_s: From the end of the fault until the service is well; if it never is, how long it was watched.
        recovered: Whether it is well again at all.
    """

    attempts_per_arrival: float
    recovery_s: float
    recovered: bool


class StormResult(msgspec.Struct, frozen=True, kw_only=True):
    """Both ways."""

    per_hop: WayResult
    budgeted: WayResult


class Timeline(msgspec.Struct, frozen=True, kw_only=True):
    """What happened in each second: requests that arrived, tries that the service got, requests that succeeded.

    A success counts in the second in which its request arrived.
    """

    arrivals: list[int]
    attempts: list[int]
    successes: list[int]


class _Answer(msgspec.Struct, frozen=True):
    status: int
    reason: Reason
    is_settled: bool


_Done = Callable[[_Answer], None]


class _Request:
    """One arrival, wherever it is in the chain: counts what the service gets of it."""

    __slots__ = ("arrived_at", "attempts", "deadline")

    def __init__(self, arrived_at: float, deadline: float) -> None:
        self.arrived_at = arrived_at
        self.deadline = deadline
        self.attempts = 0


class _Service:
    """Workers and a queue, first come first served; knows at once when it will be done with a request."""

    def __init__(self, simulation: Simulation, settings: StormSettings, rng: random.Random, timeline: Timeline) -> None:
        self._simulation = simulation
        self._settings = settings
        self._rng = rng
        self._timeline = timeline
        self._timeouts = TimeoutPolicy(request_s=settings.request_s, per_try_s=settings.per_try_s)
        workers = max(1, round(settings.rate * settings.service_s / settings.utilisation))
        self._free_at = [0.0] * workers

    def serve(self, request: _Request, _stated: int, done: _Done) -> None:
        simulation, settings = self._simulation, self._settings
        now = simulation.now
        request.attempts += 1
        if now < len(self._timeline.attempts):  # what is left of the last requests is beyond the end
            self._timeline.attempts[int(now)] += 1
        starts_at = max(now, self._free_at[0])
        if starts_at - now > settings.queue_s:
            simulation.after(HOP_S, functools.partial(done, _Answer(503, Reason.ROUTED, False)))
            return
        ends_at = starts_at + self._rng.expovariate(1.0 / settings.service_s)
        heapq.heapreplace(self._free_at, ends_at)
        limit = min(request.deadline, try_deadline(self._timeouts, begun_at=now, waited_s=0.0, is_answered=False))
        if ends_at > limit:
            reason = Reason.REQUEST_TIMEOUT if limit >= request.deadline else Reason.PER_TRY_TIMEOUT
            simulation.at(limit, functools.partial(done, _Answer(0, reason, False)))
            return
        is_failing = settings.healthy_s <= ends_at < settings.healthy_s + settings.fault_s
        status = 503 if is_failing else 200
        simulation.at(ends_at, functools.partial(done, _Answer(status, Reason.ROUTED, False)))


class _Gateway:
    """One hop: the decisions of a gateway, and nothing of its plumbing."""

    def __init__(
        self,
        simulation: Simulation,
        settings: StormSettings,
        next_hop: _Gateway | _Service,
        rng: random.Random,
        *,
        is_budgeted: bool,
    ) -> None:
        self._simulation = simulation
        self._next_hop = next_hop
        self._rng = rng
        self._is_budgeted = is_budgeted
        self._policy = RetryPolicy(max_retries=settings.retries, retry_on_status=(502, 503, 504))
        self._limits = ServiceLimits(
            ConnectionLimits(
                max_parallel_requests=_NO_BUDGET,
                max_parallel_retries=ConnectionLimits().max_parallel_retries if is_budgeted else _NO_BUDGET,
            )
        )

    def serve(self, request: _Request, stated: int, done: _Done) -> None:
        self._try(request, stated, 1, done)

    def _again(self, request: _Request, stated: int, made: int, done: _Done) -> None:
        self._limits.begin_retry()
        self._try(request, stated, made, done)

    def _try(self, request: _Request, stated: int, made: int, done: _Done) -> None:
        refused = self._limits.acquire_request(is_retry=made > 1, budget_percent=self._policy.budget_percent)
        self._limits.end_turn()
        if refused is not None:
            self._reply(done, 503, refused)
            return
        number = attempt_number(stated, made) if self._is_budgeted else 1
        self._next_hop.serve(request, number, functools.partial(self._ended, request, stated, made, done))

    def _ended(self, request: _Request, stated: int, made: int, done: _Done, answer: _Answer) -> None:
        if answer.status == 200:
            self._limits.release_request(is_retry=made > 1)
            done(answer)
            return
        decision = decide(
            Outcome(service=_SERVICE, endpoint=_ENDPOINT, status=answer.status, reason=answer.reason, is_sent=True),
            attempt=made,
            method="GET",
            policy=self._policy,
            is_body_replayable=True,
            is_response_started=False,
            remaining_s=remaining_s(request.deadline, now=self._simulation.now),
            budget_ok=self._limits.has_retry_budget(self._policy.budget_percent),
            rng=self._rng,
            is_settled=answer.is_settled and self._is_budgeted,
            is_retry=stated > 1 and self._is_budgeted,
        )
        self._limits.release_request(is_retry=made > 1)
        if decision.retry:
            self._limits.hold_retry()
            self._simulation.after(decision.delay_s, functools.partial(self._again, request, stated, made + 1, done))
        else:
            self._reply(done, answer.status or 504, answer.reason)

    @staticmethod
    def _reply(done: _Done, status: int, reason: Reason) -> None:
        done(_Answer(status, Reason.ROUTED, is_settled_reply(status, reason)))


def simulate_way(
    settings: StormSettings, *, is_budgeted: bool, progress: Callable[[float], None] | None = None
) -> tuple[WayResult, Timeline]:
    """Simulate one way of retrying.

    Args:
        progress: Called with every virtual second that has passed.
    """
    seconds = math.ceil(settings.end_s)
    timeline = Timeline(arrivals=[0] * seconds, attempts=[0] * seconds, successes=[0] * seconds)
    arrivals = random.Random(settings.seed)
    chance = random.Random(settings.seed + 1)
    simulation = Simulation()
    hop: _Gateway | _Service = _Service(simulation, settings, chance, timeline)
    for _ in range(settings.hops):
        hop = _Gateway(simulation, settings, hop, chance, is_budgeted=is_budgeted)
    first = hop
    timeouts = TimeoutPolicy(request_s=settings.request_s)
    hit: list[_Request] = []

    def arrive() -> None:
        now = simulation.now
        second = int(now)
        if second >= seconds:
            return
        timeline.arrivals[second] += 1
        request = _Request(now, request_deadline(timeouts, now=now))
        if settings.healthy_s <= now < settings.healthy_s + settings.fault_s:
            hit.append(request)

        def done(answer: _Answer) -> None:
            if answer.status == 200:
                timeline.successes[second] += 1

        first.serve(request, 1, done)
        simulation.after(arrivals.expovariate(settings.rate), arrive)

    simulation.after(arrivals.expovariate(settings.rate), arrive)
    for second in range(1, seconds + math.ceil(settings.request_s) + 1):
        simulation.run(float(second))
        if progress is not None:
            progress(float(second))
    recovered_at = _recovered_at(settings, timeline)
    fault_ends = settings.healthy_s + settings.fault_s
    result = WayResult(
        attempts_per_arrival=round(sum(request.attempts for request in hit) / max(1, len(hit)), 3),
        recovery_s=round((settings.end_s if recovered_at is None else recovered_at) - fault_ends, 3),
        recovered=recovered_at is not None,
    )
    return result, timeline


def _recovered_at(settings: StormSettings, timeline: Timeline) -> float | None:
    """Return the first second from the end of the fault that is good, as its successor is; None if there is none."""

    def is_good(second: int) -> bool:
        return timeline.successes[second] >= HEALTHY_SHARE * timeline.arrivals[second]

    first = math.floor(settings.healthy_s + settings.fault_s)
    for second in range(first, len(timeline.arrivals) - 1):
        if is_good(second) and is_good(second + 1):
            return max(float(second), settings.healthy_s + settings.fault_s)
    return None


MOST_ROWS = 18
"""Lines of a chart for each way."""


def chart(settings: StormSettings, per_hop: Timeline, budgeted: Timeline, *, width: int = 40) -> list[str]:
    """Return an ASCII chart of what the service gets per second, in at most `MOST_ROWS` steps of time."""
    seconds = len(per_hop.attempts)
    step_s = math.ceil(seconds / MOST_ROWS)
    starts = range(0, seconds - step_s + 1, step_s)
    rates = {
        mark: [sum(timeline.attempts[start : start + step_s]) / step_s for start in starts]
        for mark, timeline in (("#", per_hop), ("=", budgeted))
    }
    most = max(1.0, *rates["#"], *rates["="])
    lines = [f"requests per second at the service: # per hop, = budgeted; a whole line is {most:.0f}/s"]
    for index, start in enumerate(starts):
        is_failing = settings.healthy_s <= start < settings.healthy_s + settings.fault_s
        for mark, timeline in (("#", per_hop), ("=", budgeted)):
            rate = rates[mark][index]
            good = sum(timeline.successes[start : start + step_s])
            share = good / max(1, sum(timeline.arrivals[start : start + step_s]))
            head = f"{start:4d} s {'fails' if is_failing else '     '}" if mark == "#" else " " * 12
            bar = mark * max(1, round(rate * width / most))
            lines.append(f"{head} {bar:<{width}} {rate:7.0f}/s, {share:4.0%} succeed")
    return lines
