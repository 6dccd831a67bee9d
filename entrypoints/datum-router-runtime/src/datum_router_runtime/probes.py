"""Active probes: runs the core's schedule through the data plane's probers. Supervisor only.

Probe load depends on endpoints and intervals alone, never on the number of workers.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Callable, Mapping, Sequence

import trio

from datum_router.health.schedule import ProbeSchedule, Target
from datum_router.health.view import HealthBook
from datum_router.model.endpoint import Endpoint
from datum_router.model.policy import ActiveHealthPolicy, ProbeType
from datum_router.model.service import Service, ServiceKey, UpstreamTls
from datum_router.plugins.manager import PluginSet
from datum_router.plugins.protocols import HealthChange, Prober, ProbeResult

log = logging.getLogger(__name__)

TICK_S = 0.25
"""How often ejected endpoints are looked at, and the longest sleep between looks at the schedule."""


class ProbeRunner:
    """Probe what is due, at most `concurrency` at once; `publish` takes what changed."""

    __slots__ = ("_book", "_changed", "_clock", "_limiter", "_probers", "_publish", "_schedule", "_services", "sent")

    def __init__(
        self,
        plugins: PluginSet,
        *,
        book: HealthBook,
        publish: Callable[[Sequence[HealthChange]], None],
        concurrency: int,
        clock: Callable[[], float],
        rng: random.Random | None = None,
    ) -> None:
        self._book = book
        self._publish = publish
        self._clock = clock
        self._limiter = trio.CapacityLimiter(concurrency)
        self._schedule = ProbeSchedule(rng or random.Random())
        self._services: Mapping[ServiceKey, Service] = {}
        self._changed = trio.Event()
        self._probers: dict[ProbeType, Prober] = {kind: spec.create() for kind, spec in plugins.health_checks.items()}
        self.sent = 0

    def set_services(self, services: Mapping[ServiceKey, Service]) -> None:
        """Take the services in force."""
        self._services = services
        self._schedule.set_services(services, now=self._clock())
        self._changed.set()

    async def run(self) -> None:
        """Probe until cancelled."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._tick)
            while True:
                for target, policy in self._schedule.take_due(self._clock()):
                    nursery.start_soon(self._probe, target, policy)
                due = self._schedule.next_due()
                wait_s = TICK_S if due is None else min(TICK_S, max(0.0, due - self._clock()))
                with trio.move_on_after(wait_s):
                    await self._changed.wait()
                self._changed = trio.Event()

    async def _tick(self) -> None:
        while True:
            await trio.sleep(TICK_S)
            self._publish(self._book.tick(now=self._clock()))

    async def _probe(self, target: Target, policy: ActiveHealthPolicy) -> None:
        service_key, endpoint_key = target
        service = self._services.get(service_key)
        endpoint = _find(service, endpoint_key)
        if service is None or endpoint is None:
            return
        prober = self._probers.get(policy.type)
        if prober is None:
            log.error("no prober for this type", extra={"type": str(policy.type), "service": service_key})
            return
        async with self._limiter:
            self.sent += 1
            result = await _ask(prober, endpoint, policy, service.tls)
        now = self._clock()
        log.debug(
            "probed",
            extra={"service": service_key, "endpoint": endpoint_key, "ok": result.is_ok, "detail": result.detail},
        )
        self._publish(
            self._book.record_probe(service_key, endpoint_key, is_ok=result.is_ok, detail=result.detail, now=now)
        )
        self._schedule.done(target, policy, now=now)
        self._changed.set()


async def _ask(prober: Prober, endpoint: Endpoint, policy: ActiveHealthPolicy, tls: UpstreamTls | None) -> ProbeResult:
    """Return the prober's answer; a prober that breaks its promise not to raise fails this probe alone."""
    try:
        return await prober.probe(endpoint, policy, tls)
    except Exception as error:
        log.exception("prober raised", extra={"endpoint": endpoint.key})
        return ProbeResult(is_ok=False, detail=f"prober raised {type(error).__name__}")


def _find(service: Service | None, key: str) -> Endpoint | None:
    if service is None:
        return None
    return next((endpoint for endpoint in service.endpoints if endpoint.key == key), None)
