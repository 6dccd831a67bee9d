"""Circuit breakers of services and routes as clients meet them, on every lane."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Mapping

import msgspec
import pytest
import trio

from datum_router.health.outlier import BreakerState
from datum_router.model.filters import Mirror
from datum_router.model.limits import BreakerPolicy, CircuitPolicy
from datum_router.model.listener import Listener, ListenerMode
from datum_router.model.policy import ConnectionLimits, RetryPolicy
from datum_router.model.service import ServiceKey
from datum_router.reasons import Reason
from datum_router_proxy.testing_clients import Answer, client
from datum_router_proxy.testing_manifests import compile_route
from datum_router_proxy.testing_peers import (
    Exchange,
    bounded,
    gateway,
    make_rule,
    make_service,
    refused_port,
    upstream,
)

both = pytest.mark.parametrize("down", ["h1", "h2"])
POLICY = BreakerPolicy(failure_threshold=4, success_threshold=1, open_s=300.0)
CIRCUIT = CircuitPolicy(limits=ConnectionLimits(), breaker=POLICY)


async def fine(exchange: Exchange) -> None:
    await exchange.body()
    await exchange.reply(200, b"ok")


@both
@pytest.mark.parametrize("where", ["service", "route"])
def test_a_service_that_answers_500_is_not_asked_any_more(down: str, where: str) -> None:
    async def main() -> None:
        asked: list[str] = []

        async def failing(exchange: Exchange) -> None:
            await exchange.body()
            asked.append(exchange.path)
            await exchange.reply(500 if exchange.path == "/bad" else 200, b"said")

        rule = make_rule(retry=RetryPolicy(max_retries=0))
        async with upstream(failing) as server:
            service = make_service([server.port])
            if where == "service":
                service = msgspec.structs.replace(service, breaker=POLICY)
            else:
                rule = msgspec.structs.replace(rule, circuit=CIRCUIT)
            async with gateway([service], [rule]) as running, client(running.port, down) as peer:
                assert not running.holder.current.rules[rule.id].needs_pipeline, "breakers hold on the fast lanes"
                paths = ["/bad", "/bad", "/bad", "/good", "/bad", "/bad", "/bad", "/bad", "/good", "/good"]
                answers = [await peer.request("GET", path) for path in paths]
            assert [answer.status for answer in answers] == [500] * 3 + [200] + [500] * 4 + [503] * 2
            assert len(asked) == 8
            assert answers[-1].body.startswith(f"circuit_tripped: the {where} has failed too often in a row".encode())
            after = answers[-1].header(b"retry-after")
            assert after is not None
            assert 290 <= int(after) <= 300
            assert running.recorder.reasons == [(down, Reason.CIRCUIT_TRIPPED)] * 2

    bounded(main)


@pytest.mark.parametrize("where", ["service", "route"])
def test_connections_whose_bytes_are_carried_on_trip_it_as_well(where: str) -> None:
    async def main() -> None:
        listener = Listener(name="test", mode=ListenerMode.TCP)
        service = make_service([refused_port()])
        rule = msgspec.structs.replace(make_rule(retry=RetryPolicy(max_retries=0)), listeners=("test",))
        if where == "service":
            service = msgspec.structs.replace(service, breaker=POLICY)
        else:
            rule = msgspec.structs.replace(rule, circuit=CIRCUIT)
        async with gateway([service], [rule], listener=listener) as running:
            for _ in range(6):
                # The kernel accepts before the gateway does, which resets it: to trio that would look like a refusal.
                sock = socket.create_connection(("127.0.0.1", running.port))
                with trio.socket.from_stdlib_socket(sock) as peer, contextlib.suppress(ConnectionResetError):
                    assert await peer.recv(100) == b""
            assert [outcome.reason for outcome in running.recorder.outcomes] == [Reason.CONNECT_FAILED] * 4

    bounded(main)


@both
def test_a_service_that_cannot_be_reached_trips_it_too(down: str) -> None:
    async def main() -> None:
        service = msgspec.structs.replace(make_service([refused_port()]), breaker=POLICY)
        rule = make_rule(retry=RetryPolicy(max_retries=0))
        async with gateway([service], [rule]) as running, client(running.port, down) as peer:
            answers = [await peer.request("GET", "/") for _ in range(6)]
            reasons = [answer.body.partition(b":")[0] for answer in answers]
            assert set(reasons[:2]) == {b"connect_failed"}
            assert reasons[-1] == b"circuit_tripped"

    bounded(main)


@pytest.mark.parametrize("where", ["service", "route"])
def test_connections_that_are_carried_on_trip_it_too(where: str) -> None:
    async def main() -> None:
        service, rule = make_service([refused_port()]), make_rule(retry=RetryPolicy(max_retries=0))
        if where == "service":
            service = msgspec.structs.replace(service, breaker=POLICY)
        else:
            rule = msgspec.structs.replace(rule, circuit=CIRCUIT)
        listener = Listener(name="test", mode=ListenerMode.TCP)
        rule = msgspec.structs.replace(rule, listeners=(listener.name,))
        async with gateway([service], [rule], listener=listener) as running:
            for number in range(1, 7):
                with contextlib.suppress(OSError):  # it may be reset before it is known to be open
                    await (await trio.open_tcp_stream("127.0.0.1", running.port)).aclose()
                await running.recorder.until(lambda number=number: len(running.recorder.events) == number)  # type: ignore[misc]
        reasons = [event.reason for event in running.recorder.events]
        assert reasons == [Reason.CONNECT_FAILED] * 4 + [Reason.CIRCUIT_TRIPPED] * 2

    bounded(main)


def test_calls_of_filters_trip_that_of_the_service_that_they_ask() -> None:
    async def main() -> None:
        side = msgspec.structs.replace(make_service([refused_port()], key=ServiceKey("default/side")), breaker=POLICY)
        rule = make_rule(filters=[Mirror(service=side.key)])
        async with (
            upstream(fine) as server,
            gateway([make_service([server.port]), side], [rule]) as running,
            client(running.port, "h1") as peer,
        ):
            state = running.holder.current.services[side.key]
            assert state.breaker is not None
            for number in range(1, 5):
                assert state.breaker.state is BreakerState.CLOSED
                assert (await peer.request("GET", "/")).status == 200
                await running.recorder.until(lambda number=number: len(running.recorder.outcomes) == 2 * number)  # type: ignore[misc]
            assert state.breaker.state is BreakerState.OPEN

    bounded(main)


LIMITS: list[tuple[str, Mapping[str, int], Mapping[str, int], int, str]] = [
    # name, limits of the service, limits of the route, requests that are served at last, why the others are not
    ("one connection, one waits", {"maxConnections": 1, "maxPendingRequests": 1}, {}, 2, "pool_overflow"),
    ("two connections, nobody waits", {"maxConnections": 2, "maxPendingRequests": 0}, {}, 2, "pool_overflow"),
    ("one connection, three wait", {"maxConnections": 1, "maxPendingRequests": 3}, {}, 4, "pool_overflow"),
    ("requests to the service", {"maxParallelRequests": 3}, {}, 3, "circuit_open"),
    ("requests of the route", {}, {"maxParallelRequests": 3}, 3, "circuit_open"),
    ("the service allows less", {"maxParallelRequests": 1}, {"maxParallelRequests": 3}, 1, "circuit_open"),
    ("the route allows less", {"maxParallelRequests": 3}, {"maxParallelRequests": 2}, 2, "circuit_open"),
]


@both
@pytest.mark.parametrize(
    ("service", "route", "served", "why"), [case[1:] for case in LIMITS], ids=[case[0] for case in LIMITS]
)
def test_limits_of_a_manifest(
    down: str, service: Mapping[str, int], route: Mapping[str, int], served: int, why: str
) -> None:
    """Five clients ask at once, and the service answers nobody before the gateway has refused all that it will."""
    refused: list[Answer] = []
    fine: list[Answer] = []
    all_refused = trio.Event()

    async def app(exchange: Exchange) -> None:
        await all_refused.wait()
        await exchange.reply(200, b"ok")

    async def main() -> None:
        async with upstream(app) as server:
            compiled = compile_route([server.port], {"circuitBreaker": route}, {"circuitBreaker": service})
            assert compiled.diagnostics == []
            async with gateway(compiled.services, compiled.rules) as running, trio.open_nursery() as nursery:

                async def ask() -> None:
                    async with client(running.port, down) as peer:
                        answer = await peer.request("GET", "/")
                        (fine if answer.status == 200 else refused).append(answer)
                        if len(refused) == 5 - served:
                            all_refused.set()

                for _ in range(5):
                    nursery.start_soon(ask)
            assert len(fine) == served
            assert {answer.status for answer in refused} == {503}
            assert {answer.body.partition(b":")[0].decode() for answer in refused} == {why}
            assert {answer.header(b"retry-after") for answer in refused} == {b"1"}
            assert server.connections <= service.get("maxConnections", 5)

    bounded(main)
