"""The private loop: parking, waking, deadlines, cancellation, fairness, clean-up."""

from __future__ import annotations

import logging
import math
import os
import random
import socket
from collections.abc import Awaitable, Callable

import pytest
import trio
import trio.testing

from datum_router.clock import ManualClock
from datum_router.reasons import Reason
from datum_router_proxy.loop import (
    ARRIVALS,
    BACKLOG_EVENTS,
    BATCH_S,
    EVENTS,
    FEW_ARRIVALS,
    ROUNDS,
    STEPS,
    SWEEP_S,
    DeadlineExpired,
    Loop,
    Task,
    TaskCancelled,
    current_task,
    park,
)


class Probe:
    """A handler that remembers events and wakes a task."""

    def __init__(self, sock: socket.socket, task: Task | None = None) -> None:
        self.sock = sock
        self.task = task
        self.events: list[int] = []
        self.is_aborted = False

    def handle(self, events: int) -> None:
        self.events.append(events)
        if self.task is not None:
            self.task.wake()

    def abort(self) -> None:
        self.is_aborted = True
        self.sock.close()


def drain_all(loop: Loop) -> None:
    while loop.drain():
        pass


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock(100.0)


@pytest.fixture
def loop(clock: ManualClock) -> Loop:
    return Loop(clock=clock, rng=random.Random(1))


async def run_until(loop: Loop, body: Callable[[], Awaitable[None]]) -> None:
    """Run the loop while `body` runs in trio, then cancel it."""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(loop.run)
        await body()
        nursery.cancel_scope.cancel()


@pytest.fixture(autouse=True)
def _close(loop: Loop) -> object:
    yield
    if not loop.is_closed:
        loop._close()


def test_a_task_runs_in_the_next_batch_not_at_once(loop: Loop) -> None:
    seen: list[str] = []

    async def work() -> None:
        seen.append(current_task().name)

    task = loop.spawn(work(), name="one")
    assert seen == []
    assert loop.tasks == 1
    drain_all(loop)
    assert seen == ["one"]
    assert task.done
    assert loop.tasks == 0


def test_park_suspends_until_woken_and_wake_is_idempotent(loop: Loop) -> None:
    steps: list[int] = []

    async def work() -> None:
        for step in range(3):
            steps.append(step)
            await park()

    task = loop.spawn(work(), name="w")
    drain_all(loop)
    assert steps == [0]
    task.wake()
    task.wake()
    drain_all(loop)
    assert steps == [0, 1]
    task.wake()
    drain_all(loop)
    task.wake()
    drain_all(loop)
    assert task.done
    task.wake()
    task.cancel(Reason.DRAINING)
    assert not loop.drain()


def test_a_wake_while_running_is_not_lost(loop: Loop) -> None:
    steps: list[int] = []

    async def work() -> None:
        current_task().wake()
        steps.append(1)
        await park()
        steps.append(2)

    loop.spawn(work(), name="w")
    drain_all(loop)
    assert steps == [1, 2]


def test_current_task_outside_a_task_is_an_error() -> None:
    with pytest.raises(RuntimeError, match="outside a task"):
        current_task()


def test_deadline_raises_at_the_sweep_after_it_passed(loop: Loop, clock: ManualClock) -> None:
    caught: list[Reason] = []

    async def work() -> None:
        task = current_task()
        task.deadline = loop.now + 5.0
        task.deadline_reason = Reason.HEAD_TIMEOUT
        try:
            while True:
                await park()
        except DeadlineExpired as exc:
            caught.append(exc.reason)

    task = loop.spawn(work(), name="w")
    drain_all(loop)
    clock.advance(4.9)
    loop.sweep()
    drain_all(loop)
    assert caught == []
    clock.advance(0.1)
    loop.sweep()
    drain_all(loop)
    assert caught == [Reason.HEAD_TIMEOUT]
    assert task.done


def test_deadline_is_noticed_by_an_earlier_wake_and_taken_off_once_raised(loop: Loop, clock: ManualClock) -> None:
    log: list[str] = []

    async def work() -> None:
        task = current_task()
        task.deadline = loop.now + 1.0
        try:
            await park()
        except DeadlineExpired:
            log.append("expired")
        assert task.deadline == math.inf
        await park()
        log.append("woken")

    task = loop.spawn(work(), name="w")
    drain_all(loop)
    clock.advance(2.0)
    task.wake()
    drain_all(loop)
    loop.sweep()
    drain_all(loop)
    assert log == ["expired"]
    task.wake()
    drain_all(loop)
    assert log == ["expired", "woken"]


def test_deadline_leaving_the_coroutine_ends_the_task_without_a_failure(loop: Loop, clock: ManualClock) -> None:
    async def work() -> None:
        current_task().deadline = loop.now
        await park()

    task = loop.spawn(work(), name="w")
    drain_all(loop)
    loop.sweep()
    drain_all(loop)
    assert task.done
    assert loop.failures == 0


def test_cancel_reaches_a_parked_task_with_its_first_reason(loop: Loop) -> None:
    caught: list[Reason] = []

    async def work() -> None:
        try:
            await park()
        except TaskCancelled as exc:
            caught.append(exc.reason)

    task = loop.spawn(work(), name="w")
    drain_all(loop)
    task.cancel(Reason.DRAINING)
    task.cancel(Reason.INTERNAL)
    drain_all(loop)
    assert caught == [Reason.DRAINING]
    assert task.done


def test_cancel_before_the_first_step_lets_the_task_begin_and_clean_up(loop: Loop) -> None:
    log: list[str] = []

    async def work() -> None:
        log.append("begun")
        try:
            await park()
        finally:
            log.append("cleaned")

    task = loop.spawn(work(), name="w")
    task.cancel(Reason.DRAINING)
    drain_all(loop)
    assert log == ["begun", "cleaned"]
    assert task.done


def test_cancel_of_the_running_task_is_raised_at_its_next_park(loop: Loop) -> None:
    log: list[str] = []

    async def work() -> None:
        current_task().cancel(Reason.DRAINING)
        log.append("still running")
        try:
            await park()
        except TaskCancelled:
            log.append("cancelled")

    loop.spawn(work(), name="w")
    drain_all(loop)
    assert log == ["still running", "cancelled"]


def test_an_exception_is_logged_and_counted_and_others_go_on(loop: Loop, caplog: pytest.LogCaptureFixture) -> None:
    async def bad() -> None:
        raise ValueError("broken")

    seen: list[int] = []

    async def good() -> None:
        seen.append(1)

    with caplog.at_level(logging.ERROR):
        loop.spawn(bad(), name="bad one")
        loop.spawn(good(), name="good one")
        drain_all(loop)
    assert seen == [1]
    assert loop.failures == 1
    assert [record.__dict__["task"] for record in caplog.records] == ["bad one"]


def test_a_broken_handler_loses_its_descriptor_only(loop: Loop, caplog: pytest.LogCaptureFixture) -> None:
    class Broken(Probe):
        def handle(self, events: int) -> None:
            raise ValueError("broken")

    a, b = socket.socketpair()
    c, d = socket.socketpair()
    with a, c, b, d:
        broken, fine = Broken(b), Probe(d)
        loop.register(b.fileno(), broken)
        loop.register(d.fileno(), fine)
        drain_all(loop)
        assert broken.is_aborted
        assert fine.events
        assert loop.failures == 1
    assert "event handler failed" in caplog.text


def test_awaiting_trio_on_the_loop_is_refused(loop: Loop, caplog: pytest.LogCaptureFixture) -> None:
    async def work() -> None:
        await trio.sleep(1)

    async def body() -> None:
        task = loop.spawn(work(), name="w")
        while not task.done:
            await trio.lowlevel.checkpoint()

    trio.run(run_until, loop, body)
    assert loop.failures == 1
    assert "expected Loop.in_trio" in caplog.text


def test_a_round_is_bounded_in_steps_and_events(loop: Loop) -> None:
    ran = 0

    async def work() -> None:
        nonlocal ran
        ran += 1

    for _ in range(STEPS * 3):
        loop.spawn(work(), name="w")
    loop._round()
    assert ran == STEPS
    pairs = [socket.socketpair() for _ in range(EVENTS + 10)]
    probes = [Probe(a) for a, _ in pairs]
    for probe in probes:
        loop.register(probe.sock.fileno(), probe)
    loop._round()
    assert sum(len(probe.events) for probe in probes) == EVENTS
    for a, b in pairs:
        loop.unregister(a.fileno())
        a.close()
        b.close()


class Turn:
    """Acts once; notes when it was its turn."""

    deferrable = None

    def __init__(self, turns: list[str], name: str, noted_at: float = 0.0) -> None:
        self.noted_at = noted_at
        self._turns = turns
        self._name = name

    def act(self) -> None:
        self._turns.append(self._name)

    def abort(self) -> None:
        raise AssertionError("it did not fail")


def test_what_is_under_way_goes_on_before_anything_is_begun(loop: Loop) -> None:
    turns: list[str] = []
    loop.arrivals.extend(Turn(turns, "new") for _ in range(ARRIVALS + 1))
    loop.eager.extend(Turn(turns, "old") for _ in range(STEPS))
    assert loop.drain() is False, "all of it in one batch, and nothing is left"
    assert turns == ["old"] * STEPS + ["new"] * (ARRIVALS + 1)


def test_if_more_is_under_way_than_a_round_takes_something_new_is_begun_all_the_same(loop: Loop) -> None:
    turns: list[str] = []
    loop.arrivals.extend(Turn(turns, "new") for _ in range(ARRIVALS))
    loop.eager.extend(Turn(turns, "old") for _ in range(2 * STEPS + 1))
    loop._round()
    assert turns == ["old"] * STEPS + ["new"] * FEW_ARRIVALS
    assert loop.drain() is False
    assert len(turns) == 2 * STEPS + 1 + ARRIVALS


def test_steps_that_are_due_are_under_way(loop: Loop) -> None:
    async def forever() -> None:
        while True:
            current_task().wake()
            await park()

    turns: list[str] = []
    for waiting, expected in ((STEPS, ARRIVALS), (1, FEW_ARRIVALS)):
        for _ in range(waiting):
            loop.spawn(forever(), name="w")
        turns.clear()
        loop.arrivals.extend(Turn(turns, "new") for _ in range(ARRIVALS))
        loop._round()
        assert len(turns) == expected


def test_a_round_begins_no_more_than_arrivals_and_asks_before_if_more_wait(loop: Loop) -> None:
    turns: list[str] = []
    asked: list[int] = []
    loop.on_backlog = lambda: asked.append(len(loop.arrivals))
    loop.arrivals.extend(Turn(turns, "new") for _ in range(2 * ARRIVALS + 1))
    assert loop._round()
    assert (len(turns), asked) == (ARRIVALS, [2 * ARRIVALS + 1])
    assert loop._round()
    assert not loop._round()
    assert (len(turns), asked) == (2 * ARRIVALS + 1, [2 * ARRIVALS + 1, ARRIVALS + 1])


def test_while_somebody_waits_for_a_turn_all_that_the_kernel_has_is_noted(loop: Loop) -> None:
    pairs = [socket.socketpair() for _ in range(EVENTS + 10)]
    probes = [Probe(a) for a, _ in pairs]
    for probe in probes:
        loop.register(probe.sock.fileno(), probe)
    loop.arrivals.append(Turn([], "new"))
    loop._round()
    assert sum(len(probe.events) for probe in probes) == EVENTS + 10 < BACKLOG_EVENTS
    for a, b in pairs:
        loop.unregister(a.fileno())
        a.close()
        b.close()


def test_a_batch_is_bounded_in_rounds_and_in_time(loop: Loop, clock: ManualClock) -> None:
    steps = 0
    seconds = 0.0

    async def forever() -> None:
        nonlocal steps
        while True:
            steps += 1
            clock.advance(seconds)
            current_task().wake()
            await park()

    loop.spawn(forever(), name="w")
    assert loop.drain()
    assert steps == ROUNDS
    seconds = 0.6 * BATCH_S
    assert loop.drain()
    assert steps == ROUNDS + 2


def test_tasks_that_wake_each_other_do_not_starve_descriptors(loop: Loop) -> None:
    tasks: list[Task] = []

    async def pingpong(other: int) -> None:
        while True:
            if len(tasks) > other:
                tasks[other].wake()
            current_task().wake()
            await park()

    tasks.append(loop.spawn(pingpong(1), name="ping"))
    tasks.append(loop.spawn(pingpong(0), name="pong"))
    a, b = socket.socketpair()
    with a, b:
        probe = Probe(b)
        loop.register(b.fileno(), probe)
        loop.drain()
        before = len(probe.events)
        a.send(b"x")
        loop._round()
        assert len(probe.events) == before + 1
        loop.unregister(b.fileno())


def test_a_task_that_wakes_itself_for_ever_does_not_starve_trio(loop: Loop) -> None:
    steps = 0

    async def forever() -> None:
        nonlocal steps
        while True:
            steps += 1
            current_task().wake()
            await park()

    turns = 0

    async def body() -> None:
        nonlocal turns
        loop.spawn(forever(), name="spin")
        while turns < 100:
            await trio.lowlevel.checkpoint()
            turns += 1

    trio.run(run_until, loop, body)
    assert turns == 100
    # One batch between two turns, give or take scheduling order.
    assert 0 < steps <= ROUNDS * (turns + 2)


def test_spawn_and_wake_from_trio_interrupt_the_wait(loop: Loop) -> None:
    log: list[str] = []

    async def work() -> None:
        log.append("begun")
        await park()
        log.append("woken")

    async def body() -> None:
        await trio.testing.wait_all_tasks_blocked()
        task = loop.spawn(work(), name="w")
        await trio.testing.wait_all_tasks_blocked()
        assert log == ["begun"]
        task.wake()
        await trio.testing.wait_all_tasks_blocked()
        assert log == ["begun", "woken"]

    trio.run(run_until, loop, body)


def test_events_reach_a_waiting_loop(loop: Loop) -> None:
    got: list[bytes] = []
    a, b = socket.socketpair()
    b.setblocking(False)

    async def work() -> None:
        probe = Probe(b, current_task())
        loop.register(b.fileno(), probe)
        while not got:
            await park()
            try:
                got.append(b.recv(10))
            except BlockingIOError:
                continue
        loop.unregister(b.fileno())

    async def body() -> None:
        loop.spawn(work(), name="w")
        await trio.testing.wait_all_tasks_blocked()
        a.send(b"hello")
        await trio.testing.wait_all_tasks_blocked()

    with a, b:
        trio.run(run_until, loop, body)
    assert got == [b"hello"]


def test_cancelling_run_closes_coroutines_and_descriptors(loop: Loop) -> None:
    log: list[str] = []
    a, b = socket.socketpair()
    probe = Probe(b)

    async def work(name: str) -> None:
        try:
            await park()
        finally:
            log.append(f"{name} {current_task().name}")
            unstarted = loop.spawn(park_once(), name="late")
            assert unstarted.done

    async def park_once() -> None:
        await park()

    async def body() -> None:
        loop.spawn(work("one"), name="1")
        loop.spawn(work("two"), name="2")
        loop.register(b.fileno(), probe)
        await trio.testing.wait_all_tasks_blocked()

    before = len(os.listdir("/proc/self/fd"))
    with a:
        trio.run(run_until, loop, body)
    assert sorted(log) == ["one 1", "two 2"]
    assert probe.is_aborted
    assert loop.is_closed
    assert loop.tasks == 0
    assert len(os.listdir("/proc/self/fd")) == before - 4  # two sockets, the epoll, the bell


def test_a_task_that_parks_while_it_is_closed_is_reported(loop: Loop, caplog: pytest.LogCaptureFixture) -> None:
    async def stubborn() -> None:
        try:
            await park()
        finally:
            await park()

    loop.spawn(stubborn(), name="stubborn")
    drain_all(loop)
    loop._close()
    assert loop.failures == 1
    assert "while it was closed" in caplog.text


def test_stop_ends_run_and_a_loop_runs_once(loop: Loop) -> None:
    async def main() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(loop.run)
            await trio.testing.wait_all_tasks_blocked()
            loop.stop()
        with pytest.raises(RuntimeError, match="run already"):
            await loop.run()

    trio.run(main)


def test_the_sweeper_runs_by_itself() -> None:
    async def main() -> None:
        loop = Loop(clock=trio.current_time)
        seen: list[float] = []

        async def work() -> None:
            begun = loop.now
            current_task().deadline = loop.now + 3.0
            try:
                await park()
            except DeadlineExpired:
                seen.append(loop.now - begun)

        async def body() -> None:
            loop.spawn(work(), name="w")
            await trio.sleep(10)

        await run_until(loop, body)
        assert len(seen) == 1
        assert 3.0 <= seen[0] <= 3.0 + SWEEP_S + 1e-6
        assert loop.lag_s == pytest.approx(0.0, abs=1e-6)

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))


def test_in_trio_returns_results_and_raises_exceptions(loop: Loop) -> None:
    log: list[object] = []

    async def double(value: int) -> int:
        await trio.lowlevel.checkpoint()
        return value * 2

    async def fail() -> int:
        await trio.lowlevel.checkpoint()
        raise ValueError("in trio")

    async def work() -> None:
        log.append(await loop.in_trio(lambda: double(21)))
        try:
            await loop.in_trio(fail)
        except ValueError as exc:
            log.append(str(exc))

    async def body() -> None:
        task = loop.spawn(work(), name="w")
        while not task.done:
            await trio.lowlevel.checkpoint()

    trio.run(run_until, loop, body)
    assert log == [42, "in trio"]


def test_cancelling_a_task_cancels_its_call_into_trio(loop: Loop) -> None:
    log: list[str] = []

    async def sleep_long() -> None:
        try:
            await trio.sleep_forever()
        except trio.Cancelled:
            log.append("trio cancelled")
            raise

    async def work() -> None:
        try:
            await loop.in_trio(sleep_long)
        except TaskCancelled:
            log.append("task cancelled")

    async def body() -> None:
        task = loop.spawn(work(), name="w")
        await trio.testing.wait_all_tasks_blocked()
        task.cancel(Reason.DRAINING)
        await trio.testing.wait_all_tasks_blocked()
        assert task.done
        assert sorted(log) == ["task cancelled", "trio cancelled"]

    trio.run(run_until, loop, body)


def test_in_trio_outside_a_running_loop_is_an_error(loop: Loop, caplog: pytest.LogCaptureFixture) -> None:
    async def work() -> None:
        await loop.in_trio(trio.lowlevel.checkpoint)

    loop.spawn(work(), name="w")
    drain_all(loop)
    assert loop.failures == 1
    assert "the loop is not running" in caplog.text


def test_every_slow_step_is_logged_with_its_task(
    loop: Loop, clock: ManualClock, caplog: pytest.LogCaptureFixture
) -> None:
    async def slow(seconds: float) -> None:
        clock.advance(seconds)

    loop.spawn(slow(0.3), name="slower")
    loop.spawn(slow(0.2), name="slow")
    loop.spawn(slow(0.09), name="fine")
    drain_all(loop)
    assert [record.__dict__["task"] for record in caplog.records] == ["slower", "slow"]
    assert loop.longest_step_s == pytest.approx(0.3)


def test_lag_says_how_late_the_sweeper_was() -> None:
    async def main() -> None:
        clock = ManualClock(0.0)
        loop = Loop(clock=clock)

        async def block() -> None:
            clock.advance(SWEEP_S + 0.04)

        async def body() -> None:
            await trio.testing.wait_all_tasks_blocked()
            loop.spawn(block(), name="blocker")
            await trio.sleep(SWEEP_S * 1.5)

        await run_until(loop, body)
        assert loop.lag_s == pytest.approx(0.04)

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))
