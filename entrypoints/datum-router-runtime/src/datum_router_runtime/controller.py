"""Run a controller: read, compile to find out what is wrong, and write what every object's status ought to say.

It serves no traffic and holds no secrets: it has no right to read any, and compiles without them. Several of them run;
one leads and writes.
"""

from __future__ import annotations

import gc
import logging
import os
import random
import secrets
import signal
from collections.abc import Sequence

import trio

from datum_router.compiler.compiler import CompileOptions, Compiler, CompileResult
from datum_router.compiler.diagnostics import Diagnostic, count_by_severity
from datum_router.manifests.meta import ObjectKey
from datum_router.plugins.manager import PluginSet
from datum_router.registry.store import Store
from datum_router.routing.regex import load_engine
from datum_router_runtime.admin import Page
from datum_router_runtime.controllermetrics import ControllerMetrics
from datum_router_runtime.feed import Feed
from datum_router_runtime.leader import Leader
from datum_router_runtime.process import (
    COLLECTION_OBJECTS,
    DiagnosticLog,
    default_identity,
    load,
    make_cluster,
    make_source,
    open_pages,
    readiness,
)
from datum_router_runtime.settings import Address, ControllerSettings
from datum_router_runtime.sourcemetrics import start_shares
from datum_router_runtime.status import StatusWriter

log = logging.getLogger(__name__)


def unique_identity(identity: str) -> str:
    """Return an identity that no other process has, whatever two of them are called."""
    return f"{identity}_{secrets.token_hex(4)}"


class Controller:
    """One controller process.

    Attributes:
        addresses: Where its listeners are, by name, once `run` has started.
    """

    def __init__(self, settings: ControllerSettings, *, plugins: PluginSet | None = None) -> None:
        """Make what runs; nothing is read or written yet.

        Raises:
            ConfigError: A plugin is not installed, or refuses its settings.
        """
        self.settings = settings
        self.plugins = plugins or load(settings.disabled_plugins, os.environ)
        options = (settings.source_config, self.plugins, settings.disabled_plugins)
        source = make_source(settings.source, *options)
        self.cluster = make_cluster(settings.cluster, *options)
        self.identity = unique_identity(settings.identity or default_identity(os.environ))
        rng = random.Random()
        self.leader = Leader(self.cluster, identity=self.identity, lease=settings.lease, rng=rng)
        self.writer = StatusWriter(
            self.cluster,
            self.plugins.kinds,
            is_leading=lambda: self.leader.is_leading,
            rng=rng,
            settle_s=settings.settle_s,
            concurrency=settings.concurrent_writes,
        )
        seen: set[ObjectKey] = set()
        self.feed = Feed(
            sources={settings.source: source},
            store=Store(self.plugins.kinds, seen=seen),
            compiler=Compiler(self.plugins, CompileOptions(regex=load_engine(), are_credentials_known=False)),
            publish=self._publish,
            debounce_s=settings.debounce_s,
            debounce_max_s=settings.debounce_max_s,
            seen=seen,
            observe=self.writer.observe,
        )
        self.addresses: dict[str, Address] = {}
        self._result: CompileResult | None = None
        self._diagnostic_log = DiagnosticLog()
        self._metrics = ControllerMetrics(
            feed=self.feed,
            leader=self.leader,
            writer=self.writer,
            cluster=self.cluster,
            result=lambda: self._result,
        )

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
            nursery.start_soon(self.feed.run)
            nursery.start_soon(self.leader.run, self.writer.run)
            log.info("controller started", extra={"identity": self.identity, "lease": settings.lease})
            task_status.started()
        log.info("controller ended", extra={"identity": self.identity})

    async def _signals(self, scope: trio.CancelScope) -> None:
        with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as received:
            async for number in received:
                log.info("signal received", extra={"signal": signal.Signals(number).name})
                scope.cancel()  # a second signal has its usual effect by then
                return

    def _publish(self, result: CompileResult) -> None:
        self._result = result
        self._diagnostic_log.take(result.diagnostics)

    # --- pages -------------------------------------------------------------------------------------------------------

    def pages(self) -> dict[str, Page]:
        """Return the admin pages by path."""
        return {
            "/healthz": self._healthz,
            "/readyz": self._readyz,
            "/diagnostics": lambda: (200, list(self._diagnostics())),
            "/plugins": lambda: (200, list(self.plugins.plugins)),
            "/stats": self._stats,
            "/metrics": self._metrics.page,
        }

    def _healthz(self) -> tuple[int, object]:
        if self.leader.is_stuck:
            return 503, {"status": "nothing is done about the lease any more"}
        return 200, {"status": "alive"}

    def _readyz(self) -> tuple[int, object]:
        """Return whether statuses could be written; one that stands by is ready, too."""
        reasons = []
        if not self.feed.synced:
            reasons.append("the source has not said yet all that it knows")
        elif self._result is None:
            reasons.append("nothing has been compiled yet")
        return readiness(reasons, self.feed.complaints)

    def _diagnostics(self) -> Sequence[Diagnostic]:
        return () if self._result is None else self._result.diagnostics

    def _stats(self) -> tuple[int, object]:
        writer, leader = self.writer, self.leader
        data = None if self._result is None else self._result.data
        return 200, {
            "uptime_s": round(self._metrics.uptime_s, 3),
            "identity": self.identity,
            "is_leading": leader.is_leading,
            "holder": leader.holder,
            "terms": leader.terms,
            "lease_failures": leader.failures,
            "gateways": list(writer.gateways),
            "objects": dict(writer.census().objects),
            "version": 0 if data is None else data.version,
            "digest": "" if data is None else data.digest,
            "diagnostics": count_by_severity(self._diagnostics()),
            "queue": writer.depth,
            "failing": writer.failing,
            "looks": writer.looks,
            "writes": dict(writer.writes),
            "write_errors": {f"{kind}/{error}": count for (kind, error), count in sorted(writer.errors.items())},
            "events": writer.events,
            "event_errors": writer.event_errors,
            "compile_failures": self.feed.failures,
            "start": start_shares(self.feed),
            "cluster": self.cluster.counts(),
        }


def run_controller(settings: ControllerSettings) -> None:
    """Run a controller in this thread until it is told to end.

    Raises:
        ConfigError: Settings that cannot work: unknown plugin, an address that cannot be bound.
    """
    controller = Controller(settings)
    gc.set_threshold(COLLECTION_OBJECTS)
    trio.run(controller.run)
