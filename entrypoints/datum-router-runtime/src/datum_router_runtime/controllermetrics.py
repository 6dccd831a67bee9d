"""The `/metrics` page of a controller."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable

import trio

import datum_router
from datum_router.compiler.compiler import CompileResult
from datum_router.compiler.diagnostics import count_by_severity
from datum_router.observe import names
from datum_router.observe.cells import CellKey
from datum_router.observe.names import Metric
from datum_router.plugins.cluster import Cluster
from datum_router_runtime.admin import Text
from datum_router_runtime.exposition import CONTENT_TYPE, render
from datum_router_runtime.feed import Feed
from datum_router_runtime.leader import Leader
from datum_router_runtime.logsetup import dropped_lines
from datum_router_runtime.procfs import CpuClock, read_process
from datum_router_runtime.sourcemetrics import source_values
from datum_router_runtime.status import StatusWriter

PROCESS = "controller"
"""Value of the label `process`."""


class ControllerMetrics:
    """Everything of a controller that is shown to Prometheus."""

    def __init__(
        self,
        *,
        feed: Feed,
        leader: Leader,
        writer: StatusWriter,
        cluster: Cluster,
        result: Callable[[], CompileResult | None],
    ) -> None:
        """Take what is shown.

        Args:
            result: Returns what was compiled last.
        """
        self._feed = feed
        self._leader = leader
        self._writer = writer
        self._cluster = cluster
        self._result = result
        self._cpu = CpuClock()
        self._started_at = time.monotonic()
        self._scrapes = 0

    @property
    def uptime_s(self) -> float:
        """Return for how long this process has been there, in seconds."""
        return time.monotonic() - self._started_at

    async def page(self) -> tuple[int, Text]:
        """Return the page."""
        self._scrapes += 1
        use = await trio.to_thread.run_sync(read_process, os.getpid())
        values = dict(self._values())
        if use is not None:
            cpu_s = self._cpu.total_s(PROCESS, os.getpid(), use.cpu_s)
            for metric, value in (
                (names.CPU, round(cpu_s, 3)),
                (names.RSS, use.rss_bytes),
                (names.FDS, use.open_fds),
                (names.MAX_FDS, use.max_fds),
            ):
                values[(metric.name, (PROCESS,))] = value
        return 200, Text(body=render(values, metrics=names.CONTROLLER_METRICS), content_type=CONTENT_TYPE)

    def _values(self) -> Iterable[tuple[CellKey, float]]:
        feed, leader, writer = self._feed, self._leader, self._writer
        result = self._result()
        data = None if result is None else result.data
        counts = self._cluster.counts()
        plain: tuple[tuple[Metric, float], ...] = (
            (names.LEADING, int(leader.is_leading)),
            (names.TERMS, leader.terms),
            (names.LEASE_FAILURES, leader.failures),
            (names.GATEWAYS, len(writer.gateways)),
            (names.STATUS_LOOKS, writer.looks),
            (names.STATUS_LOOK_SECONDS, round(writer.look_s, 6)),
            (names.STATUS_QUEUE, writer.depth),
            (names.STATUS_FAILING, writer.failing),
            (names.EVENTS, writer.events),
            (names.EVENT_ERRORS, writer.event_errors),
            (names.CLUSTER_WRITES, counts.writes),
            (names.CLUSTER_WRITES_DELAYED, counts.writes_delayed),
            (names.CONFIG_VERSION, 0 if data is None else data.version),
            (names.CONFIG_RELOADED_AT, round(feed.succeeded_at, 3)),
            (names.CONFIG_FAILURES, feed.failures + feed.faulty),
            (names.COMPILATIONS, feed.compilations),
            (names.COMPILE_SECONDS, feed.total_s),
            (names.COMPILE_LAST, feed.last_s),
            (names.ROUTES, 0 if data is None else len({rule.route for rule in data.rules})),
            (names.SERVICES, 0 if data is None else len(data.services)),
            (names.UPTIME, round(self.uptime_s, 3)),
            (names.LOG_DROPPED, dropped_lines()),
            (names.SCRAPES, self._scrapes),
        )
        for metric, value in plain:
            yield (metric.name, ()), value
        yield from source_values(feed)
        yield (names.BUILD_INFO.name, (datum_router.__version__,)), 1
        severities = count_by_severity(() if result is None else result.diagnostics)
        for severity in names.SEVERITY.values:
            yield (names.DIAGNOSTICS.name, (severity,)), severities.get(severity, 0)
        census = writer.census()
        for kind in names.KIND.values:
            yield (names.OBJECTS.name, (kind,)), census.objects[kind]
            yield (names.STATUS_WRITES.name, (kind,)), writer.writes[kind]
        for condition, count in census.conditions.items():
            yield (names.OBJECT_CONDITIONS.name, condition), count
        for error, count in writer.errors.items():
            yield (names.STATUS_WRITE_ERRORS.name, error), count
