"""Our own kinds: a row of the table each."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TypeVar

from datum_router.manifests import validate
from datum_router.manifests.holding import recorded_endpoints
from datum_router.manifests.indexes import BY_VPC_SERVICE, fed_service
from datum_router.manifests.meta import GROUP, VERSION
from datum_router.manifests.normalize import normalize_ingress, normalize_route, normalize_service
from datum_router.manifests.problem import Problem
from datum_router.manifests.rules import check_metadata
from datum_router.manifests.served import find_not_served
from datum_router.manifests.servicebinding import ServiceBinding
from datum_router.manifests.table import PrinterColumn, ResourceKind
from datum_router.manifests.vpcegress import VPCEgress
from datum_router.manifests.vpcingress import VPCIngress
from datum_router.manifests.vpcroute import VPCRoute
from datum_router.manifests.vpcservice import VPCService

M = TypeVar("M", bound=VPCService | VPCRoute | ServiceBinding | VPCIngress | VPCEgress)


def _own_content(manifest: VPCService | VPCRoute | ServiceBinding | VPCIngress | VPCEgress) -> object:
    # Precedence among routes reads the creation time, so it counts beside the spec.
    return (manifest.spec, manifest.metadata.creation_timestamp)


def _binding_content(manifest: ServiceBinding) -> object:
    return (_own_content(manifest), recorded_endpoints(manifest))


def _checked(kind: str, rules: Callable[[M], Iterable[Problem]]) -> Callable[[M], Iterable[Problem]]:
    def check(manifest: M) -> Iterable[Problem]:
        return [*find_not_served(kind, manifest), *rules(manifest), *check_metadata(manifest.metadata)]

    return check


_AGE = PrinterColumn(name="Age", type="date", json_path=".metadata.creationTimestamp")


def _condition(name: str, *, is_wide: bool = True) -> PrinterColumn:
    path = f'.status.conditions[?(@.type=="{name}")].status'
    return PrinterColumn(name=name, type="string", json_path=path, is_wide=is_wide)


OWN_KINDS: tuple[ResourceKind, ...] = (
    ResourceKind(
        group=GROUP,
        version=VERSION,
        kind="VPCService",
        plural="vpcservices",
        short_names=("vpcsvc",),
        struct=VPCService,
        validate=_checked("VPCService", validate.validate_service),
        normalize=normalize_service,
        content=_own_content,
        is_status_ours=True,
        columns=(
            PrinterColumn(name="Protocol", type="string", json_path=".spec.protocol"),
            PrinterColumn(name="Port", type="integer", json_path=".spec.port"),
            PrinterColumn(name="Endpoints", type="integer", json_path=".status.endpointCount"),
            PrinterColumn(name="Ready", type="boolean", json_path=".status.ready"),
            PrinterColumn(name="Attachment", type="string", json_path=".spec.vpcAttachmentRef.name", is_wide=True),
            _condition("Accepted"),
            _condition("ResolvedRefs"),
            _condition("Programmed"),
            _AGE,
        ),
    ),
    ResourceKind(
        group=GROUP,
        version=VERSION,
        kind="VPCRoute",
        plural="vpcroutes",
        short_names=("vpcrt",),
        struct=VPCRoute,
        validate=_checked("VPCRoute", validate.validate_route),
        normalize=normalize_route,
        content=_own_content,
        is_status_ours=True,
        columns=(
            PrinterColumn(name="Hostnames", type="string", json_path=".spec.hostnames"),
            PrinterColumn(name="Balancing", type="string", json_path=".spec.loadBalancing"),
            _condition("Programmed", is_wide=False),
            PrinterColumn(name="Ready", type="boolean", json_path=".status.ready"),
            _condition("Accepted"),
            _condition("ResolvedRefs"),
            _AGE,
        ),
    ),
    ResourceKind(
        group=GROUP,
        version=VERSION,
        kind="ServiceBinding",
        plural="servicebindings",
        short_names=("svcbind",),
        struct=ServiceBinding,
        validate=_checked("ServiceBinding", validate.validate_binding),
        content=_binding_content,
        indexes={BY_VPC_SERVICE: fed_service},
        is_status_ours=True,
        columns=(
            PrinterColumn(name="Service", type="string", json_path=".spec.serviceRef.name"),
            PrinterColumn(name="VPCService", type="string", json_path=".spec.vpcServiceRef.name"),
            PrinterColumn(name="Endpoints", type="integer", json_path=".status.syncedEndpoints"),
            PrinterColumn(name="Active", type="boolean", json_path=".status.active"),
            _condition("Accepted"),
            _condition("ResolvedRefs"),
            _condition("Synced"),
            _condition("Programmed"),
            _AGE,
        ),
    ),
    ResourceKind(
        group=GROUP,
        version=VERSION,
        kind="VPCIngress",
        plural="vpcingresses",
        short_names=("vpcing",),
        struct=VPCIngress,
        validate=_checked("VPCIngress", validate.validate_ingress),
        normalize=normalize_ingress,
        content=_own_content,
        is_status_ours=True,
        columns=(
            PrinterColumn(name="Host", type="string", json_path=".spec.host"),
            PrinterColumn(name="Address", type="string", json_path=".status.loadBalancerIp"),
            _condition("Programmed", is_wide=False),
            PrinterColumn(name="Ready", type="boolean", json_path=".status.ready"),
            _condition("Accepted"),
            _condition("ResolvedRefs"),
            _AGE,
        ),
    ),
    ResourceKind(
        group=GROUP,
        version=VERSION,
        kind="VPCEgress",
        plural="vpcegresses",
        short_names=("vpcegr",),
        struct=VPCEgress,
        validate=_checked("VPCEgress", validate.validate_egress),
        content=_own_content,
        is_status_ours=True,
        columns=(
            PrinterColumn(name="Source", type="string", json_path=".spec.sourceVpcAttachment"),
            PrinterColumn(name="Policy", type="string", json_path=".spec.policy"),
            _condition("Programmed", is_wide=False),
            PrinterColumn(name="Active", type="boolean", json_path=".status.active"),
            _condition("Accepted"),
            _condition("ResolvedRefs"),
            _AGE,
        ),
    ),
)
