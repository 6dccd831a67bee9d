"""The circuit breaker of services and routes, in the process that serves."""

from __future__ import annotations

import random

import msgspec
import pytest

from datum_router.compiler.lease import Lease
from datum_router.compiler.link import Snapshot
from datum_router.compiler.linker import Linker
from datum_router.health.breaker import Breaker, describe_circuit
from datum_router.health.circuit import share
from datum_router.health.outlier import BreakerState
from datum_router.model.limits import BreakerPolicy, CircuitPolicy
from datum_router.model.outcome import OutcomeClass
from datum_router.model.policy import ConnectionLimits, OutlierPolicy
from datum_router.model.request import LocalReply
from datum_router.model.route import BackendRef, Rule
from datum_router.model.service import ServiceKey
from datum_router.model.snapshot import SnapshotData
from datum_router.observe import names
from datum_router.observe.cells import Cell
from datum_router.observe.services import service_cells
from datum_router.plugins import builtin
from datum_router.plugins.manager import Candidate, load_plugins
from datum_router.reasons import Reason
from datum_router.testing.factories import make_endpoints, make_head, make_outlier_detector, make_rule, make_service

POLICY = BreakerPolicy(failure_threshold=3, success_threshold=2, open_s=10.0)
GOOD, BAD, WORSE = OutcomeClass.SUCCESS, OutcomeClass.SERVER_ERROR, OutcomeClass.GATEWAY_ERROR


def ask(breaker: Breaker, now: float, kind: OutcomeClass | None) -> bool:
    """Make one attempt that ends as `kind`; tell whether it was let through."""
    turn = breaker.admit(now)
    if turn is None:
        return False
    breaker.settle(turn, kind)
    return True


def test_failures_in_a_row_open_it_and_successes_in_a_row_close_it_again() -> None:
    breaker = Breaker(POLICY)
    for kind in (BAD, WORSE, GOOD, BAD, BAD, None):
        assert ask(breaker, 0.0, kind)
    assert breaker.state is BreakerState.CLOSED
    assert ask(breaker, 1.0, WORSE)
    assert breaker.state is BreakerState.OPEN
    assert breaker.retry_after_s(1.0) == 10.0
    assert not ask(breaker, 10.9, GOOD)
    assert ask(breaker, 11.0, GOOD)
    assert breaker.state is BreakerState.HALF_OPEN
    assert ask(breaker, 11.1, GOOD)
    assert breaker.state is BreakerState.CLOSED
    assert breaker.refused == 1


def test_a_trial_that_does_not_end_is_not_waited_for_for_ever() -> None:
    breaker = Breaker(POLICY)
    for _ in range(3):
        ask(breaker, 0.0, BAD)
    slow = breaker.admit(10.0)
    assert slow is not None, "the trial; its client sends a byte now and then"
    assert breaker.admit(19.9) is None
    assert breaker.retry_after_s(19.9) == 1.0
    assert breaker.retry_after_s(20.0) == 0.0
    assert ask(breaker, 20.0, GOOD)
    breaker.settle(slow, None)
    assert ask(breaker, 20.1, GOOD)
    assert breaker.state is BreakerState.CLOSED


def test_a_trial_that_fails_opens_it_for_as_long_again() -> None:
    breaker = Breaker(POLICY)
    for _ in range(3):
        ask(breaker, 0.0, BAD)
    assert ask(breaker, 10.0, GOOD)
    assert ask(breaker, 10.5, BAD)
    assert not ask(breaker, 20.0, GOOD)
    assert ask(breaker, 20.5, GOOD)


def test_one_trial_at_a_time_and_one_that_says_nothing_is_passed_on() -> None:
    breaker = Breaker(POLICY)
    for _ in range(3):
        ask(breaker, 0.0, BAD)
    turn = breaker.admit(10.0)
    assert turn is not None
    assert breaker.admit(10.0) is None
    assert breaker.retry_after_s(10.0) > 0
    breaker.settle(turn, None)
    assert breaker.retry_after_s(10.0) == 0
    assert breaker.admit(10.0) is not None


def test_what_began_before_the_last_change_says_nothing_about_the_present() -> None:
    breaker = Breaker(POLICY)
    old = [breaker.admit(0.0) for _ in range(8)]
    for turn in old[:3]:
        assert turn is not None
        breaker.settle(turn, BAD)
    trial = breaker.admit(10.0)
    for turn in old[3:]:
        assert turn is not None
        breaker.settle(turn, GOOD)
    assert breaker.state is BreakerState.HALF_OPEN
    assert trial is not None
    breaker.settle(trial, BAD)
    assert breaker.state is BreakerState.OPEN


# --- in the process that serves -------------------------------------------------------------------------------------


def linker(workers: int = 1) -> Linker:
    plugins = load_plugins([Candidate(entry_point="builtin", distribution="datum-router", load=lambda: builtin)])
    return Linker(plugins, workers=workers)


def data(rule: Rule, *keys: str, version: int = 1) -> SnapshotData:
    services = {ServiceKey(key): make_service(key, 2) for key in keys}
    services = {key: msgspec.structs.replace(item, breaker=POLICY) for key, item in services.items()}
    return SnapshotData(version=version, rules=(rule,), services=services)


def select(snapshot: Snapshot, now: float, *, is_retry: bool = False) -> Lease | LocalReply:
    rule = snapshot.match(make_head())
    assert rule is not None
    return rule.select(make_head(), rng=random.Random(1), now=now, is_retry=is_retry)


def fail(snapshot: Snapshot, now: float, times: int = 3) -> None:
    for _ in range(times):
        lease = select(snapshot, now)
        assert isinstance(lease, Lease)
        lease.settle(BAD)
        lease.release()


def plain(*services: str, **fields: object) -> Rule:
    refs = tuple(BackendRef(service=ServiceKey(key)) for key in services)
    return msgspec.structs.replace(make_rule(), destinations=refs, **fields)


def test_a_service_that_fails_as_a_whole_is_answered_with_503_and_when_to_come_again() -> None:
    served = linker()
    snapshot = served.link(data(plain("default/a"), "default/a"))
    fail(snapshot, 100.0)
    reply = select(snapshot, 104.5)
    assert isinstance(reply, LocalReply)
    assert (reply.status, reply.reason) == (503, Reason.CIRCUIT_TRIPPED)
    assert reply.headers == ((b"retry-after", b"6"),)
    (state,) = served.take_states()
    assert state.limits.requests == 0, "whoever is refused holds no permit"
    assert Cell(names.SERVICE_CIRCUIT.name, ("default/a", "open"), 1) in service_cells([state])
    assert isinstance(select(snapshot, 110.0), Lease)
    assert Cell(names.SERVICE_CIRCUIT.name, ("default/a", "half_open"), 1) in service_cells([state])


def test_siblings_take_the_share_of_a_service_whose_circuit_is_open() -> None:
    snapshot = linker().link(data(plain("default/a", "default/b"), "default/a", "default/b"))
    state = snapshot.services[ServiceKey("default/a")]
    assert state.breaker is not None
    for _ in range(3):
        ask(state.breaker, 100.0, BAD)
    for _ in range(20):
        lease = select(snapshot, 101.0)
        assert isinstance(lease, Lease)
        assert lease.state.service.key == "default/b"
        lease.release()


def test_a_new_version_of_the_service_keeps_the_state_and_one_without_breaker_forgets_it() -> None:
    served = linker()
    rule = plain("default/a")
    fail(served.link(data(rule, "default/a")), 100.0)
    longer = data(rule, "default/a", version=2)
    service = msgspec.structs.replace(longer.services[ServiceKey("default/a")], connect_timeout_s=1.0)
    changed = msgspec.structs.replace(longer, services={service.key: service})
    assert isinstance(select(served.link(changed), 101.0), LocalReply)
    without = msgspec.structs.replace(service, breaker=None)
    last = served.link(msgspec.structs.replace(changed, version=3, services={service.key: without}))
    assert isinstance(select(last, 101.0), Lease)


CIRCUIT = CircuitPolicy(limits=ConnectionLimits(max_parallel_requests=2, max_parallel_retries=1), breaker=POLICY)


def test_the_limits_of_a_route_are_those_of_all_its_rules() -> None:
    served = linker()
    rules = [
        msgspec.structs.replace(plain("default/a"), id=f"default/r#{index}", route="default/r", circuit=CIRCUIT)
        for index in range(2)
    ]
    content = msgspec.structs.replace(data(rules[0], "default/a"), rules=tuple(rules))
    snapshot = served.link(content)
    linked = [snapshot.rules[rule.id] for rule in rules]
    leases = [rule.select(make_head(), rng=random.Random(1), now=1.0) for rule in linked]
    assert all(isinstance(lease, Lease) for lease in leases)
    refused = linked[0].select(make_head(), rng=random.Random(1), now=1.0)
    assert isinstance(refused, LocalReply)
    assert (refused.status, refused.reason) == (503, Reason.CIRCUIT_OPEN)
    assert Cell(names.ROUTE_CIRCUIT.name, ("default/r", "full"), 1) in served.take_cells()
    for lease in leases:
        assert isinstance(lease, Lease)
        lease.release()
    assert served.take_cells() == []
    assert isinstance(linked[1].select(make_head(), rng=random.Random(1), now=1.0), Lease)


def test_the_breaker_of_a_route_outlives_its_versions() -> None:
    served = linker()
    rule = plain("default/a", circuit=CIRCUIT)
    fail(served.link(data(rule, "default/a")), 50.0)
    snapshot = served.link(data(msgspec.structs.replace(rule, hostnames=("example.test",)), "default/a", version=2))
    reply = select(snapshot, 55.0)
    assert isinstance(reply, LocalReply)
    assert (reply.reason, reply.headers) == (Reason.CIRCUIT_TRIPPED, ((b"retry-after", b"5"),))
    assert served.take_cells() == [Cell(names.ROUTE_CIRCUIT.name, (rule.route, "open"), 1)]


def test_retries_of_a_route_have_a_limit_of_their_own() -> None:
    snapshot = linker().link(data(plain("default/a", circuit=CIRCUIT), "default/a"))
    assert isinstance(select(snapshot, 1.0, is_retry=True), Lease)
    refused = select(snapshot, 1.0, is_retry=True)
    assert isinstance(refused, LocalReply)
    assert refused.reason is Reason.CIRCUIT_OPEN


def test_a_route_without_an_endpoint_gives_its_permit_back() -> None:
    content = data(plain("default/a", circuit=CIRCUIT), "default/a")
    service = msgspec.structs.replace(content.services[ServiceKey("default/a")], endpoints=())
    snapshot = linker().link(msgspec.structs.replace(content, services={service.key: service}))
    replies = [select(snapshot, 1.0) for _ in range(5)]
    assert {reply.reason for reply in replies if isinstance(reply, LocalReply)} == {Reason.NO_HEALTHY_ENDPOINT}


@pytest.mark.parametrize(("workers", "expected"), [(1, (10, 5, 4, 0)), (3, (4, 2, 2, 0)), (64, (1, 1, 1, 0))])
def test_limits_of_a_manifest_are_shared_out_among_workers(workers: int, expected: tuple[int, ...]) -> None:
    limits = ConnectionLimits(
        max_connections=10, max_pending_requests=5, max_parallel_requests=4, max_parallel_retries=0, is_for_all=True
    )
    found = share(limits, workers)
    assert expected == (
        found.max_connections,
        found.max_pending_requests,
        found.max_parallel_requests,
        found.max_parallel_retries,
    )
    assert share(ConnectionLimits(), workers) == ConnectionLimits(), "defaults are each worker's own"


def test_each_worker_enforces_its_share() -> None:
    content = data(plain("default/a"), "default/a")
    limits = ConnectionLimits(max_parallel_requests=4, is_for_all=True)
    service = msgspec.structs.replace(content.services[ServiceKey("default/a")], limits=limits)
    snapshot = linker(workers=2).link(msgspec.structs.replace(content, services={service.key: service}))
    found = [select(snapshot, 1.0) for _ in range(3)]
    assert [isinstance(item, Lease) for item in found] == [True, True, False]


def test_a_circuit_breaker_in_words() -> None:
    assert describe_circuit("route", CIRCUIT.limits, POLICY) == (
        "circuit breaker of the route: at once 2 requests, 1 retries; open for 10 s after 3 failures in a row, then "
        "closed by 2 successes; else 503"
    )


def test_with_an_ejection_share_of_0_nobody_is_ejected() -> None:
    detector = make_outlier_detector(OutlierPolicy(consecutive_5xx=1, max_ejection_percent=0))
    keys = [endpoint.key for endpoint in make_endpoints(3)]
    detector.set_endpoints(keys)
    assert detector.record(keys[0], [(BAD, 9)], now=0.0) is None
    detector.set_policy(OutlierPolicy(consecutive_5xx=1, max_ejection_percent=1))
    assert detector.record(keys[0], [(BAD, 1)], now=0.0) is not None
