"""Hook implementations of the Kubernetes plugin."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from datum_router.manifests.table import ResourceKind
from datum_router.plugins.hookspecs import hookimpl
from datum_router.plugins.specs import ClusterSpec, PluginInfo, ResolverSpec
from datum_router_kubernetes.kinds import EndpointSlice, Pod, Service
from datum_router_kubernetes.resolver import BindingResolver

if TYPE_CHECKING:
    from datum_router.plugins.cluster import Cluster


def _pod_content(pod: Pod) -> object:
    return (pod.metadata.annotations, pod.metadata.labels, pod.status)


def _slice_content(item: EndpointSlice) -> object:
    return (item.metadata.labels, item.address_type, item.endpoints, item.ports)


def _create_cluster(settings: Mapping[str, str]) -> Cluster:
    from datum_router_kubernetes.cluster import make_cluster  # trio and urllib3: only for those who write

    return make_cluster(settings)


@hookimpl
def datum_router_plugin_info() -> PluginInfo:
    """Say who this is."""
    return PluginInfo(name="kubernetes", version="0.1.0", api=1, stability="beta", posture="no-traffic")


@hookimpl
def datum_router_resource_kinds() -> Sequence[ResourceKind]:
    """Add Service, EndpointSlice and Pod."""
    return [
        ResourceKind(group="", version="v1", kind="Service", plural="services", struct=Service),
        ResourceKind(
            group="discovery.k8s.io",
            version="v1",
            kind="EndpointSlice",
            plural="endpointslices",
            struct=EndpointSlice,
            content=_slice_content,
        ),
        ResourceKind(group="", version="v1", kind="Pod", plural="pods", struct=Pod, content=_pod_content),
    ]


@hookimpl
def datum_router_endpoint_resolvers() -> Sequence[ResolverSpec]:
    """Add the resolver of ServiceBindings."""
    return [ResolverSpec(name="servicebinding", create=BindingResolver, priority=30)]


@hookimpl
def datum_router_clusters() -> Sequence[ClusterSpec]:
    """Add the cluster of a kubeconfig, or of the pod that this runs in, for those who write to it."""
    return [ClusterSpec(name="kubernetes", create=_create_cluster)]
