"""A controller as a process: what its pages say, and how it ends."""

from __future__ import annotations

import json
import os
import signal
import types
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import trio
from prometheus_client.parser import text_string_to_metric_families

from datum_router.compiler.diagnostics import Diagnostic, Severity
from datum_router.errors import ClusterUnavailable, ConfigError
from datum_router.observe.names import CONTROLLER_METRICS
from datum_router.plugins.protocols import Problems
from datum_router.reasons import Reason
from datum_router.testing.cluster import FakeCluster
from datum_router_runtime.controller import Controller, unique_identity
from datum_router_runtime.process import METRICS_PAGES, PROBE_PAGES
from datum_router_runtime.settings import Address, ControllerSettings
from tests.controllers import SOURCE, Silent, plugin_of, plugins, route, service, statuses

ANY = Address(host="127.0.0.1", port=0)
DENIED = Diagnostic(
    severity=Severity.ERROR, object="source kubernetes", reason=Reason.SOURCE_FAILED, message="may not list vpcroutes"
)


async def get(address: Address, path: str) -> tuple[int, str]:
    """Return status and body."""
    stream = await trio.open_tcp_stream(address.host, address.port)
    async with stream:
        await stream.send_all(f"GET {path} HTTP/1.1\r\nhost: localhost\r\n\r\n".encode())
        answer = b""
        async for part in stream:
            answer += part
    head, _, body = answer.partition(b"\r\n\r\n")
    return int(head.split(b" ", 2)[1]), body.decode()


def run(plugin: types.ModuleType, script: Callable[[Controller], Awaitable[None]], **settings: Any) -> None:
    """Run a controller and a script beside it, with whose end the controller ends."""
    controller = Controller(ControllerSettings(**settings), plugins=plugins(plugin))

    async def main() -> None:
        with trio.fail_after(20.0):
            async with trio.open_nursery() as nursery:
                await nursery.start(controller.run)
                await script(controller)
                nursery.cancel_scope.cancel()

    trio.run(main)


async def until(condition: Callable[[], bool]) -> None:
    while not condition():  # noqa: ASYNC110 - the run's deadline ends it
        await trio.sleep(0.01)


def test_its_pages_tell_what_it_does() -> None:
    cluster = FakeCluster()
    service(cluster)
    route(cluster, "r1")
    route(cluster, "r2", to="gone")

    async def script(controller: Controller) -> None:
        await until(lambda: controller.writer.writes.total() == 3)
        admin = controller.addresses["admin"]
        assert await get(admin, "/healthz") == (200, '{\n  "status": "alive"\n}\n')
        assert (await get(admin, "/readyz"))[0] == 200
        stats = json.loads((await get(admin, "/stats"))[1])
        assert stats["is_leading"] is True
        assert stats["holder"] == stats["identity"] == controller.identity
        assert stats["objects"] == {"VPCService": 1, "VPCRoute": 2}
        assert stats["writes"] == {"VPCService": 1, "VPCRoute": 2}
        found = json.loads((await get(admin, "/diagnostics"))[1])
        assert [one["object"] for one in found] == ["vpcroute default/r2"]
        status, text = await get(admin, "/metrics")
        assert status == 200
        for line in (
            "datum_router_controller_leading 1",
            'datum_router_objects{kind="VPCRoute"} 2',
            'datum_router_object_conditions{kind="VPCRoute",condition="ResolvedRefs",status="False"} 1',
            'datum_router_status_writes_total{kind="VPCRoute"} 2',
            "datum_router_status_queue_objects 0",
        ):
            assert line in text.splitlines()
        parsed = {family.name for family in text_string_to_metric_families(text)}
        assert "datum_router_object_conditions" in parsed
        told = {line.split(" ")[2] for line in text.splitlines() if line.startswith("# TYPE")}
        assert told <= CONTROLLER_METRICS.keys()
        untold = {
            name for name in CONTROLLER_METRICS.keys() - told if "_source_" not in name
        }  # this one counts nothing
        assert untold <= {"datum_router_status_write_errors_total"}

    run(plugin_of(cluster), script, admin=ANY, settle_s=0.0)


def test_what_may_be_reached_from_outside_shows_a_status_and_numbers_alone() -> None:
    async def script(controller: Controller) -> None:
        probes, metrics = controller.addresses["probes"], controller.addresses["metrics"]
        assert await get(probes, "/healthz") == (200, '{\n  "ok": true\n}\n')
        assert (await get(metrics, "/metrics"))[0] == 200
        for path in controller.pages():
            assert (await get(probes, path))[0] == (200 if path in PROBE_PAGES else 404)
            assert (await get(metrics, path))[0] == (200 if path in METRICS_PAGES else 404)

    run(plugin_of(FakeCluster()), script, probes=ANY, metrics=ANY)


def test_it_is_ready_when_it_has_read_and_compiled_everything_whether_it_leads_or_not() -> None:
    cluster = FakeCluster()
    service(cluster)
    cluster.fail("*", ClusterUnavailable("no answer"), times=None)

    async def script(controller: Controller) -> None:
        admin = controller.addresses["probes"]
        await until(lambda: controller.feed.compilations > 0)
        assert (await get(admin, "/readyz"))[0] == 200
        assert not controller.leader.is_leading
        assert (await get(admin, "/healthz"))[0] == 200

    run(plugin_of(cluster), script, probes=ANY)


def test_it_is_not_ready_before_its_source_has_said_all() -> None:
    async def script(controller: Controller) -> None:
        controller.feed.emit([Problems(source=SOURCE, scope="vpcroutes", diagnostics=(DENIED,))])
        status, body = await get(controller.addresses["admin"], "/readyz")
        assert status == 503
        assert "has not said yet" in body
        assert "may not list vpcroutes" in body

    run(plugin_of(FakeCluster(), Silent()), script, admin=ANY)


def test_a_process_that_is_stuck_is_to_be_restarted(monkeypatch: pytest.MonkeyPatch) -> None:
    async def script(controller: Controller) -> None:
        monkeypatch.setattr(type(controller.leader), "is_stuck", True)
        assert (await get(controller.addresses["probes"], "/healthz"))[0] == 503

    run(plugin_of(FakeCluster()), script, probes=ANY)


def test_sigterm_ends_it_and_lets_go_of_the_lease() -> None:
    cluster = FakeCluster()
    service(cluster)
    controller = Controller(ControllerSettings(settle_s=0.0), plugins=plugins(plugin_of(cluster)))

    async def main() -> None:
        with trio.fail_after(20.0):
            async with trio.open_nursery() as nursery:
                await nursery.start(controller.run)
                await until(lambda: len(statuses(cluster)) == 1)
                os.kill(os.getpid(), signal.SIGTERM)

    trio.run(main)
    assert cluster._leases["default", "router-controller"].holder == ""


def test_what_is_not_installed_is_named() -> None:
    with pytest.raises(ConfigError, match=r"cluster 'kubernets' is not installed .*did you mean kubernetes\?"):
        Controller(ControllerSettings(cluster="kubernets"), plugins=plugins(plugin_of(FakeCluster())))
    with pytest.raises(ConfigError, match="source 'kubernetes' is not installed"):
        Controller(ControllerSettings(), plugins=plugins())


def test_an_address_that_is_taken_is_named() -> None:
    async def main() -> None:
        (taken,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
        async with taken:
            address = Address(host="127.0.0.1", port=taken.socket.getsockname()[1])
            settings = ControllerSettings(metrics=address)
            controller = Controller(settings, plugins=plugins(plugin_of(FakeCluster())))
            with pytest.raises(ConfigError, match=r"metrics: cannot bind 127\.0\.0\.1:\d+: "):
                await controller.run()

    trio.run(main)


def test_no_two_processes_have_one_identity() -> None:
    assert len({unique_identity("pod") for _ in range(100)}) == 100
    assert unique_identity("pod").startswith("pod_")
