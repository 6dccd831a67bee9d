# ruff: noqa: SIM117  # nested contexts stand in the order of the story
"""Copies of requests, from the manifest to the second service; the original is served as if there were none."""

from __future__ import annotations

import random
from collections import Counter

import pytest
import trio

from datum_router.reasons import Reason
from datum_router_proxy.settings import ProxySettings
from datum_router_proxy.testing_clients import client
from datum_router_proxy.testing_manifests import Manifest, compile_manifests, route, serve, service
from datum_router_proxy.testing_peers import Exchange, Gateway, bounded, refused_port, upstream

both = pytest.mark.parametrize("down", ["h1", "h2"])
COPY: Manifest = {"type": "RequestMirror", "requestMirror": {"vpcServiceRef": {"name": "copy"}}}


class Told:
    """What filters have counted so far."""

    def __init__(self, running: Gateway) -> None:
        self._running = running
        self._seen: Counter[str] = Counter()

    def of(self, name: str) -> dict[str, float]:
        for cell in self._running.plane.take_cells():
            if cell.metric == "datum_router_filter_outcomes_total" and cell.labels[0] == name:
                self._seen[cell.labels[1]] += int(cell.value)
        return dict(self._seen)

    async def until(self, **expected: int) -> None:
        with trio.fail_after(5):
            while self.of("mirror") != expected:
                await trio.lowlevel.checkpoint()


def manifests(port: int, copy_port: int, *, filters: tuple[Manifest, ...] = (COPY,), **spec: object) -> list[Manifest]:
    api = route("api", "my-api", filters=list(filters), **spec)
    return [service("my-api", port), service("copy", copy_port), api]


class Application:
    """Keeps what it was sent, and answers."""

    def __init__(self, status: int = 200) -> None:
        self.status = status
        self.got: list[tuple[str, str, bytes | None, bytes]] = []
        self.go = trio.Event()
        self.go.set()

    async def __call__(self, exchange: Exchange) -> None:
        body = await exchange.body()
        host = exchange.header(b"host")
        self.got.append((exchange.method, exchange.path, host, body))
        await self.go.wait()
        await exchange.reply(self.status, b"x" * 10)


@both
def test_a_copy_with_its_body_reaches_the_second_service_under_a_shadow_host(down: str) -> None:
    async def main() -> None:
        original, copy = Application(), Application(status=500)
        async with upstream(original) as one, upstream(copy) as two:
            async with serve(manifests(one.port, two.port)) as running, client(running.port, down) as peer:
                told = Told(running)
                for method, body in (("GET", b""), ("POST", b"payload" * 100)):
                    answer = await peer.request(method, "/x?y=1", body=body or None)
                    assert (answer.status, answer.body) == (200, b"x" * 10)
                await told.until(server_error=2)
                assert [(method, path, body) for method, path, _, body in copy.got] == [
                    ("GET", "/x?y=1", b""), ("POST", "/x?y=1", b"payload" * 100),
                ]  # fmt: skip
                assert [seen for _, _, seen, _ in copy.got] == [
                    (seen or b"") + b"-shadow" for _, _, seen, _ in original.got
                ]
                assert [event.service for event in running.recorder.events] == ["default/my-api"] * 2

    bounded(main)


@both
def test_a_second_service_that_hangs_or_is_away_delays_nothing(down: str) -> None:
    async def main() -> None:
        original, copy = Application(), Application()
        copy.go = trio.Event()
        away: Manifest = {"type": "RequestMirror", "requestMirror": {"vpcServiceRef": {"name": "away"}}}
        async with upstream(original) as one, upstream(copy) as two:
            made = [*manifests(one.port, two.port, filters=(COPY, away)), service("away", refused_port())]
            async with serve(made) as running, client(running.port, down) as peer:
                told = Told(running)
                for _ in range(3):
                    assert (await peer.request("POST", "/", body=b"abc")).status == 200
                await told.until(failed=3)
                copy.go.set()
                await told.until(failed=3, answered=3)

    bounded(main)


def test_a_second_service_that_fails_trips_its_circuit_breaker() -> None:
    async def main() -> None:
        original, copy = Application(), Application(status=500)
        breaker = {"failureThreshold": 2}
        async with upstream(original) as one, upstream(copy) as two:
            made = [*manifests(one.port, two.port)[::2], service("copy", two.port, circuitBreaker=breaker)]
            async with serve(made) as running, client(running.port, "h1") as peer:
                told = Told(running)
                for number in (1, 2):
                    assert (await peer.request("GET", "/")).status == 200
                    await told.until(server_error=number)
                assert (await peer.request("GET", "/")).status == 200
                await told.until(server_error=2, dropped_unavailable=1)
                assert len(copy.got) == 2

    bounded(main)


def test_copies_beyond_the_limits_are_dropped_and_counted() -> None:
    async def main() -> None:
        original, copy = Application(), Application()
        copy.go = trio.Event()
        settings = ProxySettings(mirror_requests=2, mirror_body_bytes=100)
        async with upstream(original) as one, upstream(copy) as two:
            async with serve(manifests(one.port, two.port), settings=settings) as running:
                told = Told(running)
                async with client(running.port, "h1") as peer:
                    for _ in range(4):
                        assert (await peer.request("GET", "/")).status == 200
                    await told.until(dropped_busy=2)
                    copy.go.set()
                    await told.until(dropped_busy=2, answered=2)
                    assert (await peer.request("POST", "/", body=b"x" * 101)).status == 200
                    assert (await peer.request("POST", "/", body=b"x" * 101, is_chunked=True)).status == 200
                    await told.until(dropped_busy=2, answered=2, dropped_body=2)
                    assert (await peer.request("POST", "/", body=b"x" * 100, is_chunked=True)).status == 200
                    await told.until(dropped_busy=2, answered=3, dropped_body=2)
                assert copy.got[-1][3] == b"x" * 100

    bounded(main)


@both
@pytest.mark.parametrize("percent", [10, 50, 90])
def test_a_share_of_the_requests_is_copied(down: str, percent: int) -> None:
    """Six standard deviations of a binomial around the share, of 200 requests, and never none nor all.

    One copy is not answered and there is room for one, so that all others are counted before their original's answer.
    """
    requests, share = 200, percent / 100
    some: Manifest = {"type": "RequestMirror", "requestMirror": {"vpcServiceRef": {"name": "copy"}, "percent": percent}}

    async def main() -> None:
        original, copy = Application(), Application()
        copy.go = trio.Event()
        async with upstream(original) as one, upstream(copy) as two:
            made = manifests(one.port, two.port, filters=(some,))
            async with serve(made, settings=ProxySettings(mirror_requests=1)) as running:
                running.plane._loop.rng = random.Random(14)
                told = Told(running)
                async with client(running.port, down) as peer:
                    for _ in range(requests):
                        assert (await peer.request("GET", "/")).status == 200
                    dropped = int(told.of("mirror")["dropped_busy"])
                    copy.go.set()
                    await told.until(dropped_busy=dropped, answered=1)
                copies = dropped + len(copy.got)
                assert abs(copies - requests * share) <= 6 * (requests * share * (1 - share)) ** 0.5
                assert 1 < copies < requests

    bounded(main)


def test_a_copy_that_takes_too_long_is_given_up() -> None:
    async def main() -> None:
        original, copy = Application(), Application()
        copy.go = trio.Event()
        async with upstream(original) as one, upstream(copy) as two:
            settings = ProxySettings(mirror_timeout_s=0.05)
            async with serve(manifests(one.port, two.port), settings=settings) as running:
                async with client(running.port, "h1") as peer:
                    assert (await peer.request("GET", "/")).status == 200
                await Told(running).until(failed=1)
                outcomes = {outcome.service: outcome.reason for outcome in running.recorder.outcomes}
                assert outcomes["default/copy"] is Reason.RESPONSE_TIMEOUT

    bounded(main)


def test_a_body_that_breaks_off_is_never_copied() -> None:
    async def main() -> None:
        original, copy = Application(), Application()
        async with upstream(original) as one, upstream(copy) as two:
            async with serve(manifests(one.port, two.port)) as running:
                async with client(running.port, "h1") as peer:
                    await peer.send("POST", "/", [(b"content-length", b"10")], b"abc", end=False)
                await Told(running).until(dropped_body=1)
        assert copy.got == []

    bounded(main)


def test_no_share_is_no_copy_and_a_missing_service_costs_nothing_but_a_condition() -> None:
    async def main() -> None:
        original, copy = Application(), Application()
        none: Manifest = {"type": "RequestMirror", "requestMirror": {"vpcServiceRef": {"name": "copy"}, "percent": 0}}
        gone: Manifest = {"type": "RequestMirror", "requestMirror": {"vpcServiceRef": {"name": "gone"}}}
        async with upstream(original) as one, upstream(copy) as two:
            made = manifests(one.port, two.port, filters=(none, gone))
            found = compile_manifests(made)[1]
            assert [(item.path, str(item.reason)) for item in found] == [
                ("spec.filters[1].requestMirror.vpcServiceRef.name", "VPCServiceNotFound")
            ]
            assert found[0].message == "vpcservice default/gone is not there; nothing is copied"
            async with serve(made, are_warnings_expected=True) as running, client(running.port, "h1") as peer:
                assert (await peer.request("GET", "/")).status == 200
                await Told(running).until(dropped_unavailable=1)
        assert copy.got == []

    bounded(main)
