"""A worker process: one data plane, told by the supervisor over the control channel whose descriptor is argv[1].

The worker links snapshots, serves, and reports counters and outcomes. It never reads manifests and never probes. If
the supervisor goes away it serves on for `orphan_grace_s`, then drains.
"""

from __future__ import annotations

import collections
import gc
import logging
import os
import signal
import socket
import sys
import time
from collections.abc import Mapping

import trio

from datum_router.compiler.diff import apply_delta
from datum_router.compiler.link import Linker, Snapshot
from datum_router.errors import ConfigError, DatumRouterError
from datum_router.health.view import OutcomeBatch
from datum_router.model.endpoint import EndpointKey, make_locality
from datum_router.model.listener import Listener
from datum_router.model.outcome import Outcome, OutcomeClass
from datum_router.model.service import ServiceKey
from datum_router.model.snapshot import Holder, SnapshotData
from datum_router.observe.events import RequestEnded
from datum_router.plugins.manager import PluginSet, load_plugins
from datum_router.plugins.protocols import DataPlane, HealthChange
from datum_router.reasons import Reason
from datum_router.routing.regex import load_engine
from datum_router_runtime.ipc import (
    Configure,
    ControlChannel,
    ControlClosed,
    DeltaSnapshot,
    Drain,
    Drained,
    FullSnapshot,
    HealthUpdates,
    Hello,
    LinkFailed,
    ListenerSocket,
    Message,
    Programmed,
    Report,
)
from datum_router_runtime.logsetup import setup_logging

log = logging.getLogger(__name__)
access_log = logging.getLogger("datum_router.access")

MAX_PENDING_RUNS = 65536
"""Runs of outcomes kept between reports; beyond that the oldest endpoint's are given up and counted."""


class Reporter:
    """The data plane's observer: gathers counters and outcome runs until the next report."""

    __slots__ = ("_counters", "_has_access_log", "_runs", "_urgent")

    def __init__(self, *, has_access_log: bool) -> None:
        self._counters: collections.Counter[str] = collections.Counter()
        self._runs: dict[tuple[ServiceKey, EndpointKey], list[list[int]]] = {}
        self._urgent = trio.Event()
        self._has_access_log = has_access_log

    def attempt_ended(self, outcome: Outcome) -> None:
        """Take one outcome; a failure makes the next report go at once."""
        kind = outcome.outcome_class
        if kind is None:
            return
        runs = self._runs.setdefault((outcome.service, outcome.endpoint), [])
        if runs and runs[-1][0] == kind:
            runs[-1][1] += 1
        elif len(runs) < MAX_PENDING_RUNS:
            runs.append([int(kind), 1])
        else:
            self._counters["outcomes_dropped"] += 1
        if kind is not OutcomeClass.SUCCESS:
            self._counters[f"attempts_failed|{outcome.reason}"] += 1
            self._urgent.set()

    def request_ended(self, event: RequestEnded) -> None:
        """Count the request and write its access-log line."""
        self._counters[f"requests|{event.protocol}|{event.status // 100}xx"] += 1
        if event.reason is not Reason.ROUTED:
            self._counters[f"requests_reason|{event.reason}"] += 1
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
        self._counters[f"rejected|{protocol}|{reason}"] += 1

    async def wait_urgent(self) -> None:
        """Return when a failure waits to be reported."""
        await self._urgent.wait()

    def take(self, gauges: Mapping[str, int]) -> Report:
        """Return everything gathered and begin anew."""
        outcomes = tuple(
            OutcomeBatch(
                service=service,
                endpoint=endpoint,
                runs=tuple((OutcomeClass(kind), count) for kind, count in runs),
            )
            for (service, endpoint), runs in self._runs.items()
        )
        report = Report(counters=dict(self._counters), gauges=dict(gauges), outcomes=outcomes)
        self._counters.clear()
        self._runs.clear()
        self._urgent = trio.Event()
        return report


class Worker:
    """Apply the supervisor's messages to one data plane."""

    __slots__ = (
        "_channel",
        "_config",
        "_data",
        "_drain_begun",
        "_holder",
        "_is_frozen",
        "_linker",
        "_listeners",
        "_pending",
        "_plane",
    )

    def __init__(self, channel: ControlChannel, config: Configure, plugins: PluginSet, reporter: Reporter) -> None:
        self._channel = channel
        self._config = config
        self._data = SnapshotData()
        self._linker = Linker(
            plugins,
            regex=load_engine(),
            gateway_locality=make_locality(config.topology),
        )
        self._holder: Holder[Snapshot] = Holder(self._linker.link(self._data))
        spec = plugins.data_planes[config.data_plane]  # the supervisor has checked name and settings
        self._plane: DataPlane = spec.create(self._holder, reporter, config.data_plane_config)
        self._pending: dict[str, socket.socket] = {}
        self._listeners: dict[str, Listener] = {}
        self._drain_begun = False
        self._is_frozen = False

    @property
    def is_draining(self) -> bool:
        """Tell whether a drain has begun."""
        return self._drain_begun

    @property
    def plane(self) -> DataPlane:
        """Return the data plane."""
        return self._plane

    async def control(self) -> None:
        """Apply messages until the supervisor is gone."""
        while True:
            message = await self._channel.receive()
            await self._apply(message)

    async def _apply(self, message: Message) -> None:
        match message:
            case FullSnapshot(data=data, health=health):
                self._linker.reset_health(health)
                await self._program(data)
            case DeltaSnapshot(delta=delta):
                try:
                    data = apply_delta(self._data, delta)
                except ConfigError as error:
                    log.error("delta does not fit", extra={"error": str(error)})
                    await self._channel.send(Programmed(version=delta.version, digest=""))
                    return
                await self._program(data)
            case HealthUpdates(changes=changes):
                self._apply_health(changes)
            case ListenerSocket(name=name):
                sock = self._channel.take_socket()
                self._pending[name] = sock
                self._attach_listeners()
            case Drain(lameduck_s=lameduck_s, grace_s=grace_s):
                self.begin_drain(lameduck_s=lameduck_s, grace_s=grace_s)
            case _:
                log.error("unexpected message", extra={"type": type(message).__name__})

    def _apply_health(self, changes: tuple[HealthChange, ...]) -> None:
        self._linker.apply_health(changes)

    async def _program(self, data: SnapshotData) -> None:
        self._data = data
        try:
            snapshot = self._linker.link(data)
        except Exception as error:
            # A balancer or filter of a plugin broke: what is in force stays in force, and the supervisor is told.
            log.exception("snapshot cannot be put in force", extra={"version": data.version})
            failure = f"{type(error).__name__}: {error}"
            await self._channel.send(LinkFailed(version=data.version, error=failure))
            return
        self._holder.swap(snapshot)
        self._attach_listeners()
        if not self._is_frozen:
            # Modules and the first configuration live long: keep them out of every later garbage collection. Only
            # once: freezing again would make garbage of served connections immortal.
            self._is_frozen = True
            gc.collect()
            gc.freeze()
        await self._channel.send(Programmed(version=data.version, digest=data.digest))

    def _attach_listeners(self) -> None:
        wanted = {listener.name: listener for listener in self._data.listeners}
        for name in [name for name in self._listeners if name not in wanted]:
            del self._listeners[name]
            self._plane.remove_listener(name)
        for name, listener in wanted.items():
            before = self._listeners.get(name)
            if before is not None:
                if before != listener:
                    self._plane.update_listener(listener)
                    self._listeners[name] = listener
            elif name in self._pending and not self._drain_begun:
                self._plane.add_listener(listener, self._pending.pop(name))
                self._listeners[name] = listener
        for name in [name for name in self._pending if name not in wanted and self._data.version > 0]:
            self._pending.pop(name).close()

    def begin_drain(self, *, lameduck_s: float, grace_s: float) -> None:
        """Begin a graceful end, once."""
        if self._drain_begun:
            return
        self._drain_begun = True
        self._plane.begin_drain(lameduck_s=lameduck_s, grace_s=grace_s)


async def serve(channel: ControlChannel, config: Configure, reporter: Reporter, worker: Worker) -> None:
    """Run the data plane, the control reader and the reporter until drained."""

    async def control() -> None:
        try:
            await worker.control()
        except ControlClosed:
            if not worker.is_draining:
                log.warning("supervisor is gone", extra={"orphan_grace_s": config.orphan_grace_s})
                await trio.sleep(config.orphan_grace_s)
            worker.begin_drain(lameduck_s=0.0, grace_s=config.grace_s)

    async def report() -> None:
        while True:
            with trio.move_on_after(config.report_interval_s):
                await reporter.wait_urgent()
            try:
                await channel.send(reporter.take(worker.plane.stats()))
            except ControlClosed:
                return
            await trio.sleep(0.01)  # at most 100 urgent reports a second

    async def signals() -> None:
        with trio.open_signal_receiver(signal.SIGTERM) as received:
            async for _ in received:
                worker.begin_drain(lameduck_s=config.lameduck_s, grace_s=config.grace_s)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(control)
        nursery.start_soon(report)
        nursery.start_soon(signals)
        await worker.plane.run()
        nursery.cancel_scope.cancel()


async def run(fd: int) -> None:
    """Be a worker on the control channel `fd`."""
    channel = ControlChannel(socket.socket(fileno=fd))
    try:
        config = await channel.receive()
        if not isinstance(config, Configure):
            raise DatumRouterError(f"worker: found {type(config).__name__} as first message, expected Configure")
        plugins = load_plugins(disabled=frozenset(config.disabled_plugins))
        reporter = Reporter(has_access_log=config.access_log and access_log.isEnabledFor(logging.INFO))
        worker = Worker(channel, config, plugins, reporter)
        await channel.send(Hello(pid=os.getpid()))
        await serve(channel, config, reporter, worker)
        with trio.CancelScope(shield=True, deadline=trio.current_time() + 1.0):
            await channel.send(reporter.take(worker.plane.stats()))
            await channel.send(Drained())
    except ControlClosed:
        log.debug("control channel closed", extra={"at": time.monotonic()})
    finally:
        channel.close()


def main() -> None:
    """Entry point of `python -m datum_router_runtime.worker FD`."""
    setup_logging(os.environ)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole terminal group; the supervisor decides
    trio.run(run, int(sys.argv[1]))


if __name__ == "__main__":
    main()
