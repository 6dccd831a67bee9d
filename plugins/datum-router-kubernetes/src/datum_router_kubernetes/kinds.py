"""The Kubernetes kinds that endpoints come from: Service, EndpointSlice, Pod. Read tolerantly, never written."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from datum_router.manifests.indexes import full_name
from datum_router.manifests.meta import ObjectMeta

SERVICE_NAME_LABEL = "kubernetes.io/service-name"
BY_SERVICE = "service"
"""Index of EndpointSlice: `namespace/name` of the Service that it belongs to."""
ATTACHMENT_ANNOTATION = "k8s.v1alpha.galactic.datumapis.com/vpc-attachment"


class _Part(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """Base of all parts."""


class ServicePort(_Part, frozen=True, kw_only=True):
    """One port of a Service; `targetPort` is a number or the name of a container port."""

    name: str = ""
    port: int
    target_port: int | str | None = None
    protocol: str = "TCP"


class ServiceSpec(_Part, frozen=True, kw_only=True):
    """Ports and selector of a Service."""

    ports: tuple[ServicePort, ...] = ()
    selector: Mapping[str, str] = {}


class Service(_Part, frozen=True, kw_only=True):
    """A core/v1 Service."""

    api_version: str
    kind: str
    metadata: ObjectMeta
    spec: ServiceSpec = ServiceSpec()


class EndpointConditions(_Part, frozen=True, kw_only=True):
    """Readiness of one endpoint; null means true for `ready` and `serving` (API documentation)."""

    ready: bool | None = None
    serving: bool | None = None
    terminating: bool | None = None


class ObjectReference(_Part, frozen=True, kw_only=True):
    """What an endpoint stands for, usually a Pod."""

    kind: str = ""
    name: str = ""
    namespace: str = ""


class SliceEndpoint(_Part, frozen=True, kw_only=True):
    """One endpoint of a slice: alternative addresses of one backend, the first is used."""

    addresses: tuple[str, ...]
    conditions: EndpointConditions = EndpointConditions()
    target_ref: ObjectReference | None = None
    node_name: str | None = None
    zone: str | None = None


class SlicePort(_Part, frozen=True, kw_only=True):
    """One port of a slice, named like the Service's port."""

    name: str | None = None
    port: int | None = None
    protocol: str | None = None


class EndpointSlice(_Part, frozen=True, kw_only=True):
    """A discovery.k8s.io/v1 EndpointSlice."""

    api_version: str
    kind: str
    metadata: ObjectMeta
    address_type: str = "IPv4"
    endpoints: tuple[SliceEndpoint, ...] | None = ()
    ports: tuple[SlicePort, ...] | None = ()


class PodIP(_Part, frozen=True, kw_only=True):
    """One address of a pod."""

    ip: str = ""


class PodStatus(_Part, frozen=True, kw_only=True):
    """The part of a pod's status that is read."""

    pod_ip: str = msgspec.field(default="", name="podIP")
    pod_ips: tuple[PodIP, ...] = msgspec.field(default=(), name="podIPs")


class Pod(_Part, frozen=True, kw_only=True):
    """A core/v1 Pod: its annotation names the VPC attachment."""

    api_version: str
    kind: str
    metadata: ObjectMeta
    status: PodStatus = PodStatus()


def sliced_service(item: EndpointSlice) -> tuple[str, ...]:
    """Return the values of `BY_SERVICE`: none for a slice that belongs to no Service."""
    name = (item.metadata.labels or {}).get(SERVICE_NAME_LABEL)
    return (full_name(item.metadata.namespace, name),) if name else ()
