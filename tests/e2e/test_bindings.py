"""Services, slices and pods in a directory: a gateway that serves follows them as one in a cluster does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.e2e
SOON_S = 5.0

BOUND = """\
apiVersion: router.datum.net/v1alpha1
kind: VPCService
metadata: {name: shop}
spec: {port: 80, discovery: {method: kubernetes}}
---
apiVersion: router.datum.net/v1alpha1
kind: VPCRoute
metadata: {name: shop}
spec: {destinations: [{vpcServiceRef: {name: shop}}]}
---
apiVersion: v1
kind: Service
metadata: {name: shop}
spec: {ports: [{name: http, port: 80}]}
---
apiVersion: router.datum.net/v1alpha1
kind: ServiceBinding
metadata: {name: shop}
spec: {serviceRef: {name: shop}, vpcServiceRef: {name: shop}, autoSync: true}
"""
POD = """\
apiVersion: v1
kind: Pod
metadata:
  name: shop-0
  annotations: {k8s.v1alpha.galactic.datumapis.com/vpc-attachment: shop-0}
---
apiVersion: galactic.datumapis.com/v1alpha
kind: VPCAttachment
metadata: {name: shop-0}
spec:
  vpc: {name: shop, namespace: default}
  interface: {addresses: [127.0.0.4/24]}
status: {ready: true}
"""


def slice_of(port: int, *endpoints: str) -> str:
    return "\n".join(
        [
            "apiVersion: discovery.k8s.io/v1",
            "kind: EndpointSlice",
            "metadata: {name: shop-1, labels: {kubernetes.io/service-name: shop}}",
            "addressType: IPv4",
            f"ports: [{{name: http, port: {port}}}]",
            "endpoints:",
            *(f"  - {{{text}}}" for text in endpoints),
        ]
    )


def test_endpoints_come_terminate_and_are_those_of_attachments(
    directory: Path, start_gateway: Any, start_backend: Any, kit: Any
) -> None:
    first = start_backend(kit.answer(b"first"), "127.0.0.2")
    start_backend(kit.answer(b"second"), "127.0.0.3", first.port)
    start_backend(kit.answer(b"attached"), "127.0.0.4", first.port)
    (directory / "bound.yaml").write_text(BOUND)
    gateway = start_gateway()
    assert gateway.get("/")[0] == 503

    def bodies() -> set[tuple[int, bytes]]:
        return {gateway.get("/") for _ in range(6)}

    slices = directory / "slice.yaml"
    slices.write_text(slice_of(first.port, "addresses: [127.0.0.2]", "addresses: [127.0.0.3]"))
    kit.eventually(lambda: bodies() == {(200, b"first"), (200, b"second")}, "both endpoints", SOON_S)
    leaving = "addresses: [127.0.0.3], conditions: {ready: false, serving: true, terminating: true}"
    slices.write_text(slice_of(first.port, "addresses: [127.0.0.2]", leaving))
    kit.eventually(lambda: bodies() == {(200, b"first")}, "the one that terminates left alone", SOON_S)
    (directory / "pod.yaml").write_text(POD)
    slices.write_text(slice_of(first.port, "addresses: [127.0.0.2], targetRef: {kind: Pod, name: shop-0}"))
    kit.eventually(lambda: bodies() == {(200, b"attached")}, "the address of the attachment", SOON_S)
    (directory / "pod.yaml").write_text(POD.split("---", maxsplit=1)[0])
    kit.eventually(lambda: gateway.get("/")[0] == 503, "no address without the attachment", SOON_S)
    assert [one["reason"] for one in gateway.page("/diagnostics")] == ["NoVPCAddress"]
