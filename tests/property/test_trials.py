"""Half-open endpoints tried by several workers that hear late of everything, with shared permits."""

from __future__ import annotations

import collections
import random

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from datum_router.health.outlier import BreakerState
from datum_router.health.trial import LocalPermits, Trial, TrialDesk, Trials, TrialVerdict
from datum_router.health.view import HealthBook, HealthTable, OutcomeBatch
from datum_router.model.outcome import OutcomeClass
from datum_router.model.policy import OutlierPolicy
from datum_router.plugins.protocols import HealthChange
from datum_router.testing.factories import make_endpoints, make_service

WORKERS = 3
ENDPOINTS = make_endpoints(3)


class Worker:
    """Applies changes when it gets to them, and begins trials of what it believes to be half-open."""

    def __init__(self, desk: TrialDesk, name: str) -> None:
        self.inbox: collections.deque[list[HealthChange]] = collections.deque()
        self.table = HealthTable()
        self.desk = desk
        self.service = make_service(name).key

    def hear(self, count: int) -> None:
        for _ in range(min(count, len(self.inbox))):
            self.table.apply(self.inbox.popleft())

    def begin(self, limit: int) -> Trial | None:
        return Trials(self.desk, self.service, self.table.trials(self.service)).begin(ENDPOINTS, limit)


class TrialMachine(RuleBasedStateMachine):
    """Never more than N trials of one number, whatever is late or lost; successes close every breaker."""

    @initialize(limit=st.integers(1, 3), seed=st.integers(0, 2**32))
    def begin(self, limit: int, seed: int) -> None:
        self.now = 0.0
        self.limit = limit
        self.service = make_service(
            endpoints=ENDPOINTS, outlier=OutlierPolicy(half_open_requests=limit, max_ejection_percent=100)
        )
        self.book = HealthBook(random.Random(seed))
        self.book.set_services({self.service.key: self.service}, now=0.0)
        self.verdicts: list[TrialVerdict] = []
        desk = TrialDesk(LocalPermits(), self.verdicts.append)
        self.workers = [Worker(desk, self.service.key) for _ in range(WORKERS)]
        self.in_flight: list[Trial] = []
        self.used: collections.Counter[int] = collections.Counter()
        self.eject(0)
        self.time_passes(31.0)
        self.worker_hears(0, 2)

    def tell(self, changes: list[HealthChange]) -> None:
        for worker in self.workers:
            worker.inbox.append(changes)

    @rule(index=st.integers(0, len(ENDPOINTS) - 1))
    def eject(self, index: int) -> None:
        batch = OutcomeBatch(
            service=self.service.key, endpoint=ENDPOINTS[index].key, runs=((OutcomeClass.GATEWAY_ERROR, 5),)
        )
        self.tell(self.book.record_outcomes([batch], now=self.now))

    @rule(seconds=st.sampled_from((0.1, 31.0, 301.0)))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds
        self.tell(self.book.expire(self.now))

    @rule(worker=st.integers(0, WORKERS - 1), count=st.integers(1, 5))
    def worker_hears(self, worker: int, count: int) -> None:
        self.workers[worker].hear(count)

    @rule(worker=st.integers(0, WORKERS - 1), requests=st.integers(1, 8))
    def load(self, worker: int, requests: int) -> None:
        for _ in range(requests):
            trial = self.workers[worker].begin(self.limit)
            if trial is not None:
                self.in_flight.append(trial)

    @precondition(lambda self: self.in_flight)
    @rule(data=st.data(), kind=st.sampled_from((None, *OutcomeClass)))
    def trial_ends(self, data: st.DataObject, kind: OutcomeClass | None) -> None:
        trial = self.in_flight.pop(data.draw(st.integers(0, len(self.in_flight) - 1)))
        before = len(self.verdicts)
        trial.settle(kind)
        trial.settle(OutcomeClass.SUCCESS)  # what comes second is not heard
        assert len(self.verdicts) - before == (kind is not None)
        if kind is not None:
            assert self.verdicts[-1].is_ok is (kind is OutcomeClass.SUCCESS)
            self.used[self.verdicts[-1].number] += 1

    @rule(count=st.integers(1, 5))
    def book_hears(self, count: int) -> None:
        self.tell(self.book.record_trials(self.verdicts[:count], now=self.now))
        del self.verdicts[:count]

    @invariant()
    def never_more_than_the_limit_of_one_number(self) -> None:
        if not hasattr(self, "used"):
            return
        tried = self.used + collections.Counter(trial.number for trial in self.in_flight)
        assert all(count <= self.limit for count in tried.values())

    def teardown(self) -> None:
        """From here on every trial passes: all breakers close."""
        if not hasattr(self, "used"):
            return
        for _ in range(3):
            self.now += 301.0
            self.tell(self.book.expire(self.now))
            for worker in self.workers:
                worker.hear(len(worker.inbox))
            for _ in range(self.limit * len(ENDPOINTS)):
                self.load(0, 1)
            for trial in self.in_flight:
                trial.settle(OutcomeClass.SUCCESS)
            self.in_flight.clear()
            self.book_hears(len(self.verdicts) or 1)
        statuses = self.book.describe(now=self.now)[self.service.key]
        assert {status.breaker for status in statuses} == {BreakerState.CLOSED}
        for worker in self.workers:
            worker.hear(len(worker.inbox))
            assert all(worker.table.view(self.service.key).is_usable(endpoint.key) for endpoint in ENDPOINTS)


TestTrialMachine = TrialMachine.TestCase
TestTrialMachine.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
