"""What connections of clients need of the data plane."""

from __future__ import annotations

from typing import Protocol

from datum_router.model.listener import Listener
from datum_router.reasons import Reason
from datum_router_proxy.channel import Channel, ChannelError
from datum_router_proxy.exchange import ClientGone, Downstream
from datum_router_proxy.express import Begun
from datum_router_proxy.flight import Takeoff
from datum_router_proxy.loop import Loop
from datum_router_proxy.request import Template
from datum_router_proxy.settings import ProxySettings
from datum_router_proxy.wire import hygiene
from datum_router_proxy.wire.hpack_codec import LineCache
from datum_router_proxy.wire.http1 import Framing, FramingKind, HeadCache, Http1Connection, Http1Limits


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

    async def turn_away(self, downstream: Downstream, template: Template) -> None:
        """Answer one request that there is no time for; see `pipeline`."""
        ...

    def rejected(self, protocol: str, reason: Reason) -> None:
        """Count a refusal."""
        ...


def client_hop(channel: Channel, listener: Listener, via_protocol: bytes) -> hygiene.Hop:
    """Return what is known of a connection's client; `via_protocol`: its HTTP version as in Via."""
    client = channel.client
    return hygiene.Hop(
        peer_ip=channel.peer[0],
        scheme="https" if channel.is_tls else "http",
        trusted_hops=listener.trusted_hops,
        via_protocol=via_protocol,
        attachment=listener.attachment,
        identity=listener.identity,
        client_auth=None if client is None else client.policy,
        client_cert=b"" if client is None else client.header,
    )


def refusal(engine: Http1Connection, status: int, reason: Reason, detail: str) -> tuple[bytes, ...]:
    """Return the answer to what is no request; it is the connection's last. LocalProtocolError if none may be given."""
    body = f"{reason}: {detail}\n".encode("latin-1", "replace") if detail else f"{reason}\n".encode("ascii")
    head = engine.send_response(
        status,
        ((b"content-type", b"text/plain; charset=utf-8"),),
        framing=Framing(FramingKind.LENGTH, len(body)),
        close=True,
    )
    return head, engine.send_data(body), engine.send_end()


def tunnel_data(engine: Http1Connection, channel: Channel) -> bytes | None:
    """Return what a client has sent into its tunnel, b"" at the end, None if there is nothing now; or ClientGone."""
    first = engine.trailing_data()
    if first or not channel.readable:
        return first or None
    try:
        return channel.recv()
    except ChannelError as error:
        raise ClientGone from error
