"""A gateway and a controller against a real API server, at scale: start, edits under load, outage, rest.

Prints each figure as it is found, and writes all of them with the machine's facts as JSON and Markdown.
`make bench-cluster` runs it; BENCH="--routes 1000 --outage 10 --rest 10" makes a short one.
"""

from __future__ import annotations

import argparse
import collections
import http.client
import json
import os
import platform
import random
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(REPOSITORY))

from tests.cluster.bulk import Connection, create_all, path_of, route, service  # noqa: E402
from tests.cluster.control_plane import CONTROLLER, GATEWAY, ControlPlane, running  # noqa: E402
from tests.cluster.load import running_load  # noqa: E402
from tests.cluster.stage import Stage, install  # noqa: E402
from tests.conftest import Backend, answer, eventually  # noqa: E402
from tests.processes import ServiceProcess  # noqa: E402

NAMESPACE = "bench"
MERGE = "application/merge-patch+json"
PATIENCE_S = 120.0


class Figures:
    """What was measured, told as it is found."""

    def __init__(self) -> None:
        self.values: dict[str, object] = {}

    def tell(self, name: str, value: object, unit: str = "", *, aim: str = "") -> None:
        """Note one figure."""
        shown = f"{value:.3f}" if isinstance(value, float) else str(value)
        self.values[name] = {"value": value, "unit": unit, "aim": aim}
        print(f"{name}: {shown} {unit}".rstrip() + (f"   (aim: {aim})" if aim else ""), flush=True)


def percentile(values: Sequence[float], share: float) -> float:
    """Return a percentile by nearest rank."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, max(0, -(-int(share * len(ordered) * 100) // 100) - 1))]


def rss_mib(pid: int) -> float:
    """Return a process's resident memory in MiB."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1024
    return 0.0


def rss_peak_mib(pid: int) -> float:
    """Return the highest resident memory a process has had, in MiB."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) / 1024
    return 0.0


def page(process: ServiceProcess, path: str) -> Mapping[str, object]:
    """Return an admin page."""
    found = process.page(path)
    assert isinstance(found, Mapping)
    return found


def audit(plane: ControlPlane, since: float) -> list[dict[str, object]]:
    """Return what the API server did for our service accounts since then (Unix seconds), finished requests only."""
    assert plane.audit_log is not None
    found = []
    for line in plane.audit_log.read_text().splitlines():
        one = json.loads(line)
        if one["stage"] != "ResponseComplete" or one["user"]["username"] not in (CONTROLLER, GATEWAY):
            continue
        stamp = one["requestReceivedTimestamp"]
        moment = time.strptime(stamp[:19], "%Y-%m-%dT%H:%M:%S")
        if time.mktime(moment) - time.timezone + float("0" + stamp[19:-1]) >= since:
            found.append(one)
    return found


def writes_of(entries: Sequence[Mapping[str, object]]) -> list[str]:
    """Return what was written, as `user verb resource/subresource name`."""
    found = []
    for one in entries:
        if one["verb"] in ("create", "update", "patch", "delete"):
            target, user = one["objectRef"], one["user"]
            assert isinstance(target, Mapping)
            assert isinstance(user, Mapping)
            resource = "/".join(str(target[key]) for key in ("resource", "subresource") if key in target)
            account = str(user["username"]).rpartition(":")[2]
            found.append(f"{account} {one['verb']} {resource} {target.get('name', '')}")
    return found


class Bench:
    """One run."""

    def __init__(self, options: argparse.Namespace, plane: ControlPlane, home: Path, figures: Figures) -> None:
        self.options = options
        self.plane = plane
        self.figures = figures
        self.backend = Backend(answer(b"ok"))
        self.stage = Stage(plane, home)
        self.connection = Connection(plane)

    def stop(self) -> None:
        """End what was started."""
        self.stage.stop()
        self.backend.close()

    def prepare(self) -> None:
        """Fill the API server."""
        routes, services = self.options.routes, self.options.services
        install(self.plane)
        self.plane.make_namespace(NAMESPACE)
        started = time.monotonic()
        create_all(
            self.plane,
            [
                *(service(index, NAMESPACE, address="127.0.0.1", port=self.backend.port) for index in range(services)),
                *(route(index, NAMESPACE, index % services) for index in range(routes)),
            ],
        )
        print(f"{routes} routes and {services} services made in {time.monotonic() - started:.1f} s", flush=True)

    def start_gateway(self) -> ServiceProcess:
        """Start a gateway on a free port."""
        return self.stage.start("datum_router_gateway", GATEWAY, "gateway-0", {"DATUM_ROUTER_LISTEN": "127.0.0.1:0"})

    def start_controller(self, name: str = "controller-0") -> ServiceProcess:
        """Start a controller."""
        return self.stage.start("datum_router_controller", CONTROLLER, name, {})

    def measure_start(self) -> None:
        """Both at once, from nothing to all in force."""
        last = f"/r/{self.options.routes - 1}/x"
        started = time.monotonic()
        self.gateway = self.start_gateway()
        self.controller = self.start_controller()
        self.gateway.wait_ready(PATIENCE_S)
        assert self.gateway.get(last)[0] == 200, self.gateway.get(last)
        gateway_s = time.monotonic() - started
        self.controller.wait_ready(PATIENCE_S)
        controller_s = time.monotonic() - started
        tell = self.figures.tell
        tell("gateway: start to all in force", gateway_s, "s", aim="at most 10 s")
        tell("controller: start to synced and compiled", controller_s, "s", aim="at most 10 s")
        for name, process in (("gateway", self.gateway), ("controller", self.controller)):
            shares = page(process, "/stats").get("start", {})
            assert isinstance(shares, Mapping)
            for share, seconds in shares.items():
                tell(f"{name}: {share}", seconds, "s")

    def settle(self) -> None:
        """Wait until the controller has written what it has to."""
        started = time.monotonic()
        quiet_s = 10.0
        last, last_at = -1, started
        while time.monotonic() - started < self.options.settle:
            count = sum(" leases " not in one for one in writes_of(audit(self.plane, 0.0)))
            if count != last:
                last, last_at = count, time.monotonic()
            elif time.monotonic() - last_at > quiet_s:
                break
            time.sleep(1.0)
        self.figures.tell("controller: first statuses of all objects written after", last_at - started, "s")
        self.figures.tell("controller: RSS", rss_mib(self.controller.pid), "MiB", aim="below 300 MiB")
        self.figures.tell("controller: peak RSS", rss_peak_mib(self.controller.pid), "MiB", aim="below 300 MiB")

    def measure_rest(self) -> None:
        """Count what is written while nothing changes."""
        since = time.time()
        time.sleep(self.options.rest)
        found = writes_of(audit(self.plane, since))
        leases = [one for one in found if " leases " in one]
        others = [one for one in found if " leases " not in one]
        self.figures.tell(f"writes at rest in {self.options.rest:g} s, leases aside", len(others), aim="0")
        self.figures.tell(f"lease renewals at rest in {self.options.rest:g} s", len(leases))
        for one in sorted(set(others))[:10]:
            print(f"  {one}")

    def measure_edits(self) -> None:
        """Edits under load: from the API's answer to the first request that shows it."""
        rng = random.Random(1)
        waits: list[float] = []
        port = self.gateway.port()
        paths = [f"/r/{index}/x" for index in rng.sample(range(self.options.routes), min(200, self.options.routes))]
        eye = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
        with running_load(port, paths, rate=self.options.rate) as load:
            for number in range(self.options.edits):
                index = rng.randrange(self.options.routes)
                mark = f"edit-{number}"
                changed = route(index, NAMESPACE, index % self.options.services, answer=mark)
                spec = {"spec": changed["spec"]}
                status, body = self.connection.request("PATCH", path_of(changed), spec, content_type=MERGE)
                assert status == 200, body
                answered = time.monotonic()
                while True:
                    eye.request("GET", f"/r/{index}/x", headers={"Host": "localhost"})
                    got = eye.getresponse()
                    got.read()
                    if got.headers.get("x-edit") == mark:
                        break
                    if time.monotonic() - answered > PATIENCE_S:
                        raise AssertionError(f"edit {number} of route {index} was never seen")
                    time.sleep(0.001)
                waits.append(time.monotonic() - answered)
                time.sleep(rng.uniform(0.05, 0.25))
        tell = self.figures.tell
        tell("edits", len(waits), "", aim="100")
        tell("edit to in force: median", statistics.median(waits) * 1000, "ms")
        tell("edit to in force: p99", percentile(waits, 0.99) * 1000, "ms", aim="at most 250 ms")
        tell("edit to in force: worst", max(waits) * 1000, "ms")
        tell("edits: requests under load", load.total)
        tell("edits: answers that were not 2xx", load.bad, aim="0")

    def measure_adding(self) -> None:
        """Add routes one by one under load on the others."""
        first, count = self.options.routes, self.options.added
        paths = [f"/r/{index}/x" for index in range(0, self.options.routes, max(1, self.options.routes // 200))]
        started = time.monotonic()
        with running_load(self.gateway.port(), paths, rate=self.options.rate) as load:
            for index in range(first, first + count):
                raw = route(index, NAMESPACE, index % self.options.services)
                status, body = self.connection.request("POST", path_of(raw).rpartition("/")[0], raw)
                assert status == 201, body
            added = time.monotonic()
            last = f"/r/{first + count - 1}/x"
            eventually(lambda: self.gateway.get(last)[0] == 200, "the last of the added routes", PATIENCE_S)
            caught_up = time.monotonic()
        tell = self.figures.tell
        tell("routes added one by one", count)
        tell("adding took", added - started, "s")
        tell("last one in force after its creation", caught_up - added, "s")
        tell("adding: requests under load", load.total)
        tell("adding: answers of others that were not 2xx", load.bad, aim="0")
        tell("adding: p99 of an answer", percentile(load.waits, 0.99) * 1000, "ms")

    def measure_outage(self) -> None:
        """Stop the API server under load; after its return, catch up with an edit."""
        paths = [f"/r/{index}/x" for index in range(0, self.options.routes, max(1, self.options.routes // 200))]
        with running_load(self.gateway.port(), paths, rate=self.options.rate) as load:
            self.plane.stop_api()
            time.sleep(self.options.outage)
            self.plane.start_api()
            self.connection = Connection(self.plane)
            back, back_wall = time.monotonic(), time.time()
            changed = route(0, NAMESPACE, 0, answer="after the outage")
            body = {"spec": changed["spec"]}
            status, text = self.connection.request("PATCH", path_of(changed), body, content_type=MERGE)
            assert status == 200, text

            def is_there() -> bool:
                eye = http.client.HTTPConnection("127.0.0.1", self.gateway.port(), timeout=10)
                eye.request("GET", "/r/0/x", headers={"Host": "localhost"})
                got = eye.getresponse()
                got.read()
                eye.close()
                return got.headers.get("x-edit") == "after the outage"

            eventually(is_there, "the edit after the outage", PATIENCE_S)
            caught_up = time.monotonic()
            time.sleep(20)
        lists = [one for one in audit(self.plane, back_wall - 5) if one["verb"] == "list"]
        tell = self.figures.tell
        tell("outage", self.options.outage, "s")
        tell("outage: requests", load.total)
        tell("outage: failed requests", load.bad, aim="0")
        tell("outage: edit in force after the API is back", caught_up - back, "s")
        first_pages = collections.Counter(
            f"{entry['user']['username']} {entry['objectRef']['resource']}"  # type: ignore[index]
            for entry in lists
            if entry["responseStatus"]["code"] == 200 and "continue=" not in str(entry["requestURI"])  # type: ignore[index]
        )
        tell(
            "outage: lists in the 20 s after it, of the process and kind with most", max(first_pages.values()), aim="1"
        )

    def run(self) -> None:
        """Measure everything."""
        steps: list[Callable[[], None]] = [
            self.prepare,
            self.measure_start,
            self.settle,
            self.measure_rest,
            self.measure_edits,
            self.measure_adding,
            self.measure_outage,
        ]
        for step in steps:
            print(f"-- {step.__name__.removeprefix('measure_')}", flush=True)
            step()
        self.figures.tell("gateway: RSS of the supervisor", rss_mib(self.gateway.pid), "MiB")
        self.figures.tell(
            "controller: peak RSS at the end", rss_peak_mib(self.controller.pid), "MiB", aim="below 300 MiB"
        )


def report(figures: Figures, options: argparse.Namespace) -> str:
    """Return the figures as Markdown."""
    machine = f"{platform.processor() or platform.machine()}, Linux {platform.release()}"
    lines = [
        "# A gateway and a controller against a real API server",
        "",
        f"{options.routes} VPCRoutes and {options.services} VPCServices in etcd and kube-apiserver; everything, the "
        f"load generator included, on {os.cpu_count()} cores of one machine ({machine}, Python "
        f"{platform.python_version()}). `make bench-cluster` measures it anew.",
        "",
        "| what | figure | aim |",
        "|---|---|---|",
    ]
    for name, found in figures.values.items():
        assert isinstance(found, Mapping)
        value = found["value"]
        shown = f"{value:.2f}" if isinstance(value, float) else str(value)
        lines.append(f"| {name} | {shown} {found['unit']} | {found['aim']} |")
    return "\n".join(lines) + "\n"


def main(arguments: Sequence[str]) -> int:
    """Run with these arguments; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--routes", type=int, default=10_000)
    parser.add_argument("--services", type=int, default=2_000)
    parser.add_argument("--edits", type=int, default=100)
    parser.add_argument("--added", type=int, default=3_000)
    parser.add_argument("--rate", type=float, default=200.0, help="requests a second of the load")
    parser.add_argument("--outage", type=float, default=60.0, help="seconds")
    parser.add_argument("--rest", type=float, default=60.0, help="seconds")
    parser.add_argument("--settle", type=float, default=600.0, help="longest wait for the first statuses, seconds")
    parser.add_argument("--out", type=Path, help="directory for cluster.json and cluster.md")
    options = parser.parse_args(arguments)
    home = Path(tempfile.mkdtemp(prefix="datum-bench-"))
    figures = Figures()
    try:
        with running(home / "plane", audit=True) as plane:
            bench = Bench(options, plane, home, figures)
            try:
                bench.run()
            finally:
                bench.stop()
    finally:
        if options.out is not None:
            options.out.mkdir(parents=True, exist_ok=True)
            (options.out / "cluster.json").write_text(json.dumps(figures.values, indent=2) + "\n")
            (options.out / "cluster.md").write_text(report(figures, options))
        if os.environ.get("KEEP_LOGS"):
            print(f"logs in {home}")
        else:
            shutil.rmtree(home, ignore_errors=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
