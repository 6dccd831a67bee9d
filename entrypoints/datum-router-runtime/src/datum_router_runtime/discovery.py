"""Run a discovery daemon: of several, the one that leads reads remote clusters and publishes what they export.

Those that stand by read nothing but the lease; one that begins to lead takes up what is published.
"""

from __future__ import annotations

import gc
import logging
import os
import random
import signal
import time
from collections import Counter
from collections.abc import Iterable

import msgspec
import trio

import datum_router
from datum_router.discovery.standing import Phase, time_text
from datum_router.observe import names
from datum_router.observe.cells import CellKey
from datum_router.plugins.manager import PluginSet
from datum_router.plugins.protocols import Source
from datum_router_runtime.admin import Page, Text
from datum_router_runtime.controller import unique_identity
from datum_router_runtime.discoverysettings import DiscoverySettings
from datum_router_runtime.discoveryterm import ClusterState, Term
from datum_router_runtime.exposition import CONTENT_TYPE, render
from datum_router_runtime.leader import Leader
from datum_router_runtime.localreader import local_kinds
from datum_router_runtime.logsetup import dropped_lines
from datum_router_runtime.process import (
    COLLECTION_OBJECTS,
    default_identity,
    load,
    make_cluster,
    make_source,
    open_pages,
)
from datum_router_runtime.procfs import CpuClock, read_process
from datum_router_runtime.remote import remote_plugins, with_kinds
from datum_router_runtime.settings import Address

log = logging.getLogger(__name__)

PROCESS = "discovery"
"""Value of the label `process`."""
REMOTE_ROLE = "remote"
"""What the kubernetes source is asked for of a remote cluster."""
SOME_KUBECONFIG = """\
{"current-context": "x", "contexts": [{"name": "x", "context": {"cluster": "x", "user": "x"}}],
 "clusters": [{"name": "x", "cluster": {"server": "https://example.invalid"}}],
 "users": [{"name": "x", "user": {"token": "none"}}]}
"""
"""A kubeconfig that nothing is wrong with: by it settings for remote clusters are checked before there are any."""


class Discovery:
    """One discovery process.

    Attributes:
        addresses: Where its listeners are, by name, once `run` has started.
        term: The present term of leading, or the last one; None before the first.
    """

    def __init__(self, settings: DiscoverySettings, *, plugins: PluginSet | None = None) -> None:
        """Make what runs; nothing is read or written yet.

        Raises:
            ConfigError: A plugin is not installed, or refuses its settings.
        """
        self.settings = settings
        self.plugins = plugins or load(settings.disabled_plugins, os.environ)
        self._make_local()  # refuses bad settings at once
        if settings.remote_config:
            self._make_remote(SOME_KUBECONFIG)
        self.cluster = make_cluster(settings.cluster, settings.source_config, self.plugins, settings.disabled_plugins)
        self.identity = unique_identity(settings.identity or default_identity(os.environ))
        self.leader = Leader(self.cluster, identity=self.identity, lease=settings.lease, rng=random.Random())
        self.term: Term | None = None
        self.addresses: dict[str, Address] = {}
        self.writes: Counter[str] = Counter()
        self.errors: Counter[str] = Counter()
        self.report_writes: Counter[str] = Counter()
        self.report_errors: Counter[str] = Counter()
        self.remote_counts: Counter[str] = Counter()
        self._cpu = CpuClock()
        self._started_at = time.monotonic()
        self._scrapes = 0

    def _make_local(self) -> Source:
        settings = self.settings
        narrow = local_kinds(self.plugins.kinds)
        return make_source(
            settings.source, settings.source_config, with_kinds(self.plugins, narrow), settings.disabled_plugins
        )

    def _make_remote(self, text: str) -> Source:
        settings = self.settings
        config = {**settings.remote_config, "role": REMOTE_ROLE, "kubeconfigText": text}
        return make_source(settings.source, config, remote_plugins(self.plugins), settings.disabled_plugins)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Run until SIGTERM or SIGINT; then writes that are under way are cut, and the lease is let go of.

        Raises:
            ConfigError: An address of the admin, probes or metrics listener cannot be bound.
        """
        settings = self.settings
        opened = await open_pages(self.pages(), admin=settings.admin, probes=settings.probes, metrics=settings.metrics)
        async with trio.open_nursery() as nursery:
            for one in opened:
                self.addresses[one.name] = one.address
                nursery.start_soon(one.serve)
            nursery.start_soon(self._signals, nursery.cancel_scope)
            nursery.start_soon(self.leader.run, self._lead)
            log.info("discovery started", extra={"identity": self.identity, "lease": settings.lease})
            task_status.started()
        log.info("discovery ended", extra={"identity": self.identity})

    async def _lead(self) -> None:
        self.term = Term(
            self.settings,
            self.plugins,
            self.cluster,
            local=self._make_local(),
            make_remote=self._make_remote,
            is_leading=lambda: self.leader.is_leading,
            writes=self.writes,
            errors=self.errors,
            report_writes=self.report_writes,
            report_errors=self.report_errors,
            remote_counts=self.remote_counts,
        )
        await self.term.run()

    async def _signals(self, scope: trio.CancelScope) -> None:
        with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as received:
            async for number in received:
                log.info("signal received", extra={"signal": signal.Signals(number).name})
                scope.cancel()  # a second signal has its usual effect by then
                return

    # --- pages -------------------------------------------------------------------------------------------------------

    def pages(self) -> dict[str, Page]:
        """Return the admin pages by path."""
        return {
            "/healthz": self._healthz,
            "/readyz": self._readyz,
            "/clusters": lambda: (200, [_shown(one) for one in self._states()]),
            "/plugins": lambda: (200, list(self.plugins.plugins)),
            "/stats": self._stats,
            "/metrics": self._metrics,
        }

    def _states(self) -> list[ClusterState]:
        return [] if self.term is None else self.term.states()

    def _healthz(self) -> tuple[int, object]:
        if self.leader.is_stuck:
            return 503, {"status": "nothing is done about the lease any more"}
        return 200, {"status": "alive"}

    def _readyz(self) -> tuple[int, object]:
        """Return whether it could lead or does so; a remote cluster that is away is no reason not to be ready."""
        reader = None if self.term is None else self.term.reader
        if self.leader.is_leading and (reader is None or not reader.is_synced):
            reasons = ["the own cluster has not been read yet"]
            reasons += [] if reader is None else list(reader.complaints.values())
            return 503, {"ready": False, "reasons": reasons}
        return 200, {"ready": True}

    def _stats(self) -> tuple[int, object]:
        book = None if self.term is None else self.term.book
        return 200, {
            "uptime_s": round(time.monotonic() - self._started_at, 3),
            "identity": self.identity,
            "is_leading": self.leader.is_leading,
            "holder": self.leader.holder,
            "terms": self.leader.terms,
            "lease_failures": self.leader.failures,
            "imports": 0 if book is None else len(list(book.imports)),
            "planned": 0 if book is None else book.counts.planned,
            "writes": dict(self.writes),
            "write_errors": dict(self.errors),
            "report_writes": dict(self.report_writes),
            "report_write_errors": dict(self.report_errors),
            "failing": 0 if self.term is None else self.term.failing,
            "cluster": self.cluster.counts(),
        }

    async def _metrics(self) -> tuple[int, Text]:
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
        return 200, Text(body=render(values, metrics=names.DISCOVERY_METRICS), content_type=CONTENT_TYPE)

    def _values(self) -> Iterable[tuple[CellKey, float]]:
        term, counts, states = self.term, self.cluster.counts(), self._states()
        published = [] if term is None else term.book.published()
        for metric, value in (
            (names.LEADING, int(self.leader.is_leading)),
            (names.TERMS, self.leader.terms),
            (names.LEASE_FAILURES, self.leader.failures),
            (names.IMPORTS, 0 if term is None else len(list(term.book.imports))),
            (names.EXPORTS, sum(one.exports for one in states)),
            (names.SLICES, len(published)),
            (names.STALE_SLICES, sum(1 for one in published if one.stale_since)),
            (names.SLICES_FAILING, 0 if term is None else term.failing),
            (names.CLUSTER_CONFLICTS, sum(one.conflicts for one in states)),
            (names.SLICE_WRITE_ERRORS, self.errors.total()),
            (names.CLUSTER_REPORT_ERRORS, self.report_errors.total()),
            (names.REMOTE_EVENTS, self.remote_counts["events"]),
            (names.REMOTE_ERRORS, self.remote_counts["errors"]),
            (names.REMOTE_PACED, round(self.remote_counts["paced_seconds"], 3)),
            (names.CLUSTER_WRITES, counts.writes),
            (names.CLUSTER_WRITES_DELAYED, counts.writes_delayed),
            (names.UPTIME, round(time.monotonic() - self._started_at, 3)),
            (names.LOG_DROPPED, dropped_lines()),
            (names.SCRAPES, self._scrapes),
        ):
            yield (metric.name, ()), value
        yield (names.BUILD_INFO.name, (datum_router.__version__,)), 1
        for phase in Phase:
            count = sum(1 for one in states if one.phase is phase)
            yield (names.REMOTE_CLUSTERS.name, (phase.value,)), count
        for act in names.SLICE_ACT.values:
            yield (names.SLICE_WRITES.name, (act,)), self.writes[act]
            yield (names.CLUSTER_REPORT_WRITES.name, (act,)), self.report_writes[act]


def _shown(one: ClusterState) -> dict[str, object]:
    """Return a cluster with its conditions, as the page shows it; one without a Secret has no conditions any more."""
    return {
        "name": one.name,
        "phase": one.phase.value,
        "reason": str(one.reason),
        "message": one.message,
        "since": time_text(one.since_at),
        "services": one.exports,
        "slices": one.slices,
        "id": "" if one.report is None else one.report.id,
        "conditions": [] if one.report is None else msgspec.to_builtins(one.report.conditions),
    }


def run_discovery(settings: DiscoverySettings) -> None:
    """Run a discovery daemon in this thread until it is told to end.

    Raises:
        ConfigError: Settings that cannot work: unknown plugin, an address that cannot be bound.
    """
    daemon = Discovery(settings)
    gc.set_threshold(COLLECTION_OBJECTS)
    trio.run(daemon.run)
