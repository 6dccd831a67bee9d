from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence

import msgspec

from datum_router.balancing.base import ALL_USABLE, ALWAYS, Balancer, HealthView, PickContext
from datum_router.balancing.hashing import hash64
from datum_router.balancing.maglev import Maglev
from datum_router.balancing.random_choice import RandomChoice
from datum_router.balancing.round_robin import RoundRobin
from datum_router.balancing.service_balancer import RAMP_INTERVAL_S, ServiceBalancer
from datum_router.model.endpoint import Endpoint, EndpointKey, make_endpoint
from datum_router.model.route import BalancingPolicy, LocalityPolicy
from datum_router.model.service import Service
from datum_router.testing.balancer import SomeUsable
from datum_router.testing.factories import make_endpoints, make_service


class Recorder:
    """Note the candidates of each pick and give the first one that was not tried."""

    def __init__(self) -> None:
        self.seen: list[Sequence[Endpoint]] = []

    def pick(self, ctx: PickContext, endpoints: Sequence[Endpoint], health: HealthView) -> Endpoint | None:
        self.seen.append(endpoints)
        return next((endpoint for endpoint in endpoints if endpoint.key not in ctx.excluded), None)


class Since(SomeUsable):
    def __init__(self, since: dict[EndpointKey, float]) -> None:
        super().__init__([])
        self._since = since

    def usable_since(self, key: EndpointKey) -> float:
        return self._since.get(key, ALWAYS)


def build(
    service: Service,
    balancer: Balancer,
    *,
    policy: BalancingPolicy = BalancingPolicy(),
    health: HealthView = ALL_USABLE,
) -> ServiceBalancer:
    return ServiceBalancer(service, balancing=policy, locality=LocalityPolicy(), balancer=balancer, health=health)


def context(
    seed: int = 1, *, now: float = 0.0, excluded: Sequence[Endpoint] = (), key: int | None = None
) -> PickContext:
    return PickContext(
        rng=random.Random(seed), now=now, hash_key=key, excluded=frozenset(endpoint.key for endpoint in excluded)
    )


def test_candidates_stay_the_same_object_while_nothing_changes() -> None:
    service = make_service(endpoints=4)
    recorder = Recorder()
    balancer = build(service, recorder)
    balancer.pick(context())
    balancer.update_health(SomeUsable([EndpointKey("192.0.2.1:1")]))
    balancer.pick(context())
    balancer.update_service(msgspec.structs.replace(service, idle_timeout_s=1.0), ALL_USABLE)
    balancer.pick(context())
    assert recorder.seen[0] is recorder.seen[1] is recorder.seen[2]


def test_an_unusable_endpoint_gets_nothing_from_the_next_pick_on() -> None:
    service = make_service(endpoints=4)
    balancer = build(service, RoundRobin())
    balancer.update_health(SomeUsable([service.endpoints[1].key]))
    found = {balancer.pick(context(seed)) for seed in range(20)}
    assert found == set(service.endpoints) - {service.endpoints[1]}
    balancer.update_health(ALL_USABLE)
    assert service.endpoints[1] in {balancer.pick(context(seed)) for seed in range(20)}


def test_round_robin_goes_on_when_endpoints_are_swapped() -> None:
    service = make_service(endpoints=3)
    balancer = build(service, RoundRobin())
    first = balancer.pick(context())
    assert first is not None
    balancer.update_service(msgspec.structs.replace(service, endpoints=make_endpoints(4)), ALL_USABLE)
    following = balancer.pick(context())
    assert following == make_endpoints(4)[(service.endpoints.index(first) + 1) % 4]


def test_nobody_to_pick_gives_none() -> None:
    balancer = build(make_service(endpoints=0), RoundRobin())
    assert balancer.pick(context()) is None
    assert not balancer.has_candidates


def test_a_panic_still_picks_but_offers_no_usable_endpoint() -> None:
    service = make_service(endpoints=2)
    balancer = build(service, RoundRobin(), health=SomeUsable([endpoint.key for endpoint in service.endpoints]))
    assert balancer.is_panicking
    assert not balancer.has_candidates
    assert balancer.pick(context()) in service.endpoints


def test_a_standby_priority_serves_retries_when_the_first_level_was_tried() -> None:
    first = make_endpoint("10.0.0.1", 80)
    standby = make_endpoint("10.0.0.2", 80, priority=1)
    balancer = build(make_service(endpoints=[first, standby]), RoundRobin())
    assert {balancer.pick(context(seed)) for seed in range(20)} == {first}
    assert balancer.pick(context(excluded=[first])) is standby
    assert balancer.pick(context(excluded=[first, standby])) is None


def test_spill_over_follows_the_shares() -> None:
    first = [make_endpoint(f"10.1.0.{n}", 80) for n in range(10)]
    second = [make_endpoint(f"10.2.0.{n}", 80, priority=1) for n in range(10)]
    health = SomeUsable([endpoint.key for endpoint in first[:5]])
    balancer = build(make_service(endpoints=first + second), RandomChoice(), health=health)
    ctx = context()
    counts = Counter(picked.priority for _ in range(10_000) if (picked := balancer.pick(ctx)) is not None)
    assert abs(counts[1] - 3000) <= 3 * (10_000 * 0.3 * 0.7) ** 0.5


def test_a_key_stays_at_its_level_while_load_spills_over() -> None:
    first = [make_endpoint(f"10.1.0.{n}", 80) for n in range(4)]
    second = [make_endpoint(f"10.2.0.{n}", 80, priority=1) for n in range(4)]
    policy = BalancingPolicy(algorithm="consistent-hash", table_size=251)
    balancer = build(
        make_service(endpoints=first + second),
        Maglev(policy),
        policy=policy,
        health=SomeUsable([endpoint.key for endpoint in first[:2]]),
    )
    priorities = set()
    for client in range(100):
        key = hash64(b"%d" % client)
        found = {balancer.pick(context(seed, key=key)) for seed in range(5)}
        assert len(found) == 1
        priorities |= {endpoint.priority for endpoint in found if endpoint is not None}
    assert priorities == {0, 1}


def test_slow_start_gives_a_new_endpoint_less_and_ends() -> None:
    old, young = make_endpoint("10.0.0.1", 80), make_endpoint("10.0.0.2", 80)
    policy = BalancingPolicy(slow_start_s=10.0)
    balancer = build(
        make_service(endpoints=[old, young]), RoundRobin(), policy=policy, health=Since({young.key: 1000.0})
    )

    def share(now: float, picks: int = 1100) -> float:
        ctx = context(now=now)
        counts = Counter(balancer.pick(ctx) for _ in range(picks))
        assert set(counts) == {old, young}, "originals are returned, never weighted copies"
        return counts[young] / counts[old]

    assert abs(share(1000.0) - 0.1) < 0.01
    assert abs(share(1005.0) - 0.5) < 0.01
    assert abs(share(1010.0) - 1.0) < 0.01


def test_slow_start_weights_are_computed_at_most_every_interval() -> None:
    old, young = make_endpoint("10.0.0.1", 80), make_endpoint("10.0.0.2", 80)
    recorder = Recorder()
    balancer = build(
        make_service(endpoints=[old, young]),
        recorder,
        policy=BalancingPolicy(slow_start_s=10.0),
        health=Since({young.key: 0.0}),
    )
    for now in (1.0, 1.1, 1.0 + RAMP_INTERVAL_S, 1.3):
        balancer.pick(context(now=now))
    assert recorder.seen[0] is recorder.seen[1]
    assert recorder.seen[1] is not recorder.seen[2]
    assert recorder.seen[2] is recorder.seen[3]
    for now in (20.0, 21.0, 30.0):
        balancer.pick(context(now=now))
    assert recorder.seen[4] is recorder.seen[5] is recorder.seen[6]
    assert [endpoint.weight for endpoint in recorder.seen[6]] == [100, 100]


def test_endpoints_that_start_together_are_not_held_back() -> None:
    service = make_service(endpoints=3)
    recorder = Recorder()
    build(service, recorder, policy=BalancingPolicy(slow_start_s=10.0)).pick(context(now=1.0))
    assert [endpoint.weight for endpoint in recorder.seen[0]] == [100, 100, 100]


def test_consistent_hashing_takes_no_part_in_slow_start() -> None:
    old, young = make_endpoint("10.0.0.1", 80), make_endpoint("10.0.0.2", 80)
    recorder = Recorder()
    policy = BalancingPolicy(algorithm="consistent-hash", slow_start_s=10.0)
    balancer = build(make_service(endpoints=[old, young]), recorder, policy=policy, health=Since({young.key: 0.0}))
    balancer.pick(context(now=1.0))
    assert tuple(recorder.seen[0]) == (old, young)
