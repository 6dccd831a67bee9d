"""What places do to the endpoints of a service, for people: distances, shares, spill-over, who is left out and why."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from datum_router.balancing.base import ALL_USABLE, HealthView
from datum_router.balancing.locality import Load, arrange, judge, share_load
from datum_router.balancing.place import (
    CITY_KEY,
    REGION_KEY,
    Basis,
    Distance,
    distance,
    is_allowed,
    place_name,
    place_of,
)
from datum_router.model.endpoint import Endpoint, EndpointKey, Locality
from datum_router.model.route import LocalityMode, LocalityPolicy
from datum_router.model.service import Service


class PlaceReport(msgspec.Struct, frozen=True, kw_only=True):
    """Endpoints of one priority that are equally near.

    Attributes:
        places: What the places are called; empty if nothing is known of any.
        km: Distance from the gateway to the nearest of them, rounded; None if coordinates do not tell.
        basis: What the distance was found from: `location`, `coordinates`, `city`, `region` or `unknown`.
        capacity_percent: How much of all requests the place, and those that share by weight with it, could take.
        share_percent: How much of all requests of the service it takes.
        is_spill: It takes requests only because places before it lack capacity.
    """

    priority: int
    places: tuple[str, ...]
    km: int | None
    basis: Basis
    capacity_percent: float
    share_percent: float
    is_spill: bool
    usable: tuple[EndpointKey, ...]
    unusable: tuple[EndpointKey, ...]


class LeftOut(msgspec.Struct, frozen=True, kw_only=True):
    """An endpoint that gets nothing because of where it is; `why` is a sentence for people."""

    endpoint: EndpointKey
    place: str
    km: int | None
    why: str


class LocalityReport(msgspec.Struct, frozen=True, kw_only=True):
    """How a gateway sees the places of a service.

    Attributes:
        gateway: What its place is called; empty if it does not know it.
        is_panicking: Too few endpoints are usable: health is ignored, and `share_percent` goes by weights alone.
        outcome: Empty if requests can be sent; else the reason of the 503.
    """

    gateway: str
    places: tuple[PlaceReport, ...]
    left_out: tuple[LeftOut, ...]
    is_panicking: bool
    outcome: str


def counts_places(policy: LocalityPolicy) -> bool:
    """Tell whether a policy looks at places at all."""
    return policy.mode is not LocalityMode.NONE or bool(policy.allowed_locations)


def describe_panic(threshold_percent: int) -> str:
    """Return when health is ignored, in words, for `explain`."""
    if not threshold_percent:
        return "panic: health is never ignored"
    return (
        f"panic: health is ignored if less than {threshold_percent}% of the endpoints are usable and those cannot take "
        "all requests"
    )


def explain_locality(
    service: Service, policy: LocalityPolicy, gateway: Locality, health: HealthView = ALL_USABLE
) -> LocalityReport:
    """Return what `balancing.locality` makes of a service, seen from `gateway`."""
    arrangement = arrange(service, policy, gateway)
    found, _ = share_load(arrangement, health)
    judged = judge(arrangement, health, service.panic_threshold_percent)
    everybody = sum(load.tier.weight for load in found)
    first = arrangement.stages[0] if arrangement.stages else ()
    reports: list[PlaceReport] = []
    for load in found:
        share = load.tier.weight / everybody if judged.is_panicking else load.share
        is_spill = share > 0 and not judged.is_panicking and all(load.tier is not tier for tier in first)
        reports.append(_report(load, share, service, policy, gateway, is_spill=is_spill))
    outcome = ""
    if not judged.levels:
        outcome = "locality_required" if judged.excluded else "no_healthy_endpoint"
    return LocalityReport(
        gateway=_name(gateway, policy),
        places=tuple(reports),
        left_out=tuple(_left_out(endpoint, service, policy, gateway) for endpoint in arrangement.excluded),
        is_panicking=judged.is_panicking,
        outcome=outcome,
    )


def _report(
    load: Load, share: float, service: Service, policy: LocalityPolicy, gateway: Locality, *, is_spill: bool
) -> PlaceReport:
    places = [place_of(endpoint, service) for endpoint in load.tier.endpoints]
    nearest = min((distance(gateway, place) for place in places), key=lambda found: found.km)
    usable = {endpoint.key for endpoint in load.usable}
    return PlaceReport(
        priority=load.tier.priority,
        places=tuple(sorted({name for place in places if (name := _name(place, policy))})),
        km=_shown(nearest),
        basis=nearest.basis,
        capacity_percent=round(100 * load.capacity, 2),
        share_percent=round(100 * share, 2),
        is_spill=is_spill,
        usable=tuple(endpoint.key for endpoint in load.usable),
        unusable=tuple(endpoint.key for endpoint in load.tier.endpoints if endpoint.key not in usable),
    )


def _left_out(endpoint: Endpoint, service: Service, policy: LocalityPolicy, gateway: Locality) -> LeftOut:
    place = place_of(endpoint, service)
    allowed, key = policy.allowed_locations, policy.topology_key
    if allowed and not is_allowed(place, key, allowed):
        known = (place.location, place.value(CITY_KEY), place.value(REGION_KEY), place.value(key))
        named = ", ".join(dict.fromkeys(name for name in known if name)) or "an unknown place"
        why = f"allowedLocations: expected {' or '.join(allowed)}, found {named}"
    else:
        here = gateway.value(key) or gateway.location
        why = f"RequireLocal: expected {here}" if here else "RequireLocal, and the gateway does not know its own place"
    return LeftOut(endpoint=endpoint.key, place=_name(place, policy), km=_shown(distance(gateway, place)), why=why)


def _name(place: Locality, policy: LocalityPolicy) -> str:
    return place_name(place, policy.topology_key)


def _shown(found: Distance) -> int | None:
    """Return a distance for people: what another city of the region counts as is none."""
    return None if found.basis in (Basis.REGION, Basis.UNKNOWN) else round(found.km)


def priority_lines(report: LocalityReport) -> Sequence[str]:
    """Return a report of a policy that does not look at places as lines for people: priorities alone."""
    lines = ["with the endpoints that are supposed to be down:"]
    for one in report.places:
        count = len(one.usable) + len(one.unusable)
        lines.append(f"    {one.share_percent:g}% priority {one.priority} ({len(one.usable)} of {count} usable)")
    return lines + _ends(report)


def report_lines(report: LocalityReport) -> Sequence[str]:
    """Return a report as lines for people."""
    gateway = f"at {report.gateway}" if report.gateway else "that does not know its own place"
    lines = [f"places, as a gateway {gateway} sees them:"]
    for one in report.places:
        count = len(one.usable) + len(one.unusable)
        where = " and ".join(one.places) or "unknown place"
        away = f", {one.km} km" if one.basis is Basis.COORDINATES else f", same {one.basis}"
        if one.basis is Basis.UNKNOWN:
            away = ", distance unknown"
        spill = ", spilled" if one.is_spill else ""
        lines.append(
            f"    {one.share_percent:g}% {where}{away} (priority {one.priority}, {len(one.usable)} of {count} usable"
            f", capacity {one.capacity_percent:g}%{spill})"
        )
    for out in report.left_out:
        lines.append(f"    left out: {out.endpoint}{' at ' + out.place if out.place else ''}: {out.why}")
    return lines + _ends(report)


def _ends(report: LocalityReport) -> list[str]:
    lines = []
    if report.is_panicking:
        lines.append("    too few are usable: health is ignored, all of them share by weight")
    if report.outcome:
        lines.append(f"    answered with 503: {report.outcome}")
    return lines
