"""Health of all endpoints: one writer keeps the book, everybody else holds views.

Theory of operation. The supervisor owns the `HealthBook`. Three things write to it: probe results, outcome batches from
the workers, and the set of services (endpoints that come and go). Each write returns the *changes*: endpoints whose
usability flipped, or that may be tried now or no more. An endpoint is usable unless probes say UNHEALTHY or outlier
detection has it ejected; before its first probe it is usable (see `active`). Changes travel to the workers, whose
`HealthTable` turns them into one immutable view per service. Applying a change twice does nothing the second time.

An endpoint that is usable since ever has no entry in a table, so a table is as large as the list of exceptions;
`HealthReason.REMOVED` (usable since `ALWAYS`) takes an entry out again.

The book knows no clock and no timer: `next_due` says when `expire` has something to do.
"""

from __future__ import annotations

import enum
import itertools
import random
from collections.abc import Iterable, Mapping, Sequence

import msgspec

from datum_router.balancing.base import ALL_USABLE, ALWAYS, HealthView
from datum_router.health.active import UNPROBED, EndpointHealth, HealthState, advance
from datum_router.health.outlier import BreakerState, Detector, OutlierDetector
from datum_router.health.trial import NO_TRIALS, TrialVerdict
from datum_router.model.endpoint import EndpointKey
from datum_router.model.outcome import OutcomeClass
from datum_router.model.policy import ActiveHealthPolicy
from datum_router.model.service import Service, ServiceKey
from datum_router.plugins.protocols import HealthChange, ProbeResult


class HealthReason(enum.StrEnum):
    """Why an endpoint is as usable as it is: the closed set of `HealthChange.reason`."""

    INITIAL = "initial"
    ADDED = "added"
    REMOVED = "removed"
    PROBE_FAILED = "probe_failed"
    PROBE_PASSED = "probe_passed"
    EJECTED_5XX = "ejected_consecutive_5xx"
    EJECTED_GATEWAY_ERRORS = "ejected_consecutive_gateway_errors"
    HALF_OPEN = "half_open"
    TRIAL_PASSED = "trial_passed"
    TRIAL_FAILED = "trial_failed"
    UNCHECKED = "unchecked"


class OutcomeBatch(msgspec.Struct, frozen=True, kw_only=True):
    """How attempts at one endpoint ended since the last report, in order: (class, how often in a row)."""

    service: ServiceKey
    endpoint: EndpointKey
    runs: tuple[tuple[OutcomeClass, int], ...]


class EndpointStatus(msgspec.Struct, frozen=True, kw_only=True):
    """One endpoint in `HealthBook.describe`: for people and status pages.

    Attributes:
        unchanged_s: Seconds since `is_usable` last changed; None: as it is since the beginning.
        detail: What the last probe saw.
        breaker: State of its circuit breaker; closed if there is no outlier detection.
        ejection_left_s: Seconds until the breaker is half-open, 0 if that is due; None: the breaker is not open.
    """

    endpoint: EndpointKey
    is_usable: bool
    reason: HealthReason
    unchanged_s: float | None
    state: HealthState
    detail: str = ""
    breaker: BreakerState = BreakerState.CLOSED
    ejection_left_s: float | None = None
    times_ejected: int = 0


class _Record:
    """What the book keeps of one endpoint."""

    __slots__ = ("active", "is_usable", "reason", "since", "trial")

    def __init__(self, since: float, reason: HealthReason) -> None:
        self.active: EndpointHealth = UNPROBED
        self.is_usable = True
        self.since = since
        self.reason = reason
        self.trial = 0


class _ServiceBook:
    """One service's policies and records."""

    __slots__ = ("active", "key", "outlier", "records", "service")

    def __init__(self, key: ServiceKey) -> None:
        self.key = key
        self.service: Service | None = None
        self.active: ActiveHealthPolicy | None = None
        self.outlier: OutlierDetector | None = None
        self.records: dict[EndpointKey, _Record] = {}

    def settle(self, key: EndpointKey, reason: HealthReason, now: float) -> HealthChange | None:
        """Derive usability and trial; return the change if there is one."""
        record = self.records[key]
        outlier = self.outlier.state(key) if self.outlier is not None else None
        is_up = record.active.state is not HealthState.UNHEALTHY
        is_usable = is_up and (outlier is None or outlier.breaker is BreakerState.CLOSED)
        trial = outlier.trial if is_up and outlier is not None else 0  # no user's request for what probes know is down
        if is_usable == record.is_usable and trial == record.trial:
            return None
        if is_usable != record.is_usable:
            record.is_usable = is_usable
            record.since = now
        record.trial = trial
        record.reason = reason
        return self.change(key)

    def change(self, key: EndpointKey) -> HealthChange:
        record = self.records[key]
        return HealthChange(
            service=self.key,
            endpoint=key,
            is_usable=record.is_usable,
            since=record.since,
            trial=record.trial,
            reason=record.reason.value,
        )


_EJECTED = {
    Detector.CONSECUTIVE_5XX: HealthReason.EJECTED_5XX,
    Detector.CONSECUTIVE_GATEWAY_ERRORS: HealthReason.EJECTED_GATEWAY_ERRORS,
}


class HealthBook:
    """The single writer of health. Single-threaded; `now` is monotonic seconds and must not go back."""

    __slots__ = ("_ejecting", "_numbers", "_rng", "_services")

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self._numbers = itertools.count(1)
        self._services: dict[ServiceKey, _ServiceBook] = {}
        self._ejecting: set[ServiceKey] = set()

    def set_services(self, services: Mapping[ServiceKey, Service], *, now: float) -> list[HealthChange]:
        """Take all services and their endpoints; return the changes.

        Endpoints of a service that is new to the book are usable since ever; one that joins a known service is
        usable since `now` (it may slow-start). A service without a policy any more forgets what that policy found.
        """
        changes: list[HealthChange] = []
        for key in [key for key in self._services if key not in services]:
            changes += self._forget(self._services.pop(key), ())
            self._ejecting.discard(key)
        for key, service in services.items():
            changes += self._set_service(key, service, now)
        return changes

    def record_probe(
        self, service: ServiceKey, endpoint: EndpointKey, result: ProbeResult, *, now: float
    ) -> list[HealthChange]:
        """Take the end of one probe; return the change, if any. Results for unknown endpoints are ignored.

        A probe that passes lets an endpoint back in that was ejected for not answering (Envoy's
        `successful_active_health_check_uneject_host`), and so does a recovery from UNHEALTHY: the outage is over. An
        endpoint that was ejected for its 5xx answers stays out its time: its probes passed all along.
        """
        book = self._services.get(service)
        record = book.records.get(endpoint) if book is not None else None
        if book is None or record is None or book.active is None:
            return []
        before = record.active.state
        record.active = advance(record.active, result, book.active, now=now)
        is_flipped = record.active.state is not before
        outlier = book.outlier.state(endpoint) if book.outlier is not None else None
        is_answering = (
            result.is_ok and outlier is not None and outlier.ejected_by is Detector.CONSECUTIVE_GATEWAY_ERRORS
        )
        if book.outlier is not None and (is_answering or (is_flipped and before is HealthState.UNHEALTHY)):
            book.outlier.release(endpoint, now=now)
        elif not is_flipped:
            return []
        reason = HealthReason.PROBE_PASSED if result.is_ok else HealthReason.PROBE_FAILED
        change = book.settle(endpoint, reason, now)
        return [] if change is None else [change]

    def record_outcomes(self, batches: Iterable[OutcomeBatch], *, now: float) -> list[HealthChange]:
        """Take outcomes in order of arrival; return the changes."""
        changes = self.expire(now)
        for batch in batches:
            book = self._services.get(batch.service)
            if book is None or book.outlier is None or batch.endpoint not in book.records:
                continue
            detector = book.outlier.record(batch.endpoint, batch.runs, now=now)
            if detector is not None:
                self._ejecting.add(batch.service)
                change = book.settle(batch.endpoint, _EJECTED[detector], now)
                if change is not None:
                    changes.append(change)
        return changes

    def record_trials(self, verdicts: Iterable[TrialVerdict], *, now: float) -> list[HealthChange]:
        """Take how trials of half-open endpoints ended; return the changes.

        The first verdict of a trial decides: passed, the endpoint is back; failed, it is out for twice as long.
        """
        changes: list[HealthChange] = []
        for verdict in verdicts:
            book = self._services.get(verdict.service)
            if book is None or book.outlier is None:
                continue
            if not book.outlier.record_trial(verdict.endpoint, verdict.number, is_ok=verdict.is_ok, now=now):
                continue
            if not verdict.is_ok:
                self._ejecting.add(verdict.service)
            reason = HealthReason.TRIAL_PASSED if verdict.is_ok else HealthReason.TRIAL_FAILED
            change = book.settle(verdict.endpoint, reason, now)
            if change is not None:
                changes.append(change)
        return changes

    def expire(self, now: float) -> list[HealthChange]:
        """Half-open the breakers of endpoints whose ejection is over; return the changes."""
        changes: list[HealthChange] = []
        for key in list(self._ejecting):
            book = self._services[key]
            if book.outlier is not None:
                for endpoint in book.outlier.half_open_due(now):
                    change = book.settle(endpoint, HealthReason.HALF_OPEN, now)
                    if change is not None:
                        changes.append(change)
            if book.outlier is None or book.outlier.next_half_open() is None:
                self._ejecting.discard(key)
        return changes

    def next_due(self) -> float | None:
        """Return when to call `expire`, None if no breaker is open."""
        due = [self._services[key].outlier for key in self._ejecting]
        return min(
            (at for outlier in due if outlier is not None and (at := outlier.next_half_open()) is not None),
            default=None,
        )

    def all_changes(self) -> list[HealthChange]:
        """Return every endpoint that is not simply usable since ever: what a table needs to begin with."""
        return [
            book.change(key)
            for book in self._services.values()
            for key, record in book.records.items()
            if not record.is_usable or record.since != ALWAYS
        ]

    def view(self, service: ServiceKey) -> HealthView:
        """Return an immutable view of one service as it is now."""
        book = self._services.get(service)
        if book is None:
            return ALL_USABLE
        return _view({key: (record.is_usable, record.since) for key, record in book.records.items()})

    def describe(self, *, now: float) -> dict[ServiceKey, list[EndpointStatus]]:
        """Return all that is known, for status pages; times count from or to `now`."""
        return {book.key: [_status(book, key, now) for key in book.records] for book in self._services.values()}

    def _set_service(self, key: ServiceKey, service: Service, now: float) -> list[HealthChange]:
        book = self._services.get(key)
        if book is not None and book.service is service:
            return []  # the same object: nothing of it can have changed
        is_new = book is None
        if book is None:
            book = self._services[key] = _ServiceBook(key)
        book.service = service
        keys = dict.fromkeys(endpoint.key for endpoint in service.endpoints)
        changes = self._forget(book, keys)
        added = [endpoint for endpoint in keys if endpoint not in book.records]
        for endpoint in added:
            if is_new:
                book.records[endpoint] = _Record(ALWAYS, HealthReason.INITIAL)
            else:
                book.records[endpoint] = _Record(now, HealthReason.ADDED)
                changes.append(book.change(endpoint))
        if service.active != book.active:
            book.active = service.active
            for record in book.records.values():
                if service.active is None:
                    record.active = UNPROBED
                else:
                    record.active = msgspec.structs.replace(record.active, streak=0)
        if service.outlier is None:
            book.outlier = None
        elif book.outlier is None:
            book.outlier = OutlierDetector(service.outlier, rng=self._rng, numbers=self._numbers)
        else:
            book.outlier.set_policy(service.outlier)
        if book.outlier is not None:
            book.outlier.set_endpoints(keys)
        for endpoint in keys:
            change = book.settle(endpoint, HealthReason.UNCHECKED, now)
            if change is not None:
                changes.append(change)
        return changes

    @staticmethod
    def _forget(book: _ServiceBook, keep: Iterable[EndpointKey]) -> list[HealthChange]:
        """Drop records that are not in `keep`; tables must drop their exceptions."""
        kept = set(keep)
        changes: list[HealthChange] = []
        for key in [key for key in book.records if key not in kept]:
            record = book.records.pop(key)
            if not record.is_usable or record.since != ALWAYS:
                changes.append(
                    HealthChange(
                        service=book.key,
                        endpoint=key,
                        is_usable=True,
                        since=ALWAYS,
                        reason=HealthReason.REMOVED.value,
                    )
                )
        return changes


def _status(book: _ServiceBook, key: EndpointKey, now: float) -> EndpointStatus:
    record = book.records[key]
    outlier = book.outlier.state(key) if book.outlier is not None else None
    ejected_until = outlier.ejected_until if outlier is not None else None
    return EndpointStatus(
        endpoint=key,
        is_usable=record.is_usable,
        reason=record.reason,
        unchanged_s=None if record.since == ALWAYS else round(now - record.since, 3),
        state=record.active.state,
        detail=record.active.detail,
        breaker=outlier.breaker if outlier is not None else BreakerState.CLOSED,
        ejection_left_s=None if ejected_until is None else round(max(0.0, ejected_until - now), 3),
        times_ejected=outlier.times_ejected if outlier is not None else 0,
    )


class _ServiceView:
    """Exceptions of one service: who is not usable, and since when others are."""

    __slots__ = ("_down", "_since")

    def __init__(self, down: frozenset[EndpointKey], since: Mapping[EndpointKey, float]) -> None:
        self._down = down
        self._since = since

    def is_usable(self, key: EndpointKey) -> bool:
        return key not in self._down

    def usable_since(self, key: EndpointKey) -> float:
        return self._since.get(key, ALWAYS)


def _view(entries: Mapping[EndpointKey, tuple[bool, float]]) -> HealthView:
    down = frozenset(key for key, (is_usable, _) in entries.items() if not is_usable)
    since = {key: since for key, (is_usable, since) in entries.items() if is_usable and since != ALWAYS}
    return _ServiceView(down, since) if down or since else ALL_USABLE


class HealthTable:
    """The workers' side: applies changes, gives views. Single-threaded; views that were given out never change."""

    __slots__ = ("_entries", "_views")

    def __init__(self) -> None:
        self._entries: dict[ServiceKey, dict[EndpointKey, tuple[bool, float, int]]] = {}
        self._views: dict[ServiceKey, HealthView] = {}

    def apply(self, changes: Sequence[HealthChange]) -> set[ServiceKey]:
        """Take changes; return the services whose view is another one now. O(changes)."""
        touched: set[ServiceKey] = set()
        for change in changes:
            entries = self._entries.setdefault(change.service, {})
            is_plain = change.is_usable and change.since == ALWAYS
            new = None if is_plain else (change.is_usable, change.since, change.trial)
            if entries.get(change.endpoint) == new:
                continue
            if new is None:
                del entries[change.endpoint]
            else:
                entries[change.endpoint] = new
            touched.add(change.service)
        for change in changes:
            if not self._entries.get(change.service, True):
                del self._entries[change.service]
        for service in touched:
            self._views.pop(service, None)
        return touched

    def reset(self, changes: Sequence[HealthChange]) -> set[ServiceKey]:
        """Take `changes` as the whole truth; return the services that had or have exceptions."""
        touched = set(self._entries)
        self._entries.clear()
        self._views.clear()
        return touched | self.apply(changes)

    def view(self, service: ServiceKey) -> HealthView:
        """Return the immutable view of one service, the same object until it changes; unknown ones are all usable."""
        entries = self._entries.get(service)
        if not entries:
            return ALL_USABLE
        view = self._views.get(service)
        if view is None:
            view = self._views[service] = _view({key: entry[:2] for key, entry in entries.items()})
        return view

    def trials(self, service: ServiceKey) -> Mapping[EndpointKey, int]:
        """Return the half-open endpoints of one service with the numbers of their trials."""
        entries = self._entries.get(service)
        return {key: trial for key, (_, _, trial) in entries.items() if trial} if entries else NO_TRIALS
