"""Faults on purpose and a route's limit of bodies, from the manifest to what a client gets."""

from __future__ import annotations

import random

import pytest

from datum_router.observe import names
from datum_router.observe.cells import Cell
from datum_router.reasons import Reason
from datum_router_proxy.testing_clients import client
from datum_router_proxy.testing_manifests import route, serve, service
from datum_router_proxy.testing_peers import Exchange, Gateway, bounded, upstream

both = pytest.mark.parametrize("down", ["h1", "h2"])
GRPC = [(b"content-type", b"application/grpc"), (b"te", b"trailers")]


async def count(exchange: Exchange) -> None:
    await exchange.reply(200, b"%d" % len(await exchange.body()))


def fault(**settings: object) -> dict[str, object]:
    return {"type": "FaultInjection", "faultInjection": settings}


def outcomes(running: Gateway) -> dict[str, float]:
    cells: list[Cell] = [one for one in running.plane.take_cells() if one.metric == names.FILTERED.name]
    return {f"{one.labels[0]} {one.labels[1]}": one.value for one in cells}


@both
def test_an_abort_is_answered_by_the_gateway(down: str) -> None:
    async def main() -> None:
        async with upstream(count) as server:
            api = route("api", "s", filters=[fault(abort={"status": 418})])
            async with serve([service("s", server.port), api]) as running, client(running.port, down) as peer:
                answer = await peer.request("GET", "/")
                assert answer.status == 418
                assert answer.body.startswith(b"fault_injected: ")
                assert outcomes(running) == {"fault aborted": 1}
                assert running.recorder.events[0].reason is Reason.FAULT_INJECTED
            assert server.requests == []

    bounded(main)


@pytest.mark.parametrize(("abort", "expected"), [({"grpcStatus": 8}, b"8"), ({"status": 503}, b"14")])
def test_a_call_is_aborted_with_a_grpc_status(abort: dict[str, object], expected: bytes) -> None:
    async def main() -> None:
        async with upstream(count) as server:
            api = route("api", "s", filters=[fault(abort=abort)])
            async with serve([service("s", server.port), api]) as running, client(running.port, "h2") as peer:
                answer = await peer.request("POST", "/a.B/C", GRPC, body=b"\0\0\0\0\0")
                assert (answer.status, answer.header(b"grpc-status")) == (200, expected)

    bounded(main)


@both
def test_a_delayed_request_is_served_and_one_that_is_delayed_past_its_time_is_not(down: str) -> None:
    async def main() -> None:
        async with upstream(count) as server:
            manifests = [
                service("s", server.port),
                route("short", "s", match={"exactPath": "/short"}, filters=[fault(delay={"duration": "20ms"})]),
                route(
                    "long", "s", match={"exactPath": "/long"}, filters=[fault(delay={"duration": "1h"})],
                    timeouts={"request": "50ms"},
                ),
            ]  # fmt: skip
            async with serve(manifests) as running, client(running.port, down) as peer:
                assert (await peer.request("POST", "/short", body=b"abc")).body == b"3"
                assert running.recorder.events[0].duration_s >= 0.02
                answer = await peer.request("GET", "/long")
                assert (answer.status, answer.body.partition(b":")[0]) == (504, b"request_timeout")
                assert outcomes(running) == {"fault delayed": 2}

    bounded(main)


SHARES = [({"abort": 10}), ({"abort": 50}), ({"delay": 50}), ({"delay": 90}), ({"delay": 30, "abort": 70})]


@both
@pytest.mark.parametrize("shares", SHARES, ids=str)
def test_a_share_of_the_requests_meets_a_fault(down: str, shares: dict[str, int]) -> None:
    """Six standard deviations of a binomial around the share, of 200 requests, and never none nor all."""
    requests = 200
    settings: dict[str, object] = {}
    if "abort" in shares:
        settings["abort"] = {"status": 418, "percent": shares["abort"]}
    if "delay" in shares:
        settings["delay"] = {"duration": "1ms", "percent": shares["delay"]}

    async def main() -> None:
        async with upstream(count) as server:
            api = route("api", "s", filters=[fault(**settings)])
            async with serve([service("s", server.port), api]) as running, client(running.port, down) as peer:
                running.plane._loop.rng = random.Random(14)
                statuses = [(await peer.request("GET", "/")).status for _ in range(requests)]
                found = outcomes(running)
            assert set(found) == {{"abort": "fault aborted", "delay": "fault delayed"}[name] for name in shares}
            assert statuses.count(418) == found.get("fault aborted", 0) == requests - len(server.requests)
            for name, times in found.items():
                share = shares["abort" if name == "fault aborted" else "delay"] / 100
                assert abs(times - requests * share) <= 6 * (requests * share * (1 - share)) ** 0.5
                assert 0 < times < requests

    bounded(main)


@both
def test_a_routes_limit_of_bodies_holds_for_stated_and_for_streamed_lengths(down: str) -> None:
    async def main() -> None:
        async with upstream(count) as server:
            manifests = [service("s", server.port), route("api", "s", maxRequestBodyBytes=10)]
            async with serve(manifests) as running:
                async with client(running.port, down) as peer:
                    assert (await peer.request("POST", "/", body=b"x" * 10)).body == b"10"
                async with client(running.port, down) as peer:
                    answer = await peer.request("POST", "/", body=b"x" * 11)
                    assert (answer.status, answer.body.partition(b":")[0]) == (413, b"body_too_large")
                if down == "h1":
                    async with client(running.port, down) as peer:
                        assert (await peer.request("POST", "/", body=b"x" * 500, is_chunked=True)).status == 413
                assert (down, Reason.BODY_TOO_LARGE) in running.recorder.rejections

    bounded(main)
