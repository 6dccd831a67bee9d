"""`spec.retries` from manifests to behaviour: conditions, budget, Retry-After, what may be made twice (U1, U3, U6)."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
import trio

from datum_router.model.service import UpstreamProtocol
from datum_router_proxy.testing_clients import client
from datum_router_proxy.testing_manifests import compile_route
from datum_router_proxy.testing_peers import App, Exchange, bounded, gateway, refused_port, upstream

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
