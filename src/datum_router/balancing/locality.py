"""Who may be picked: from a service's endpoints and their health to levels of candidates, each with its share.

Two steps. `arrange` looks at places alone: it leaves out endpoints that the route must not use, and puts the others
into stages, ordered by priority and within a priority by place (`LocalityMode`):

- None, RequireLocal: one stage for each priority;
- PreferLocal: the gateway's own place, those of `failover_order`, all others together;
- Nearest: the gateway's own place, those of `failover_order`, then one place after the other as far as they are away;
- Weighted: all places that have a weight together, which share by it; then all others by distance.

`judge` adds health. A stage takes as much as its health allows, the rest spills over to the next (Envoy priority
levels): its capacity is min(1, usable weight / weight / spill-over threshold). Priorities alone use Envoy's
OVERPROVISIONING, so up to 2 in 7 endpoints may fail before anything spills; where places count it is the route's
`spillover_percent`. Places that share a stage pass on to each other what they have lost, before anything spills.

Panic: if all stages together lack the capacity for the whole load and fewer than `panic_threshold_percent` of all
members are usable, health is ignored and all members share the load: better some failures than the last survivors
overrun, and no failure of the health check itself can take the whole service down. While the stages still have the
capacity (the second one whole, the first one dead) there is nothing to panic about.

Members are endpoints that serve and have weight, and that RequireLocal and `allowed_locations` leave. Nobody else is
ever picked, in a panic neither: where traffic may go is not a matter of health.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import msgspec

from datum_router.balancing.base import HealthView
from datum_router.balancing.place import Basis, Distance, distance, is_allowed, place_name, place_of
from datum_router.model.endpoint import Endpoint, Locality
from datum_router.model.route import LocalityMode, LocalityPolicy
from datum_router.model.service import Service

OVERPROVISIONING = 1.4
"""How much more than its share a healthy endpoint is trusted to carry (Envoy's default)."""

MIN_RAMP = 0.1
"""Share of its weight that an endpoint takes at the begin of slow start."""

RAMP_SCALE = 1000
"""Weights are multiplied by this during slow start, so that a weight of 1 can be a tenth."""

_ANYWHERE = Distance(km=math.inf, basis=Basis.UNKNOWN)


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
        unusable: All other members, by priority and place.
        members: Number of endpoints that could be candidates.
        excluded: Number of endpoints that could be, were they at another place.
        is_panicking: True if health is being ignored.
        spilled: 0 to 1: how much of all requests leaves the first place that there is, since that lacks capacity.
    """

    levels: tuple[Level, ...] = ()
    usable: int = 0
    unusable: tuple[Endpoint, ...] = ()
    members: int = 0
    excluded: int = 0
    is_panicking: bool = False
    spilled: float = 0.0

    @property
    def is_locality_missing(self) -> bool:
        """Tell whether no endpoint is left because of the places where they are."""
        return not self.members and self.excluded > 0


class Tier(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """Endpoints of one priority that are equally near.

    Attributes:
        places: What the places are called, sorted; empty names for those that are not known, or do not count.
        distance: From the gateway to the nearest of the endpoints; None where distances do not count.
        share: The weight of the place in its stage.
        weight: Sum of the endpoints' weights.
    """

    priority: int
    places: tuple[str, ...]
    distance: Distance | None
    share: int
    weight: int
    endpoints: tuple[Endpoint, ...]


class Arrangement(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """The members of a service in the order in which they are used, whatever their health.

    Attributes:
        stages: Tiers of one stage share its requests; none is empty.
        headroom: Factor on the usable share of a stage that gives its capacity.
        excluded: Endpoints that must not be used because of where they are.
    """

    stages: tuple[tuple[Tier, ...], ...] = ()
    members: int = 0
    headroom: float = OVERPROVISIONING
    excluded: tuple[Endpoint, ...] = ()


class _Rank(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """Where a place stands: `order` is 0 for the gateway's own."""

    order: int
    name: str
    distance: Distance | None = None
    share: int = 1


class _Ranking:
    """Rank places for one policy and one gateway, each once however many endpoints are there."""

    __slots__ = ("_gateway", "_here", "_known", "_order", "_policy", "_weights")

    def __init__(self, policy: LocalityPolicy, gateway: Locality) -> None:
        self._policy = policy
        self._gateway = gateway
        self._here = gateway.value(policy.topology_key)
        self._order: dict[str, int] = {}
        for position, name in enumerate(policy.failover_order, 1):
            self._order.setdefault(name, position)
        self._weights = dict(policy.weights)
        self._known: dict[int, tuple[Locality, _Rank | None]] = {}

    def rank(self, place: Locality) -> _Rank | None:
        """Return the rank of a place, None if it must not be used."""
        known = self._known.get(id(place))
        if known is None:
            known = self._known[id(place)] = (place, self._rank(place))  # the place is kept: so is its id
        return known[1]

    def _rank(self, place: Locality) -> _Rank | None:
        policy = self._policy
        if policy.allowed_locations and not is_allowed(place, policy.topology_key, policy.allowed_locations):
            return None
        value = place.value(policy.topology_key)
        is_local = bool(self._here and value == self._here) or bool(
            place.location and place.location == self._gateway.location
        )
        listed = self._order.get(value) or self._order.get(place.location) or len(policy.failover_order) + 1
        match policy.mode:
            case LocalityMode.NONE:
                return _Rank(order=0, name="")
            case LocalityMode.REQUIRE_LOCAL:
                return _Rank(order=0, name=place_name(place, policy.topology_key)) if is_local else None
            case LocalityMode.PREFER_LOCAL:
                return _Rank(order=0 if is_local else listed, name=place_name(place, policy.topology_key))
            case LocalityMode.NEAREST | LocalityMode.WEIGHTED:
                name = place_name(place, policy.topology_key)
                away = distance(self._gateway, place)
                share = self._weights.get(value) or self._weights.get(place.location)
                if policy.mode is LocalityMode.WEIGHTED:
                    return _Rank(order=0 if share else 1, name=name, distance=away, share=share or 1)
                return _Rank(order=0 if is_local else listed, name=name, distance=away)


def arrange(service: Service, locality: LocalityPolicy, gateway: Locality) -> Arrangement:
    """Return the members of a service as a gateway at `gateway` orders them. O(n log n), independent of health."""
    ranking = _Ranking(locality, gateway)
    places: dict[tuple[int, int, str], list[tuple[Endpoint, _Rank]]] = {}
    excluded: list[Endpoint] = []
    members = 0
    for endpoint in service.endpoints:
        if not endpoint.is_serving or endpoint.weight <= 0:
            continue
        rank = ranking.rank(place_of(endpoint, service))
        if rank is None:
            excluded.append(endpoint)
            continue
        members += 1
        # Where distances count each place is apart, to be put in order by the nearest of its endpoints.
        name = rank.name if rank.distance is not None else ""
        places.setdefault((endpoint.priority, rank.order, name), []).append((endpoint, rank))
    is_by_place = locality.mode not in (LocalityMode.NONE, LocalityMode.REQUIRE_LOCAL)
    return Arrangement(
        stages=_stages(places, locality),
        members=members,
        headroom=_headroom(locality.spillover_percent) if is_by_place else OVERPROVISIONING,
        excluded=tuple(excluded),
    )


def _headroom(spillover_percent: int) -> float:
    """Return the factor by which capacity exceeds the usable share; infinite for 0: whoever is left takes all."""
    return 100 / spillover_percent if spillover_percent else math.inf


def _stages(
    places: dict[tuple[int, int, str], list[tuple[Endpoint, _Rank]]], locality: LocalityPolicy
) -> tuple[tuple[Tier, ...], ...]:
    """Put places in order; those that are equally near are one tier, and each tier a stage but where weights share."""
    tiers: dict[tuple[int, int, float, str], list[tuple[Endpoint, _Rank]]] = {}
    for (priority, order, name), found in places.items():
        km = min(rank.distance.km if rank.distance is not None else 0.0 for _, rank in found)
        is_sharing = locality.mode is LocalityMode.WEIGHTED and order == 0
        # Within the gateway's own place and those of the failover order distances do not matter.
        is_listed = not is_sharing and locality.mode is LocalityMode.NEAREST and order <= len(locality.failover_order)
        key = (priority, order, 0.0 if is_sharing or is_listed else km, name if is_sharing else "")
        tiers.setdefault(key, []).extend(found)
    stages: dict[tuple[int, int, float], list[Tier]] = {}
    for key in sorted(tiers):
        priority, order, km, _ = key
        stages.setdefault((priority, order, km), []).append(_tier(priority, tiers[key]))
    return tuple(map(tuple, stages.values()))


def _tier(priority: int, found: Sequence[tuple[Endpoint, _Rank]]) -> Tier:
    distances = [rank.distance for _, rank in found if rank.distance is not None]
    return Tier(
        priority=priority,
        places=tuple(sorted({rank.name for _, rank in found})),
        distance=min(distances, key=lambda item: item.km) if distances else None,
        share=found[0][1].share,
        weight=sum(endpoint.weight for endpoint, _ in found),
        endpoints=tuple(endpoint for endpoint, _ in found),
    )


class Load(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """What one tier takes.

    Attributes:
        capacity: 0 to 1: how much of all requests the stage of the tier could take.
        share: 0 to 1: how much this tier takes.
    """

    tier: Tier
    usable: tuple[Endpoint, ...]
    capacity: float
    share: float


def share_load(arrangement: Arrangement, health: HealthView) -> tuple[list[Load], float]:
    """Share the load: each stage takes what it can of what is left; what no stage can take is shared by capacity.

    Returns:
        What each tier takes, and the capacity of all stages together. All shares are 0 if nobody is usable; else they
        sum to 1 but for rounding.
    """
    stages: list[tuple[float, list[tuple[Tier, tuple[Endpoint, ...], float]]]] = []
    for stage in arrangement.stages:
        parts: list[tuple[Tier, tuple[Endpoint, ...], float]] = []
        whole = left = 0
        for tier in stage:
            usable = tuple([endpoint for endpoint in tier.endpoints if health.is_usable(endpoint.key)])
            weight = tier.weight if len(usable) == len(tier.endpoints) else sum(item.weight for item in usable)
            parts.append((tier, usable, tier.share * _capacity(weight, tier.weight, arrangement.headroom)))
            whole += tier.weight
            left += weight
        stages.append((_capacity(left, whole, arrangement.headroom), parts))
    total = sum(capacity for capacity, _ in stages)
    found: list[Load] = []
    taken = 0.0
    for capacity, parts in stages:
        share = min(1.0 - taken, capacity / min(1.0, total)) if total else 0.0
        taken += share
        sharing = sum(part for _, _, part in parts)
        for tier, usable, part in parts:
            mine = share * (part / sharing) if sharing else 0.0
            found.append(Load(tier=tier, usable=usable, capacity=capacity, share=mine))
    return found, total


def _capacity(usable: int, whole: int, headroom: float) -> float:
    return min(1.0, usable / whole * headroom) if usable else 0.0


def judge(arrangement: Arrangement, health: HealthView, panic_threshold_percent: int) -> Candidates:
    """Return who may be picked, given everybody's health. O(n)."""
    members, excluded = arrangement.members, len(arrangement.excluded)
    if not members:
        return Candidates(excluded=excluded)
    found, capacity = share_load(arrangement, health)
    usable = sum(len(load.usable) for load in found)
    unusable: tuple[Endpoint, ...] = ()
    if usable < members:
        unusable = tuple(_unusable(arrangement, health))
    if capacity < 1.0 and usable * 100 < members * panic_threshold_percent:
        everybody = tuple(endpoint for load in found for endpoint in load.tier.endpoints)
        levels: tuple[Level, ...] = (Level(upto=1.0, endpoints=everybody),)
        is_panicking = True
    else:
        levels = _levels(found)
        is_panicking = False
    return Candidates(
        levels=levels,
        usable=usable,
        unusable=unusable,
        members=members,
        excluded=excluded,
        is_panicking=is_panicking,
        spilled=0.0 if is_panicking else _spilled(arrangement, found),
    )


def _spilled(arrangement: Arrangement, found: Sequence[Load]) -> float:
    """Return the share of all stages but the first; `found` is in the order of the stages."""
    return sum((load.share for load in found[len(arrangement.stages[0]) :]), 0.0)


def _unusable(arrangement: Arrangement, health: HealthView) -> Iterator[Endpoint]:
    for stage in arrangement.stages:
        for tier in stage:
            for endpoint in tier.endpoints:
                if not health.is_usable(endpoint.key):
                    yield endpoint


def _levels(found: Sequence[Load]) -> tuple[Level, ...]:
    """Return the levels of all tiers that have somebody.

    A level that nothing spills to stays in the list with an empty share: requests that have tried everybody else go
    there.
    """
    levels: list[Level] = []
    taken = 0.0
    for load in found:
        if load.usable:
            taken = min(1.0, taken + load.share)
            if taken > 1.0 - 1e-9:
                taken = 1.0  # shares sum to 1 but for rounding: leave no gap and no sliver
            levels.append(Level(upto=taken, endpoints=load.usable))
    return tuple(levels)


def candidates(service: Service, health: HealthView, locality: LocalityPolicy, gateway: Locality) -> Candidates:
    """Return the candidates of a service as a gateway at `gateway` sees them."""
    return judge(arrange(service, locality, gateway), health, service.panic_threshold_percent)


class SharedCandidates:
    """The candidates of one service as it is now, computed once for all rules of one locality policy.

    A change of health leaves the order of places as it is: distances are computed once for each version of a service.
    """

    __slots__ = ("_arranged", "_found", "_health", "_service")

    def __init__(self) -> None:
        self._service: Service | None = None
        self._health: HealthView | None = None
        self._arranged: dict[tuple[LocalityPolicy, Locality], Arrangement] = {}
        self._found: dict[tuple[LocalityPolicy, Locality], Candidates] = {}

    def get(self, service: Service, health: HealthView, locality: LocalityPolicy, gateway: Locality) -> Candidates:
        """Return `candidates` of the same arguments."""
        if service is not self._service:
            self._service = service
            self._arranged.clear()
            self._found.clear()
        if health is not self._health:
            self._health = health
            self._found.clear()
        key = (locality, gateway)
        found = self._found.get(key)
        if found is None:
            arranged = self._arranged.get(key)
            if arranged is None:
                arranged = self._arranged[key] = arrange(service, locality, gateway)
            found = self._found[key] = judge(arranged, health, service.panic_threshold_percent)
        return found


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
