"""Whatever happens at whatever moment: requests in the air are answered once, in order, as the pipeline would."""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from typing import cast

import msgspec
import pytest

from datum_router.model.listener import Listener
from datum_router.model.policy import TimeoutPolicy
from datum_router_proxy.channel import Channel
from datum_router_proxy.server.h1 import H1Connection
from datum_router_proxy.testing_peers import make_rule, make_service
from datum_router_proxy.testing_roads import CLOSED, NOISE, RETRY, Forwarded, H1Client, H1Server, World, masked

HOST = b"Host: shop.example\r\n"
RULE = make_rule(retry=RETRY, timeouts=TimeoutPolicy(request_s=10.0))


class Waiting(msgspec.Struct, frozen=True):
    """A request that has reached an upstream and waits for its answer."""

    server: H1Server
    number: int
    is_head: bool

    def answer(self, how: float = 0.0) -> None:
        """Answer with the request's number, the more oddly the nearer `how` comes to 1."""
        body = b"%d" % self.number
        head = b"HTTP/1.1 200 OK\r\ndate: Sat, 28 Nov 2026 15:29:44 GMT\r\ncontent-length: %d\r\n\r\n" % len(body)
        whole = head if self.is_head else head + body
        ways: tuple[tuple[bytes, ...], ...] = (
            (whole[:20], whole[20:]),
            (b"HTTP/1.1 103 Hint\r\nlink: </a>\r\n\r\n" + whole,),
            (whole, CLOSED),
            (whole.replace(b"date", b"connection: close\r\ndate"), CLOSED),
            (CLOSED,),
            (b"HTTP/1.1 503 Busy\r\ncontent-length: 0\r\n\r\n",),
            (whole[:-1], CLOSED),
        )
        for piece in (whole,) if how < 0.6 else ways[int((how - 0.6) / 0.4 * len(ways))]:
            self.server.pipe.give(piece)


class Happenings:
    """Several clients, two endpoints or one, and what a seed makes of them."""

    def __init__(self, seed: int, *, ports: Sequence[int]) -> None:
        self.rng = rng = random.Random(seed)
        self.waiting: list[Waiting] = []
        self.ports = list(ports)
        self.world = World(make_service(self.ports), self.dialled, [RULE])
        self.servings: list[H1Connection] = []
        self.sent: list[list[int]] = []
        self.number = 0
        self.extra = rng.choice((b"", b"X-A: b\r\n"))

    def dialled(self, world: World) -> H1Server:
        """Return an upstream that keeps its clients waiting."""

        def note(request: Forwarded) -> Sequence[bytes]:
            method, path = request.head.split(b" ")[:2]
            self.waiting.append(Waiting(server, int(path[1:]), method == b"HEAD"))
            return ()

        server = H1Server(world, note)
        return server

    def connect(self, count: int) -> None:
        """Let clients connect."""
        for number in range(count):
            client = H1Client(f"192.0.2.{number + 1}")
            serving = H1Connection(self.world.pipeline, cast(Channel, client.pipe), Listener(name="test"))
            client.pipe.task = self.world.loop.spawn(serving.run(b""), name="client")
            self.world.clients.append(client)
            self.servings.append(serving)
            self.sent.append([])
        self.world.settle()

    def request(self, at: int) -> None:
        """Let a client send a request, mostly one whose head is known but for its target."""
        self.number += 1
        target, kind = b"/%d" % self.number, self.rng.random()
        if kind < 0.7:
            data = b"GET %b HTTP/1.1\r\n%b%b\r\n" % (target, HOST, self.extra)
        elif kind < 0.8:
            data = b"POST %b HTTP/1.1\r\ncontent-length: 3\r\n%b%b\r\nabc" % (target, HOST, self.extra)
        elif kind < 0.85:
            data = b"HEAD %b HTTP/1.1\r\n%b%b\r\n" % (target, HOST, self.extra)
        else:
            data = b"GET %b HTTP/1.1\r\n%bX-Q: %d\r\n\r\n" % (target, HOST, self.number)
        self.sent[at].append(self.number)
        cut = self.rng.randrange(1, len(data)) if self.rng.random() < 0.15 else len(data)
        pipe = self.world.clients[at].pipe
        pipe.give(data[:cut])
        if cut < len(data):
            if self.rng.random() < 0.5:
                self.world.settle()
            pipe.give(data[cut:])

    def go_on(self) -> None:
        """Let something happen, which need not be over when the next thing does."""
        rng, world = self.rng, self.world
        at = rng.randrange(len(world.clients))
        pipe, serving, kind = world.clients[at].pipe, self.servings[at], rng.random()
        if kind < 0.45:
            self.request(at)
        elif kind < 0.75:
            self.waiting.sort(key=lambda one: one.number)
            waiting = self.waiting.pop(rng.randrange(len(self.waiting))) if self.waiting else None
            if waiting is not None:
                waiting.answer(rng.random())
        elif kind < 0.79:
            world.wait(rng.choice((0.5, 4.0, 11.0)))
        elif kind < 0.81:
            rng.choice([pipe, *(upstream.pipe for upstream in world.upstreams)]).give(NOISE)
        elif kind < 0.83:
            pipe.give(CLOSED)
        elif kind < 0.86:
            serving.rest()
        elif kind < 0.89 and pipe.task is not None:
            pipe.task.wake()
        elif kind < 0.92:
            if pipe.is_stuck:
                pipe.unstick()
            else:
                pipe.is_stuck = True
        elif kind < 0.94:
            if len(self.ports) > 1:
                self.ports.reverse()
            world.edit([msgspec.structs.replace(RULE)], make_service(self.ports[: rng.randint(1, 2)]))
        elif kind < 0.96 and world.upstreams:
            last_words = b"HTTP/1.1 408 Late\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
            upstream = rng.choice(world.upstreams)
            for piece in rng.choice(((CLOSED,), (last_words, CLOSED))):
                upstream.pipe.give(piece)
        elif kind < 0.98:
            rng.choice((serving.finish_drain, serving.cut))()
        else:
            world.pipeline.is_draining = not world.pipeline.is_draining

    def answer_all(self) -> None:
        """Let clients read and upstreams answer until nobody waits."""
        for client in self.world.clients:
            client.pipe.unstick()
        self.world.settle()
        while self.waiting:
            self.waiting.pop(0).answer()
            self.world.settle()

    def answered(self, at: int) -> list[int]:
        """Return the numbers that a client got, in order."""
        got = self.world.clients[at].got  # type: ignore[attr-defined]  # an HTTP/1 client
        return [int(one) for one in re.findall(rb"HTTP/1\.1 200 OK\r\n(?:[^\r]+\r\n)+\r\n([0-9]+)", got)]


@pytest.mark.parametrize("seed", range(300))
def test_each_request_has_its_own_answer_in_order_or_its_connection_ends(seed: int) -> None:
    happenings = Happenings(seed, ports=[9000, 9001] if seed % 2 else [9000])
    world = happenings.world
    with world.running():
        happenings.connect(happenings.rng.randint(1, 3))
        for _ in range(happenings.rng.randint(5, 40)):
            happenings.go_on()
            if happenings.rng.random() < 0.6:
                world.settle()
        happenings.answer_all()
        for at, client in enumerate(world.clients):
            sent, answered = iter(happenings.sent[at]), happenings.answered(at)
            assert all(number in sent for number in answered), "out of order, or twice"
            if not (client.pipe.is_closed or client.pipe.hangup):
                finals = re.findall(rb"HTTP/1\.1 [2-5]", client.got)  # type: ignore[attr-defined]
                assert len(finals) == len(happenings.sent[at]), "one waits for ever"
        world.end()
        assert world.left_over == ""
        assert world.loop.tasks == 0


def seen_of(seed: int, *, has_lane: bool) -> tuple[object, ...]:
    """Let things happen one after the other to one client; return what was seen of it."""
    happenings = Happenings(seed, ports=[9000])
    world = happenings.world
    with world.running(has_lane=has_lane):
        happenings.connect(1)
        for _ in range(happenings.rng.randint(5, 40)):
            happenings.go_on()
            world.settle()
        happenings.answer_all()
        world.end()
        assert world.left_over == ""
        (client,) = world.clients
        observer = world.observer
        # How an answer that was sent is taken by a slow client is not told by the event of the express lane.
        events = sorted((event.path, event.status, event.attempts, event.bytes_out) for event in observer.events)
        return (
            [(one.head, one.body) for one in world.forwarded],
            (masked(client.got), client.pipe.ended),  # type: ignore[attr-defined]
            events,
            sorted(map(repr, (*observer.reasons, *observer.rejections, *observer.outcomes))),
        )


@pytest.mark.parametrize("seed", range(100))
def test_at_any_moment_both_roads_lead_to_the_same(seed: int) -> None:
    assert seen_of(seed, has_lane=True) == seen_of(seed, has_lane=False)
