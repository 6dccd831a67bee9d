"""Hook implementations of the Kubernetes plugin.

The source is imported when it is created: nothing but the supervisor talks to a cluster.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from datum_router.manifests.indexes import BY_TENANT, BY_VPC_SERVICE
from datum_router.manifests.lease import Lease, lease_content
from datum_router.manifests.table import KindTable, ResourceKind
from datum_router.plugins.hookspecs import hookimpl
from datum_router.plugins.specs import ClusterSpec, PluginInfo, ResolverSpec, SourceSpec
from datum_router_kubernetes import NAME
from datum_router_kubernetes.discovered import DiscoveredResolver
from datum_router_kubernetes.kinds import (
    BY_SERVICE,
    EndpointSlice,
    Pod,
    Service,
    discovered_service,
    pod_content,
    service_content,
    slice_content,
    slice_tenants,
    sliced_service,
)
from datum_router_kubernetes.resolver import BindingResolver

if TYPE_CHECKING:
    from datum_router.plugins.cluster import Cluster
    from datum_router.plugins.protocols import Source


def _create_cluster(settings: Mapping[str, str]) -> Cluster:
    from datum_router_kubernetes.cluster import make_cluster  # trio and urllib3: only for those who write

    return make_cluster(settings)


@hookimpl
def datum_router_plugin_info() -> PluginInfo:
    """Say who this is."""
    return PluginInfo(name="kubernetes", version="0.1.0", api=1, stability="beta", posture="no-traffic")


@hookimpl
def datum_router_resource_kinds() -> Sequence[ResourceKind]:
    """Add Service, EndpointSlice, Pod and Lease."""
    return [
        ResourceKind(
            group="coordination.k8s.io",
            version="v1",
            kind="Lease",
            plural="leases",
            struct=Lease,
            content=lease_content,
        ),
        ResourceKind(
            group="", version="v1", kind="Service", plural="services", struct=Service, content=service_content
        ),
        ResourceKind(
            group="discovery.k8s.io",
            version="v1",
            kind="EndpointSlice",
            plural="endpointslices",
            struct=EndpointSlice,
            content=slice_content,
            is_spread=True,
            indexes={BY_SERVICE: sliced_service, BY_TENANT: slice_tenants, BY_VPC_SERVICE: discovered_service},
        ),
        ResourceKind(
            group="",
            version="v1",
            kind="Pod",
            plural="pods",
            struct=Pod,
            content=pod_content,
            is_metadata_only=True,
        ),
    ]


@hookimpl
def datum_router_endpoint_resolvers() -> Sequence[ResolverSpec]:
    """Add the resolvers of ServiceBindings and of what other clusters export."""
    return [
        ResolverSpec(name="servicebinding", create=BindingResolver, priority=30),
        ResolverSpec(name="discovered", create=DiscoveredResolver, priority=40),
    ]


@hookimpl
def datum_router_clusters() -> Sequence[ClusterSpec]:
    """Add the cluster of a kubeconfig, or of the pod that this runs in, for those who write to it."""
    return [ClusterSpec(name=NAME, create=_create_cluster)]


@hookimpl
def datum_router_sources() -> Sequence[SourceSpec]:
    """Offer a cluster's API as a source of manifests."""
    return [SourceSpec(name=NAME, create=_source, needs_kinds=True)]


def _source(settings: Mapping[str, str], kinds: KindTable) -> Source:
    from datum_router_kubernetes.source import create_source

    return create_source(settings, kinds)
