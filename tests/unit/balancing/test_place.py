from __future__ import annotations

import math

import pytest

from datum_router.balancing.place import (
    CITY_KEY,
    REGION_KEY,
    SAME_REGION_KM,
    Basis,
    distance,
    great_circle_km,
    is_allowed,
    place_name,
    place_of,
)
from datum_router.model.endpoint import UNKNOWN_LOCALITY, Locality, make_endpoint, make_locality
from datum_router.testing.factories import make_service


def city(name: str, region: str = "", **fields: float) -> Locality:
    topology = {key: value for key, value in ((CITY_KEY, name), (REGION_KEY, region)) if value}
    return make_locality(topology, **fields)


@pytest.mark.parametrize(
    ("here", "there", "km"),
    [
        ((0.0, 0.0), (0.0, 1.0), 111.195),  # a degree of the equator of a sphere of the mean radius
        ((0.0, 0.0), (0.0, 180.0), math.pi * 6371.0088),  # antipodes
        ((90.0, 0.0), (-90.0, 77.0), math.pi * 6371.0088),
        ((10.0, 179.5), (10.0, -179.5), 109.505),  # across the date line, not around the world
        ((40.6413, -73.7781), (51.4700, -0.4543), 5540.0),  # JFK to LHR
        ((50.0333, 8.5706), (38.9445, -77.4558), 6544.0),  # FRA to IAD
    ],
)
def test_distances_are_those_of_great_circles(here: tuple[float, float], there: tuple[float, float], km: float) -> None:
    assert great_circle_km(*here, *there) == pytest.approx(km, rel=2e-3)


def test_coordinates_decide_where_both_have_them_then_city_then_region() -> None:
    iad = city("IAD", "us-east-1", latitude=38.9445, longitude=-77.4558)
    assert distance(iad, city("IAD", latitude=39.0, longitude=-77.5)).basis is Basis.COORDINATES
    assert distance(iad, city("IAD")) == distance(city("IAD"), iad)
    assert (distance(iad, city("IAD")).km, distance(iad, city("IAD")).basis) == (0.0, Basis.CITY)
    assert distance(iad, city("BOS", "us-east-1")).km == SAME_REGION_KM
    assert distance(iad, city("BOS", "us-east-1")).basis is Basis.REGION
    assert distance(iad, city("FRA", "eu")).km == math.inf
    assert distance(UNKNOWN_LOCALITY, UNKNOWN_LOCALITY).basis is Basis.UNKNOWN


def test_the_same_location_is_no_distance_without_any_coordinates() -> None:
    assert distance(Locality(location="iad-1"), Locality(location="iad-1")).basis is Basis.LOCATION
    assert distance(Locality(location="iad-1"), Locality(location="iad-2")).basis is Basis.UNKNOWN


def test_one_coordinate_alone_is_none() -> None:
    assert distance(Locality(latitude=1.0), Locality(latitude=1.0, longitude=2.0)).basis is Basis.UNKNOWN


def test_a_place_is_the_endpoints_own_or_its_services_and_never_a_mixture() -> None:
    service = make_service(locality=city("IAD", "us-east-1"))
    assert place_of(make_endpoint("10.0.0.1", 80), service) == service.locality
    own = make_endpoint("10.0.0.1", 80, locality=city("LHR"))
    assert place_of(own, service).value(REGION_KEY) == ""
    located = make_endpoint("10.0.0.1", 80, locality=Locality(location="lhr-1"))
    assert place_of(located, service).value(CITY_KEY) == ""


def test_an_endpoint_of_another_cluster_is_not_where_our_service_is() -> None:
    service = make_service(locality=city("IAD"))
    assert place_of(make_endpoint("10.0.0.1", 80, cluster="b"), service) == UNKNOWN_LOCALITY


def test_places_are_allowed_by_location_city_region_or_key_letter_by_letter() -> None:
    place = make_locality({CITY_KEY: "FRA", REGION_KEY: "eu-central", "zone": "z1"}, location="fra-1")
    for name in ("fra-1", "FRA", "eu-central", "z1"):
        assert is_allowed(place, "zone", (name,))
    assert not is_allowed(place, CITY_KEY, ("z1",))
    assert not is_allowed(place, "zone", ("fra", "eu", "FRA-1", ""))
    assert not is_allowed(UNKNOWN_LOCALITY, CITY_KEY, ("", "FRA"))


@pytest.mark.parametrize(
    ("place", "name"),
    [
        (make_locality({CITY_KEY: "FRA", "zone": "z"}, location="fra-1"), "z"),
        (make_locality({CITY_KEY: "FRA"}, location="fra-1"), "fra-1"),
        (city("FRA"), "FRA"),
        (Locality(latitude=1.5, longitude=-2.0), "1.5,-2"),
        (make_locality({REGION_KEY: "eu"}), "eu"),
        (UNKNOWN_LOCALITY, ""),
    ],
)
def test_a_place_is_called_by_the_best_name_there_is(place: Locality, name: str) -> None:
    assert place_name(place, "zone") == name
