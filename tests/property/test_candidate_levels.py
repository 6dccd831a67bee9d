"""Candidates: shares add up, only usable members unless panicking, spill-over as Envoy's 1.4 says, monotone ramp."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from datum_router.balancing.base import ALWAYS
from datum_router.balancing.locality import MIN_RAMP, OVERPROVISIONING, candidates, ramp
from datum_router.model.endpoint import Endpoint, Locality, make_endpoint
from datum_router.model.route import LocalityMode, LocalityPolicy
from datum_router.testing.balancer import SomeUsable
from datum_router.testing.factories import make_service

KEY = "topology.datum.net/city-code"
PLACES = ("", "AMS", "FRA")


def at(place: str) -> Locality:
    return Locality(topology=((KEY, place),) if place else ())


member = st.tuples(
    st.sampled_from((0, 0, 1, 2)),  # priority
    st.sampled_from((0, 1, 100)),  # weight
    st.sampled_from(PLACES),
    st.booleans(),  # serving
    st.booleans(),  # up
)


@settings(max_examples=200, deadline=None)
@given(
    members=st.lists(member, max_size=14),
    mode=st.sampled_from(LocalityMode),
    here=st.sampled_from(PLACES),
    panic=st.sampled_from((0, 1, 50, 100)),
)
def test_levels_hold_for_any_service(
    members: list[tuple[int, int, str, bool, bool]], mode: LocalityMode, here: str, panic: int
) -> None:
    endpoints = [
        make_endpoint(f"10.1.0.{n}", 80, priority=priority, weight=weight, locality=at(place), is_serving=serving)
        for n, (priority, weight, place, serving, _) in enumerate(members)
    ]
    down = {endpoint.key for endpoint, (*_, up) in zip(endpoints, members, strict=True) if not up}
    found = candidates(
        make_service(endpoints=endpoints, panic_threshold_percent=panic),
        SomeUsable(list(down)),
        LocalityPolicy(mode=mode, topology_key=KEY),
        at(here),
    )

    def may_serve(endpoint: Endpoint) -> bool:
        place = endpoint.locality.value(KEY)
        is_allowed = mode is not LocalityMode.REQUIRE_LOCAL or (here != "" and place == here)
        return endpoint.is_serving and endpoint.weight > 0 and is_allowed

    allowed = [endpoint for endpoint in endpoints if may_serve(endpoint)]
    usable = [endpoint for endpoint in allowed if endpoint.key not in down]
    listed = [endpoint for level in found.levels for endpoint in level.endpoints]
    assert (found.members, found.usable) == (len(allowed), len(usable))
    assert sorted(e.key for e in listed) == sorted(e.key for e in (allowed if found.is_panicking else usable))
    assert all(level.endpoints for level in found.levels)
    if found.is_panicking:
        assert len(usable) * 100 < len(allowed) * panic
    if found.levels:
        bounds = [0.0, *(level.upto for level in found.levels)]
        assert all(0.0 <= a <= b for a, b in itertools.pairwise(bounds))
        assert bounds[-1] == 1.0
    assert bool(found.levels) == bool(listed)
    assert bool(found.levels) or panic == 0 or not allowed


@settings(max_examples=150, deadline=None)
@given(sizes=st.lists(st.tuples(st.integers(1, 8), st.integers(0, 8)), min_size=1, max_size=4))
def test_spill_over_follows_the_capacity_of_each_priority(sizes: list[tuple[int, int]]) -> None:
    endpoints: list[Endpoint] = []
    down = []
    shares: dict[int, float] = {}
    left = 1.0
    capacities = []
    for priority, (size, failed) in enumerate(sizes):
        group = [make_endpoint(f"10.{priority}.0.{n}", 80, priority=priority) for n in range(size)]
        endpoints += group
        down += [endpoint.key for endpoint in group[:failed]]
        capacities.append(min(1.0, max(0, size - failed) / size * OVERPROVISIONING))
    total = min(1.0, sum(capacities))
    for priority, capacity in enumerate(capacities):
        shares[priority] = min(left, capacity / total) if total else 0.0
        left -= shares[priority]
    found = candidates(
        make_service(endpoints=endpoints, panic_threshold_percent=0), SomeUsable(down), LocalityPolicy(), Locality()
    )
    begin = 0.0
    for level in found.levels:
        assert level.upto - begin == pytest.approx(shares[level.endpoints[0].priority], abs=1e-6)
        begin = level.upto
    assert len(found.levels) == sum(capacity > 0 for capacity in capacities)


@settings(max_examples=200, deadline=None)
@given(
    ages=st.lists(st.floats(-10, 1000), min_size=2, max_size=6),
    slow_start_s=st.floats(0, 600),
)
def test_slow_start_never_shrinks_with_age(ages: list[float], slow_start_s: float) -> None:
    shares = [ramp(age, slow_start_s) for age in sorted(ages)]
    assert shares == sorted(shares)
    assert all(MIN_RAMP <= share <= 1.0 for share in shares)
    assert ramp(0.0 - ALWAYS, slow_start_s) == 1.0
