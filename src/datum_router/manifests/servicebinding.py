"""ServiceBinding: the endpoints of a Kubernetes Service become those of a VPCService."""

from __future__ import annotations

import enum
from typing import Annotated

from msgspec import Meta, Struct

from datum_router.manifests.meta import (
    MAX_STATUS_ENDPOINTS,
    Conditions,
    Count,
    ObjectMeta,
    ObjectRef,
    ObservedGeneration,
    Port,
    SpecPart,
    StatusPart,
    StatusText,
    Time,
)
from datum_router.manifests.parts import LabelSelector


class TransportProtocol(enum.StrEnum):
    """What a port carries."""

    TCP = "TCP"
    UDP = "UDP"


class AddressSource(enum.StrEnum):
    """Which address of a pod is used: that of its VPCAttachment, if it has one, or the one that slices state."""

    ATTACHMENT = "Attachment"
    POD_IP = "PodIP"
    ENDPOINT_SLICE = "EndpointSlice"


class AddressFamily(enum.StrEnum):
    """Which address families are used."""

    IPV4 = "IPv4"
    IPV6 = "IPv6"
    DUAL = "Dual"


class PortMapping(SpecPart, frozen=True, kw_only=True):
    """Which port of the Service stands behind which port of the VPCService."""

    service_port: Annotated[Port, Meta(description="Port of the Service.")]
    vpc_port: Annotated[Port | None, Meta(description="Port of the VPCService; `servicePort` if not given.")] = None
    protocol: Annotated[TransportProtocol, Meta(description="What the port carries.")] = TransportProtocol.TCP


class ServiceBindingSpec(SpecPart, frozen=True, kw_only=True):
    """Which Service feeds which VPCService, and how."""

    service_ref: Annotated[ObjectRef, Meta(description="The Kubernetes Service.")]
    vpc_service_ref: Annotated[ObjectRef, Meta(description="The VPCService that gets its endpoints.")]
    port_mappings: Annotated[
        tuple[PortMapping, ...],
        Meta(description="Ports; if empty, the Service's port that equals the VPCService's.", max_length=64),
    ] = ()
    auto_sync: Annotated[
        bool, Meta(description="Follow every change; false takes the endpoints once for each spec, when all are ready.")
    ] = False
    sync_interval_seconds: Annotated[
        int, Meta(description="How often a discovery daemon looks again, beside watching.", ge=1, le=86_400)
    ] = 30
    pod_selector: Annotated[
        LabelSelector | None, Meta(description="Which of the Service's pods; all of them if not given.")
    ] = None
    address_source: Annotated[AddressSource, Meta(description="Which address of a pod is used.")] = (
        AddressSource.ATTACHMENT
    )
    publish_not_ready_addresses: Annotated[
        bool, Meta(description="Use pods that are not ready, too; terminating ones only if there is no other.")
    ] = False
    address_family: Annotated[AddressFamily, Meta(description="Which address families are used.")] = AddressFamily.DUAL


class ServiceBindingStatus(StatusPart, frozen=True, kw_only=True):
    """What was bound."""

    observed_generation: ObservedGeneration = 0
    active: Annotated[bool, Meta(description="Whether the VPCService has endpoints from this binding.")] = False
    synced_endpoints: Annotated[Count, Meta(description="Endpoints in all, with those that are not listed.")] = 0
    last_sync_time: Annotated[Time | None, Meta(description="When the endpoints last changed.")] = None
    endpoints: Annotated[
        tuple[StatusText, ...],
        Meta(
            description="The first endpoints as `address:port`, IPv6 in brackets, and `@namespace/name` of their VPC "
            "if they have one; see `syncedEndpoints`.",
            max_length=MAX_STATUS_ENDPOINTS,
        ),
    ] = ()
    conditions: Conditions = ()


class ServiceBinding(Struct, frozen=True, kw_only=True, rename="camel", forbid_unknown_fields=True):
    """Binds a Kubernetes Service to a VPCService, whose endpoints it feeds."""

    api_version: str
    kind: str
    metadata: ObjectMeta
    spec: ServiceBindingSpec
    status: ServiceBindingStatus | None = None
