"""The proxies under test and their upstreams: how each is configured, started, watched and ended."""

from __future__ import annotations

import contextlib
import json
import shutil
import subprocess
import time
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from gatebench import manifests
from gatebench.processes import (
    LOAD_CORE,
    PROXY_CORE,
    START_PATIENCE_S,
    BenchError,
    Child,
    find_program,
    free_ports,
    pin_threads,
    session_of,
)

HERE = Path(__file__).resolve().parent.parent
PEERS = HERE / "peers"
REPOSITORY = HERE.parent
BODY_SIZES = {"256k": 256 * 1024, "64m": 64 * 1024 * 1024}
GRPC_PATH = "/bench.Echo/Unary.grpc"
HOST = "bench.example"


@dataclass(frozen=True, kw_only=True)
class Site:
    """What all proxies of a run share: the scratch directory, the upstreams' ports, a certificate, both interpreters.

    Attributes:
        bench_bin: Programs of the harness's own environment, where the peers from PyPI are.
        datum: The `datum-router` command of the environment under test.
    """

    scratch: Path
    http_port: int
    grpc_port: int
    certificate: Path
    key: Path
    pem: Path
    bodies: Path
    bench_bin: Path
    datum: Path


def fill(template: str, values: Mapping[str, object]) -> str:
    """Replace `@NAME@` by its value in the text of a template of `peers/`."""
    text = (PEERS / template).read_text()
    for name, value in values.items():
        text = text.replace(f"@{name}@", str(value))
    return text


def make_certificate(scratch: Path) -> tuple[Path, Path, Path]:
    """Make a self-signed ECDSA P-256 certificate; return it, its key, and both in one file for HAProxy."""
    certificate, key, pem = scratch / "tls.crt", scratch / "tls.key", scratch / "tls.pem"
    command = [find_program("openssl"), "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1"]
    command += ["-nodes", "-days", "30", "-subj", f"/CN={HOST}", "-addext", f"subjectAltName=DNS:{HOST}"]
    subprocess.run([*command, "-keyout", key, "-out", certificate], check=True, capture_output=True)
    pem.write_text(certificate.read_text() + key.read_text())
    return certificate, key, pem


class Upstreams:
    """nginx with small answers from memory and bodies from tmpfs, and nghttpd as a gRPC server, on the load's core."""

    def __init__(self, scratch: Path) -> None:
        self.http_port, self.grpc_port = free_ports(2)
        self.bodies = Path("/dev/shm") / f"gatebench-{scratch.name}"
        self._children: list[Child] = []
        try:
            self._start(scratch)
        except BaseException:
            self.stop()
            raise

    def _start(self, scratch: Path) -> None:
        directory = scratch / "upstream"
        directory.mkdir()
        (self.bodies / "bodies").mkdir(parents=True)
        for name, size in BODY_SIZES.items():
            (self.bodies / "bodies" / name).write_bytes((bytes(range(256)) * (size // 256))[:size])
        config = directory / "nginx.conf"
        config.write_text(
            fill(
                "upstream-nginx.conf",
                {"DIR": directory, "PORT": self.http_port, "KIB": "x" * 1024, "BODIES": self.bodies},
            )
        )
        self._add("upstream nginx", [find_program("nginx"), "-c", str(config)], directory, self.http_port)
        documents = directory / "grpc"
        (documents / "bench.Echo").mkdir(parents=True)
        # One message: not compressed, 1,024 bytes.
        (documents / GRPC_PATH.lstrip("/")).write_bytes(b"\0\0\0\x04\0" + b"x" * 1024)
        types = directory / "mime.types"
        types.write_text("application/grpc grpc\n")
        command = [find_program("nghttpd"), "--no-tls", "-a127.0.0.1", "-d", str(documents), "--no-content-length"]
        command += ["-w16", "-W20", "-m100", "--trailer=grpc-status: 0", f"--mime-types-file={types}"]
        self._add("upstream nghttpd", [*command, str(self.grpc_port)], directory, self.grpc_port)

    def _add(self, name: str, command: list[str], directory: Path, port: int) -> None:
        child = Child(name, command, core=LOAD_CORE, log=directory / f"{name.rsplit(maxsplit=1)[-1]}.log")
        self._children.append(child)
        child.wait_for_port(port)

    def stop(self) -> None:
        for child in self._children:
            child.stop()
        shutil.rmtree(self.bodies, ignore_errors=True)


class Proxy:
    """A running proxy.

    `source` is the directory of manifests, if it is ours. `ports` has `http1` (plain HTTP/1.1), and `http2` (h2c) and
    `tls` where it speaks them.
    """

    def __init__(
        self,
        name: str,
        child: Child,
        ports: Mapping[str, int],
        workers: Sequence[int] = (),
        source: Path | None = None,
    ) -> None:
        self.name = name
        self.child = child
        self.ports = ports
        self.source = source
        self._workers = list(workers)

    def serving(self) -> list[int]:
        """Return the ids of the processes that serve: all of a peer's, our workers."""
        return self._workers or sorted(session_of(self.child.pid))

    def everything(self) -> list[int]:
        """Return the ids of all its processes, our supervisor among them."""
        return sorted(session_of(self.child.pid))

    def stop(self) -> None:
        self.child.stop()


def start_proxy(name: str, site: Site, *, routes: int = manifests.ROUTES) -> Proxy:
    """Start a proxy by its name and return it when it serves; `datum-2w` is ours with two workers.

    Raises:
        BenchError: It does not start; with the end of its log.
    """
    directory = site.scratch / f"{name}-{time.monotonic_ns()}"
    directory.mkdir()
    if name.startswith("datum"):
        return _start_datum(name, site, directory, routes=routes)
    http1, http2, tls = free_ports(3)
    values = {
        "DIR": directory,
        "HTTP1": http1,
        "HTTP2": http2,
        "TLS": tls,
        "UPSTREAM": site.http_port,
        "GRPC_UPSTREAM": site.grpc_port,
        "CERT": site.certificate,
        "KEY": site.key,
        "PEM": site.pem,
    }
    ports = {"http1": http1, "http2": http2, "tls": tls}
    python = str(site.bench_bin / "python")
    if name == "nginx":
        command = [find_program("nginx"), "-c", _write(directory / "nginx.conf", fill("nginx.conf", values))]
    elif name == "haproxy":
        command = [find_program("haproxy"), "-db", "-f", _write(directory / "haproxy.cfg", fill("haproxy.cfg", values))]
    elif name == "envoy":
        command = [str(site.bench_bin / "envoy"), "--concurrency", "1", "--log-level", "warn", "--disable-hot-restart"]
        ports["http2"] = http1
        command += ["-c", _write(directory / "envoy.yaml", fill("envoy.yaml", values))]
    elif name == "aiohttp":
        command = [python, str(PEERS / "aiohttp_proxy.py"), str(http1), str(site.http_port)]
        ports = {"http1": http1}
    elif name == "mitmproxy":
        command = [str(site.bench_bin / "mitmdump"), "--quiet", "--mode", f"reverse:http://127.0.0.1:{site.http_port}"]
        command += ["--listen-host", "127.0.0.1", "--listen-port", str(http1), "--set", f"confdir={directory}"]
        command += ["--set", "flow_detail=0", "--set", "stream_large_bodies=64k", "--set", "keep_host_header=true"]
        ports = {"http1": http1}
    else:
        raise BenchError(f"{name}: no such proxy")
    child = Child(name, command, core=PROXY_CORE, log=directory / "log")
    try:
        child.wait_for_port(http1)
    except BaseException:
        child.stop()
        raise
    return Proxy(name, child, ports)


def _write(path: Path, text: str) -> str:
    path.write_text(text)
    return str(path)


def _start_datum(name: str, site: Site, directory: Path, *, routes: int) -> Proxy:
    """Start our gateway as an operator does; its supervisor runs on the load's core, its workers on the proxy's."""
    workers = int(name.removesuffix("w").rpartition("-")[2]) if name.endswith("w") else 1
    source = directory / "manifests"
    source.mkdir()
    http1, tls, admin = free_ports(3)
    manifests.write_services(source, http_port=site.http_port, grpc_port=site.grpc_port)
    manifests.write_routes(source, routes)
    manifests.write_ingress(source, http_port=http1, https_port=tls, certificate=site.certificate, key=site.key)
    command = [str(site.datum), "run", str(source), "--workers", str(workers), "--admin", f"127.0.0.1:{admin}"]
    env = {
        # As for the peers: no access log, and no connection ended for being old.
        "DATUM_ROUTER_LOG": "info,datum_router.access=warn",
        "DATUM_ROUTER_LAMEDUCK_SECS": "0.1",
        "DATUM_ROUTER_DATA_PLANE_CONFIG": "keep_alive_timeout_s=600",
    }
    child = Child(name, command, core=LOAD_CORE, log=directory / "log", env=env)
    try:
        child.wait_for_port(http1)
        pids = worker_pids(child, admin, workers)
        for pid in pids:
            pin_threads(pid, PROXY_CORE)
    except BaseException:
        child.stop()
        raise
    return Proxy(name, child, {"http1": http1, "http2": http1, "tls": tls, "admin": admin}, pids, source)


def worker_pids(child: Child, admin: int, workers: int) -> list[int]:
    """Return the ids of our workers once all of them serve."""
    deadline = time.monotonic() + START_PATIENCE_S
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{admin}/stats", timeout=5) as page:
            pids = sorted(int(worker["pid"]) for worker in json.load(page)["workers"])
            if len(pids) == workers and "ready" in child.log.read_text().splitlines():
                return pids
        time.sleep(0.05)
    raise BenchError(f"{child.name}: not ready with {workers} workers in time: {child.log_tail()}")
