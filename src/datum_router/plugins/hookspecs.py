"""The hooks: all are called at start-up or compile time, none per request. See docs/reference/hooks.md."""

from __future__ import annotations

from collections.abc import Sequence

import pluggy

from datum_router.manifests.table import ResourceKind
from datum_router.plugins.specs import (
    AttachmentSpec,
    BalancerSpec,
    ClusterSpec,
    DataPlaneSpec,
    FilterSpec,
    HealthCheckSpec,
    PlaceSpec,
    PluginInfo,
    RateLimitStoreSpec,
    ResolverSpec,
    SourceSpec,
    ValidatorSpec,
)

PROJECT = "datum_router"
hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)


@hookspec
def datum_router_plugin_info() -> PluginInfo:
    """Say who the plugin is. The one required hook; a wrong `api` refuses the plugin with both numbers shown."""
    raise NotImplementedError


@hookspec
def datum_router_resource_kinds() -> Sequence[ResourceKind]:
    """Add kinds of manifests, for example VPCAttachment, that sources deliver and resolvers read."""
    raise NotImplementedError


@hookspec
def datum_router_validators() -> Sequence[ValidatorSpec]:
    """Add checks of manifests that need more than the manifest's text, for example a TLS library.

    What they find is reported like everything else that is wrong with an object: by `datum-router check`, on the admin
    listener and in the log; an error leaves the last good version of the object in force.
    """
    raise NotImplementedError


@hookspec
def datum_router_sources() -> Sequence[SourceSpec]:
    """Add places that manifests come from."""
    raise NotImplementedError


@hookspec
def datum_router_endpoint_resolvers() -> Sequence[ResolverSpec]:
    """Add ways to find a service's endpoints from manifests."""
    raise NotImplementedError


@hookspec
def datum_router_places() -> Sequence[PlaceSpec]:
    """Add ways to find out from manifests where the gateway is, for example a ServingLocation of its cluster.

    Used by gateways whose settings do not name their place.
    """
    raise NotImplementedError


@hookspec
def datum_router_attachments() -> Sequence[AttachmentSpec]:
    """Add ways to find out from manifests which attachments to VPCs there are, with their labels and addresses.

    VPCEgresses are about the traffic of attachments. Asked only while there is a VPCEgress.
    """
    raise NotImplementedError


@hookspec
def datum_router_balancers() -> Sequence[BalancerSpec]:
    """Add endpoint choosers, named by `spec.loadBalancing`.

    One that fails five times in a row within a minute is disabled for its route for a minute: `policy.plugin_guard`.
    """
    raise NotImplementedError


@hookspec
def datum_router_filters() -> Sequence[FilterSpec]:
    """Add head transformers, named by `spec.filters[].plugin.name`.

    One that has to ask somebody returns a `filters.pending.Pending`: the data plane asks the service that the manifest
    names, within the request's deadline and the call's own.

    One that fails five times in a row within a minute is disabled for its route for a minute: `policy.plugin_guard`.
    """
    raise NotImplementedError


@hookspec
def datum_router_rate_limit_stores() -> Sequence[RateLimitStoreSpec]:
    """Add stores that rate limits of several gateways count in, named by the gateway's setting `rate_limit_store`.

    Without one each gateway counts for itself, over all of its workers. A store is asked for every request that a limit
    holds for, within `rate_limit_timeout_s`; if it does not answer the request is let through, or refused with 503 if
    `rate_limit_fail_closed` is set. `datum_router.testing.ratelimit` has the conformance suite.
    """
    raise NotImplementedError


@hookspec
def datum_router_health_checks() -> Sequence[HealthCheckSpec]:
    """Add probers for active health checks."""
    raise NotImplementedError


@hookspec
def datum_router_data_planes() -> Sequence[DataPlaneSpec]:
    """Add data planes."""
    raise NotImplementedError


@hookspec
def datum_router_clusters() -> Sequence[ClusterSpec]:
    """Add clusters that status, events and leases are written to, and that objects can be applied to."""
    raise NotImplementedError
