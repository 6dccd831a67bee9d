"""From manifests to what clients meet: rate limits through a gateway with two workers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.e2e

INGRESS = """
---
apiVersion: router.datum.net/v1alpha1
kind: VPCIngress
metadata: {name: front}
spec:
  host: limited.test
  listeners: [{name: http, port: 8080}]
  rateLimit: {requests: 5, unit: Hour}
"""


def test_rate_limits_hold_over_all_workers(directory: Path, start_gateway: Any, start_backend: Any, kit: Any) -> None:
    backend = start_backend(kit.answer(b"ok"))
    cases = {
        "route": "  rateLimit: {requests: 4, unit: Hour}",
        "source": "  rateLimit: {requests: 60, unit: Hour, burst: 3, keys: [SourceIP]}",
        "filter": "  filters: [{type: RateLimit, rateLimit: {requests: 2, unit: Hour}}]",
        "both": "  rateLimit: {requests: 9, unit: Hour}\n"
        "  filters: [{type: RateLimit, rateLimit: {requests: 1, unit: Hour}}]",
        "none": "",
    }
    for name, extra in cases.items():
        (directory / f"{name}.yaml").write_text(kit.manifest(name, backend, path=f"/{name}", extra=extra))
    gateway = start_gateway("--listen", "127.0.0.1:0", "--workers", "2")
    expected = {"route": 4, "source": 3, "filter": 2, "both": 1, "none": 12}
    for name, most in expected.items():
        statuses = [gateway.get(f"/{name}")[0] for _ in range(12)]  # each on a connection of its own: any worker
        assert statuses == [200] * most + [429] * (12 - most), name


def test_a_limit_that_is_edited_begins_anew_and_others_go_on(
    directory: Path, start_gateway: Any, start_backend: Any, kit: Any
) -> None:
    backend = start_backend(kit.answer(b"ok"))
    (directory / "a.yaml").write_text(
        kit.manifest("a", backend, path="/a", extra="  rateLimit: {requests: 1, unit: Hour}")
    )
    (directory / "b.yaml").write_text(
        kit.manifest("b", backend, path="/b", extra="  rateLimit: {requests: 1, unit: Hour}")
    )
    gateway = start_gateway()
    assert [gateway.get(path)[0] for path in ("/a", "/b", "/a", "/b")] == [200, 200, 429, 429]
    (directory / "a.yaml").write_text(kit.manifest("a", backend, path="/a"))
    kit.eventually(lambda: gateway.get("/a")[0] == 200, "the limit to be gone")
    assert gateway.get("/b")[0] == 429
