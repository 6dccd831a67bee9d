"""Which requests a half-open endpoint gets, and where all others go."""

from __future__ import annotations

import random

import pytest

from datum_router.compiler.lease import Lease
from datum_router.compiler.link import Snapshot
from datum_router.compiler.linker import Linker
from datum_router.health.trial import MAX_KEPT_NUMBERS, LocalPermits, TrialDesk, TrialVerdict
from datum_router.model.endpoint import EndpointKey, make_endpoint
from datum_router.model.outcome import OutcomeClass
from datum_router.model.policy import OutlierPolicy
from datum_router.model.request import LocalReply
from datum_router.model.route import BackendRef, Rule, RuleId
from datum_router.model.service import Service, ServiceKey
from datum_router.model.snapshot import SnapshotData
from datum_router.plugins.manager import PluginSet
from datum_router.plugins.protocols import HealthChange
from datum_router.reasons import Reason
from datum_router.testing.factories import make_head

A, B = ServiceKey("default/a"), ServiceKey("default/b")
SICK = EndpointKey("10.0.0.1:80")
HEAD = make_head()


class Bench:
    """A linker with one rule; services without a panic."""

    def __init__(self, plugins: PluginSet) -> None:
        self.verdicts: list[TrialVerdict] = []
        self.linker = Linker(plugins, desk=TrialDesk(LocalPermits(), self.verdicts.append))
        self.snapshot: Snapshot | None = None

    def link(self, *services: Service, refs: tuple[BackendRef, ...] = (BackendRef(service=A),)) -> None:
        rule = Rule(id=RuleId("default/r#0"), route="default/r", destinations=refs)
        table = {service.key: service for service in services}
        self.snapshot = self.linker.link(SnapshotData(version=1, rules=(rule,), services=table))

    def half_open(self, number: int = 1, *, key: EndpointKey = SICK) -> None:
        change = HealthChange(service=A, endpoint=key, is_usable=False, since=1.0, trial=number)
        self.linker.apply_health([change])

    def ask(self, excluded: frozenset[EndpointKey] = frozenset(), *, is_retry: bool = False) -> Lease | LocalReply:
        assert self.snapshot is not None
        rule = self.snapshot.match(HEAD)
        assert rule is not None
        return rule.select(HEAD, rng=random.Random(1), now=100.0, excluded=excluded, is_retry=is_retry)

    def lease(self) -> Lease:
        found = self.ask()
        assert isinstance(found, Lease)
        return found


@pytest.fixture
def bench(plugins: PluginSet) -> Bench:
    return Bench(plugins)


def service(*addresses: str, key: ServiceKey = A, panic: int = 0, requests: int = 1, weight: int = 1) -> Service:
    return Service(
        key=key,
        endpoints=tuple(make_endpoint(address, 80, weight=weight) for address in addresses),
        outlier=OutlierPolicy(half_open_requests=requests),
        panic_threshold_percent=panic,
    )


def test_one_request_is_the_trial_and_all_others_go_elsewhere(bench: Bench) -> None:
    bench.link(service("10.0.0.1", "10.0.0.2"))
    bench.half_open()
    first, *others = [bench.lease() for _ in range(5)]
    assert first.key == SICK
    assert first.trial is not None
    assert {(lease.endpoint.address, lease.trial) for lease in others} == {("10.0.0.2", None)}


def test_without_another_endpoint_all_others_are_refused(bench: Bench) -> None:
    bench.link(service("10.0.0.1"))
    bench.half_open()
    assert bench.lease().key == SICK
    refused = bench.ask()
    assert isinstance(refused, LocalReply)
    assert (refused.status, refused.reason) == (503, Reason.NO_HEALTHY_ENDPOINT)


def test_as_many_as_the_policy_says_try_at_once(bench: Bench) -> None:
    bench.link(service("10.0.0.1", "10.0.0.2", requests=3))
    bench.half_open()
    assert [bench.lease().trial is not None for _ in range(5)] == [True, True, True, False, False]


@pytest.mark.parametrize(
    ("kind", "is_ok"),
    [(OutcomeClass.SUCCESS, True), (OutcomeClass.SERVER_ERROR, False), (OutcomeClass.GATEWAY_ERROR, False)],
)
def test_a_trial_tells_once_and_its_permit_is_used_up(bench: Bench, kind: OutcomeClass, is_ok: bool) -> None:
    bench.link(service("10.0.0.1", "10.0.0.2"))
    bench.half_open(7)
    lease = bench.lease()
    assert lease.trial is not None
    lease.trial.settle(kind)
    lease.trial.settle(OutcomeClass.SUCCESS)
    lease.release()
    assert bench.verdicts == [TrialVerdict(service=A, endpoint=SICK, number=7, is_ok=is_ok)]
    assert bench.lease().trial is None
    bench.half_open(8)
    assert bench.lease().trial is not None


def test_a_trial_that_tells_nothing_leaves_its_permit_to_the_next_request(bench: Bench) -> None:
    bench.link(service("10.0.0.1", "10.0.0.2"))
    bench.half_open()
    lease = bench.lease()
    assert lease.trial is not None
    lease.release()
    assert bench.verdicts == []
    assert bench.lease().trial is not None


def test_a_retry_is_never_a_trial(bench: Bench) -> None:
    bench.link(service("10.0.0.1", "10.0.0.2", "10.0.0.3"))
    bench.half_open()
    retry = bench.ask(frozenset({EndpointKey("10.0.0.2:80")}), is_retry=True)
    assert isinstance(retry, Lease)
    assert (retry.endpoint.address, retry.trial) == ("10.0.0.3", None)


def test_in_a_panic_nothing_is_held_back_but_one_request_is_the_trial(bench: Bench) -> None:
    bench.link(service("10.0.0.1", panic=50))
    bench.half_open()
    leases = [bench.lease() for _ in range(3)]
    assert {lease.key for lease in leases} == {SICK}
    assert [lease.trial is not None for lease in leases] == [True, False, False]


def test_an_endpoint_without_weight_is_not_tried(bench: Bench) -> None:
    bench.link(service("10.0.0.1", weight=0))
    bench.half_open()
    assert isinstance(bench.ask(), LocalReply)


def test_a_destination_that_is_half_open_gets_its_trial_and_its_sibling_all_else(bench: Bench) -> None:
    refs = (BackendRef(service=A, weight=1000), BackendRef(service=B, weight=1))
    bench.link(service("10.0.0.1"), service("10.0.0.2", key=B), refs=refs)
    bench.half_open()
    first, *others = [bench.lease() for _ in range(10)]
    assert first.key == SICK
    assert {lease.endpoint.address for lease in others} == {"10.0.0.2"}


def test_a_full_service_begins_no_trial(bench: Bench) -> None:
    bench.link(service("10.0.0.1", "10.0.0.2"))
    assert bench.snapshot is not None
    state = bench.snapshot.services[A]
    bench.half_open()
    state.limits.requests = state.limits.limits.max_parallel_requests
    assert isinstance(bench.ask(), LocalReply)
    state.limits.requests = 0
    assert bench.lease().trial is not None


def test_nothing_is_kept_for_services_without_half_open_endpoints(bench: Bench) -> None:
    bench.link(service("10.0.0.1", "10.0.0.2"))
    assert bench.snapshot is not None
    state = bench.snapshot.services[A]
    assert state.trials is None
    bench.half_open()
    held = [state.trials]
    bench.linker.apply_health([HealthChange(service=A, endpoint=SICK, is_usable=True, since=2.0)])
    held.append(state.trials)
    assert [one is None for one in held] == [False, True]


def test_health_that_came_before_the_service_is_tried_too(bench: Bench) -> None:
    bench.half_open()
    bench.link(service("10.0.0.1"))
    assert bench.lease().trial is not None


def test_permits_of_old_numbers_are_forgotten() -> None:
    permits = LocalPermits()
    for number in range(MAX_KEPT_NUMBERS + 1):
        assert permits.claim(number, 1) == 0
    assert permits.claim(1, 1) is None
    assert len(permits._taken) == MAX_KEPT_NUMBERS
    permits.give_back(0, 0)
    assert permits.claim(0, 1) == 0
