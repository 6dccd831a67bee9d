"""Gateways in a chain: one deadline, one that retries (from manifests to behaviour)."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager

import pytest
import trio

from datum_router.model.listener import Listener
from datum_router.model.service import UpstreamProtocol
from datum_router_proxy.testing_clients import client
from datum_router_proxy.testing_manifests import compile_route
from datum_router_proxy.testing_peers import App, Exchange, Gateway, Upstream, bounded, gateway, refused_port, upstream
from datum_router_proxy.wire import chain

both = pytest.mark.parametrize("down", ["h1", "h2"])
ups = pytest.mark.parametrize("up", [UpstreamProtocol.HTTP, UpstreamProtocol.H2C])
INNER = Listener(name="test", trusted_hops=1)
Spec = Mapping[str, object]
QUICK = {"backoff": {"initialMs": 1, "maxMs": 1}}
RETRY: Spec = {"retries": {**QUICK, "maxRetries": 1}}
GRPC = [(b"content-type", b"application/grpc"), (b"te", b"trailers")]


async def hello(exchange: Exchange) -> None:
    await exchange.body()
    await exchange.reply(200, b"hello")


async def busy(exchange: Exchange) -> None:
    await exchange.body()
    await exchange.reply(503, b"busy")


async def never(exchange: Exchange) -> None:
    await trio.sleep_forever()


class Chain:
    """Two gateways, and two endpoints behind the second."""

    def __init__(self, outer: Gateway, inner: Gateway, ends: tuple[Upstream, Upstream]) -> None:
        self.outer = outer
        self.inner = inner
        self.ends = ends

    @property
    def reached(self) -> int:
        """How many requests have reached the service."""
        return sum(len(end.requests) for end in self.ends)


@asynccontextmanager
async def chained(
    app: App,
    *,
    outer: Spec = RETRY,
    inner: Spec = RETRY,
    first: int | None = None,
    protocol: UpstreamProtocol = UpstreamProtocol.HTTP,
) -> AsyncIterator[Chain]:
    """Run client -> outer -> inner -> service, with another endpoint of the outer's service at port `first`."""
    said = {"protocol": protocol.value}
    async with upstream(app, protocol) as one, upstream(app, protocol) as two:
        behind = compile_route([one.port, two.port], inner, said)
        async with gateway(behind.services, behind.rules, listener=INNER) as near:
            ports = [near.port] if first is None else [first, near.port]
            before = compile_route(ports, outer, said)
            async with gateway(before.services, before.rules) as far:
                yield Chain(far, near, (one, two))


@both
@ups
def test_only_the_gateway_nearest_to_the_failure_retries(down: str, up: UpstreamProtocol) -> None:
    async def main() -> None:
        async with chained(busy, protocol=up) as run, client(run.outer.port, down) as peer:
            for count in range(1, 4):
                answer = await peer.request("GET", "/")
                assert (answer.status, answer.body) == (503, b"busy")
                assert answer.header(b"x-datum-retry") is None, "only gateways are told"
                assert run.reached == 2 * count, "the two tries of the inner one, not the four of both"
            await run.outer.recorder.until(lambda: len(run.outer.recorder.events) == 3)
            assert {event.attempts for event in run.outer.recorder.events} == {1}
            assert {event.attempts for event in run.inner.recorder.events} == {2}

    bounded(main)


@both
@ups
@pytest.mark.parametrize(
    "more", [{}, {"cors": {"allowedOrigins": ["*"]}, "sessionAffinity": {}}], ids=["plain", "more"]
)
def test_a_relayed_failure_tells_a_gateway_that_it_is_settled(down: str, up: UpstreamProtocol, more: Spec) -> None:
    # Asked directly: an outer gateway with one endpoint would not try again in any case.
    async def main() -> None:
        async with upstream(busy, up) as one, upstream(busy, up) as two:
            said = {"protocol": up.value}
            compiled = compile_route([one.port, two.port], {**RETRY, **more}, said)
            async with (
                gateway(compiled.services, compiled.rules, listener=INNER) as running,
                client(running.port, down) as peer,
            ):
                answer = await peer.request("GET", "/", [(b"via", b"1.1 datum-router")])
                assert (answer.status, answer.body) == (503, b"busy")
                assert answer.header(b"x-datum-retry") == b"settled"
                answer = await peer.request("GET", "/")
                assert (answer.status, answer.header(b"x-datum-retry")) == (503, None)

    bounded(main)


def test_replies_of_a_gateways_own_are_settled_too() -> None:
    async def main() -> None:
        nobody = compile_route([refused_port()], RETRY)
        async with gateway(nobody.services, nobody.rules, listener=INNER) as near, upstream(hello) as other:
            before = compile_route([near.port, other.port], RETRY)
            async with gateway(before.services, before.rules) as far, client(far.port, "h1") as peer:
                answers = [await peer.request("GET", "/") for _ in range(2)]
                assert sorted(answer.status for answer in answers) == [200, 503]
                assert {event.attempts for event in far.recorder.events} == {1}

    bounded(main)


def test_a_grpc_gateway_is_told_as_well() -> None:
    async def main() -> None:
        spec = {"retries": {**QUICK, "maxRetries": 1, "retryOn": ["unavailable"], "retryNonIdempotent": True}}
        protocol = UpstreamProtocol.GRPC
        async with (
            chained(busy, outer=spec, inner=spec, protocol=protocol) as run,
            client(run.outer.port, "h2") as peer,
        ):
            answer = await peer.request("POST", "/a.B/C", GRPC, b"x")
            assert (answer.header(b"grpc-status"), answer.header(b"x-datum-retry")) == (b"14", None)
            assert {event.attempts for event in run.outer.recorder.events} == {1}
            assert run.reached == 2

    bounded(main)


@both
@ups
def test_a_gateway_is_told_that_retries_are_used_up_whatever_filters_do(down: str, up: UpstreamProtocol) -> None:
    spec = {**RETRY, "filters": [remove_header(chain.SETTLED[0])]}

    async def main() -> None:
        async with upstream(busy, up) as one, upstream(busy, up) as two:
            behind = compile_route([one.port, two.port], spec, {"protocol": up.value})
            async with gateway(behind.services, behind.rules, listener=INNER) as near, client(near.port, down) as peer:
                for _ in range(2):  # by pipeline and lane
                    answer = await peer.request("GET", "/", [(b"via", b"1.1 datum-router")])
                    assert (answer.status, answer.header(chain.SETTLED[0])) == (503, chain.SETTLED[1])
                answer = await peer.request("GET", "/")
                assert (answer.status, answer.header(chain.SETTLED[0])) == (503, None), "nobody asks who retries"

    bounded(main)


def remove_header(name: bytes) -> Mapping[str, object]:
    return {"type": "ResponseHeaderModifier", "responseHeaderModifier": {"remove": [name.decode()]}}


@both
def test_a_retry_is_not_tried_again_behind(down: str) -> None:
    """The outer gateway finds its first endpoint dead and tries again: whoever gets that must not multiply it."""

    async def main() -> None:
        async with chained(busy, first=refused_port()) as run, client(run.outer.port, down) as peer:
            for _ in range(2):
                assert (await peer.request("GET", "/")).status == 503
            for request in (one for end in run.ends for one in end.requests):
                assert request.header(chain.ATTEMPT) in (None, b"2")
            await run.outer.recorder.until(lambda: len(run.outer.recorder.events) == 2)
            tries = [event.attempts for event in run.outer.recorder.events]
            behind = [event.attempts for event in run.inner.recorder.events]
            assert 2 in tries, "one of them began at the dead endpoint"
            assert behind == [1 if made == 2 else 2 for made in tries]

    bounded(main)


@both
@ups
def test_the_time_left_goes_down_the_chain_once_a_route_has_begun_it(down: str, up: UpstreamProtocol) -> None:
    async def main() -> None:
        outer = {"timeouts": {"request": "20s", "propagate": True}}
        inner = {"timeouts": {"request": "60s"}}
        async with chained(hello, outer=outer, inner=inner, protocol=up) as run, client(run.outer.port, down) as peer:
            for _ in range(3):  # by pipeline and lane
                assert (await peer.request("GET", "/")).body == b"hello"
            for request in (one for end in run.ends for one in end.requests):
                told = request.header(chain.TIMEOUT)
                assert told is not None
                assert 15_000 < int(told) <= 20_000

    bounded(main)


@both
@ups
def test_what_an_untrusted_client_says_is_neither_believed_nor_passed_on(down: str, up: UpstreamProtocol) -> None:
    async def main() -> None:
        async with upstream(hello, up) as server:
            compiled = compile_route([server.port], {}, {"protocol": up.value})
            async with gateway(compiled.services, compiled.rules) as running, client(running.port, down) as peer:
                for _ in range(3):
                    answer = await peer.request("GET", "/", [(chain.TIMEOUT, b"1"), (chain.ATTEMPT, b"7")])
                    assert answer.status == 200
                for request in server.requests:
                    assert (request.header(chain.TIMEOUT), request.header(chain.ATTEMPT)) == (None, None)

    bounded(main)


@both
@ups
def test_a_trusted_peer_can_shorten_the_time_and_is_not_told_that_the_endpoint_is_slow(
    down: str, up: UpstreamProtocol
) -> None:
    async def main() -> None:
        async with upstream(never, up) as server:
            compiled = compile_route([server.port], {}, {"protocol": up.value})
            async with (
                gateway(compiled.services, compiled.rules, listener=INNER) as running,
                client(running.port, down) as peer,
            ):
                answer = await peer.request("GET", "/", [(chain.TIMEOUT, b"100")])
                assert answer.status == 504
                assert b"request_timeout" in answer.body
                assert [one.outcome_class for one in running.recorder.outcomes] == [None]
                told = server.requests[0].header(chain.TIMEOUT)
                assert told is not None
                assert int(told) <= 100

    bounded(main)


def test_a_call_that_comes_late_is_not_sent_at_all() -> None:
    async def main() -> None:
        async with upstream(hello, UpstreamProtocol.GRPC) as server:
            compiled = compile_route([server.port], {}, {"protocol": "GRPC"})
            async with gateway(compiled.services, compiled.rules) as running, client(running.port, "h2") as peer:
                answer = await peer.request("POST", "/a.B/C", [*GRPC, (b"grpc-timeout", b"0m")], b"x")
                assert answer.header(b"grpc-status") == b"4"
                assert server.requests == []

    bounded(main)


@pytest.mark.parametrize(
    ("value", "seconds"), [(b"250", 0.25), (b"0", None), (b"", None), (b"-1", None), (b"1" * 11, None), (b"1.5", None)]
)
def test_times_that_peers_state(value: bytes, seconds: float | None) -> None:
    assert chain.timeout_s(value) == seconds


@pytest.mark.parametrize(("value", "number"), [(b"2", 2), (b"0", 1), (b"", 1), (b"99999", 1), (b"x", 1)])
def test_tries_that_peers_state(value: bytes, number: int) -> None:
    assert chain.attempt(value) == number


def test_what_is_stated_is_never_without_limit_and_bounded() -> None:
    assert chain.timeout_field(0.0) == (chain.TIMEOUT, b"1")
    assert chain.timeout_field(2.0005) == (chain.TIMEOUT, b"2000")
    assert chain.attempt_field(10**9) == (chain.ATTEMPT, b"9999")
