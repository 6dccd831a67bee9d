"""Overload: what a gateway does with three times as many requests as it can serve, with load shedding and without.

    python benchmarks/bench_overload.py --out docs/benchmarks       # about 3 minutes
    python benchmarks/bench_overload.py --loud 2 --quiet 1          # a look; writes nothing

One worker on core 0; load, upstream and supervisor on core 1. First the capacity is measured: a closed loop of 64
connections. Then an open loop: half of it, `--times` it for `--loud` seconds, half of it again. A request is due at a
time of its own whatever became of those before; it needs a connection out of `--connections`, one that has no request
under way, and counts as served if 2xx has come within a second of when it was due. So who has to wait for a connection
that a slow answer holds has failed: nobody queues in the generator.

The route has a session cookie and headers to change, so that the gateway and not the generator, which is a Python
process, is what is overloaded; a run in which that was not so says so in place of a verdict. Peers are not driven:
they serve more than a third of what this generator can send.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import json
import resource
import select
import signal
import socket
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from gatebench import facts
from gatebench.processes import LOAD_CORE, PROXY_CORE, BenchError, Child, cpu_seconds, free_ports, pin_threads
from gatebench.proxies import worker_pids

PATIENCE_S = 1.0
"""What comes later than this after it was due has failed."""
BIN_S = 0.1
BODY = b"x" * 64
ANSWER = b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%b" % (len(BODY), BODY)
REQUEST = b"GET /loaded HTTP/1.1\r\nhost: bench.example\r\n\r\n"
CLOSED_CONNECTIONS = 64
LEAST_PACE, LEAST_BUSY = 0.95, 0.9
"""Shares of what was due that the generator sent, and of a core that the worker used; with less, the run is flawed."""
GOODPUT, RECOVERY_S = 0.8, 5.0
"""What must be reached: share of the capacity, and seconds after the overload."""

MANIFESTS = """\
apiVersion: router.datum.net/v1alpha1
kind: VPCService
metadata: {{name: bench}}
spec:
  protocol: HTTP
  port: {port}
  endpoints: [{{address: 127.0.0.1}}]
  circuitBreaker: {{maxConnections: 50000, maxPendingRequests: 50000, maxParallelRequests: 50000}}
---
apiVersion: router.datum.net/v1alpha1
kind: VPCRoute
metadata: {{name: bench}}
spec:
  match: {{pathPrefix: /}}
  destinations: [{{vpcServiceRef: {{name: bench}}}}]
  timeoutSeconds: 0
  sessionAffinity: {{}}
  filters:
    - type: RequestHeaderModifier
      requestHeaderModifier: {{set: [{headers}]}}
    - type: ResponseHeaderModifier
      responseHeaderModifier: {{set: [{headers}]}}
"""


@dataclass(frozen=True, kw_only=True)
class Load:
    """What came of one stretch of the open loop; rates are per second, times seconds."""

    offered: float
    sent_share: float
    served: float
    refused: float
    failed: float
    p50_s: float
    p99_s: float


@dataclass(frozen=True, kw_only=True)
class Result:
    """One run.

    Attributes:
        busy: Share of a core that the worker used while its capacity was measured.
        recovered_s: From the end of the overload until a second began in which everything was served; None: never.
    """

    shedding: bool
    capacity: float
    busy: float
    before: Load
    overload: Load
    recovered_s: float | None

    @property
    def flaw(self) -> str:
        """Return why the run says nothing about the gateway; empty if it does."""
        if self.busy < LEAST_BUSY:
            return f"the worker was busy for {self.busy:.0%} of the time only: it was not the bottleneck"
        if self.overload.sent_share < LEAST_PACE:
            return f"the generator sent {self.overload.sent_share:.0%} of what was due"
        return ""


class Connection:
    """One client connection; `due_at` of the request under way, None if there is none."""

    __slots__ = ("data", "due_at", "sock")

    def __init__(self, port: int) -> None:
        self.sock = socket.create_connection(("127.0.0.1", port), timeout=10)
        self.sock.setblocking(False)
        self.due_at: float | None = None
        self.data = b""


class Generator:
    """Sends requests and notes what becomes of them, by when they were due."""

    def __init__(self, port: int, connections: int) -> None:
        self._port = port
        self._epoll = select.epoll()
        self._by_fd: dict[int, Connection] = {}
        self._free: collections.deque[Connection] = collections.deque()
        self.outcomes: list[tuple[float, int, float]] = []  # due at, status (0: none), seconds from then to the answer
        for _ in range(connections):
            self._open()

    def _open(self) -> None:
        connection = Connection(self._port)
        self._by_fd[connection.sock.fileno()] = connection
        self._epoll.register(connection.sock, select.EPOLLIN)
        self._free.append(connection)

    def close(self) -> None:
        for connection in self._by_fd.values():
            connection.sock.close()
        self._epoll.close()

    def _send(self, due_at: float) -> None:
        if not self._free:
            self.outcomes.append((due_at, 0, PATIENCE_S))
            return
        connection = self._free.popleft()
        connection.due_at = due_at
        with contextlib.suppress(OSError):  # the event that follows says so
            connection.sock.send(REQUEST)

    def _receive(self, wait_s: float) -> int:
        """Take what has come; return the number of whole answers."""
        count = 0
        for fd, _ in self._epoll.poll(wait_s, 512):
            connection = self._by_fd[fd]
            try:
                data = connection.sock.recv(65_536)
            except BlockingIOError:
                continue
            except OSError:
                data = b""
            if not data:
                del self._by_fd[fd]
                connection.sock.close()
                if connection.due_at is not None:
                    self.outcomes.append((connection.due_at, 0, PATIENCE_S))
                else:
                    self._free.remove(connection)
                self._open()
                continue
            connection.data += data
            head, mark, body = connection.data.partition(b"\r\n\r\n")
            if not mark or len(body) < _content_length(head):
                continue
            if connection.due_at is not None:
                self.outcomes.append((connection.due_at, int(head[9:12]), time.monotonic() - connection.due_at))
            connection.due_at, connection.data = None, b""
            self._free.append(connection)
            count += 1
        return count

    def closed_loop(self, seconds: float) -> float:
        """Keep every connection busy; return the answers a second."""
        ends_at = time.monotonic() + seconds
        count = 0
        while (now := time.monotonic()) < ends_at:
            while self._free:
                self._send(now)
            count += self._receive(0.01)
        while any(connection.due_at is not None for connection in self._by_fd.values()):
            self._receive(0.01)
        return count / seconds

    def open_loop(self, rate: float, seconds: float) -> tuple[float, int]:
        """Send `rate` requests a second, evenly; return when it began and how many were sent in time."""
        began_at = now = time.monotonic()
        sent = 0
        while now < began_at + seconds:
            due = int((now - began_at) * rate)
            for number in range(sent, min(due, sent + 256)):  # others' answers are not to wait for a backlog of ours
                self._send(began_at + number / rate)
            sent = max(sent, min(due, sent + 256))
            self._receive(0.0 if sent < due else 0.0005)
            now = time.monotonic()
        return began_at, sent

    def settle(self) -> None:
        """Wait for answers that could still come in time."""
        ends_at = time.monotonic() + PATIENCE_S
        while time.monotonic() < ends_at:
            self._receive(0.01)


def _content_length(head: bytes) -> int:
    at = head.lower().find(b"content-length:")
    return int(head[at + 15 :].split(b"\r\n", 1)[0]) if at >= 0 else 0


def summed(outcomes: list[tuple[float, int, float]], since: float, until: float, rate: float, sent: int) -> Load:
    """Return what came of requests that were due in a stretch of time."""
    mine = [outcome for outcome in outcomes if since <= outcome[0] < until]
    span = until - since
    served = sorted(took for _, status, took in mine if 200 <= status < 300)
    in_time = sum(took <= PATIENCE_S for took in served)
    refused = sum(status == 503 for _, status, _ in mine)
    return Load(
        offered=rate,
        sent_share=sent / (rate * span),
        served=in_time / span,
        refused=refused / span,
        failed=rate - (in_time + refused) / span,
        p50_s=served[len(served) // 2] if served else 0.0,
        p99_s=served[len(served) * 99 // 100] if served else 0.0,
    )


def recovery(outcomes: list[tuple[float, int, float]], since: float, until: float) -> float | None:
    """Return the seconds until a second began in which all that was due was served in time; None: there was none."""
    bad = [
        due_at
        for due_at, status, took in outcomes
        if since <= due_at < until and not (200 <= status < 300 and took <= PATIENCE_S)
    ]
    last = max(bad, default=since)
    return last - since if last + 1.0 <= until else None


def run(options: argparse.Namespace, *, shedding: bool, upstream_port: int, scratch: Path) -> Result:
    """Measure one gateway."""
    port, admin = free_ports(2)
    directory = scratch / f"shedding-{shedding}"
    source = directory / "manifests"
    source.mkdir(parents=True)
    headers = ", ".join(f'{{name: x-bench-{number}, value: "{number}"}}' for number in range(16))
    (source / "bench.yaml").write_text(MANIFESTS.format(port=upstream_port, headers=headers))
    config = f"max_connections_per_address=50000,shed_queue_age_s={0.1 if shedding else 0}"
    env = {"DATUM_ROUTER_LOG": "info,datum_router.access=warn", "DATUM_ROUTER_DATA_PLANE_CONFIG": config}
    command = [str(options.datum), "run", str(source), "--listen", f"127.0.0.1:{port}", "--admin", f"127.0.0.1:{admin}"]
    child = Child("datum", command, core=LOAD_CORE, log=directory / "log", env=env)
    try:
        child.wait_for_port(port)
        pids = worker_pids(child, admin, 1)
        for pid in pids:
            pin_threads(pid, PROXY_CORE)
        closed = Generator(port, CLOSED_CONNECTIONS)
        closed.closed_loop(min(1.0, options.quiet))
        used_s = cpu_seconds(pids)
        capacity = closed.closed_loop(options.quiet)
        busy = (cpu_seconds(pids) - used_s) / options.quiet
        closed.close()
        generator = Generator(port, options.connections)
        quiet, loud = capacity / 2, capacity * options.times
        before_at, before_sent = generator.open_loop(quiet, options.quiet)
        loud_at, loud_sent = generator.open_loop(loud, options.loud)
        after_at, _ = generator.open_loop(quiet, options.quiet + RECOVERY_S)
        generator.settle()
        ended_at = after_at + options.quiet + RECOVERY_S
        generator.close()
    finally:
        child.stop()
    outcomes = generator.outcomes
    return Result(
        shedding=shedding,
        capacity=capacity,
        busy=busy,
        before=summed(outcomes, before_at, loud_at, quiet, before_sent),
        overload=summed(outcomes, loud_at, after_at, loud, loud_sent),
        recovered_s=recovery(outcomes, after_at, ended_at),
    )


def upstream(port: int) -> None:
    """Answer every request with the same bytes, until ended."""
    listener = socket.create_server(("127.0.0.1", port), backlog=4096)
    listener.setblocking(False)
    epoll = select.epoll()
    epoll.register(listener, select.EPOLLIN)
    peers: dict[int, socket.socket] = {}
    while True:
        for fd, _ in epoll.poll():
            if fd == listener.fileno():
                peer = listener.accept()[0]
                peers[peer.fileno()] = peer
                epoll.register(peer, select.EPOLLIN)
                continue
            data = peers[fd].recv(65_536)
            if not data:
                peers.pop(fd).close()
            elif data.endswith(b"\r\n\r\n"):
                peers[fd].send(ANSWER)


def verdict(result: Result) -> str:
    """Return whether what must be reached was, or why that cannot be said."""
    if result.flaw:
        return f"**flawed**: {result.flaw}"
    is_good = result.overload.served >= GOODPUT * result.capacity
    is_over = result.recovered_s is not None and result.recovered_s <= RECOVERY_S
    return "reached" if is_good and is_over else "**not reached**"


def page(results: list[Result], options: argparse.Namespace, about: dict[str, str]) -> str:
    """Return the page of docs/benchmarks."""
    lines = [
        "# Overload",
        "",
        "<!-- Written by benchmarks/bench_overload.py; do not edit. -->",
        "",
        f"{options.times:g} times what one worker can serve, for {options.loud:g} s, from {options.connections} "
        "connections; then half of it. Served",
        f"means 2xx within {PATIENCE_S:g} s of when the request was due. To be reached: {GOODPUT:.0%} of the capacity, "
        f"and everything served again after {RECOVERY_S:g} s.",
        "",
        "| shedding | capacity /s | offered /s | served /s | of capacity | refused /s | failed /s | p50 | p99 "
        "| p99 before | recovered after | |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for one in results:
        load = one.overload
        after = "never" if one.recovered_s is None else f"{one.recovered_s:.1f} s"
        lines.append(
            f"| {'on' if one.shedding else 'off'} | {one.capacity:.0f} | {load.offered:.0f} | {load.served:.0f} "
            f"| {load.served / one.capacity:.0%} | {load.refused:.0f} | {load.failed:.0f} | {load.p50_s * 1000:.0f} ms "
            f"| {load.p99_s * 1000:.0f} ms | {one.before.p99_s * 1000:.1f} ms | {after} | {verdict(one)} |"
        )
    lines += ["", "Latencies are those of requests that were let in and answered.", ""]
    lines += [f"- {name}: {value}" for name, value in about.items()]
    return "\n".join(lines) + "\n"


def main() -> int:
    """Run it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--loud", type=float, default=60.0, metavar="S", help="seconds of overload")
    parser.add_argument("--quiet", type=float, default=5.0, metavar="S", help="seconds of each other stretch")
    parser.add_argument("--times", type=float, default=3.0, help="load, in units of the capacity")
    parser.add_argument("--connections", type=int, default=4000)
    parser.add_argument("--datum", type=Path, default=Path(sys.executable).parent / "datum-router", help="the command")
    parser.add_argument("--out", type=Path, help="folder for overload.md and overload.json")
    parser.add_argument("--upstream", type=int, metavar="PORT", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.upstream:
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
        upstream(options.upstream)
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    (upstream_port,) = free_ports(1)
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        command = [sys.executable, __file__, "--upstream", str(upstream_port)]
        backend = Child("upstream", command, core=LOAD_CORE, log=scratch / "upstream.log")
        try:
            backend.wait_for_port(upstream_port)
            results = [
                run(options, shedding=shedding, upstream_port=upstream_port, scratch=scratch)
                for shedding in (True, False)
            ]
        except BenchError as error:
            print(f"bench_overload: {error}", file=sys.stderr)
            return 1
        finally:
            backend.stop()
    about = facts.machine()
    text = page(results, options, about)
    print(text)
    if options.out is not None:
        (options.out / "overload.md").write_text(text)
        document = {"facts": about, "results": [asdict(one) for one in results]}
        (options.out / "overload.json").write_text(json.dumps(document, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
