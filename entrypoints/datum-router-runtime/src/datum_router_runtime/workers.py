"""The supervisor: one process owns sources, compilation and probes, and keeps n workers serving.

States of a worker, as the supervisor sees it: starting (process made, no Hello yet) -> up (has said Hello, has been
sent the configuration) -> programmed(version) -> gone; gone is followed by starting again unless we drain.

A rolling restart (`replace_workers`) goes one worker after another: a successor is started on the same sockets, and
only when that one serves is the old one told to drain. Both accept from one queue meanwhile, so no connection is
refused or reset (threat P4); until it is gone the old one gets every change, too.

Everything the supervisor says to a worker goes through that worker's outbox: a worker that does not read cannot block
the supervisor, and one that falls too far behind gets one full snapshot instead of the deltas it missed.
"""

from __future__ import annotations

import collections
import logging
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence

import trio

from datum_router.compiler.compiler import CompileResult
from datum_router.compiler.diagnostics import Diagnostic, Severity
from datum_router.compiler.diff import make_delta
from datum_router.compiler.ingress import Attached
from datum_router.errors import ConfigError
from datum_router.health.view import HealthBook
from datum_router.model.snapshot import SnapshotData
from datum_router.observe import names
from datum_router.observe.ledger import Ledger
from datum_router.plugins.manager import SERVING_HOOKS, LoadedPlugin
from datum_router.plugins.protocols import HealthChange
from datum_router.reasons import Reason
from datum_router_runtime.ipc import (
    Configure,
    ControlChannel,
    ControlClosed,
    DeltaSnapshot,
    Drained,
    FullSnapshot,
    HealthUpdates,
    Hello,
    LinkFailed,
    ListenerSocket,
    Measure,
    Message,
    PluginModule,
    Programmed,
    Report,
    TicketSecrets,
)
from datum_router_runtime.sessionkey import read_session_key
from datum_router_runtime.settings import GatewaySettings, read_place
from datum_router_runtime.sharedbuckets import open_buckets_file
from datum_router_runtime.sockets import ListenerGroup, bind_group
from datum_router_runtime.ticketsecrets import TicketSecretBook
from datum_router_runtime.trials import open_permits_file
from datum_router_runtime.turns import Signal
from datum_router_runtime.workerlink import WorkerLink, WorkerStatus

log = logging.getLogger(__name__)

OUTBOX_LIMIT = 256
"""Messages waiting for one worker; beyond that they are replaced by one full snapshot."""

FIRST_RESTART_DELAY_S = 0.05
MAX_RESTART_DELAY_S = 10.0
STABLE_AFTER_S = 10.0
BIND_RETRY_S = 1.0
BIND_PATIENCE_S = 30.0
"""How long from its start one port that cannot be had, which a predecessor may let go of, keeps a gateway unready."""
REPLACE_POLL_S = 0.02
DRAIN_SLACK_S = 2.0
"""How much longer than lameduck + grace a worker may take before it is killed."""


class Supervisor:
    """Keep workers serving the newest snapshot and health.

    Attributes:
        ingresses: Those of the configuration in force, with the names of their listeners.
        force_changed: A result was published, or a worker said what it has in force.

    Args:
        clock: CLOCK_MONOTONIC seconds, the same clock as the workers' (health `since` crosses the border).
        plugins: What was loaded and checked here; workers load those of them that have a part in serving.
        on_listening: Called when a listener is bound, with its group.
    """

    def __init__(
        self,
        settings: GatewaySettings,
        *,
        book: HealthBook,
        clock: Callable[[], float] = time.monotonic,
        plugins: Sequence[LoadedPlugin] = (),
        on_listening: Callable[[ListenerGroup], None] | None = None,
    ) -> None:
        self.settings = settings
        self.book = book
        self.data: SnapshotData | None = None
        self.diagnostics: tuple[Diagnostic, ...] = ()
        self.ingresses: tuple[Attached, ...] = ()
        self.listener_problems: dict[str, Diagnostic] = {}
        self.link_problem: Diagnostic | None = None
        self.groups: dict[str, ListenerGroup] = {}
        self.links: dict[int, WorkerLink] = {}
        self.retiring: set[WorkerLink] = set()
        self.ledger = Ledger()
        self.restarts: collections.deque[float] = collections.deque()
        self.first_published = trio.Event()
        self.data_changed = Signal()
        self.force_changed = Signal()
        self._session_key = read_session_key(settings.session_key_file)
        self._clock = clock
        self._patient_until = 0.0  # 0 also once it has listened on all that was wanted
        self._plugins = tuple(plugins)
        self._on_listening = on_listening
        self._full: bytes | None = None
        self.drain_begun = trio.Event()
        self._answered = Signal()
        self._tickets = TicketSecretBook()
        self._measure_number = 0
        self._replacement_wanted = trio.Event()

    # --- configuration in ------------------------------------------------------------------------------------------

    def publish(self, result: CompileResult) -> None:
        """Put a compiled snapshot in force on every worker. Never blocks, never raises on configuration."""
        self.diagnostics, self.ingresses = result.diagnostics, result.ingresses
        self.force_changed.notify()
        old, new = self.data, result.data
        if old is not None and old.digest == new.digest:
            return
        now = self._clock()
        self.data = new
        self.link_problem = None
        self._full = None
        self._patient_until = now + BIND_PATIENCE_S if old is None else self._patient_until
        self._bind_listeners(new)
        changes = self.book.set_services(new.services, now=now)
        if old is None:
            for link in self.living():
                self._send_full(link)
            self.first_published.set()
        else:
            delta = DeltaSnapshot(delta=make_delta(old, new))
            self._broadcast(delta)
            if changes:
                self._broadcast(HealthUpdates(changes=tuple(changes)))
        self.data_changed.notify()
        log.info(
            "snapshot published",
            extra={"version": new.version, "rules": len(new.rules), "services": len(new.services)},
        )

    def publish_health(self, changes: Sequence[HealthChange]) -> None:
        """Tell every worker about endpoints whose usability changed."""
        if not changes:
            return
        for change in changes:
            if change.reason:
                self.ledger.add(names.HEALTH_CHANGES, 1, change.reason)
            log.info(
                "endpoint health changed",
                extra={
                    "service": change.service,
                    "endpoint": change.endpoint,
                    "usable": change.is_usable,
                    "why": change.reason,
                },
            )
        self._broadcast(HealthUpdates(changes=tuple(changes)))

    def adopt(self, group: ListenerGroup) -> None:
        """Take a listener that was bound before anything was published; it stays until a snapshot lacks its name."""
        self.groups[group.name] = group
        if self._on_listening is not None:
            self._on_listening(group)

    def _bind_listeners(self, data: SnapshotData) -> None:
        wanted = {listener.name: listener for listener in data.listeners}
        problems = self.listener_problems
        self.listener_problems = {name: one for name, one in problems.items() if name in wanted}
        let_go: dict[int, str] = {}
        for name in [name for name in self.groups if name not in wanted]:
            group = self.groups.pop(name)
            let_go[group.address[1]] = name
            group.close()
        for name, listener in wanted.items():
            if name in self.groups:
                continue
            try:
                group = bind_group(listener, self.settings.workers)
            except ConfigError as error:
                message, level, reason = str(error), logging.ERROR, error.reason
                if listener.port in let_go:  # no other process: workers let go of it with the snapshot that follows
                    message = f"listener {name}: port {listener.port} is still that of {let_go[listener.port]}"
                    level, reason = logging.INFO, Reason.PENDING
                found = Diagnostic(severity=Severity.ERROR, object=f"listener {name}", reason=reason, message=message)
                if problems.get(name) != found:
                    log.log(level, "cannot listen, will retry", extra={"listener": name, "error": message})
                self.listener_problems[name] = found
                continue
            self.listener_problems.pop(name, None)
            self.groups[name] = group
            for link in [one for one in self.living() if one.is_up and not one.drain_begun.is_set()]:
                link.put(ListenerSocket(name=name), fd=group.sockets[link.index].fileno())
            if self._on_listening is not None:
                self._on_listening(group)
        self._patient_until = self._patient_until if self.listener_problems else 0.0
        if self.listener_problems != problems:
            self.force_changed.notify()

    # --- workers -----------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Keep all workers running until `drain` has finished, or until cancelled (then workers are ended)."""
        with open_permits_file() as self._permits, open_buckets_file() as self._buckets:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._retry_binding)
                nursery.start_soon(self._rotate_tickets)
                async with trio.open_nursery() as workers:
                    for index in range(self.settings.workers):
                        workers.start_soon(self._keep_worker, index)
                    nursery.start_soon(self._replace_when_asked, workers)
                nursery.cancel_scope.cancel()

    def drain(self) -> None:
        """Begin a graceful end: workers finish their requests and exit, `run` returns."""
        if self.is_draining:
            return
        self.drain_begun.set()
        log.info("draining", extra={"lameduck_s": self.settings.lameduck_s, "grace_s": self.settings.grace_s})
        # Our copies go first: from now on the workers' are the only ones, so that closing them after their last
        # accept closes the port (a queue that nobody accepts from would be reset).
        for group in self.groups.values():
            group.close()
        for link in self.living():
            link.drain(lameduck_s=self.settings.lameduck_s, grace_s=self.settings.grace_s)

    def replace_workers(self) -> None:
        """Begin a rolling restart: each worker is replaced by a new process, one after another, losing no request.

        Asked again while it is under way, another one follows. An old worker serves until its successor does, however
        long that takes; the metric `datum_router_worker_replacements_total` counts the finished ones.
        """
        log.info("replacing workers", extra={"workers": self.settings.workers})
        self._replacement_wanted.set()

    @property
    def is_draining(self) -> bool:
        """Tell whether a graceful end has begun."""
        return self.drain_begun.is_set()

    @property
    def is_crash_looping(self) -> bool:
        """Tell whether workers died more than `max_restarts` times within `restart_window_s`."""
        self._forget_old_restarts()
        return len(self.restarts) > self.settings.max_restarts

    def not_ready_reasons(self) -> list[str]:
        """Return why the gateway is not ready; empty = ready."""
        if self.is_draining:
            return ["draining"]
        if self.data is None:
            return ["no configuration yet: sources are not synced"]
        # A port that cannot be had, which any editor of a VPCIngress may ask for, must not take others out for good.
        is_patient = self._clock() < self._patient_until
        asked = self.listener_problems.values() if is_patient or not self.groups else ()
        reasons = [diagnostic.message for diagnostic in asked]
        if self.is_crash_looping:
            reasons.append(f"workers died {len(self.restarts)} times in {self.settings.restart_window_s:g} s")
        serving = [link for link in self.living() if link.is_up and link.version > 0]
        if not serving:
            reasons.append("no worker serves a snapshot yet")
        return reasons

    def lagging_workers(self) -> int:
        """Return how many workers are missing or don't serve the newest snapshot yet."""
        version = self.data.version if self.data is not None else 0
        up = [link for link in self.living() if link.is_up]
        missing = self.settings.workers - len({link.index for link in up})
        return missing + sum(1 for link in up if link.version != version)

    def worker_status(self) -> list[WorkerStatus]:
        """Return what is known of each worker."""
        return [
            WorkerStatus(
                index=link.index, pid=link.pid, is_up=link.is_up, version=link.version, gauges=dict(link.gauges)
            )
            for link in sorted(self.living(), key=lambda link: (link.index, link.has_successor))
        ]

    async def _retry_binding(self) -> None:
        while True:
            await trio.sleep(BIND_RETRY_S)
            if self.listener_problems and self.data is not None and not self.is_draining:
                self._bind_listeners(self.data)
                self.force_changed.notify()

    async def _rotate_tickets(self) -> None:
        if not self.settings.ticket_lifetime_s:
            return
        while True:
            await trio.sleep(self.settings.ticket_lifetime_s)
            self.rotate_tickets()

    def rotate_tickets(self) -> None:
        """Have TLS session tickets made by a new secret; those made by the one before are still taken."""
        self._tickets.rotate()
        self._broadcast(TicketSecrets(secrets=self._tickets.secrets))

    async def _keep_worker(self, index: int) -> None:
        delay = FIRST_RESTART_DELAY_S
        while True:
            started = self._clock()
            link = await self._run_worker(index)
            if self.is_draining or link.has_successor:
                return
            code = link.process.returncode
            self.restarts.append(self._clock())
            self._forget_old_restarts()
            if self._clock() - started > STABLE_AFTER_S:
                delay = FIRST_RESTART_DELAY_S
            log.error("worker ended, will be replaced", extra={"worker": index, "exit_code": code, "delay_s": delay})
            self.ledger.add(names.WORKER_RESTARTS)
            await trio.sleep(delay)
            delay = min(delay * 2, MAX_RESTART_DELAY_S)
            if self.drain_begun.is_set():
                return

    async def _replace_when_asked(self, workers: trio.Nursery) -> None:
        while True:
            await self._replacement_wanted.wait()
            self._replacement_wanted = trio.Event()
            for index in range(self.settings.workers):
                if self.is_draining:
                    return
                await self._replace(index, workers)

    async def _replace(self, index: int, workers: trio.Nursery) -> None:
        old = self.links.pop(index, None)
        if old is None:
            return  # it has just ended: what follows is a new one anyway
        old.has_successor = True
        self.retiring.add(old)
        workers.start_soon(self._keep_worker, index)
        # The successor may die before it serves, and its successor, too: the condition is about the slot.
        while (new := self.links.get(index)) is None or not new.programmed.is_set():  # noqa: ASYNC110
            await trio.sleep(REPLACE_POLL_S)
        if not old.drain_begun.is_set():
            old.drain(lameduck_s=self.settings.lameduck_s, grace_s=self.settings.grace_s)
        await old.ended.wait()
        self.ledger.add(names.WORKER_REPLACEMENTS)
        log.info("worker replaced", extra={"worker": index, "old_pid": old.pid, "new_pid": new.pid})

    async def _run_worker(self, index: int) -> WorkerLink:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        with theirs:
            fds = [theirs.fileno(), self._permits.fileno(), self._buckets.fileno()]
            process = await trio.lowlevel.open_process(
                [sys.executable, "-m", "datum_router_runtime.worker", *map(str, fds)],
                stdin=subprocess.DEVNULL,
                pass_fds=fds,
            )
        link = WorkerLink(index, ControlChannel(ours), process)
        self.links[index] = link
        link.put(self._configuration(index))
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._write, link)
                nursery.start_soon(self._watch_start, link)
                nursery.start_soon(self._watch_drain, link)
                await self._read(link)
                link.is_up = False
                self._answered.notify()  # nobody needs to wait for this one any more
                nursery.cancel_scope.cancel()
            with trio.move_on_after(1.0):
                await process.wait()
        finally:
            if self.links.get(index) is link:
                del self.links[index]
            self.retiring.discard(link)
            link.ended.set()
            link.channel.close()
            if process.returncode is None:
                with trio.CancelScope(shield=True):
                    process.send_signal(signal.SIGKILL)
                    await process.wait()
        return link

    async def _watch_start(self, link: WorkerLink) -> None:
        await trio.sleep(self.settings.worker_start_timeout_s)
        if not link.is_up:
            log.error("worker did not come up in time", extra={"worker": link.index, "pid": link.pid})
            link.process.send_signal(signal.SIGKILL)

    async def _watch_drain(self, link: WorkerLink) -> None:
        await link.drain_begun.wait()
        await trio.sleep(self.settings.lameduck_s + self.settings.grace_s + DRAIN_SLACK_S)
        log.error("worker did not finish its drain in time", extra={"worker": link.index, "pid": link.pid})
        link.process.send_signal(signal.SIGKILL)

    async def _write(self, link: WorkerLink) -> None:
        try:
            while True:
                while link.outbox:
                    message, fd = link.outbox.popleft()
                    await link.channel.send(message, fd=fd)
                link.wake = trio.Event()
                await link.wake.wait()
        except ControlClosed:
            return

    async def _read(self, link: WorkerLink) -> None:
        try:
            while True:
                message = await link.channel.receive()
                match message:
                    case Hello():
                        link.is_up = True
                        link.put(TicketSecrets(secrets=self._tickets.secrets))
                        self._send_listeners(link)
                        if self.data is not None:
                            self._send_full(link)
                        if self.is_draining:
                            link.drain(lameduck_s=0.0, grace_s=self.settings.grace_s)
                    case Programmed(version=version, digest=digest):
                        if self.data is not None and version == self.data.version and digest != self.data.digest:
                            log.error("worker is out of step, full snapshot follows", extra={"worker": link.index})
                            self._send_full(link)
                        elif digest:  # else a delta did not fit, nor will the newer one that is on its way
                            link.version = version
                            link.programmed.set()
                            self.force_changed.notify()
                    case LinkFailed(version=version, error=error):
                        self.link_problem = Diagnostic(
                            severity=Severity.ERROR,
                            object=f"snapshot {version}",
                            reason=Reason.PLUGIN_FAILED,
                            message=f"cannot be put in force, the last good one serves on: {error}",
                        )
                        self.ledger.add(names.CONFIG_FAILURES)
                        self.force_changed.notify()
                    case Report():
                        self._take_report(link, message)
                    case Drained():
                        log.debug("worker drained", extra={"worker": link.index})
                    case _:
                        log.error("unexpected message", extra={"worker": link.index, "type": type(message).__name__})
        except ControlClosed:
            return

    def _take_report(self, link: WorkerLink, report: Report) -> None:
        now = self._clock()
        self.ledger.take(report.meters, report.counters, now=now)
        for key in report.gone:
            link.cells.pop(key, None)
        for cell in report.gauges:
            link.cells[cell.key] = cell.value
        link.gauges = dict(report.stats)
        if report.outcomes or report.trials:
            changes = self.book.record_outcomes(report.outcomes, now=now)
            self.publish_health([*changes, *self.book.record_trials(report.trials, now=now)])
        if report.answers > link.answered:
            link.answered = report.answers
            self._answered.notify()

    async def measure(self, *, timeout_s: float) -> int:
        """Let every worker that is up report now; return how many did not within `timeout_s`.

        After that the ledger holds every request that had ended before the call.
        """
        self._measure_number += 1
        number = self._measure_number
        asked = [link for link in self.living() if link.is_up]
        for link in asked:
            link.put(Measure(number=number))
        with trio.move_on_after(timeout_s):
            while any(link.is_up and link.answered < number for link in asked):
                await self._answered.next.wait()
        return sum(1 for link in asked if link.is_up and link.answered < number)

    def totals(self) -> dict[str, float]:
        """Return all counters since start, over living and dead workers, as `metric|label|label`."""
        return {"|".join((metric, *labels)): value for (metric, labels), value in self.ledger.counters().items()}

    def gauges(self) -> dict[str, int]:
        """Return the living workers' gauges together: the sum, or the highest where the name ends in `_max`."""
        total: dict[str, int] = {}
        for link in self.living():
            for name, value in link.gauges.items():
                known = total.get(name, 0)
                total[name] = max(known, value) if name.endswith("_max") else known + value
        return total

    def living(self) -> list[WorkerLink]:
        """Return every worker there is: those in their places and those that are being replaced."""
        return [*self.links.values(), *self.retiring]

    # --- out ---------------------------------------------------------------------------------------------------------

    def _configuration(self, index: int) -> Configure:
        settings = self.settings
        return Configure(
            index=index,
            workers=settings.workers,
            session_key=self._session_key,
            data_plane=settings.data_plane,
            data_plane_config=settings.data_plane_config,
            place=read_place(settings.topology, settings.location),
            report_interval_s=settings.report_interval_s,
            orphan_grace_s=settings.orphan_grace_s,
            lameduck_s=settings.lameduck_s,
            grace_s=settings.grace_s,
            access_log=settings.access_log,
            rate_limit_store=settings.rate_limit_store,
            rate_limit_store_config=settings.rate_limit_store_config,
            plugins=tuple(
                PluginModule(entry_point=plugin.entry_point, distribution=plugin.distribution, target=plugin.target)
                for plugin in self._plugins
                if SERVING_HOOKS.intersection(plugin.hooks)
            ),
        )

    def _send_listeners(self, link: WorkerLink) -> None:
        for name, group in self.groups.items():
            if group.sockets:
                link.put(ListenerSocket(name=name), fd=group.sockets[link.index].fileno())

    def _send_full(self, link: WorkerLink) -> None:
        assert self.data is not None  # only called once a snapshot is there
        if self._full is None:
            message = FullSnapshot(data=self.data, health=tuple(self.book.all_changes()))
            self._full = link.channel.encode(message)
        link.put(self._full)

    def _broadcast(self, message: Message) -> None:
        encoded: bytes | None = None
        for link in self.living():
            if not link.is_up:
                continue  # it gets everything when it says Hello
            if len(link.outbox) >= OUTBOX_LIMIT:
                keep = [entry for entry in link.outbox if entry[1] is not None]
                link.outbox.clear()
                link.outbox.extend(keep)
                self._full = None
                self._send_full(link)
                link.put(TicketSecrets(secrets=self._tickets.secrets))
                continue
            if encoded is None:
                encoded = link.channel.encode(message)
            link.put(encoded)
        if isinstance(message, HealthUpdates):
            self._full = None  # a full snapshot carries health

    def _forget_old_restarts(self) -> None:
        horizon = self._clock() - self.settings.restart_window_s
        while self.restarts and self.restarts[0] < horizon:
            self.restarts.popleft()
