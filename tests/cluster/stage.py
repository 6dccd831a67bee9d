"""Gateways and controllers as real processes beside a control plane, and objects to put before them."""

from __future__ import annotations

import base64
import datetime
import itertools
import json
import socket
from collections.abc import Mapping, Sequence
from pathlib import Path

import trustme

from tests.cluster.plane import CONTROLLER, DISCOVERY, GATEWAY, REPOSITORY, Plane
from tests.processes import ServiceProcess

SYSTEM = "datum-router"
GROUP = "/apis/router.datum.net/v1alpha1"
SLICES = "/apis/discovery.k8s.io/v1"
MERGE = "application/merge-patch+json"
APPLY = "application/apply-patch+yaml"


def install(plane: Plane) -> None:
    """Apply what a user installs: CRDs and roles."""
    for part in ("crds/", "rbac/rbac.yaml"):
        done = plane.kubectl("apply", "--server-side", "-f", str(REPOSITORY / "manifests" / part))
        assert done.returncode == 0, done.stderr


class Stage:
    """Processes beside a control plane; `stop` ends them all."""

    def __init__(self, plane: Plane, home: Path) -> None:
        self.plane = plane
        self.home = home
        self.running: list[ServiceProcess] = []
        self._numbers = itertools.count(1)

    def gateway(self, name: str = "", **env: str) -> ServiceProcess:
        """Start a gateway with the rights of its service account; wait until it is ready."""
        name = name or f"gateway-{next(self._numbers)}"
        listen = {} if "DATUM_ROUTER_BIND" in env else {"DATUM_ROUTER_LISTEN": "127.0.0.1:0"}
        process = self.start("datum_router_gateway", GATEWAY, name, {**listen, **env})
        process.wait_ready()
        return process

    def controller(self, name: str = "", **env: str) -> ServiceProcess:
        """Start a controller with the rights of its service account; wait until it is ready."""
        process = self.start("datum_router_controller", CONTROLLER, name or f"controller-{next(self._numbers)}", env)
        process.wait_ready()
        return process

    def discovery(self, name: str = "", **env: str) -> ServiceProcess:
        """Start a discovery daemon with the rights of its service account; wait until it is ready."""
        process = self.start("datum_router_discovery", DISCOVERY, name or f"discovery-{next(self._numbers)}", env)
        process.wait_ready()
        return process

    def start(self, module: str, user: str, name: str, env: Mapping[str, str]) -> ServiceProcess:
        """Start an entry point as a user."""
        process = ServiceProcess(
            module,
            self.home / f"{name}.log",
            {
                "DATUM_ROUTER_SOURCE": "kubernetes",
                "KUBECONFIG": str(self.plane.kubeconfig(user, namespace=SYSTEM)),
                "POD_NAME": name,
                **env,
            },
        )
        self.running.append(process)
        return process

    def stop(self) -> None:
        """End everything; the statuses do not matter any more."""
        for one in self.running:
            one.process.terminate()
        for one in self.running:
            one.stop()

    # --- objects ---------------------------------------------------------------------------------------------------

    def put(self, raw: Mapping[str, object]) -> dict[str, object]:
        """Apply an object as an administrator; return it as it is there."""
        answer = self.plane.request("PATCH", f"{path_of(raw)}?fieldManager=test&force=true", raw, content_type=APPLY)
        assert answer.status in (200, 201), answer.body
        return answer.json()

    def patch(self, raw: Mapping[str, object], change: Mapping[str, object], *, part: str = "") -> None:
        """Merge a change into an object, or into a subresource of it."""
        path = path_of(raw) + (f"/{part}" if part else "")
        answer = self.plane.request("PATCH", path, change, content_type=MERGE)
        assert answer.status == 200, answer.body

    def delete(self, raw: Mapping[str, object]) -> None:
        """Delete an object."""
        answer = self.plane.request("DELETE", path_of(raw))
        assert answer.status in (200, 202), answer.body

    def get(self, raw: Mapping[str, object]) -> dict[str, object]:
        """Return an object as it is there now."""
        answer = self.plane.request("GET", path_of(raw))
        assert answer.status == 200, answer.body
        return answer.json()

    def conditions(self, raw: Mapping[str, object]) -> dict[str, tuple[str, str]]:
        """Return status and reason of each condition that was set for the newest generation, by type."""
        found = self.get(raw)
        meta, status = found["metadata"], found.get("status") or {}
        assert isinstance(meta, Mapping)
        assert isinstance(status, Mapping)
        return {
            one["type"]: (one["status"], one["reason"])
            for one in status.get("conditions", ())
            if one.get("observedGeneration") == meta["generation"]
        }


_PLURALS = {
    "Secret": "secrets",
    "ConfigMap": "configmaps",
    "Service": "services",
    "EndpointSlice": "endpointslices",
    "Pod": "pods",
    "Role": "roles",
    "RoleBinding": "rolebindings",
    "VPC": "vpcs",
    "VPCAttachment": "vpcattachments",
    "ReferenceGrant": "referencegrants",
    "VPCIngress": "vpcingresses",
    "VPCEgress": "vpcegresses",
    "Location": "locations",
    "ServingLocation": "servinglocations",
    "Lease": "leases",
}


def path_of(raw: Mapping[str, object]) -> str:
    """Return the API path of an object."""
    meta = raw["metadata"]
    assert isinstance(meta, Mapping)
    version, kind = str(raw["apiVersion"]), str(raw["kind"])
    plural = _PLURALS.get(kind) or f"{kind.lower()}s"
    root = "/apis/" if "/" in version else "/api/"
    where = f"/namespaces/{meta['namespace']}" if "namespace" in meta else ""
    return f"{root}{version}{where}/{plural}/{meta['name']}"


def service(namespace: str, name: str, *ports: int, address: str = "127.0.0.1", **spec: object) -> dict[str, object]:
    """Return a VPCService over ports of an address; without any, one that a binding feeds."""
    endpoints = [{"address": address, "port": port} for port in ports]
    source = {"endpoints": endpoints} if endpoints else {"discovery": {"method": "kubernetes"}}
    return {
        "apiVersion": "router.datum.net/v1alpha1",
        "kind": "VPCService",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {"port": 8080, **source, **spec},
    }


def route(namespace: str, name: str, target: str, *, path: str, **spec: object) -> dict[str, object]:
    """Return a VPCRoute of a path prefix to a service of the same namespace."""
    return {
        "apiVersion": "router.datum.net/v1alpha1",
        "kind": "VPCRoute",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {"match": {"pathPrefix": path}, "destinations": [{"vpcServiceRef": {"name": target}}], **spec},
    }


def kube_service(namespace: str, name: str, port: int = 8080) -> dict[str, object]:
    """Return a Service of one port."""
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {"ports": [{"name": "http", "port": port}], "selector": {"app": name}},
    }


def own_address() -> str:
    """Return an address of this machine outside loopback, which EndpointSlices may not hold; nothing is sent."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as one:
        one.connect(("192.0.2.1", 9))
        return str(one.getsockname()[0])


def one_endpoint(
    namespace: str, service: str, name: str, address: str, port: int, *, pod: str = "", **conditions: bool
) -> dict[str, object]:
    """Return an EndpointSlice of a Service with one endpoint.

    Args:
        name: Of the slice; each endpoint of these tests has one, since all share an address and differ in their ports.
        pod: What the endpoint stands for.
        conditions: Where it is not just ready.
    """
    one: dict[str, object] = {"addresses": [address], "conditions": conditions or {"ready": True}}
    if pod:
        one["targetRef"] = {"kind": "Pod", "name": pod, "namespace": namespace}
    return {
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {"name": name, "namespace": namespace, "labels": {"kubernetes.io/service-name": service}},
        "addressType": "IPv4",
        "ports": [{"name": "http", "port": port, "protocol": "TCP"}],
        "endpoints": [one],
    }


def endpoint_slice(
    namespace: str,
    name: str,
    port: int,
    *addresses: str,
    conditions: Mapping[str, Mapping[str, bool]] | None = None,
    pods: Mapping[str, str] | None = None,
) -> dict[str, object]:
    """Return the EndpointSlice of a Service.

    Args:
        conditions: By address, where they are not just ready.
        pods: Names of the pods behind addresses.
    """
    endpoints: list[dict[str, object]] = []
    for address in addresses:
        one: dict[str, object] = {"addresses": [address]}
        one["conditions"] = dict((conditions or {}).get(address, {"ready": True}))
        if pods and address in pods:
            one["targetRef"] = {"kind": "Pod", "name": pods[address], "namespace": namespace}
        endpoints.append(one)
    return {
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {
            "name": f"{name}-slice",
            "namespace": namespace,
            "labels": {"kubernetes.io/service-name": name},
        },
        "addressType": "IPv4",
        "ports": [{"name": "http", "port": port, "protocol": "TCP"}],
        "endpoints": endpoints,
    }


def binding(namespace: str, name: str, target: str, **spec: object) -> dict[str, object]:
    """Return a ServiceBinding that follows a Service of the same name."""
    return {
        "apiVersion": "router.datum.net/v1alpha1",
        "kind": "ServiceBinding",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {"serviceRef": {"name": name}, "vpcServiceRef": {"name": target}, "autoSync": True, **spec},
    }


def tls_secret(namespace: str, name: str, cert_pem: bytes, key_pem: bytes) -> dict[str, object]:
    """Return a Secret with a certificate and its key."""
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "type": "kubernetes.io/tls",
        "metadata": {"name": name, "namespace": namespace},
        "data": {
            "tls.crt": base64.b64encode(cert_pem).decode(),
            "tls.key": base64.b64encode(key_pem).decode(),
        },
    }


def issued_secret(
    namespace: str, name: str, authority: trustme.CA, host: str, *, not_after: datetime.datetime | None = None
) -> dict[str, object]:
    """Return a Secret with a fresh certificate of an authority for a host; by default it lasts for years."""
    leaf = authority.issue_cert(host, not_after=not_after)
    chain = b"".join(blob.bytes() for blob in leaf.cert_chain_pems)
    return tls_secret(namespace, name, chain, leaf.private_key_pem.bytes())


def ingress(namespace: str, name: str, port: int, secret: str = "") -> dict[str, object]:
    """Return a VPCIngress of `<name>.example.com` that takes all to VPCService `web`; HTTPS if a Secret is named."""
    return {
        "apiVersion": "router.datum.net/v1alpha1",
        "kind": "VPCIngress",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {
            "host": f"{name}.example.com",
            "listeners": [{"name": "web", "port": port, "protocol": "HTTPS" if secret else "HTTP"}],
            "rules": [{"path": "/", "service": {"name": "web"}}],
            **({"tls": {"secretName": secret}} if secret else {}),
        },
    }


def secret_access(namespace: str, *names: str) -> list[dict[str, object]]:
    """Return what lets a gateway read Secrets of these names, and no others."""
    meta = {"name": "router-gateway-secrets", "namespace": namespace}
    role: dict[str, object] = {
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "Role",
        "metadata": meta,
        "rules": [
            {
                "apiGroups": [""],
                "resources": ["secrets"],
                "resourceNames": list(names),
                "verbs": ["get", "list", "watch"],
            }
        ],
    }
    bound: dict[str, object] = {
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "RoleBinding",
        "metadata": meta,
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": meta["name"]},
        "subjects": [{"kind": "ServiceAccount", "name": "router-gateway", "namespace": SYSTEM}],
    }
    return [role, bound]


def crd(
    group: str,
    kind: str,
    plural: str,
    version: str = "v1alpha",
    scope: str = "Namespaced",
    *,
    properties: Mapping[str, object] | None = None,
    required: Sequence[str] = (),
) -> dict[str, object]:
    """Return a CustomResourceDefinition: enough of a kind that is not ours.

    Args:
        properties: Schema of spec and status; without it they may be anything.
        required: Those that must be there.
    """
    schema: dict[str, object] = {"type": "object", "x-kubernetes-preserve-unknown-fields": True}
    if properties is not None:
        schema = {"type": "object", "properties": properties, "required": list(required)}
    # The API wants to be told, for groups of Kubernetes' own, who let a CRD be made in them.
    approval = {"api-approved.kubernetes.io": "unapproved, for tests"} if group.endswith(".k8s.io") else {}
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{plural}.{group}", "annotations": approval},
        "spec": {
            "group": group,
            "names": {"kind": kind, "listKind": f"{kind}List", "plural": plural, "singular": kind.lower()},
            "scope": scope,
            "versions": [
                {
                    "name": version,
                    "served": True,
                    "storage": True,
                    "schema": {"openAPIV3Schema": schema},
                    "subresources": {"status": {}},
                }
            ],
        },
    }


def install_crd(plane: Plane, raw: Mapping[str, object]) -> None:
    """Install a CustomResourceDefinition and wait until it is served."""
    done = plane.kubectl("apply", "--server-side", "-f", "-", stdin=json.dumps(raw))
    assert done.returncode == 0, done.stderr
    meta = raw["metadata"]
    assert isinstance(meta, Mapping)
    done = plane.kubectl("wait", "--for=condition=Established", "--timeout=30s", f"crd/{meta['name']}")
    assert done.returncode == 0, done.stderr


def bodies(gateway: ServiceProcess, path: str, count: int = 20) -> set[str]:
    """Return every answer that some requests get, as `status body`."""
    return {f"{status} {body}" for status, body in (gateway.get(path) for _ in range(count))}
