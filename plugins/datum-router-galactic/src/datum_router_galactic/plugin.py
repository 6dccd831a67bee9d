"""Hook implementations of the Galactic VPC plugin."""

from __future__ import annotations

from collections.abc import Sequence

from datum_router.manifests.table import ResourceKind
from datum_router.plugins.hookspecs import hookimpl
from datum_router.plugins.specs import PluginInfo, ResolverSpec
from datum_router_galactic.kinds import GROUP, VERSION, VPC, VPCAttachment
from datum_router_galactic.resolver import AttachmentResolver


def _content(item: VPC | VPCAttachment) -> object:
    return (item.spec, item.status)


@hookimpl
def datum_router_plugin_info() -> PluginInfo:
    """Say who this is."""
    return PluginInfo(name="galactic", version="0.1.0", api=1, stability="beta", posture="no-traffic")


@hookimpl
def datum_router_resource_kinds() -> Sequence[ResourceKind]:
    """Add VPC and VPCAttachment, which a cluster with a newer generation of Galactic may lack."""
    return [
        ResourceKind(
            group=GROUP,
            version=VERSION,
            kind=kind,
            plural=plural,
            struct=struct,
            content=_content,
            is_optional=True,
        )
        for kind, plural, struct in (("VPC", "vpcs", VPC), ("VPCAttachment", "vpcattachments", VPCAttachment))
    ]


@hookimpl
def datum_router_endpoint_resolvers() -> Sequence[ResolverSpec]:
    """Add the resolver of `spec.vpcAttachmentRef`."""
    return [ResolverSpec(name="attachment", create=AttachmentResolver, priority=20)]
