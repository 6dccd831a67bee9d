from __future__ import annotations

import random

import msgspec
import pytest

from datum_router.health.schedule import FIRST_PROBE_SPREAD_S, JITTER, ProbeSchedule, ProbeTarget
from datum_router.model.policy import ActiveHealthPolicy
from datum_router.model.service import Service, ServiceKey
from datum_router.testing.factories import make_endpoints, make_service

POLICY = ActiveHealthPolicy(interval_s=10.0)


def services(*found: Service) -> dict[ServiceKey, Service]:
    return {service.key: service for service in found}


def schedule(*found: Service, concurrency: int = 100, seed: int = 1) -> ProbeSchedule:
    made = ProbeSchedule(random.Random(seed), concurrency=concurrency)
    made.set_services(services(*found), now=0.0)
    return made


def names(targets: list[ProbeTarget]) -> list[str]:
    return [target.endpoint.key for target in targets]


def test_first_probes_are_spread_and_all_come_within_the_spread() -> None:
    plan = schedule(make_service(endpoints=50, active=POLICY))
    early = plan.take_due(FIRST_PROBE_SPREAD_S / 2)
    assert 10 < len(early) < 40
    assert len(early) + len(plan.take_due(FIRST_PROBE_SPREAD_S)) == 50


def test_short_intervals_shorten_the_spread() -> None:
    plan = schedule(make_service(endpoints=20, active=ActiveHealthPolicy(interval_s=0.1)))
    assert len(plan.take_due(0.1)) == 20


def test_services_without_active_policy_are_not_probed() -> None:
    plan = schedule(make_service(endpoints=3))
    assert len(plan) == 0
    assert plan.next_due() is None
    assert plan.take_due(1e9) == []


def test_later_probes_follow_the_start_by_the_jittered_interval() -> None:
    plan = schedule(make_service(endpoints=1, active=POLICY))
    gaps = []
    now = 1.0
    for _ in range(100):
        [target] = plan.take_due(now)
        assert plan.finish(target, now=now + 2.0)
        due = plan.next_due()
        assert due is not None
        gaps.append(due - now)
        now = due
    assert 10.0 * (1 - JITTER) <= min(gaps) < 9.3
    assert 10.7 < max(gaps) <= 10.0 * (1 + JITTER)


def test_a_probe_that_took_longer_than_the_interval_is_followed_at_once() -> None:
    plan = schedule(make_service(endpoints=1, active=POLICY))
    [target] = plan.take_due(1.0)
    plan.finish(target, now=100.0)
    assert plan.next_due() == 100.0


def test_concurrency_is_bounded_and_the_longest_overdue_goes_first() -> None:
    plan = schedule(make_service(endpoints=10, active=POLICY), concurrency=3)
    taken = plan.take_due(5.0)
    assert len(taken) == plan.running == 3
    assert plan.take_due(5.0) == []
    assert plan.next_due() is None
    plan.finish(taken[0], now=5.0)
    assert plan.next_due() is not None
    following = plan.take_due(5.0)
    assert len(following) == 1
    assert names(following)[0] not in names(taken)
    seen = [*names(taken), *names(following)]
    in_flight = [*taken[1:], *following]
    while len(seen) < 10:
        plan.finish(in_flight.pop(0), now=5.0)
        found = plan.take_due(5.0)
        seen += names(found)
        in_flight += found
    assert len(set(seen)) == 10


def test_no_target_is_probed_twice_at_once() -> None:
    plan = schedule(make_service(endpoints=1, active=POLICY))
    assert len(plan.take_due(1.0)) == 1
    assert plan.take_due(1000.0) == []


def test_a_removed_endpoint_is_not_probed_and_its_running_probe_means_nothing() -> None:
    service = make_service(endpoints=2, active=POLICY)
    plan = schedule(service)
    first, second = plan.take_due(1.0)
    plan.set_services(services(msgspec.structs.replace(service, endpoints=(second.endpoint,))), now=1.0)
    assert plan.running == 2
    assert not plan.finish(first, now=2.0)
    assert plan.finish(second, now=2.0)
    assert plan.running == 0
    assert names(plan.take_due(100.0)) == [second.endpoint.key]


def test_an_endpoint_that_came_back_is_not_credited_with_the_old_probe() -> None:
    service = make_service(endpoints=1, active=POLICY)
    plan = schedule(service)
    [old] = plan.take_due(1.0)
    plan.set_services({}, now=1.0)
    plan.set_services(services(service), now=1.0)
    [new] = plan.take_due(3.0)
    assert not plan.finish(old, now=3.0)
    assert plan.finish(new, now=3.0)
    assert not plan.finish(new, now=3.0)
    assert plan.running == 0


def test_a_changed_policy_makes_a_new_probe_due_soon() -> None:
    service = make_service(endpoints=1, active=ActiveHealthPolicy(interval_s=1000.0))
    plan = schedule(service)
    [target] = plan.take_due(1.0)
    plan.finish(target, now=1.0)
    plan.set_services(services(msgspec.structs.replace(service, active=POLICY)), now=2.0)
    due = plan.next_due()
    assert due is not None
    assert 2.0 <= due <= 2.0 + FIRST_PROBE_SPREAD_S


def test_a_policy_changed_during_a_probe_makes_its_result_void_and_the_next_one_due_at_once() -> None:
    service = make_service(endpoints=1, active=POLICY)
    plan = schedule(service)
    [target] = plan.take_due(1.0)
    changed = msgspec.structs.replace(service, active=ActiveHealthPolicy(interval_s=10.0, http_path="/ready"))
    plan.set_services(services(changed), now=1.0)
    assert not plan.finish(target, now=2.0)
    [following] = plan.take_due(2.0)
    assert following.policy.http_path == "/ready"


def test_setting_the_same_services_again_moves_nothing() -> None:
    service = make_service(endpoints=5, active=POLICY)
    plan = schedule(service)
    before = plan.next_due()
    for _ in range(3):
        plan.set_services(services(service), now=0.5)
    assert plan.next_due() == before


def test_heap_stays_in_proportion_to_the_targets_under_churn() -> None:
    plan = schedule()
    for round_number in range(100):
        service = make_service(endpoints=make_endpoints(50, port=1000 + round_number), active=POLICY)
        plan.set_services(services(service), now=0.0)
    assert len(plan) == 50
    assert len(plan._heap) <= 1024 + 50


def test_equal_seeds_give_equal_plans() -> None:
    found = [names(schedule(make_service(endpoints=20, active=POLICY), seed=3).take_due(1.0)) for _ in range(2)]
    assert found[0] == found[1]


def test_concurrency_below_one_is_refused() -> None:
    with pytest.raises(ValueError, match=r"concurrency: found 0, expected a number >= 1"):
        ProbeSchedule(random.Random(1), concurrency=0)
