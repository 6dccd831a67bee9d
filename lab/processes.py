"""What runs in the lab beside the clusters: child processes in namespaces, ended by process id."""

from __future__ import annotations

import contextlib
import functools
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from lab.cluster import Cluster, together
from lab.network import LabError, inside_command
from lab.plan import (
    ADMIN_PORT,
    AWS,
    BACKENDS,
    CONTROLLER_PORT,
    DISCOVERY_PORT,
    GATEWAY_HOST,
    GATEWAY_PORT,
    GATEWAYS,
)
from lab.traffic import page, wait_for
from tests.cluster.plane import CONTROLLER, DISCOVERY, GATEWAY, REPOSITORY

START_TIMEOUT_S = 120.0
END_TIMEOUT_S = 10.0


class Processes:
    """Children by name; each writes a log `NAME.log`, and to `NAME.out` what it prints."""

    def __init__(self, logs: Path) -> None:
        self._children: dict[str, subprocess.Popen[bytes]] = {}
        self._logs = logs

    @property
    def home(self) -> Path:
        """Return the directory of logs and whatever else is for people to look at."""
        return self._logs

    def log(self, name: str) -> Path:
        """Return where a child's log is."""
        return self._logs / f"{name}.log"

    def output(self, name: str) -> Path:
        """Return where that is which a child prints."""
        return self._logs / f"{name}.out"

    def start(self, name: str, host: str, command: Sequence[str], *, env: Mapping[str, str] | None = None) -> None:
        """Start a command in a namespace."""
        with self.log(name).open("w") as log, self.output(name).open("w") as output:
            self._children[name] = subprocess.Popen(
                inside_command(host, command),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=log,
                cwd=REPOSITORY,
                env={**os.environ, **(env or {})},
            )

    def wait_ready(self, name: str, is_ready: Callable[[], bool]) -> None:
        """Wait until a child is ready.

        Raises:
            LabError: It has ended, or is not ready within `START_TIMEOUT_S`; holds the end of its log.
        """

        def is_so() -> bool:
            if self._children[name].poll() is not None:
                raise LabError(f"{name} ended before it was ready: {self.log(name).read_text()[-2000:]}")
            return is_ready()

        try:
            wait_for(f"{name} is ready", is_so, timeout_s=START_TIMEOUT_S)
        except LabError as error:
            raise LabError(f"{error}; its log ends with: {self.log(name).read_text()[-2000:]}") from error

    def stop(self, *names: str) -> None:
        """End these, or all: the last that was started first."""
        children = [self._children[name] for name in names or [*reversed(self._children)]]
        for child in children:
            if child.poll() is None:
                child.send_signal(signal.SIGTERM)
        ends_at = time.monotonic() + END_TIMEOUT_S
        for child in children:
            try:
                child.wait(timeout=max(0.1, ends_at - time.monotonic()))
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()


@contextlib.contextmanager
def running(logs: Path, clusters: Mapping[str, Cluster]) -> Iterator[Processes]:
    """Run every backend of the plan, and gateway, controller and discovery of AWS; end them afterwards."""
    processes = Processes(logs)
    try:
        starting = [_start_backends(processes), *_start_product(processes, clusters[AWS.name])]
        together(starting, abort=processes.stop)
        yield processes
    finally:
        processes.stop()


def _start_backends(processes: Processes) -> Callable[[], None]:
    """Start all backends; return what waits for them."""
    for pod in BACKENDS:
        command = [sys.executable, "-m", "lab.backend", pod.node.name, pod.tenant.name, pod.ipv4, pod.ipv6]
        processes.start(f"backend-{pod.host}", pod.host, command)

    def wait() -> None:
        for pod in BACKENDS:
            name = f"backend-{pod.host}"
            processes.wait_ready(name, functools.partial(_has_said_ready, processes.output(name)))

    return wait


def _has_said_ready(output: Path) -> bool:
    return "ready" in output.read_text()


def _start_product(processes: Processes, cluster: Cluster) -> list[Callable[[], None]]:
    """Start gateway, controller and discovery with the rights of their accounts; return what waits for each."""
    interfaces = ",".join(f"{pod.tenant.name}/net={pod.interface}" for pod in GATEWAYS)
    attachments = ",".join(f"{pod.tenant.name}/gateway={pod.interface}" for pod in GATEWAYS)
    gateway = {
        "DATUM_ROUTER_LISTEN": f"[::]:{GATEWAY_PORT}",
        "DATUM_ROUTER_LAMEDUCK_SECS": "0.1",
        "DATUM_ROUTER_GRACE_SECS": "1",
        "DATUM_ROUTER_VPC_INTERFACES": interfaces,
        "DATUM_ROUTER_VPC_ATTACHMENTS": attachments,
        "DATUM_ROUTER_VPC_REQUIRED": "true",
        "DATUM_ROUTER_DATA_PLANE_CONFIG": "max_connections_per_address=1000",
    }
    waits: list[Callable[[], None]] = []
    for name, host, user, port, more in (
        ("gateway", GATEWAY_HOST, GATEWAY, ADMIN_PORT, gateway),
        ("controller", AWS.name, CONTROLLER, CONTROLLER_PORT, {}),
        ("discovery", AWS.name, DISCOVERY, DISCOVERY_PORT, {}),
    ):
        env = {
            "KUBECONFIG": str(cluster.kubeconfig(user)),
            "POD_NAME": f"{name}-0",
            "DATUM_ROUTER_SOURCE": "kubernetes",
            "DATUM_ROUTER_ADMIN": f"127.0.0.1:{port}",
            "DATUM_ROUTER_LOG": "info",
            "DATUM_ROUTER_LOG_FORMAT": "json",
            **more,
        }
        processes.start(name, host, [sys.executable, "-m", f"datum_router_{name}"], env=env)
        waits.append(functools.partial(processes.wait_ready, name, functools.partial(_is_ready, host, port)))
    return waits


def _is_ready(host: str, port: int) -> bool:
    try:
        found = page(host, port, "/readyz")
    except LabError:  # nobody listens there yet
        return False
    return isinstance(found, dict) and found.get("ready") is True
