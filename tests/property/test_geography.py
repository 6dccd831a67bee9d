"""Places: distance is a metric, shares sum to 1, the nearest gets all while healthy, spill-over is monotone."""

from __future__ import annotations

import itertools
import math

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from datum_router.balancing.base import ALL_USABLE
from datum_router.balancing.explain import explain_locality
from datum_router.balancing.locality import Candidates, candidates
from datum_router.balancing.place import CITY_KEY, EARTH_RADIUS_KM, REGION_KEY, distance, great_circle_km, place_of
from datum_router.model.endpoint import Endpoint, Locality, make_endpoint, make_locality
from datum_router.model.route import LocalityMode, LocalityPolicy
from datum_router.model.service import Service
from datum_router.testing.balancer import SomeUsable
from datum_router.testing.factories import make_service

NAMES = ("AMS", "FRA", "IAD", "NRT")
REGIONS = ("eu", "us")
points = st.tuples(st.floats(-90, 90), st.floats(-180, 180))


@st.composite
def localities(draw: st.DrawFn) -> Locality:
    topology = {}
    if name := draw(st.sampled_from(("", *NAMES))):
        topology[CITY_KEY] = name
    if region := draw(st.sampled_from(("", *REGIONS))):
        topology[REGION_KEY] = region
    point = draw(st.none() | points)
    location = draw(st.sampled_from(("", "one", "two")))
    if point is None:
        return make_locality(topology, location=location)
    return make_locality(topology, location=location, latitude=point[0], longitude=point[1])


@st.composite
def services(draw: st.DrawFn) -> Service:
    places = draw(st.lists(localities(), min_size=1, max_size=5))
    endpoints = [
        make_endpoint(
            f"10.0.0.{n}",
            80,
            weight=draw(st.sampled_from((0, 1, 100, 250))),
            priority=draw(st.sampled_from((0, 0, 0, 1))),
            locality=draw(st.sampled_from(places)),
            is_serving=draw(st.integers(0, 5)) > 0,
            cluster=draw(st.sampled_from(("", "", "remote"))),
        )
        for n in range(draw(st.integers(0, 12)))
    ]
    panic = draw(st.sampled_from((0, 50, 100)))
    return make_service(endpoints=endpoints, panic_threshold_percent=panic, locality=draw(localities()))


@st.composite
def policies(draw: st.DrawFn) -> LocalityPolicy:
    names = st.lists(st.sampled_from((*NAMES, "one")), max_size=3, unique=True)
    return LocalityPolicy(
        mode=draw(st.sampled_from(LocalityMode)),
        topology_key=draw(st.sampled_from((CITY_KEY, REGION_KEY, "zone"))),
        failover_order=tuple(draw(names)),
        spillover_percent=draw(st.integers(0, 100)),
        allowed_locations=tuple(draw(st.lists(st.sampled_from((*NAMES, *REGIONS, "two")), max_size=3))),
        weights=tuple((name, draw(st.integers(1, 100))) for name in sorted(draw(names))),
    )


def shares(found: Candidates) -> list[float]:
    return [b - a for a, b in itertools.pairwise([0.0, *(level.upto for level in found.levels)])]


@given(a=points, b=points, c=points)
def test_distance_is_a_metric_on_the_sphere(
    a: tuple[float, float], b: tuple[float, float], c: tuple[float, float]
) -> None:
    there = great_circle_km(*a, *b)
    assert 0.0 <= there <= math.pi * EARTH_RADIUS_KM + 1e-6
    assert there == pytest.approx(great_circle_km(*b, *a), abs=1e-6)
    assert great_circle_km(*a, *a) == 0.0
    assert there <= great_circle_km(*a, *c) + great_circle_km(*c, *b) + 1e-3


@given(a=localities(), b=localities())
def test_places_are_as_far_apart_one_way_as_the_other(a: Locality, b: Locality) -> None:
    one, other = distance(a, b), distance(b, a)
    assert (one.basis, one.km) == (other.basis, pytest.approx(other.km, abs=1e-6))


@settings(max_examples=300, deadline=None)
@given(service=services(), policy=policies(), here=localities(), data=st.data())
def test_shares_sum_to_one_and_nobody_is_used_whom_the_policy_leaves_out(
    service: Service, policy: LocalityPolicy, here: Locality, data: st.DataObject
) -> None:
    keys = [endpoint.key for endpoint in service.endpoints]
    down = set(data.draw(st.lists(st.sampled_from(keys), unique=True) if keys else st.just([])))
    found = candidates(service, SomeUsable(list(down)), policy, here)

    def may_serve(endpoint: Endpoint) -> bool:
        if not endpoint.is_serving or not endpoint.weight:
            return False
        place = place_of(endpoint, service)
        key = policy.topology_key
        names = {place.location, place.value(CITY_KEY), place.value(REGION_KEY), place.value(key)} - {""}
        if policy.allowed_locations and names.isdisjoint(policy.allowed_locations):
            return False
        is_local = bool(place.value(key) and place.value(key) == here.value(key)) or bool(
            place.location and place.location == here.location
        )
        return policy.mode is not LocalityMode.REQUIRE_LOCAL or is_local

    allowed = [endpoint for endpoint in service.endpoints if may_serve(endpoint)]
    usable = [endpoint for endpoint in allowed if endpoint.key not in down]
    listed = [endpoint for level in found.levels for endpoint in level.endpoints]
    assert sorted(one.key for one in listed) == sorted(one.key for one in (allowed if found.is_panicking else usable))
    assert {one.key for one in found.unusable} == {one.key for one in allowed} & down
    assert found.members == len(allowed)
    if listed:
        assert sum(shares(found)) == pytest.approx(1.0)
        assert found.levels[-1].upto == 1.0
    report = explain_locality(service, policy, here, SomeUsable(list(down)))
    assert bool(report.outcome) == (not listed)
    if listed:
        assert sum(one.share_percent for one in report.places) == pytest.approx(100, abs=0.1)
    assert len(report.left_out) == found.excluded


@settings(max_examples=200, deadline=None)
@given(service=services(), here=localities(), percent=st.integers(0, 100))
def test_while_all_are_healthy_the_nearest_of_the_first_priority_take_all(
    service: Service, here: Locality, percent: int
) -> None:
    policy = LocalityPolicy(mode=LocalityMode.NEAREST, spillover_percent=percent)
    found = candidates(service, ALL_USABLE, policy, here)
    assume(found.levels)
    assert shares(found)[0] == 1.0
    members = [endpoint for level in found.levels for endpoint in level.endpoints]
    best = min(endpoint.priority for endpoint in members)
    assert {endpoint.priority for endpoint in found.levels[0].endpoints} == {best}
    away = [
        min(distance(here, place_of(endpoint, service)).km for endpoint in level.endpoints)
        for level in found.levels
        if level.endpoints[0].priority == best
    ]
    is_own_first = bool(here.value(CITY_KEY) or here.location)  # the own place precedes whatever is nearer than it
    assert away[is_own_first:] == sorted(away[is_own_first:])


@settings(max_examples=100, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 6), min_size=2, max_size=4),
    percent=st.integers(1, 100),
    mode=st.sampled_from((LocalityMode.NEAREST, LocalityMode.WEIGHTED)),
)
def test_each_endpoint_that_is_lost_spills_more_and_never_less(
    sizes: list[int], percent: int, mode: LocalityMode
) -> None:
    """A place's share never grows while its own endpoints go, and the others' never shrink."""
    endpoints = [
        make_endpoint(
            f"10.{index}.0.{n}",
            80,
            locality=make_locality({CITY_KEY: str(index)}, latitude=0.0, longitude=float(index)),
        )
        for index, size in enumerate(sizes)
        for n in range(size)
    ]
    policy = LocalityPolicy(mode=mode, spillover_percent=percent, weights=(("0", 3), ("1", 1)))
    here = make_locality({}, latitude=0.0, longitude=0.0)
    service = make_service(endpoints=endpoints, panic_threshold_percent=0)
    before = 1.0
    for lost in range(sizes[0] + 1):
        down = [endpoint.key for endpoint in endpoints[:lost]]
        found = candidates(service, SomeUsable(down), policy, here)
        mine = sum(
            share
            for level, share in zip(found.levels, shares(found), strict=True)
            if level.endpoints[0].locality.value(CITY_KEY) == "0"
        )
        assert mine <= before + 1e-9
        before = mine
    assert before == 0.0
