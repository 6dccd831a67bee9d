"""When which endpoint is to be probed next: pure, a heap of due times."""

from __future__ import annotations

import heapq
import random
from collections.abc import Mapping

from datum_router.model.endpoint import EndpointKey
from datum_router.model.policy import ActiveHealthPolicy
from datum_router.model.service import Service, ServiceKey

JITTER = 0.1
"""Probes of one endpoint are this share earlier or later than its interval, so that they don't march in step."""

Target = tuple[ServiceKey, EndpointKey]


class ProbeSchedule:
    """Due times of probes. An endpoint is probed again only after `done`, so that slow ones don't pile up."""

    __slots__ = ("_heap", "_rng", "_targets", "_tick")

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self._targets: dict[Target, tuple[ActiveHealthPolicy, int]] = {}
        self._heap: list[tuple[float, int, Target]] = []
        self._tick = 0

    def set_services(self, services: Mapping[ServiceKey, Service], *, now: float) -> None:
        """Take the services to probe: new endpoints are due soon, changed policies count from the next probe."""
        wanted: dict[Target, ActiveHealthPolicy] = {
            (service.key, endpoint.key): service.active
            for service in services.values()
            if service.active is not None
            for endpoint in service.endpoints
        }
        for target in [target for target in self._targets if target not in wanted]:
            del self._targets[target]
        for target, policy in wanted.items():
            known = self._targets.get(target)
            if known is None or known[0] != policy:
                # The first probe comes within a tenth of the interval, at most a second: health is known early.
                self._push(target, policy, now + self._rng.random() * min(policy.interval_s * JITTER, 1.0))

    def _push(self, target: Target, policy: ActiveHealthPolicy, due: float) -> None:
        self._tick += 1
        self._targets[target] = (policy, self._tick)
        heapq.heappush(self._heap, (due, self._tick, target))

    def take_due(self, now: float) -> list[tuple[Target, ActiveHealthPolicy]]:
        """Return the probes that are due; each is out of the schedule until `done`."""
        due: list[tuple[Target, ActiveHealthPolicy]] = []
        while self._heap and self._heap[0][0] <= now:
            _, tick, target = heapq.heappop(self._heap)
            known = self._targets.get(target)
            if known is not None and known[1] == tick:
                due.append((target, known[0]))
        return due

    def done(self, target: Target, policy: ActiveHealthPolicy, *, now: float) -> None:
        """Say that a probe has ended; the next one is due an interval later, with jitter."""
        known = self._targets.get(target)
        if known is None or known[0] != policy:
            return
        jitter = 1.0 + JITTER * (2.0 * self._rng.random() - 1.0)
        self._push(target, policy, now + policy.interval_s * jitter)

    def next_due(self) -> float | None:
        """Return when the next probe is due, None if none is scheduled."""
        while self._heap:
            due, tick, target = self._heap[0]
            known = self._targets.get(target)
            if known is not None and known[1] == tick:
                return due
            heapq.heappop(self._heap)
        return None
