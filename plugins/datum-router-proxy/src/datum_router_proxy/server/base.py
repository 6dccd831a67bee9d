"""What connections of clients need of the data plane."""

from __future__ import annotations

from typing import Protocol

from datum_router.reasons import Reason
from datum_router_proxy.exchange import Downstream
from datum_router_proxy.express import Begun
from datum_router_proxy.flight import Flights
from datum_router_proxy.loop import Loop
from datum_router_proxy.request import Template
from datum_router_proxy.settings import ProxySettings
from datum_router_proxy.wire.hpack_codec import LineCache
from datum_router_proxy.wire.http1 import HeadCache, Http1Limits


class Server(Protocol):
    """See `pipeline.Pipeline`, which is it."""

    loop: Loop
    settings: ProxySettings
    h1_limits: Http1Limits
    h1_cache: HeadCache
    h2_lines: LineCache
    is_draining: bool
    flights: Flights

    async def serve(self, downstream: Downstream, template: Template, begun: Begun | None = None) -> None:
        """Answer one request; see `pipeline`."""
        ...

    def rejected(self, protocol: str, reason: Reason) -> None:
        """Count a refusal."""
        ...
