"""The manifests that our gateway runs with: the routes under load among many others, as a cluster has them."""

from __future__ import annotations

from pathlib import Path

ROUTES = 1000
PER_FILE = 20

_SERVICE = """\
apiVersion: router.datum.net/v1alpha1
kind: VPCService
metadata: {{name: {name}}}
spec:
  protocol: {protocol}
  port: {port}
  endpoints:
    - address: 127.0.0.1
"""

_LOADED = """\
---
apiVersion: router.datum.net/v1alpha1
kind: VPCRoute
metadata: {name: bench}
spec:
  hostnames: [bench.example]
  match: {pathPrefix: /}
  destinations:
    - vpcServiceRef: {name: bench}
"""

_GRPC = """\
---
apiVersion: router.datum.net/v1alpha1
kind: VPCRoute
metadata: {name: bench-grpc}
spec:
  hostnames: [bench.example]
  match: {grpcService: bench.Echo}
  destinations:
    - vpcServiceRef: {name: bench-grpc}
"""

_INGRESS = """\
apiVersion: router.datum.net/v1alpha1
kind: VPCIngress
metadata: {{name: bench}}
spec:
  host: "*.example"
  listeners:
    - {{name: http, port: {http_port}, protocol: HTTP}}
    - {{name: https, port: {https_port}, protocol: HTTPS}}
  tls: {{secretName: bench, minVersion: "1.3"}}
---
apiVersion: v1
kind: Secret
metadata: {{name: bench}}
type: kubernetes.io/tls
stringData:
  tls.crt: |
{certificate}
  tls.key: |
{key}
"""


def other_route(number: int, *, service: str = "bench", version: str = "") -> str:
    """Return the YAML of one route that no load goes to: 20 under each host, some with methods or headers.

    `version` is put into a response header, so that a client can see which edition of the route is in force.
    """
    host, item = divmod(number, 20)
    lines = [
        "apiVersion: router.datum.net/v1alpha1",
        "kind: VPCRoute",
        f"metadata: {{name: route-{number}}}",
        "spec:",
        f'  hostnames: ["{"*." if host % 10 == 0 else ""}h{host}.example"]',
        "  match:",
        f"    pathPrefix: /api/v{item % 3}/service-{item}",
    ]
    if number % 4 == 0:
        lines.append("    methods: [GET, POST]")
    if number % 10 == 5:
        lines.append("    headers: {x-env: prod}")
    if version:
        lines += [
            "  filters:",
            "    - type: ResponseHeaderModifier",
            f'      responseHeaderModifier: {{set: [{{name: x-version, value: "{version}"}}]}}',
        ]
    lines += ["  destinations:", f"    - vpcServiceRef: {{name: {service}}}"]
    return "\n".join(lines) + "\n"


def write_services(directory: Path, *, http_port: int, grpc_port: int = 0) -> None:
    """Write the service and the route that the load goes to, and those of gRPC if there is such an upstream."""
    text = _SERVICE.format(name="bench", protocol="HTTP", port=http_port) + _LOADED
    if grpc_port:
        text += "---\n" + _SERVICE.format(name="bench-grpc", protocol="GRPC", port=grpc_port) + _GRPC
    (directory / "bench.yaml").write_text(text)


def write_routes(directory: Path, count: int = ROUTES) -> None:
    """Write `count` further routes, `PER_FILE` in a file, as a directory under version control has them."""
    for first in range(0, count, PER_FILE):
        routes = [other_route(number) for number in range(first, min(first + PER_FILE, count))]
        write_atomically(directory / f"routes-{first // PER_FILE}.yaml", "---\n".join(routes))


def write_ingress(directory: Path, *, http_port: int, https_port: int, certificate: Path, key: Path) -> None:
    """Write listeners for plain HTTP and TLS with one certificate."""
    (directory / "ingress.yaml").write_text(
        _INGRESS.format(
            http_port=http_port,
            https_port=https_port,
            certificate=_indented(certificate.read_text()),
            key=_indented(key.read_text()),
        )
    )


def write_atomically(path: Path, text: str) -> None:
    """Replace a file as editors and `git checkout` do: no reader sees half of it."""
    draft = path.with_name(f".{path.name}.draft")
    draft.write_text(text)
    draft.rename(path)


def _indented(text: str) -> str:
    return "\n".join(f"    {line}" for line in text.strip().splitlines())
