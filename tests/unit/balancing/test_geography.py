"""Nearest, Weighted, failover order, spill-over and residency: levels, and what `explain` says of them."""

from __future__ import annotations

import itertools

import pytest

from datum_router.balancing.base import ALL_USABLE
from datum_router.balancing.explain import LocalityReport, describe_panic, explain_locality, report_lines
from datum_router.balancing.locality import Candidates, SharedCandidates, candidates
from datum_router.balancing.place import CITY_KEY, REGION_KEY
from datum_router.model.endpoint import UNKNOWN_LOCALITY, Endpoint, Locality, make_endpoint, make_locality
from datum_router.model.route import LocalityMode, LocalityPolicy
from datum_router.testing.balancer import SomeUsable
from datum_router.testing.factories import make_service


def place(name: str, region: str, latitude: float | None = None, longitude: float | None = None) -> Locality:
    return make_locality({CITY_KEY: name, REGION_KEY: region}, latitude=latitude, longitude=longitude)


IAD = place("IAD", "us-east", 38.9445, -77.4558)
ORD = place("ORD", "us-central", 41.9742, -87.9073)
FRA = place("FRA", "eu-central", 50.0333, 8.5706)
BOS = place("BOS", "us-east")  # nobody wrote down its coordinates
NRT = place("NRT", "jp")
AT = {"IAD": IAD, "ORD": ORD, "FRA": FRA, "BOS": BOS, "NRT": NRT}
NEAREST = LocalityPolicy(mode=LocalityMode.NEAREST)


def group(name: str, count: int = 2, *, weight: int = 100, priority: int = 0) -> list[Endpoint]:
    network = list(AT).index(name)
    return [
        make_endpoint(f"10.{network}.0.{n}", 80, locality=AT[name], weight=weight, priority=priority)
        for n in range(count)
    ]


def order(found: Candidates) -> list[str]:
    return [level.endpoints[0].locality.value(CITY_KEY) for level in found.levels]


def shares(found: Candidates) -> dict[str, float]:
    bounds = [0.0, *(level.upto for level in found.levels)]
    return {name: b - a for name, (a, b) in zip(order(found), itertools.pairwise(bounds), strict=True)}


def look(
    endpoints: list[Endpoint],
    policy: LocalityPolicy = NEAREST,
    down: list[Endpoint] = [],  # noqa: B006  # never changed
    *,
    here: Locality = IAD,
    panic: int = 50,
) -> Candidates:
    service = make_service(endpoints=endpoints, panic_threshold_percent=panic)
    return candidates(service, SomeUsable([one.key for one in down]), policy, here)


EVERYWHERE = group("NRT") + group("FRA") + group("BOS") + group("ORD") + group("IAD")


def test_the_nearest_takes_all_and_the_others_stand_by_in_order_of_distance() -> None:
    found = look(EVERYWHERE)
    # BOS has no coordinates: of the gateway's region, it counts as 1000 km, and ORD is 945 km away.
    assert order(found) == ["IAD", "ORD", "BOS", "FRA", "NRT"]
    assert shares(found)["IAD"] == 1.0


def test_distance_counts_from_where_the_gateway_is() -> None:
    assert order(look(EVERYWHERE, here=FRA))[:3] == ["FRA", "IAD", "ORD"]


def test_a_gateway_that_knows_its_region_alone_has_no_distance_to_the_others() -> None:
    found = look(EVERYWHERE, here=make_locality({REGION_KEY: "us-east"}))
    assert len(found.levels) == 2
    assert {one.locality.value(REGION_KEY) for one in found.levels[0].endpoints} == {"us-east"}


def test_a_gateway_that_does_not_know_its_place_uses_all_alike() -> None:
    found = look(EVERYWHERE, here=UNKNOWN_LOCALITY)
    assert len(found.levels) == 1


def test_a_city_with_several_locations_is_one_place_at_the_distance_of_the_nearest() -> None:
    near, far = (
        make_endpoint("10.9.0.1", 80, locality=make_locality({CITY_KEY: "LON"}, latitude=51.5, longitude=longitude))
        for longitude in (-0.1, -0.5)
    )
    found = look([far, near, *group("FRA")], here=FRA)
    assert [len(level.endpoints) for level in found.levels] == [2, 2]


def test_traffic_spills_in_proportion_to_what_is_lost_below_the_threshold() -> None:
    here, there = group("IAD", 10), group("ORD", 10)
    exact = LocalityPolicy(mode=LocalityMode.NEAREST, spillover_percent=100)
    for lost in range(11):
        found = look(here + there, exact, here[:lost])
        assert shares(found).get("IAD", 0.0) == pytest.approx(1 - lost / 10)
    assert shares(look(here + there, NEAREST, here[:3])) == {"IAD": 1.0, "ORD": 0.0}
    assert shares(look(here + there, NEAREST, here[:4]))["ORD"] == pytest.approx(1 - 6 / 7)


def test_zero_percent_spills_only_when_nobody_is_left() -> None:
    here, there = group("IAD", 10), group("ORD", 10)
    policy = LocalityPolicy(mode=LocalityMode.NEAREST, spillover_percent=0)
    assert shares(look(here + there, policy, here[:9])) == {"IAD": 1.0, "ORD": 0.0}
    assert shares(look(here + there, policy, here)) == {"ORD": 1.0}


def test_capacity_goes_by_weight() -> None:
    big, small = group("IAD", 1, weight=900), [make_endpoint("10.0.9.9", 80, weight=100, locality=IAD)]
    policy = LocalityPolicy(mode=LocalityMode.NEAREST, spillover_percent=100)
    assert shares(look(big + small + group("ORD"), policy, small))["IAD"] == pytest.approx(0.9)
    assert shares(look(big + small + group("ORD"), policy, big))["IAD"] == pytest.approx(0.1)


def test_what_the_second_place_cannot_take_goes_on_to_the_third() -> None:
    policy = LocalityPolicy(mode=LocalityMode.NEAREST, spillover_percent=100)
    here, second = group("IAD", 4), group("ORD", 4)
    found = look(here + second + group("FRA"), policy, here[:2] + second[:3])
    assert shares(found) == {"IAD": 0.5, "ORD": 0.25, "FRA": 0.25}


def test_failover_order_comes_after_the_own_place_and_before_distance() -> None:
    policy = LocalityPolicy(mode=LocalityMode.NEAREST, failover_order=("FRA", "NRT"))
    assert order(look(EVERYWHERE, policy)) == ["IAD", "FRA", "NRT", "ORD", "BOS"]
    local_first = LocalityPolicy(mode=LocalityMode.PREFER_LOCAL, failover_order=("NRT", "FRA"))
    found = look(EVERYWHERE, local_first)
    assert order(found)[:3] == ["IAD", "NRT", "FRA"]
    assert len(found.levels) == 4  # ORD and BOS together


def test_failover_order_may_name_locations() -> None:
    named = [make_endpoint("10.9.0.1", 80, locality=Locality(location="lhr-1"))]
    policy = LocalityPolicy(mode=LocalityMode.PREFER_LOCAL, failover_order=("lhr-1",))
    assert look(EVERYWHERE + named, policy).levels[1].endpoints == tuple(named)


def test_priority_precedes_place() -> None:
    assert order(look(group("FRA") + group("IAD", priority=1))) == ["FRA", "IAD"]


def test_weights_share_among_places_whatever_the_number_of_endpoints() -> None:
    policy = LocalityPolicy(mode=LocalityMode.WEIGHTED, weights=(("FRA", 40), ("IAD", 60)))
    found = look(group("IAD", 1) + group("FRA", 9) + group("NRT", 3), policy)
    assert shares(found) == pytest.approx({"FRA": 0.4, "IAD": 0.6, "NRT": 0.0})


def test_a_weighted_place_that_is_lost_leaves_its_share_to_the_others_gradually() -> None:
    policy = LocalityPolicy(mode=LocalityMode.WEIGHTED, weights=(("FRA", 50), ("IAD", 50)), spillover_percent=100)
    here, there = group("IAD", 10), group("FRA", 10)
    seen = [shares(look(here + there, policy, here[:lost])).get("IAD", 0.0) for lost in range(11)]
    assert seen == sorted(seen, reverse=True)
    assert (seen[0], seen[-1]) == (0.5, 0.0)
    assert seen[5] == pytest.approx(1 / 3)  # half of one place against a whole one
    # With a third place standing by, it takes what both of them together have lost.
    assert shares(look(here + there + group("NRT"), policy, here))["NRT"] == pytest.approx(0.5)


def test_residency_leaves_out_everybody_else_even_in_a_panic_and_without_anybody() -> None:
    for mode in LocalityMode:
        policy = LocalityPolicy(mode=mode, allowed_locations=("us-east",), weights=(("IAD", 1),))
        found = look(EVERYWHERE, policy, [*group("IAD"), *group("BOS")])
        assert found.is_panicking
        places = {one.locality.value(REGION_KEY) for level in found.levels for one in level.endpoints}
        assert places == {"us-east"}
        assert all(one.locality.value(REGION_KEY) == "us-east" for one in found.unusable)
        assert look(group("FRA") + group("NRT"), policy).is_locality_missing


def test_an_endpoint_of_unknown_place_is_not_allowed_anywhere() -> None:
    stray = make_endpoint("10.9.9.9", 80)
    found = look([stray, *group("FRA")], LocalityPolicy(allowed_locations=("FRA",)))
    assert [level.endpoints for level in found.levels] == [tuple(group("FRA"))]
    assert found.excluded == 1


def test_distances_are_not_found_anew_when_health_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[object] = []

    def counting(*arguments: object) -> object:
        calls.append(arguments)
        return real(*arguments)  # type: ignore[arg-type]  # whatever it is given

    from datum_router.balancing import locality

    real = locality.distance
    monkeypatch.setattr(locality, "distance", counting)
    service, shared = make_service(endpoints=EVERYWHERE), SharedCandidates()
    first = shared.get(service, ALL_USABLE, NEAREST, IAD)
    assert len(calls) == len(AT)  # once for each place, however many endpoints are there
    assert shared.get(service, ALL_USABLE, NEAREST, IAD) is first
    second = shared.get(service, SomeUsable([one.key for one in group("IAD")]), NEAREST, IAD)
    assert order(second)[0] == "ORD"
    assert len(calls) == len(AT)


# --- explain -----------------------------------------------------------------------------------------------------


def explained(policy: LocalityPolicy, down: list[Endpoint], here: Locality = IAD) -> LocalityReport:
    health = SomeUsable([one.key for one in down])
    return explain_locality(make_service(endpoints=EVERYWHERE), policy, here, health)


def test_explain_shows_distance_spill_and_who_is_left_out() -> None:
    policy = LocalityPolicy(
        mode=LocalityMode.NEAREST, spillover_percent=100, allowed_locations=("us-east", "ORD", "NRT")
    )
    report = explained(policy, group("IAD")[:1])
    assert list(report_lines(report)) == [
        "places, as a gateway at IAD sees them:",
        "    50% IAD, 0 km (priority 0, 1 of 2 usable, capacity 50%)",
        "    50% ORD, 945 km (priority 0, 2 of 2 usable, capacity 100%, spilled)",
        "    0% BOS, same region (priority 0, 2 of 2 usable, capacity 100%)",
        "    0% NRT, distance unknown (priority 0, 2 of 2 usable, capacity 100%)",
        "    left out: 10.2.0.0:80 at FRA: allowedLocations: expected us-east or ORD or NRT, found FRA, eu-central",
        "    left out: 10.2.0.1:80 at FRA: allowedLocations: expected us-east or ORD or NRT, found FRA, eu-central",
    ]


def test_explain_agrees_with_what_is_picked() -> None:
    down = [*group("IAD")[:1], *group("ORD")]
    found = look(EVERYWHERE, NEAREST, down)
    report = explained(NEAREST, down)
    said = {one.places[0]: one.share_percent for one in report.places if one.usable}
    assert said == {name: pytest.approx(100 * share, abs=0.01) for name, share in shares(found).items()}


def test_explain_says_when_nothing_may_be_used() -> None:
    report = explained(LocalityPolicy(allowed_locations=("LHR",)), [])
    assert report.outcome == "locality_required"
    assert report_lines(report)[-1] == "    answered with 503: locality_required"
    required = explained(LocalityPolicy(mode=LocalityMode.REQUIRE_LOCAL), [], here=UNKNOWN_LOCALITY)
    assert required.left_out[0].why == "RequireLocal, and the gateway does not know its own place"
    assert "does not know its own place sees" in report_lines(required)[0]


def test_explain_says_that_health_is_ignored_in_a_panic() -> None:
    report = explained(NEAREST, [*group("IAD"), *group("ORD"), *group("FRA"), *group("BOS"), *group("NRT")])
    assert report.is_panicking
    assert not any(one.is_spill for one in report.places), "in a panic nothing is spilled: all share"
    assert [one.share_percent for one in report.places] == [20.0] * 5
    assert "health is ignored" in report_lines(report)[-1]


def test_a_panic_in_words() -> None:
    assert describe_panic(0) == "panic: health is never ignored"
    assert describe_panic(30) == (
        "panic: health is ignored if less than 30% of the endpoints are usable and those cannot take all requests"
    )
