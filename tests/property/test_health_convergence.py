"""Whatever happens to the book, tables that follow its changes agree with it, and with one made from scratch."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from datum_router.health.trial import TrialVerdict
from datum_router.health.view import HealthTable, OutcomeBatch
from datum_router.model.endpoint import EndpointKey, make_endpoint
from datum_router.model.outcome import OutcomeClass
from datum_router.model.policy import ActiveHealthPolicy, OutlierPolicy
from datum_router.model.service import Service, ServiceKey
from datum_router.plugins.protocols import HealthChange, ProbeResult
from datum_router.testing.factories import make_health_book, make_service

SERVICES = (ServiceKey("a/one"), ServiceKey("a/two"))
ENDPOINTS = tuple(make_endpoint(f"10.0.0.{number}", 80) for number in range(4))
KEYS = tuple(endpoint.key for endpoint in ENDPOINTS)

services = st.dictionaries(
    st.sampled_from(SERVICES),
    st.tuples(
        st.lists(st.sampled_from(ENDPOINTS), unique=True, max_size=4),
        st.sampled_from((None, ActiveHealthPolicy(), ActiveHealthPolicy(unhealthy_threshold=1, interval_s=2.0))),
        st.sampled_from((None, OutlierPolicy(consecutive_5xx=2), OutlierPolicy(max_ejection_percent=100))),
    ),
)


class Convergence(RuleBasedStateMachine):
    """One book; one table that takes each change at once, one that is late and gets batches twice."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 100.0
        self.book = make_health_book()
        self.table = HealthTable()
        self.late = HealthTable()
        self.backlog: list[HealthChange] = []
        self.services: dict[ServiceKey, Service] = {}

    def take(self, changes: list[HealthChange]) -> None:
        self.now += 0.5
        self.backlog += changes
        before = {key: self.table.view(key) for key in SERVICES}
        touched = self.table.apply(changes)
        for key in SERVICES:
            assert key in touched or self.table.view(key) is before[key], "an untouched view is the same object"
        assert self.table.apply(changes) == set() or len({(c.service, c.endpoint) for c in changes}) < len(changes)

    @rule(wanted=services)
    def services_change(
        self, wanted: dict[ServiceKey, tuple[list[object], ActiveHealthPolicy | None, OutlierPolicy | None]]
    ) -> None:
        self.services = {
            key: make_service(key, endpoints, active=active, outlier=outlier)  # type: ignore[arg-type]  # drawn above
            for key, (endpoints, active, outlier) in wanted.items()
        }
        self.take(self.book.set_services(self.services, now=self.now))

    @initialize()
    def begin(self) -> None:
        self.policies_change(is_active=True, is_outlier=True)

    @rule(service=st.sampled_from(SERVICES), key=st.sampled_from(KEYS))
    def down_by_probes_until_nobody_probes(self, service: ServiceKey, key: EndpointKey) -> None:
        self.probes(service, key, is_ok=False, times=4)
        self.policies_change(is_active=False, is_outlier=False)
        self.nobody_is_down_without_a_policy_that_could_say_so()

    @rule(service=st.sampled_from(SERVICES), key=st.sampled_from(KEYS))
    def ejected_until_its_time_is_over(self, service: ServiceKey, key: EndpointKey) -> None:
        self.policies_change(is_active=False, is_outlier=True)
        self.outcomes(service, key, OutcomeClass.GATEWAY_ERROR, 6)
        self.time_passes(400.0)

    @rule(is_active=st.booleans(), is_outlier=st.booleans())
    def policies_change(self, is_active: bool, is_outlier: bool) -> None:
        self.services = {
            key: make_service(
                key,
                service.endpoints or ENDPOINTS,
                active=ActiveHealthPolicy() if is_active else None,
                outlier=OutlierPolicy() if is_outlier else None,
            )
            for key, service in (self.services or dict.fromkeys(SERVICES, make_service())).items()
        }
        self.take(self.book.set_services(self.services, now=self.now))

    @rule(service=st.sampled_from(SERVICES), key=st.sampled_from(KEYS), is_ok=st.booleans(), times=st.integers(1, 4))
    def probes(self, service: ServiceKey, key: EndpointKey, is_ok: bool, times: int) -> None:
        for _ in range(times):
            self.take(self.book.record_probe(service, key, ProbeResult(is_ok=is_ok), now=self.now))

    @rule(
        service=st.sampled_from(SERVICES),
        key=st.sampled_from(KEYS),
        kind=st.sampled_from(OutcomeClass),
        count=st.integers(1, 6),
    )
    def outcomes(self, service: ServiceKey, key: EndpointKey, kind: OutcomeClass, count: int) -> None:
        batch = OutcomeBatch(service=service, endpoint=key, runs=((kind, count),))
        self.take(self.book.record_outcomes([batch], now=self.now))

    @rule(seconds=st.sampled_from((0.0, 5.0, 31.0, 400.0)))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds
        due = self.book.next_due()
        changes = self.book.expire(self.now)
        assert not changes or (due is not None and due <= self.now), "nothing is tried before its time"
        self.take(changes)
        if seconds > OutlierPolicy().max_ejection_time_s:
            # Every ejection is over: once all trials have passed only probes can still say no.
            self.trials_end(is_ok=True)
            for key, service in self.services.items():
                if service.active is None:
                    assert all(self.book.view(key).is_usable(endpoint.key) for endpoint in service.endpoints)
        left = self.book.next_due()
        assert left is None or left > self.now - 1.0

    @rule(is_ok=st.booleans())
    def trials_end(self, is_ok: bool) -> None:
        verdicts = [
            TrialVerdict(service=key, endpoint=endpoint, number=number, is_ok=is_ok)
            for key in SERVICES
            for endpoint, number in self.table.trials(key).items()
        ]
        self.take(self.book.record_trials(verdicts, now=self.now))
        assert not any(self.table.trials(key) for key in SERVICES)

    @rule()
    def late_table_catches_up(self) -> None:
        self.late.apply(self.backlog)
        self.late.apply(self.backlog[-1:])
        self.backlog.clear()
        self.agree(self.late)

    def agree(self, table: HealthTable) -> None:
        trials = {(change.service, change.endpoint): change.trial for change in self.book.all_changes() if change.trial}
        assert {(key, one): number for key in SERVICES for one, number in table.trials(key).items()} == trials
        for key in SERVICES:
            ours, theirs = self.book.view(key), table.view(key)
            for endpoint in KEYS:
                assert theirs.is_usable(endpoint) == ours.is_usable(endpoint)
                if ours.is_usable(endpoint):
                    assert theirs.usable_since(endpoint) == ours.usable_since(endpoint)

    @invariant()
    def tables_agree_with_the_book(self) -> None:
        self.agree(self.table)
        fresh = HealthTable()
        fresh.reset(self.book.all_changes())
        self.agree(fresh)

    @invariant()
    def nobody_is_down_without_a_policy_that_could_say_so(self) -> None:
        for key, service in self.services.items():
            if service.active is None and service.outlier is None:
                assert all(self.book.view(key).is_usable(endpoint.key) for endpoint in service.endpoints)

    @invariant()
    def who_left_leaves_nothing_behind(self) -> None:
        known = {(change.service, change.endpoint) for change in self.book.all_changes()}
        there = {(key, endpoint.key) for key, service in self.services.items() for endpoint in service.endpoints}
        assert known <= there
        assert {(service, key) for service, table in self.table._entries.items() for key in table} == known


TestConvergence = Convergence.TestCase
TestConvergence.settings = settings(max_examples=60, stateful_step_count=25, deadline=None)
