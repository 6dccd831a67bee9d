"""What supervisor and workers say to each other: typed messages, length-prefixed msgpack over a Unix socket pair.

Listening sockets travel beside the message that announces them (SCM_RIGHTS): one descriptor per `ListenerSocket`,
in the same order. The channel is trusted (both ends are ours), bounded by `MAX_MESSAGE_BYTES`.
"""

from __future__ import annotations

import array
import collections
import socket
from collections.abc import Mapping

import msgspec
import trio

from datum_router.errors import DatumRouterError
from datum_router.health.trial import TrialVerdict
from datum_router.health.view import OutcomeBatch
from datum_router.model.endpoint import Locality
from datum_router.model.snapshot import SnapshotData, SnapshotDelta
from datum_router.observe.cells import Cell, CellKey
from datum_router.observe.meter import MeterDelta
from datum_router.plugins.protocols import HealthChange

MAX_MESSAGE_BYTES = 512 * 1024 * 1024
READ_BYTES = 256 * 1024
MAX_FDS = 16


class _Message(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag=True):
    """Base of all messages; the tag is the class name."""


class PluginModule(msgspec.Struct, frozen=True, kw_only=True):
    """A plugin that the supervisor has loaded, for the worker to load; attributes as in `LoadedPlugin`."""

    entry_point: str
    distribution: str
    target: str


class Configure(_Message, frozen=True, kw_only=True):
    """First message to a worker: what it is to be."""

    index: int
    workers: int = 1
    session_key: bytes = b""
    data_plane: str
    data_plane_config: Mapping[str, str]
    place: Locality
    report_interval_s: float
    orphan_grace_s: float
    lameduck_s: float
    grace_s: float
    access_log: bool
    rate_limit_store: str = ""
    rate_limit_store_config: Mapping[str, str] = {}
    plugins: tuple[PluginModule, ...]


class FullSnapshot(_Message, frozen=True, kw_only=True):
    """The whole configuration; `health` lists every endpoint that is not simply usable since ever."""

    data: SnapshotData
    health: tuple[HealthChange, ...] = ()


class DeltaSnapshot(_Message, frozen=True, kw_only=True):
    """A change to the configuration that the worker already has."""

    delta: SnapshotDelta


class HealthUpdates(_Message, frozen=True, kw_only=True):
    """Endpoints whose usability changed."""

    changes: tuple[HealthChange, ...]


class ListenerSocket(_Message, frozen=True, kw_only=True):
    """A bound, listening socket for the listener of that name comes with this message."""

    name: str


class TicketSecrets(_Message, frozen=True, kw_only=True):
    """What TLS session tickets are made by from now on: the first; the others are still good. In memory only."""

    secrets: tuple[bytes, ...]

    def __repr__(self) -> str:
        return f"TicketSecrets(secrets=<{len(self.secrets)} redacted>)"


class Drain(_Message, frozen=True, kw_only=True):
    """Finish gracefully and exit."""

    lameduck_s: float
    grace_s: float


class Hello(_Message, frozen=True, kw_only=True):
    """The worker is up and has loaded its plugins."""

    pid: int


class Programmed(_Message, frozen=True, kw_only=True):
    """The worker serves this version now; `digest` proves the same content, an empty one asks for all of it."""

    version: int
    digest: str


class LinkFailed(_Message, frozen=True, kw_only=True):
    """The worker could not put this version in force (a plugin failed); it serves the last good one on."""

    version: int
    error: str


class Measure(_Message, frozen=True, kw_only=True):
    """Report now, with everything; the report says `answers=number`."""

    number: int


class Report(_Message, frozen=True, kw_only=True):
    """What has changed since the last report.

    Attributes:
        meters, counters: What has been counted since then.
        gauges, gone: Gauges that have another value now, and those that are no more.
        stats: The data plane's plain gauges, all of them.
        outcomes: How attempts ended, in order, run-length encoded.
        trials: What trials of half-open endpoints have told.
        answers: The newest `Measure` this report is for, 0 if none.
    """

    meters: tuple[MeterDelta, ...] = ()
    counters: tuple[Cell, ...] = ()
    gauges: tuple[Cell, ...] = ()
    gone: tuple[CellKey, ...] = ()
    stats: Mapping[str, int] = {}
    outcomes: tuple[OutcomeBatch, ...] = ()
    trials: tuple[TrialVerdict, ...] = ()
    answers: int = 0


class Drained(_Message, frozen=True, kw_only=True):
    """The worker has finished its drain and is about to exit."""


Message = (
    Configure
    | FullSnapshot
    | DeltaSnapshot
    | HealthUpdates
    | ListenerSocket
    | TicketSecrets
    | Drain
    | Hello
    | Programmed
    | LinkFailed
    | Measure
    | Report
    | Drained
)


class ControlClosed(DatumRouterError):
    """Report that the other end of a control channel is gone."""


class ControlChannel:
    """One end of a control channel. `send` may be called by several tasks, `receive` by one."""

    __slots__ = ("_buffer", "_decoder", "_encoder", "_fds", "_lock", "_sock")

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self._sock = trio.socket.from_stdlib_socket(sock)
        self._encoder = msgspec.msgpack.Encoder()
        self._decoder: msgspec.msgpack.Decoder[Message] = msgspec.msgpack.Decoder(Message)
        self._buffer = bytearray()
        self._fds: collections.deque[int] = collections.deque()
        self._lock = trio.Lock()

    def encode(self, message: Message) -> bytes:
        """Return the bytes of a message, so that one encoding can go to many workers."""
        body = self._encoder.encode(message)
        if len(body) > MAX_MESSAGE_BYTES:
            raise DatumRouterError(f"control message: found {len(body)} bytes, expected at most {MAX_MESSAGE_BYTES}")
        return len(body).to_bytes(4, "big") + body

    async def send(self, message: Message | bytes, *, fd: int | None = None) -> None:
        """Send one message (or its encoding) and, if given, a descriptor beside it.

        If cancelled half-way the channel is unusable, since a part of the message may have left.

        Raises:
            ControlClosed: The other end is gone.
        """
        data = message if isinstance(message, bytes) else self.encode(message)
        async with self._lock:
            view = memoryview(data)
            try:
                if fd is not None:
                    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [fd]))]
                    sent = await self._sock.sendmsg([view[:1]], rights)
                    view = view[sent:]
                while view:
                    sent = await self._sock.send(view)
                    view = view[sent:]
            except (BrokenPipeError, ConnectionResetError, OSError) as error:
                raise ControlClosed(f"control channel: {error}") from error

    async def receive(self) -> Message:
        """Return the next message.

        Raises:
            ControlClosed: End of file.
        """
        buffer = self._buffer
        while True:
            if len(buffer) >= 4:
                size = int.from_bytes(buffer[:4], "big")
                if len(buffer) >= 4 + size:
                    body = bytes(memoryview(buffer)[4 : 4 + size])
                    del buffer[: 4 + size]
                    return self._decoder.decode(body)
            try:
                data, ancillary, _flags, _address = await self._sock.recvmsg(
                    READ_BYTES, socket.CMSG_SPACE(MAX_FDS * array.array("i").itemsize)
                )
            except OSError as error:
                raise ControlClosed(f"control channel: {error}") from error
            for level, kind, payload in ancillary:
                if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                    fds = array.array("i")
                    fds.frombytes(payload[: len(payload) - len(payload) % fds.itemsize])
                    self._fds.extend(fds)
            if not data:
                raise ControlClosed("control channel: end of file")
            buffer += data

    def take_socket(self) -> socket.socket:
        """Return the socket that came with the `ListenerSocket` message just received."""
        return socket.socket(fileno=self._fds.popleft())

    def close(self) -> None:
        """Close this end and every descriptor that nobody took."""
        self._sock.close()
        while self._fds:
            socket.close(self._fds.popleft())
