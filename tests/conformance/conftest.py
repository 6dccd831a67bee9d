"""Peers that are not ours: programs built by Go or installed by apt, and upstreams of the data plane's test kit.

What a test counted (`record_property`) is printed at the end of the run, so that `make conformance` says what it ran.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
import trio

from datum_router.model.service import UpstreamProtocol
from datum_router_proxy import testing_peers

REPOSITORY = Path(__file__).resolve().parents[2]
PLACES = (REPOSITORY / ".run" / "tools", Path("/usr/bin"), Path("/usr/sbin"))


def find_program(name: str) -> str:
    """Return the path of a program, which in continuous integration has to be there: a skip would look like a pass."""
    path = next((str(place / name) for place in PLACES if os.access(place / name, os.X_OK)), shutil.which(name))
    if path is None:
        message = f"{name} is not here: `make conformance` builds or installs it where Go and apt-get are at hand"
        if os.environ.get("CI") == "true":
            pytest.fail(message)
        pytest.skip(message)
    return path


@pytest.fixture(scope="session")
def program() -> Callable[[str], str]:
    return find_program


@contextmanager
def serve(app: testing_peers.App, protocol: UpstreamProtocol) -> Iterator[testing_peers.Upstream]:
    """Run an upstream made of h11 or h2, not of our engines, in a thread of its own."""
    started, over = threading.Event(), trio.Event()
    state: list[Any] = []

    async def main() -> None:
        async with testing_peers.upstream(app, protocol) as upstream:
            state.extend((upstream, trio.lowlevel.current_trio_token()))
            started.set()
            await over.wait()

    thread = threading.Thread(target=trio.run, args=(main,), daemon=True)
    thread.start()
    assert started.wait(10)
    try:
        yield state[0]
    finally:
        state[1].run_sync_soon(over.set)
        thread.join(10)
        assert not thread.is_alive()


@pytest.fixture
def serve_upstream() -> Iterator[Callable[..., testing_peers.Upstream]]:
    with ExitStack() as stack:
        yield lambda app, protocol: stack.enter_context(serve(app, protocol))


def write_service(directory: Path, protocol: str, port: int, name: str = "peer", path: str = "/") -> None:
    """Put a service on loopback and a route to it into the directory."""
    (directory / f"{name}.yaml").write_text(f"""
apiVersion: router.datum.net/v1alpha1
kind: VPCService
metadata: {{name: {name}}}
spec:
  protocol: {protocol}
  port: {port}
  endpoints: [{{address: 127.0.0.1}}]
---
apiVersion: router.datum.net/v1alpha1
kind: VPCRoute
metadata: {{name: {name}}}
spec:
  match: {{pathPrefix: {path}}}
  destinations: [{{vpcServiceRef: {{name: {name}}}}}]
""")


@pytest.fixture(scope="session")
def peers() -> Any:
    """Helpers as one fixture, since test folders are no packages."""

    class Peers:
        write_service = staticmethod(write_service)
        serve = staticmethod(serve)

        @staticmethod
        def run(*command: str, timeout: float = 60.0) -> subprocess.CompletedProcess[str]:
            return subprocess.run(command, capture_output=True, text=True, timeout=timeout, check=False)

    return Peers


def pytest_terminal_summary(terminalreporter: Any) -> None:
    counted: dict[str, list[str]] = {}
    for report in terminalreporter.stats.get("passed", []):
        if report.when == "call":
            for name, value in report.user_properties:
                counted.setdefault(name, []).append(str(value))
    if counted:
        terminalreporter.section("what ran and passed")
        for name, values in sorted(counted.items()):
            terminalreporter.line(f"{name}: {values[0] if len(values) == 1 else f'{len(values)} cases'}")
