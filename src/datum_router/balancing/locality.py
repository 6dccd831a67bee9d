"""Who may be picked: from a service's endpoints and their health to levels of candidates, each with its share of picks.

Levels are ordered by priority, and with PREFER_LOCAL each priority is split into local endpoints before all others.
A level takes as much as its health allows, the rest spills over to the next (Envoy priority levels): its capacity is
min(1, usable / members * OVERPROVISIONING), so up to 2 in 7 endpoints may fail before anything spills.

Panic: if all levels together lack the capacity for the whole load and fewer than `panic_threshold_percent` of all
members are usable, health is ignored and all members share the load: better some failures than the last survivors
overrun, and no failure of the health check itself can take the whole service down. While the levels still have the
capacity (the second one whole, the first one dead) there is nothing to panic about.

Members are endpoints that serve and have weight; with REQUIRE_LOCAL only local ones. Nobody else is ever picked, in
a panic neither.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from datum_router.balancing.base import HealthView
from datum_router.model.endpoint import Endpoint, Locality
from datum_router.model.route import LocalityMode, LocalityPolicy
from datum_router.model.service import Service

OVERPROVISIONING = 1.4
"""How much more than its share a healthy endpoint is trusted to carry (Envoy's default)."""

MIN_RAMP = 0.1
"""Share of its weight that an endpoint takes at the begin of slow start."""

RAMP_SCALE = 1000
"""Weights are multiplied by this during slow start, so that a weight of 1 can be a tenth."""


class Level(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """Candidates that are picked from together.

    Attributes:
        upto: Running sum of shares, 1 at the end: a number in [0, 1) falls into the first level whose `upto` is above
            it.
    """

    upto: float
    endpoints: tuple[Endpoint, ...]


class Candidates(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """Who may be picked.

    Attributes:
        levels: Empty if nobody may. None is without endpoints.
        usable: Number of usable members; 0 with levels means a panic without any hope.
        unusable: All other members, by priority.
        members: Number of endpoints that could be candidates.
        is_panicking: True if health is being ignored.
        is_locality_missing: True if REQUIRE_LOCAL left no member although the service has some.
    """

    levels: tuple[Level, ...] = ()
    usable: int = 0
    unusable: tuple[Endpoint, ...] = ()
    members: int = 0
    is_panicking: bool = False
    is_locality_missing: bool = False


def candidates(service: Service, health: HealthView, locality: LocalityPolicy, gateway: Locality) -> Candidates:
    """Return the candidates of a service as a gateway at `gateway` sees them. O(n)."""
    members = [endpoint for endpoint in service.endpoints if endpoint.is_serving and endpoint.weight > 0]
    here = gateway.value(locality.topology_key) if locality.mode is not LocalityMode.NONE else ""
    groups: dict[tuple[int, bool], tuple[list[Endpoint], list[Endpoint]]] = {}
    unusable: list[Endpoint] = []
    counted = usable_count = 0
    for endpoint in members:
        is_remote = False
        if locality.mode is not LocalityMode.NONE:
            place = endpoint.locality.value(locality.topology_key) or service.locality.value(locality.topology_key)
            is_remote = not here or place != here
            if is_remote and locality.mode is LocalityMode.REQUIRE_LOCAL:
                continue
        everyone, usable = groups.setdefault((endpoint.priority, is_remote), ([], []))
        counted += 1
        everyone.append(endpoint)
        if health.is_usable(endpoint.key):
            usable.append(endpoint)
            usable_count += 1
        else:
            unusable.append(endpoint)
    if not counted:
        return Candidates(is_locality_missing=bool(members))
    ordered = [groups[key] for key in sorted(groups)]
    capacities = [min(1.0, len(usable) / len(everyone) * OVERPROVISIONING) for everyone, usable in ordered]
    total = sum(capacities)
    unusable.sort(key=lambda endpoint: endpoint.priority)
    if total < 1.0 and usable_count * 100 < counted * service.panic_threshold_percent:
        everybody = tuple(endpoint for everyone, _ in ordered for endpoint in everyone)
        return Candidates(
            levels=(Level(upto=1.0, endpoints=everybody),),
            usable=usable_count,
            unusable=tuple(unusable),
            members=counted,
            is_panicking=True,
        )
    return Candidates(
        levels=_levels([usable for _, usable in ordered], capacities, min(1.0, total)),
        usable=usable_count,
        unusable=tuple(unusable),
        members=counted,
    )


class SharedCandidates:
    """The candidates of one service as it is now, computed once for all rules of one locality policy."""

    __slots__ = ("_found", "_health", "_service")

    def __init__(self) -> None:
        self._service: Service | None = None
        self._health: HealthView | None = None
        self._found: dict[tuple[LocalityPolicy, Locality], Candidates] = {}

    def get(self, service: Service, health: HealthView, locality: LocalityPolicy, gateway: Locality) -> Candidates:
        """Return `candidates` of the same arguments."""
        if service is not self._service or health is not self._health:
            self._service, self._health = service, health
            self._found.clear()
        key = (locality, gateway)
        found = self._found.get(key)
        if found is None:
            found = self._found[key] = candidates(service, health, locality, gateway)
        return found


def _levels(groups: Sequence[Sequence[Endpoint]], capacities: Sequence[float], total: float) -> tuple[Level, ...]:
    """Share the load: each level takes what it can of what is left; what no level can take is shared by capacity.

    A level that nothing spills to stays in the list with an empty share: requests that have tried everybody else go
    there.
    """
    levels: list[Level] = []
    taken = 0.0
    for usable, capacity in zip(groups, capacities, strict=True):
        if usable:
            taken = min(1.0, taken + capacity / total)
            if taken > 1.0 - 1e-9:
                taken = 1.0  # shares sum to 1 but for rounding: leave no gap and no sliver
            levels.append(Level(upto=taken, endpoints=tuple(usable)))
    return tuple(levels)


def ramp(age_s: float, slow_start_s: float) -> float:
    """Return the share of its weight that an endpoint takes: MIN_RAMP to 1, growing linearly over `slow_start_s`."""
    if slow_start_s <= 0 or age_s >= slow_start_s:
        return 1.0
    return max(MIN_RAMP, age_s / slow_start_s)


def ramped(
    endpoints: Sequence[Endpoint], health: HealthView, slow_start_s: float, now: float
) -> tuple[Endpoint, ...] | None:
    """Return copies with weights of slow start at `now`, None if all have the same share of their weight."""
    shares = [ramp(now - health.usable_since(endpoint.key), slow_start_s) for endpoint in endpoints]
    if min(shares) == max(shares):
        return None
    return tuple(
        msgspec.structs.replace(endpoint, weight=max(1, round(endpoint.weight * RAMP_SCALE * share)))
        for endpoint, share in zip(endpoints, shares, strict=True)
    )
