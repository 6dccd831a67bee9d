"""The data plane: joins listeners, connections, pipeline and upstream transport, and ends them gracefully."""

from __future__ import annotations

import logging
import socket
import time
from collections.abc import Callable, Mapping, Sequence

import trio

from datum_router.compiler.link import Snapshot
from datum_router.model.listener import Listener
from datum_router.model.snapshot import Holder
from datum_router.observe import names
from datum_router.observe.cells import Cell
from datum_router.plugins.protocols import DataPlaneObserver
from datum_router_proxy.admission import Admission
from datum_router_proxy.channel import Channel, PlainChannel
from datum_router_proxy.egress.connection import EgressConnection
from datum_router_proxy.egress.desk import EgressDesk
from datum_router_proxy.egress.resolver import Ask, NameResolver
from datum_router_proxy.egress.server import RuleBook
from datum_router_proxy.egress.tunnels import OpenTunnels
from datum_router_proxy.loop import Loop
from datum_router_proxy.memory import MemoryGauge, needed_descriptors, raise_descriptor_limit
from datum_router_proxy.overload import Pressure, pressure
from datum_router_proxy.pipeline import Pipeline
from datum_router_proxy.replies import OVERLOADED
from datum_router_proxy.server.clients import ClientDates
from datum_router_proxy.server.connection import Unknown
from datum_router_proxy.server.departed import DepartedServer
from datum_router_proxy.server.drain import DrainPlan, Phase
from datum_router_proxy.server.listener import AcceptCounts, AcceptLimits, ListenerTask
from datum_router_proxy.server.stream import Stream, Streams
from datum_router_proxy.settings import ProxySettings, from_text
from datum_router_proxy.upstream.transport import Transport
from datum_router_proxy.wire.hpack_fast import huffman_decoder

log = logging.getLogger(__name__)

TICK_S = 0.25
"""Seconds between two looks at the drain's timetable."""
REST_TICKS = 8
"""Ticks between two looks for connections that rest: 0.2 us each, so 2 ms for 10,000."""
REST_AFTER_S = 2.0
"""Seconds of silence after which a connection forgets its last head: 2 KB, for 40 us of the next request."""
SWEEP_TICKS = 4
"""Idle upstream connections, and the dates of clients' certificates, are looked at every so many ticks."""


class ProxyDataPlane:
    """See `plugins.protocols.DataPlane`."""

    __slots__ = (
        "_accept_limits",
        "_attachments",
        "_barring",
        "_connections",
        "_counts",
        "_dates",
        "_departed",
        "_egress",
        "_holder",
        "_listeners",
        "_loop",
        "_memory",
        "_observer",
        "_phase",
        "_pipeline",
        "_plan",
        "_pressure",
        "_removed",
        "_secrets",
        "_settings",
        "_streams",
        "_transport",
        "_wall_clock",
    )  # fmt: skip

    def __init__(
        self,
        holder: Holder[Snapshot],
        observer: DataPlaneObserver,
        settings: ProxySettings,
        ask: Ask | None = None,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        """Begin with nothing to accept on.

        Args:
            ask: Answers for name servers in tests.
            wall_clock: Unix seconds, for what has dates: certificates of clients.
        """
        self._holder = holder
        self._observer = observer
        self._settings = settings
        self._loop = Loop()
        self._transport = Transport(self._loop, settings)
        self._pipeline = Pipeline(self._loop, holder, observer, settings, self._transport)
        self._listeners: dict[str, ListenerTask] = {}
        self._departed: dict[str, DepartedServer] = {}  # by listener, while somebody may come in by it
        self._barring = DepartedServer(self._pipeline)  # never has routes
        self._removed: list[ListenerTask] = []  # until their last connection is closed, for telemetry
        self._streams = Streams(self._loop, holder, observer, settings, self._transport)
        self._secrets: tuple[bytes, ...] = ()
        self._connections: set[Unknown | Stream | EgressConnection] = set()
        desk = EgressDesk(self._loop, holder, settings, NameResolver(self._loop, settings, ask), observer)
        self._egress = RuleBook(desk, OpenTunnels(self._loop, desk, self._pipeline.tunnels))
        self._wall_clock = wall_clock
        self._dates = ClientDates(wall_clock)
        self._counts = AcceptCounts()
        self._accept_limits = AcceptLimits(
            max_per_listener=settings.max_connections_per_listener,
            max_total=settings.max_connections,
            max_per_address=settings.max_connections_per_address,
            max_handshakes_per_address=settings.max_handshakes_per_address,
            handshake_timeout_s=settings.tls_handshake_timeout_s,
        )
        self._attachments = settings.attachments()
        self._memory = MemoryGauge(settings.memory_limit_bytes)
        self._pressure = Pressure.NONE
        self._plan: DrainPlan | None = None
        self._phase = Phase.SERVING

    @property
    def admission(self) -> Admission:
        """Return what lets requests in."""
        return self._pipeline.admission

    # --- plugins.protocols.DataPlane -----------------------------------------------------------------------------

    async def run(self) -> None:
        """Serve until drained or cancelled; returns after a drain. If cancelled, everything is cut off at once."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._tick_forever)
            nursery.start_soon(self._pipeline.admission.watch)
            await self._loop.run()
            nursery.cancel_scope.cancel()

    def add_listener(self, listener: Listener, sock: socket.socket) -> None:
        """Start accepting on a bound, listening socket."""
        self._pipeline.limit_body(listener.name, listener.max_request_body_bytes)
        if sock.family != socket.AF_UNIX:
            self._egress.desk.own_ports.add(sock.getsockname()[1])
        self._pipeline.extras.set_replies(listener)
        self._listeners[listener.name] = ListenerTask(
            self._loop,
            listener,
            sock,
            self._on_connection,
            rejected=self._observer.rejected,
            limits=self._accept_limits,
            counts=self._counts,
            attachments=self._attachments,
            on_stream=self._on_stream,
            secrets=self._secrets,
            wall_clock=self._wall_clock,
        )
        log.info("listening", extra={"listener": listener.name, "host": listener.host, "port": listener.port})

    def update_listener(self, listener: Listener) -> None:
        """Change certificates and limits for new connections (the body limit for new requests)."""
        self._pipeline.limit_body(listener.name, listener.max_request_body_bytes)
        self._pipeline.extras.set_replies(listener)
        task = self._listeners[listener.name]
        asked = task.tls is not None and task.tls.asks_clients
        task.update(listener)
        if not (asked or (task.tls is not None and task.tls.asks_clients)):
            return
        clients = [one for one in self._connections if isinstance(one, Unknown)]
        ended = self._dates.end_outdated(clients, listener.name, task.tls)
        if ended:
            log.info("clients are asked for other certificates", extra={"listener": listener.name, "ended": ended})

    def set_ticket_secrets(self, secrets: Sequence[bytes]) -> None:
        """Make TLS session tickets by the first of these secrets, and take those made by any; see `server.tickets`."""
        self._secrets = tuple(secrets)
        for task in self._listeners.values():
            task.set_secrets(self._secrets)

    def remove_listener(self, name: str) -> None:
        """Stop accepting; open connections finish their requests, and streams of bytes go on until they end.

        A first request that is still on its way is served by the snapshot that is in force now.
        """
        task = self._listeners.pop(name, None)
        if task is not None:
            self._removed.append(task)
            task.stop_accepting()
            departed = self._departed.setdefault(name, DepartedServer(self._pipeline))
            departed.serve_by(self._holder.current)
            for one in self._connections:
                if isinstance(one, Unknown) and one.listener.name == name and not one.has_departed:
                    one.depart(self._served_by(departed, one))
            self._end_those_of_removed()

    def _served_by(self, departed: DepartedServer, connection: Unknown) -> DepartedServer:
        """Return whom a connection asks whose listener has gone.

        What a client's certificate was verified by may have gone with it: nobody is let in by that any more.
        """
        return departed if connection.channel.client is None else self._barring

    def begin_drain(self, *, lameduck_s: float, grace_s: float) -> None:
        """Finish gracefully; see `server.drain`. A second call may only shorten what is left."""
        plan = DrainPlan(began_at=time.monotonic(), lameduck_s=lameduck_s, grace_s=grace_s)
        if self._plan is not None and self._plan.began_at + self._plan.lameduck_s + self._plan.grace_s <= (
            plan.began_at + plan.lameduck_s + plan.grace_s
        ):
            return
        self._plan = plan
        self._advance()

    def stats(self) -> Mapping[str, int]:
        """Return gauges; those that end in `_max` are not added up over workers, the highest counts."""
        return {
            "connections": len(self._connections),
            "requests_in_flight": self._pipeline.in_flight,
            "upstream_connections": self._transport.connections,
            "tasks": self._loop.tasks - self._pipeline.admission.tasks,  # those of somebody's connection or listener
            "memory_pressure_max": self._pressure,
            "loop_lag_ms_max": round(self._loop.lag.worst(self._loop.now) * 1000),
            "loop_step_ms_max": round(self._loop.longest_step_s * 1000),
            "loop_slow_steps": self._loop.slow_steps,
        }

    def take_cells(self) -> Sequence[Cell]:
        """Return counters since the last call, and gauges."""
        cells = [
            Cell(names.IN_FLIGHT.name, (), self._pipeline.in_flight),
            Cell(names.TUNNELS.name, (), len(self._pipeline.tunnels)),
            *self._pipeline.accounts.take_cells(),
            *self._pipeline.gate.take_cells(),
            *self._pipeline.admission.take_cells(),
            *self._transport.take_cells(),
            *self._egress.desk.take_cells(),
            *self._streams.take_cells(),
            *self._dates.take_cells(),
        ]
        for listener in (*self._listeners.values(), *self._removed):
            cells += listener.take_cells()
        self._removed = [listener for listener in self._removed if listener.connections or listener.is_accepting]
        return cells

    # --- connections ---------------------------------------------------------------------------------------------

    def _on_connection(self, channel: Channel, listener: Listener) -> None:
        if listener.egress is not None:
            outbound = EgressConnection(self._pipeline, self._egress, channel, listener)
            self._connections.add(outbound)
            self._loop.spawn(self._serve_egress(outbound), name=f"connection {listener.name}")
            return
        connection = Unknown(self._pipeline, channel, listener)
        departed = None if listener.name in self._listeners else self._departed.get(listener.name)
        if departed is not None:  # it was on its way in when its listener went
            connection.depart(self._served_by(departed, connection))
            connection.finish_drain()
        self._connections.add(connection)
        self._dates.watch(connection)
        self._loop.spawn(self._serve(connection), name=f"connection {listener.name}")

    def _on_stream(self, channel: PlainChannel, listener: Listener, server_name: str) -> None:
        stream = Stream(channel, listener, server_name, now=self._loop.now)
        self._connections.add(stream)
        self._loop.spawn(self._serve_stream(stream), name=f"stream {listener.name}")

    async def _serve_stream(self, stream: Stream) -> None:
        try:
            await self._streams.serve(stream)
        finally:
            self._ended(stream)

    async def _serve(self, connection: Unknown) -> None:
        try:
            await connection.find_out()
            # Not in there: its frame would stay, as would the frame of whoever held the first bytes.
            if connection.serving is not None:
                await connection.serving.run(connection.take_first())
        finally:
            self._dates.forget(connection)
            self._ended(connection)

    async def _serve_egress(self, connection: EgressConnection) -> None:
        try:
            await connection.run()
        finally:
            self._ended(connection)

    def _ended(self, connection: Unknown | Stream | EgressConnection) -> None:
        self._connections.discard(connection)
        if self._phase is not Phase.SERVING and not self._connections:
            self._advance()

    # --- upkeep --------------------------------------------------------------------------------------------------

    async def _tick_forever(self) -> None:
        ticks = 0
        while True:
            await trio.sleep(TICK_S)
            ticks += 1
            if ticks % SWEEP_TICKS == 0:
                self._transport.sweep(self._holder.current)
                await self._dates.end_expired()
            if ticks % REST_TICKS == 0:
                before = self._loop.now - REST_AFTER_S
                for connection in self._connections:
                    connection.rest(before)
            self._egress.tunnels.look()
            self._weigh()
            self._end_those_of_removed()
            if self._plan is not None:
                self._advance()

    def _weigh(self) -> None:
        """Look at memory and act on it (threat E8); every tick, since what is shed comes back."""
        if not self._memory.limit:
            return
        level = pressure(self._memory.used(), self._memory.limit, self._pressure)
        if level is not self._pressure:
            log.warning("memory pressure changed", extra={"from": self._pressure.name, "to": level.name})
        self._pressure = level
        self._pipeline.overload_reply = OVERLOADED if level is Pressure.REFUSE else None
        self._pipeline.is_draining = level is not Pressure.NONE or self._phase is not Phase.SERVING
        if level is Pressure.NONE:
            return
        self._pipeline.shed()
        huffman_decoder().forget()
        self._transport.shed()
        self._egress.desk.shed()
        for connection in list(self._connections):
            connection.begin_drain()  # GOAWAY, once each; those that stay are served on

    def _end_those_of_removed(self) -> None:
        """End the connections of listeners that are gone; every tick, since some were still on their way in."""
        self._departed = {name: departed for name, departed in self._departed.items() if not departed.forget()}
        if not self._removed:
            return
        for one in list(self._connections):
            if isinstance(one, Stream):
                continue
            if one.has_departed if isinstance(one, Unknown) else one.listener.name not in self._listeners:
                one.begin_drain()
                one.finish_drain()

    def _advance(self) -> None:
        """Do what the drain's phase asks for; level-based, so a tick too many does no harm."""
        plan = self._plan
        if plan is None or self._loop.is_closed:
            return
        wanted = plan.phase(time.monotonic())
        if self._phase < Phase.LAMEDUCK <= wanted:
            self._phase = Phase.LAMEDUCK
            self._pipeline.is_draining = True
            for connection in list(self._connections):
                connection.begin_drain()
        if self._phase < Phase.FINISHING <= wanted:
            self._phase = Phase.FINISHING
            for listener in self._listeners.values():
                listener.stop_accepting()
            self._pipeline.close_tunnels()
        if self._phase >= Phase.FINISHING:
            for connection in list(self._connections):
                connection.finish_drain()
        # Who is still shaking hands is no connection yet, but has been let in.
        is_coming = bool(self._counts.handshakes) or any(one.is_accepting for one in self._listeners.values())
        if self._phase >= Phase.FINISHING and not self._connections and not is_coming:
            self._transport.close()
            self._loop.stop()
            return
        if wanted is Phase.CUTTING:
            if self._phase is Phase.CUTTING:
                self._loop.stop()  # they were told a tick ago
                return
            self._phase = Phase.CUTTING
            log.warning("cut off after grace", extra={"connections": len(self._connections)})
            for connection in list(self._connections):
                connection.cut()


def create(holder: Holder[Snapshot], observer: DataPlaneObserver, settings: Mapping[str, str]) -> ProxyDataPlane:
    """Make a data plane from text settings; ConfigError names what cannot be used."""
    typed = from_text(settings)
    raise_descriptor_limit(needed_descriptors(typed.max_connections))
    return ProxyDataPlane(holder, observer, typed)
