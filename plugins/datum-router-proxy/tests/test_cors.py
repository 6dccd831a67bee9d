"""CORS from the manifest to what a browser gets."""

from __future__ import annotations

import pytest

from datum_router.observe.cells import Cell
from datum_router.reasons import Reason
from datum_router_proxy.testing_clients import client
from datum_router_proxy.testing_manifests import route, serve, service
from datum_router_proxy.testing_peers import Exchange, Gateway, bounded, refused_port, upstream

both = pytest.mark.parametrize("down", ["h1", "h2"])
SHOP, EVIL = b"https://shop.example.com", b"https://evil.test"
CORS = {"allowedOrigins": ["https://shop.example.com"], "allowedMethods": ["PUT"], "allowCredentials": True}
ALLOW = b"access-control-allow-origin"


def outcomes(running: Gateway) -> dict[str, float]:
    cells: list[Cell] = [
        one for one in running.plane.take_cells() if one.metric == "datum_router_filter_outcomes_total"
    ]
    return {f"{one.labels[0]} {one.labels[1]}": one.value for one in cells}


async def careless(exchange: Exchange) -> None:
    """Answer as a service that has opinions of its own about CORS."""
    await exchange.body()
    await exchange.reply(200, b"hello", [(b"access-control-allow-origin", b"*"), (b"vary", b"accept")])


@both
def test_a_preflight_is_answered_by_the_gateway_and_reaches_no_service(down: str) -> None:
    async def main() -> None:
        async with upstream(careless) as server:
            api = route("api", "my-api", match={"methods": ["GET", "PUT"]}, cors=CORS)
            async with serve([service("my-api", server.port), api]) as running, client(running.port, down) as peer:
                answer = await peer.request(
                    "OPTIONS", "/", [(b"origin", SHOP), (b"access-control-request-method", b"PUT")]
                )
                assert (answer.status, answer.body) == (204, b"")
                assert answer.header(ALLOW) == SHOP
                assert answer.header(b"access-control-allow-methods") == b"GET, HEAD, POST, PUT"
                answer = await peer.request(
                    "OPTIONS", "/", [(b"origin", EVIL), (b"access-control-request-method", b"PUT")]
                )
                assert (answer.status, answer.header(ALLOW)) == (204, None)
                answer = await peer.request("OPTIONS", "/", [(b"origin", SHOP)])
                assert answer.status == 404, "no preflight, and the route takes no OPTIONS"
                assert outcomes(running) == {"cors preflight": 1, "cors refused": 1}
                assert [event.reason for event in running.recorder.events] == [
                    Reason.PREFLIGHT, Reason.PREFLIGHT, Reason.NO_ROUTE,
                ]  # fmt: skip
            assert server.requests == []

    bounded(main)


@both
def test_the_services_own_opinion_is_replaced(down: str) -> None:
    async def main() -> None:
        async with upstream(careless) as server:
            manifests = [service("my-api", server.port), route("api", "my-api", cors=CORS)]
            async with serve(manifests) as running, client(running.port, down) as peer:
                for origin, allowed in ((SHOP, SHOP), (EVIL, None), (SHOP, SHOP)):
                    answer = await peer.request("GET", "/", [(b"origin", origin)])
                    assert (answer.status, answer.body) == (200, b"hello")
                    assert answer.header(ALLOW) == allowed
                    assert [value for name, value in answer.headers if name == b"vary"] == [b"accept", b"Origin"]
                answer = await peer.request("GET", "/")
                assert answer.header(ALLOW) is None
                assert outcomes(running) == {"cors allowed": 2, "cors refused": 1}

    bounded(main)


@both
def test_a_page_may_read_why_it_got_no_answer(down: str) -> None:
    async def main() -> None:
        manifests = [service("my-api", refused_port()), route("api", "my-api", cors=CORS)]
        async with serve(manifests) as running, client(running.port, down) as peer:
            answer = await peer.request("GET", "/", [(b"origin", SHOP)])
            assert (answer.status, answer.header(ALLOW)) == (503, SHOP)

    bounded(main)
