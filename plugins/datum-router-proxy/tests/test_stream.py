"""Bytes that are carried on: back-pressure, half closes, resets, silence; and which rule and endpoint take them."""

from __future__ import annotations

import random
import select
import socket
from collections.abc import Callable, Iterator

import msgspec
import pytest
import trio

from datum_router.clock import ManualClock
from datum_router.compiler.lease import Lease
from datum_router.model.listener import Listener, ListenerMode
from datum_router.reasons import Reason
from datum_router_proxy.channel import BULK_BYTES, ChannelError, PlainChannel
from datum_router_proxy.loop import DeadlineExpired, Loop, park
from datum_router_proxy.server.stream import Relay, Stream
from datum_router_proxy.testing_peers import bounded, gateway, make_rule, make_service
from datum_router_proxy.upstream.transport import Transport

IDLE_S = 60.0


def pump(loop: Loop, until: Callable[[], bool], *, timeout_s: float = 10.0) -> None:
    while not until():
        if loop.drain() or until():
            continue
        ready, _, _ = select.select([loop._epoll.fileno()], [], [], timeout_s)
        assert ready or until(), "nothing happened for too long"


class Bench:
    """A relay between two socket pairs whose far ends the test holds."""

    def __init__(self, loop: Loop) -> None:
        self.loop = loop
        self.ends: list[Exception | None] = []
        near_client, self.client = socket.socketpair()
        near_service, self.service = socket.socketpair()
        self.channels = []
        for sock in (near_client, near_service):
            sock.setblocking(False)
            self.channels.append(PlainChannel(loop, sock))
        self.channels[1].reset_reason = Reason.UPSTREAM_RESET
        for sock in (self.client, self.service):
            sock.setblocking(False)
        self.relay = Relay(*self.channels)
        loop.spawn(self._run(), name="relay")
        loop.drain()

    async def _run(self) -> None:
        try:
            await self.relay.run(self.loop, idle_s=IDLE_S, moves_per_turn=16)
        except (ChannelError, DeadlineExpired) as error:
            self.ends.append(error)
        else:
            self.ends.append(None)
        finally:
            for channel in self.channels:
                channel.task = None
                channel.abort()

    def settle(self) -> None:
        while self.loop.drain():
            pass

    def close(self) -> None:
        self.client.close()
        self.service.close()
        for channel in self.channels:
            channel.abort()


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock(100.0)


@pytest.fixture
def bench(clock: ManualClock) -> Iterator[Bench]:
    loop = Loop(clock=clock, rng=random.Random(1))
    made = Bench(loop)
    yield made
    made.close()
    if not loop.is_closed:
        loop._close()


def test_bytes_go_both_ways_and_the_end_of_one_side_leaves_the_other_open(bench: Bench) -> None:
    bench.client.sendall(b"question")
    bench.client.shutdown(socket.SHUT_WR)
    bench.settle()
    assert bench.service.recv(100) == b"question"
    assert bench.service.recv(100) == b""
    assert bench.ends == []
    bench.service.sendall(b"answer")
    bench.settle()
    assert bench.client.recv(100) == b"answer"
    bench.service.shutdown(socket.SHUT_WR)
    bench.settle()
    assert bench.client.recv(100) == b""
    assert bench.ends == [None]
    assert (bench.relay.bytes_in, bench.relay.bytes_out) == (8, 6)


def test_what_one_side_does_not_take_is_not_read_of_the_other(bench: Bench) -> None:
    sent = 0
    while True:
        try:
            sent += bench.client.send(b"x" * 65_536)
        except BlockingIOError:
            before = sent
            bench.settle()
            try:
                sent += bench.client.send(b"x" * 65_536)
            except BlockingIOError:
                assert sent == before
                break
    assert 0 < bench.channels[1].buffered <= BULK_BYTES, "one piece is kept here, and no more"
    # The other direction is not held up by it.
    bench.service.sendall(b"y")
    bench.settle()
    assert bench.client.recv(10) == b"y"
    got = 0
    while got < sent:
        bench.settle()
        got += len(bench.service.recv(1 << 20))
    bench.settle()
    assert (got, bench.channels[1].buffered) == (sent, 0)


@pytest.mark.parametrize("side", ["client", "service"])
def test_a_side_that_goes_without_a_word_ends_the_other(bench: Bench, side: str) -> None:
    gone, other = (bench.client, bench.service) if side == "client" else (bench.service, bench.client)
    gone.close()
    other.sendall(b"nobody takes this")
    bench.settle()
    other.sendall(b"nor this") if not bench.ends else None
    bench.settle()
    (error,) = bench.ends
    assert isinstance(error, ChannelError)
    assert error.reason is (Reason.DOWNSTREAM_RESET if side == "client" else Reason.UPSTREAM_RESET)


def test_silence_both_ways_ends_it_and_bytes_either_way_put_that_off(bench: Bench, clock: ManualClock) -> None:
    for sock in (bench.client, bench.service):
        clock.advance(IDLE_S - 1)
        sock.sendall(b"x")
        bench.settle()
        bench.loop.sweep()
        bench.settle()
        assert bench.ends == []
    clock.advance(IDLE_S + 1)
    bench.loop.drain()
    bench.loop.sweep()
    bench.settle()
    (error,) = bench.ends
    assert isinstance(error, DeadlineExpired)
    assert error.reason is Reason.IDLE_TIMEOUT


def test_a_client_that_has_said_all_while_we_dial_gets_its_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    dial_plain = Transport.dial_plain

    async def main() -> None:
        listener = Listener(name="test", mode=ListenerMode.TCP)
        rule = msgspec.structs.replace(make_rule(), listeners=(listener.name,))
        service = socket.create_server(("127.0.0.1", 0))
        with trio.socket.from_stdlib_socket(service) as server:
            async with gateway([make_service([service.getsockname()[1]])], [rule], listener=listener) as running:

                async def late(self: Transport, lease: Lease, *, connect_s: float | None = None) -> PlainChannel:
                    (stream,) = [one for one in running.plane._connections if isinstance(one, Stream)]
                    while not stream.client.hangup:
                        await park()
                    return await dial_plain(self, lease, connect_s=connect_s)

                monkeypatch.setattr(Transport, "dial_plain", late)
                async with await trio.open_tcp_stream("127.0.0.1", running.port) as client:
                    await client.send_all(b"question")
                    await client.send_eof()
                    accepted, _ = await server.accept()
                    with accepted:
                        assert await accepted.recv(100) == b"question"
                        assert await accepted.recv(100) == b""
                        await accepted.send(b"answer")
                    assert await client.receive_some(100) == b"answer"
                    assert await client.receive_some(100) == b""

    bounded(main)
