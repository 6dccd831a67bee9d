"""`connectTimeout` and `idleTimeout` of a service as state machines: a gateway in memory, whose clock goes in steps."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, cast
from unittest import mock

import msgspec
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from datum_router.model.policy import RetryPolicy, TimeoutPolicy
from datum_router.model.service import UpstreamProtocol
from datum_router.reasons import Reason
from datum_router_proxy import testing as t
from datum_router_proxy.channel import PlainChannel
from datum_router_proxy.testing_peers import make_rule, make_service
from datum_router_proxy.testing_roads import NOISE, Forwarded, H1Client, H1Server, H2Server, Peer, World
from datum_router_proxy.upstream import connect, transport
from datum_router_proxy.wire.http2 import RequestReceived

STEP_S = 0.25
"""Exact in binary, so that a limit and the time that has passed can be compared as they are."""
REQUEST = b"GET / HTTP/1.1\r\nHost: shop.example\r\n\r\n"
OK = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"
NEVER = RetryPolicy(max_retries=0)
EXAMPLES = settings(max_examples=60, stateful_step_count=50, deadline=None)
steps = st.integers(1, 4).map(lambda count: count * STEP_S)
MOST = 3
"""Requests under way to connections whose idle time is looked at: with more, none would be idle for long."""
which = st.integers(0, 50)


LAST = OK.replace(b"\r\n", b"\r\nconnection: close\r\n", 1)
"""So that the next request dials as well."""


def nothing(_request: Forwarded) -> Sequence[bytes]:
    return ()


# --- connectTimeout ---------------------------------------------------------------------------------------------------


class Dialling(H1Server):
    """An upstream that accepts a connection when it is told to."""

    def __init__(self, world: World) -> None:
        super().__init__(world, nothing)
        pipe = cast(Any, self.pipe)
        pipe.is_connecting = True
        pipe.connect_errno = lambda: 0

    def accept(self) -> None:
        """Do what the kernel's answer to our SYN does."""
        cast(Any, self.pipe).is_connecting = False
        if self.pipe.task is not None:
            self.pipe.task.wake()


class Asked(msgspec.Struct):
    """A request under way, with the moments at which it is given up if nothing comes."""

    client: H1Client
    upstream: Dialling
    dial_ends_at: float
    ends_at: float
    is_accepted: bool = False

    def end(self) -> tuple[float, Reason]:
        """Return when it ends, and by what."""
        if self.is_accepted or self.ends_at <= self.dial_ends_at:
            return self.ends_at, Reason.REQUEST_TIMEOUT
        return self.dial_ends_at, Reason.CONNECT_TIMEOUT


class ConnectMachine(RuleBasedStateMachine):
    """Requests begin to dial at any time; upstreams accept, or not, or the dialling task is woken for nothing."""

    world: World
    limit_s: float
    request_s: float

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[Asked] = []

    @initialize(service_s=steps, route_s=st.none() | steps, request_s=st.just(0.0) | steps)
    def begin(self, service_s: float, route_s: float | None, request_s: float) -> None:
        self.limit_s = service_s if route_s is None else route_s
        self.request_s = request_s
        timeouts = TimeoutPolicy(request_s=request_s, connect_s=route_s)
        service = make_service([9000], connect_timeout_s=service_s)
        self.world = World(service, Dialling, [make_rule(retry=NEVER, timeouts=timeouts)])
        self.running = self.world.running()
        self.running.__enter__()
        # What World puts in the place of dialling is left out: only the socket is none.
        self.dialling = (
            mock.patch.multiple(transport, dial=connect.dial),
            mock.patch.multiple(connect, _start=self.start),
        )
        for one in self.dialling:
            one.start()

    def start(self, _loop: object, _address: str, _port: int, _device: str) -> PlainChannel:
        peer = Dialling(self.world)
        self.world.upstreams.append(peer)
        return cast(PlainChannel, peer.pipe)

    @rule()
    def ask(self) -> None:
        client, now = H1Client(), self.world.now
        self.world.connect(client, is_h2=False)
        client.pipe.give(REQUEST)
        count = len(self.world.upstreams)
        self.world.settle()
        assert len(self.world.upstreams) == count + 1
        upstream = self.world.upstreams[-1]
        assert isinstance(upstream, Dialling)
        self.asked.append(Asked(client, upstream, now + self.limit_s, now + (self.request_s or math.inf)))

    @precondition(lambda self: self.asked)
    @rule(at=which)
    def accept(self, at: int) -> None:
        """From here on the time of the dial is over, and that of the request is not."""
        one = self.asked[at % len(self.asked)]
        if not one.is_accepted:
            one.is_accepted = True
            one.upstream.accept()
            self.world.settle()

    @precondition(lambda self: any(one.is_accepted for one in self.asked))
    @rule(at=which)
    def answer(self, at: int) -> None:
        accepted = [one for one in self.asked if one.is_accepted]
        one = accepted[at % len(accepted)]
        self.asked.remove(one)
        one.upstream.to_send.append(LAST)
        self.world.settle()
        assert one.client.got.startswith(b"HTTP/1.1 200 "), one.client.got

    @rule(at=st.none() | which)
    def wait(self, at: int | None) -> None:
        """A task is woken by more than what it waits for; that gives a dial no more time."""
        if at is not None and self.asked:
            task = self.asked[at % len(self.asked)].upstream.pipe.task
            assert task is not None
            task.wake()
            self.world.settle()
        self.world.wait(STEP_S)
        for one in list(self.asked):
            ends_at, reason = one.end()
            if ends_at <= self.world.now:
                self.asked.remove(one)
                assert one.client.got.startswith(b"HTTP/1.1 504 "), one.client.got
                assert str(reason).encode() in one.client.got
                assert one.upstream.pipe.is_closed, "a late SYN-ACK finds nobody"

    @invariant()
    def others_still_wait(self) -> None:
        for one in self.asked:
            assert one.client.got == b""
            assert not one.upstream.pipe.is_closed

    def teardown(self) -> None:
        if not hasattr(self, "world"):
            return
        self.world.wait(1000.0)
        self.world.end()
        for one in self.dialling:
            one.stop()
        self.running.__exit__(None, None, None)
        assert self.world.left_over == ""


def test_a_dial_has_its_time_to_the_step_whatever_else_happens() -> None:
    run_state_machine_as_test(ConnectMachine, settings=EXAMPLES)


# --- idleTimeout ------------------------------------------------------------------------------------------------------


class Slow:
    """What both upstreams have in common: requests are answered when they are told to.

    Attributes:
        held: Answers that are not given yet, oldest first.
    """

    def __init__(self) -> None:
        self.held: list[bytes] = []

    def hold(self, request: Forwarded | RequestReceived) -> Sequence[bytes]:
        if isinstance(request, Forwarded):
            self.held.append(OK)
        else:
            head = t.headers(request.stream_id, [(b":status", b"200"), (b"content-length", b"2")], end_stream=False)
            self.held.append(head + t.data(request.stream_id, b"ok", end_stream=True))
        return ()


class IdleMachine(RuleBasedStateMachine):
    """Requests come and are answered at any time, and connections without one hear things that are no requests."""

    is_h2: bool
    has_lane: bool
    world: World
    idle_s: float

    def __init__(self) -> None:
        super().__init__()
        self.slow: dict[int, Slow] = {}  # by place in `world.upstreams`
        self.under_way: list[tuple[int, H1Client]] = []
        self.idle: dict[int, float] = {}  # since when, the one that was given back last at the end

    @initialize(idle_s=steps)
    def begin(self, idle_s: float) -> None:
        self.idle_s = idle_s
        protocol = UpstreamProtocol.H2C if self.is_h2 else UpstreamProtocol.HTTP
        service = msgspec.structs.replace(make_service([9000], protocol=protocol), idle_timeout_s=idle_s)
        rules = [make_rule(retry=NEVER, timeouts=TimeoutPolicy(request_s=0.0))]
        self.world = World(service, self.upstream, rules)
        self.running = self.world.running(has_lane=self.has_lane)
        self.running.__enter__()

    def upstream(self, world: World) -> Peer:
        slow = self.slow[len(world.upstreams)] = Slow()
        return H2Server(world, slow.hold) if self.is_h2 else H1Server(world, slow.hold)

    @precondition(lambda self: len(self.under_way) < MOST)
    @rule()
    def ask(self) -> None:
        """HTTP/1 takes the connection that was used last, so that others can go; HTTP/2 has one for all."""
        expected = len(self.world.upstreams)
        if self.is_h2 and self.under_way:
            expected = self.under_way[0][0]
        elif self.idle:
            expected = list(self.idle)[-1]
        self.idle.pop(expected, None)
        client = H1Client()
        self.world.connect(client, is_h2=False)
        client.pipe.give(REQUEST)
        before = {at: len(one.held) for at, one in self.slow.items()}
        self.world.settle()
        [found] = [at for at, one in self.slow.items() if len(one.held) > before.get(at, 0)]
        assert found == expected
        self.under_way.append((expected, client))

    @precondition(lambda self: self.under_way)
    @rule(count=st.integers(1, MOST))
    def answer(self, count: int) -> None:
        for _ in range(min(count, len(self.under_way))):
            at, client = self.under_way.pop(0)
            self.world.upstreams[at].to_send.append(self.slow[at].held.pop(0))
            self.world.settle()
            assert client.got.endswith(b"\r\n\r\nok")
            if all(other != at for other, _ in self.under_way):
                self.idle[at] = self.world.now

    @rule(at=st.none() | which)
    def wait(self, at: int | None) -> None:
        """Session tickets of TLS and PING frames are no use of a connection."""
        if at is not None and self.idle:
            peer = self.world.upstreams[list(self.idle)[at % len(self.idle)]]
            peer.to_send.append(t.ping() if self.is_h2 else NOISE)
            self.world.settle()
        self.world.wait(STEP_S)
        self.world.transport.sweep(self.world.holder.current)  # the data plane does so each second
        self.world.settle()
        self.idle = {at: since for at, since in self.idle.items() if self.world.now < since + self.idle_s}

    @invariant()
    def connections_are_open_that_are_used_or_not_idle_for_long(self) -> None:
        if hasattr(self, "world"):
            used = {at for at, _ in self.under_way}
            found = {at for at, one in enumerate(self.world.upstreams) if not one.pipe.is_closed}
            assert found == used | self.idle.keys()

    def teardown(self) -> None:
        if hasattr(self, "world"):
            self.world.end()
            self.running.__exit__(None, None, None)
            assert self.world.left_over == ""


@pytest.mark.parametrize(("is_h2", "has_lane"), [(False, True), (False, False), (True, True), (True, False)])
def test_a_connection_that_nobody_uses_is_kept_for_its_time_to_the_step(is_h2: bool, has_lane: bool) -> None:
    class Machine(IdleMachine):
        pass

    Machine.is_h2, Machine.has_lane = is_h2, has_lane
    run_state_machine_as_test(Machine, settings=EXAMPLES)
