"""When which endpoint is probed next: a heap of due times, jitter from the caller's rng, bounded concurrency.

Theory of operation: the runner asks `take_due`, probes what it got, says `finish`, and sleeps until `next_due` or until
`set_services` brings something new. A target is either waiting (one valid heap entry) or in flight (none), so it is
never probed twice at once. Entries of removed or changed targets stay in the heap until they come up or outnumber
the valid ones. Probes in flight for a removed target count against the concurrency until they end.

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
    """A target and the one heap entry that counts for it: `ticket`, 0 while its probe is in flight."""

    __slots__ = ("started_at", "target", "ticket")

    def __init__(self, target: ProbeTarget) -> None:
        self.target = target
        self.ticket = 0
        self.started_at = 0.0


class ProbeSchedule:
    """Decide when probes are due. Single-threaded, pure."""

    __slots__ = ("_concurrency", "_heap", "_in_flight", "_rng", "_slots", "_tickets")

    def __init__(self, rng: random.Random, *, concurrency: int = DEFAULT_CONCURRENCY) -> None:
        if concurrency < 1:
            raise ValueError(f"concurrency: found {concurrency}, expected a number >= 1")
        self._rng = rng
        self._concurrency = concurrency
        self._slots: dict[tuple[ServiceKey, EndpointKey], _Slot] = {}
        self._heap: list[tuple[float, int, ServiceKey, EndpointKey]] = []
        self._tickets = 0
        # By identity of the target that was handed out: its slot may be gone or hold another one when it ends.
        self._in_flight: dict[int, tuple[ProbeTarget, _Slot]] = {}

    def __len__(self) -> int:
        """Return the number of targets."""
        return len(self._slots)

    @property
    def running(self) -> int:
        """Return the number of probes in flight, those of removed targets included."""
        return len(self._in_flight)

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
            del self._slots[key]
        for key, target in wanted.items():
            slot = self._slots.get(key)
            if slot is None:
                slot = self._slots[key] = _Slot(target)
            else:
                is_same = _asks_the_same(slot.target, target)
                is_running = not slot.ticket
                slot.target = target
                if is_same or is_running:
                    continue  # `finish` sets the time of the next one
            self._push(key, slot, now + self._rng.random() * min(target.policy.interval_s, FIRST_PROBE_SPREAD_S))
        self._compact()

    def take_due(self, now: float) -> list[ProbeTarget]:
        """Return the probes to start now, longest overdue first, as many as may still run; they count as in flight."""
        due: list[ProbeTarget] = []
        while self._heap and len(self._in_flight) < self._concurrency:
            due_at, ticket, service, endpoint = self._heap[0]
            slot = self._slots.get((service, endpoint))
            if slot is None or slot.ticket != ticket:
                heapq.heappop(self._heap)
                continue
            if due_at > now:
                break
            heapq.heappop(self._heap)
            slot.ticket = 0
            slot.started_at = now
            self._in_flight[id(slot.target)] = (slot.target, slot)
            due.append(slot.target)
        return due

    def finish(self, target: ProbeTarget, *, now: float) -> bool:
        """Take the end of a probe that `take_due` gave; tell whether its target is still to be probed.

        False: the endpoint is gone, or is to be probed in another way by now (at once): the result means nothing.
        """
        entry = self._in_flight.pop(id(target), None)
        if entry is None:
            return False
        slot = entry[1]
        key = (target.service, target.endpoint.key)
        if self._slots.get(key) is not slot:
            return False
        is_same = _asks_the_same(slot.target, target)
        if is_same:
            interval = slot.target.policy.interval_s
            jittered = interval * (1.0 + JITTER * (2.0 * self._rng.random() - 1.0))
            self._push(key, slot, max(now, slot.started_at + jittered))
        else:
            self._push(key, slot, now)
        return is_same

    def next_due(self) -> float | None:
        """Return when to call `take_due` again, None if only `finish` or `set_services` can bring something due."""
        if len(self._in_flight) >= self._concurrency:
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
