"""What the data plane tells telemetry: meters, refusals, and cells."""

from __future__ import annotations

import socket

import pytest
import trio

from datum_router.model.listener import Listener
from datum_router.model.policy import ConnectionLimits
from datum_router.observe import names
from datum_router.observe.names import Metric
from datum_router.reasons import Reason
from datum_router_proxy.settings import ProxySettings
from datum_router_proxy.testing_clients import H1Client, H2Client, client
from datum_router_proxy.testing_peers import Exchange, Gateway, Recorder, bounded, gateway, make_service, upstream


async def hello(exchange: Exchange) -> None:
    await exchange.body()
    await exchange.reply(200, b"hello")


async def broken(exchange: Exchange) -> None:
    await exchange.body()
    await exchange.reset()


async def never(exchange: Exchange) -> None:
    await trio.sleep_forever()


class Tally:
    """Adds up what a data plane says of itself."""

    def __init__(self, running: Gateway) -> None:
        self._running = running
        self._counters: dict[tuple[str, tuple[str, ...]], float] = {}
        self._gauges: dict[tuple[str, tuple[str, ...]], float] = {}

    def read(self, metric: Metric, *labels: str) -> float | None:
        cells = self._running.plane.take_cells()
        self._gauges = {cell.key: cell.value for cell in cells}
        for cell in cells:
            assert len(cell.labels) == len(names.METRICS[cell.metric].labels)
            self._counters[cell.key] = self._counters.get(cell.key, 0) + cell.value
        values = self._gauges if metric.kind is names.Kind.GAUGE else self._counters
        return values.get((metric.name, labels))


async def end_of(stream: trio.SocketStream) -> bytes:
    with trio.fail_after(5):
        return await stream.receive_some(1000)


def test_a_connection_that_never_speaks_is_counted() -> None:
    async def main() -> None:
        async with gateway(settings=ProxySettings(first_byte_timeout_s=0.1)) as running:
            async with await trio.open_tcp_stream("127.0.0.1", running.port) as stream:
                assert await end_of(stream) == b""
            assert running.recorder.rejections == [("tcp", Reason.IDLE_TIMEOUT)]

    bounded(main)


@pytest.mark.parametrize("down", ["h1", "h2"])
def test_a_connection_that_was_idle_for_too_long_is_counted(down: str) -> None:
    async def main() -> None:
        settings = ProxySettings(keep_alive_timeout_s=0.1)
        async with (
            upstream(hello) as server,
            gateway([make_service([server.port])], settings=settings) as running,
            client(running.port, down) as peer,
        ):
            assert (await peer.request("GET", "/")).status == 200
            recorder = running.recorder
            await recorder.until(lambda: recorder.rejections == [(down, Reason.IDLE_TIMEOUT)])

    bounded(main)


@pytest.mark.parametrize("down", ["h1", "h2"])
def test_a_request_is_counted_by_the_meter_of_its_route_and_service(down: str) -> None:
    async def main() -> None:
        async with upstream(hello) as server, gateway([make_service([server.port])]) as running:
            async with client(running.port, down) as peer:
                for _ in range(3):
                    assert (await peer.request("POST", "/", body=b"12345678")).body == b"hello"
            await running.recorder.until(lambda: len(running.recorder.events) == 3)
            (delta,) = running.recorder.meters.take()
            assert (delta.protocol, delta.route, delta.service) == (down, "default/route", "default/backend")
            assert (delta.codes[2], sum(delta.codes), sum(delta.buckets)) == (3, 3, 3)
            assert (delta.bytes_in, delta.bytes_out) == (24, 15)
            assert delta.duration_s > 0
            assert running.recorder.reasons == []

    bounded(main)


def test_a_request_without_a_route_is_counted_by_its_reason() -> None:
    async def main() -> None:
        async with gateway(rules=[]) as running:
            async with client(running.port, "h1") as peer:
                assert (await peer.request("GET", "/")).status == 404
            (delta,) = running.recorder.meters.take()
            assert (delta.route, delta.service, delta.codes[4]) == ("", "", 1)
            assert running.recorder.reasons == [("h1", Reason.NO_ROUTE)]

    bounded(main)


def test_no_access_log_record_is_made_for_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Recorder, "wants_events", False)

    async def main() -> None:
        async with upstream(hello) as server, gateway([make_service([server.port])]) as running:
            async with client(running.port, "h1") as peer:
                assert (await peer.request("GET", "/")).status == 200
                assert (await peer.request("GET", "/")).status == 200
            (delta,) = running.recorder.meters.take()
            assert delta.codes[2] == 2
            assert running.recorder.events == []

    bounded(main)


def test_upstream_connections_are_counted_as_opened_held_and_closed() -> None:
    async def main() -> None:
        async with upstream(hello) as server, gateway([make_service([server.port])]) as running:
            tally = Tally(running)
            async with client(running.port, "h1") as peer:
                for _ in range(4):
                    assert (await peer.request("GET", "/")).status == 200
            assert tally.read(names.UPSTREAM_OPENED, "default/backend") == 1
            assert tally.read(names.UPSTREAM_CONNECTIONS, "default/backend") == 1
            assert tally.read(names.UPSTREAM_CLOSED, "default/backend") == 0
            running.plane.begin_drain(lameduck_s=0, grace_s=1)
            await running.drained()
            assert tally.read(names.UPSTREAM_CLOSED, "default/backend") == 1
            assert tally.read(names.UPSTREAM_OPENED, "default/backend") == 1

    bounded(main)


def test_a_request_that_gets_no_connection_is_counted_for_its_service() -> None:
    async def main() -> None:
        async with upstream(never) as server:
            service = make_service([server.port], limits=ConnectionLimits(max_connections=1))
            settings = ProxySettings(pool_wait_s=0.2)
            async with gateway([service], settings=settings) as running, client(running.port, "h2") as peer:
                assert isinstance(peer, H2Client)
                tally = Tally(running)
                await peer.open("GET", "/", end=True)
                late = await peer.open("GET", "/", end=True)
                assert (await peer.receive(late)).status == 503
                assert tally.read(names.POOL_OVERFLOW, "default/backend") == 1
                assert tally.read(names.IN_FLIGHT) == 1
                assert running.recorder.reasons == [("h2", Reason.POOL_OVERFLOW)]

    bounded(main)


def test_a_body_that_is_too_long_to_keep_is_why_an_attempt_is_not_repeated() -> None:
    async def main() -> None:
        settings = ProxySettings(retry_body_bytes=10)
        async with upstream(broken) as server, gateway([make_service([server.port])], settings=settings) as running:
            tally = Tally(running)
            async with client(running.port, "h1") as peer:
                assert (await peer.request("PUT", "/", body=b"x" * 100)).status == 502
            assert tally.read(names.NOT_RETRIED, "body_not_replayable") == 1

    bounded(main)


def test_a_listener_counts_who_came_and_who_was_turned_away_also_after_its_end() -> None:
    async def main() -> None:
        settings = ProxySettings(max_connections=1)
        async with upstream(hello) as server, gateway([make_service([server.port])], settings=settings) as running:
            tally = Tally(running)
            async with client(running.port, "h1") as peer:
                assert isinstance(peer, H1Client)
                assert (await peer.request("GET", "/")).status == 200
                with pytest.raises((OSError, trio.BrokenResourceError)):  # the reset may come before connect returns
                    async with await trio.open_tcp_stream("127.0.0.1", running.port) as second:
                        await end_of(second)
                running.plane.remove_listener("test")
                assert tally.read(names.CONNECTIONS, "test") == 1
                assert tally.read(names.ACCEPTED, "test") == 1
                assert tally.read(names.TURNED_AWAY, "test") == 1
                assert running.recorder.rejections == [("tcp", Reason.TOO_MANY_CONNECTIONS)]
            with trio.fail_after(5):
                while tally.read(names.CONNECTIONS, "test") is not None:  # noqa: ASYNC110  # the kernel tells nobody else
                    await trio.sleep(0.01)
            assert tally.read(names.ACCEPTED, "test") == 1

    bounded(main)


def test_a_listener_that_comes_back_under_its_name_counts_on() -> None:
    async def main() -> None:
        async with upstream(hello) as server, gateway([make_service([server.port])]) as running:
            tally = Tally(running)
            async with client(running.port, "h1") as peer:
                assert (await peer.request("GET", "/")).status == 200
                running.plane.remove_listener("test")
                sock = socket.create_server(("127.0.0.1", 0))
                port = sock.getsockname()[1]
                running.plane.add_listener(Listener(name="test", host="127.0.0.1", port=port), sock)
                async with client(port, "h1") as other:
                    assert (await other.request("GET", "/")).status == 200
                    assert tally.read(names.ACCEPTED, "test") == 2

    bounded(main)
