"""Which protocol a new connection speaks: ALPN says so under TLS; in the clear the first bytes do."""

from __future__ import annotations

import contextlib

from datum_router.model.listener import Listener
from datum_router.reasons import Reason
from datum_router_proxy.channel import Channel, ChannelError, wait_readable
from datum_router_proxy.loop import DeadlineExpired, TaskCancelled, current_task
from datum_router_proxy.server.base import Server
from datum_router_proxy.server.drain import NEWCOMER_S
from datum_router_proxy.server.h1 import H1Connection
from datum_router_proxy.server.h2 import H2Connection
from datum_router_proxy.wire.http2 import PREFACE, ErrorCode
from datum_router_proxy.wire.http2.frames import goaway_frame


class Unknown:
    """A connection that has not said yet what it speaks; afterwards it stands for the one that serves it.

    Attributes:
        serving: The connection of its protocol, once that is known.
        has_departed: Its listener has gone; see `depart`.
    """

    __slots__ = (
        "_came_at",
        "_channel",
        "_first",
        "_is_ending",
        "_listener",
        "_plane",
        "_task",
        "has_departed",
        "serving",
    )

    def __init__(self, plane: Server, channel: Channel, listener: Listener) -> None:
        self._plane = plane
        self._channel = channel
        self._listener = listener
        self.serving: H1Connection | H2Connection | None = None
        self._first = b""
        self._task = channel.task
        self._came_at = plane.loop.now
        self._is_ending = False
        self.has_departed = False

    async def find_out(self) -> None:
        """Find out what it speaks and set `serving`; None is left there if it has ended before that."""
        self._task = current_task()
        self._channel.task = self._task
        channel = self._channel
        first = b""
        if channel.is_tls:
            is_h2 = channel.alpn == "h2"
        else:
            task = self._task
            task.deadline = self._plane.loop.now + self._plane.settings.first_byte_timeout_s
            task.deadline_reason = Reason.IDLE_TIMEOUT
            try:
                first = await self._first_bytes()
            except (ChannelError, DeadlineExpired, TaskCancelled) as error:
                if isinstance(error, DeadlineExpired):
                    self._plane.rejected("tcp", error.reason)
                channel.close()
                return
            is_h2 = "h2" in self._listener.alpn and first.startswith(PREFACE)
            if not is_h2 and _is_half_a_preface(first) and "h2" in self._listener.alpn:
                self._plane.rejected("h2", Reason.BAD_PREFACE)
                with contextlib.suppress(ChannelError):
                    channel.write(goaway_frame(0, ErrorCode.PROTOCOL_ERROR))
                channel.linger()
                return
        serving = (H2Connection if is_h2 else H1Connection)(self._plane, channel, self._listener)
        self._first = first
        self.serving = serving
        if self._is_ending:
            serving.finish_drain()

    def take_first(self) -> bytes:
        """Return and forget the bytes that were read to find out; they are held by nobody while it is served."""
        first, self._first = self._first, b""
        return first

    async def _first_bytes(self) -> bytes:
        """Return the first bytes: enough to recognise HTTP/2 with prior knowledge (RFC 9113 section 3.3).

        Part of a preface comes back as it is if the rest does not follow in time (threat D18).
        """
        channel = self._channel
        first = b""
        may_be_h2 = "h2" in self._listener.alpn
        while True:
            try:
                await wait_readable(channel)
            except DeadlineExpired:
                if first:
                    return first
                raise
            data = channel.recv()
            if data is None:
                continue
            if not first and self._task is not None:
                self._task.deadline = self._plane.loop.now + self._plane.settings.preface_timeout_s
            first += data
            if not data or not may_be_h2 or len(first) >= len(PREFACE) or not PREFACE.startswith(first):
                return first

    @property
    def channel(self) -> Channel:
        """The channel."""
        return self._channel

    @property
    def listener(self) -> Listener:
        """The listener as it was when the connection came in."""
        return self._listener

    @property
    def is_idle(self) -> bool:
        """True while no request is under way."""
        return self.serving is None or self.serving.is_idle

    def rest(self, before: float) -> None:
        """Give up what only speeds up the next request, if nothing has come or gone since `before`."""
        if self.serving is not None and self._channel.last_progress < before:
            self.serving.rest()

    def begin_drain(self) -> None:
        """Announce the end as far as the protocol can."""
        if self.serving is not None:
            self.serving.begin_drain()

    def finish_drain(self) -> None:
        """Take no request but a first one; close now if none is under way. To be called until it has ended."""
        self._is_ending = True
        if self.serving is not None:
            self.serving.finish_drain()
        elif self._task is not None and not self._channel.readable and not self._is_new:
            self._task.cancel(Reason.DRAINING)

    def depart(self, server: Server) -> None:
        """Have what is asked from now on served by `server`: the listener has gone."""
        self._plane = server
        self.has_departed = True
        if self.serving is not None:
            self.serving.depart(server)

    @property
    def _is_new(self) -> bool:
        return self._plane.loop.now - self._came_at < NEWCOMER_S

    def cut(self) -> None:
        """End everything."""
        if self.serving is not None:
            self.serving.cut()
        elif self._task is not None:
            self._task.cancel(Reason.DRAINING)


def _is_half_a_preface(first: bytes) -> bool:
    """Tell whether `first` can become nothing but a preface: three bytes may still be a request of HTTP/1."""
    return first.startswith(b"PRI ") and PREFACE.startswith(first)
