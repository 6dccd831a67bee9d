"""What connections of clients need of the data plane."""

from __future__ import annotations

from typing import Protocol

from datum_router.reasons import Reason
from datum_router_proxy.exchange import Downstream
from datum_router_proxy.express import Begun
from datum_router_proxy.flight import Takeoff
from datum_router_proxy.loop import Loop
from datum_router_proxy.request import Template
from datum_router_proxy.settings import ProxySettings
from datum_router_proxy.wire.hpack_codec import LineCache
from datum_router_proxy.wire.http1 import HeadCache, Http1Limits


class Server(Protocol):
    """See `pipeline.Pipeline`, which is it."""

    @property
    def loop(self) -> Loop:
        """The loop that everything runs on."""
        ...

    @property
    def settings(self) -> ProxySettings:
        """Limits and timeouts."""
        ...

    @property
    def h1_limits(self) -> Http1Limits:
        """What heads of HTTP/1 are held to."""
        ...

    @property
    def h1_cache(self) -> HeadCache:
        """Heads that were parsed before."""
        ...

    @property
    def h2_lines(self) -> LineCache:
        """Lines of header blocks that were encoded before."""
        ...

    @property
    def is_draining(self) -> bool:
        """Whether answers over HTTP/1 say that they are the last one of their connection."""
        ...

    @property
    def flights(self) -> Takeoff:
        """How requests begin that may need no step of a task of their own."""
        ...

    async def serve(self, downstream: Downstream, template: Template, begun: Begun | None = None) -> None:
        """Answer one request; see `pipeline`."""
        ...

    def rejected(self, protocol: str, reason: Reason) -> None:
        """Count a refusal."""
        ...
