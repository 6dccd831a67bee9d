"""The worker's side of telemetry: what the data plane tells is gathered here until the next report."""

from __future__ import annotations

import collections
import logging
from collections.abc import Iterable, Mapping
from typing import assert_never

import trio

from datum_router.health.trial import TrialVerdict
from datum_router.health.view import OutcomeBatch
from datum_router.model.endpoint import EndpointKey
from datum_router.model.outcome import Outcome, OutcomeClass
from datum_router.model.service import ServiceKey
from datum_router.observe import names
from datum_router.observe.cells import Cell, CellKey
from datum_router.observe.events import RequestEnded
from datum_router.observe.meter import MeterBook, RequestMeter
from datum_router.policy.plugin_guard import PluginEvent, PluginEventKind
from datum_router.reasons import Reason
from datum_router_runtime.ipc import Report
from datum_router_runtime.logsetup import ACCESS_LOGGER

log = logging.getLogger(__name__)
access_log = logging.getLogger(ACCESS_LOGGER)

MAX_PENDING_RUNS = 65536
"""Runs of outcomes of one endpoint kept between reports; what is beyond is counted, but health does not see it."""


class Reporter:
    """The data plane's observer. Single-threaded.

    Attributes:
        meters: What counts requests.
    """

    __slots__ = ("_attempts", "_counters", "_gauges", "_has_access_log", "_runs", "_trials", "_urgent", "meters")

    def __init__(self, *, has_access_log: bool) -> None:
        self.meters = MeterBook()
        self._counters: collections.defaultdict[CellKey, float] = collections.defaultdict(float)
        self._attempts: collections.Counter[tuple[ServiceKey, int]] = collections.Counter()
        self._gauges: dict[CellKey, float] = {}
        self._runs: dict[tuple[ServiceKey, EndpointKey], list[list[int]]] = {}
        self._trials: list[TrialVerdict] = []
        self._urgent = trio.Event()
        self._has_access_log = has_access_log

    # --- plugins.protocols.DataPlaneObserver -----------------------------------------------------------------------

    @property
    def wants_events(self) -> bool:
        """Tell whether there is an access log."""
        return self._has_access_log

    def meter(self, *, protocol: str, route: str, service: str) -> RequestMeter:
        """Return what counts the requests of these."""
        return self.meters.meter(protocol, route, service)

    def attempt_ended(self, outcome: Outcome) -> None:
        """Take one outcome; a failure makes the next report go at once."""
        kind = outcome.outcome_class
        if outcome.reason is not Reason.ROUTED:
            self._counters[(names.ATTEMPT_FAILURES.name, (outcome.service, outcome.reason.value))] += 1
        if kind is None:
            self._attempts[(outcome.service, -1)] += 1
            return
        runs = self._runs.setdefault((outcome.service, outcome.endpoint), [])
        if runs and runs[-1][0] == kind:
            runs[-1][1] += 1
        elif len(runs) < MAX_PENDING_RUNS:
            runs.append([int(kind), 1])
        else:
            self._attempts[(outcome.service, int(kind))] += 1
            self._counters[(names.OUTCOMES_DROPPED.name, ())] += 1
        if kind is not OutcomeClass.SUCCESS:
            self._urgent.set()

    def attempt_answered(self, service: ServiceKey, endpoint: EndpointKey, status: int) -> None:
        """Take an attempt that was answered; a further success costs a look-up and an addition."""
        if status < 500:
            runs = self._runs.get((service, endpoint))
            if runs and not runs[-1][0]:  # OutcomeClass.SUCCESS
                runs[-1][1] += 1
                return
        self.attempt_ended(Outcome(service=service, endpoint=endpoint, status=status, is_sent=True))

    def request_reason(self, protocol: str, reason: Reason) -> None:
        """Count why a request did not end as routed."""
        self._counters[(names.REASONS.name, (protocol, reason.value))] += 1

    def request_ended(self, event: RequestEnded) -> None:
        """Write the request's access-log line."""
        if self._has_access_log:
            access_log.info(
                "request",
                extra={
                    "protocol": event.protocol,
                    "listener": event.listener,
                    "method": event.method,
                    "host": event.host,
                    "path": event.path,
                    "status": event.status,
                    "reason": str(event.reason),
                    "route": event.route,
                    "rule": event.rule,
                    "service": event.service,
                    "endpoint": event.endpoint,
                    "attempts": event.attempts,
                    "bytes_in": event.bytes_in,
                    "bytes_out": event.bytes_out,
                    "duration_ms": round(event.duration_s * 1000, 3),
                    "client_ip": event.client_ip,
                    "request_id": event.request_id,
                },
            )

    def rejected(self, protocol: str, reason: Reason) -> None:
        """Count one refusal."""
        self._counters[(names.REJECTED.name, (protocol, reason.value))] += 1

    def trial_ended(self, verdict: TrialVerdict) -> None:
        """Take what a trial has told; the next report goes at once. At most one comes for each permit."""
        self._trials.append(verdict)
        self._urgent.set()

    # --- the linker's listener -----------------------------------------------------------------------------------

    def plugin_event(self, event: PluginEvent) -> None:
        """Count what happened to a part of a plugin and log it; a failed call is logged by who has its request."""
        part = event.part
        labels = (part.plugin, str(part.hook))
        said = {"plugin": part.plugin, "part": str(part), "seconds": round(event.seconds, 3)}
        match event.kind:
            case PluginEventKind.FAILED:
                self._counters[(names.PLUGIN_FAILURES.name, labels)] += 1
            case PluginEventKind.SLOW:
                self._counters[(names.PLUGIN_FAILURES.name, labels)] += 1
                log.warning("plugin blocked the loop", extra=said)
            case PluginEventKind.DISABLED:
                self._counters[(names.PLUGIN_DISABLED.name, labels)] += 1
                log.error("plugin disabled", extra=said)
            case PluginEventKind.ENABLED:
                log.warning("plugin enabled again", extra=said)
            case _:
                assert_never(event.kind)

    # --- reports ---------------------------------------------------------------------------------------------------

    async def wait_urgent(self) -> None:
        """Return when a failure or a verdict waits to be reported."""
        await self._urgent.wait()

    def take(self, stats: Mapping[str, int], *, cells: Iterable[Cell] | None = None, answers: int = 0) -> Report:
        """Return everything gathered and begin anew; only what has changed is in it.

        Args:
            cells: What data plane and linker say of themselves; None if they were not asked this time.
            answers: The newest `Measure` that this report is for.
        """
        outcomes = tuple(
            OutcomeBatch(
                service=service,
                endpoint=endpoint,
                runs=tuple((OutcomeClass(kind), count) for kind, count in runs),
            )
            for (service, endpoint), runs in self._runs.items()
        )
        for (service, _endpoint), runs in self._runs.items():
            for kind, count in runs:
                self._attempts[(service, kind)] += count
        for (service, kind), count in self._attempts.items():
            self._counters[(names.ATTEMPTS.name, (service, names.OUTCOMES[kind]))] += count
        gauges, gone = ((), ()) if cells is None else self._sort(cells)
        report = Report(
            meters=self.meters.take(),
            counters=tuple(Cell(metric, labels, count) for (metric, labels), count in self._counters.items()),
            gauges=gauges,
            gone=gone,
            stats=dict(stats),
            outcomes=outcomes,
            trials=tuple(self._trials),
            answers=answers,
        )
        self._counters.clear()
        self._attempts.clear()
        self._runs.clear()
        self._trials.clear()
        self._urgent = trio.Event()
        return report

    def _sort(self, cells: Iterable[Cell]) -> tuple[tuple[Cell, ...], tuple[CellKey, ...]]:
        """Add counters to what is gathered; return the gauges that changed and the keys of those that are gone."""
        now: dict[CellKey, float] = {}
        for cell in cells:
            metric = names.METRICS.get(cell.metric)
            if metric is not None and metric.kind is names.Kind.GAUGE:
                now[cell.key] = cell.value
            elif cell.value:
                self._counters[cell.key] += cell.value
        before = self._gauges
        self._gauges = now
        changed = tuple(Cell(*key, value) for key, value in now.items() if before.get(key) != value)
        return changed, tuple(key for key in before if key not in now)
