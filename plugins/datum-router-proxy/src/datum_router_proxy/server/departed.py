"""Whom connections ask whose listener has left the configuration: routes as they were when it was last there.

Theory of operation. A snapshot without a listener says nothing true of what comes in by it: no route is bound to it, no
host is held to a client certificate. So when a listener goes, its connections are given a `DepartedServer` in place of
the pipeline. It has the pipeline serve by the last snapshot with that listener, as long as one of its connections may
still be on its way to its first request; later ones, of which there should be none, are told 503, and so is at once who
was asked for a certificate.
Nothing takes the fast lanes, whose plans are made for the snapshot in force; what is in the air already lands there.
"""

from __future__ import annotations

from collections.abc import Callable

from datum_router.compiler.link import Snapshot
from datum_router.reasons import Reason
from datum_router_proxy.exchange import Downstream
from datum_router_proxy.express import Begun
from datum_router_proxy.flight import AnyFlight, FlyingDownstream, SinglyDownstream, Takeoff
from datum_router_proxy.loop import Loop, Task
from datum_router_proxy.pipeline import Pipeline
from datum_router_proxy.request import Template
from datum_router_proxy.server.drain import NEWCOMER_S
from datum_router_proxy.settings import ProxySettings
from datum_router_proxy.wire.hpack_codec import LineCache
from datum_router_proxy.wire.http1 import HeadCache, Http1Limits


class _Landing:
    """Flights that have begun come to their end; none begins."""

    __slots__ = ("_flights",)

    def __init__(self, flights: Takeoff) -> None:
        self._flights = flights

    def fly(self, template: Template, task: Task, on_input: Callable[[], bool]) -> Begun | None:
        return None

    def arrive(self, downstream: SinglyDownstream, template: Template, begun: Begun) -> bool | None:
        return self._flights.arrive(downstream, template, begun)

    def land(self, template: Template, begun: Begun, error: Exception) -> None:
        self._flights.land(template, begun, error)

    def crash(self, begun: Begun) -> None:
        self._flights.crash(begun)

    def launch(self, downstream: FlyingDownstream, template: Template) -> AnyFlight | Begun | None:
        return None


class DepartedServer:
    """See `server.base.Server`; one for each listener that has gone.

    Attributes:
        is_draining: True: each answer over HTTP/1 is the last one of its connection.
    """

    __slots__ = ("_pipeline", "_snapshot", "_until", "flights", "h1_cache", "h1_limits", "h2_lines", "is_draining")

    def __init__(self, pipeline: Pipeline) -> None:
        self._pipeline = pipeline
        self._snapshot: Snapshot | None = None
        self._until = 0.0
        self.is_draining = True
        self.flights: Takeoff = _Landing(pipeline.flights)
        self.h1_limits: Http1Limits = pipeline.h1_limits
        self.h1_cache: HeadCache = pipeline.h1_cache
        self.h2_lines: LineCache = pipeline.h2_lines

    @property
    def loop(self) -> Loop:
        """The loop."""
        return self._pipeline.loop

    @property
    def settings(self) -> ProxySettings:
        """The settings."""
        return self._pipeline.settings

    def rejected(self, protocol: str, reason: Reason) -> None:
        """Count a refusal."""
        self._pipeline.rejected(protocol, reason)

    def serve_by(self, snapshot: Snapshot) -> None:
        """Serve by `snapshot`, the last one with the listener, for as long as who is let in may take to ask."""
        settings = self.settings
        self._snapshot = snapshot
        self._until = self.loop.now + settings.tls_handshake_timeout_s + NEWCOMER_S + settings.head_timeout_s

    def forget(self) -> bool:
        """Let go of the snapshot if its time is over; True then. A tunnel that goes on is not to keep it alive."""
        if self.loop.now >= self._until:
            self._snapshot = None
        return self._snapshot is None

    async def serve(self, downstream: Downstream, template: Template, begun: Begun | None = None) -> None:
        """Answer one request."""
        if begun is not None:  # its rule was chosen before the listener went
            await self._pipeline.serve(downstream, template, begun)
        else:
            await self._pipeline.serve_departed(downstream, template, self._snapshot)

    async def turn_away(self, downstream: Downstream, template: Template) -> None:
        """Answer one request that there is no time for."""
        await self._pipeline.turn_away(downstream, template)
