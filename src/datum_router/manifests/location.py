"""Location and ServingLocation: places on the map. Read tolerantly, never written.

They are published as `networking.datumapis.com/v1alpha`. A Location was an object of a namespace before it became one
of the cluster, so both are read. A ServingLocation tells a cluster where it is itself.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Final

import msgspec

from datum_router.manifests.meta import ObjectMeta
from datum_router.manifests.problem import Problem, shown
from datum_router.manifests.rules import warning

LOCATION_GROUP: Final = "networking.datumapis.com"
LOCATION_VERSION: Final = "v1alpha"

LOCATION_ANNOTATION: Final = "router.datum.net/location"
"""Of a VPCAttachment: the Location that it is at, for neither VPC nor VPCAttachment has a field for it."""


class _Part(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """Base of all parts."""


class Coordinates(_Part, frozen=True, kw_only=True):
    """Degrees (WGS 84), as text; numbers, which YAML makes of what is not quoted, are read as well."""

    latitude: str | int | float
    longitude: str | int | float


class LocationSpec(_Part, frozen=True, kw_only=True):
    """`topology` has free keys beside those of `balancing.place`, city and region."""

    location_class_name: str = ""
    topology: Mapping[str, str] = {}
    coordinates: Coordinates | None = None


class Location(_Part, frozen=True, kw_only=True):
    """A place where services run; its namespace is empty if it belongs to the cluster."""

    api_version: str
    kind: str
    metadata: ObjectMeta
    spec: LocationSpec


class ServingLocationSpec(_Part, frozen=True, kw_only=True):
    """What the cluster is told of its place."""

    topology: Mapping[str, str] = {}


class ServingLocation(_Part, frozen=True, kw_only=True):
    """Where this very cluster is: a copy of the Location of the same name. There ought to be one."""

    api_version: str
    kind: str
    metadata: ObjectMeta
    spec: ServingLocationSpec


def degrees(spec: LocationSpec) -> tuple[float, float] | None:
    """Return latitude (-90 to 90) and longitude (-180 to 180); None if there are none or they make no sense."""
    found = spec.coordinates
    if found is None:
        return None
    latitude, longitude = _number(found.latitude, 90.0), _number(found.longitude, 180.0)
    return None if latitude is None or longitude is None else (latitude, longitude)


def _number(value: str | float, limit: float) -> float | None:
    if isinstance(value, str) and not (value.isascii() and "_" not in value):
        return None  # float() reads more digits than anybody else does
    try:
        number = float(value)
    except (ValueError, OverflowError):  # JSON knows integers of any length
        return None
    return number if math.isfinite(number) and abs(number) <= limit else None


def validate_location(location: Location) -> Iterator[Problem]:
    """Yield warnings only: a Location with bad coordinates still has a topology."""
    found = location.spec.coordinates
    if found is None:
        return
    for name, value, limit in (("latitude", found.latitude, 90), ("longitude", found.longitude, 180)):
        where = f"spec.coordinates.{name}"
        if _number(value, limit) is None:
            yield warning(where, f"found {shown(value)}, expected degrees from -{limit} to {limit}")
        elif not isinstance(value, str):
            yield warning(where, f"found number {value}, expected text", f'write "{value}": the published type is text')


def location_content(location: Location | ServingLocation) -> object:
    """Return what counts as a change."""
    return location.spec
