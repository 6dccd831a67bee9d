"""A worker process: one data plane, told by the supervisor over the control channel whose descriptor is argv[1].

The worker links snapshots, serves, and reports counters and outcomes. It never reads manifests and never probes. If
the supervisor goes away it serves on for `orphan_grace_s`, then drains. argv[2] is the file of `trials.FilePermits`,
argv[3] that of `sharedbuckets.map_buckets`.
"""

from __future__ import annotations

import gc
import logging
import math
import os
import signal
import socket
import sys
import time

import trio

from datum_router.compiler.diff import apply_delta
from datum_router.compiler.link import Snapshot
from datum_router.compiler.linker import Linker
from datum_router.errors import ConfigError, DatumRouterError
from datum_router.health.trial import Permits, TrialDesk
from datum_router.model.listener import Listener
from datum_router.model.snapshot import Holder, SnapshotData
from datum_router.observe import names
from datum_router.observe.cells import Cell
from datum_router.observe.services import service_cells
from datum_router.plugins.manager import SERVING_HOOKS, PluginSet, candidate_of, load_plugins
from datum_router.plugins.protocols import DataPlane, HealthChange, RateLimitStore, TicketingDataPlane
from datum_router.policy.buckets import BucketTable
from datum_router.policy.plugin_guard import PluginWatch
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
    Measure,
    Message,
    Programmed,
    Report,
    TicketSecrets,
)
from datum_router_runtime.logsetup import dropped_lines, setup_logging
from datum_router_runtime.reporter import Reporter, access_log
from datum_router_runtime.sharedbuckets import map_buckets
from datum_router_runtime.trials import FilePermits
from datum_router_runtime.turns import in_turns

log = logging.getLogger(__name__)

LINK_TURN_S = 0.003
"""How long linking goes on before requests are served again (seconds), give or take a step."""
YOUNG_OBJECTS = 10_000
"""How many more objects than were freed let the collector look for cycles. Requests leave none behind, but with
Python's own 700 the objects of 256 of them under way are enough to have all be looked at again and again: a
seventh of the CPU of a gRPC call. At most as many dead ones wait, some megabytes."""
CELLS_INTERVAL_S = 1.0
"""How often data plane and services are asked for their own numbers when nobody scrapes."""


class Worker:
    """Apply the supervisor's messages to one data plane."""

    __slots__ = (
        "_channel",
        "_config",
        "_data",
        "_drain_begun",
        "_dropped_lines",
        "_holder",
        "_is_frozen",
        "_linker",
        "_listeners",
        "_pending",
        "_plane",
        "_reporter",
        "rate_store",
    )

    def __init__(
        self,
        channel: ControlChannel,
        config: Configure,
        plugins: PluginSet,
        reporter: Reporter,
        permits: Permits,
        buckets: BucketTable,
    ) -> None:
        self._channel = channel
        self._config = config
        self._reporter = reporter
        self._data = SnapshotData()
        self.rate_store = make_rate_store(config, plugins)
        self._linker = Linker(
            plugins,
            regex=load_engine(),
            gateway_locality=config.place,
            desk=TrialDesk(permits, reporter.trial_ended),
            watch=PluginWatch(time.monotonic, reporter.plugin_event),
            buckets=buckets,
            workers=config.workers,
            session_key=config.session_key,
            rate_store=self.rate_store,
        )
        self._holder: Holder[Snapshot] = Holder(self._linker.link(self._data))
        spec = plugins.data_planes[config.data_plane]  # the supervisor has checked name and settings
        self._plane: DataPlane = spec.create(self._holder, reporter, config.data_plane_config)
        self._pending: dict[str, socket.socket] = {}
        self._listeners: dict[str, Listener] = {}
        self._drain_begun = False
        self._dropped_lines = 0
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
            case TicketSecrets(secrets=secrets):
                if isinstance(self._plane, TicketingDataPlane):
                    self._plane.set_ticket_secrets(secrets)
            case Drain(lameduck_s=lameduck_s, grace_s=grace_s):
                self.begin_drain(lameduck_s=lameduck_s, grace_s=grace_s)
            case Measure(number=number):
                await self._channel.send(self.report(is_full=True, answers=number))
            case _:
                log.error("unexpected message", extra={"type": type(message).__name__})

    def report(self, *, is_full: bool, answers: int = 0) -> Report:
        """Return what has happened since the last report; a full one also asks data plane and services."""
        cells: list[Cell] | None = None
        if is_full:
            dropped = dropped_lines()
            cells = [*self._plane.take_cells(), *service_cells(self._linker.take_states()), *self._linker.take_cells()]
            cells.append(Cell(names.LOG_DROPPED.name, (), dropped - self._dropped_lines))
            self._dropped_lines = dropped
        return self._reporter.take(self._plane.stats(), cells=cells, answers=answers)

    def _apply_health(self, changes: tuple[HealthChange, ...]) -> None:
        self._linker.apply_health(changes)

    async def _program(self, data: SnapshotData) -> None:
        self._data = data
        try:
            snapshot = await self._link(data)
        except Exception as error:
            # A balancer or filter of a plugin broke: what is in force stays in force, and the supervisor is told.
            log.exception("snapshot cannot be put in force", extra={"version": data.version})
            failure = f"{type(error).__name__}: {error}"
            await self._channel.send(LinkFailed(version=data.version, error=failure))
            return
        self._detach_listeners()  # before the swap: who still comes in by them is served as they were
        self._holder.swap(snapshot)
        self._attach_listeners()
        self._drop_sockets()
        if not self._is_frozen:
            # Modules and the first configuration live long: keep them out of every later garbage collection. Only
            # once: freezing again would make garbage of served connections immortal.
            self._is_frozen = True
            gc.collect()
            gc.freeze()
            gc.set_threshold(YOUNG_OBJECTS, *gc.get_threshold()[1:])
        await self._channel.send(Programmed(version=data.version, digest=data.digest))

    async def _link(self, data: SnapshotData) -> Snapshot:
        """Link step by step: requests are served in between, however many rules have to be made anew."""
        # So many new objects would call for several full collections, each longer than any step.
        gc.disable()
        try:
            # A loaded data plane keeps each turn that it gets for some milliseconds: few edits need one.
            return await in_turns(self._linker.link_in_steps(data), LINK_TURN_S)
        finally:
            gc.enable()

    def _detach_listeners(self) -> None:
        wanted = {listener.name for listener in self._data.listeners}
        for name in [name for name in self._listeners if name not in wanted]:
            del self._listeners[name]
            self._plane.remove_listener(name)

    def _attach_listeners(self) -> None:
        for listener in self._data.listeners:
            name = listener.name
            before = self._listeners.get(name)
            if before is not None:
                if before != listener:
                    self._plane.update_listener(listener)
                    self._listeners[name] = listener
            elif name in self._pending and not self._drain_begun:
                self._plane.add_listener(listener, self._pending.pop(name))
                self._listeners[name] = listener

    def _drop_sockets(self) -> None:
        """Close sockets that no listener in force wants. A socket comes before the snapshot with its listener."""
        wanted = {listener.name for listener in self._data.listeners}
        for name in [name for name in self._pending if name not in wanted]:
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
        full_at = -math.inf
        while True:
            with trio.move_on_after(config.report_interval_s):
                await reporter.wait_urgent()
            now = trio.current_time()
            is_full = now - full_at >= CELLS_INTERVAL_S
            if is_full:
                full_at = now
            try:
                await channel.send(worker.report(is_full=is_full))
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


def make_rate_store(config: Configure, plugins: PluginSet) -> RateLimitStore | None:
    """Return the store that rate limits are to count in, None if that is the gateway's own table."""
    name = config.rate_limit_store
    return plugins.rate_limit_stores[name].create(config.rate_limit_store_config) if name else None


async def run(fd: int, permits_fd: int, buckets_fd: int) -> None:
    """Be a worker on the control channel `fd`."""
    channel = ControlChannel(socket.socket(fileno=fd))
    try:
        config = await channel.receive()
        if not isinstance(config, Configure):
            raise DatumRouterError(f"worker: found {type(config).__name__} as first message, expected Configure")
        plugins = load_plugins(
            [candidate_of(plugin.entry_point, plugin.distribution, plugin.target) for plugin in config.plugins],
            hooks=SERVING_HOOKS,
        )
        reporter = Reporter(has_access_log=config.access_log and access_log.isEnabledFor(logging.INFO))
        worker = Worker(channel, config, plugins, reporter, FilePermits(permits_fd), map_buckets(buckets_fd))
        await channel.send(Hello(pid=os.getpid()))
        await serve(channel, config, reporter, worker)
        with trio.CancelScope(shield=True, deadline=trio.current_time() + 1.0):
            await channel.send(worker.report(is_full=True))
            await channel.send(Drained())
            if worker.rate_store is not None:
                await worker.rate_store.close()
    except ControlClosed:
        log.debug("control channel closed", extra={"at": time.monotonic()})
    finally:
        channel.close()


def main() -> None:
    """Entry point of `python -m datum_router_runtime.worker FD PERMITS_FD BUCKETS_FD`."""
    setup_logging(os.environ)
    for number in (signal.SIGINT, signal.SIGHUP):  # they reach the whole terminal group; the supervisor decides
        signal.signal(number, signal.SIG_IGN)
    trio.run(run, int(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))


if __name__ == "__main__":
    main()
