"""`make demo`: three backends ('aws', 'gcp', 'on-prem') and a gateway with demo/manifests on port 8080: all of
manifests/examples, and in environment.yaml what a cluster would hold beside them.

With `--check` the same unattended on free ports: every example request over HTTP/1.1, HTTP/2, gRPC and WebSocket with
independent clients, a backend killed, a route edited; exit 0 only if all of it held.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

import checks
import trustme
from rich.console import Console
from rich.table import Table

REPOSITORY = Path(__file__).resolve().parent.parent
MANIFESTS = REPOSITORY / "demo" / "manifests"
CLOUDS = {"aws": "127.0.10.1", "gcp": "127.0.20.1", "on-prem": "127.0.30.1"}
START_TIMEOUT_S = 30.0
console = Console()


class Processes:
    """Child processes by name, ended by process id in reverse order."""

    def __init__(self) -> None:
        self._children: dict[str, subprocess.Popen[str]] = {}

    def start(self, name: str, *command: str, env: dict[str, str] | None = None, log: Path | None = None) -> None:
        stderr = log.open("a") if log is not None else None
        self._children[name] = subprocess.Popen(
            [sys.executable, *command],
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
            cwd=REPOSITORY,
            env={**os.environ, **(env or {})},
        )

    def wait_line(self, name: str, pattern: str) -> re.Match[str]:
        """Return the first line of a child's output that matches; ends the demo if the child dies before."""
        child = self._children[name]
        assert child.stdout is not None
        for line in child.stdout:
            found = re.search(pattern, line)
            if found:
                return found
        raise SystemExit(f"{name} ended with code {child.wait()} before it was ready")

    def kill(self, name: str, number: int = signal.SIGKILL) -> None:
        child = self._children.pop(name)
        child.send_signal(number)
        child.wait()

    def wait(self, name: str) -> int:
        return self._children[name].wait()

    def stop(self) -> None:
        for child in reversed(self._children.values()):
            if child.poll() is None:
                child.send_signal(signal.SIGTERM)
        for child in self._children.values():
            try:
                child.wait(timeout=10)
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()


@contextlib.contextmanager
def running() -> Iterator[Processes]:
    processes = Processes()
    try:
        yield processes
    finally:
        processes.stop()


def start_backend(processes: Processes, name: str, http_port: int, grpc_port: int) -> None:
    processes.start(
        name,
        "demo/backend.py",
        "--name",
        name,
        "--host",
        CLOUDS[name],
        "--http-port",
        str(http_port),
        "--grpc-port",
        str(grpc_port),
    )
    processes.wait_line(name, "ready")


def start_gateway(processes: Processes, directory: Path, listen: str, admin: str, log: Path | None) -> tuple[str, str]:
    """Start the gateway; return the addresses it serves and is administered at."""
    processes.start(
        "gateway",
        "-m",
        "datum_router_cli",
        "run",
        str(directory),
        "--listen",
        listen,
        "--admin",
        admin,
        env={"DATUM_ROUTER_LOG": "info", "DATUM_ROUTER_LAMEDUCK_SECS": "0.2"},
        log=log,
    )
    found = processes.wait_line("gateway", r"listening on http://(\S+)")
    serving = found[1]
    admin_address = processes.wait_line("gateway", r"admin on http://(\S+)")[1]
    processes.wait_line("gateway", "ready")
    return serving, admin_address


def free_port(*hosts: str) -> int:
    """Return a port that is free on every one of `hosts`."""
    for _ in range(100):
        with socket.socket() as first:
            first.bind((hosts[0], 0))
            port: int = first.getsockname()[1]
            try:
                for host in hosts[1:]:
                    with socket.socket() as other:
                        other.bind((host, port))
            except OSError:
                continue
            return port
    raise SystemExit("no port is free on all loopback addresses of the demo")


def require_free(*addresses: tuple[str, int]) -> None:
    """End the demo with one line if somebody else listens on an address that it needs."""
    for host, port in addresses:
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # what was closed just now is free
            try:
                probe.bind((host, port))
            except OSError as error:
                raise SystemExit(
                    f"demo: {host}:{port} cannot be used: {error.strerror}; stop what listens there (another demo?), "
                    "or run `make demo-check`, which takes free ports"
                ) from error


def copy_examples(target: Path, http_port: int, grpc_port: int) -> None:
    """Copy the examples with other ports; nothing else changes."""
    for path in (*MANIFESTS.glob("*.yaml"), *MANIFESTS.glob("examples/*.yaml")):
        text = path.read_text()
        text = re.sub(r"([pP]ort: )8080\b", rf"\g<1>{http_port}", text)
        text = re.sub(r"([pP]ort: )9090\b", rf"\g<1>{grpc_port}", text)
        (target / path.name).write_text(text)


def write_certificate(path: Path) -> None:
    """Write the Secret that an example names, with a certificate of an authority that is gone at once."""
    issued = trustme.CA().issue_cert("secure.example.com", "shop.edge.example.com")
    data = {"tls.crt": issued.cert_chain_pems[0].bytes().decode(), "tls.key": issued.private_key_pem.bytes().decode()}
    secret = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "secure-tls", "namespace": "default"}}
    with open(path, "w", opener=lambda name, flags: os.open(name, flags, 0o600)) as file:
        json.dump({**secret, "type": "kubernetes.io/tls", "stringData": data}, file)


def show(address: str, admin: str) -> None:
    """Print the route table and what to try."""
    snapshot = checks.get_json(f"http://{admin}/snapshot")
    table = Table(title="Routes, most specific first", title_justify="left")
    for column in ("route", "hosts", "match", "destinations", "balancer"):
        table.add_column(column, overflow="fold")  # names whole, also on 80 columns
    for rule in snapshot["rules"]:
        match = rule["match"]
        conditions = [f"{match['path']['kind']} {match['path']['value']}", *match["methods"]]
        conditions += [f"{item['name']}={item['value']}" for item in match["headers"]]
        destinations = ", ".join(f"{ref['service']} ({ref['weight']})" for ref in rule["destinations"])
        table.add_row(
            rule["route"],
            ", ".join(rule["hostnames"]) or "any",
            "  ".join(conditions),
            destinations or "redirect",
            rule["balancing"]["algorithm"],
        )
    console.print(table)
    port = address.rsplit(":", 1)[1]
    console.print("\n[bold]Try it[/bold]")
    for line in (
        f"curl localhost:{port}/api/v1/users",
        f"curl --http2-prior-knowledge localhost:{port}/api/v1/users",
        f"curl -d hello localhost:{port}/api/v1/users",
        f"curl localhost:{port}/api/orders",
        f"curl -H 'Host: shop.example.com' localhost:{port}/",
        f"curl -H 'Host: shop.example.com' -H 'X-Canary: always' localhost:{port}/",
        f"curl -i localhost:{port}/old/page",
        f"curl -i -d '' -H 'Host: accounts.example.com' localhost:{port}/login    # the sixth within a minute: 429",
        f"curl -i -X OPTIONS -H 'Host: cors.example' -H 'Origin: https://shop.example.com' "
        f"-H 'Access-Control-Request-Method: PUT' localhost:{port}/",
        f".venv/bin/datum-router explain demo/manifests GET http://localhost:{port}/api/v1/users --listen :{port}",
        f"curl {admin}/stats",
    ):
        console.print(f"  {line}", highlight=False, soft_wrap=True)
    console.print(
        "\nEdit a file in manifests/examples: it is in force within a second. Ctrl-C ends the demo.", soft_wrap=True
    )


def demo() -> int:
    require_free(
        ("127.0.0.1", 8080), ("127.0.0.1", 9901), *((host, port) for host in CLOUDS.values() for port in (8080, 9090))
    )
    write_certificate(MANIFESTS / "certificate.json")
    with running() as processes:
        for name in CLOUDS:
            start_backend(processes, name, 8080, 9090)
        address, admin = start_gateway(processes, MANIFESTS, "127.0.0.1:8080", "127.0.0.1:9901", None)
        show(address, admin)
        with contextlib.suppress(KeyboardInterrupt):
            return processes.wait("gateway")
    return 0


def check() -> int:
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="datum-router-demo-") as folder, running() as processes:
        directory = Path(folder) / "manifests"
        directory.mkdir()
        log = Path(folder) / "gateway.log"
        http_port = free_port(*CLOUDS.values())
        grpc_port = free_port(*CLOUDS.values())
        copy_examples(directory, http_port, grpc_port)
        write_certificate(directory / "certificate.json")
        for name in CLOUDS:
            start_backend(processes, name, http_port, grpc_port)
        address, admin = start_gateway(processes, directory, "127.0.0.1:0", "127.0.0.1:0", log)
        run = checks.Run(
            address=address,
            admin=admin,
            directory=directory,
            kill=processes.kill,
            revive=lambda name: start_backend(processes, name, http_port, grpc_port),
        )
        passed, failed = run.all()
        if failed:
            console.print(f"[red]gateway log[/red] (last lines)\n{''.join(log.read_text().splitlines(True)[-40:])}")
        processes.kill("gateway", signal.SIGTERM)
    console.print(f"demo-check: {passed} passed, {failed} failed in {time.monotonic() - started:.1f} s")
    return 1 if failed or not passed else 0


def _end(_number: int, _frame: object) -> None:
    raise SystemExit(1)


def main() -> int:
    signal.signal(signal.SIGTERM, _end)  # so that the children are ended, too
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="run unattended and verify everything")
    options = parser.parse_args()
    if shutil.which("curl") is None:
        console.print("curl is not installed: HTTP requests are made with httpcore instead")
    return check() if options.check else demo()


if __name__ == "__main__":
    sys.exit(main())
