"""Three places and a gateway that knows its own: what fails is left bit by bit, and nobody goes where they must not."""

from __future__ import annotations

import json
import math
import re
import socket
import urllib.request
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.e2e
SOON_S = 10.0
IAD, ORD, FRA = b"IAD", b"ORD", b"FRA"
NOBODY, ELSEWHERE = b"no_healthy_endpoint", b"locality_required"

LOCATION = """\
apiVersion: networking.datumapis.com/v1alpha
kind: Location
metadata: {{name: {name}}}
spec:
  locationClassName: self-managed
  topology: {{topology.datum.net/city-code: {city}}}
  coordinates: {{latitude: "{latitude}", longitude: "{longitude}"}}
  provider: {{}}
---
"""
LOCATIONS = "".join(
    LOCATION.format(name=city.lower(), city=city, latitude=latitude, longitude=longitude)
    for city, latitude, longitude in (("IAD", 38.94, -77.46), ("ORD", 41.98, -87.9), ("FRA", 50.03, 8.57))
)
ROUTE = """\
apiVersion: router.datum.net/v1alpha1
kind: VPCRoute
metadata: {name: shop}
spec:
  destinations: [{vpcServiceRef: {name: shop}}]
  retries: {maxRetries: 3}
  locality: {mode: Nearest, allowedLocations: [IAD, ORD]}
---
apiVersion: router.datum.net/v1alpha1
kind: VPCService
metadata: {name: shop}
spec:
  protocol: HTTP
  port: 80
  healthCheck:
    {type: TCP, intervalSeconds: 1, timeoutSeconds: 1, unhealthyThreshold: 1, healthyThreshold: 1,
     panicThresholdPercent: 0}
  endpoints:
"""


def test_places_fail_one_after_the_other_and_return(
    directory: Path, start_gateway: Any, start_backend: Any, kit: Any
) -> None:
    backends = {place: [start_backend(kit.answer(place)) for _ in range(2)] for place in (IAD, ORD, FRA)}
    endpoints = "".join(
        f"    - {{address: {item.host}, port: {item.port}, locationRef: {{name: {place.decode().lower()}}}}}\n"
        for place, items in backends.items()
        for item in items
    )
    (directory / "shop.yaml").write_text(LOCATIONS + ROUTE + endpoints)
    gateway = start_gateway(env={"DATUM_ROUTER_LOCATION": "name=iad,latitude=38.9,longitude=-77.5"})

    def answers(count: int = 60) -> Counter[tuple[int, bytes]]:
        return Counter(gateway.get("/") for _ in range(count))

    def scrape() -> str:
        with urllib.request.urlopen(f"{gateway.admin}/metrics", timeout=10) as page:
            return str(page.read(), "ascii")

    def spills() -> bool:
        found = re.search(r'^datum_router_spilling\{service="default/shop"\} ([0-9.]+)$', scrape(), re.M)
        return found is not None and float(found[1]) > 0

    assert set(answers()) == {(200, IAD)}
    assert not spills()

    backends[IAD][0].close()
    assert {status for status, _ in answers()} == {200}, "a retry elsewhere saves what the dead endpoint was asked"
    kit.eventually(spills, "half of IAD is down: 100 * 0.5 / 0.7 percent stay", SOON_S)
    found = answers(200)
    assert set(found) == {(200, IAD), (200, ORD)}
    assert found[200, IAD] > found[200, ORD]

    backends[IAD][1].close()
    kit.eventually(lambda: set(answers(20)) == {(200, ORD)}, "all of ORD", SOON_S)

    for item in backends[ORD]:
        item.close()
    kit.eventually(lambda: {status for status, _ in answers(20)} == {503}, "nobody is left who may be asked", SOON_S)
    assert FRA not in {body for _, body in answers(20)}

    for item in backends[IAD]:
        start_backend(kit.answer(IAD), item.host, item.port)
    kit.eventually(lambda: set(answers(20)) == {(200, IAD)}, "IAD is back", SOON_S)
    kit.eventually(lambda: not spills(), "no longer spilling", SOON_S)


WELL, SICK = b"200 OK", b"503 Service Unavailable"


class Moody:
    """A backend whose probes find it well or sick, as told; its requests are always answered, with its name."""

    def __init__(self, start_backend: Any, name: bytes) -> None:
        self.probe_status = WELL
        self._answer = b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%s" % (len(name), name)
        self.backend = start_backend(self._handle)

    def _handle(self, sock: socket.socket, _rest: bytes) -> None:
        is_probe = b" /healthz " in self.backend.heads[-1]
        sock.sendall(b"HTTP/1.1 %s\r\ncontent-length: 0\r\n\r\n" % self.probe_status if is_probe else self._answer)


WEIGHTED = {"mode": "Weighted", "weights": [{"place": "IAD", "weight": 1}, {"place": "ORD", "weight": 3}]}
CHECKS = {
    "type": "HTTP",
    "intervalSeconds": 1,
    "timeoutSeconds": 1,
    "unhealthyThreshold": 1,
    "healthyThreshold": 1,
    "panicThresholdPercent": 0,
}


def document(kind: str, name: str, spec: dict[str, Any]) -> str:
    """Write a manifest of ours; JSON is YAML, too."""
    made = {"apiVersion": "router.datum.net/v1alpha1", "kind": kind, "metadata": {"name": name}, "spec": spec}
    return json.dumps(made) + "\n---\n"


def service(name: str, *endpoints: dict[str, Any]) -> str:
    return document("VPCService", name, {"port": 80, "healthCheck": CHECKS, "endpoints": endpoints})


def endpoint(backend: Any, **more: Any) -> dict[str, Any]:
    return {"address": backend.host, "port": backend.port, **more}


@pytest.mark.parametrize("what", ["endpoints", "destinations"])
def test_a_lower_priority_takes_requests_only_while_probes_find_the_higher_one_sick(
    directory: Path, start_gateway: Any, start_backend: Any, kit: Any, what: str
) -> None:
    first, second = Moody(start_backend, b"first"), Moody(start_backend, b"second")
    # What comes first in the manifest is used second.
    order = ((second, "b", 1), (first, "a", 0))
    if what == "endpoints":
        text = service("shop", *(endpoint(one.backend, priority=priority) for one, _, priority in order))
        destinations = [{"vpcServiceRef": {"name": "shop"}}]
    else:
        text = "".join(service(name, endpoint(one.backend)) for one, name, _ in order)
        destinations = [{"vpcServiceRef": {"name": name}, "priority": priority} for _, name, priority in order]
    route = {"destinations": destinations, "retries": {"maxRetries": 0}}
    (directory / "shop.yaml").write_text(text + document("VPCRoute", "shop", route))
    gateway = start_gateway()

    def answers() -> set[tuple[int, bytes]]:
        found = (gateway.get("/") for _ in range(20))
        return {(status, body.partition(b":")[0]) for status, body in found}

    assert answers() == {(200, b"first")}
    first.probe_status = SICK
    kit.eventually(lambda: answers() == {(200, b"second")}, "the second takes all of it", SOON_S)
    second.probe_status = SICK
    kit.eventually(lambda: answers() == {(503, NOBODY)}, "nobody is left", SOON_S)
    first.probe_status = WELL
    kit.eventually(lambda: answers() == {(200, b"first")}, "the first is back", SOON_S)
    second.probe_status = WELL
    assert answers() == {(200, b"first")}


@pytest.mark.parametrize(
    ("locality", "shares", "shares_without_ours"),
    [
        pytest.param(
            {"mode": "PreferLocal", "failoverOrder": ["FRA"]}, {b"IAD": 1.0}, {b"FRA": 1.0}, id="PreferLocal, in order"
        ),
        pytest.param({"mode": "PreferLocal"}, {b"IAD": 1.0}, {b"ORD": 0.5, b"FRA": 0.5}, id="PreferLocal"),
        pytest.param({"mode": "RequireLocal"}, {b"IAD": 1.0}, {ELSEWHERE: 1.0}, id="RequireLocal"),
        # Half of what the places with weights have is left, of 70 % that would do.
        pytest.param(WEIGHTED, {b"IAD": 0.25, b"ORD": 0.75}, {b"ORD": 5 / 7, b"FRA": 2 / 7}, id="Weighted"),
        pytest.param(
            {**WEIGHTED, "spilloverPercent": 0},
            {b"IAD": 0.25, b"ORD": 0.75},
            {b"ORD": 1.0},
            id="Weighted, spilling only at the end",
        ),
        pytest.param(
            {"mode": "None"}, {b"IAD": 1 / 3, b"ORD": 1 / 3, b"FRA": 1 / 3}, {b"ORD": 0.5, b"FRA": 0.5}, id="None"
        ),
    ],
)
def test_a_mode_says_how_requests_are_shared_and_who_stands_in_for_the_gateways_own_place(
    directory: Path,
    start_gateway: Any,
    start_backend: Any,
    kit: Any,
    locality: dict[str, Any],
    shares: dict[bytes, float],
    shares_without_ours: dict[bytes, float],
) -> None:
    places = {place: Moody(start_backend, place) for place in (FRA, ORD, IAD)}
    members = [endpoint(one.backend, locationRef={"name": place.decode().lower()}) for place, one in places.items()]
    route = {"destinations": [{"vpcServiceRef": {"name": "shop"}}], "locality": locality}
    (directory / "shop.yaml").write_text(LOCATIONS + service("shop", *members) + document("VPCRoute", "shop", route))
    gateway = start_gateway(env={"DATUM_ROUTER_LOCATION": "name=iad,latitude=38.9,longitude=-77.5"})

    def usable() -> int:
        return sum(item["is_usable"] for item in gateway.page("/health")["endpoints"])

    def is_shared(wanted: dict[bytes, float]) -> bool:
        count = 200
        found = Counter(gateway.get("/")[1].partition(b":")[0] for _ in range(count))
        return set(found) == set(wanted) and all(
            abs(found[who] - count * share) <= 6 * math.sqrt(count * share * (1 - share))
            for who, share in wanted.items()
        )

    assert is_shared(shares)
    places[IAD].probe_status = SICK
    kit.eventually(lambda: usable() == 2, "ours is out", SOON_S)
    kit.eventually(lambda: is_shared(shares_without_ours), f"others stand in: {shares_without_ours}", SOON_S)
