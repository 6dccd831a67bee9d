"""A client's connection to an egress listener: a proxy's, or one whose bytes begin with a TLS handshake.

Theory of operation. What a connection is shows in its first bytes. `CONNECT` makes it a tunnel to one destination;
anything else is HTTP/1 or HTTP/2 with prior knowledge, whose requests name their destinations one by one
(`egress.server`); over HTTP/1 a CONNECT may follow them, and is served as on a fresh connection. On a listener for TLS
the first bytes have to be a ClientHello; they are looked at and passed on unchanged.

A tunnel that was allowed as TLS only has to begin with a ClientHello for the name that was asked for: so a policy for
`HTTPS` cannot be used to carry something else, or to reach another name behind the same address.
"""

from __future__ import annotations

import contextlib

from datum_router.egress.destination import (
    BadDestination,
    Destination,
    parse_authority_form,
    parse_destination,
)
from datum_router.errors import RemoteProtocolError, UpstreamError
from datum_router.model.egress import EgressMode, EgressReason
from datum_router.model.listener import Listener
from datum_router.model.request import LocalReply
from datum_router.reasons import Reason
from datum_router_proxy.channel import Channel, ChannelError, drain, wait_readable
from datum_router_proxy.egress.desk import Decision
from datum_router_proxy.egress.dialing import dial_one, hello_of, require_name
from datum_router_proxy.egress.original import original_destination
from datum_router_proxy.egress.server import EgressServer, RuleBook, reply_to
from datum_router_proxy.egress.tunnel import ByteTunnel
from datum_router_proxy.loop import DeadlineExpired, TaskCancelled, current_task
from datum_router_proxy.pipeline import Pipeline
from datum_router_proxy.replies import for_upstream_error
from datum_router_proxy.server.drain import NEWCOMER_S
from datum_router_proxy.server.h1 import H1Connection
from datum_router_proxy.server.h2 import H2Connection
from datum_router_proxy.wire import client_hello, connect
from datum_router_proxy.wire.client_hello import ClientHello
from datum_router_proxy.wire.http2 import PREFACE

TLS_PORT = 443
"""Where TLS goes if the kernel does not say which port was meant."""


class EgressConnection:
    """One connection; see `server.connection.Unknown`, in whose place it stands."""

    __slots__ = ("_book", "_came_at", "_channel", "_is_busy", "_listener", "_pipeline", "_serving", "_task")

    def __init__(self, pipeline: Pipeline, book: RuleBook, channel: Channel, listener: Listener) -> None:
        self._pipeline = pipeline
        self._book = book
        self._channel = channel
        self._listener = listener
        self._serving: H1Connection | H2Connection | None = None
        self._is_busy = False
        self._came_at = pipeline.loop.now
        self._task = channel.task

    @property
    def listener(self) -> Listener:
        """The listener as it was when the connection came in."""
        return self._listener

    # --- the connection's life -------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Serve it to its end."""
        task = self._task = current_task()
        channel = self._channel
        channel.task = task
        egress = self._listener.egress
        assert egress is not None
        try:
            if egress.mode is EgressMode.TLS:
                await self._pass_tls()
            else:
                await self._proxy()
        except DeadlineExpired as error:
            self._pipeline.rejected("tcp", error.reason)
            channel.abort()
        except TaskCancelled:
            channel.abort()  # the client has left, or we end
        except ChannelError:
            channel.close()  # one side has left: nothing is to be said to anybody
        finally:
            channel.close()

    async def _proxy(self) -> None:
        """Find out whether it is a CONNECT."""
        settings, loop = self._pipeline.settings, self._pipeline.loop
        task = current_task()
        task.deadline, task.deadline_reason = loop.now + settings.first_byte_timeout_s, Reason.IDLE_TIMEOUT
        first = b""
        while (len(first) < len(connect.START) and connect.START.startswith(first)) or (
            len(first) < len(PREFACE) and PREFACE.startswith(first)
        ):
            data = await self._more()
            if not data:
                return
            if not first:
                task.deadline, task.deadline_reason = loop.now + settings.head_timeout_s, Reason.HEAD_TIMEOUT
            first += data
        if first.startswith(connect.START):
            await self._connect(first)
            return
        server = EgressServer(self._pipeline, self._book, self._listener, self._channel.peer[0])
        if first.startswith(PREFACE):
            self._serving = H2Connection(server, self._channel, self._listener)
            await self._serving.run(first)
            return
        self._serving = requests = H1Connection(server, self._channel, self._listener)
        await requests.run(first)
        if requests.unserved:
            self._serving = None
            task.deadline, task.deadline_reason = loop.now + settings.head_timeout_s, Reason.HEAD_TIMEOUT
            await self._connect(requests.unserved)

    async def _more(self) -> bytes:
        """Return the next bytes, b"" at the end."""
        while True:
            await wait_readable(self._channel)
            data = self._channel.recv()
            if data is not None:
                return data

    # --- CONNECT -----------------------------------------------------------------------------------------------------

    async def _connect(self, first: bytes) -> None:
        limits = self._pipeline.h1_limits
        received = bytearray(first)
        self._is_busy = True
        try:
            while not (end := connect.find_end(received, limits)):
                data = await self._more()
                if not data:
                    return
                received += data
            head = connect.parse(bytes(received[:end]), limits)
        except RemoteProtocolError as error:
            self._pipeline.rejected("h1", error.reason)
            self._say(LocalReply(status=error.status_hint, reason=error.reason, detail=str(error)))
            return
        except DeadlineExpired as error:
            self._pipeline.rejected("h1", error.reason)
            self._say(LocalReply(status=408, reason=error.reason))
            return
        if (unwilling := self._pipeline.unwilling()) is not None:
            if unwilling is self._pipeline.admission.reply:
                current_task().deadline = float("inf")  # that of the head, which is here
                await self._pipeline.admission.hold(current_task())
            self._say(unwilling)
            return
        decision = await self._decide(parse_authority_form(head.target))
        if not decision.verdict.is_allowed:
            self._say(reply_to(decision.verdict))
            return
        try:
            upstream = await self._dial(decision, "")
        except UpstreamError as error:
            self._book.desk.unreached("h1", error.reason)
            self._say(for_upstream_error(error))
            return
        is_over = False
        try:
            self._channel.send(connect.ESTABLISHED)
            rest = bytes(received[end:])
            if decision.verdict.must_be_tls:
                rest = await self._checked(rest, decision)
            await self._carry(upstream, rest, decision)
            is_over = True
        except RemoteProtocolError:
            self._channel.linger()
        finally:
            upstream.close() if is_over else upstream.abort()

    async def _checked(self, first: bytes, decision: Decision) -> bytes:
        """Return the first bytes once they are known to be a ClientHello for the destination.

        Raises:
            RemoteProtocolError: They are not; counted.
        """
        try:
            hello, data = await self._hello(first)
            require_name(hello, decision)
        except RemoteProtocolError as error:
            self._pipeline.rejected("tls", error.reason)
            self._book.desk.refuse(decision, self._listener, EgressReason.NOT_TLS, str(error))
            with contextlib.suppress(ChannelError):
                self._channel.send(client_hello.ACCESS_DENIED)
            raise
        return data

    # --- TLS ---------------------------------------------------------------------------------------------------------

    async def _pass_tls(self) -> None:
        self._is_busy = True
        try:
            hello, data = await self._hello(b"")
        except RemoteProtocolError as error:
            self._pipeline.rejected("tls", error.reason)
            await self._decide(BadDestination(str(error)), is_tls=True)
            self._channel.linger()
            return
        if not data:
            return
        meant = original_destination(self._channel)
        decision = await self._decide(_tls_destination(hello.server_name, meant), is_tls=True)
        upstream: Channel | None = None
        try:
            if decision.verdict.is_allowed:
                upstream = await self._dial(decision, meant[0] if meant is not None else "")
        except UpstreamError:
            pass  # logged; without a connection there is nobody to pass an alert on from
        if upstream is None:
            self._channel.send(client_hello.ACCESS_DENIED)
            self._channel.linger()
            return
        is_over = False
        try:
            await self._carry(upstream, data, decision)
            is_over = True
        finally:
            upstream.close() if is_over else upstream.abort()

    async def _hello(self, data: bytes) -> tuple[ClientHello, bytes]:
        """Return what the first bytes say, and the bytes; none if the client left before it had said anything.

        Raises:
            RemoteProtocolError: It is no ClientHello, or it did not come in time.
        """
        task, loop = current_task(), self._pipeline.loop
        task.deadline = loop.now + self._pipeline.settings.tls_handshake_timeout_s
        task.deadline_reason = Reason.TLS_HANDSHAKE
        while (hello := hello_of(data)) is None:
            try:
                more = await self._more()
            except DeadlineExpired as error:
                raise RemoteProtocolError(
                    "tls: no ClientHello in time", reason=Reason.TLS_HANDSHAKE, status_hint=408
                ) from error
            if not more:
                if data:
                    raise RemoteProtocolError("tls: cut off", reason=Reason.TLS_HANDSHAKE, status_hint=400)
                return ClientHello(), b""
            data += more
        return hello, data

    # --- parts -------------------------------------------------------------------------------------------------------

    async def _decide(self, destination: Destination | BadDestination, *, is_tls: bool = False) -> Decision:
        task = current_task()
        task.deadline = float("inf")  # a lookup has a limit of its own
        self._channel.watcher = task
        try:
            return await self._book.desk.decide(self._listener, self._channel.peer[0], destination, is_tls=is_tls)
        finally:
            self._channel.watcher = None

    async def _dial(self, decision: Decision, prefer: str) -> Channel:
        self._channel.watcher = current_task()
        try:
            return await dial_one(self._pipeline.loop, decision, prefer=prefer)
        finally:
            self._channel.watcher = None

    async def _carry(self, upstream: Channel, first: bytes, decision: Decision) -> None:
        rule = decision.verdict.rule
        assert rule is not None
        settings = self._pipeline.settings
        tunnel = ByteTunnel(
            self._pipeline.loop,
            self._channel,
            upstream,
            first=first,
            idle_s=rule.idle_s or settings.tunnel_idle_timeout_s,
            moves_per_turn=settings.moves_per_turn,
        )
        reason = Reason.INTERNAL
        opened = self._book.tunnels.open(decision, self._listener, (upstream.peer[0],))
        try:
            await tunnel.run()
            await drain(self._channel)
            reason = Reason.ROUTED
        except ChannelError as error:
            reason = error.reason
            self._channel.abort()  # a cut is passed on as a cut
            raise
        except (DeadlineExpired, TaskCancelled) as error:
            reason = error.reason
            raise
        finally:
            self._book.tunnels.close(opened)
            self._book.desk.tunnel_ended(opened.decision, self._listener, "h1", tunnel, reason)

    def _say(self, reply: LocalReply) -> None:
        """Answer a CONNECT that leads nowhere, and close."""
        text = f"{reply.reason}: {reply.detail}\n" if reply.detail else f"{reply.reason}\n"
        with contextlib.suppress(ChannelError):
            self._channel.send(connect.refusal(reply.status, text, reply.headers))
        self._channel.linger(self._pipeline.settings.linger_bytes, self._pipeline.settings.linger_s)

    # --- for the data plane --------------------------------------------------------------------------------------

    @property
    def is_idle(self) -> bool:
        """True while nothing is under way."""
        return not self._is_busy and (self._serving is None or self._serving.is_idle)

    def rest(self, before: float) -> None:
        """Give up what only speeds up the next request, if nothing has come or gone since `before`."""
        if self._serving is not None and self._channel.last_progress < before:
            self._serving.rest()

    def begin_drain(self) -> None:
        """Announce the end as far as the protocol can."""
        if self._serving is not None:
            self._serving.begin_drain()

    def finish_drain(self) -> None:
        """Take no request but a first one; close now if nothing is under way. A tunnel goes on until it is cut."""
        if self._serving is not None:
            self._serving.finish_drain()
        elif not self._is_busy and self._task is not None and not self._channel.readable and not self._is_new:
            self._task.cancel(Reason.DRAINING)

    @property
    def _is_new(self) -> bool:
        return self._pipeline.loop.now - self._came_at < NEWCOMER_S

    def cut(self) -> None:
        """End everything."""
        if self._serving is not None:
            self._serving.cut()
        elif self._task is not None:
            self._task.cancel(Reason.DRAINING)


def _tls_destination(name: str, meant: tuple[str, int] | None) -> Destination | BadDestination:
    """Return where a handshake is to go: its server name decides, and without one the address that was meant."""
    port = TLS_PORT if meant is None else meant[1]
    if name:
        destination = parse_destination(name, port)
        if isinstance(destination, Destination) and destination.address:
            return BadDestination("an address as server name")  # RFC 6066 section 3
        return destination
    if meant is None:
        return BadDestination("no server name, and no address that was meant")
    host = f"[{meant[0]}]" if ":" in meant[0] else meant[0]
    return parse_destination(host, port)
