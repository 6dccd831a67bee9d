"""`spec.retries.hedging`, from manifests to behaviour: who races, who wins, and what becomes of the others."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
import trio

from datum_router.model.listener import Listener
from datum_router.model.service import UpstreamProtocol
from datum_router.observe import names
from datum_router.observe.cells import Cell
from datum_router.reasons import Reason
from datum_router_proxy.testing_clients import client
from datum_router_proxy.testing_manifests import compile_route
from datum_router_proxy.testing_peers import SERVICE, Exchange, Gateway, bounded, gateway, refused_port, upstream
from datum_router_proxy.wire import chain

both = pytest.mark.parametrize("down", ["h1", "h2"])
ups = pytest.mark.parametrize("up", [UpstreamProtocol.HTTP, UpstreamProtocol.H2C])
Spec = Mapping[str, object]


def hedged(**said: object) -> Spec:
    retries = {"maxRetries": 0, "hedging": {"delay": "30ms"}, "backoff": {"initialMs": 1, "maxMs": 1}, **said}
    return {"retries": retries}


async def hello(exchange: Exchange) -> None:
    await exchange.body()
    await exchange.reply(200, b"hello")


async def busy(exchange: Exchange) -> None:
    await exchange.body()
    await exchange.reply(503, b"busy")


async def never(exchange: Exchange) -> None:
    await exchange.body()
    stream = getattr(exchange, "_stream", None)
    if stream is not None:  # over HTTP/1 only reading shows that the connection is gone
        await stream.receive_some(1)
    await trio.sleep_forever()


def held(running: Gateway) -> tuple[int, int, int]:
    state = running.holder.current.services[SERVICE]
    return sum(state.active.values()), state.limits.requests, state.limits.retries


@both
@ups
def test_a_slow_attempt_is_overtaken_and_cancelled(down: str, up: UpstreamProtocol) -> None:
    async def main() -> None:
        async with upstream(never, up) as slow, upstream(hello, up) as quick:
            compiled = compile_route([slow.port, quick.port], hedged(), {"protocol": up.value})
            assert compiled.diagnostics == []
            async with gateway(compiled.services, compiled.rules) as running, client(running.port, down) as peer:
                for _ in range(4):
                    assert (await peer.request("GET", "/")).body == b"hello"
                events, outcomes = running.recorder.events, running.recorder.outcomes
                await running.recorder.until(lambda: len(events) == len(outcomes) == 4)
                assert 2 in {event.attempts for event in events}, "one of them began at the slow one"
                assert {event.endpoint.rpartition(":")[2] for event in events} == {str(quick.port)}
                assert [one.reason for one in outcomes] == [Reason.ROUTED] * 4, "slow proves nothing"
                with trio.fail_after(2):
                    if up is UpstreamProtocol.H2C:
                        await slow.requests[0].is_cancelled.wait()  # type: ignore[attr-defined]
                    else:
                        await slow.gone.wait()
                assert held(running) == (0, 0, 0)
                hedges = [request for request in quick.requests if request.header(chain.ATTEMPT)]
                assert {request.header(chain.ATTEMPT) for request in hedges} == {b"2"}
                cells = {cell.labels: cell.value for cell in accounts(running) if cell.metric == names.HEDGES.name}
                assert cells == {("won",): float(len(hedges))}

    bounded(main)


def accounts(running: Gateway) -> list[Cell]:
    return running.plane._pipeline.accounts.take_cells()


CASES: list[tuple[str, Spec, str, bytes | None, list[tuple[bytes, bytes]], int]] = [
    # name, route, method, body, fields, requests that reach anybody
    ("a POST never", hedged(), "POST", b"x", [], 1),
    ("not even if it may be retried", hedged(retryNonIdempotent=True), "POST", b"x", [], 1),
    ("no request with a body", hedged(), "PUT", b"x", [], 1),
    ("a DELETE without one", hedged(), "DELETE", None, [], 2),
    ("three at once", hedged(hedging={"delay": "10ms", "maxAttempts": 3}), "GET", None, [], 3),
    ("no more than there are endpoints", hedged(hedging={"delay": "10ms", "maxAttempts": 5}), "GET", None, [], 3),
    ("not what a gateway before us has tried before", hedged(), "GET", None, [(chain.ATTEMPT, b"2")], 1),
    ("not if it is answered first", hedged(hedging={"delay": "10s"}), "GET", None, [], 1),
]


@pytest.mark.parametrize(
    ("route", "method", "body", "fields", "expected"), [case[1:] for case in CASES], ids=[case[0] for case in CASES]
)
def test_who_is_hedged(
    route: Spec, method: str, body: bytes | None, fields: list[tuple[bytes, bytes]], expected: int
) -> None:
    async def main() -> None:
        async with upstream(never) as one, upstream(never) as two, upstream(never) as three:
            ends = (one, two, three)
            compiled = compile_route([end.port for end in ends], {**route, "timeouts": {"request": "1s"}})
            listener = Listener(name="test", trusted_hops=1)
            async with (
                gateway(compiled.services, compiled.rules, listener=listener) as running,
                client(running.port, "h1") as peer,
            ):
                answer = await peer.request(method, "/", fields, body)
                assert answer.status == 504
                assert b"request_timeout" in answer.body
                await running.recorder.until(lambda: bool(running.recorder.events))
                assert sum(len(end.requests) for end in ends) == expected
                assert running.recorder.events[0].attempts == expected
                assert held(running) == (0, 0, 0)

    bounded(main)


@both
def test_a_race_that_all_lose_is_retried_like_any_attempt(down: str) -> None:
    async def main() -> None:
        async with upstream(busy) as bad, upstream(hello) as good:
            compiled = compile_route([bad.port, good.port], hedged(maxRetries=1, hedging={"delay": "10s"}))
            async with gateway(compiled.services, compiled.rules) as running, client(running.port, down) as peer:
                for _ in range(4):
                    assert (await peer.request("GET", "/")).body == b"hello"
                await running.recorder.until(lambda: len(running.recorder.events) == 4)
                assert 2 in {event.attempts for event in running.recorder.events}
                assert {one.status for one in running.recorder.outcomes} == {200, 503}
                assert held(running) == (0, 0, 0)

    bounded(main)


def test_an_attempt_that_fails_while_another_races_is_told_to_passive_health() -> None:

    hedged_to = trio.Event()
    failed_first = trio.Event()
    begun = 0

    async def app(exchange: Exchange) -> None:
        """Reset the first attempt as soon as there is a second one, and answer that one afterwards."""
        nonlocal begun
        begun += 1
        if begun == 1:
            await hedged_to.wait()
            await exchange.reset()
            failed_first.set()
        else:
            hedged_to.set()
            await failed_first.wait()
            await exchange.reply(200, b"hello")

    async def main() -> None:
        async with upstream(app) as one, upstream(app) as two:
            compiled = compile_route([one.port, two.port], hedged())
            async with gateway(compiled.services, compiled.rules) as running, client(running.port, "h1") as peer:
                assert (await peer.request("GET", "/")).body == b"hello"
                await running.recorder.until(lambda: bool(running.recorder.events))
                failed = [one.reason for one in running.recorder.outcomes if not one.status]
                assert failed == [Reason.UPSTREAM_RESET]
                assert held(running) == (0, 0, 0)

    bounded(main)


def test_an_endpoint_that_cannot_be_reached_is_followed_at_once_not_by_a_hedge() -> None:
    async def main() -> None:
        async with upstream(hello) as good:
            route = hedged(maxRetries=1, hedging={"delay": "10s"})
            compiled = compile_route([refused_port(), good.port], route)
            async with gateway(compiled.services, compiled.rules) as running, client(running.port, "h1") as peer:
                for _ in range(4):
                    assert (await peer.request("GET", "/")).body == b"hello"
                await running.recorder.until(lambda: len(running.recorder.events) == 4)
                assert held(running) == (0, 0, 0)

    bounded(main)


def test_hedges_are_in_the_budget_of_retries() -> None:
    async def main() -> None:
        async with upstream(never, UpstreamProtocol.H2C) as one, upstream(never, UpstreamProtocol.H2C) as two:
            route = {**hedged(), "timeouts": {"request": "300ms"}}
            compiled = compile_route([one.port, two.port], route, {"protocol": "H2C"})
            async with gateway(compiled.services, compiled.rules) as running:
                async with trio.open_nursery() as nursery:

                    async def ask() -> None:
                        async with client(running.port, "h1") as peer:
                            assert (await peer.request("GET", "/")).status == 504

                    for _ in range(40):
                        nursery.start_soon(ask)
                await running.recorder.until(lambda: len(running.recorder.events) == 40)
                assert 40 < len(one.requests) + len(two.requests) <= 48
                assert held(running) == (0, 0, 0)

    bounded(main)


@both
def test_a_client_that_leaves_ends_the_race(down: str) -> None:
    asked = 0
    both_asked = trio.Event()

    async def app(exchange: Exchange) -> None:
        nonlocal asked
        asked += 1
        if asked == 2:
            both_asked.set()
        await trio.sleep_forever()

    async def main() -> None:
        async with upstream(app, UpstreamProtocol.H2C) as one, upstream(app, UpstreamProtocol.H2C) as two:
            compiled = compile_route([one.port, two.port], hedged(), {"protocol": "H2C"})
            async with gateway(compiled.services, compiled.rules) as running:
                async with trio.open_nursery() as nursery:

                    async def ask() -> None:
                        async with client(running.port, down) as peer:
                            await peer.request("GET", "/")

                    nursery.start_soon(ask)
                    with trio.fail_after(3):
                        await both_asked.wait()
                    nursery.cancel_scope.cancel()
                await running.recorder.until(lambda: bool(running.recorder.events))
                with trio.fail_after(3):
                    for end in (one, two):
                        await end.requests[0].is_cancelled.wait()  # type: ignore[attr-defined]
                assert running.recorder.events[0].reason is Reason.DOWNSTREAM_RESET
                assert [one.outcome_class for one in running.recorder.outcomes] in ([], [None])
                assert held(running) == (0, 0, 0)

    bounded(main)


@both
@ups
def test_per_try_timeouts_hold_in_a_race(down: str, up: UpstreamProtocol) -> None:
    async def main() -> None:
        async with upstream(never, up) as one, upstream(never, up) as two:
            compiled = compile_route([one.port, two.port], hedged(perTryTimeout="80ms"), {"protocol": up.value})
            async with gateway(compiled.services, compiled.rules) as running, client(running.port, down) as peer:
                answer = await peer.request("GET", "/")
                assert answer.status == 504
                assert b"per_try_timeout" in answer.body
                await running.recorder.until(lambda: len(running.recorder.outcomes) == 2)
                assert [one.reason for one in running.recorder.outcomes] == [Reason.PER_TRY_TIMEOUT] * 2
                assert held(running) == (0, 0, 0)

    bounded(main)
