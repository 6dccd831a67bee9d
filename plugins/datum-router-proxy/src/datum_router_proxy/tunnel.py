"""WebSocket tunnels: bytes both ways, half close, an idle limit, and a close frame when the router goes down."""

from __future__ import annotations

import math

from datum_router.reasons import Reason
from datum_router_proxy.exchange import ClientGone, Downstream, End, Upstream
from datum_router_proxy.loop import Loop, current_task, park
from datum_router_proxy.settings import ProxySettings
from datum_router_proxy.wire import websocket


class FrameTracker:
    """Know whether a WebSocket byte stream stands between two frames (RFC 6455 section 5.2). Nothing is validated."""

    __slots__ = ("_head", "_left")

    def __init__(self) -> None:
        self._head = b""
        self._left = 0

    @property
    def is_between_frames(self) -> bool:
        """True if the last byte seen was the last one of a frame, or none was seen."""
        return not self._left and not self._head

    def feed(self, data: bytes) -> None:
        """Note bytes of the stream; linear in the number of frames."""
        at = 0
        size = len(data)
        while at < size:
            if self._left:
                skipped = min(self._left, size - at)
                self._left -= skipped
                at += skipped
                continue
            taken = data[at : at + 14 - len(self._head)]
            head = self._head + taken
            needed = _head_size(head)
            if len(head) < needed:
                self._head = head
                return
            at += needed - len(self._head)
            self._head = b""
            self._left = _payload_size(head)


def _head_size(head: bytes) -> int:
    if len(head) < 2:
        return 2
    kind = head[1] & 0x7F
    return 2 + (2 if kind == 126 else 8 if kind == 127 else 0) + (4 if head[1] & 0x80 else 0)


def _payload_size(head: bytes) -> int:
    kind = head[1] & 0x7F
    if kind < 126:
        return kind
    return int.from_bytes(head[2:4] if kind == 126 else head[2:10], "big")


class Tunnel:
    """One tunnel; `run` belongs to the request's task."""

    __slots__ = (
        "_downstream", "_idle_reason", "_idle_s", "_is_client_done", "_is_closing", "_is_upstream_done", "_loop",
        "_settings", "_tracker", "_upstream", "bytes_in", "bytes_out", "endpoint", "must_close",
    )  # fmt: skip

    def __init__(
        self,
        loop: Loop,
        settings: ProxySettings,
        downstream: Downstream,
        upstream: Upstream,
        idle_s: float | None = None,
        endpoint: str = "",
    ) -> None:
        """Begin between two sides.

        Args:
            endpoint: Key of the endpoint that it leads to.
            idle_s: How long both may be silent, 0 = for ever; None: `tunnel_idle_timeout_s`.
        """
        self._loop = loop
        self._idle_reason = Reason.IDLE_TIMEOUT if idle_s is None else Reason.STREAM_IDLE_TIMEOUT
        self._idle_s = settings.tunnel_idle_timeout_s if idle_s is None else idle_s or math.inf
        self._settings = settings
        self._downstream = downstream
        self._upstream = upstream
        self._tracker = FrameTracker()
        self._is_client_done = False
        self._is_upstream_done = False
        self._is_closing = False
        self.endpoint = endpoint
        self.must_close = False
        self.bytes_in = 0
        self.bytes_out = 0

    async def run(self) -> None:
        """Carry bytes until both sides have ended; once it must close, the end of the upstream is enough.

        Raises:
            UpstreamError: The upstream broke.
            ClientGone: The client broke.
            DeadlineExpired: Nothing moved for too long.
        """
        task = current_task()
        turns = 0
        task.deadline_reason = self._idle_reason
        task.deadline = self._loop.now + self._idle_s
        while not (self._is_client_done and self._is_upstream_done):
            # What was held back goes first: once it has left, more may be read, and no event says so again.
            self._upstream.flush()
            self._downstream.flush()
            moved = self._to_upstream() | self._to_client()
            self._upstream.flush()
            self._downstream.flush()
            if self._downstream.is_gone:
                raise ClientGone
            if self.must_close and self._is_upstream_done:
                return  # our side of the client's connection is closed already: nobody is left to wait for
            if self.must_close and not self._is_closing and self._tracker.is_between_frames:
                # The client answers with a close frame of its own, which goes upstream like everything it says: so
                # both ends see a proper closing handshake (RFC 6455 section 7.1.2).
                self._is_closing = True
                self._downstream.send_data(websocket.close_frame(websocket.GOING_AWAY, b"going away"))
                self._downstream.flush()
            if moved:
                task.deadline = self._loop.now + self._idle_s
                turns += 1
                if turns % self._settings.moves_per_turn:
                    continue
                task.wake()
            await park()

    def _to_upstream(self) -> bool:
        if self._is_client_done or not self._upstream.is_writable:
            return False
        data = self._downstream.read_body()
        if data is None:
            return False
        if data:
            self.bytes_in += len(data)
            self._upstream.send_data(data)
        else:
            self._is_client_done = True
            self._upstream.send_end()
        return True

    def _to_client(self) -> bool:
        if self._is_upstream_done or not self._downstream.is_writable:
            return False
        event = self._upstream.poll()
        if event is None:
            return False
        if isinstance(event, bytes):
            if not self._is_closing:  # after a close frame nothing else may be sent
                self.bytes_out += len(event)
                self._tracker.feed(event)
                self._downstream.send_data(event)
        elif isinstance(event, End):
            self._is_upstream_done = True
            self._downstream.send_end()
        return True
