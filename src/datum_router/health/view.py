"""The one writer of all endpoints' health (`HealthBook`), and what serving processes know of it (`HealthTable`)."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

from datum_router.health.active import EndpointHealth, HealthState, advance
from datum_router.health.outlier import OutcomeBatch, OutlierState, eject, may_eject, record, tick
from datum_router.model.endpoint import EndpointKey
from datum_router.model.service import Service, ServiceKey
from datum_router.plugins.protocols import HealthChange

__all__ = ["HealthBook", "HealthTable", "OutcomeBatch", "ServiceHealth"]


class _Entry:
    """All that is known of one endpoint of one service."""

    __slots__ = ("active", "is_usable", "outlier", "reason", "since")

    def __init__(self, now: float) -> None:
        self.active = EndpointHealth()
        self.outlier = OutlierState()
        self.is_usable = True
        self.since = now
        self.reason = "new"


class HealthBook:
    """The single writer of health. Every method returns the changes that serving processes must learn."""

    __slots__ = ("_entries", "_services")

    def __init__(self) -> None:
        self._services: dict[ServiceKey, Service] = {}
        self._entries: dict[ServiceKey, dict[EndpointKey, _Entry]] = {}

    def set_services(self, services: Mapping[ServiceKey, Service], *, now: float) -> list[HealthChange]:
        """Take the services in force: endpoints that left are forgotten, new ones are usable since now.

        Endpoints of the very first call have been usable since ever: no slow start at the gateway's own start.
        """
        since = now if self._services else -math.inf
        changes: list[HealthChange] = []
        for key in [key for key in self._entries if key not in services]:
            del self._entries[key]
        for key, service in services.items():
            known = self._entries.setdefault(key, {})
            wanted = {endpoint.key for endpoint in service.endpoints}
            for gone in [name for name in known if name not in wanted]:
                del known[gone]
            for name in wanted:
                if name not in known:
                    known[name] = _Entry(since)
                    if since != -math.inf:
                        changes.append(_change(key, name, known[name]))
            if service.active is None:
                for name, entry in known.items():
                    if entry.active.state is not HealthState.UNKNOWN:
                        entry.active = EndpointHealth()
                        changes += self._update(key, name, entry, "no longer probed", now)
        self._services = dict(services)
        return changes

    def record_probe(
        self, service: ServiceKey, endpoint: EndpointKey, *, is_ok: bool, detail: str, now: float
    ) -> list[HealthChange]:
        """Take the result of one probe."""
        entry = self._entries.get(service, {}).get(endpoint)
        config = self._services.get(service)
        if entry is None or config is None or config.active is None:
            return []
        entry.active = advance(entry.active, is_ok=is_ok, policy=config.active, now=now)
        return self._update(service, endpoint, entry, f"probe: {detail}", now)

    def record_outcomes(self, batches: Iterable[OutcomeBatch], *, now: float) -> list[HealthChange]:
        """Take outcomes of requests; may eject."""
        changes: list[HealthChange] = []
        for batch in batches:
            known = self._entries.get(batch.service, {})
            entry = known.get(batch.endpoint)
            config = self._services.get(batch.service)
            if entry is None or config is None or config.outlier is None:
                continue
            entry.outlier, detector = record(entry.outlier, batch.runs, config.outlier)
            if not detector or entry.outlier.is_ejected:
                continue
            ejected = sum(1 for other in known.values() if other.outlier.is_ejected)
            if may_eject(ejected, len(known), config.outlier):
                entry.outlier = eject(entry.outlier, config.outlier, now=now)
                changes += self._update(batch.service, batch.endpoint, entry, f"ejected: {detector}", now)
        return changes

    def tick(self, *, now: float) -> list[HealthChange]:
        """Let ejected endpoints return whose time is over."""
        changes: list[HealthChange] = []
        for key, known in self._entries.items():
            policy = self._services[key].outlier
            if policy is None:
                continue
            for name, entry in known.items():
                if entry.outlier.ejections:
                    entry.outlier = tick(entry.outlier, policy, now=now)
                    changes += self._update(key, name, entry, "returned after ejection", now)
        return changes

    def all_changes(self) -> list[HealthChange]:
        """Return what a serving process must know that begins now: all that is not simply usable since ever."""
        return [
            _change(key, name, entry)
            for key, known in self._entries.items()
            for name, entry in known.items()
            if not entry.is_usable or entry.since != -math.inf
        ]

    def describe(self) -> dict[str, list[dict[str, object]]]:
        """Return everything for the admin page."""
        return {
            "endpoints": [
                {
                    "service": key,
                    "endpoint": name,
                    "is_usable": entry.is_usable,
                    "probe": str(entry.active.state),
                    "is_ejected": entry.outlier.is_ejected,
                    "reason": entry.reason,
                }
                for key, known in sorted(self._entries.items())
                for name, entry in sorted(known.items())
            ]
        }

    def _update(
        self, service: ServiceKey, endpoint: EndpointKey, entry: _Entry, reason: str, now: float
    ) -> list[HealthChange]:
        is_usable = entry.active.state is not HealthState.UNHEALTHY and not entry.outlier.is_ejected
        if is_usable == entry.is_usable:
            return []
        entry.is_usable = is_usable
        entry.since = now
        entry.reason = reason
        return [_change(service, endpoint, entry)]


def _change(service: ServiceKey, endpoint: EndpointKey, entry: _Entry) -> HealthChange:
    since = entry.since if entry.since != -math.inf else 0.0
    return HealthChange(service=service, endpoint=endpoint, is_usable=entry.is_usable, since=since, reason=entry.reason)


class ServiceHealth:
    """An immutable view of one service's endpoints; what it does not know is usable since ever."""

    __slots__ = ("_since", "_unusable")

    def __init__(
        self, unusable: frozenset[EndpointKey] = frozenset(), since: Mapping[EndpointKey, float] | None = None
    ) -> None:
        self._unusable = unusable
        self._since: Mapping[EndpointKey, float] = {} if since is None else since

    def is_usable(self, key: EndpointKey) -> bool:
        """Tell whether an endpoint may get requests."""
        return key not in self._unusable

    def usable_since(self, key: EndpointKey) -> float:
        """Return since when, monotonic seconds."""
        return self._since.get(key, -math.inf)


ALL_USABLE = ServiceHealth()


class HealthTable:
    """What a serving process knows: changes in, one immutable view per service out."""

    __slots__ = ("_changes", "_views")

    def __init__(self) -> None:
        self._changes: dict[ServiceKey, dict[EndpointKey, HealthChange]] = {}
        self._views: dict[ServiceKey, ServiceHealth] = {}

    def apply(self, changes: Sequence[HealthChange]) -> set[ServiceKey]:
        """Take changes; return the services whose view is another now."""
        touched: set[ServiceKey] = set()
        for change in changes:
            self._changes.setdefault(change.service, {})[change.endpoint] = change
            touched.add(change.service)
        for key in touched:
            known = self._changes[key].values()
            self._views[key] = ServiceHealth(
                frozenset(change.endpoint for change in known if not change.is_usable),
                {change.endpoint: change.since for change in known if change.is_usable},
            )
        return touched

    def reset(self, changes: Sequence[HealthChange]) -> None:
        """Forget everything and take `changes` as the whole truth."""
        self._changes.clear()
        self._views.clear()
        self.apply(changes)

    def view(self, service: ServiceKey) -> ServiceHealth:
        """Return the view of one service."""
        return self._views.get(service, ALL_USABLE)

    def forget(self, services: Iterable[ServiceKey]) -> None:
        """Drop services that are gone."""
        for key in services:
            self._changes.pop(key, None)
            self._views.pop(key, None)
