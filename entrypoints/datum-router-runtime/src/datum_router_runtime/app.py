"""Run a gateway: sources, compiler, supervisor, probes, admin and signals, started and stopped in order."""

from __future__ import annotations

import gc
import logging
import os
import random
import signal
import time
from collections.abc import Iterable, Sequence

import msgspec
import trio

from datum_router.compiler.compiler import CompileOptions, Compiler, CompileResult
from datum_router.compiler.diagnostics import Diagnostic, count_by_severity
from datum_router.compiler.diff import without_secrets
from datum_router.compiler.expiry import ExpiryBook, expiry_diagnostics
from datum_router.compiler.ingress import HTTP_PORT
from datum_router.errors import ConfigError
from datum_router.health.view import HealthBook
from datum_router.model.egress import EgressListener, EgressMode
from datum_router.model.listener import Listener
from datum_router.observe import names
from datum_router.observe.cells import CellKey
from datum_router.plugins.manager import PluginSet
from datum_router.reasons import Reason
from datum_router.registry.store import Store
from datum_router.routing.regex import load_engine
from datum_router_runtime.admin import Page
from datum_router_runtime.certificatemetrics import CertificateEnds
from datum_router_runtime.feed import Feed
from datum_router_runtime.gatewayreport import GatewayReporter, owners_from
from datum_router_runtime.ownfiles import own_credentials, own_sources
from datum_router_runtime.probes import ProbeRunner
from datum_router_runtime.process import (
    COLLECTION_OBJECTS,
    DiagnosticLog,
    default_identity,
    load,
    make_cluster,
    make_source,
    not_installed,
    open_pages,
    readiness,
)
from datum_router_runtime.settings import DATA_PLANE, Address, GatewaySettings
from datum_router_runtime.snapshotfile import WRITE_INTERVAL_S, SnapshotFile
from datum_router_runtime.sockets import ListenerGroup, bind_group
from datum_router_runtime.sourcemetrics import source_values, start_shares
from datum_router_runtime.telemetry import Telemetry
from datum_router_runtime.workers import Supervisor

log = logging.getLogger(__name__)

READY_POLL_S = 0.02
"""How often it is looked at whether the gateway has become ready, once, at its start."""

SNAPSHOT_PATIENCE_S = 5.0
"""How long a gateway with a last good snapshot waits for its sources before it serves that (seconds)."""

INGRESS_HOST = "0.0.0.0"
"""What listeners of VPCIngresses bind without a bind setting."""
DEFAULT_ADDRESS = Address(host="127.0.0.1", port=HTTP_PORT)
"""Where a gateway without VPCIngress, and without a listen or bind setting, serves."""


def plain_listener(address: Address) -> Listener:
    """Return the one plain listener (HTTP/1.1 and h2c) that serves all routes."""
    return Listener(name=f"plain-{address.host}-{address.port}", host=address.host, port=address.port)


def egress_listeners(settings: GatewaySettings) -> tuple[Listener, ...]:
    """Return the listeners for outbound traffic that the settings ask for."""
    asked = ((EgressMode.PROXY, settings.egress_listen), (EgressMode.TLS, settings.egress_tls_listen))
    return tuple(
        Listener(
            name=f"egress-{mode}-{address.host}-{address.port}",
            host=address.host,
            port=address.port,
            egress=EgressListener(mode=mode, source=settings.egress_source),
        )
        for mode, address in asked
        if address is not None
    )


def compile_options(settings: GatewaySettings) -> CompileOptions:
    """Return what the compiler must know of the settings."""
    fallback = plain_listener(DEFAULT_ADDRESS)
    if settings.bind:
        # Of the same name and address as that of a VPCIngress, so that the first of these takes over its sockets.
        fallback = Listener(name=f"http-{HTTP_PORT}", host=settings.bind, port=HTTP_PORT)
    return CompileOptions(
        listen=plain_listener(settings.listen) if settings.listen is not None else None,
        fallback_listener=fallback,
        egress_listeners=egress_listeners(settings),
        ingress_host=settings.bind or INGRESS_HOST,
        gateway_labels=settings.labels,
        own=own_credentials(settings),
        regex=load_engine(),
    )


def snapshot_scope(settings: GatewaySettings) -> str:
    """Return what a snapshot on disk is only good for: where its manifests came from, and where it listens."""
    config = [f"{name}={value}" for name, value in sorted(settings.source_config.items())]
    more = [f"label:{name}={value}" for name, value in sorted(settings.labels.items())]
    more += [f"egress={one.name}" for one in egress_listeners(settings)]
    return " ".join([settings.source, *config, f"listen={settings.listen or ''}", f"bind={settings.bind}", *more])


def check_data_plane(settings: GatewaySettings, plugins: PluginSet) -> None:
    """Refuse a data plane that no worker could create, before any worker is started.

    Raises:
        ConfigError: No installed plugin offers it, or it refuses its settings; says what would be right.
    """
    spec = plugins.data_planes.get(settings.data_plane)
    if spec is None:
        raise not_installed("data plane", settings.data_plane, plugins.data_planes, settings.disabled_plugins)
    if spec.validate is not None:
        given = settings.data_plane_config
        # Those with a variable of their own first, one by one, so that an error names the variable that it is about.
        asked = [(variable, {name: given[name]}) for variable, name in DATA_PLANE.items() if name in given]
        for variable, config in (*asked, ("DATUM_ROUTER_DATA_PLANE_CONFIG", given)):
            try:
                spec.validate(config)
            except ConfigError as error:
                raise ConfigError(f"{variable}: {error}", reason=error.reason) from error


def check_rate_limit_store(settings: GatewaySettings, plugins: PluginSet) -> None:
    """Refuse a store of rate limits that no worker could create.

    Raises:
        ConfigError: No installed plugin offers it, or it refuses its settings; says what would be right.
    """
    name = settings.rate_limit_store
    if not name:
        if settings.rate_limit_store_config:
            raise ConfigError(
                "DATUM_ROUTER_RATE_LIMIT_STORE_CONFIG: found settings but no DATUM_ROUTER_RATE_LIMIT_STORE, expected "
                "the name of the store that they are for",
                reason=Reason.MISSING_FIELD,
            )
        return
    spec = plugins.rate_limit_stores.get(name)
    if spec is None:
        raise not_installed("rate limit store", name, plugins.rate_limit_stores, settings.disabled_plugins)
    try:
        spec.create(settings.rate_limit_store_config)
    except ConfigError as error:
        raise ConfigError(f"DATUM_ROUTER_RATE_LIMIT_STORE_CONFIG: {error}", reason=error.reason) from error


class Announce:
    """What a gateway tells whoever started it; the command line prints it. Methods do nothing here."""

    def listening(self, group: ListenerGroup) -> None:
        """Take a listener that is bound."""

    def admin(self, address: Address) -> None:
        """Take the admin listener's address."""

    def ready(self) -> None:
        """Learn that the gateway serves: sources synced, compiled, listening."""


class Gateway:
    """One gateway process: the supervisor side."""

    def __init__(
        self,
        settings: GatewaySettings,
        *,
        plugins: PluginSet | None = None,
        announce: Announce | None = None,
    ) -> None:
        self.settings = settings
        self._announce = announce or Announce()
        self.plugins = plugins or load(settings.disabled_plugins, os.environ)
        check_data_plane(settings, self.plugins)
        check_rate_limit_store(settings, self.plugins)
        self.store = Store(self.plugins.kinds)
        self.compiler = Compiler(self.plugins, compile_options(settings))
        self.book = HealthBook(random.Random())
        self.supervisor = Supervisor(
            settings, book=self.book, plugins=self.plugins.plugins, on_listening=self._announce.listening
        )
        self.feed = Feed(
            sources={
                settings.source: make_source(
                    settings.source, settings.source_config, self.plugins, settings.disabled_plugins
                ),
                **own_sources(settings),
            },
            store=self.store,
            compiler=self.compiler,
            publish=self._publish,
            debounce_s=settings.debounce_s,
            debounce_max_s=settings.debounce_max_s,
        )
        self.probes = ProbeRunner(
            self.plugins,
            book=self.book,
            publish=self.supervisor.publish_health,
            concurrency=settings.probe_concurrency,
            clock=time.monotonic,
            settings=settings.data_plane_config,
        )
        self.telemetry = Telemetry(
            self.supervisor,
            book=self.book,
            feed=self.feed,
            probes=self.probes,
            diagnostics=self._diagnostics,
            more=self._more_values,
        )
        self.snapshot_file = (
            SnapshotFile(settings.snapshot_file, scope=snapshot_scope(settings)) if settings.snapshot_file else None
        )
        self.reporter = self._make_reporter()
        self._started_at = time.monotonic()
        self._diagnostic_log = DiagnosticLog()
        self._expiries = ExpiryBook()
        self._ends = CertificateEnds()

    def _make_reporter(self) -> GatewayReporter | None:
        settings = self.settings
        if not settings.cluster:
            return None
        return GatewayReporter(
            make_cluster(settings.cluster, settings.source_config, self.plugins, settings.disabled_plugins),
            identity=settings.identity or default_identity(os.environ),
            supervisor=self.supervisor,
            feed=self.feed,
            kinds=self.plugins.kinds,
            scope=settings.source_config,
            owners=owners_from(os.environ),
        )

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Serve until SIGTERM or SIGINT has drained everything; a second signal ends at once.

        SIGHUP replaces the workers one after another; with a terminal as input it says that the terminal is closed,
        and ends.

        Raises:
            ConfigError: An address of the admin, probes or metrics listener cannot be bound.
        """
        if self.settings.listen is not None:
            # An address that the user named must be had at once: failing now beats retrying in the background.
            self.supervisor.adopt(bind_group(plain_listener(self.settings.listen), self.settings.workers))
        settings = self.settings
        opened = await open_pages(self.pages(), admin=settings.admin, probes=settings.probes, metrics=settings.metrics)
        async with trio.open_nursery() as nursery:
            for one in opened:
                if one.name == "admin":
                    self._announce.admin(one.address)
                nursery.start_soon(one.serve)
            nursery.start_soon(self._announce_ready)
            nursery.start_soon(self._signals, nursery.cancel_scope)
            nursery.start_soon(self.feed.run)
            nursery.start_soon(self._watch_data)
            nursery.start_soon(self.probes.run)
            nursery.start_soon(self.telemetry.run)
            if self.snapshot_file is not None:
                nursery.start_soon(self._keep_snapshot, self.snapshot_file)
            if self.reporter is not None:
                nursery.start_soon(self._keep_reporting, self.reporter)
            task_status.started()
            await self.supervisor.run()
            nursery.cancel_scope.cancel()

    async def _keep_reporting(self, reporter: GatewayReporter) -> None:
        """Report until a graceful end begins: from then on this gateway must not hold anything up."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(reporter.run)
            await self.supervisor.drain_begun.wait()
            nursery.cancel_scope.cancel()

    async def _keep_snapshot(self, file: SnapshotFile) -> None:
        """Serve the last good snapshot if the sources let us wait, then keep the file in step with what is in force."""
        restored = await trio.to_thread.run_sync(file.read)
        if restored is not None:
            with trio.move_on_after(SNAPSHOT_PATIENCE_S):
                await self.supervisor.first_published.wait()
            if not self.feed.synced:  # nothing is being compiled, so versions can be counted on from this one
                log.warning(
                    "sources cannot be reached, serving the last good snapshot",
                    extra={"file": str(file.path), "age_s": round(time.time() - restored.saved_at)},
                )
                self.compiler.adopt(restored.data)
                self.supervisor.publish(CompileResult(data=restored.data))
        while True:
            changed = self.supervisor.force_changed.next
            data = self.supervisor.data
            if data is not None and self.feed.synced and not self.supervisor.lagging_workers():
                await file.save(data)
                await trio.sleep(WRITE_INTERVAL_S)
            await changed.wait()

    def _publish(self, result: CompileResult) -> None:
        expiries = self._expiries.look(result.data)
        self._diagnostic_log.take((*result.diagnostics, *expiry_diagnostics(expiries, now=time.time())))
        self.supervisor.publish(result)

    async def _announce_ready(self) -> None:
        # Readiness is a condition over several processes' states, each with its own event; a poll at start is simpler.
        while self.supervisor.not_ready_reasons():  # noqa: ASYNC110
            await trio.sleep(READY_POLL_S)
        self._announce.ready()

    async def _signals(self, scope: trio.CancelScope) -> None:
        with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT, signal.SIGHUP) as received:
            async for number in received:
                if number == signal.SIGHUP and not _has_terminal():
                    self.supervisor.replace_workers()
                    continue
                if self.supervisor.is_draining:
                    log.warning("second signal, ending at once", extra={"signal": signal.Signals(number).name})
                    scope.cancel()
                    return
                log.info("signal received", extra={"signal": signal.Signals(number).name})
                self.supervisor.drain()

    async def _watch_data(self) -> None:
        await self.supervisor.first_published.wait()
        while True:
            changed = self.supervisor.data_changed.next
            data = self.supervisor.data
            assert data is not None  # first_published says so
            self.probes.set_services(data.services)
            await changed.wait()

    def pages(self) -> dict[str, Page]:
        """Return the admin pages by path."""
        return {
            "/healthz": lambda: (200, {"status": "alive"}),
            "/readyz": self._readyz,
            "/snapshot": self._snapshot,
            "/diagnostics": lambda: (200, list(self._diagnostics())),
            "/plugins": lambda: (200, list(self.plugins.plugins)),
            "/health": self._health,
            "/stats": self._stats,
            "/metrics": self.telemetry.page,
        }

    def _readyz(self) -> tuple[int, object]:
        return readiness(self.supervisor.not_ready_reasons(), self.feed.complaints)

    def _health(self) -> tuple[int, object]:
        endpoints = [
            {"service": service, **msgspec.structs.asdict(status)}
            for service, statuses in sorted(self.book.describe(now=time.monotonic()).items())
            for status in statuses
        ]
        return 200, {"endpoints": endpoints}

    def _snapshot(self) -> tuple[int, object]:
        data = self.supervisor.data
        if data is None:
            return 503, {"error": "no configuration yet"}
        return 200, without_secrets(data)

    def _diagnostics(self) -> Sequence[Diagnostic]:
        problem, data = self.supervisor.link_problem, self.supervisor.data
        expiries = self._expiries.look(data)
        return (
            *self.supervisor.diagnostics,
            *self.supervisor.listener_problems.values(),
            *expiry_diagnostics(expiries, now=time.time()),
            *(() if problem is None else (problem,)),
        )

    def _more_values(self) -> Iterable[tuple[CellKey, float]]:
        """Yield what is counted beside serving."""
        yield from source_values(self.feed)
        yield from self._ends.values(self.supervisor.data)
        reporter, file = self.reporter, self.snapshot_file
        yield (names.REPORTS.name, ()), 0 if reporter is None else reporter.writes
        yield (names.REPORT_FAILURES.name, ()), 0 if reporter is None else reporter.failures
        yield (names.SNAPSHOT_FILE_FAILURES.name, ()), 0 if file is None else file.failures

    def _stats(self) -> tuple[int, object]:
        data = self.supervisor.data
        return 200, {
            "uptime_s": round(time.monotonic() - self._started_at, 3),
            "version": data.version if data is not None else 0,
            "digest": data.digest if data is not None else "",
            "lagging_workers": self.supervisor.lagging_workers(),
            "workers": self.supervisor.worker_status(),
            "listeners": {
                name: f"{group.address[0]}:{group.address[1]}" for name, group in self.supervisor.groups.items()
            },
            "diagnostics": count_by_severity(self._diagnostics()),
            "counters": self.supervisor.totals(),
            "gauges": self.supervisor.gauges(),
            "probes": self.probes.sent,
            "compile_failures": self.feed.failures,
            "start": start_shares(self.feed),
            "reports": 0 if self.reporter is None else self.reporter.writes,
        }


def _has_terminal() -> bool:
    try:
        return os.isatty(0)
    except OSError:
        return False


def run_gateway(settings: GatewaySettings, *, announce: Announce | None = None) -> None:
    """Run a gateway in this thread until it has drained.

    Raises:
        ConfigError: Settings that cannot work: unknown source, an address that cannot be bound.
    """
    gateway = Gateway(settings, announce=announce)
    gc.set_threshold(COLLECTION_OBJECTS)
    trio.run(gateway.run)
