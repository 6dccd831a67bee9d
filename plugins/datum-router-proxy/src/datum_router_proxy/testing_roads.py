"""A gateway without sockets or clock, for tests that compare: the same is done twice, and nobody must see a difference.

Both sides are pipes in memory; what arrives comes in the pieces that a test says, one piece at a time, each when
nothing else is left to do. So the same doings lead to the same end each time, and two runs that must not differ (by
the express lane and without it, in one piece and byte by byte) can be compared as values.

HTTP/2 upstreams read by an engine of ours, since they are not what is tested, and answer with bytes made by hand.
"""

from __future__ import annotations

import functools
import random
import re
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, cast
from unittest import mock

import h2.config
import h2.connection
import h2.events
import h2.settings
import msgspec

from datum_router.compiler.linker import Linker
from datum_router.model.listener import Listener
from datum_router.model.policy import RetryPolicy
from datum_router.model.route import Rule
from datum_router.model.service import Service
from datum_router.model.snapshot import Holder, SnapshotData
from datum_router.plugins import builtin
from datum_router.plugins.manager import Candidate, PluginSet, load_plugins
from datum_router.reasons import Reason
from datum_router_proxy.accounts import Accounts
from datum_router_proxy.channel import Channel, ChannelError
from datum_router_proxy.client_identity import ClientSession
from datum_router_proxy.express import ExpressLane
from datum_router_proxy.loop import Deferrable, Loop, Task
from datum_router_proxy.pipeline import Pipeline
from datum_router_proxy.server.h1 import H1Connection
from datum_router_proxy.server.h2 import H2Connection
from datum_router_proxy.settings import ProxySettings
from datum_router_proxy.testing_peers import SERVICE, Recorder, make_rule
from datum_router_proxy.upstream import transport
from datum_router_proxy.wire import http2

CLOSED = b""
"""As a piece: the peer closes."""
NOISE = b"\0noise"
"""As a piece: something comes that holds no data, such as a session ticket of TLS."""
MOST_STEPS = 100_000

_ID = re.compile(rb"[0-9a-f]{32}")
Field = tuple[bytes, bytes]
_DATE = re.compile(rb"date: [A-Z][a-z]{2}, [0-9]{2} [A-Z][a-z]{2} [0-9]{4} [0-9:]{8} GMT")


def masked(data: bytes) -> bytes:
    """Return `data` without what is new each time: request ids and our dates."""
    return _DATE.sub(b"date: now", _ID.sub(b"ID", data))


class Pipe:
    """One side of a connection; see `channel.Channel`. `give` makes a piece arrive, `wrote` is told what is written.

    Attributes:
        is_stuck: The peer reads nothing: what is written stays `buffered`, though `wrote` is told of it.
    """

    is_tls = False
    alpn: str | None = None
    sni: str | None = None
    client: ClientSession | None = None
    last_progress = 0.0

    def __init__(self, wrote: Callable[[bytes], None], peer: tuple[str, int]) -> None:
        self.task: Task | None = None
        self.eager: Callable[[], bool] | None = None
        self.deferrable: Deferrable | None = None
        self.on_close: Callable[[object], None] | None = None
        self.peer = peer
        self.reset_reason = Reason.DOWNSTREAM_RESET
        self.hangup = False
        self.buffered = 0
        self.is_stuck = False
        self.is_closed = False
        self.ended = ""  # how we closed it
        self._wrote = wrote
        self._coming: deque[bytes] = deque()
        self._pieces: deque[bytes] = deque()

    @property
    def readable(self) -> bool:
        """See `Channel.readable`."""
        return bool(self._pieces)

    def give(self, data: bytes) -> None:
        """Let a piece arrive when the loop goes on."""
        self._coming.append(data)

    def tell(self) -> bool:
        """Do what the loop does when pieces have arrived; False if none have."""
        coming = list(self._coming)
        self._coming.clear()
        for data in coming:
            if not (self.is_closed or self.hangup):
                self._arrive(data)
        return bool(coming)

    def _arrive(self, data: bytes) -> None:
        self._pieces.append(data)
        if data == CLOSED:
            self.hangup = True
        task = self.task
        if task is not None and (self.eager is None or not self.eager()):
            task.wake()

    def recv(self, size: int = 65_536) -> bytes | None:
        """See `Channel.recv`."""
        if self.is_closed:
            self.check()
        while self._pieces and self._pieces[0] is NOISE:
            self._pieces.popleft()
        if not self._pieces:
            return None
        data = self._pieces[0]
        if len(data) > size:
            self._pieces[0] = data[size:]
        elif data:
            self._pieces.popleft()
        return data[:size]

    def write(self, *buffers: bytes | memoryview) -> None:
        """See `Channel.write`."""
        self.check()
        data = b"".join(buffers)
        if self.is_stuck:
            self.buffered += len(data)
        self._wrote(data)

    def unstick(self) -> None:
        """Let the peer read on."""
        self.is_stuck = False
        if self.buffered and not self.is_closed:
            self.buffered = 0
            if self.task is not None:
                self.task.wake()

    def send(self, data: bytes) -> None:
        """See `Channel.send`."""
        self.write(data)

    def check(self) -> None:
        """See `Channel.check`."""
        if self.is_closed:
            raise ChannelError("closed by us", reason=self.reset_reason)

    def finish_writes(self) -> None:
        """See `Channel.finish_writes`."""
        self._end("half closed")

    def close(self) -> None:
        """See `Channel.close`."""
        self._release("closed")

    def linger(self, _bytes: int = 0, _seconds: float = 0.0) -> None:
        """See `Channel.linger`."""
        self._release("closed")

    def abort(self) -> None:
        """See `Channel.abort`."""
        self._release("reset")

    def _end(self, how: str) -> None:
        self.ended = self.ended or how
        self._wrote(CLOSED)

    def _release(self, how: str) -> None:
        if not self.is_closed:
            self.is_closed = True
            self._pieces.clear()
            task, self.task = self.task, None
            if task is not None:
                task.wake()
            self._end(how)


class Peer:
    """What stands behind a pipe: takes what the gateway writes, and has pieces to send."""

    def __init__(self, address: str) -> None:
        self.pipe = Pipe(self.take, (address, 1234))
        self.to_send: deque[bytes] = deque()

    def take(self, data: bytes) -> None:
        """Take what the gateway has written, `CLOSED` at the end."""
        raise NotImplementedError

    def step(self) -> bool:
        """Let one piece arrive if there is any."""
        if not self.to_send:
            return False
        self.pipe.give(self.to_send.popleft())
        return True


RETRY = RetryPolicy(max_retries=1, retry_on_status=(503,), initial_backoff_s=0.0, max_backoff_s=0.0)
"""Without a pause: waiting would take a clock."""


class Forwarded(msgspec.Struct, frozen=True, kw_only=True, order=True):
    """A request as it reached an upstream; `head` has no ids in it, and `grpc-timeout` is left out."""

    head: bytes
    body: bytes
    request_id: bytes
    address: bytes


class World:
    """A gateway and its surroundings: one service, at one endpoint, and rules that lead there.

    Attributes:
        forwarded: Requests that reached upstreams, in order; express: How many requests the lane has served.
        upstreams, clients: Whoever is or was connected.
        now: The loop's clock, in seconds.
    """

    def __init__(self, service: Service, upstream: Callable[[World], Peer], rules: Sequence[Rule] = ()) -> None:
        self.now = 1000.0
        self.loop = Loop(rng=random.Random(1), clock=lambda: self.now)
        self.observer = Recorder()
        self.forwarded: list[Forwarded] = []
        self.express = 0
        self.upstreams: list[Peer] = []
        self.clients: list[Peer] = []
        self._service = service
        self._upstream = upstream
        self._version = 0
        self._linker = Linker(_plugins())
        self.holder = Holder(self._linker.link(SnapshotData()))
        self.edit(rules or [make_rule(retry=RETRY)])
        settings = ProxySettings()
        self.transport = transport.Transport(self.loop, settings)
        self.pipeline = Pipeline(self.loop, self.holder, self.observer, settings, self.transport)

    def edit(self, rules: Iterable[Rule], service: Service | None = None) -> None:
        """Put another configuration in force."""
        self._version += 1
        self._service = service or self._service
        data = SnapshotData(version=self._version, services={self._service.key: self._service}, rules=tuple(rules))
        self.holder.swap(self._linker.link(data))

    @contextmanager
    def running(self, *, has_lane: bool = True) -> Iterator[World]:
        """Let dials lead to upstreams, and switch the express lane off if that is asked for."""

        async def dial(*_: object, **__: object) -> Channel:
            peer = self._upstream(self)
            self.upstreams.append(peer)
            return cast(Channel, peer.pipe)

        ended = Accounts.express_ended

        def count(accounts: Accounts, *args: Any) -> None:
            self.express += 1
            ended(accounts, *args)

        plan = ExpressLane.plan if has_lane else _no_plan
        with (
            mock.patch.object(transport, "dial", dial),
            mock.patch.object(ExpressLane, "plan", plan),
            mock.patch.object(Accounts, "express_ended", count),
        ):
            try:
                yield self
            finally:
                self.loop._close()

    def connect(self, client: Peer, *, is_h2: bool, listener: Listener = Listener(name="test")) -> None:
        """Let a client connect."""
        serving = (H2Connection if is_h2 else H1Connection)(self.pipeline, cast(Channel, client.pipe), listener)
        self.clients.append(client)
        client.pipe.task = self.loop.spawn(serving.run(b""), name="client")

    def settle(self) -> None:
        """Go on until nobody has anything to do; a piece arrives only when all tasks have come to rest."""
        for _ in range(MOST_STEPS):
            has_told = [peer.pipe.tell() for peer in (*self.upstreams, *self.clients)]
            has_more = self.loop.drain() or any(has_told)
            if not has_more and not any(peer.step() for peer in (*self.upstreams, *self.clients)):
                return
        raise AssertionError("no end of it")

    def wait(self, seconds: float) -> None:
        """Let time pass."""
        self.now += seconds
        self.loop.sweep()
        self.settle()

    def end(self) -> None:
        """Let everybody leave, clients last, and everything time out that still waits for something."""
        for peer in (*self.upstreams, *self.clients):
            peer.pipe.give(CLOSED)
            self.settle()
        self.wait(1000.0)
        self.wait(1000.0)

    @property
    def left_over(self) -> str:
        """Say what is held although nothing is under way, an empty text if that is nothing."""
        state = self.holder.current.services[SERVICE]
        found = {
            "leases": sum(state.active.values()),
            "permits": state.limits.requests,
            "in flight": self.pipeline.in_flight,
            "failed tasks": self.loop.failures,
        }
        return ", ".join(f"{count} {what}" for what, count in found.items() if count)


class H1Client(Peer):
    """A client that keeps what it gets."""

    def __init__(self, address: str = "192.0.2.1") -> None:
        super().__init__(address)
        self.got = b""

    def take(self, data: bytes) -> None:
        """See `Peer`."""
        self.got += data


H1Answer = Callable[[Forwarded], Sequence[bytes]]


class H1Server(Peer):
    """An upstream that takes canonical requests only (G6); `answer` gives the pieces of the response to one."""

    def __init__(self, world: World, answer: H1Answer) -> None:
        super().__init__("192.0.2.250")
        self._world = world
        self._answer = answer
        self._buffer = b""

    def take(self, data: bytes) -> None:
        """See `Peer`."""
        self._buffer += data
        while (end := whole_request(self._buffer)) > 0:
            request, self._buffer = self._buffer[:end], self._buffer[end:]
            head, _, body = request.partition(b"\r\n\r\n")
            fields = dict(line.partition(b": ")[::2] for line in head.split(b"\r\n")[1:])
            one = Forwarded(
                head=masked(head),
                body=body,
                request_id=fields[b"x-request-id"],
                address=fields[b"x-forwarded-for"],
            )
            self._world.forwarded.append(one)
            self.to_send.extend(self._answer(one))


def whole_request(data: bytes) -> int:
    """Return where the first request in `data` ends, 0 if it does not yet."""
    head, mark, rest = data.partition(b"\r\n\r\n")
    if not mark:
        return 0
    size = len(head) + 4
    lines = head.split(b"\r\n")
    assert re.fullmatch(rb"[A-Z]+ [!-~]+ HTTP/1\.1", lines[0]), lines[0]
    fields = [line.partition(b": ")[::2] for line in lines[1:]]
    names = [name for name, _ in fields]
    assert all(re.fullmatch(rb"[!#$%&'*+.^`|~0-9a-z-]+", name) for name in names), names
    assert all(names.count(name) == 1 for name in (b"host", b"x-request-id", b"via", b"x-forwarded-for")), names
    lengths = [value for name, value in fields if name == b"content-length"]
    codings = [value for name, value in fields if name == b"transfer-encoding"]
    assert len(lengths) + len(codings) <= 1, names
    if lengths:
        size += int(lengths[0])
    elif codings:
        assert codings == [b"chunked"]
        end = re.match(rb"(?s)(?:([1-9a-f][0-9a-f]*)\r\n.*?\r\n)*?0\r\n\r\n", rest)
        return size + end.end() if end else 0
    return size if len(data) >= size else 0


H2Answer = Callable[[http2.RequestReceived], Sequence[bytes]]


class H2Server(Peer):
    """An upstream over HTTP/2; `answer` gives the pieces of the response to a request, as frames."""

    def __init__(self, world: World, answer: H2Answer, limits: http2.Http2Limits | None = None) -> None:
        super().__init__("192.0.2.250")
        self._world = world
        self._answer = answer
        self._engine = http2.Http2Connection(http2.Role.SERVER, limits)
        self._requests: dict[int, tuple[http2.RequestReceived, list[bytes]]] = {}
        self._engine.initiate()
        self.to_send.append(self._engine.data_to_send())

    def take(self, data: bytes) -> None:
        """See `Peer`."""
        engine = self._engine
        events = engine.receive_data(data, 0.0)
        while engine.has_buffered:
            events += engine.receive_data_more(0.0)
        answers: list[bytes] = []
        for event in events:
            if isinstance(event, http2.RequestReceived):
                self._requests[event.stream_id] = (event, [])
            elif isinstance(event, http2.DataReceived):
                self._requests[event.stream_id][1].append(event.data)
                engine.acknowledge(event.stream_id, len(event.data))
            elif isinstance(event, http2.StreamReset):
                self._requests.pop(event.stream_id, None)
                engine.release(event.stream_id)
            elif isinstance(event, http2.ConnectionTerminated):
                assert not event.error_code, event
            if isinstance(event, http2.StreamEnded | http2.TrailersReceived) or getattr(event, "end_stream", False):
                answers += self._ended(*self._requests.pop(event.stream_id))  # type: ignore[union-attr]
        out = engine.data_to_send()
        if out:
            self.to_send.append(out)
        self.to_send.extend(answers)

    def _ended(self, request: http2.RequestReceived, body: list[bytes]) -> Sequence[bytes]:
        fields = dict(request.fields)
        kept = [f"{name!r}: {value!r}" for name, value in request.fields if name not in _NEW_EACH_TIME]
        head = f"{request.method!r} {request.path!r} {request.authority!r} {kept} {request.content_length}"
        one = Forwarded(
            head=head.encode("ascii"),
            body=b"".join(body),
            request_id=fields[b"x-request-id"],
            address=fields[b"x-forwarded-for"],
        )
        self._world.forwarded.append(one)
        return self._answer(request)


_NEW_EACH_TIME = frozenset((b"x-request-id", b"grpc-timeout"))


class H2Client(Peer):
    """A client over HTTP/2 (the package h2) that keeps what it gets, per stream.

    Attributes:
        is_over: The gateway has said goodbye: no request can be sent any more.
    """

    def __init__(self, address: str = "192.0.2.1", *, window_bytes: int = 65_535) -> None:
        super().__init__(address)
        self.connection = h2.connection.H2Connection(h2.config.H2Configuration(client_side=True, header_encoding=None))
        self.got: dict[int, list[tuple[str, object]]] = {}
        self.is_over = False
        self.connection.initiate_connection()
        self.connection.update_settings({h2.settings.SettingCodes.INITIAL_WINDOW_SIZE: window_bytes})
        self.flush()

    def flush(self) -> None:
        """Let what is queued arrive as one piece."""
        data = self.connection.data_to_send()
        if data:
            self.to_send.append(data)

    def request(self, fields: Sequence[Field], *bodies: bytes) -> int:
        """Send a request; each part of the body arrives as a piece of its own."""
        stream_id = self.connection.get_next_available_stream_id()
        self.got[stream_id] = []
        self.connection.send_headers(stream_id, list(fields), end_stream=not bodies)
        for number, body in enumerate(bodies, 1):
            largest = self.connection.max_outbound_frame_size
            for start in range(0, max(1, len(body)), largest):
                is_last = number == len(bodies) and start + largest >= len(body)
                self.connection.send_data(stream_id, body[start : start + largest], end_stream=is_last)
            self.flush()
        self.flush()
        return stream_id

    def take(self, data: bytes) -> None:
        """See `Peer`."""
        for event in self.connection.receive_data(data):
            stream_id = getattr(event, "stream_id", 0)
            got = self.got.setdefault(stream_id, [])
            if isinstance(event, h2.events.DataReceived):
                self.connection.acknowledge_received_data(event.flow_controlled_length, stream_id)
                if got[-1][0] == "data":
                    got.append(("data", cast(bytes, got.pop()[1]) + event.data))
                elif event.data:
                    got.append(("data", event.data))
            elif isinstance(event, _HEADS):
                # An end without a body is an end, whether a length of 0 is stated or not.
                fields = [(n, v) for n, v in event.headers if n != b"date" and (n, v) != (b"content-length", b"0")]
                got.append((type(event).__name__, sorted((bytes(name), masked(value)) for name, value in fields)))
            elif isinstance(event, h2.events.StreamEnded):
                got.append(("end", 0))
            elif isinstance(event, h2.events.StreamReset | h2.events.ConnectionTerminated):
                got.append(("cut", int(event.error_code or 0)))
                self.is_over = self.is_over or isinstance(event, h2.events.ConnectionTerminated)
        self.flush()


_HEADS = (h2.events.ResponseReceived, h2.events.InformationalResponseReceived, h2.events.TrailersReceived)


@functools.cache
def _plugins() -> PluginSet:
    return load_plugins([Candidate(entry_point="builtin", distribution="datum-router", load=lambda: builtin)])


def _no_plan(*_: object) -> None:
    """Stand for `ExpressLane.plan`: the lane serves nothing."""
