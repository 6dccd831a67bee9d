"""What a connection says before HTTP, or before its bytes are carried on: a PROXY header, a ClientHello, a TLS
handshake.

Theory of operation. `open_connection` is one task for each connection that has to say any of this, with one deadline
for all of it (threat E9). Headers and hellos are looked at in the kernel's buffer (MSG_PEEK) and only what is used up
is taken out, so that whoever comes next, OpenSSL or a service, reads from the first byte of its own.

A PROXY header is taken from peers of `listener.trusted_proxies` alone; anybody else, and any other first bytes, are
reset: a client that says itself who it is would be believed in logs, limits and `sourceCIDRs` (threat B6).
"""

from __future__ import annotations

import ipaddress
import ssl
from collections.abc import Callable

from datum_router.model.listener import Listener, ListenerMode
from datum_router.reasons import Reason
from datum_router_proxy.channel import Channel, ChannelError, PlainChannel
from datum_router_proxy.client_identity import ClientRefused
from datum_router_proxy.loop import DeadlineExpired, TaskCancelled, current_task, park
from datum_router_proxy.server.clients import ClientDesk
from datum_router_proxy.server.tls import ServerTls, accept_tls, read_hello
from datum_router_proxy.wire.client_hello import NotTls
from datum_router_proxy.wire.proxy_header import MAX_V2_BYTES, BadProxyHeader, ProxyHeader, read_proxy_header

Network = ipaddress.IPv4Network | ipaddress.IPv6Network
Rejected = Callable[[str, Reason], None]


class Peers:
    """Which peers of a listener are believed."""

    __slots__ = ("_networks",)

    def __init__(self, networks: tuple[str, ...]) -> None:
        self._networks: tuple[Network, ...] = tuple(ipaddress.ip_network(text, strict=False) for text in networks)

    def are_trusted(self, address: str) -> bool:
        """Tell whether an address is in one of the networks; all are if none is named."""
        if not self._networks:
            return True
        try:
            peer = ipaddress.ip_address(address.partition("%")[0])
        except ValueError:
            return False  # a Unix socket, say
        return any(peer in network for network in self._networks if network.version == peer.version)


class Opened:
    """A connection that has said what it had to.

    Attributes:
        channel: Ready for HTTP, or for bytes to be carried on.
        identity: Of the binding of its TLS handshake; empty without.
        server_name: What a hello that is passed on asks for.
    """

    __slots__ = ("channel", "identity", "server_name")

    def __init__(self, channel: Channel, *, identity: str = "", server_name: str = "") -> None:
        self.channel = channel
        self.identity = identity
        self.server_name = server_name


def needs_opening(listener: Listener) -> bool:
    """Tell whether connections of a listener have anything to say first."""
    return listener.has_proxy_protocol or bool(listener.tls) or listener.mode is ListenerMode.PASSTHROUGH


async def open_connection(
    raw: PlainChannel,
    listener: Listener,
    tls: ServerTls | None,
    clients: ClientDesk,
    *,
    deadline: float,
    rejected: Rejected,
    told_client: Callable[[tuple[str, int]], bool],
) -> Opened | None:
    """Take what a connection says first; None if it is refused, which has been counted. The caller closes then.

    Args:
        clients: Looks at the certificates that clients show.
        deadline: For all of it, on the loop's clock.
        rejected: Counts by protocol and reason.
        told_client: Takes the address that a PROXY header tells; False if no more connections of it may come.
    """
    task = raw.task = current_task()
    task.deadline, task.deadline_reason = deadline, Reason.TLS_HANDSHAKE
    stage, reason = "tls", Reason.TLS_HANDSHAKE
    try:
        if listener.has_proxy_protocol:
            stage, reason = "tcp", Reason.BAD_PROXY_HEADER
            header = await _read_header(raw)
            if isinstance(header, BadProxyHeader):
                rejected(stage, reason)
                return None
            if header.source is not None and not told_client(header.source):
                rejected(stage, Reason.TOO_MANY_CONNECTIONS)
                return None
            stage, reason = "tls", Reason.TLS_HANDSHAKE
        if listener.mode is ListenerMode.PASSTHROUGH:
            reason = Reason.BAD_CLIENT_HELLO
            hello = await read_hello(raw)
            if isinstance(hello, NotTls):
                rejected(stage, reason)
                return None
            return Opened(raw, server_name=hello.server_name)
        if tls is not None:
            accepted = await accept_tls(raw, tls)
            if accepted is None:
                rejected(stage, Reason.UNKNOWN_SERVER_NAME)
                return None
            channel, identity = accepted
            channel.client = clients.admit(channel)
            return Opened(channel, identity=identity)
        return Opened(raw)
    except (ssl.SSLError, ClientRefused) as error:
        rejected(stage, clients.refused(error, raw.peer))
        return None
    except (ChannelError, DeadlineExpired, TaskCancelled):
        rejected(stage, reason)
        return None


async def _read_header(raw: PlainChannel) -> ProxyHeader | BadProxyHeader:
    while True:
        data = raw.peek(MAX_V2_BYTES)
        if data:
            header = read_proxy_header(data)
            if header is not None:
                if isinstance(header, ProxyHeader):
                    raw.skip(header.size)
                return header
        if data == b"" or raw.hangup:
            raise ChannelError("ended within its PROXY header", reason=raw.reset_reason)
        raw.expect_more()
        await park()
