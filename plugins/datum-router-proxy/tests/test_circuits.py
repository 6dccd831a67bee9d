"""Circuit breakers of services and routes as clients meet them, on every lane."""

from __future__ import annotations

import contextlib
import socket

import msgspec
import pytest
import trio

from datum_router.model.limits import BreakerPolicy, CircuitPolicy
from datum_router.model.listener import Listener, ListenerMode
from datum_router.model.policy import ConnectionLimits, RetryPolicy
from datum_router.reasons import Reason
from datum_router_proxy.testing_clients import client
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
