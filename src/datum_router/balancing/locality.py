"""From endpoints and their health to levels of candidates: priority, place, panic, slow start.

A level is a tuple of endpoints and its share of the load. Load spills from one level to the next in proportion to lost
health, as in Envoy: a level takes `min(100 %, health * 1.4)` of what the levels before it left over. If fewer than
`panic_threshold_percent` of all endpoints are usable, health is ignored: sending to sick endpoints beats sending all
load to the few that are left.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from datum_router.balancing.base import HealthView
from datum_router.model.endpoint import Endpoint, Locality
from datum_router.model.route import LocalityMode, LocalityPolicy

OVERPROVISIONING = 1.4
"""How much more than its share a level may take before load spills (Envoy's overprovisioning factor)."""

SLOW_START_MIN = 0.1
"""Smallest share of its weight that an endpoint has at the beginning of its slow start."""

SLOW_START_SCALE = 100
"""Weights are multiplied by this while anything is in slow start, so that tenths of small weights can be said."""


class Level(msgspec.Struct, frozen=True):
    """Candidates and their share of the load, 0 to 1. Shares of all levels sum up to 1."""

    endpoints: tuple[Endpoint, ...]
    share: float


class Candidates(msgspec.Struct, frozen=True, kw_only=True):
    """All levels with a share.

    Attributes:
        is_panic: Health is being ignored.
        is_warming: Something is in slow start: weights change with time.
    """

    levels: tuple[Level, ...] = ()
    is_panic: bool = False
    is_warming: bool = False


NOTHING = Candidates()


def candidates(
    endpoints: Sequence[Endpoint],
    health: HealthView,
    *,
    now: float,
    panic_threshold_percent: int,
    locality: LocalityPolicy,
    gateway: Locality,
    slow_start_s: float,
) -> Candidates:
    """Return the levels that load goes to.

    Args:
        now: Monotonic seconds, read only for slow start.
    """
    members = [endpoint for endpoint in endpoints if endpoint.is_serving and endpoint.weight > 0]
    if locality.mode is LocalityMode.REQUIRE_LOCAL:
        members = [endpoint for endpoint in members if _is_local(endpoint, locality, gateway)]
    if not members:
        return NOTHING
    usable = {endpoint.key for endpoint in members if health.is_usable(endpoint.key)}
    is_panic = len(usable) * 100 < panic_threshold_percent * len(members)
    if is_panic:
        usable = {endpoint.key for endpoint in members}
    elif not usable:
        return NOTHING  # threshold 0: the user wants 503 rather than sick endpoints
    groups: dict[tuple[int, int], list[Endpoint]] = {}
    for endpoint in members:
        far = 0
        if locality.mode is LocalityMode.PREFER_LOCAL:
            far = 0 if _is_local(endpoint, locality, gateway) else 1
        groups.setdefault((endpoint.priority, far), []).append(endpoint)
    levels: list[Level] = []
    left = 1.0
    last_usable: tuple[Endpoint, ...] = ()
    for _, group in sorted(groups.items()):
        alive = tuple(endpoint for endpoint in group if endpoint.key in usable)
        if not alive:
            continue
        last_usable = alive
        share = min(left, len(alive) / len(group) * OVERPROVISIONING)
        left -= share
        levels.append(Level(endpoints=alive, share=share))
        if left <= 1e-9:
            break
    if left > 1e-9 and last_usable:
        # All levels together are too weak for the whole load: they share it in proportion.
        total = 1.0 - left
        levels = [Level(endpoints=level.endpoints, share=level.share / total) for level in levels]
    if slow_start_s <= 0:
        return Candidates(levels=tuple(levels), is_panic=is_panic)
    warmed = [_warm(level, health, now, slow_start_s) for level in levels]
    return Candidates(
        levels=tuple(level for level, _ in warmed),
        is_panic=is_panic,
        is_warming=any(is_warming for _, is_warming in warmed),
    )


def _is_local(endpoint: Endpoint, policy: LocalityPolicy, gateway: Locality) -> bool:
    here = gateway.value(policy.topology_key)
    return bool(here) and endpoint.locality.value(policy.topology_key) == here


def _warm(level: Level, health: HealthView, now: float, slow_start_s: float) -> tuple[Level, bool]:
    shares = [warm_share(now - health.usable_since(endpoint.key), slow_start_s) for endpoint in level.endpoints]
    if all(share >= 1.0 for share in shares):
        return level, False
    endpoints = tuple(
        msgspec.structs.replace(endpoint, weight=max(1, round(endpoint.weight * SLOW_START_SCALE * share)))
        for endpoint, share in zip(level.endpoints, shares, strict=True)
    )
    return Level(endpoints=endpoints, share=level.share), True


def warm_share(age_s: float, slow_start_s: float) -> float:
    """Return the share of its weight that an endpoint of this age has: linear from `SLOW_START_MIN` to 1."""
    if age_s >= slow_start_s:
        return 1.0
    return max(SLOW_START_MIN, age_s / slow_start_s)
