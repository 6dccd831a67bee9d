"""What a plugin author imports: specs, protocols and the hook marker."""

from datum_router.manifests.problem import Problem
from datum_router.plugins.hookspecs import hookimpl
from datum_router.plugins.protocols import (
    DataPlane,
    DataPlaneObserver,
    Delete,
    EndpointResolver,
    HealthChange,
    ManifestView,
    Prober,
    ProbeResult,
    Problems,
    Resolution,
    ResolveProblem,
    Source,
    Synced,
    Upsert,
)
from datum_router.plugins.specs import (
    API_VERSION,
    BalancerSpec,
    DataPlaneSpec,
    FilterSpec,
    HealthCheckSpec,
    PluginInfo,
    ResolverSpec,
    SourceSpec,
    ValidatorSpec,
)

__all__ = [
    "API_VERSION",
    "BalancerSpec",
    "DataPlane",
    "DataPlaneObserver",
    "DataPlaneSpec",
    "Delete",
    "EndpointResolver",
    "FilterSpec",
    "HealthChange",
    "HealthCheckSpec",
    "ManifestView",
    "PluginInfo",
    "ProbeResult",
    "Prober",
    "Problem",
    "Problems",
    "Resolution",
    "ResolveProblem",
    "ResolverSpec",
    "Source",
    "SourceSpec",
    "Synced",
    "Upsert",
    "ValidatorSpec",
    "hookimpl",
]
