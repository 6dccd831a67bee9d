from __future__ import annotations

import itertools

import pytest

from datum_router.balancing.base import ALL_USABLE, ALWAYS
from datum_router.balancing.locality import MIN_RAMP, Candidates, candidates, ramp, ramped
from datum_router.model.endpoint import UNKNOWN_LOCALITY, Endpoint, EndpointKey, Locality, make_endpoint
from datum_router.model.route import LocalityMode, LocalityPolicy
from datum_router.testing.balancer import SomeUsable
from datum_router.testing.factories import make_service

KEY = "topology.datum.net/city-code"
FRA, AMS = Locality(topology=((KEY, "FRA"),)), Locality(topology=((KEY, "AMS"),))


def group(count: int, network: int, *, priority: int = 0, locality: Locality = UNKNOWN_LOCALITY) -> list[Endpoint]:
    return [make_endpoint(f"10.{network}.0.{n}", 80, priority=priority, locality=locality) for n in range(count)]


def levels(
    endpoints: list[Endpoint],
    down: list[Endpoint] = [],  # noqa: B006  # never changed
    *,
    mode: LocalityMode = LocalityMode.NONE,
    here: Locality = FRA,
    panic: int = 50,
    service_locality: Locality = UNKNOWN_LOCALITY,
) -> Candidates:
    service = make_service(endpoints=endpoints, panic_threshold_percent=panic, locality=service_locality)
    health = SomeUsable([endpoint.key for endpoint in down])
    return candidates(service, health, LocalityPolicy(mode=mode), here)


def shares(found: Candidates) -> list[float]:
    bounds = [0.0, *(level.upto for level in found.levels)]
    return [round(b - a, 6) for a, b in itertools.pairwise(bounds)]


def test_a_healthy_service_has_one_level_with_everybody() -> None:
    endpoints = group(3, 1)
    found = levels(endpoints)
    assert [level.endpoints for level in found.levels] == [tuple(endpoints)]
    assert shares(found) == [1.0]
    assert not found.is_panicking


def test_endpoints_that_do_not_serve_or_weigh_nothing_are_never_candidates() -> None:
    good, idle, leaving = (
        make_endpoint("10.0.0.1", 80),
        make_endpoint("10.0.0.2", 80, weight=0),
        make_endpoint("10.0.0.3", 80, is_serving=False),
    )
    assert levels([good, idle, leaving]).levels[0].endpoints == (good,)
    assert levels([good, idle, leaving], [good]).levels[0].endpoints == (good,)  # in a panic neither
    assert levels([idle, leaving]).levels == ()
    assert levels([]).levels == ()


@pytest.mark.parametrize(
    ("down", "expected"),
    [
        (0, [1.0, 0.0]),
        (2, [1.0, 0.0]),  # 8 of 10 * 1.4 > 1
        (3, [0.98, 0.02]),
        (5, [0.7, 0.3]),
        (9, [0.14, 0.86]),
        (10, [1.0]),
    ],
)
def test_a_priority_spills_over_as_it_loses_health(down: int, expected: list[float]) -> None:
    first, second = group(10, 1), group(10, 2, priority=1)
    found = levels(first + second, first[:down])
    assert shares(found) == pytest.approx(expected)
    assert not found.is_panicking
    assert found.levels[-1].endpoints == tuple(second)


def test_levels_without_capacity_for_all_share_in_proportion_to_it() -> None:
    first, second = group(10, 1), group(10, 2, priority=1)
    found = levels(first + second, first[:8] + second[:9], panic=0)
    assert shares(found) == pytest.approx([2 / 3, 1 / 3])


def test_priorities_are_in_order_whatever_the_order_of_endpoints() -> None:
    first, second, third = group(1, 1), group(1, 2, priority=3), group(1, 3, priority=9)
    found = levels(third + first + second, first + second)
    assert [level.endpoints for level in found.levels] == [tuple(third)]


def test_panic_uses_everybody_below_the_threshold() -> None:
    endpoints = group(10, 1)
    calm, panicking = levels(endpoints, endpoints[:5]), levels(endpoints, endpoints[:6])
    assert not calm.is_panicking
    assert calm.levels[0].endpoints == tuple(endpoints[5:])
    assert panicking.is_panicking
    assert panicking.levels[0].endpoints == tuple(endpoints)
    assert panicking.usable == 4


def test_panic_without_any_usable_endpoint_uses_all_priorities() -> None:
    endpoints = group(2, 1) + group(2, 2, priority=1)
    found = levels(endpoints, endpoints)
    assert found.is_panicking
    assert found.usable == 0
    assert shares(found) == [1.0]
    assert found.levels[0].endpoints == tuple(endpoints)


def test_threshold_zero_never_panics() -> None:
    endpoints = group(3, 1)
    found = levels(endpoints, endpoints, panic=0)
    assert found.levels == ()
    assert not found.is_panicking


def test_there_is_no_panic_while_a_later_level_can_carry_the_load() -> None:
    first, second = group(9, 1), group(1, 2, priority=1)
    found = levels(first + second, first)
    assert not found.is_panicking
    assert found.levels[0].endpoints == tuple(second)


def test_prefer_local_takes_local_endpoints_first_and_spills_in_proportion() -> None:
    here, there = group(10, 1, locality=FRA), group(10, 2, locality=AMS)
    assert shares(levels(there + here, mode=LocalityMode.PREFER_LOCAL)) == [1.0, 0.0]
    found = levels(there + here, here[:5], mode=LocalityMode.PREFER_LOCAL)
    assert shares(found) == pytest.approx([5 / 7, 2 / 7])  # half of it is left, and spills below 70 percent
    assert found.levels[0].endpoints == tuple(here[5:])
    assert found.levels[1].endpoints == tuple(there)


def test_prefer_local_keeps_priority_above_place() -> None:
    far, near = group(1, 1, locality=AMS), group(1, 2, locality=FRA, priority=1)
    found = levels(near + far, mode=LocalityMode.PREFER_LOCAL)
    assert found.levels[0].endpoints == tuple(far)


def test_require_local_leaves_nobody_else_not_even_in_a_panic() -> None:
    here, there = group(2, 1, locality=FRA), group(8, 2, locality=AMS)
    assert levels(here + there, mode=LocalityMode.REQUIRE_LOCAL).levels[0].endpoints == tuple(here)
    found = levels(here + there, here, mode=LocalityMode.REQUIRE_LOCAL)
    assert found.is_panicking
    assert found.levels[0].endpoints == tuple(here)
    missing = levels(there, mode=LocalityMode.REQUIRE_LOCAL)
    assert missing.levels == ()
    assert missing.is_locality_missing


def test_a_gateway_that_does_not_know_its_place_has_no_local_endpoint() -> None:
    unknown = group(2, 1) + group(1, 2, locality=FRA)
    assert len(levels(unknown, mode=LocalityMode.PREFER_LOCAL, here=UNKNOWN_LOCALITY).levels) == 1
    assert levels(unknown, mode=LocalityMode.REQUIRE_LOCAL, here=UNKNOWN_LOCALITY).is_locality_missing


def test_endpoints_without_a_place_are_where_their_service_is() -> None:
    endpoints = group(2, 1)
    found = levels(endpoints, mode=LocalityMode.REQUIRE_LOCAL, service_locality=FRA)
    assert found.levels[0].endpoints == tuple(endpoints)


def test_ramp_grows_linearly_from_its_floor() -> None:
    assert [ramp(age, 10.0) for age in (-1.0, 0.0, 1.0, 5.0, 9.9, 10.0, 99.0)] == [
        MIN_RAMP,
        MIN_RAMP,
        0.1,
        0.5,
        pytest.approx(0.99),
        1.0,
        1.0,
    ]
    assert ramp(0.0, 0.0) == 1.0


class JoinedAt:
    def __init__(self, since: dict[EndpointKey, float]) -> None:
        self.since = since

    def is_usable(self, key: EndpointKey) -> bool:
        return True

    def usable_since(self, key: EndpointKey) -> float:
        return self.since.get(key, ALWAYS)


def test_ramped_weights_keep_the_proportion_of_the_originals() -> None:
    old, young = make_endpoint("10.0.0.1", 80, weight=1), make_endpoint("10.0.0.2", 80, weight=2)
    found = ramped((old, young), JoinedAt({young.key: 100.0}), 10.0, 105.0)
    assert found is not None
    assert [endpoint.weight for endpoint in found] == [1000, 1000]


def test_nothing_is_ramped_if_all_are_equally_young_or_old() -> None:
    endpoints = tuple(group(3, 1))
    assert ramped(endpoints, ALL_USABLE, 10.0, 5.0) is None
    assert ramped(endpoints, JoinedAt({endpoint.key: 4.0 for endpoint in endpoints}), 10.0, 5.0) is None
