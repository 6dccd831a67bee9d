"""A gateway that is started again while its source cannot be reached serves what it had."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.conftest import Backend, answer, eventually, manifest
from tests.processes import ServiceProcess

pytestmark = pytest.mark.e2e


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[[], ServiceProcess]]:
    running: list[ServiceProcess] = []

    def make() -> ServiceProcess:
        env = {
            "DATUM_ROUTER_DIR": str(tmp_path / "manifests"),
            "DATUM_ROUTER_LISTEN": "127.0.0.1:0",
            "DATUM_ROUTER_SNAPSHOT_FILE": str(tmp_path / "last"),
        }
        running.append(ServiceProcess("datum_router_gateway", tmp_path / f"gateway-{len(running)}.log", env))
        return running[-1]

    yield make
    for one in running:
        one.stop()


def test_it_serves_the_last_good_snapshot_and_follows_once_the_source_is_back(
    start: Callable[[], ServiceProcess], tmp_path: Path, start_backend: Callable[..., Backend]
) -> None:
    backend = start_backend(answer(b"hello"))
    manifests = tmp_path / "manifests"
    manifests.mkdir()
    (manifests / "a.yaml").write_text(manifest("a", backend))
    first = start()
    first.wait_ready()
    assert first.get("/x") == (200, "hello")
    eventually((tmp_path / "last").exists, "the snapshot on disk")
    first.stop(signal.SIGKILL)

    manifests.rename(tmp_path / "elsewhere")
    second = start()
    second.wait_ready()
    assert second.lines("sources cannot be reached, serving the last good snapshot")
    assert second.get("/x") == (200, "hello")

    (tmp_path / "elsewhere" / "a.yaml").write_text(manifest("a", backend, path="/only"))
    (tmp_path / "elsewhere").rename(manifests)
    eventually(lambda: second.get("/x")[0] == 404, "the edit that was made meanwhile")
    assert second.get("/only") == (200, "hello")


def test_without_a_snapshot_it_is_not_ready_until_its_source_is_there(
    start: Callable[[], ServiceProcess], tmp_path: Path
) -> None:
    gateway = start()
    eventually(lambda: bool(gateway.lines("source failed, will retry")), "a first try")
    page = gateway.page("/readyz")
    assert isinstance(page, dict)
    assert page["ready"] is False
    assert page["reasons"][0] == "no configuration yet: sources are not synced"
    assert "manifests" in page["reasons"][1], "the source says what it misses"
    (tmp_path / "manifests").mkdir()
    gateway.wait_ready()
