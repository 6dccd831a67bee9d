"""The Kubernetes kinds that endpoints come from: Service, EndpointSlice, Pod. Read tolerantly, never written."""

from __future__ import annotations

from typing import Final

import msgspec

from datum_router.discovery.marks import MANAGED_BY_LABEL, MANAGER, SERVICE_ANNOTATION
from datum_router.manifests.indexes import TENANT_LABEL, full_name
from datum_router.manifests.meta import ObjectMeta

SERVICE_NAME_LABEL: Final = "kubernetes.io/service-name"
ATTACHMENT_ANNOTATION: Final = "k8s.v1alpha.galactic.datumapis.com/vpc-attachment"
"""Of a pod: the VPCAttachment, in the pod's own namespace, that gives it its VPC address."""

BY_SERVICE: Final = "service"
"""Index of EndpointSlice: `namespace/name` of the Service that it belongs to."""


class _Part(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """Base of all parts."""


class ServicePort(_Part, frozen=True, kw_only=True):
    """One port of a Service; `targetPort` is a number or the name of a container port."""

    name: str = ""
    port: int
    target_port: int | str | None = None
    protocol: str = "TCP"


class ServiceSpec(_Part, frozen=True, kw_only=True):
    """What of a Service matters to those who ask for its endpoints. `cluster_ip` is `None` (as text) if headless."""

    type: str = "ClusterIP"
    ports: tuple[ServicePort, ...] | None = ()
    cluster_ip: str = msgspec.field(default="", name="clusterIP")
    external_name: str = ""

    @property
    def is_headless(self) -> bool:
        """Tell whether the Service has no address of its own."""
        return self.cluster_ip == "None"


class Service(_Part, frozen=True, kw_only=True):
    """A core/v1 Service."""

    api_version: str
    kind: str
    metadata: ObjectMeta
    spec: ServiceSpec = ServiceSpec()


class EndpointConditions(_Part, frozen=True, kw_only=True):
    """State of one endpoint; null means true for `ready` and `serving`, false for `terminating`."""

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
    zone: str | None = None


class SlicePort(_Part, frozen=True, kw_only=True):
    """One port of a slice, named like the Service's port; without a number it stands for every port."""

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


class Pod(_Part, frozen=True, kw_only=True):
    """A core/v1 Pod, of which only the metadata is read: its labels, and the annotation that names its attachment."""

    api_version: str
    kind: str
    metadata: ObjectMeta


def service_content(service: Service) -> object:
    """Return what counts as a change."""
    return service.spec


def slice_content(item: EndpointSlice) -> object:
    """Return what counts as a change: not the annotations, which tell when the endpoints last changed.

    Of slices that discovery wrote, all counts: their annotations say where the endpoints are.
    """
    labels = item.metadata.labels or {}
    if is_discovered(item):
        meta = item.metadata
        return (labels, meta.annotations, meta.owner_references, item.address_type, item.endpoints, item.ports)
    return (
        labels.get(SERVICE_NAME_LABEL),
        labels if TENANT_LABEL in labels else None,
        item.address_type,
        item.endpoints,
        item.ports,
    )


def pod_content(pod: Pod) -> object:
    """Return what counts as a change: of many annotations, one."""
    return (pod.metadata.labels, attachment_name(pod))


def attachment_name(pod: Pod) -> str:
    """Return the name of the pod's VPCAttachment, empty if it has none."""
    return (pod.metadata.annotations or {}).get(ATTACHMENT_ANNOTATION, "")


def is_discovered(item: EndpointSlice) -> bool:
    """Tell whether discovery wrote a slice."""
    return (item.metadata.labels or {}).get(MANAGED_BY_LABEL) == MANAGER


def discovered_service(item: EndpointSlice) -> tuple[str, ...]:
    """Return the values of `BY_VPC_SERVICE`: none for a slice that discovery did not write."""
    name = (item.metadata.annotations or {}).get(SERVICE_ANNOTATION) if is_discovered(item) else None
    return (full_name(item.metadata.namespace, name),) if name else ()


def sliced_service(item: EndpointSlice) -> tuple[str, ...]:
    """Return the values of `BY_SERVICE`: none for a slice that belongs to no Service."""
    name = (item.metadata.labels or {}).get(SERVICE_NAME_LABEL)
    return (full_name(item.metadata.namespace, name),) if name else ()


def slice_tenants(item: EndpointSlice) -> tuple[str, ...]:
    """Return the values of `BY_TENANT`: none for a slice that Galactic did not write."""
    tenant = (item.metadata.labels or {}).get(TENANT_LABEL)
    namespace = item.metadata.namespace
    return (full_name(namespace, ""), full_name(namespace, tenant)) if tenant else ()
