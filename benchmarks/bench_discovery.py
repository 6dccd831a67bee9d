"""Discovery at scale, simulated: no sockets, virtual time.

    python benchmarks/bench_discovery.py [--clusters 200] [--services 2000] [--endpoints 100000] [--seconds 60]

Each virtual second one endpoint in a hundred changes: it moves to another address or changes its readiness; now and
then a cluster goes away and comes back. What the daemon's book asks to be written is written to an API in memory, whose
events reach the daemon and each gateway late, each at its own pace. At the end every gateway must know exactly what
clusters export. Reported: real seconds, and work beside the change that caused it.
"""

from __future__ import annotations

import argparse
import json
import random
import resource
import time
from collections import deque

import msgspec

from datum_router.discovery.book import Book
from datum_router.discovery.export import Export, Import, Name
from datum_router.discovery.plan import Put
from datum_router.discovery.slices import Slice, endpoints_of
from datum_router.discovery.standing import Phase
from datum_router.model.endpoint import Endpoint, make_endpoint, make_locality

START_AT = 1_700_000_000.0
GATEWAYS = 3
MAX_DELAY_S = 3
"""Events reach the daemon and gateways up to so many virtual seconds late."""
OUTAGE_S = 5
OUTAGE_EVERY_S = 8


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """What one simulation did; seconds are real ones, of the daemon's own work."""

    clusters: int
    services: int
    endpoints: int
    slices: int
    virtual_seconds: int
    load_seconds: float
    churn_seconds: float
    seconds_per_virtual_second: float
    endpoint_changes: int
    outages: int
    slices_written: int
    parts_planned: int
    endpoints_visited: int
    visited_per_change: float
    slices_written_per_change: float
    writes_at_rest: int
    gateways_converged: int
    peak_rss_mb: float


class Listener:
    """Somebody who watches the API, late but in order."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.queue: deque[tuple[int, str, Slice | None, str]] = deque()
        self.slices: dict[str, Slice] = {}

    def tell(self, second: int, name: str, one: Slice | None, version: str) -> None:
        due = max(second + self.rng.randint(0, MAX_DELAY_S), self.queue[-1][0] if self.queue else 0)
        self.queue.append((due, name, one, version))

    def hear(self, second: int) -> list[tuple[str, Slice | None, str]]:
        found = []
        while self.queue and self.queue[0][0] <= second:
            _, name, one, version = self.queue.popleft()
            if one is None:
                self.slices.pop(name, None)
            else:
                self.slices[name] = one
            found.append((name, one, version))
        return found


class Simulation:
    """Clusters, a daemon's book, an API and gateways."""

    def __init__(self, *, clusters: int, services: int, endpoints: int, seed: int = 1) -> None:
        self.rng = random.Random(seed)
        self.clusters = [f"cluster-{number:03}" for number in range(clusters)]
        self.names: list[Name] = [(f"team-{number % 20}", f"service-{number:04}") for number in range(services)]
        self.places = {
            one: make_locality({"topology.datum.net/city-code": f"C{index % 40}"}, location=f"loc-{index % 40}")
            for index, one in enumerate(self.clusters)
        }
        self.exports: dict[str, dict[Name, list[Endpoint]]] = {one: {} for one in self.clusters}
        self.homes: list[tuple[str, Name]] = []
        self.number = 0
        for index in range(endpoints):
            name = self.names[index % services]
            # Five clusters a service, the same ones each time.
            cluster = self.clusters[(index % services * 7 + index // services % 5 * 31) % clusters]
            members = self.exports[cluster].setdefault(name, [])
            if not members:
                self.homes.append((cluster, name))
            members.append(self.fresh(cluster))
        self.endpoints = endpoints
        self.book = Book()
        self.api: dict[str, tuple[Slice, str]] = {}
        self.version = 0
        self.daemon = Listener(random.Random(seed + 1))
        self.gateways = [Listener(random.Random(seed + 2 + index)) for index in range(GATEWAYS)]
        self.away: dict[str, int] = {}
        self.written = self.changed = self.outages = 0
        self.spent_s = 0.0
        self.second = 0

    def fresh(self, cluster: str, *, is_serving: bool = True) -> Endpoint:
        self.number += 1
        address = f"10.{self.number >> 16 & 255}.{self.number >> 8 & 255}.{self.number & 255}"
        where = self.places[cluster]
        vpc = f"net/{cluster}" if self.number >> 24 == 0 else f"net/{cluster}-{self.number >> 24}"
        return make_endpoint(address, 8080, locality=where, origin="attachment", is_serving=is_serving, vpc=vpc)

    def export(self, cluster: str, name: Name) -> Export:
        return Export(protocol="HTTP", port=80, endpoints=tuple(self.exports[cluster][name]))

    def load(self) -> float:
        """Have the daemon learn of everything and publish it; return the seconds that it took."""
        for index, name in enumerate(self.names):
            self.book.put_import(name, Import(uid=f"uid-{index}", protocol="HTTP", port=80))
        for cluster in self.clusters:
            whole = {name: self.export(cluster, name) for name in self.exports[cluster]}
            started = time.perf_counter()
            self.book.put_exports(cluster, whole, is_whole=True)
            self.book.put_phase(cluster, Phase.READY, now=START_AT)
            self.spent_s += time.perf_counter() - started
        self.write()
        return self.spent_s

    def tick(self, churn: float) -> None:
        """Let a virtual second pass."""
        self.second += 1
        now = START_AT + self.second
        touched: dict[str, set[Name]] = {}
        for _ in range(int(self.endpoints * churn)):
            cluster, name = self.rng.choice(self.homes)
            members = self.exports[cluster][name]
            index = self.rng.randrange(len(members))
            if self.rng.random() < 0.5:
                members[index] = self.fresh(cluster)
            else:
                members[index] = msgspec.structs.replace(members[index], is_serving=not members[index].is_serving)
            touched.setdefault(cluster, set()).add(name)
            self.changed += 1
        if churn and self.second % OUTAGE_EVERY_S == 0:
            self.away.setdefault(self.rng.choice(self.clusters), self.second + OUTAGE_S)
        back = [cluster for cluster, until in self.away.items() if until <= self.second]
        started = time.perf_counter()
        for cluster in back:  # everything is listed again
            del self.away[cluster]
            whole = {name: self.export(cluster, name) for name in self.exports[cluster]}
            self.book.put_exports(cluster, whole, is_whole=True)
            self.book.put_phase(cluster, Phase.READY, now=now)
        for cluster in self.away:
            if self.book.put_phase(cluster, Phase.UNREACHABLE, "no answer", now=now).since_at == now:
                self.outages += 1
        for cluster, names in touched.items():
            if cluster not in self.away:
                self.book.put_exports(cluster, {name: self.export(cluster, name) for name in names})
        for _, one, version in self.daemon.hear(self.second):
            if one is not None:
                self.book.observe(one, version)
        self.book.expire(now=now)
        self.spent_s += time.perf_counter() - started
        self.write()
        for gateway in self.gateways:
            gateway.hear(self.second)

    def write(self) -> None:
        """Write all that the book asks for."""
        while not self.book.is_settled:
            started = time.perf_counter()
            taken = self.book.take()
            self.spent_s += time.perf_counter() - started
            for _, changes in taken:
                for change in changes:
                    self.written += 1
                    self.version += 1
                    version = str(self.version)
                    if isinstance(change, Put):
                        one = change.slice
                        self.api[one.name] = (one, version)
                        self.book.written(one, version)
                        self.tell(one.name, one, version)
                    else:
                        del self.api[change.name]
                        self.book.removed(change.namespace, change.name)
                        self.tell(change.name, None, version)

    def tell(self, name: str, one: Slice | None, version: str) -> None:
        for listener in (self.daemon, *self.gateways):
            listener.tell(self.second, name, one, version)

    def converged(self) -> int:
        """Return how many gateways know exactly what is exported."""
        expected = {
            (name, cluster, one.key, one.is_serving)
            for cluster, services in self.exports.items()
            for name, members in services.items()
            for one in members
        }
        count = 0
        for gateway in self.gateways:
            known = {
                ((one.namespace, one.service), one.cluster, endpoint.key, endpoint.is_serving)
                for one in gateway.slices.values()
                for endpoint in endpoints_of(one)
            }
            count += known == expected
        return count


def simulate(
    *, clusters: int = 200, services: int = 2000, endpoints: int = 100_000, seconds: int = 60, churn: float = 0.01
) -> Report:
    """Run one simulation and return its report."""
    world = Simulation(clusters=clusters, services=services, endpoints=endpoints)
    load_s = world.load()
    planned, visited = world.book.counts.planned, world.book.counts.visited
    world.spent_s, world.written = 0.0, 0
    for _ in range(seconds):
        world.tick(churn)
    churn_s, written = world.spent_s, world.written
    planned, visited = world.book.counts.planned - planned, world.book.counts.visited - visited
    for _ in range(OUTAGE_S + 2 * MAX_DELAY_S + 2):
        world.tick(0.0)
    before = world.written
    world.book.touch_everything()  # what a resync does
    world.write()
    changed = max(world.changed, 1)
    return Report(
        clusters=clusters,
        services=services,
        endpoints=endpoints,
        slices=len(world.api),
        virtual_seconds=seconds,
        load_seconds=round(load_s, 3),
        churn_seconds=round(churn_s, 3),
        seconds_per_virtual_second=round(churn_s / max(seconds, 1), 4),
        endpoint_changes=world.changed,
        outages=world.outages,
        slices_written=written,
        parts_planned=planned,
        endpoints_visited=visited,
        visited_per_change=round(visited / changed, 1),
        slices_written_per_change=round(written / changed, 3),
        writes_at_rest=world.written - before,
        gateways_converged=world.converged(),
        peak_rss_mb=round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1),
    )


def main() -> None:
    """Run and print the report as JSON."""
    parser = argparse.ArgumentParser(description="Simulate discovery at scale.")
    parser.add_argument("--clusters", type=int, default=200)
    parser.add_argument("--services", type=int, default=2000)
    parser.add_argument("--endpoints", type=int, default=100_000)
    parser.add_argument("--seconds", type=int, default=60)
    given = parser.parse_args()
    report = simulate(
        clusters=given.clusters, services=given.services, endpoints=given.endpoints, seconds=given.seconds
    )
    print(json.dumps(msgspec.to_builtins(report), indent=2))
    if report.gateways_converged != GATEWAYS or report.writes_at_rest:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
