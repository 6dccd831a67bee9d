"""When which endpoint is probed next: a heap of due times, jitter from the caller's rng, bounded concurrency.

Theory of operation: the runner asks `take_due`, probes what it got, says `finish`, and sleeps until `next_due` or until
`set_services` brings something new. A target is either waiting (one valid heap entry) or in flight (none), so no
endpoint is ever probed twice at once. Entries of removed or changed targets stay in the heap until they come up
or outnumber the valid ones.

The first probe of a target is due at a random moment of its first interval, at most `FIRST_PROBE_SPREAD_S` ahead; later
ones follow the start of the one before by the interval +- `JITTER`, so that gateways that were started together drift
apart. When more are due than may run, the longest overdue goes first.
"""

from __future__ import annotations

import heapq
import random
from collections.abc import Mapping

import msgspec

from datum_router.model.endpoint import Endpoint, EndpointKey
from datum_router.model.policy import ActiveHealthPolicy
from datum_router.model.service import Service, ServiceKey, UpstreamTls

JITTER = 0.1
"""Share of the interval by which a probe comes earlier or later."""

FIRST_PROBE_SPREAD_S = 1.0
"""First probes of new targets are spread over this time, or over the interval if that is shorter."""

DEFAULT_CONCURRENCY = 100
"""Probes in flight at once."""

_COMPACT_ABOVE = 1024


class ProbeTarget(msgspec.Struct, frozen=True, kw_only=True):
    """One probe to make."""

    service: ServiceKey
    endpoint: Endpoint
    policy: ActiveHealthPolicy
    tls: UpstreamTls | None = None


class _Slot:
    """A target and the one heap entry that counts for it (`ticket`), or its probe in flight."""

    __slots__ = ("is_running", "started_at", "target", "ticket")

    def __init__(self, target: ProbeTarget) -> None:
        self.target = target
        self.ticket = -1
        self.is_running = False
        self.started_at = 0.0


class ProbeSchedule:
    """Decide when probes are due. Single-threaded, pure."""

    __slots__ = ("_concurrency", "_heap", "_orphans", "_rng", "_running", "_slots", "_tickets")

    def __init__(self, rng: random.Random, *, concurrency: int = DEFAULT_CONCURRENCY) -> None:
        if concurrency < 1:
            raise ValueError(f"concurrency: found {concurrency}, expected a number >= 1")
        self._rng = rng
        self._concurrency = concurrency
        self._slots: dict[tuple[ServiceKey, EndpointKey], _Slot] = {}
        self._heap: list[tuple[float, int, ServiceKey, EndpointKey]] = []
        self._tickets = 0
        self._running = 0
        self._orphans: dict[tuple[ServiceKey, EndpointKey], int] = {}

    def __len__(self) -> int:
        """Return the number of targets."""
        return len(self._slots)

    @property
    def running(self) -> int:
        """Return the number of probes in flight, those of removed targets included."""
        return self._running

    def set_services(self, services: Mapping[ServiceKey, Service], *, now: float) -> None:
        """Take what is to be probed. New and changed targets get a first probe, gone ones none any more."""
        wanted: dict[tuple[ServiceKey, EndpointKey], ProbeTarget] = {}
        for service in services.values():
            if service.active is None:
                continue
            for endpoint in service.endpoints:
                wanted[service.key, endpoint.key] = ProbeTarget(
                    service=service.key, endpoint=endpoint, policy=service.active, tls=service.tls
                )
        for key in [key for key in self._slots if key not in wanted]:
            slot = self._slots.pop(key)
            if slot.is_running:
                self._orphans[key] = self._orphans.get(key, 0) + 1
        for key, target in wanted.items():
            slot = self._slots.get(key)  # type: ignore[assignment]  # None for a new one
            if slot is None:
                slot = self._slots[key] = _Slot(target)
            elif _asks_the_same(slot.target, target):
                slot.target = target
                continue
            else:
                slot.target = target
            if not slot.is_running:
                spread = min(target.policy.interval_s, FIRST_PROBE_SPREAD_S)
                self._push(key, slot, now + self._rng.random() * spread)
        self._compact()

    def take_due(self, now: float) -> list[ProbeTarget]:
        """Return the probes to start now, longest overdue first, as many as may still run; they count as in flight."""
        due: list[ProbeTarget] = []
        while self._heap and self._running < self._concurrency:
            due_at, ticket, service, endpoint = self._heap[0]
            slot = self._slots.get((service, endpoint))
            if slot is None or slot.ticket != ticket:
                heapq.heappop(self._heap)
                continue
            if due_at > now:
                break
            heapq.heappop(self._heap)
            slot.ticket = -1
            slot.is_running = True
            slot.started_at = now
            self._running += 1
            due.append(slot.target)
        return due

    def finish(self, target: ProbeTarget, *, now: float) -> bool:
        """Take the end of a probe that `take_due` gave; tell whether its target is still to be probed.

        False: the endpoint is gone or is probed differently by now; the result means nothing.
        """
        key = (target.service, target.endpoint.key)
        left = self._orphans.get(key, 0)
        slot = self._slots.get(key)
        if left and (slot is None or not slot.is_running or slot.target is not target):
            self._running -= 1
            if left == 1:
                del self._orphans[key]
            else:
                self._orphans[key] = left - 1
            return False
        if slot is None or not slot.is_running:
            return False
        self._running -= 1
        slot.is_running = False
        interval = slot.target.policy.interval_s
        jittered = interval * (1.0 + JITTER * (2.0 * self._rng.random() - 1.0))
        self._push(key, slot, max(now, slot.started_at + jittered))
        return _asks_the_same(slot.target, target)

    def next_due(self) -> float | None:
        """Return when to call `take_due` again, None if only `finish` or `set_services` can bring something due."""
        if self._running >= self._concurrency:
            return None
        while self._heap:
            due_at, ticket, service, endpoint = self._heap[0]
            slot = self._slots.get((service, endpoint))
            if slot is not None and slot.ticket == ticket:
                return due_at
            heapq.heappop(self._heap)
        return None

    def _push(self, key: tuple[ServiceKey, EndpointKey], slot: _Slot, due_at: float) -> None:
        self._tickets += 1
        slot.ticket = self._tickets
        heapq.heappush(self._heap, (due_at, self._tickets, *key))

    def _compact(self) -> None:
        if len(self._heap) > _COMPACT_ABOVE and len(self._heap) > 2 * len(self._slots):
            self._heap = [
                entry
                for entry in self._heap
                if (slot := self._slots.get((entry[2], entry[3]))) is not None and slot.ticket == entry[1]
            ]
            heapq.heapify(self._heap)


def _asks_the_same(old: ProbeTarget, new: ProbeTarget) -> bool:
    """Tell whether a result of `old` answers for `new`: the same address asked in the same way, however often."""
    return (
        old.policy == new.policy
        and old.tls == new.tls
        and (old.endpoint.address, old.endpoint.port) == (new.endpoint.address, new.endpoint.port)
    )
