"""`datum-router apply --wait`, two gateways and a controller: it returns when both have it, or says which has not."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.cluster.plane import ADMIN, Plane
from tests.cluster.stage import Stage, install, route, service
from tests.conftest import eventually
from tests.processes import ServiceProcess

TIMEOUT_S = 60


@pytest.fixture(scope="module")
def stage(plane: Plane, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    install(plane)
    one = Stage(plane, tmp_path_factory.mktemp("apply"))
    yield one
    one.stop()


@pytest.fixture(scope="module")
def gateways(stage: Stage) -> list[ServiceProcess]:
    both = [stage.gateway("apply-a"), stage.gateway("apply-b")]
    stage.controller()
    return both


@pytest.fixture
def apply(stage: Stage, tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    directory = tmp_path / "manifests"
    directory.mkdir()

    def run(*objects: dict[str, object], timeout: str = "30s") -> subprocess.CompletedProcess[str]:
        (directory / "all.json").write_text(json.dumps({"apiVersion": "v1", "kind": "List", "items": list(objects)}))
        environment = {**os.environ, "KUBECONFIG": str(stage.plane.kubeconfig(ADMIN))}
        command = [sys.executable, "-m", "datum_router_cli", "apply", "-f", str(directory), "--wait"]
        return subprocess.run(
            [*command, "--timeout", timeout],
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
            env=environment,
            check=False,
        )

    return run


def test_it_returns_when_every_gateway_serves_it(
    gateways: list[ServiceProcess],
    namespace: Callable[[], str],
    apply: Callable[..., subprocess.CompletedProcess[str]],
) -> None:
    there = namespace()
    moved = {"filters": [{"type": "RequestRedirect", "requestRedirect": {"hostname": "one.example"}}]}
    first = route(there, "r", "unused", path=f"/{there}")
    spec = first["spec"]
    assert isinstance(spec, dict)
    del spec["destinations"]
    spec.update(moved)
    for number in range(5):
        spec["match"] = {"pathPrefix": f"/{there}/{number}"}
        done = apply(first, service(there, "a", 8080))
        assert done.returncode == 0, done.stdout + done.stderr
        assert done.stdout.splitlines()[-1] == "good: 2 objects applied and in force everywhere"
        for gateway in gateways:
            lines = gateway.text("/snapshot")
            assert f"/{there}/{number}" in lines


def test_it_says_which_gateway_is_not_there_yet(
    stage: Stage,
    gateways: list[ServiceProcess],
    namespace: Callable[[], str],
    apply: Callable[..., subprocess.CompletedProcess[str]],
) -> None:
    there = namespace()
    objects = [service(there, "a", 8080), route(there, "r", "a", path=f"/{there}")]
    gateways[1].process.send_signal(signal.SIGSTOP)
    try:
        done = apply(*objects, timeout="4s")
    finally:
        gateways[1].process.send_signal(signal.SIGCONT)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "not in force everywhere after 4s:" in done.stdout
    assert "not in force yet on apply-b" in done.stdout
    rows = {line.split()[0]: line for line in done.stdout.splitlines() if line.startswith("apply-")}
    assert "none" in rows["apply-a"]
    assert f"vpcroute {there}/r" in rows["apply-b"]
    again = apply(*objects)
    assert again.returncode == 0, again.stdout + again.stderr


def test_a_reference_that_is_missing_is_told(
    stage: Stage,
    gateways: list[ServiceProcess],
    namespace: Callable[[], str],
    apply: Callable[..., subprocess.CompletedProcess[str]],
) -> None:
    there = namespace()
    lost = route(there, "r", "nowhere", path=f"/{there}")
    done = apply(lost)
    assert done.returncode == 0, done.stdout + done.stderr
    eventually(lambda: stage.conditions(lost).get("ResolvedRefs", ("",))[0] == "False", "the missing service")
