"""Active probes: runs the core's schedule through the data plane's probers. Supervisor only.

Probe load depends on endpoints and intervals alone, never on the number of workers.
"""

from __future__ import annotations

import logging
import math
import random
from collections.abc import Callable, Mapping, Sequence

import trio

from datum_router.health.schedule import ProbeSchedule, ProbeTarget
from datum_router.health.view import HealthBook
from datum_router.model.policy import ProbeType
from datum_router.model.service import Service, ServiceKey
from datum_router.plugins.manager import PluginSet
from datum_router.plugins.protocols import HealthChange, Prober, ProbeResult

log = logging.getLogger(__name__)

TICK_S = 0.25
"""How often ejected endpoints are looked at."""


class ProbeRunner:
    """Probe what is due, at most `concurrency` at once; `publish` takes what changed."""

    __slots__ = ("_book", "_changed", "_clock", "_probers", "_publish", "_schedule", "sent")

    def __init__(
        self,
        plugins: PluginSet,
        *,
        book: HealthBook,
        publish: Callable[[Sequence[HealthChange]], None],
        concurrency: int,
        clock: Callable[[], float],
        settings: Mapping[str, str] | None = None,
        rng: random.Random | None = None,
    ) -> None:
        self._book = book
        self._publish = publish
        self._clock = clock
        self._schedule = ProbeSchedule(rng or random.Random(), concurrency=concurrency)
        self._changed = trio.Event()
        self._probers: dict[ProbeType, Prober] = {
            kind: spec.make(settings or {}) for kind, spec in plugins.health_checks.items()
        }
        self.sent = 0

    def set_services(self, services: Mapping[ServiceKey, Service]) -> None:
        """Take the services in force."""
        self._schedule.set_services(services, now=self._clock())
        self._changed.set()

    async def run(self) -> None:
        """Probe until cancelled."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._tick)
            while True:
                for target in self._schedule.take_due(self._clock()):
                    nursery.start_soon(self._probe, target)
                due = self._schedule.next_due()
                wait_s = math.inf if due is None else max(0.0, due - self._clock())
                with trio.move_on_after(wait_s):
                    await self._changed.wait()
                self._changed = trio.Event()

    async def _tick(self) -> None:
        while True:
            await trio.sleep(TICK_S)
            self._publish(self._book.expire(self._clock()))

    async def _probe(self, target: ProbeTarget) -> None:
        self.sent += 1
        prober = self._probers.get(target.policy.type)
        if prober is None:
            result = ProbeResult(is_ok=False, detail=f"no prober is installed for type {target.policy.type}")
        else:
            result = await _ask(prober, target)
        now = self._clock()
        service, endpoint = target.service, target.endpoint.key
        log.debug(
            "probed",
            extra={"service": service, "endpoint": endpoint, "ok": result.is_ok, "detail": result.detail},
        )
        if self._schedule.finish(target, now=now):
            self._publish(self._book.record_probe(service, endpoint, result, now=now))
        self._changed.set()


async def _ask(prober: Prober, target: ProbeTarget) -> ProbeResult:
    """Return the prober's answer; a prober that breaks its promise not to raise fails this probe alone."""
    try:
        return await prober.probe(target.endpoint, target.policy, target.tls)
    except Exception as error:
        log.exception("prober raised", extra={"endpoint": target.endpoint.key})
        return ProbeResult(is_ok=False, detail=f"prober raised {type(error).__name__}")
