"""Places: where an endpoint is, how far from the gateway, and whether a route may send its traffic there.

A place is a `Locality`: the name of a Location, topology keys, coordinates, as far as they are known. Coordinates give
a distance by great circle; where one of two places has none, the same city counts as no distance and the same region as
`SAME_REGION_KM`, so that places of both sorts stand in one order. Everything else is infinitely far.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Collection

import msgspec

from datum_router.model.endpoint import UNKNOWN_LOCALITY, Endpoint, Locality
from datum_router.model.service import Service

CITY_KEY = "topology.datum.net/city-code"
"""Topology key of the city, such as `IAD`; the seed's default for `topologyKey`."""
REGION_KEY = "topology.datum.net/region"
"""Topology key of the region, such as `us-east-1`."""
EARTH_RADIUS_KM = 6371.0088
"""Mean radius (IUGG). The earth is no sphere: distances are off by up to 0.6 percent."""
SAME_REGION_KM = 1000.0
"""How far another city of the gateway's region counts as if one of the two has no coordinates."""


class Basis(enum.StrEnum):
    """What a distance was found from."""

    LOCATION = "location"
    COORDINATES = "coordinates"
    CITY = "city"
    REGION = "region"
    UNKNOWN = "unknown"


class Distance(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """How far two places are apart; `km` is infinite if nothing is known that they have in common."""

    km: float
    basis: Basis


def great_circle_km(latitude: float, longitude: float, other_latitude: float, other_longitude: float) -> float:
    """Return the distance of two points on a sphere (haversine formula), all angles in degrees."""
    phi, other_phi = math.radians(latitude), math.radians(other_latitude)
    half_lat = math.sin((other_phi - phi) / 2)
    half_lon = math.sin(math.radians(other_longitude - longitude) / 2)
    chord = half_lat * half_lat + math.cos(phi) * math.cos(other_phi) * half_lon * half_lon
    return 2 * EARTH_RADIUS_KM * math.asin(math.sqrt(min(1.0, chord)))  # rounding may lead beyond 1 at antipodes


def distance(here: Locality, there: Locality) -> Distance:
    """Return how far `there` is from `here`. Symmetric."""
    if here.location and here.location == there.location:
        return Distance(km=0.0, basis=Basis.LOCATION)
    if (
        here.latitude is not None
        and here.longitude is not None
        and there.latitude is not None
        and there.longitude is not None
    ):
        km = great_circle_km(here.latitude, here.longitude, there.latitude, there.longitude)
        return Distance(km=km, basis=Basis.COORDINATES)
    city = here.value(CITY_KEY)
    if city and city == there.value(CITY_KEY):
        return Distance(km=0.0, basis=Basis.CITY)
    region = here.value(REGION_KEY)
    if region and region == there.value(REGION_KEY):
        return Distance(km=SAME_REGION_KM, basis=Basis.REGION)
    return Distance(km=math.inf, basis=Basis.UNKNOWN)


def place_of(endpoint: Endpoint, service: Service) -> Locality:
    """Return where an endpoint is: what it says itself; if it says nothing, where its service says that it is.

    The two are never mixed: an endpoint with a city of its own and the service's region would be in a place that does
    not exist. An endpoint of another cluster is not where our service is: it has its own place or none.
    """
    if endpoint.cluster or endpoint.locality != UNKNOWN_LOCALITY:
        return endpoint.locality
    return service.locality


def place_name(place: Locality, key: str) -> str:
    """Return what endpoints at a place have in common: its value of `key`, else the best name there is, else empty."""
    if found := place.value(key) or place.location or place.value(CITY_KEY):
        return found
    if place.latitude is not None and place.longitude is not None:
        return f"{place.latitude:g},{place.longitude:g}"
    return place.value(REGION_KEY)


def is_allowed(place: Locality, key: str, allowed: Collection[str]) -> bool:
    """Tell whether one of `allowed` names the place: its Location, city, region or value of `key`, letter by letter.

    A place that is not known is none of them.
    """
    return any(
        name and name in allowed for name in (place.location, place.value(CITY_KEY), place.value(REGION_KEY))
    ) or bool((value := place.value(key)) and value in allowed)
