"""The core's own kinds, balancers and resolvers, registered through the same hooks as anybody's.

Kinds and resolvers are imported when they are asked for: a worker asks for balancers only, and manifests' types are
1 MB that it has no use for.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from datum_router.balancing.least_request import LeastRequest
from datum_router.balancing.maglev import Maglev
from datum_router.balancing.random_choice import RandomChoice
from datum_router.balancing.ring_hash import RingHash
from datum_router.balancing.round_robin import RoundRobin
from datum_router.balancing.source_ip import SourceIp
from datum_router.manifests.table import ResourceKind
from datum_router.plugins.hookspecs import hookimpl
from datum_router.plugins.specs import BalancerSpec, PluginInfo, ResolverSpec

if TYPE_CHECKING:
    from datum_router.manifests.secret import ConfigMap, Secret


@hookimpl
def datum_router_plugin_info() -> PluginInfo:
    """Say who this is."""
    return PluginInfo(name="builtin", version="0.1.0", api=1, stability="stable", posture="untrusted-downstream")


@hookimpl
def datum_router_resource_kinds() -> Sequence[ResourceKind]:
    """Add our five kinds, the credential kinds they refer to, and the kinds that consent to references."""
    from datum_router.manifests.kinds import OWN_KINDS
    from datum_router.manifests.namespace import Namespace, namespace_content
    from datum_router.manifests.referencegrant import (
        BY_TARGET,
        GATEWAY_GROUP,
        ReferenceGrant,
        grant_content,
        grant_targets,
    )
    from datum_router.manifests.secret import ConfigMap, Secret, validate_secret

    return [
        *OWN_KINDS,
        ResourceKind(
            group="",
            version="v1",
            kind="Secret",
            plural="secrets",
            struct=Secret,
            validate=validate_secret,
            content=_secret_content,
        ),
        ResourceKind(
            group="", version="v1", kind="ConfigMap", plural="configmaps", struct=ConfigMap, content=_config_content
        ),
        ResourceKind(
            group="",
            version="v1",
            kind="Namespace",
            plural="namespaces",
            struct=Namespace,
            namespaced=False,
            content=namespace_content,
            is_metadata_only=True,
        ),
        *(
            ResourceKind(
                group=GATEWAY_GROUP,
                version=version,
                kind="ReferenceGrant",
                plural="referencegrants",
                short_names=("refgrant",),
                struct=ReferenceGrant,
                content=grant_content,
                is_optional=True,
                indexes={BY_TARGET: grant_targets},
            )
            for version in ("v1beta1", "v1")  # every release of the Gateway API serves the older one
        ),
    ]


@hookimpl
def datum_router_endpoint_resolvers() -> Sequence[ResolverSpec]:
    """Add the resolver of endpoints written in the VPCService."""
    from datum_router.registry.endpoints import StaticResolver

    return [ResolverSpec(name="static", create=StaticResolver, priority=10)]


@hookimpl
def datum_router_balancers() -> Sequence[BalancerSpec]:
    """Add the balancers by the names that `spec.loadBalancing` uses."""
    return [
        BalancerSpec(name="round-robin", create=RoundRobin),
        BalancerSpec(name="least-connections", create=LeastRequest),
        BalancerSpec(name="random", create=RandomChoice),
        BalancerSpec(name="source-ip", create=SourceIp),
        BalancerSpec(name="consistent-hash", create=Maglev),
        BalancerSpec(name="consistent-hash-ring", create=RingHash),
    ]


def _secret_content(secret: Secret) -> object:
    return (secret.type, secret.data, secret.string_data)


def _config_content(config: ConfigMap) -> object:
    return config.data
