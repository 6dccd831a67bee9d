"""Bytes between a client and what it may reach: both ways, half close, a limit on silence, nothing read ahead."""

from __future__ import annotations

from datum_router.reasons import Reason
from datum_router_proxy.channel import Channel
from datum_router_proxy.exchange import ClientGone, Downstream
from datum_router_proxy.loop import Loop, current_task, park


class ByteTunnel:
    """One tunnel; `run` belongs to the client's task.

    Args:
        first: Bytes of the client that have been read already.
        idle_s: Silence both ways after which it ends.
        moves_per_turn: Pieces that move before others get the loop.
    """

    __slots__ = (
        "_client", "_first", "_idle_s", "_loop", "_moves", "_upstream", "began_at", "bytes_in", "bytes_out",
    )  # fmt: skip

    def __init__(
        self, loop: Loop, client: Channel, upstream: Channel, *, first: bytes, idle_s: float, moves_per_turn: int
    ) -> None:
        self._loop = loop
        self._client = client
        self._upstream = upstream
        self._first = first
        self._idle_s = idle_s
        self._moves = moves_per_turn
        self.began_at = loop.now
        self.bytes_in = 0
        self.bytes_out = 0

    @property
    def endpoint(self) -> str:
        """Whom it is connected with."""
        return named(self._upstream)

    async def run(self) -> None:
        """Carry bytes until both sides have ended.

        Raises:
            ChannelError: One side broke; the other is to be cut, too, so that nobody takes what came for all there is.
            DeadlineExpired: Nothing moved for `idle_s`.
            TaskCancelled: The gateway ends.
        """
        task = current_task()
        client, upstream = self._client, self._upstream
        client.task = upstream.task = task
        task.deadline_reason = Reason.IDLE_TIMEOUT
        task.deadline = self._loop.now + self._idle_s
        is_client_done = is_upstream_done = False
        if self._first:
            self.bytes_in += len(self._first)
            upstream.send(self._first)
            self._first = b""
        turns = 0
        while not (is_client_done and is_upstream_done):
            client.check()
            upstream.check()
            moved = False
            if not is_client_done and client.readable and not upstream.buffered:
                data = client.recv()
                if data:
                    self.bytes_in += len(data)
                    upstream.send(data)
                    moved = True
                elif data is not None:
                    upstream.finish_writes()
                    is_client_done = moved = True
            if not is_upstream_done and upstream.readable and not client.buffered:
                data = upstream.recv()
                if data:
                    self.bytes_out += len(data)
                    client.send(data)
                    moved = True
                elif data is not None:
                    client.finish_writes()
                    is_upstream_done = moved = True
            if moved:
                task.deadline = self._loop.now + self._idle_s
                turns += 1
                if turns % self._moves:
                    continue
                task.wake()
            await park()
        while client.buffered or upstream.buffered:  # the last bytes: closing sends them, but the limit holds for them
            client.check()
            upstream.check()
            await park()


class StreamTunnel:
    """The same for one stream of HTTP/2, whose connection has a task of its own; `run` belongs to the stream's task."""

    __slots__ = (
        "_downstream", "_first", "_idle_s", "_loop", "_moves", "_upstream", "began_at", "bytes_in", "bytes_out",
    )  # fmt: skip

    def __init__(
        self, loop: Loop, downstream: Downstream, upstream: Channel, *, first: bytes, idle_s: float, moves_per_turn: int
    ) -> None:
        self._loop = loop
        self._downstream = downstream
        self._upstream = upstream
        self._first = first
        self._idle_s = idle_s
        self._moves = moves_per_turn
        self.began_at = loop.now
        self.bytes_in = 0
        self.bytes_out = 0

    @property
    def endpoint(self) -> str:
        """Whom it is connected with."""
        return named(self._upstream)

    async def run(self) -> None:
        """Carry bytes until both sides have ended.

        Raises:
            ChannelError: The upstream broke.
            ClientGone: The client broke.
            DeadlineExpired, TaskCancelled: See `ByteTunnel.run`.
        """
        task = current_task()
        downstream, upstream = self._downstream, self._upstream
        upstream.task = task
        task.deadline_reason = Reason.IDLE_TIMEOUT
        task.deadline = self._loop.now + self._idle_s
        is_client_done = is_upstream_done = False
        if self._first:
            self.bytes_in += len(self._first)
            upstream.send(self._first)
            self._first = b""
        turns = 0
        while not (is_client_done and is_upstream_done):
            upstream.check()
            downstream.flush()
            moved = False
            if not is_client_done and not upstream.buffered:
                data = downstream.read_body()
                if data:
                    self.bytes_in += len(data)
                    upstream.send(data)
                    moved = True
                elif data is not None:
                    upstream.finish_writes()
                    is_client_done = moved = True
            if not is_upstream_done and upstream.readable and downstream.is_writable:
                data = upstream.recv()
                if data:
                    self.bytes_out += len(data)
                    downstream.send_data(data)
                    moved = True
                elif data is not None:
                    downstream.send_end()
                    is_upstream_done = moved = True
            downstream.flush()
            if downstream.is_gone and not is_client_done:
                raise ClientGone
            if moved:
                task.deadline = self._loop.now + self._idle_s
                turns += 1
                if turns % self._moves:
                    continue
                task.wake()
            await park()
        while True:
            downstream.flush()
            if downstream.is_flushed:
                return
            if downstream.is_gone:
                raise ClientGone
            await park()


def named(channel: Channel) -> str:
    """Return the peer of a channel as endpoints are written."""
    host, port = channel.peer
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
