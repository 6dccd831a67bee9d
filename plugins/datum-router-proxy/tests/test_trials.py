"""What the data plane tells of requests that try a half-open endpoint, and when."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest
import trio

from datum_router.compiler.linker import Linker
from datum_router.health.trial import LocalPermits, TrialDesk, TrialVerdict
from datum_router.model.policy import RetryPolicy
from datum_router.model.service import Service
from datum_router.model.snapshot import SnapshotData
from datum_router.plugins import builtin
from datum_router.plugins.manager import Candidate, load_plugins
from datum_router.plugins.protocols import HealthChange
from datum_router_proxy.testing_clients import H1Client, client
from datum_router_proxy.testing_peers import (
    Exchange,
    Gateway,
    bounded,
    gateway,
    make_rule,
    make_service,
    refused_port,
    upstream,
)

both = pytest.mark.parametrize("down", ["h1", "h2"])


class HalfOpen:
    """A gateway whose only service has one endpoint, which can be made half-open; nobody hears the verdicts.

    The service panics then: so requests that are no trials reach the endpoint as well.
    """

    def __init__(self, running: Gateway, linker: Linker, service: Service, verdicts: list[TrialVerdict]) -> None:
        self.port = running.port
        self.recorder = running.recorder
        self.verdicts = verdicts
        self._linker = linker
        self._service = service

    def begin(self) -> None:
        key = self._service.endpoints[0].key
        change = HealthChange(service=self._service.key, endpoint=key, is_usable=False, since=0.0, trial=1)
        self._linker.apply_health([change])


@asynccontextmanager
async def half_open(port: int) -> AsyncIterator[HalfOpen]:
    verdicts: list[TrialVerdict] = []
    plugins = load_plugins([Candidate(entry_point="builtin", distribution="datum-router", load=lambda: builtin)])
    linker = Linker(plugins, desk=TrialDesk(LocalPermits(), verdicts.append))
    service = make_service([port])
    rule = make_rule(retry=RetryPolicy(max_retries=0))
    snapshot = linker.link(SnapshotData(version=1, services={service.key: service}, rules=(rule,)))
    async with gateway() as running:
        running.holder.swap(snapshot)
        yield HalfOpen(running, linker, service, verdicts)


def judge(app: Callable[[Exchange], Awaitable[None]], down: str, times: int = 8) -> tuple[list[int], list[bool]]:
    """Ask one request after the other, the first ones before it is half-open; return the statuses and the verdicts."""
    statuses: list[int] = []
    found: list[bool] = []

    async def main() -> None:
        async with upstream(app) as backend, half_open(backend.port) as gate, client(gate.port, down) as peer:
            for turn in range(times):
                if turn == 5:
                    gate.begin()  # by now the express lane serves what it can
                statuses.append((await peer.request("GET", "/")).status)
            found.extend(verdict.is_ok for verdict in gate.verdicts)

    bounded(main)
    return statuses, found


@both
@pytest.mark.parametrize(("status", "is_ok"), [(200, True), (404, True), (500, False), (503, False)])
def test_one_request_tells_by_its_status(down: str, status: int, is_ok: bool) -> None:
    async def app(exchange: Exchange) -> None:
        await exchange.body()
        await exchange.reply(status, b"said")

    assert judge(app, down) == ([status] * 8, [is_ok])


def test_an_endpoint_that_cannot_be_reached_fails_its_trial() -> None:
    async def main() -> None:
        async with half_open(refused_port()) as gate, client(gate.port, "h1") as peer:
            gate.begin()
            assert (await peer.request("GET", "/")).status == 502
            assert [verdict.is_ok for verdict in gate.verdicts] == [False]

    bounded(main)


def test_the_head_decides_and_not_the_end_of_a_long_stream() -> None:
    async def main() -> None:
        go_on = trio.Event()

        async def app(exchange: Exchange) -> None:
            await exchange.body()
            await exchange.head(200, [(b"content-length", b"10")])
            await exchange.data(b"begin")
            await go_on.wait()
            await exchange.reset()

        async with upstream(app) as backend, half_open(backend.port) as gate:
            gate.begin()
            stream = await trio.open_tcp_stream("127.0.0.1", gate.port)
            async with stream:
                await stream.send_all(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n")
                data = b""
                while not data.endswith(b"begin"):
                    data += await stream.receive_some(4096)
                assert [verdict.is_ok for verdict in gate.verdicts] == [True]
                go_on.set()
                await gate.recorder.until(lambda: bool(gate.recorder.outcomes))
                assert len(gate.verdicts) == 1, "what comes later is an outcome like any other"

    bounded(main)


def test_a_client_that_leaves_hands_its_trial_to_the_next_request() -> None:
    async def main() -> None:
        is_slow = True

        async def app(exchange: Exchange) -> None:
            await exchange.body()
            if is_slow:
                await trio.sleep_forever()
            await exchange.reply(200, b"ok")

        async with upstream(app) as backend, half_open(backend.port) as gate:
            gate.begin()
            stream = await trio.open_tcp_stream("127.0.0.1", gate.port)
            await stream.send_all(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n")
            with trio.fail_after(5):
                while not backend.requests:  # noqa: ASYNC110  # the kit's upstream has no event for it
                    await trio.sleep(0.005)
            await stream.aclose()
            await gate.recorder.until(lambda: bool(gate.recorder.outcomes))
            assert gate.verdicts == []
            is_slow = False
            async with client(gate.port, "h1") as peer:
                assert isinstance(peer, H1Client)
                assert (await peer.request("GET", "/")).status == 200
            assert [verdict.is_ok for verdict in gate.verdicts] == [True]

    bounded(main)
