"""Health against slow, obvious oracles: the probe machine, ejection limits, and book and tables that never part."""

from __future__ import annotations

import random

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from datum_router.balancing.base import ALWAYS
from datum_router.health.active import UNPROBED, HealthState, advance
from datum_router.health.outlier import BreakerState
from datum_router.health.schedule import ProbeSchedule, ProbeTarget
from datum_router.health.trial import TrialVerdict
from datum_router.health.view import HealthTable, OutcomeBatch
from datum_router.model.endpoint import EndpointKey
from datum_router.model.outcome import OutcomeClass
from datum_router.model.policy import ActiveHealthPolicy, OutlierPolicy
from datum_router.model.service import Service, ServiceKey
from datum_router.plugins.protocols import HealthChange, ProbeResult
from datum_router.testing.factories import make_endpoints, make_health_book, make_outlier_detector, make_service

runs = st.lists(st.tuples(st.sampled_from(list(OutcomeClass)), st.integers(0, 7)), max_size=6)


def obvious_state(results: list[bool], up: int, down: int) -> HealthState:
    """Walk through the results with the rule as a person would say it."""
    if not results:
        return HealthState.UNKNOWN
    state = results[0]
    for end in range(2, len(results) + 1):
        needed = down if state else up
        tail = results[max(1, end - needed) : end]
        if len(tail) == needed and all(result is not state for result in tail):
            state = not state
    return HealthState.HEALTHY if state else HealthState.UNHEALTHY


@settings(max_examples=200)
@given(results=st.lists(st.booleans(), max_size=40), up=st.integers(1, 4), down=st.integers(1, 4))
def test_probe_machine_equals_its_obvious_rule(results: list[bool], up: int, down: int) -> None:
    policy = ActiveHealthPolicy(healthy_threshold=up, unhealthy_threshold=down)
    health = UNPROBED
    for second, is_ok in enumerate(results):
        health = advance(health, ProbeResult(is_ok=is_ok), policy, now=float(second))
    assert health.state is obvious_state(results, up, down)
    assert 0 <= health.streak < max(up, down)


@settings(max_examples=200)
@given(
    percent=st.integers(0, 100),
    endpoints=st.integers(1, 12),
    steps=st.lists(st.tuples(st.integers(0, 11), runs, st.floats(0.0, 40.0)), max_size=40),
)
def test_never_more_than_the_allowed_share_is_ejected(
    percent: int, endpoints: int, steps: list[tuple[int, list[tuple[OutcomeClass, int]], float]]
) -> None:
    keys = [endpoint.key for endpoint in make_endpoints(endpoints)]
    detector = make_outlier_detector(
        OutlierPolicy(consecutive_5xx=3, consecutive_gateway_errors=2, max_ejection_percent=percent)
    )
    detector.set_endpoints(keys)
    now = 0.0
    for index, outcomes, pause in steps:
        now += pause
        detector.half_open_due(now)
        detector.record(keys[index % endpoints], outcomes, now=now)
        assert detector.ejected <= (max(1, endpoints * percent // 100) if percent else 0)
        until = detector.next_half_open()
        assert until is None or detector.ejected > 0
        assert until is None or now < until <= now + 300.0


@settings(max_examples=200)
@given(
    outcomes=st.lists(st.sampled_from(list(OutcomeClass)), max_size=30), cuts=st.lists(st.integers(1, 5), max_size=30)
)
def test_runs_mean_the_same_as_single_outcomes_however_they_are_cut(
    outcomes: list[OutcomeClass], cuts: list[int]
) -> None:
    key = EndpointKey("10.0.0.1:80")
    policy = OutlierPolicy(consecutive_5xx=4, consecutive_gateway_errors=3)
    one, many = make_outlier_detector(policy), make_outlier_detector(policy)
    one.set_endpoints([key])
    many.set_endpoints([key])
    for kind in outcomes:
        one.record(key, [(kind, 1)], now=0.0)
    at = 0
    for size in [*cuts, len(outcomes)]:
        batch: list[tuple[OutcomeClass, int]] = []
        for kind in outcomes[at : at + size]:
            batch = [*batch[:-1], (kind, batch[-1][1] + 1)] if batch and batch[-1][0] is kind else [*batch, (kind, 1)]
        many.record(key, batch, now=0.0)
        at += size
    assert one.is_ejected(key) == many.is_ejected(key)


class BookMachine(RuleBasedStateMachine):
    """Whatever happens to the book: a table fed with its changes agrees with it, and so does one that comes late."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 1000.0
        self.book = make_health_book()
        self.table = HealthTable()
        self.services: dict[ServiceKey, Service] = {}

    def feed(self, changes: list[HealthChange]) -> None:
        flipped = [(change.service, change.endpoint) for change in changes if change.reason not in ("added", "removed")]
        assert len(flipped) == len(set(flipped)), "one write flips an endpoint once at most"
        wire = msgspec.msgpack.decode(msgspec.msgpack.encode(changes), type=list[HealthChange])
        self.table.apply(wire)

    @rule(
        name=st.sampled_from(["d/a", "d/b"]),
        count=st.integers(0, 5),
        port=st.sampled_from([80, 81]),
        active=st.sampled_from([None, ActiveHealthPolicy(unhealthy_threshold=2, healthy_threshold=2)]),
        outlier=st.sampled_from([None, OutlierPolicy(consecutive_5xx=3, consecutive_gateway_errors=2)]),
    )
    def change_service(
        self, name: str, count: int, port: int, active: ActiveHealthPolicy | None, outlier: OutlierPolicy | None
    ) -> None:
        service = make_service(name, make_endpoints(count, port=port), active=active, outlier=outlier)
        self.services[service.key] = service
        self.feed(self.book.set_services(self.services, now=self.now))

    @precondition(lambda self: self.services)
    @rule(data=st.data())
    def remove_service(self, data: st.DataObject) -> None:
        self.services.pop(data.draw(st.sampled_from(sorted(self.services))))
        self.feed(self.book.set_services(self.services, now=self.now))

    @rule(name=st.sampled_from(["d/a", "d/b"]), index=st.integers(0, 5), is_ok=st.booleans(), times=st.integers(1, 3))
    def probe(self, name: str, index: int, is_ok: bool, times: int) -> None:
        key = make_endpoints(6, port=80)[index].key
        for _ in range(times):
            self.now += 0.5
            self.feed(self.book.record_probe(ServiceKey(name), key, ProbeResult(is_ok=is_ok), now=self.now))

    @rule(name=st.sampled_from(["d/a", "d/b"]), index=st.integers(0, 5), outcomes=runs)
    def outcomes(self, name: str, index: int, outcomes: list[tuple[OutcomeClass, int]]) -> None:
        batch = OutcomeBatch(
            service=ServiceKey(name), endpoint=make_endpoints(6, port=80)[index].key, runs=tuple(outcomes)
        )
        self.feed(self.book.record_outcomes([batch], now=self.now))

    @rule(name=st.sampled_from(["d/a", "d/b"]), number=st.integers(0, 4), is_ok=st.booleans())
    def trials(self, name: str, number: int, is_ok: bool) -> None:
        key = ServiceKey(name)
        verdicts = [
            TrialVerdict(service=key, endpoint=endpoint, number=number or current, is_ok=is_ok)
            for endpoint, current in self.table.trials(key).items()
        ]
        self.feed(self.book.record_trials(verdicts, now=self.now))

    @rule(seconds=st.floats(0.0, 60.0))
    def wait(self, seconds: float) -> None:
        self.now += seconds
        due = self.book.next_due()
        changes = self.book.expire(self.now)
        assert not changes or (due is not None and due <= self.now)
        self.feed(changes)
        due = self.book.next_due()
        assert due is None or due > self.now

    @invariant()
    def table_and_latecomer_agree_with_the_book(self) -> None:
        latecomer = HealthTable()
        latecomer.apply(self.book.all_changes())
        assert latecomer._entries == self.table._entries
        for key, service in self.services.items():
            truth = self.book.view(key)
            for endpoint in service.endpoints:
                view = self.table.view(key)
                assert view.is_usable(endpoint.key) == truth.is_usable(endpoint.key)
                if view.is_usable(endpoint.key):
                    assert view.usable_since(endpoint.key) == truth.usable_since(endpoint.key) <= self.now

    @invariant()
    def usability_is_what_probes_and_ejections_say(self) -> None:
        for key, statuses in self.book.describe(now=self.now).items():
            service = self.services[key]
            assert [status.endpoint for status in statuses] == [endpoint.key for endpoint in service.endpoints]
            for status in statuses:
                is_down = status.state is HealthState.UNHEALTHY or status.breaker is not BreakerState.CLOSED
                assert status.is_usable == (not is_down)
                assert status.unchanged_s is None or 0 <= status.unchanged_s <= self.now
                assert (status.ejection_left_s is not None) == (status.breaker is BreakerState.OPEN)
                assert service.active is not None or status.state is HealthState.UNKNOWN
            out = sum(status.breaker is not BreakerState.CLOSED for status in statuses)
            assert out == 0 or service.outlier is not None

    @invariant()
    def no_endpoint_without_policies_is_held_down(self) -> None:
        for key, service in self.services.items():
            if service.active is None and service.outlier is None:
                assert all(self.table.view(key).is_usable(endpoint.key) for endpoint in service.endpoints)


BookMachine.TestCase.settings = settings(max_examples=60, stateful_step_count=30)
TestBookMachine = BookMachine.TestCase


@settings(max_examples=60)
@given(
    seed=st.integers(0, 2**32),
    concurrency=st.integers(1, 6),
    steps=st.lists(st.tuples(st.integers(0, 6), st.sampled_from([80, 81]), st.floats(0.0, 15.0)), max_size=25),
)
def test_schedule_keeps_its_bounds_and_starves_nobody(
    seed: int, concurrency: int, steps: list[tuple[int, int, float]]
) -> None:
    plan = ProbeSchedule(random.Random(seed), concurrency=concurrency)
    in_flight: list[ProbeTarget] = []
    now = 0.0
    policy = ActiveHealthPolicy(interval_s=5.0)
    for count, port, pause in steps:
        now += pause
        service = make_service(endpoints=make_endpoints(count, port=port), active=policy)
        plan.set_services({service.key: service}, now=now)
        in_flight += plan.take_due(now)
        assert len(in_flight) == plan.running <= concurrency
        if in_flight and count % 2:
            plan.finish(in_flight.pop(0), now=now)
    for target in in_flight:
        plan.finish(target, now=now)
    assert plan.running == 0
    # From here on every target is probed about once an interval if probes take no time.
    seen: dict[EndpointKey, int] = {}
    for _ in range(60):
        now += 0.5
        while taken := plan.take_due(now):
            for target in taken:
                seen[target.endpoint.key] = seen.get(target.endpoint.key, 0) + 1
                plan.finish(target, now=now)
    assert len(seen) == len(plan)
    assert all(4 <= times <= 8 for times in seen.values())


def test_always_is_before_every_moment() -> None:
    assert ALWAYS < 0.0
