"""`spec.retries` from manifests to behaviour: conditions, budget, Retry-After, what may be made twice (U1, U3, U6)."""

from __future__ import annotations

import functools
import random
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AsyncExitStack

import pytest
import trio

from datum_router.model.service import UpstreamProtocol
from datum_router_proxy.loop import Loop
from datum_router_proxy.testing_clients import client
from datum_router_proxy.testing_manifests import compile_route
from datum_router_proxy.testing_peers import App, Exchange, Gateway, bounded, gateway, refused_port, upstream

Spec = Mapping[str, object]
QUICK = {"backoff": {"initialMs": 1, "maxMs": 1}}
GRPC = [(b"content-type", b"application/grpc"), (b"te", b"trailers")]
GRPC_OK = [(b"content-type", b"application/grpc")]
HTTP, H2C = UpstreamProtocol.HTTP, UpstreamProtocol.H2C


async def hello(exchange: Exchange) -> None:
    await exchange.body()
    if exchange.header(b"content-type") == b"application/grpc":
        await exchange.head(200, GRPC_OK)
        await exchange.data(b"\0\0\0\0\0")
        await exchange.end([(b"grpc-status", b"0")])
    else:
        await exchange.reply(200, b"hello")


def answer(status: int, *fields: tuple[bytes, bytes]) -> App:
    async def app(exchange: Exchange) -> None:
        await exchange.body()
        await exchange.reply(status, b"no", fields)

    return app


def code(number: int, *fields: tuple[bytes, bytes], body: bytes = b"") -> App:
    async def app(exchange: Exchange) -> None:
        await exchange.body()
        if body:
            await exchange.head(200, GRPC_OK)
            await exchange.data(body)
            await exchange.end([(b"grpc-status", b"%d" % number)])
        else:
            await exchange.head(200, [*GRPC_OK, (b"grpc-status", b"%d" % number), *fields], end=True)

    return app


async def reset(exchange: Exchange) -> None:
    await exchange.body()
    await exchange.reset()


def retries(**said: object) -> Spec:
    return {"retries": {**QUICK, **said}}


NAMED = retries(retryOn=["unavailable"], retryNonIdempotent=True)
CASES: list[tuple[str, Spec, App | None, UpstreamProtocol, str, bool]] = [
    # name, spec of the route, what the first endpoint does (None: refuses connections), protocol, method, tried again
    ("no policy: a refused connection", {}, None, HTTP, "POST", True),
    ("no policy: a reset", {}, reset, HTTP, "GET", True),
    ("no policy: a status", {}, answer(503), HTTP, "GET", False),
    ("statuses by default", retries(), answer(503), HTTP, "GET", True),
    ("no other status", retries(), answer(500), HTTP, "GET", False),
    ("a POST that was answered", retries(), answer(503), HTTP, "POST", False),
    ("a POST that was reset", retries(), reset, HTTP, "POST", False),
    ("unless the user says so: status", retries(retryNonIdempotent=True), answer(503), HTTP, "POST", True),
    ("unless the user says so: reset", retries(retryNonIdempotent=True), reset, HTTP, "POST", True),
    ("connect-failure alone: refused", retries(retryOn=["connect-failure"]), None, HTTP, "GET", True),
    ("connect-failure alone: reset", retries(retryOn=["connect-failure"]), reset, H2C, "GET", False),
    ("reset alone: reset", retries(retryOn=["reset"]), reset, H2C, "GET", True),
    ("reset alone: refused", retries(retryOn=["reset"]), None, HTTP, "GET", False),
    ("retriable-4xx", retries(retryOn=["retriable-4xx"]), answer(409), HTTP, "GET", True),
    ("gateway-error", retries(retryOn=["gateway-error"], retryOnStatus=[]), answer(502), H2C, "GET", True),
    ("no statuses", retries(retryOnStatus=[]), answer(502), HTTP, "GET", False),
    ("Retry-After within bounds", retries(), answer(503, (b"retry-after", b"0")), HTTP, "GET", True),
    ("Retry-After beyond them", retries(), answer(503, (b"retry-after", b"1")), HTTP, "GET", False),
    (
        "gRPC: a code that is named",
        NAMED,
        code(14),
        H2C,
        "gRPC",
        True,
    ),
    ("gRPC: another code", retries(retryOn=["unavailable"], retryNonIdempotent=True), code(13), H2C, "gRPC", False),
    ("gRPC: no code is named", retries(retryNonIdempotent=True), code(14), H2C, "gRPC", False),
    (
        "gRPC: a message has come, the call is committed",
        NAMED,
        code(14, body=b"\0\0\0\0\0"),
        H2C,
        "gRPC",
        False,
    ),
    (
        "gRPC: pushback",
        NAMED,
        code(14, (b"grpc-retry-pushback-ms", b"-1")),
        H2C,
        "gRPC",
        False,
    ),
]


@pytest.mark.parametrize("down", ["h1", "h2"])
@pytest.mark.parametrize(
    ("route", "first", "protocol", "method", "is_tried_again"),
    [case[1:] for case in CASES],
    ids=[case[0] for case in CASES],
)
def test_from_manifest_to_behaviour(
    down: str, route: Spec, first: App | None, protocol: UpstreamProtocol, method: str, is_tried_again: bool
) -> None:
    if method == "gRPC" and down == "h1":
        pytest.skip("gRPC needs HTTP/2")

    async def main() -> None:
        async with upstream(first or hello, protocol) as failing, upstream(hello, protocol) as good:
            ports = [refused_port() if first is None else failing.port, good.port]
            compiled = compile_route(ports, route, {"protocol": protocol.value})
            assert compiled.diagnostics == []
            async with gateway(compiled.services, compiled.rules) as running, client(running.port, down) as peer:
                for _ in range(4):  # the lanes take over as soon as connections are there
                    if method == "gRPC":
                        await peer.request("POST", "/a.B/C", GRPC, b"\0\0\0\0\0")
                    else:
                        await peer.request(method, "/", body=b"x" if method == "POST" else None)
                await running.recorder.until(lambda: len(running.recorder.events) == 4)
                attempts = {event.attempts for event in running.recorder.events}
                assert (2 in attempts) is is_tried_again
                assert attempts <= {1, 2}

    bounded(main)


def test_the_budget_holds_when_everything_fails() -> None:
    """Requests of a route whose service always fails, all at once: the upstream gets a fifth more, and no more."""
    begun = 0
    everybody = trio.Event()

    async def app(exchange: Exchange) -> None:
        nonlocal begun
        begun += 1
        if begun == 100:
            everybody.set()
        await everybody.wait()
        await exchange.reply(503, b"busy")

    async def main() -> None:
        async with upstream(app, H2C) as one, upstream(app, H2C) as two:
            compiled = compile_route([one.port, two.port], retries(maxRetries=5), {"protocol": "H2C"})
            async with gateway(compiled.services, compiled.rules) as running:
                async with trio.open_nursery() as nursery:

                    async def ask() -> None:
                        async with client(running.port, "h1") as peer:
                            assert (await peer.request("GET", "/")).status == 503

                    for _ in range(100):
                        nursery.start_soon(ask)
                await running.recorder.until(lambda: len(running.recorder.events) == 100)
                assert 100 < begun <= 120
                assert sum(event.attempts for event in running.recorder.events) == begun

    bounded(main)


def most_retries(count: int) -> Spec:
    """Limit retries; the circuit itself stays closed."""
    return {"circuitBreaker": {"maxParallelRetries": count, "failureThreshold": 1000}}


AT_ONCE = 30
SHARES: list[tuple[str, Spec, Spec, int]] = [
    # name, spec of the route, spec of the service, how many of 30 requests that fail at once are tried again at once:
    # one more is, as long as those that are tried again are fewer than their share of those that are not
    ("no share: the least", retries(budgetPercent=0), {}, 3),
    ("a fifth by default", retries(), {}, 5),
    ("a half", retries(budgetPercent=50), {}, 10),
    ("as many", retries(budgetPercent=100), {}, 15),
    ("the service's limit is the least", retries(budgetPercent=0), most_retries(7), 7),
    ("a share above the service's limit", retries(budgetPercent=50), most_retries(1), 10),
    ("the service allows none", retries(budgetPercent=100), most_retries(0), 0),
    ("the route allows none", {**retries(budgetPercent=100), **most_retries(0)}, {}, 0),
    ("the route allows one", {**retries(budgetPercent=0), **most_retries(1)}, {}, 1),
    ("the share is the route's, too", {**retries(budgetPercent=50), **most_retries(1)}, {}, 10),
    ("the service allows less", {**retries(budgetPercent=0), **most_retries(7)}, most_retries(2), 2),
]


@pytest.mark.parametrize("down", ["h1", "h2"])
@pytest.mark.parametrize(
    ("route", "service", "expected"), [case[1:] for case in SHARES], ids=[case[0] for case in SHARES]
)
def test_retries_at_once_keep_to_the_budget_and_to_the_limits(
    down: str, route: Spec, service: Spec, expected: int
) -> None:
    """All are in flight, as many fail as may be tried again, then the others; no second try ends before these."""
    first: list[str] = []
    again: list[str] = []
    statuses: Counter[int] = Counter()
    all_asked, all_tried_again, all_told = trio.Event(), trio.Event(), trio.Event()
    if not expected:
        all_tried_again.set()

    async def app(exchange: Exchange) -> None:
        if exchange.path in first:
            again.append(exchange.path)
            if len(again) == expected:
                all_tried_again.set()
            await all_told.wait()
            await exchange.reply(200, b"ok")
            return
        first.append(exchange.path)
        is_early = len(first) <= expected
        if len(first) == AT_ONCE:
            all_asked.set()
        await all_asked.wait()
        if not is_early:
            await all_tried_again.wait()
        await exchange.reply(503, b"busy")

    async def main() -> None:
        async with upstream(app, H2C) as one, upstream(app, H2C) as two:
            compiled = compile_route([one.port, two.port], route, {"protocol": "H2C", **service})
            assert compiled.diagnostics == []
            async with gateway(compiled.services, compiled.rules) as running, trio.open_nursery() as nursery:

                async def ask(number: int) -> None:
                    async with client(running.port, down) as peer:
                        statuses[(await peer.request("GET", f"/{number}")).status] += 1
                        if statuses[503] == AT_ONCE - expected:
                            all_told.set()

                for number in range(AT_ONCE):
                    nursery.start_soon(ask, number)
            assert len(again) == expected
            assert statuses == Counter({503: AT_ONCE - expected, 200: expected})

    bounded(main)


def test_a_retry_that_is_decided_is_made_though_the_others_have_ended_by_then(monkeypatch: pytest.MonkeyPatch) -> None:
    """All fail at once. As many are tried again as half of those in flight make room for, and nobody waits in vain."""
    first: set[str] = set()
    again: set[str] = set()
    answers: Counter[bytes] = Counter()
    all_asked, all_told = trio.Event(), trio.Event()
    in_trio = Loop.in_trio

    async def app(exchange: Exchange) -> None:
        if exchange.path in first:
            again.add(exchange.path)
            await exchange.reply(200, b"ok")
            return
        first.add(exchange.path)
        if len(first) == AT_ONCE:
            all_asked.set()
        await all_asked.wait()
        await exchange.reply(503, b"busy")

    async def pause(loop: Loop, fn: Callable[[], Awaitable[object]]) -> object:
        """Let pauses last until everybody else has been answered."""
        return await in_trio(loop, all_told.wait if isinstance(fn, functools.partial) and fn.func is trio.sleep else fn)

    async def main() -> None:
        monkeypatch.setattr(Loop, "in_trio", pause)
        async with upstream(app, H2C) as one, upstream(app, H2C) as two:
            spec = retries(maxRetries=1, budgetPercent=50, backoff={"initialMs": 1000, "maxMs": 2000})
            compiled = compile_route([one.port, two.port], spec, {"protocol": "H2C"})
            assert compiled.diagnostics == []
            async with gateway(compiled.services, compiled.rules) as running, trio.open_nursery() as nursery:

                async def ask(number: int) -> None:
                    async with client(running.port, "h1") as peer:
                        answers[(await peer.request("GET", f"/{number}")).body] += 1
                        if answers[b"busy"] == AT_ONCE - 10:
                            all_told.set()

                for number in range(AT_ONCE):
                    nursery.start_soon(ask, number)
            assert len(again) == 10
            assert answers == Counter({b"busy": AT_ONCE - 10, b"ok": 10})

    bounded(main)


class Even(random.Random):
    """Draws the middle of everything."""

    def random(self) -> float:
        return 0.5


def record_pauses(running: Gateway, monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Make pauses before another attempt take no time; return the list that each is added to, in seconds."""
    pauses: list[float] = []
    loop = running.plane._loop
    in_trio = type(loop).in_trio

    async def skipped(self: object, fn: Callable[[], Awaitable[object]]) -> object:
        if isinstance(fn, functools.partial) and fn.func is trio.sleep:
            pauses.append(fn.args[0])
            fn = trio.lowlevel.checkpoint
        return await in_trio(loop, fn)

    monkeypatch.setattr(type(loop), "in_trio", skipped)
    loop.rng = Even()
    return pauses


def backoff(first_ms: int, most_ms: int) -> Spec:
    return {"retries": {"maxRetries": 4, "backoff": {"initialMs": first_ms, "maxMs": most_ms}}}


DEFAULT: Spec = {"retries": {"maxRetries": 4}}
PAUSES: list[tuple[str, Spec, bytes, list[float]]] = [
    # name, spec of the route, Retry-After of every answer, the pauses where each draw is the middle
    ("twice as long each time", backoff(1000, 60_000), b"", [0.5, 1, 2, 4]),
    ("up to the most", backoff(1000, 3000), b"", [0.5, 1, 1.5, 1.5]),
    ("defaults", DEFAULT, b"", [0.05, 0.1, 0.2, 0.4]),
    ("Retry-After comes on top", backoff(1000, 3000), b"2", [2.5, 3, 3.5, 3.5]),
    ("Retry-After as long as the most", backoff(1000, 3000), b"3", [3.5, 4, 4.5, 4.5]),
    ("Retry-After beyond it", backoff(1000, 3000), b"4", []),
    (
        "longer than the request may take",
        {**backoff(60_000, 60_000), "timeouts": {"request": "20s"}},
        b"",
        [],
    ),
]


@pytest.mark.parametrize("down", ["h1", "h2"])
@pytest.mark.parametrize(
    ("route", "asked", "expected"), [case[1:] for case in PAUSES], ids=[case[0] for case in PAUSES]
)
def test_pauses_between_attempts_are_those_of_the_manifest(
    down: str, route: Spec, asked: bytes, expected: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def main() -> None:
        async with AsyncExitStack() as stack:
            app = answer(503, *([(b"retry-after", asked)] if asked else []))
            servers = [await stack.enter_async_context(upstream(app)) for _ in range(5)]
            compiled = compile_route([server.port for server in servers], route)
            assert compiled.diagnostics == []
            async with gateway(compiled.services, compiled.rules) as running, client(running.port, down) as peer:
                pauses = record_pauses(running, monkeypatch)
                told = await peer.request("GET", "/")
                assert (told.status, told.body) == (503, b"no")
                assert pauses == pytest.approx(expected)
                assert sum(len(server.requests) for server in servers) == 1 + len(expected)

    bounded(main)


@pytest.mark.parametrize("down", ["h1", "h2"])
@pytest.mark.parametrize("count", [1, 2])
def test_the_last_answer_is_relayed_as_it_is_if_nobody_is_left_to_ask(down: str, count: int) -> None:
    async def main() -> None:
        app = answer(503, (b"x-shop", b"closed"))
        async with upstream(app) as one, upstream(app) as two:
            compiled = compile_route([one.port, two.port][:count], retries(maxRetries=5))
            async with gateway(compiled.services, compiled.rules) as running, client(running.port, down) as peer:
                for _ in range(3):
                    told = await peer.request("GET", "/")
                    assert (told.status, told.header(b"x-shop"), told.body) == (503, b"closed", b"no")
                assert len(one.requests) + len(two.requests) == 3 * count

    bounded(main)
