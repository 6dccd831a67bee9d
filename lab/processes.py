"""Gateway and backends of the lab: child processes in namespaces, ended by process id."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from lab.network import LabError, inside_command
from lab.plan import ADMIN_PORT, BACKENDS, GATEWAY_HOST, GATEWAY_PORT, GATEWAYS

REPOSITORY = Path(__file__).resolve().parent.parent
START_TIMEOUT_S = 60.0
END_TIMEOUT_S = 10.0


class Processes:
    """Children by name."""

    def __init__(self, logs: Path) -> None:
        self._children: dict[str, subprocess.Popen[str]] = {}
        self._logs = logs

    def start(self, name: str, host: str, command: Sequence[str], *, ready: str, env: dict[str, str]) -> None:
        """Start Python with these arguments in a namespace and return when it prints a line that holds `ready`.

        Raises:
            LabError: It has ended, or said nothing for `START_TIMEOUT_S`; holds the end of its log.
        """
        log = self._logs / f"{name}.log"
        with log.open("w") as stderr:
            child = subprocess.Popen(
                inside_command(host, [sys.executable, *command]),
                stdout=subprocess.PIPE,
                stderr=stderr,
                text=True,
                cwd=REPOSITORY,
                env={**os.environ, **env},
            )
        self._children[name] = child
        assert child.stdout is not None
        late = threading.Timer(START_TIMEOUT_S, child.kill)
        late.start()
        try:
            if not any(ready in line for line in child.stdout):
                raise LabError(f"{name} ended before it was ready: {log.read_text()[-2000:]}")
        finally:
            late.cancel()

    def stop(self) -> None:
        """End all, the gateway first."""
        for child in reversed(self._children.values()):
            if child.poll() is None:
                child.send_signal(signal.SIGTERM)
        ends_at = time.monotonic() + END_TIMEOUT_S
        for child in self._children.values():
            try:
                child.wait(timeout=max(0.1, ends_at - time.monotonic()))
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()


@contextlib.contextmanager
def running(logs: Path) -> Iterator[Processes]:
    """Run every backend of the plan, and the gateway with lab/manifests; end them afterwards."""
    processes = Processes(logs)
    try:
        for pod in BACKENDS:
            command = ["-m", "lab.backend", pod.node.name, pod.tenant.name, pod.ipv4, pod.ipv6]
            processes.start(f"backend-{pod.host}", pod.host, command, ready="ready", env={})
        interfaces = ",".join(f"{pod.tenant.name}/net={pod.interface}" for pod in GATEWAYS)
        attachments = ",".join(f"{pod.tenant.name}/gateway={pod.interface}" for pod in GATEWAYS)
        processes.start(
            "gateway",
            GATEWAY_HOST,
            [
                "-m", "datum_router_cli", "run", str(REPOSITORY / "lab" / "manifests"),
                "--listen", f"[::]:{GATEWAY_PORT}", "--admin", f"127.0.0.1:{ADMIN_PORT}",
            ],
            ready="ready",
            env={
                "DATUM_ROUTER_LOG": "info",
                "DATUM_ROUTER_LOG_FORMAT": "json",
                "DATUM_ROUTER_LAMEDUCK_SECS": "0.1",
                "DATUM_ROUTER_GRACE_SECS": "1",
                "DATUM_ROUTER_VPC_INTERFACES": interfaces,
                "DATUM_ROUTER_VPC_ATTACHMENTS": attachments,
                "DATUM_ROUTER_VPC_REQUIRED": "true",
                "DATUM_ROUTER_DATA_PLANE_CONFIG": "max_connections_per_address=1000",
            },
        )  # fmt: skip
        yield processes
    finally:
        processes.stop()
