"""Limits of one attempt, from manifests to behaviour: `retries.perTryTimeout` and `timeouts.backendRequest`."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

import pytest
import trio
import trio.testing
from hypothesis import given, settings
from hypothesis import strategies as st

from datum_router.model.policy import TimeoutPolicy
from datum_router.model.service import UpstreamProtocol
from datum_router.reasons import Reason
from datum_router_proxy.alarm import LEAST_KEPT, WITHIN_S, Alarms
from datum_router_proxy.loop import Loop, Task, park
from datum_router_proxy.testing_clients import client
from datum_router_proxy.testing_manifests import compile_route
from datum_router_proxy.testing_peers import Exchange, bounded, full_queue, gateway, make_rule, make_service, upstream
from datum_router_proxy.testing_roads import RETRY, Forwarded, H1Server, World
from datum_router_proxy.testing_roads import H1Client as RoadClient

both = pytest.mark.parametrize("down", ["h1", "h2"])
ups = pytest.mark.parametrize("up", [UpstreamProtocol.HTTP, UpstreamProtocol.H2C])
Spec = Mapping[str, object]
QUICK = {"backoff": {"initialMs": 1, "maxMs": 1}}
GRPC = [(b"content-type", b"application/grpc"), (b"te", b"trailers")]


async def hello(exchange: Exchange) -> None:
    await exchange.body()
    await exchange.reply(200, b"hello")


async def never(exchange: Exchange) -> None:
    await exchange.body()
    stream = getattr(exchange, "_stream", None)
    if stream is not None:  # over HTTP/1 only reading shows that the connection is gone
        await stream.receive_some(1)
    await trio.sleep_forever()


async def half(exchange: Exchange) -> None:
    await exchange.head(200, [(b"content-length", b"10")])
    await exchange.data(b"half")
    await trio.sleep_forever()


@pytest.fixture
def blackhole() -> Iterator[int]:
    with full_queue() as port:
        yield port


PER_TRY: Spec = {"retries": {"perTryTimeout": "60ms", **QUICK}}
BACKEND: Spec = {"timeouts": {"backendRequest": "60ms"}, "retries": QUICK}
MANIFESTS: list[tuple[str, Spec, str, int, bytes]] = [
    # name, route, method, status, what the answer holds
    ("per try", PER_TRY, "GET", 200, b"hello"),
    ("backend request", BACKEND, "GET", 200, b"hello"),
    ("the shorter one of both", {**BACKEND, "retries": {"perTryTimeout": "20s", **QUICK}}, "GET", 200, b"hello"),
    ("no second try of what may have been processed", PER_TRY, "POST", 504, b"per_try_timeout"),
    ("none if none is allowed", {"retries": {"perTryTimeout": "60ms", "maxRetries": 0}}, "GET", 504, b"per_try_t"),
    (
        "0s is no limit",
        {"retries": {"perTryTimeout": "0s"}, "timeouts": {"request": "300ms"}},
        "GET",
        504,
        b"request_t",
    ),
]


@both
@ups
@pytest.mark.parametrize(
    ("route", "method", "status", "said"), [m[1:] for m in MANIFESTS], ids=[m[0] for m in MANIFESTS]
)
def test_from_manifest_to_behaviour(
    down: str, up: UpstreamProtocol, route: Spec, method: str, status: int, said: bytes
) -> None:
    async def main() -> None:
        async with upstream(never, up) as silent, upstream(hello, up) as good:
            compiled = compile_route([silent.port, good.port], route, {"protocol": up.value})
            assert compiled.diagnostics == []
            async with gateway(compiled.services, compiled.rules) as running, client(running.port, down) as peer:
                # Two requests, so that the first try of one of them is at the silent endpoint.
                answers = [await peer.request(method, "/", body=b"x" if method == "POST" else None) for _ in range(2)]
                slow = next(answer for answer in answers if answer.status == status and said in answer.body)
                assert (slow.status, silent.requests != []) == (status, True)
                if said != b"request_t":
                    failed = next(one for one in running.recorder.outcomes if one.reason is not Reason.ROUTED)
                    assert (failed.reason, failed.status) == (Reason.PER_TRY_TIMEOUT, 0)
                    assert failed.outcome_class is not None, "it counts for passive health"
                with trio.fail_after(2):  # the silent attempt is cancelled upstream
                    if up is UpstreamProtocol.H2C:
                        await silent.requests[0].is_cancelled.wait()  # type: ignore[attr-defined]
                    else:
                        await silent.gone.wait()

    bounded(main)


@both
@ups
def test_the_express_lanes_keep_to_it_once_a_connection_is_there(down: str, up: UpstreamProtocol) -> None:
    calls = 0

    async def app(exchange: Exchange) -> None:
        nonlocal calls
        calls += 1
        if calls == 3:
            await trio.sleep_forever()
        await exchange.reply(200, b"hello")

    async def main() -> None:
        async with upstream(app, up) as server:
            route = {"retries": {"perTryTimeout": "60ms", "maxRetries": 0}, "timeoutSeconds": 60}
            compiled = compile_route([server.port], route, {"protocol": up.value})
            async with gateway(compiled.services, compiled.rules) as running, client(running.port, down) as peer:
                answers = [await peer.request("GET", "/") for _ in range(4)]
                assert [answer.status for answer in answers] == [200, 200, 504, 200]
                assert b"per_try_timeout" in answers[2].body
                assert [one.reason for one in running.recorder.outcomes if one.status == 0] == [Reason.PER_TRY_TIMEOUT]

    bounded(main)


@both
def test_backend_request_cuts_an_answer_and_per_try_does_not(down: str) -> None:
    async def main() -> None:
        async with upstream(half) as server:
            for route, reason in (
                ({"timeouts": {"backendRequest": "60ms"}}, Reason.PER_TRY_TIMEOUT),
                ({"retries": {"perTryTimeout": "60ms"}, "timeouts": {"request": "400ms"}}, Reason.REQUEST_TIMEOUT),
            ):
                compiled = compile_route([server.port], route)
                async with gateway(compiled.services, compiled.rules) as running:
                    async with client(running.port, down) as peer:
                        assert (await peer.request("GET", "/")).is_cut
                    await running.recorder.until(lambda: bool(running.recorder.events))
                    assert running.recorder.events[0].reason is reason
                    assert running.recorder.events[0].attempts == 1, "what has begun is never tried again"

    bounded(main)


def test_a_grpc_client_is_told_deadline_exceeded() -> None:
    async def main() -> None:
        async with upstream(never, UpstreamProtocol.GRPC) as server:
            compiled = compile_route([server.port], PER_TRY, {"protocol": "GRPC"})
            async with gateway(compiled.services, compiled.rules) as running, client(running.port, "h2") as peer:
                answer = await peer.request("POST", "/a.B/C", GRPC, b"x")
                assert (answer.status, answer.header(b"grpc-status")) == (200, b"4")
                assert running.recorder.events[0].attempts == 1, "a call may have been processed"

    bounded(main)


def test_a_dial_that_is_not_done_in_time_is_repeated_with_any_method(blackhole: int) -> None:
    async def main() -> None:
        async with upstream(hello) as good:
            compiled = compile_route([blackhole, good.port], PER_TRY)
            async with gateway(compiled.services, compiled.rules) as running, client(running.port, "h1") as peer:
                for _ in range(2):
                    assert (await peer.request("POST", "/", body=b"x")).body == b"hello"
                failed = [one for one in running.recorder.outcomes if one.reason is Reason.PER_TRY_TIMEOUT]
                assert {(one.is_sent, one.is_unprocessed) for one in failed} == {(False, True)}

    bounded(main)


# --- whose time it is ------------------------------------------------------------------------------------------------


def silent(_: Forwarded) -> list[bytes]:
    return []


def test_the_clock_of_an_attempt_stands_while_the_client_owes_its_body() -> None:
    rule = make_rule(retry=RETRY, timeouts=TimeoutPolicy(request_s=600.0, per_try_s=2.0))
    world = World(make_service([80]), lambda world: H1Server(world, silent), [rule])
    with world.running():
        peer = RoadClient()
        world.connect(peer, is_h2=False)
        peer.pipe.give(b"PUT / HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\n\r\nab")
        world.settle()
        world.wait(20.0)
        assert peer.got == b"", "its own fault: nothing has expired"
        peer.pipe.give(b"cd")
        world.settle()
        world.wait(1.9)
        assert peer.got == b""
        world.wait(0.2)
        assert peer.got.startswith(b"HTTP/1.1 504 ")
        assert b"per_try_timeout" in peer.got
        reasons = [one.reason for one in world.observer.outcomes]
        assert reasons == [Reason.PER_TRY_TIMEOUT]
        world.end()
    assert world.left_over == ""


# --- alarms --------------------------------------------------------------------------------------------------------


async def wait() -> None:
    while True:
        await park()


def test_an_alarm_ends_a_wait_long_before_the_next_sweep(autojump_clock: trio.testing.MockClock) -> None:
    async def main() -> None:
        loop = Loop(clock=trio.current_time)
        alarms = Alarms()
        tasks = []
        async with trio.open_nursery() as nursery:
            nursery.start_soon(alarms.run, trio.current_time)
            await trio.testing.wait_all_tasks_blocked()
            for number in (3, 1, 2):
                task = loop.spawn(wait(), name=f"{number}")
                loop.drain()
                task.deadline = trio.current_time() + number / 1000
                alarms.add(task)
                tasks.append(task)
            woken = []
            for _ in range(3):
                await trio.sleep(0.001)
                await trio.testing.wait_all_tasks_blocked()
                woken.append([task.name for task in tasks if task.is_queued])
            assert woken == [["1"], ["1", "2"], ["3", "1", "2"]]
            nursery.cancel_scope.cancel()
        loop._close()

    trio.run(main, clock=autojump_clock)


@pytest.fixture
def autojump_clock() -> trio.testing.MockClock:
    return trio.testing.MockClock(autojump_threshold=0.01)


class Waiting:
    """A task that is asked nothing."""

    @staticmethod
    def make(loop: Loop) -> Task:
        task = loop.spawn(wait(), name="waiting")
        loop.drain()
        return task


def test_a_task_has_one_alarm_however_often_its_deadline_moves() -> None:
    now = 100.0
    loop = Loop(clock=lambda: now)
    alarms = Alarms()
    task = Waiting.make(loop)
    task.deadline_reason = Reason.PER_TRY_TIMEOUT
    for step in range(1000):
        task.deadline = 101.0 + step / 1000
        alarms.add(task)
    assert (len(alarms), len(alarms._heap)) == (1, 1)
    alarms.ring(101.5)
    assert not task.is_queued, "its deadline is later by now"
    assert len(alarms) == 1, "the alarm was set anew"
    alarms.ring(102.0)
    assert task.is_queued
    assert len(alarms) == 0
    loop._close()


def test_tasks_that_are_done_are_not_kept_until_their_alarm() -> None:
    loop = Loop(clock=lambda: 100.0)
    alarms = Alarms()
    waiting = Waiting.make(loop)
    waiting.deadline = 105.0
    alarms.add(waiting)
    for _ in range(10 * LEAST_KEPT):
        task = Waiting.make(loop)
        task.deadline = 101.0
        alarms.add(task)
        loop.finish(task)
    assert len(alarms) <= LEAST_KEPT + 1
    assert len(alarms._heap) <= LEAST_KEPT + 1
    alarms.ring(105.0)
    assert waiting.is_queued
    loop._close()


def test_a_deadline_far_away_is_left_to_the_sweep() -> None:
    loop = Loop(clock=lambda: 100.0)
    task = Waiting.make(loop)
    task.deadline = 100.1 + WITHIN_S
    loop.alarm(task)
    assert len(loop._alarms) == 0
    task.deadline = 99.9 + WITHIN_S
    loop.alarm(task)
    assert len(loop._alarms) == 1
    loop._close()


@pytest.mark.parametrize("case", ["none", "another kind", "done"])
def test_an_alarm_whose_reason_is_gone_is_forgotten(case: str) -> None:
    loop = Loop(clock=lambda: 100.0)
    alarms = Alarms()
    task = Waiting.make(loop)
    task.deadline, task.deadline_reason = 101.0, Reason.PER_TRY_TIMEOUT
    alarms.add(task)
    if case == "another kind":
        task.deadline_reason = Reason.IDLE_TIMEOUT
    task.deadline = 160.0
    if case == "done":
        loop.finish(task)
    elif case == "none":
        task.deadline = float("inf")
    alarms.ring(101.0)
    assert not task.is_queued
    assert len(alarms) == 0
    loop._close()


@settings(max_examples=200, deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(0, 3), st.sampled_from(("try", "try", "idle", "off", "done")), st.integers(0, 20)),
        max_size=60,
    )
)
def test_whoever_asked_is_woken_when_its_deadline_has_passed_and_nobody_else(
    steps: list[tuple[int, str, int]],
) -> None:
    now = 0.0
    loop = Loop(clock=lambda: now)
    alarms = Alarms()
    tasks = [Waiting.make(loop) for _ in range(4)]
    for who, what, number in steps:
        task = tasks[who]
        if what == "try":
            task.deadline, task.deadline_reason = now + number, Reason.PER_TRY_TIMEOUT
            alarms.add(task)
        elif what == "idle":
            task.deadline, task.deadline_reason = now + number, Reason.IDLE_TIMEOUT
        elif what == "off":
            task.deadline = math.inf
        elif what == "done":
            loop.finish(task)
        now += number / 4
        alarms.ring(now)
        for one in tasks:
            is_over = one.deadline <= now and not one.done
            if is_over and one.deadline_reason is Reason.PER_TRY_TIMEOUT:
                assert one.is_queued
            assert is_over or not one.is_queued
        assert len(alarms) <= len(tasks)
        while loop._queue:  # each of them has had its step, and took its deadline off
            woken = loop._queue.popleft()
            woken.is_queued = False
            woken.deadline = math.inf
    loop._close()
