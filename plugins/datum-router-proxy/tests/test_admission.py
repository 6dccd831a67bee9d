"""Load shedding in the data plane: the canary, whom is let in on every lane, and what the others are told, and when."""

from __future__ import annotations

import contextlib
import ssl
from collections.abc import Callable

import h11
import pytest
import trio
import trustme

from datum_router.clock import ManualClock
from datum_router.errors import ConfigError
from datum_router.model.listener import Listener, TlsBinding
from datum_router.observe import names
from datum_router.observe.cells import Cell
from datum_router.policy.shedding import CALM_S, ONSET_S, TARGET_S, Patience, Shedder
from datum_router.reasons import Reason
from datum_router_proxy import admission, loop
from datum_router_proxy.admission import HOLD_S, MAX_HELD, RELEASES_PER_S, Admission
from datum_router_proxy.channel import Channel
from datum_router_proxy.loop import Deferrable, Loop, current_task
from datum_router_proxy.server.connection import Unknown
from datum_router_proxy.server.h1 import H1Connection
from datum_router_proxy.settings import ProxySettings, from_text
from datum_router_proxy.testing_clients import H1Client, H2Client, client
from datum_router_proxy.testing_peers import Exchange, Gateway, bounded, gateway, make_service, upstream

both = pytest.mark.parametrize("down", ["h1", "h2"])


async def ok(exchange: Exchange) -> None:
    await exchange.body()
    await exchange.reply(200, b"ok")


def overload(running: Gateway, share: float) -> Admission:
    """Make the gateway believe that it can do no more than a share; no canary says otherwise."""
    found = running.plane.admission
    found.shedder.share = share
    found.shedder.is_shedding = True
    return found


class Stuck(Shedder):
    """A controller that keeps to what it was told."""

    __slots__ = ()

    def note(self, age_s: float, now: float) -> None:
        pass


@both
def test_every_second_request_is_let_in_at_a_share_of_a_half(down: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(admission, "Shedder", Stuck)
    monkeypatch.setattr(admission, "HOLD_S", 0.01)

    async def main() -> None:
        async with (
            upstream(ok) as server,
            gateway([make_service([server.port])]) as running,
            client(running.port, down) as peer,
        ):
            before = [(await peer.request("GET", "/")).status for _ in range(4)]  # by now the fast lane serves
            overload(running, 0.5)
            answers = [await peer.request("GET", "/") for _ in range(8)]
            posts = []
            for _ in range(4):  # a long body is none for the fast lane; unread, it ends its connection
                async with client(running.port, down) as other:
                    posts.append(await other.request("POST", "/", body=b"x" * 40_000))
            assert before == [200] * 4
            assert [answer.status for answer in answers] == [503, 200] * 4
            assert sorted(answer.status for answer in posts) == [200, 200, 503, 503]
            assert answers[0].body.startswith(b"overloaded: the router has more to do than it can")
            assert answers[0].header(b"retry-after") == b"2"
            assert running.recorder.rejections == [(down, Reason.OVERLOADED)] * 6
            cells = running.plane.take_cells()
            assert Cell(names.SHED.name, (), 6) in cells
            assert Cell(names.SHEDDING.name, (), 1) in cells

    bounded(main)


def test_a_quiet_gateway_sends_canaries_and_sheds_nothing() -> None:
    async def main() -> None:
        async with gateway() as running:
            found = running.plane.admission
            ages: list[float] = []
            note = found.shedder.note

            class Noting(Shedder):
                __slots__ = ()

                def note(self, age_s: float, now: float) -> None:
                    ages.append(age_s)
                    note(age_s, now)

            shedder = found.shedder
            found.shedder = Noting(TARGET_S)
            with trio.fail_after(5):
                while len(ages) < 2:  # noqa: ASYNC110  # canaries have no event
                    await trio.sleep(0.01)
            assert all(0 <= age_s < 5 for age_s in ages)
            assert shedder.share == 1.0

    bounded(main)


def test_the_age_of_the_queue_is_what_a_canary_waits() -> None:
    clock = ManualClock(100.0)
    loop = Loop(clock=clock)
    found = Admission(loop, target_s=TARGET_S, clock=clock)
    found.start()
    while loop.drain():
        pass
    for _ in range(20):  # a loop that comes to each canary 0.2 s late
        found.beat(0.0)
        clock.advance(0.2)
        while loop.drain():
            pass
    assert found.shedder.is_shedding
    assert found.shedder.share < 0.1
    for _ in range(400):
        found.beat(0.0)
        while loop.drain():
            pass
        clock.advance(0.02)
    assert not found.shedder.is_shedding
    found.beat(0.0)
    for _ in range(20):  # one that does not come to it at all
        clock.advance(0.1)
        found.beat(0.1)
    assert found.shedder.is_shedding
    found.abort()


# --- what is held back ----------------------------------------------------------------------------------------------


class Held:
    """Requests that are not let in, on a loop that is driven by hand."""

    def __init__(self, count: int) -> None:
        self.clock = ManualClock(100.0)
        self.loop = Loop(clock=self.clock)
        self.admission = Admission(self.loop, target_s=TARGET_S, clock=self.clock)
        self.answered: list[int] = []
        self.tasks = [self.loop.spawn(self._serve(number), name="request") for number in range(count)]
        self.drain()

    async def _serve(self, number: int) -> None:
        await self.admission.hold(current_task())
        self.answered.append(number)

    def drain(self) -> None:
        while self.loop.drain():
            pass

    def beat(self, passed_s: float) -> None:
        self.clock.advance(passed_s)
        self.admission.beat(passed_s)
        self.drain()


def test_refusals_are_held_back_and_then_said_at_a_bounded_rate() -> None:
    held = Held(2 * RELEASES_PER_S)
    held.beat(HOLD_S / 2)
    assert held.answered == []
    held.beat(HOLD_S / 2)
    first = len(held.answered)
    assert 0 < first <= RELEASES_PER_S * 0.25
    for _ in range(50):
        held.beat(0.02)
    assert len(held.answered) - first == pytest.approx(RELEASES_PER_S, rel=0.02)
    assert held.answered == sorted(held.answered), "who came first is told first"
    for _ in range(100):
        held.beat(0.02)
    assert len(held.answered) == 2 * RELEASES_PER_S


def test_who_leaves_while_held_back_costs_no_turn() -> None:
    held = Held(10)
    for task in held.tasks[:9]:
        task.cancel(Reason.DOWNSTREAM_RESET)
    held.drain()
    held.beat(HOLD_S)
    assert held.answered == [9]


def test_with_too_many_held_back_the_rest_is_told_at_once() -> None:
    held = Held(MAX_HELD + 3)
    assert held.answered == [MAX_HELD, MAX_HELD + 1, MAX_HELD + 2]
    assert held.admission.take_cells() == [Cell(names.SHED.name, (), MAX_HELD + 3)]
    assert held.admission.take_cells() == []


# --- whose turn comes too late --------------------------------------------------------------------------------------


class Late:
    """An arrival that lets itself be put off, or does not."""

    def __init__(self, noted_at: float, *, is_willing: bool = True) -> None:
        self.noted_at = noted_at
        self.is_noted = True
        self.is_willing = is_willing
        self.is_deferred = False
        self.turns = 0
        self.releases = 0

    @property
    def deferrable(self) -> Late:
        return self

    def defer(self) -> bool:
        self.is_deferred = self.is_willing
        return self.is_willing

    def release(self) -> None:
        self.is_deferred = False
        self.releases += 1

    def act(self) -> None:
        self.turns += 1

    def abort(self) -> None:
        raise AssertionError("it did not fail")


def overloaded() -> Held:
    """Return a loop whose queue has stood too old for long enough; nobody waits in it."""
    held = Held(0)
    for _ in range(round(ONSET_S / 0.01) + 2):
        held.clock.advance(0.01)
        held.loop.now = held.clock()
        held.loop.arrivals.append(Late(held.loop.now - 2 * TARGET_S))
        held.admission.put_off()
        held.loop.arrivals.clear()
    assert held.admission.patience.is_overloaded(held.loop.now)
    held.beat(HOLD_S)
    held.loop.now = held.clock()
    held.admission.take_cells()
    return held


def test_in_a_burst_nobody_is_put_off_and_in_an_overload_whoever_is_late() -> None:
    held = Held(0)
    burst = [Late(90.0) for _ in range(3)]
    held.loop.arrivals.extend(burst)
    held.admission.put_off()
    assert list(held.loop.arrivals) == burst
    held = overloaded()
    held.loop.now = now = held.clock()
    late, unwilling, young = Late(now - TARGET_S), Late(now - TARGET_S, is_willing=False), Late(now)
    held.loop.arrivals.extend([late, unwilling, young])
    held.admission.put_off()
    assert list(held.loop.arrivals) == [young]
    assert (late.is_deferred, late.is_noted, late.turns) == (True, False, 0)
    assert (list(held.loop.eager), unwilling.is_noted) == ([unwilling], True)
    assert held.admission.take_cells() == [Cell(names.SHED.name, (), 1), Cell(names.SHEDDING.name, (), 1)]
    held.beat(HOLD_S / 2)
    assert late.releases == 0
    held.beat(HOLD_S / 2)
    assert late.releases == 1
    held.clock.advance(CALM_S)
    assert held.admission.take_cells() == []


def test_with_too_many_put_off_the_rest_waits_where_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(admission, "MAX_HELD", 2)
    held = overloaded()
    waiting = [Late(held.loop.now - TARGET_S) for _ in range(3)]
    held.loop.arrivals.extend(waiting)
    held.admission.put_off()
    assert list(held.loop.arrivals) == waiting[2:]


class Impatient(Patience):
    """For whom everything that had to wait is late."""

    __slots__ = ()

    def limit_s(self, age_s: float, now: float) -> float:
        return -1.0


@pytest.fixture
def late(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make every turn of a kept HTTP/1 connection come too late."""
    monkeypatch.setattr(admission, "Patience", Impatient)
    monkeypatch.setattr(loop, "ARRIVALS", 0)
    monkeypatch.setattr(admission, "HOLD_S", 0.01)


async def until(condition: Callable[[], bool]) -> None:
    with trio.fail_after(20):
        while not condition():  # noqa: ASYNC110  # what the data plane counts has no event
            await trio.sleep(0.001)


@pytest.mark.usefixtures("late")
@pytest.mark.parametrize(
    "pieces",
    [
        [b"GET /late HTTP/1.1\r\nhost: shop.example\r\n\r\n"],
        [b"GET /late HTTP/1.1\r\nho", b"st: shop.example\r\n\r\n"],
        [b"POST /late HTTP/1.1\r\nhost: shop.example\r\ncontent-length: 2\r\n\r\n", b"xy"],
    ],
)
def test_a_request_whose_turn_comes_too_late_is_turned_away_unseen(pieces: list[bytes]) -> None:
    seen: list[str] = []

    async def note(exchange: Exchange) -> None:
        seen.append(exchange.path)
        await ok(exchange)

    async def main() -> None:
        async with (
            upstream(note) as server,
            gateway([make_service([server.port])]) as running,
            client(running.port, "h1") as peer,
        ):
            assert isinstance(peer, H1Client)
            # The first request of a connection is not one that it is known of how long it has waited.
            assert (await peer.request("GET", "/first")).status == 200
            await next_request_is_awaited(running)
            for piece in pieces:
                await peer.stream.send_all(piece)
            peer.connection.send(h11.Request(method="GET", target="/late", headers=[(b"host", b"shop.example")]))
            peer.connection.send(h11.EndOfMessage())
            answer = await peer.receive()
            assert (answer.status, answer.header(b"retry-after")) == (503, b"2")
            assert seen == ["/first"]
            assert running.recorder.rejections == [("h1", Reason.OVERLOADED)]
            assert Cell(names.SHED.name, (), 1) in running.plane.take_cells()

    bounded(main)


async def be_put_off(peer: H1Client | H2Client, running: Gateway) -> None:
    """Send a request whose turn comes too late, and wait until it has been put off."""
    assert (await peer.request("GET", "/first")).status == 200
    await next_request_is_awaited(running)
    await peer.send("GET", "/late")
    await until(lambda: running.plane.admission._shed == 1)


def only_connection(running: Gateway) -> tuple[Channel, H1Connection]:
    """Return the channel of the one client there is, and who serves it."""
    [connection] = running.plane._connections
    assert isinstance(connection, Unknown)
    assert isinstance(connection.serving, H1Connection)
    return connection.channel, connection.serving


async def next_request_is_awaited(running: Gateway) -> None:
    """Wait until the gateway has done with a client's request: what came before that would have no turn of its own."""
    channel, serving = only_connection(running)
    await until(lambda: channel.deferrable is serving)


@pytest.mark.usefixtures("late")
def test_who_leaves_while_put_off_costs_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(admission, "HOLD_S", 60.0)

    async def main() -> None:
        async with upstream(ok) as server, gateway([make_service([server.port])]) as running:
            async with client(running.port, "h1") as peer:
                await be_put_off(peer, running)
                assert running.plane.stats()["connections"] == 1
            await until(lambda: running.plane.stats()["connections"] == 0)
            assert not running.plane.admission._held[0][1].is_deferred
            assert len(running.recorder.events) == 1

    bounded(main)


@pytest.mark.usefixtures("late")
def test_a_gateway_that_ends_answers_those_who_were_put_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(admission, "HOLD_S", 1.0)

    async def main() -> None:
        async with (
            upstream(ok) as server,
            gateway([make_service([server.port])]) as running,
            client(running.port, "h1") as peer,
        ):
            await be_put_off(peer, running)
            running.plane.begin_drain(lameduck_s=0.0, grace_s=30.0)
            answer = await peer.receive()
            assert (answer.status, answer.header(b"connection")) == (503, b"close")
            await running.drained()

    bounded(main)


def test_what_comes_of_a_request_that_is_under_way_waits_for_no_turn() -> None:
    waiting: list[Deferrable | None] = []

    async def main() -> None:
        async def note(exchange: Exchange) -> None:
            waiting.append(only_connection(running)[0].deferrable)
            await ok(exchange)

        async with (
            upstream(note) as server,
            gateway([make_service([server.port])]) as running,
            client(running.port, "h1") as peer,
        ):
            assert (await peer.request("POST", "/", body=b"x" * 40_000)).status == 200
            await next_request_is_awaited(running)
            assert waiting == [None]

    bounded(main)


@pytest.mark.usefixtures("late")
def test_a_connection_that_brings_no_request_is_not_put_off() -> None:
    async def main() -> None:
        async with (
            upstream(ok) as server,
            gateway([make_service([server.port])]) as running,
            client(running.port, "h1") as peer,
        ):
            assert (await peer.request("GET", "/first")).status == 200
            _, serving = only_connection(running)
            # Its turn comes for what its task has read in the meantime.
            assert not serving.defer()
            assert not serving.is_deferred

    bounded(main)


@pytest.mark.usefixtures("late")
def test_half_a_record_of_tls_that_is_put_off_leaves_an_idle_connection_that_ends_in_time() -> None:
    ca = trustme.CA()
    issued = ca.issue_cert("shop.example")
    binding = TlsBinding(
        hostnames=("shop.example",),
        cert_pem=b"".join(blob.bytes() for blob in issued.cert_chain_pems).decode(),
        key_pem=issued.private_key_pem.bytes().decode(),
    )
    listener = Listener(name="test", tls=(binding,), hostnames=("shop.example",))
    settings = ProxySettings(keep_alive_timeout_s=1.0)

    async def main() -> None:
        async with (
            upstream(ok) as server,
            gateway([make_service([server.port])], settings=settings, listener=listener) as running,
            contextlib.AsyncExitStack() as stack,
        ):
            context = ssl.create_default_context()
            ca.configure_trust(context)
            incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
            tls = context.wrap_bio(incoming, outgoing, server_hostname="shop.example")
            stream = await stack.enter_async_context(await trio.open_tcp_stream("127.0.0.1", running.port))

            async def step(do: Callable[[], object]) -> object:
                while True:
                    try:
                        return do()
                    except ssl.SSLWantReadError:
                        if data := outgoing.read():
                            await stream.send_all(data)
                        incoming.write(await stream.receive_some(65_536))

            await step(tls.do_handshake)
            tls.write(b"GET / HTTP/1.1\r\nhost: shop.example\r\n\r\n")
            answer = await step(lambda: tls.read(65_536))
            assert isinstance(answer, bytes)
            assert answer.startswith(b"HTTP/1.1 200 ")
            await next_request_is_awaited(running)
            tls.write(b"GET / HTTP/1.1\r\nhost: shop.example\r\n\r\n")
            await stream.send_all(outgoing.read()[:20])
            await until(lambda: running.plane.admission._shed == 1)
            await until(lambda: running.plane.stats()["connections"] == 0)
            assert running.recorder.rejections == [("h1", Reason.IDLE_TIMEOUT)]

    bounded(main)


# --- settings -------------------------------------------------------------------------------------------------------


def test_it_can_be_switched_off_and_a_negative_age_is_refused() -> None:
    assert ProxySettings().shed_queue_age_s == TARGET_S
    assert from_text({"shed_queue_age_s": "0"}).shed_queue_age_s == 0
    with pytest.raises(ConfigError, match="proxy setting shed_queue_age_s: found -1"):
        from_text({"shed_queue_age_s": "-1"})
