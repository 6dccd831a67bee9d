"""Load shedding in the data plane: the canary, whom is let in on every lane, and what the others are told, and when."""

from __future__ import annotations

import pytest
import trio

from datum_router.clock import ManualClock
from datum_router.errors import ConfigError
from datum_router.observe import names
from datum_router.observe.cells import Cell
from datum_router.policy.shedding import TARGET_S, Shedder
from datum_router.reasons import Reason
from datum_router_proxy import admission
from datum_router_proxy.admission import HOLD_S, MAX_HELD, RELEASES_PER_S, Admission
from datum_router_proxy.loop import Loop, current_task
from datum_router_proxy.settings import ProxySettings, from_text
from datum_router_proxy.testing_clients import client
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


# --- settings -------------------------------------------------------------------------------------------------------


def test_it_can_be_switched_off_and_a_negative_age_is_refused() -> None:
    assert ProxySettings().shed_queue_age_s == TARGET_S
    assert from_text({"shed_queue_age_s": "0"}).shed_queue_age_s == 0
    with pytest.raises(ConfigError, match="proxy setting shed_queue_age_s: found -1"):
        from_text({"shed_queue_age_s": "-1"})
