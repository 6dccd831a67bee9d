"""The `/metrics` page: asks the workers for what they have not told yet, adds what the supervisor knows."""

from __future__ import annotations

import collections
import functools
import logging
import os
import time
from collections.abc import Callable, Iterable

import trio

import datum_router
from datum_router.compiler.diagnostics import Diagnostic
from datum_router.health.active import HealthState
from datum_router.health.outlier import BreakerState
from datum_router.health.view import EndpointStatus, HealthBook
from datum_router.observe import names
from datum_router.observe.cells import CellKey
from datum_router.observe.names import Metric
from datum_router_runtime.admin import Text
from datum_router_runtime.exposition import CONTENT_TYPE, render
from datum_router_runtime.feed import Feed
from datum_router_runtime.logsetup import dropped_lines
from datum_router_runtime.probes import ProbeRunner
from datum_router_runtime.procfs import CpuClock, ProcessUse, read_process
from datum_router_runtime.workerlink import WorkerLink
from datum_router_runtime.workers import Supervisor

log = logging.getLogger(__name__)

MEASURE_TIMEOUT_S = 0.5
"""How long a scrape waits for workers; those that are late are shown as they last reported, and counted."""

EXPIRE_INTERVAL_S = 10.0
"""How often series of deleted objects are looked for."""

_LAG_STATS = {"loop_lag_ms_max": 0.001}
"""The data plane's gauges of loop lag, and what makes them seconds."""


class Telemetry:
    """Everything that is shown to Prometheus, and nothing else knows of it."""

    def __init__(
        self,
        supervisor: Supervisor,
        *,
        book: HealthBook,
        feed: Feed,
        probes: ProbeRunner,
        diagnostics: Callable[[], Iterable[Diagnostic]],
        more: Callable[[], Iterable[tuple[CellKey, float]]] = tuple,
    ) -> None:
        self._supervisor = supervisor
        self._book = book
        self._feed = feed
        self._probes = probes
        self._diagnostics = diagnostics
        self._more = more
        self._cpu = CpuClock()
        self._started_at = time.monotonic()

    async def run(self) -> None:
        """Drop series of deleted objects, until cancelled."""
        while True:
            await trio.sleep(EXPIRE_INTERVAL_S)
            self.expire(time.monotonic())

    def expire(self, now: float) -> None:
        """Drop series of objects that are gone and have been quiet for long enough."""
        data = self._supervisor.data
        if data is not None:
            egresses = [] if data.egress is None else [rule.name for rule in data.egress.rules]
            services = {f"egress:{name}" for name in egresses}
            self._supervisor.ledger.expire(
                routes={rule.route for rule in data.rules} | services,
                services=data.services.keys() | services,
                listeners={listener.name for listener in data.listeners},
                egresses=egresses,
                now=now,
            )

    async def page(self) -> tuple[int, Text]:
        """Return the page; everything that had ended before the call is in it."""
        ledger = self._supervisor.ledger
        late = await self._supervisor.measure(timeout_s=MEASURE_TIMEOUT_S)
        ledger.add(names.SCRAPES)
        if late:
            ledger.add(names.LATE_REPORTS, late)
            log.warning("workers did not report in time for a scrape", extra={"workers": late})
        use = await trio.to_thread.run_sync(functools.partial(_read_all, self._processes()))
        values: dict[CellKey, float] = dict(ledger.counters())
        for key, value in self._own(use).items():
            values[key] = values.get(key, 0) + value
        return 200, Text(body=render(values, ledger.routes()), content_type=CONTENT_TYPE)

    # --- what is known -----------------------------------------------------------------------------------------------

    def _processes(self) -> dict[str, int]:
        workers = {f"worker-{index}": link.pid for index, link in sorted(self._supervisor.links.items())}
        return {"supervisor": os.getpid(), **workers}

    def _own(self, use: dict[str, tuple[int, ProcessUse]]) -> dict[CellKey, float]:
        """Return gauges, and what the supervisor's side counts itself."""
        values: collections.defaultdict[CellKey, float] = collections.defaultdict(int)

        def put(metric: Metric, value: float, *labels: str) -> None:
            values[(metric.name, labels)] = value

        supervisor = self._supervisor
        now = time.monotonic()
        data = supervisor.data
        put(names.BUILD_INFO, 1, datum_router.__version__)
        put(names.UPTIME, round(now - self._started_at, 3))
        put(names.CONFIG_VERSION, data.version if data is not None else 0)
        put(names.ROUTES, len({rule.route for rule in data.rules}) if data is not None else 0)
        put(names.SERVICES, len(data.services) if data is not None else 0)
        put(names.CONFIG_RELOADED_AT, round(self._feed.succeeded_at, 3))
        put(names.CONFIG_FAILURES, self._feed.failures + self._feed.faulty)
        put(names.LOG_DROPPED, dropped_lines())
        put(names.COMPILE_LAST, self._feed.last_s)
        put(names.COMPILATIONS, self._feed.compilations)
        put(names.COMPILE_SECONDS, self._feed.total_s)
        put(names.PROBES, self._probes.sent)
        put(names.WORKERS, supervisor.settings.workers)
        put(names.WORKERS_UP, len({link.index for link in supervisor.living() if link.is_up}))
        put(names.WORKERS_LAGGING, supervisor.lagging_workers())
        put(names.FOLDED, supervisor.ledger.folded)
        values.update(self._more())
        for severity in names.SEVERITY.values:
            put(names.DIAGNOSTICS, 0, severity)
        for diagnostic in self._diagnostics():
            values[(names.DIAGNOSTICS.name, (str(diagnostic.severity),))] += 1
        for role, (pid, found) in use.items():
            put(names.CPU, round(self._cpu.total_s(role, pid, found.cpu_s), 3), role)
            put(names.RSS, found.rss_bytes, role)
            put(names.FDS, found.open_fds, role)
            put(names.MAX_FDS, found.max_fds, role)
        for link in supervisor.living():  # a worker that is being replaced counts with its successor
            self._worker(values, f"worker-{link.index}", link, now)
        self._endpoints(values, now)
        return values

    def _worker(self, values: collections.defaultdict[CellKey, float], role: str, link: WorkerLink, now: float) -> None:
        for cell, value in link.cells.items():
            key = self._supervisor.ledger.fold(cell, now=now)
            if key is not None:
                values[key] += value
        if "tasks" in link.gauges:
            values[(names.LOOP_TASKS.name, (role,))] += link.gauges["tasks"]
        for name, scale in _LAG_STATS.items():
            if name in link.gauges:
                key = (names.LOOP_LAG.name, (role,))
                values[key] = max(values[key], link.gauges[name] * scale)

    def _endpoints(self, values: collections.defaultdict[CellKey, float], now: float) -> None:
        for service, statuses in self._book.describe(now=now).items():
            counts = collections.Counter(_state_of(status) for status in statuses)
            for state in names.ENDPOINT_STATES:
                key = self._supervisor.ledger.fold((names.ENDPOINTS.name, (service, state)), now=now)
                assert key is not None  # a name of ours
                values[key] += counts[state]
            breakers = collections.Counter(status.breaker for status in statuses)
            for breaker in BreakerState:
                key = self._supervisor.ledger.fold((names.BREAKERS.name, (service, breaker.value)), now=now)
                assert key is not None  # a name of ours
                values[key] += breakers[breaker]


def _state_of(status: EndpointStatus) -> str:
    if status.breaker is not BreakerState.CLOSED:
        return "ejected"
    if status.state is HealthState.HEALTHY:
        return "healthy"
    return "unhealthy" if status.state is HealthState.UNHEALTHY else "unknown"


def _read_all(processes: dict[str, int]) -> dict[str, tuple[int, ProcessUse]]:
    found = ((role, pid, read_process(pid)) for role, pid in processes.items())
    return {role: (pid, use) for role, pid, use in found if use is not None}
