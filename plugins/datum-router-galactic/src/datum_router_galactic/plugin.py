"""Hook implementations of the Galactic VPC plugin."""

from __future__ import annotations

from collections.abc import Sequence

from datum_router.manifests.indexes import BY_VPC_ID
from datum_router.manifests.location import (
    LOCATION_GROUP,
    LOCATION_VERSION,
    Location,
    ServingLocation,
    location_content,
    validate_location,
)
from datum_router.manifests.table import ResourceKind
from datum_router.plugins.hookspecs import hookimpl
from datum_router.plugins.specs import AttachmentSpec, PlaceSpec, PluginInfo, ResolverSpec
from datum_router_galactic.attachments import GalacticAttachmentFinder
from datum_router_galactic.kinds import (
    BY_LABEL,
    GROUP,
    VERSION,
    VPC,
    VPCAttachment,
    attachment_content,
    attachment_labels,
    validate_attachment,
    validate_vpc,
    vpc_content,
    vpc_ids,
)
from datum_router_galactic.resolver import AttachmentResolver
from datum_router_galactic.serving import ServingPlaceFinder


@hookimpl
def datum_router_plugin_info() -> PluginInfo:
    """Say who this is."""
    return PluginInfo(name="galactic", version="0.1.0", api=1, stability="beta", posture="no-traffic")


@hookimpl
def datum_router_resource_kinds() -> Sequence[ResourceKind]:
    """Add VPC, VPCAttachment, Location and ServingLocation, each of which a cluster may lack."""
    return [
        ResourceKind(
            group=GROUP,
            version=VERSION,
            kind="VPC",
            plural="vpcs",
            struct=VPC,
            validate=validate_vpc,
            content=vpc_content,
            is_optional=True,
            indexes={BY_VPC_ID: vpc_ids},
        ),
        ResourceKind(
            group=GROUP,
            version=VERSION,
            kind="VPCAttachment",
            plural="vpcattachments",
            struct=VPCAttachment,
            validate=validate_attachment,
            content=attachment_content,
            is_optional=True,
            indexes={BY_LABEL: attachment_labels},
        ),
        ResourceKind(
            group=LOCATION_GROUP,
            version=LOCATION_VERSION,
            kind="Location",
            plural="locations",
            struct=Location,
            namespaced=False,
            is_scope_open=True,
            validate=validate_location,
            content=location_content,
            is_optional=True,
        ),
        ResourceKind(
            group=LOCATION_GROUP,
            version=LOCATION_VERSION,
            kind="ServingLocation",
            plural="servinglocations",
            struct=ServingLocation,
            namespaced=False,
            content=location_content,
            is_optional=True,
        ),
    ]


@hookimpl
def datum_router_endpoint_resolvers() -> Sequence[ResolverSpec]:
    """Add the resolver of `spec.vpcAttachmentRef` and `spec.vpcAttachmentSelector`."""
    return [ResolverSpec(name="attachment", create=AttachmentResolver, priority=20)]


@hookimpl
def datum_router_places() -> Sequence[PlaceSpec]:
    """Add the ServingLocation of the cluster."""
    return [PlaceSpec(name="serving-location", create=ServingPlaceFinder)]


@hookimpl
def datum_router_attachments() -> Sequence[AttachmentSpec]:
    """Add the VPCAttachments, whose traffic VPCEgresses are about."""
    return [AttachmentSpec(name="galactic", create=GalacticAttachmentFinder)]
