"""Three places and a gateway that knows its own: what fails is left bit by bit, and nobody goes where they must not."""

from __future__ import annotations

import re
import urllib.request
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.e2e
SOON_S = 10.0
IAD, ORD, FRA = b"IAD", b"ORD", b"FRA"

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
